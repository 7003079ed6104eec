"""Gradients of HSA: kernels against autograd through the specification, and what users of `hsa_attention` rely on."""

import dataclasses
from itertools import pairwise

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from stille.kernels.hsa import HSAConfig, HSAOutput, hsa_attention
from stille.kernels.hsa import reference as ref
from stille.kernels.hsa.config import TILE

needs_triton = pytest.mark.skipif("not __import__('importlib').util.find_spec('triton')", reason="needs triton")

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
DTYPE = torch.bfloat16 if ON_GPU else torch.float32  # Triton's interpreter has no bf16 matrix product
TOLERANCE = 3e-2 if ON_GPU else 1e-4
SMALL = HSAConfig(
    budget=256, leaf=32, unit=32, sinks=32, local=32, candidates=1024, candidates_from=1 << 30, tail=0, dense_below=0
)


def rand(*shape, seed, gain=1.0):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * gain).to(DEVICE, DTYPE)


def agree(got, want):
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        error = (a.float() - b.to(a.device)).norm() / b.norm().clamp(min=1e-6)
        assert error < TOLERANCE, float(error)


def some_leaves(heads, n, m, leaf, seed):
    """A selection of about half of each tile's past leaves, as lists with garbage behind, and the leaves read."""
    from stille.kernels.hsa.triton_select import Selection

    config = dataclasses.replace(SMALL, leaf=leaf, budget=256 + leaf, sinks=0, local=0)
    tiles, leaves, device = -(-m // TILE), -(-n // leaf), torch.device("cpu")
    past = ref.past_leaves(tiles, leaves, n - m, config, device)
    chance = torch.rand(heads, tiles, leaves, generator=torch.Generator().manual_seed(seed))
    chosen = past & (chance < 0.5)
    chosen[:, :, 0] = past[:, 0]  # all read the first, none the third
    chosen[:, :, 2] = False
    count = chosen.sum(-1)
    order = chosen.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)
    index = torch.where(torch.arange(leaves) < count[..., None], order, 1 << 20)
    own = ref.forced_leaves(tiles, leaves, n - m, config, device) & ~past
    lists = Selection(index.int().to(DEVICE), count.int().to(DEVICE), None, torch.empty(0), 0)
    return lists, (chosen | own).to(DEVICE)


CASES = [  # key heads, group, head width, keys, queries, leaf; rows of dQ, keys of dQ, rows of dK, descriptors, chunk
    (2, 1, 32, 300, 300, 32, (128, 64, 64, False, None)),
    (1, 3, 48, 215, 140, 16, (64, 32, 64, False, 3)),
    (1, 2, 64, 384, 256, 64, (128, 64, 128, True, 2)),
    (1, 1, 32, 390, 290, 128, (64, 128, 32, False, 1)),
]


