"""The paged kernels against plain attention: head widths, groups, lengths at page edges, garbage outside the cache."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stille.errors import UnsupportedError
from stille.kernels import paged
from stille.kernels.paged import reference
from stille.kernels.triton_support import PAGE

pytestmark = pytest.mark.skipif("not __import__('importlib').util.find_spec('triton')", reason="needs triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Triton's interpreter has no bf16 matrix product.
DTYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if DEVICE == "cuda" else [])
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    assert not got.isnan().any(), "an element was not written, or garbage was read"
    return float((got.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-12))


class Cache:
    """Sequences of given lengths in shuffled pages; what does not belong to one is NaN."""

    def __init__(self, lengths, kv_heads, head_dim, dtype, seed=0):
        random = torch.Generator().manual_seed(seed)
        counts = [-(-n // PAGE) for n in lengths]
        pages = sum(counts) + 2
        order = (torch.randperm(pages - 1, generator=random) + 1).tolist()
        self.table = torch.zeros(len(lengths), max(counts, default=0) + 1, dtype=torch.int32)
        self.k_pages = torch.full((pages, kv_heads, PAGE, head_dim), float("nan"), dtype=dtype)
        self.v_pages = self.k_pages.clone()
        self.k, self.v, self.lengths = [], [], lengths
        for seq, n in enumerate(lengths):
            k = torch.randn(n, kv_heads, head_dim, generator=random).to(dtype)
            v = torch.randn(n, kv_heads, head_dim, generator=random).to(dtype)
            for p in range(counts[seq]):
                page = order.pop()
                self.table[seq, p] = page
                part = slice(p * PAGE, min(n, (p + 1) * PAGE))
                self.k_pages[page, :, : part.stop - part.start] = k[part].transpose(0, 1)
                self.v_pages[page, :, : part.stop - part.start] = v[part].transpose(0, 1)
            self.k.append(k)
            self.v.append(v)
        self.k_pages, self.v_pages = self.k_pages.to(DEVICE), self.v_pages.to(DEVICE)
        self.table_device = self.table.to(DEVICE)


def device_ints(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


SHAPES = [(64, 2, 3), (80, 1, 2), (96, 2, 1), (128, 1, 5), (256, 1, 1)]  # head width, kv heads, group
CASES = [(*shape, torch.float32) for shape in SHAPES] + [(*SHAPES[0], dtype) for dtype in DTYPES[1:]]


@pytest.mark.parametrize(("head_dim", "kv_heads", "group", "dtype"), CASES, ids=str)
def test_decode_equals_plain_attention(head_dim, kv_heads, group, dtype):
    lengths = [1, PAGE, 0, PAGE + 1, 3 * PAGE - 1]
    cache = Cache(lengths, kv_heads, head_dim, dtype)
    q = torch.randn(len(lengths), kv_heads * group, head_dim).to(dtype)
    out = torch.full_like(q, float("nan")).to(DEVICE)
    got = paged.decode_attention(
        q.to(DEVICE), cache.k_pages, cache.v_pages, cache.table_device, device_ints(lengths), 0.125, out=out
    )
    assert got.data_ptr() == out.data_ptr()
    for i, n in enumerate(lengths):
        if n == 0:
            assert (got[i] == 0).all(), "a padded row is zero"
            continue
        expected = reference.attend(q[i : i + 1].double(), cache.k[i].double(), cache.v[i].double(), 0.125)
        assert relative_error(got[i].cpu(), expected[0]) < TOLERANCE[dtype]


@pytest.mark.parametrize(
    ("splits", "min_tiles", "block_t"), [(1, 1, 64), (2, 1, 32), (8, 1, 64), (8, 3, 32), (4, 1, 128)]
)
def test_splitting_a_sequence_does_not_change_its_attention(splits, min_tiles, block_t):
    from stille.kernels.paged.triton_decode import DecodeConfig, DecodeWorkspace, decode_attention

    lengths = [5, 200, PAGE * 4, 321]
    cache = Cache(lengths, 2, 64, torch.float32)
    q = torch.randn(len(lengths), 4, 64, device=DEVICE)
    config = DecodeConfig(splits, min_tiles, block_t)
    workspace = DecodeWorkspace(len(lengths), 4, 2, 64, q.dtype, q.device, config)
    expected = reference.decode_attention(
        q, cache.k_pages, cache.v_pages, cache.table_device, device_ints(lengths), 0.125
    )
    for _ in range(2):  # the second call finds the workspace as the first has left it
        got = decode_attention(
            q, cache.k_pages, cache.v_pages, cache.table_device, device_ints(lengths), 0.125,
            out=torch.full_like(q, float("nan")), workspace=workspace, config=config,
        )  # fmt: skip
        assert relative_error(got, expected) < 2e-5
    assert (workspace.ticket == 0).all()


@pytest.mark.parametrize("together", [2, 4, 8])
@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize(("kv_heads", "group"), [(2, 3), (1, 1)])
def test_rows_of_one_sequence_together_are_attended_as_alone(together, splits, kv_heads, group):
    from stille.kernels.paged.triton_decode import DecodeConfig, DecodeWorkspace, decode_attention

    ends = [together, PAGE + 3, 3 * PAGE - 1]  # tokens once all rows are in; the second crosses a page
    cache = Cache(ends, kv_heads, 64, torch.float32)
    lengths = [end - together + 1 + row for end in ends for row in range(together)]
    lengths[-1] = 0  # padding
    table = cache.table_device.repeat_interleave(together, 0)
    q = torch.randn(len(lengths), kv_heads * group, 64, device=DEVICE)
    expected = reference.decode_attention(q, cache.k_pages, cache.v_pages, table, device_ints(lengths), 0.125)
    config = DecodeConfig(splits, 1, 32)
    workspace = DecodeWorkspace(len(lengths), kv_heads * group, kv_heads, 64, q.dtype, q.device, config)
    for _ in range(2):
        got = decode_attention(
            q, cache.k_pages, cache.v_pages, table, device_ints(lengths), 0.125, together=together,
            out=torch.full_like(q, float("nan")), workspace=workspace, config=config,
        )  # fmt: skip
        assert relative_error(got, expected) < 2e-5
        assert (got[-1] == 0).all()
    assert (workspace.ticket == 0).all()


def test_decode_reads_rows_and_table_width_from_the_device():
    """What a captured graph relies on: only tensors change between replays."""
    from stille.kernels.paged.triton_decode import decode_attention

    lengths = [70, 3]
    cache = Cache(lengths, 1, 64, torch.float32)
    q = torch.randn(5, 2, 64, device=DEVICE)
    rows = [4, 1]
    width = torch.tensor([cache.table.shape[1]], dtype=torch.int32, device=DEVICE)
    flat = torch.cat((cache.table.flatten(), torch.full((9,), 10**6, dtype=torch.int32))).to(DEVICE)
    got = decode_attention(
        q, cache.k_pages, cache.v_pages, flat, device_ints(lengths), 0.2, rows_S=device_ints(rows), table_stride=width,
        out=torch.zeros_like(q),
    )  # fmt: skip
    expected = reference.decode_attention(
        q[rows], cache.k_pages, cache.v_pages, cache.table_device, device_ints(lengths), 0.2
    )
    assert relative_error(got[rows], expected) < 2e-5
    assert (got[[0, 2, 3]] == 0).all(), "rows of no sequence are left alone"


@pytest.mark.parametrize(("head_dim", "kv_heads", "group", "dtype"), CASES, ids=str)
def test_prefill_equals_plain_attention(head_dim, kv_heads, group, dtype):
    starts, counts = [0, PAGE - 1, 7, 0, 2 * PAGE], [PAGE + 1, 1, 0, 1, 5]
    check_prefill(starts, counts, head_dim, kv_heads, group, dtype)


def check_prefill(starts, counts, head_dim, kv_heads, group, dtype, seed=0):
    lengths = [s + c for s, c in zip(starts, counts, strict=True)]
    cache = Cache(lengths, kv_heads, head_dim, dtype, seed)
    first_rows = (np.cumsum(counts) - counts).tolist()
    q = torch.randn(sum(counts), kv_heads * group, head_dim).to(dtype)
    got = paged.prefill_attention(
        q.to(DEVICE), cache.k_pages, cache.v_pages, cache.table_device, device_ints(first_rows), device_ints(starts),
        device_ints(counts), 0.15, out=torch.full_like(q, float("nan")).to(DEVICE),
    ).cpu()  # fmt: skip
    for i, count in enumerate(counts):
        rows = slice(first_rows[i], first_rows[i] + count)
        expected = reference.attend(q[rows].double(), cache.k[i].double(), cache.v[i].double(), 0.15)
        assert relative_error(got[rows], expected) < TOLERANCE[dtype]


@settings(max_examples=8, deadline=None)
@given(
    chunks=st.lists(st.tuples(st.integers(0, 150), st.integers(0, 70)), min_size=1, max_size=4),
    group=st.sampled_from([1, 3, 7]),
    seed=st.integers(0, 99),
)
def test_prefill_of_any_chunks_equals_plain_attention(chunks, group, seed):
    starts, counts = zip(*chunks, strict=True)
    check_prefill(starts, counts, 64, 1, group, torch.float32, seed)


@pytest.mark.parametrize("head_dim", [64, 80, 96])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("rope", [False, True])
def test_write_stores_what_the_reference_stores(head_dim, norm, rope):
    n, heads, kv_heads = 70, 4, 2
    fused = torch.randn(n, heads + 2 * kv_heads, head_dim)
    angles = torch.rand(300, head_dim // 2).repeat(1, 2) * 6
    slots = torch.randperm(3 * PAGE)[:n].to(torch.int32)
    positions = torch.randint(0, 300, (n,), dtype=torch.int32)
    options = {}
    if norm:
        options |= {"q_norm_D": torch.rand(head_dim), "k_norm_D": torch.rand(head_dim), "eps": 1e-6}
    if rope:
        options |= {"positions_N": positions, "cos_TD": angles.cos(), "sin_TD": angles.sin()}

    def split(x):  # strided views of one projection, as the engine passes them
        return x[:, :heads], x[:, heads : heads + kv_heads], x[:, heads + kv_heads :]

    empty = torch.full((4, kv_heads, PAGE, head_dim), float("nan"))
    expected_pages, got_pages = (empty.clone(), empty.clone()), (empty.to(DEVICE), empty.to(DEVICE).clone())
    expected_q = reference.write_kv(*split(fused.clone()), *expected_pages, slots, **options)
    moved = {name: value.to(DEVICE) if torch.is_tensor(value) else value for name, value in options.items()}
    got_q = paged.write_kv(*split(fused.to(DEVICE).clone()), *got_pages, slots.to(DEVICE), **moved)
    torch.testing.assert_close(got_q.cpu(), expected_q, rtol=1e-5, atol=1e-5)
    for got, expected in zip(got_pages, expected_pages, strict=True):
        torch.testing.assert_close(got.cpu(), expected, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_no_tokens_at_all_is_fine():
    cache = Cache([3], 1, 64, torch.float32)
    q = torch.zeros(0, 2, 64, device=DEVICE)
    none = device_ints([])
    assert paged.decode_attention(q, cache.k_pages, cache.v_pages, cache.table_device[:0], none, 1.0).shape == q.shape
    empty = (cache.k_pages, cache.v_pages, cache.table_device[:0])
    assert paged.prefill_attention(q, *empty, none, none, none, 1.0).shape == q.shape
    assert paged.write_kv(q, q[:, :1], q[:, :1], cache.k_pages, cache.v_pages, none).shape == q.shape


def test_mistakes_are_named():
    cache = Cache([3], 2, 64, torch.float32)
    length = device_ints([3])
    pages = (cache.k_pages, cache.v_pages, cache.table_device, length, 1.0)
    with pytest.raises(ValueError, match="multiple of their kv_heads"):
        paged.decode_attention(torch.zeros(1, 3, 64, device=DEVICE), *pages)
    with pytest.raises(UnsupportedError, match="float64"):
        paged.decode_attention(torch.zeros(1, 2, 64, dtype=torch.float64, device=DEVICE), *pages)
    with pytest.raises(ValueError, match="contiguous"):
        paged.decode_attention(torch.zeros(1, 64, 2, device=DEVICE).transpose(1, 2), *pages)
    with pytest.raises(ValueError, match="head_dim"):
        paged.decode_attention(torch.zeros(1, 2, 32, device=DEVICE), *pages)
