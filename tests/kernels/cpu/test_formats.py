"""Weight formats: the grids, what they preserve, and where each number lies in packed memory."""

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stille.errors import ConfigError
from stille.kernels import grids
from stille.kernels.cpu import formats

bits_of = st.sampled_from([4, 8])
seeds = st.integers(0, 2**31)


def matrix(seed: int, rows: int, groups: int, spread: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 32 * groups, generator=generator) * spread


def from_least_to_largest(w: torch.Tensor) -> torch.Tensor:
    """w on the plain 4-bit grids of Q4_1."""
    w_OGK = w.unflatten(1, (-1, 32))
    low, high = torch.aminmax(w_OGK, dim=-1, keepdim=True)
    scale, low = ((high - low) / 15).half().float(), low.half().float()
    return (((w_OGK - low) / scale.clamp(min=1e-30)).round().clamp(0, 15) * scale + low).flatten(1)


def squares(error: torch.Tensor) -> torch.Tensor:
    """Of each group."""
    return error.unflatten(1, (-1, 32)).square().sum(-1)


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 40), st.integers(1, 5), st.floats(1e-3, 1e3))
def test_eight_bits_are_half_a_step_off_at_most(seed, rows, groups, spread):
    w = matrix(seed, rows, groups, spread)
    q = grids.quantize(w, 8)
    error = (grids.dequantize(q) - w).abs().unflatten(1, (-1, 32)).amax(-1)
    reach = w.abs().unflatten(1, (-1, 32)).amax(-1)  # of which rounding the scale to binary16 adds a little
    assert (error <= 0.5 * q.scale_OG.float() + 2e-3 * reach + 1e-6).all()


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 40), st.integers(1, 5), st.floats(1e-3, 1e3))
def test_four_bits_are_no_further_off_than_the_plain_grid(seed, rows, groups, spread):
    w = matrix(seed, rows, groups, spread)
    mine, plain = (squares(each - w) for each in (grids.dequantize(grids.quantize(w, 4)), from_least_to_largest(w)))
    assert (mine <= plain * (1 + 1e-5) + 1e-12).all()


def test_four_bits_are_nearer_than_the_plain_grid_by_a_tenth_and_more():
    w = matrix(1, 64, 16)
    mine, plain = (squares(each - w) for each in (grids.dequantize(grids.quantize(w, 4)), from_least_to_largest(w)))
    assert float(mine.mean()) < 0.9 * float(plain.mean())


@settings(max_examples=30, deadline=None)
@given(bits_of, seeds, st.integers(1, 24), st.integers(1, 4), st.floats(0.01, 10))
def test_values_on_the_grid_are_kept(bits, seed, rows, groups, spread):
    w = matrix(seed, rows, groups, spread)
    once = from_least_to_largest(w) if bits == 4 else grids.dequantize(grids.quantize(w, 8))
    assert torch.equal(grids.dequantize(grids.quantize(once, bits)), once)


def test_parts_of_a_large_matrix_are_as_the_whole(monkeypatch):
    w = matrix(2, 30, 7)
    whole = grids.quantize(w, 4)
    monkeypatch.setattr(grids, "AT_ONCE", 11)
    parts = grids.quantize(w, 4)
    assert torch.equal(grids.dequantize(parts), grids.dequantize(whole))


@pytest.mark.parametrize(
    ("bits", "kind"), [(4, gguf.GGMLQuantizationType.Q4_1), (8, gguf.GGMLQuantizationType.Q8_0)], ids=["Q4_1", "Q8_0"]
)
def test_a_gguf_tensor_of_the_same_grid_comes_back_exactly(bits, kind):
    stored = gguf.quants.quantize(matrix(3, 48, 6, 0.05).numpy(), kind)
    values = torch.from_numpy(gguf.quants.dequantize(stored, kind))
    assert torch.equal(grids.dequantize(grids.quantize(values, bits)), values)


@pytest.mark.parametrize("value", [0.0, 1.5, -2.0])
@pytest.mark.parametrize("bits", [4, 8])
def test_constant_groups(bits, value):
    w = torch.full((16, 32), value)
    assert torch.allclose(grids.dequantize(grids.quantize(w, bits)), w, rtol=1e-3)


@settings(max_examples=30, deadline=None)
@given(bits_of, seeds, st.integers(1, 50), st.integers(1, 5), st.data())
def test_packed_numbers_lie_where_the_layout_says(bits, seed, rows, groups, data):
    q = grids.quantize(matrix(seed, rows, groups), bits)
    packed = formats.pack(q)
    assert packed.size == formats.packed_bytes(rows, 32 * groups, bits)
    assert packed.ctypes.data % 64 == 0
    o, i = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, 32 * groups - 1))
    block = packed[o // 16 * formats.block_bytes(32 * groups, bits) :]
    group, lane, quad, place = i // 32, o % 16, i % 32 // 4, i % 4
    half = lambda start: block[start : start + 2].view(np.float16)[0]  # noqa: E731
    if bits == 4:
        base = 320 * group
        byte = int(block[base + 64 * (quad % 4) + 4 * lane + place])
        assert (byte >> 4 if quad >= 4 else byte & 15) == int(q.q_OI[o, i])
        assert q.min_OG is not None
        assert half(base + 256 + 2 * lane) == q.scale_OG[o, group].numpy()
        assert half(base + 288 + 2 * lane) == q.min_OG[o, group].numpy()
    else:
        assert int(block[512 * group + 64 * quad + 4 * lane + place]) - 128 == int(q.q_OI[o, i])
        assert half(512 * groups + 32 * group + 2 * lane) == q.scale_OG[o, group].numpy()


@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(4, 33),
        torch.zeros(32),
        torch.zeros(0, 32),
        torch.zeros(4, 32, dtype=torch.int32),
        torch.full((4, 32), float("nan")),
        torch.full((4, 32), float("inf")),
        torch.full((4, 32), 1e5),
    ],
    ids=["columns", "vector", "empty", "integers", "nan", "inf", "huge"],
)
@pytest.mark.parametrize("bits", [4, 8])
def test_what_cannot_be_quantised_is_refused(weight, bits):
    with pytest.raises(ConfigError):
        grids.quantize(weight, bits)


def test_wrong_bits_and_wrong_buffer_are_refused():
    with pytest.raises(ConfigError, match="4 or 8"):
        grids.quantize(torch.zeros(16, 32), 5)
    with pytest.raises(ConfigError, match="320"):
        formats.pack(grids.quantize(torch.ones(16, 32), 4), np.zeros(64, np.uint8))