@needs_triton
@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_follow_autograd_through_the_specification(case):
    """Also: equal bits in a second run, nothing for leaves that nobody reads, gradients of the log-sum-exp."""
    from stille.kernels.hsa import triton_backward as kernels

    k_heads, group, dim, n, m, leaf, (dq_rows, dq_keys, dkv_rows, tma, chunk) = case
    if tma and ON_GPU and torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("this GPU has no TMA")
    cut = kernels.BackwardConfig(dq_rows, dq_keys, 8, 1, dkv_rows, 8, 1, tma=tma, chunk=chunk)
    q, k, v = (rand(h, t, dim, seed=s) for h, t, s in ((k_heads * group, m, 1), (k_heads, n, 2), (k_heads, n, 3)))
    do, dlse = rand(*q.shape, seed=4), rand(*q.shape[:2], seed=5).float()
    chosen, read = some_leaves(q.shape[0], n, m, leaf, 6)
    wide = [x.float().requires_grad_() for x in (q, k, v)]
    config = dataclasses.replace(SMALL, leaf=leaf, budget=1024, sinks=128, local=128)
    out, lse, _ = ref.attend(wide[0], wide[1], wide[2], read, 0.2, config)
    want = torch.autograd.grad((out, lse), wide, (do.float(), dlse))

    def run():
        rows = kernels.row_stats(do, out.detach().to(DTYPE), lse.detach(), dlse)
        lists = kernels.readers(chosen, k_heads, -(-n // leaf), chunk)
        return (
            kernels.backward_q(q, k, v, do, rows, chosen, 0.2, leaf, cut),
            *kernels.backward_kv(q, k, v, do, rows, lists, 0.2, leaf, cut),
        )

    got = run()
    agree(got, want)
    for again, x in zip(run(), got, strict=True):
        assert torch.equal(again, x)
    unread = slice(2 * leaf, 3 * leaf)  # before the first query, unless a tile lies in it
    if unread.stop <= n - m:
        assert not got[1][:, unread].any() and not got[2][:, unread].any()  # noqa: PT018
    assert got[1][:, :leaf].any()


def test_transposed_lists_name_each_reader_once():
    pytest.importorskip("triton")
    from stille.kernels.hsa import triton_backward as kernels

    heads, k_heads, leaf = 6, 2, 32
    chosen, _ = some_leaves(heads, 700, 700, leaf, 7)
    tiles, leaves = chosen.count_HT.shape[1], 22
    lists = kernels.readers(chosen, k_heads, leaves, chunk=4)
    want = [[] for _ in range(k_heads * leaves)]
    for h in range(heads):
        for t in range(tiles):
            for b in chosen.index_HTL[h, t, : int(chosen.count_HT[h, t])].tolist():
                want[h // 3 * leaves + b].append(h * tiles + t)
    entries, offset = lists.entry_E.tolist(), lists.offset.tolist()
    assert [entries[a:b] for a, b in pairwise(offset)] == want
    hot = [(i, c) for i, x in enumerate(want) if len(x) > 4 for c in range(-(-len(x) // 4))]
    slots = [x for x in lists.slot_leaf.tolist() if x < k_heads * leaves]
    assert hot
    assert slots == [i for i, _ in hot]
    assert all(lists.slot_start[i] + c == at for at, (i, c) in enumerate(hot))


def make(batch, heads, kv_heads, m, n, dim, seed=0):
    """As a model has them: [batch, tokens, heads, width] in memory; and a gradient."""
    q, k, v = (rand(batch, t, h, dim, seed=seed + h) for t, h in ((m, heads), (n, kv_heads), (n, kv_heads)))
    q, k, v = (x.transpose(1, 2).requires_grad_() for x in (q, k + 0.2, v))
    return q, k, v, rand(batch, heads, m, dim, seed=seed + 9)


RESIDUAL = {"residual": True, "budget": 224}
PUBLIC = [  # batch, heads, key heads, queries, keys, width, lengths, changes of the config
    (2, 2, 1, 150, 310, 32, None, {"unit": 64}),
    (1, 2, 1, 300, 300, 32, None, {**RESIDUAL, "unit": 16}),
    (1, 3, 1, 140, 300, 16, None, {**RESIDUAL, "leaf": 16, "budget": 208, "unit": 128}),
    (2, 1, 1, 290, 290, 32, (290, 170), {"tail": 1}),
]


@needs_triton
@pytest.mark.parametrize("case", PUBLIC, ids=str)
def test_attention_by_kernels_has_the_gradients_of_the_reference(case, monkeypatch):
    batch, heads, kv_heads, m, n, dim, lengths, change = case
    if ON_GPU:  # roundings to bf16 may select another leaf than the reference: there, select all
        change = {**change, "budget": 512}
    config = dataclasses.replace(SMALL, **change)
    *inputs, do = make(batch, heads, kv_heads, m, n, dim)
    lengths = None if lengths is None else torch.tensor(lengths, device=DEVICE)

    def grads(inputs, do, lengths):
        got = hsa_attention(*inputs, config, lengths_B=lengths, return_details=True)
        assert isinstance(got, HSAOutput)
        assert got.missed is None or not got.missed.requires_grad
        return torch.autograd.grad((got.out, got.lse), inputs, (do, do[..., 0].float()))

    got = grads(inputs, do, lengths)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    plain = [x.detach().float().cpu().requires_grad_() for x in inputs]
    agree(got, grads(plain, do.float().cpu(), None if lengths is None else lengths.cpu()))
    if lengths is not None:
        assert all(not x[1, :, 170:].any() for x in got), "padding"


@needs_triton
def test_budget_for_everything_gives_dense_gradients():
    *inputs, do = make(1, 2, 1, 150, 280, 32)
    config = dataclasses.replace(SMALL, budget=512)
    got = torch.autograd.grad(hsa_attention(*inputs, config), inputs, do)
    wide = [x.detach().float().requires_grad_() for x in inputs]
    mask = torch.ones(150, 280, dtype=torch.bool, device=DEVICE).tril(130)
    dense = scaled_dot_product_attention(wide[0], wide[1], wide[2], attn_mask=mask, enable_gqa=True)
    agree(got, torch.autograd.grad(dense, wide, do.float()))


def test_short_sequences_have_the_gradients_of_dense_attention():
    *inputs, do = make(2, 2, 1, 90, 90, 32)
    got = torch.autograd.grad(hsa_attention(*inputs), inputs, do)
    wide = [x.detach().float().requires_grad_() for x in inputs]
    dense = scaled_dot_product_attention(wide[0], wide[1], wide[2], is_causal=True, enable_gqa=True)
    agree(got, torch.autograd.grad(dense, wide, do.float()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cpu_tensors_have_the_gradients_of_what_was_read(dtype, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    *inputs, do = make(1, 2, 1, 330, 330, 32)
    inputs, do = [x.detach().to("cpu", dtype).requires_grad_() for x in inputs], do.to("cpu", dtype)
    out = hsa_attention(*inputs, SMALL)
    assert out.dtype == dtype
    got = torch.autograd.grad(out, inputs, do)
    assert all(g.dtype == dtype for g in got)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    read = ref.select(inputs[0][0], inputs[1][0], 32**-0.5, SMALL)
    mask = (
        read.repeat_interleave(TILE, 1)[:, :330].repeat_interleave(32, 2)[..., :330]
        & torch.ones(330, 330).tril().bool()
    )
    logits = (wide[0] @ wide[1].mT * 32**-0.5).masked_fill(~mask, -torch.inf)
    want = torch.autograd.grad(logits.softmax(-1) @ wide[2], wide, do.double())
    for a, b in zip(got, want, strict=True):
        assert (a.double() - b).norm() / b.norm() < (1e-2 if dtype == torch.bfloat16 else 1e-5)
    assert mask.sum() < 0.9 * torch.ones(2, 330, 330).tril().sum(), "it was sparse"


@needs_triton
def test_gradients_of_one_input_and_none():
    q, k, v, do = make(1, 1, 1, 140, 140, 16)
    out = hsa_attention(q.detach(), k.detach(), v, SMALL)
    (dv,) = torch.autograd.grad(out, v, do)
    *_, want = torch.autograd.grad(hsa_attention(q, k, v, SMALL), (q, k, v), do)
    assert torch.equal(dv, want)
    with torch.no_grad():
        assert not hsa_attention(q, k, v, SMALL).requires_grad
    assert not hsa_attention(q.detach(), k.detach(), v.detach(), SMALL).requires_grad


@needs_triton
def test_second_derivatives_are_refused():
    q, k, v, do = make(1, 1, 1, 140, 140, 16)
    (dq,) = torch.autograd.grad(hsa_attention(q, k, v, SMALL), q, do.requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        dq.sum().backward()
