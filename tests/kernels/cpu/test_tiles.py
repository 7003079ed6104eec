"""The compiled inner loops of every instruction set that this host runs, against plain arithmetic in float64."""

import ctypes

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stille.errors import ConfigError, UnsupportedError
from stille.kernels import grids
from stille.kernels.cpu import Target, formats, host_isas
from stille.kernels.cpu.simd import ISAS
from stille.kernels.cpu.tiles import kernels

TARGETS = [(isa, "f32" if isa == "generic" else "f16") for isa in host_isas()]
every_target = pytest.mark.parametrize(("isa", "kv"), TARGETS, ids=[isa for isa, _ in TARGETS])


def call(function, *arguments) -> None:
    kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, *[ctypes.c_int64] * 10)
    kind(function.address)(None, *(int(a) for a in arguments))


def aligned(array: np.ndarray) -> np.ndarray:
    memory = formats.aligned_bytes(array.nbytes)
    memory[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return memory


def activations(seed: int, rows: int, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Quantised rows in the kernels' layout, and the values that they stand for."""
    rng = np.random.default_rng(seed)
    q = rng.integers(-127, 128, (rows, groups, 32), dtype=np.int8)
    q[rng.random(q.shape) < 0.05] = 127
    q[rng.random(q.shape) < 0.05] = -127
    scale = rng.uniform(1e-3, 1, (rows, groups, 1)).astype(np.float32)
    blocks = np.zeros((rows, groups, 40), np.uint8)
    blocks[..., :4] = scale.view(np.uint8)
    blocks[..., 4:8] = (scale * q.sum(-1, keepdims=True, dtype=np.float32)).astype(np.float32).view(np.uint8)
    blocks[..., 8:] = q.view(np.uint8)
    return blocks, (scale.astype(np.float64) * q).reshape(rows, -1)


def matmul(isa, kv, bits, weights, x_blocks, init):
    rows, groups = x_blocks.shape[:2]
    out = np.full((rows, 16), np.nan, np.float32)
    x = aligned(x_blocks)
    call(
        kernels(isa, kv)[0], bits, weights.ctypes.data, groups, rows, x.ctypes.data, 40 * groups,
        init.ctypes.data, 64 if len(init) > 1 else 0, out.ctypes.data, 64,
    )  # fmt: skip
    return out


@every_target
@settings(max_examples=40, deadline=None)
@given(
    bits=st.sampled_from([4, 8]),
    seed=st.integers(0, 2**31),
    groups=st.integers(1, 7),
    rows=st.integers(1, 20),
    extreme=st.booleans(),
    per_row=st.booleans(),
)
def test_matmul_is_the_product_of_the_quantised_numbers(isa, kv, bits, seed, groups, rows, extreme, per_row):
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(16, 32 * groups))
    if extreme:  # every weight at an end of the grid: where 16-bit sums would overflow
        w = np.where(rng.random(w.shape) < 0.8, 1.0, -1.0)
    quantised = grids.quantize(torch.from_numpy(w).float(), bits)
    blocks, x = activations(seed, rows, groups)
    init = rng.normal(size=(rows if per_row and rows > 1 else 1, 16)).astype(np.float32)
    got = matmul(isa, kv, bits, formats.pack(quantised), blocks, init)
    weight = grids.dequantize(quantised).double().numpy()
    want = init + x @ weight.T
    scale = np.abs(x) @ np.abs(weight.T) + 128 * 2**-7 + np.abs(init)
    assert (np.abs(got - want) <= 3e-6 * scale).all()


@every_target
@pytest.mark.parametrize("bits", [4, 8])
def test_a_row_does_not_depend_on_its_neighbours(isa, kv, bits):
    weights = formats.pack(grids.quantize(torch.randn(16, 96, generator=torch.Generator().manual_seed(0)), bits))
    blocks, _ = activations(1, 15, 3)
    zero = np.zeros((1, 16), np.float32)
    together = matmul(isa, kv, bits, weights, blocks, zero)
    alone = np.concatenate([matmul(isa, kv, bits, weights, blocks[r : r + 1], zero) for r in range(15)])
    assert np.array_equal(together, alone)


@every_target
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 14),
    columns=st.sampled_from([16, 48, 64, 80, 96, 128]),
    depth=st.integers(1, 96),
)
def test_attend_rows_is_a_matrix_product_on_cache_elements(isa, kv, seed, rows, columns, depth):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(rows, depth)).astype(np.float32)
    b = rng.normal(size=(depth, columns)).astype(np.float16 if kv == "f16" else np.float32)
    b[rng.random(b.shape) < 0.1] = 6e-8 if kv == "f16" else 1e-30  # a subnormal half
    c, alpha = rng.normal(size=(rows, columns)).astype(np.float32), rng.random(rows).astype(np.float32)
    got = c.copy()
    call(
        kernels(isa, kv)[1], rows, columns, a.ctypes.data, 4 * depth, depth, b.ctypes.data, b.strides[0],
        alpha.ctypes.data, got.ctypes.data, 4 * columns,
    )  # fmt: skip
    want = alpha[:, None] * c.astype(np.float64) + a.astype(np.float64) @ b.astype(np.float64)
    scale = np.abs(c) + np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64)
    assert (np.abs(got - want) <= 1e-5 * scale + 1e-30).all()


def test_targets_that_make_no_sense_are_refused():
    assert host_isas()[-1] == "generic"
    assert set(host_isas()) <= set(ISAS)
    with pytest.raises(ConfigError, match="sse9"):
        Target("sse9")
    with pytest.raises(ConfigError, match="f64"):
        Target("generic", "f64")
    with pytest.raises(UnsupportedError, match="f32"):
        Target("generic", "f16")
    assert Target().isa == host_isas()[0]
    for isa in set(ISAS) - set(host_isas()):
        with pytest.raises(UnsupportedError, match=isa):
            Target(isa)
