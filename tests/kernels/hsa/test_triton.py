"""The Triton kernels of HSA against the specification: head widths, groups, leaves, ragged ends, late chunks."""

import dataclasses

import pytest
import torch

from stille.kernels.hsa import HSAConfig, HSAOutput, api, hsa_attention
from stille.kernels.hsa import reference as ref
from stille.kernels.triton_support import PAGE

pytestmark = pytest.mark.skipif("not __import__('importlib').util.find_spec('triton')", reason="needs triton")

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
DTYPE = torch.bfloat16 if ON_GPU else torch.float32  # Triton's interpreter has no bf16 matrix product
TOLERANCE = 2e-2 if ON_GPU else 1e-3
SMALL = HSAConfig(  # the interpreter takes long for a unit of 128: a few cases have it
    budget=384, leaf=32, unit=64, sinks=64, local=64, candidates=768, candidates_from=1 << 30, dense_below=0
)
FEW = dataclasses.replace(SMALL, budget=256, unit=32, sinks=32, local=32)


def rand(heads, n, dim, seed, gain=1.0):
    return (torch.randn(heads, n, dim, generator=torch.Generator().manual_seed(seed)) * gain).to(DEVICE, DTYPE)


def like_neighbours(x):
    """Neighbours resemble each other, as in real heads; it also keeps mean queries away from ties."""
    return x + x.roll(1, 1)


NARROW = {"candidates_from": 0, "candidates": 448, "span": 256}
CASES = [  # key heads, group, head width, keys, queries, changes of the config
    (1, 2, 64, 500, 500, {"unit": 128}),
    (1, 4, 128, 400, 400, {"leaf": 64, "unit": 32, "codes": "sign"}),
    (1, 3, 64, 390, 390, {"leaf": 16}),
    (2, 1, 256, 430, 100, {"leaf": 64}),
    (1, 2, 96, 520, 289, {"unit": 128, "codes": "sign"}),
    (1, 2, 64, 450, 450, {"coverage": 0.8, "tail": 0}),
    (2, 2, 64, 500, 290, {"coverage": 0.9, "tail": 200, "codes": "sign"}),
    (1, 4, 64, 500, 1, {"leaf": 64, "unit": 8}),
    (1, 3, 64, 450, 450, {"row_weight": 1, "outliers": 7, "leaf": 64, "unit": 32, "tail": 0}),
    (2, 2, 96, 500, 290, {"row_weight": 1, "outliers": 2}),
    (1, 2, 64, 690, 690, {**NARROW, "row_weight": 1}),
    (1, 3, 64, 690, 690, {**NARROW, "unit": 128}),
    (1, 3, 64, 680, 500, {**NARROW, "unit": 32, "codes": "sign"}),
]


def make(case, seed):
    k_heads, groups, dim, n, m, change = case
    q, k, v = (
        rand(k_heads * groups, m, dim, seed, 2),
        rand(k_heads, n, dim, seed + 1) + 0.3,
        rand(k_heads, n, dim, seed),
    )
    return like_neighbours(q), like_neighbours(k), v, dim**-0.5, dataclasses.replace(SMALL, **change)


@pytest.mark.parametrize(("dim", "n", "leaf"), [(64, 256, 64), (128, 200, 32), (96, 130, 16)])
def test_sign_codes(dim, n, leaf):
    from stille.kernels.hsa.triton_select import map_keys

    k = rand(2, n, dim, 0) + 0.5
    got = map_keys(k, dataclasses.replace(SMALL, leaf=leaf, codes="sign", local=128))
    signs, scale = ref.sign_codes(k, leaf)
    torch.testing.assert_close(got.mean_KBD, ref.leaf_means(k, leaf).to(DTYPE))
    torch.testing.assert_close(got.scale_KN[:, :n], scale, rtol=2e-2, atol=1e-3)
    assert (got.code_KND[:, :n].float() == signs).float().mean() > 0.99  # values near zero may round over it


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_follow_the_specification(case):
    """Selection, then the exact part on the very leaves that were selected."""
    from stille.kernels.hsa.triton_prefill import prefill
    from stille.kernels.hsa.triton_select import select

    q, k, v, scale, config = make(case, 2)
    want = ref.select(q, k, scale, config)
    chosen = select(q, k, scale, config, want_map=True)
    tiles, leaves = want.shape[1:]
    past = ref.past_leaves(tiles, leaves, k.shape[1] - q.shape[1], config, q.device)
    have = chosen.chosen_HTB.bool() & past
    agree = float(((want & past) & have).sum() / (want & past).sum())
    assert agree > (0.93 if ON_GPU else 0.97), agree  # rounded mean queries move near ties
    if config.candidates_from:
        assert torch.equal((want & past).sum(-1), have.sum(-1))
    assert torch.equal(chosen.count_HT.long(), have.sum(-1))
    for listed, count, mask in zip(
        chosen.index_HTL.flatten(0, 1), chosen.count_HT.flatten(), have.flatten(0, 1), strict=True
    ):
        assert torch.equal(listed[: int(count)].long(), mask.nonzero()[:, 0]), "ids are ascending"
    read = have | (ref.forced_leaves(tiles, leaves, k.shape[1] - q.shape[1], config, q.device) & ~past)
    out = torch.full_like(q, torch.nan)
    prefill(q, k, v, chosen, scale, config.leaf, config.unit, out=out)
    expected, _, _ = ref.attend(q, k, v, read, scale, config)
    torch.testing.assert_close(out.float(), expected, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize(("dim", "n", "leaf", "outliers"), [(96, 200, 64, 2), (64, 130, 16, 0)])
def test_what_stands_for_leaves(dim, n, leaf, outliers):
    from stille.kernels.hsa.triton_select import map_keys

    k, whole = like_neighbours(rand(2, n, dim, 0)), n // leaf
    config = dataclasses.replace(SMALL, leaf=leaf, outliers=outliers, local=128)
    got = map_keys(k, config).stand_KPBD[:, :, :whole]
    want, _ = ref.representatives(k, leaf, outliers)
    torch.testing.assert_close(got, want[:, :whole].transpose(1, 2).to(DTYPE))


@pytest.mark.skipif(ON_GPU, reason="in bfloat16, roundings decide near ties")
def test_candidates_of_a_span_that_ends_inside_a_unit():
    from stille.kernels.hsa.triton_select import select

    config = dataclasses.replace(SMALL, **NARROW, unit=8, budget=320)
    q, k = rand(2, 281, 64, 70), rand(1, 561, 64, 71)
    chosen = select(q, k, 0.125, config, want_map=True)
    want = ref.select(q, k, 0.125, config) & ref.past_leaves(3, 18, 280, config, q.device)
    assert torch.equal(chosen.chosen_HTB.bool(), want)


@pytest.mark.parametrize("case", [CASES[2], CASES[6]], ids=str)
def test_residual(case):
    from stille.kernels.hsa.triton_prefill import prefill
    from stille.kernels.hsa.triton_residual import residual
    from stille.kernels.hsa.triton_select import select

    q, k, v, scale, config = make(case, 8)
    q, config = q / 3, dataclasses.replace(config, residual=True)
    chosen = select(q, k, scale, config, want_map=True)
    tiles, leaves = chosen.chosen_HTB.shape[1:]
    past = ref.past_leaves(tiles, leaves, k.shape[1] - q.shape[1], config, q.device)
    own = ref.forced_leaves(tiles, leaves, k.shape[1] - q.shape[1], config, q.device) & ~past
    expected = ref.attend(q, k, v, (chosen.chosen_HTB.bool() & past) | own, scale, config)
    rest = residual(k, v, chosen, q.shape[1], q.shape[0] // k.shape[0], scale, config)
    got = prefill(q, k, v, chosen, scale, config.leaf, config.unit, residual=rest)
    assert expected[2].max() > 0.02, "something was missed"
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a.float(), b, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize(("n", "keys"), [(512, 64), (460, 128)])
def test_descriptors_equal_pointers(n, keys):
    from stille.kernels.hsa.triton_prefill import PrefillConfig, prefill
    from stille.kernels.hsa.triton_select import select

    if ON_GPU and torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("this GPU has no TMA")
    config = dataclasses.replace(SMALL, leaf=PAGE, sinks=PAGE, local=PAGE)
    q, k, v = rand(2, n - 200, 64, 11, 2), rand(2, n, 64, 12), rand(2, n, 64, 13)
    chosen = select(q, k, 0.125, config)
    want = prefill(q, k, v, chosen, 0.125, 64, 128, config=PrefillConfig(64, 4, 2))
    got = prefill(q, k, v, chosen, 0.125, 64, 128, config=PrefillConfig(keys, 8, 2, tma=True))
    torch.testing.assert_close(got[0], want[0], atol=1e-2 if ON_GPU else 1e-4, rtol=0)
    torch.testing.assert_close(got[1], want[1], atol=1e-3, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device: Gluon has no interpreter")
@pytest.mark.parametrize(("groups", "n", "m"), [(4, 4096, 4096), (1, 3000, 3000), (5, 2500, 777), (8, 8192, 1)])
def test_gluon_equals_triton(groups, n, m):
    from stille.kernels.hsa.triton_prefill import prefill
    from stille.kernels.hsa.triton_select import select

    config = HSAConfig(budget=1024)
    q, k, v = rand(2 * groups, m, 128, 20, 2), rand(2, n, 128, 21), rand(2, n, 128, 22)
    if not api.uses_gluon(q, config):
        pytest.skip("not a Hopper GPU, or Triton is too old")
    from stille.kernels.hsa import triton_gluon

    chosen = select(q, k, 0.088, config)
    want, want_lse, _ = prefill(q, k, v, chosen, 0.088, 64, 128)
    out = torch.full_like(q, torch.nan)
    _, lse = triton_gluon.prefill(q, k, v, chosen, 0.088, 64, out=out)
    torch.testing.assert_close(out, want, atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(lse, want_lse, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("dim", "leaf"), [(128, 64), (80, 32)])
def test_attention_by_kernels_equals_the_reference(dim, leaf):
    """The public function: a strided batch of two, a late chunk that ends inside a leaf, log-sum-exp, missed mass."""
    budget = 640 if ON_GPU else 384  # roundings to bf16 may select another leaf than the reference: there, select all
    config = dataclasses.replace(SMALL, leaf=leaf, unit=leaf // 2, budget=budget, residual=dim == 80)
    n, m = 430, 160
    q, k, v = (
        torch.stack([like_neighbours(rand(heads, t, dim, seed + i, 2)) for i in (0, 1)]).transpose(1, 2).contiguous()
        for heads, t, seed in ((4, m, 30), (2, n, 32), (2, n, 34))
    )  # stored [batch, tokens, heads, width]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    got = hsa_attention(q, k, v, config, return_details=True)
    assert isinstance(got, HSAOutput)
    assert got.out.dtype == DTYPE
    want = [ref.hsa_attention(q[b], k[b], v[b], config, dim**-0.5) for b in (0, 1)]
    error = (got.out.float() - torch.stack([w[0] for w in want])).norm() / torch.stack([w[0] for w in want]).norm()
    assert error < (5e-2 if ON_GPU else 1e-3)
    torch.testing.assert_close(got.lse, torch.stack([w[1] for w in want]), atol=5e-2 if ON_GPU else 1e-3, rtol=0)
    if config.residual:
        torch.testing.assert_close(got.missed, torch.stack([w[2] for w in want]), atol=5e-2 if ON_GPU else 1e-3, rtol=0)
    else:
        assert got.missed is None


@pytest.mark.parametrize("dense", [False, True])
def test_padded_rows_equal_each_alone(dense):
    config = dataclasses.replace(FEW, budget=512 if ON_GPU else FEW.budget, dense_below=4096 if dense else 0)
    q, k, v = (torch.stack([like_neighbours(rand(h, 340, 64, 80 + i + h, 2)) for i in range(3)]) for h in (2, 1, 1))
    lengths = torch.tensor([340, 299, 0], device=DEVICE)
    q[1, :, 299:], k[1, :, 299:], v[1, :, 299:] = torch.nan, 1e4, 1e4  # padding may hold anything; NaN only in queries
    got = hsa_attention(q, k, v, config, lengths_B=lengths)
    for row, n in enumerate(lengths.tolist()):
        assert (got[row, :, n:] == 0).all()
        if n:
            want = hsa_attention(q[row, :, :n][None], k[row, :, :n][None], v[row, :, :n][None], config)
            torch.testing.assert_close(got[row, :, :n], want[0], atol=TOLERANCE, rtol=TOLERANCE)


def test_addresses_beyond_31_bits():
    """Key heads that lie more than 2^31 elements apart."""
    far = (1 << 31) + 192
    dtype = torch.float16
    try:
        memory = torch.empty(far + (1 << 17), dtype=dtype, device=DEVICE)  # on a CPU only touched pages exist
    except (RuntimeError, torch.OutOfMemoryError):
        pytest.skip("not enough memory")
    k = memory.as_strided((2, 512, 64), (far, 64, 1))
    v = memory.as_strided((2, 512, 64), (far, 64, 1), 1 << 16)
    k.copy_(rand(2, 512, 64, 40))
    v.copy_(rand(2, 512, 64, 41))
    q = rand(2, 100, 64, 42).to(dtype)
    config = dataclasses.replace(SMALL, leaf=32)  # leaves of 64 may be copied for descriptors
    got = hsa_attention(q[None], k[None], v[None], config)
    want = hsa_attention(q[None], k[None].contiguous(), v[None].contiguous(), config)
    assert torch.equal(got, want)


def test_nan_stays_in_its_head_and_in_the_future():
    q, k, v = rand(2, 370, 64, 50), rand(2, 370, 64, 51), rand(2, 370, 64, 52)
    clean = hsa_attention(q[None], k[None], v[None], FEW)
    k[1, 200], v[1, 201] = torch.nan, torch.inf
    got = hsa_attention(q[None], k[None], v[None], FEW)
    assert torch.equal(got[:, :1], clean[:, :1]), "heads of the other key head"
    assert torch.equal(got[:, 1:, :128], clean[:, 1:, :128]), "tiles before"
    assert got[:, 1:, 256:].isnan().any()


@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")
@pytest.mark.parametrize("dim", [64, 128])
def test_a_captured_graph_replays_on_new_data(dim):
    config = HSAConfig(budget=1024, dense_below=0)
    q, k, v = rand(8, 4096, dim, 60)[None], rand(2, 4096, dim, 61)[None], rand(2, 4096, dim, 62)[None]
    hsa_attention(q, k, v, config)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # a wait for the device would fail here
        out = hsa_attention(q, k, v, config)
    for x, seed in ((q, 63), (k, 64), (v, 65)):
        x.copy_(rand(x.shape[1], 4096, dim, seed)[None])
    graph.replay()
    torch.testing.assert_close(out, hsa_attention(q, k, v, config), atol=0, rtol=0)
