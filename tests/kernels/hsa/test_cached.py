"""HSA over plain caches: padding anywhere, new queries row by row, torch.compile; against what each row gives alone."""

import math
from dataclasses import replace

import pytest
import torch

from stille.errors import UnsupportedError
from stille.kernels.hsa import HSAConfig, cached, hsa_attention, ops, paged_reference
from stille.kernels.hsa.cached import cached_attention

SMALL = HSAConfig(budget=176, leaf=16, sinks=16, local=16, candidates_from=1 << 30, candidates=1024, dense_below=0)
N = 300


@pytest.fixture(autouse=True)
def plain_torch(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors are small
    yield
    torch.set_num_threads(threads)


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(batch=2, m=N, n=N, heads=4, k_heads=2, dim=16):
    return rand(batch, heads, m, dim, seed=1) * 2, rand(batch, k_heads, n, dim, seed=2), rand(batch, k_heads, n, dim)


def gaps(*spans, n=N):
    """Columns that hold tokens: all but the given spans, one list of (start, end) for each row."""
    present = torch.ones(len(spans), n, dtype=torch.bool)
    for row, holes in zip(present, spans, strict=True):
        for start, end in holes:
            row[start:end] = False
    return present


def by_specification(q_HMD, k_KND, v_KND, positions, config):
    """Each query by the rule for decoding, its leaves scored exactly."""
    scale, leaf, out = q_HMD.shape[-1] ** -0.5, config.decode_leaf, torch.empty_like(q_HMD)
    groups = q_HMD.shape[0] // k_KND.shape[0]
    for row, position in enumerate(positions):
        length = position + 1
        q, k, v = q_HMD[:, row], k_KND[:, :length], v_KND[:, :length]
        logits = torch.einsum("hd,hnd->hn", q, k.repeat_interleave(groups, 0)) * scale
        whole = logits[:, : (length - 1) // leaf * leaf].unflatten(1, (-1, leaf)).logsumexp(-1)
        read = paged_reference.select(paged_reference.ranks(whole, k.shape[0]), length, config)
        mask = read.repeat_interleave(groups, 0).repeat_interleave(leaf, 1)[:, :length]
        weights = logits.masked_fill(~mask, -math.inf).softmax(-1)
        out[:, row] = torch.einsum("hn,hnd->hd", weights, v.repeat_interleave(groups, 0))
    return out


@pytest.mark.parametrize("m", [1, 5, 16])
def test_new_queries_choose_by_the_rule_of_decoding(m):
    q, k, v = inputs(m=m)
    got = cached_attention(q, k, v, SMALL)
    for row in range(2):
        want = by_specification(q[row], k[row], v[row], range(N - m, N), SMALL)
        torch.testing.assert_close(got[row], want, rtol=1e-4, atol=1e-5)
    full = cached_attention(q, k, v, HSAConfig(dense_below=N + 1))
    assert (got - full).abs().max() > 1e-2  # something was left out


def test_more_new_queries_choose_by_tiles():
    q, k, v = inputs(m=cached.FEW + 1)
    assert torch.equal(cached_attention(q, k, v, SMALL), hsa_attention(q, k, v, SMALL))


@pytest.mark.parametrize("change", [{}, {"dense_below": N + 1}], ids=["sparse", "full"])
@pytest.mark.parametrize("m", [N, 40, 1])
def test_a_padded_row_is_what_its_tokens_give_alone(m, change, monkeypatch):
    config = replace(SMALL, **change)
    monkeypatch.setattr(cached, "FEW", 64)  # alone, 40 queries then choose row by row too
    q, k, v = inputs(batch=4, m=m)
    present = gaps([], [(0, 37)], [(0, 5), (100, 131)], [(0, 290)])
    k, v = (x.masked_fill(~present[:, None, :, None], 1e4) for x in (k, v))  # whatever padding holds
    got = cached_attention(q, k, v, config, present_BN=present)
    for row, real in enumerate(present):
        new = real[N - m :]
        alone = cached_attention(q[row : row + 1, :, new], k[row : row + 1, :, real], v[row : row + 1, :, real], config)
        torch.testing.assert_close(got[row : row + 1, :, new], alone, rtol=1e-4, atol=1e-5)
        assert (got[row, :, ~new] == 0).all()


@pytest.mark.parametrize("change", [{}, {"dense_below": N + 1}], ids=["sparse", "full"])
def test_columns_behind_the_new_queries_are_not_read(change):
    """A static cache: the queries lie in its middle, what follows is unused."""
    config = replace(SMALL, **change)
    q, k, v = inputs(m=7)
    present = gaps([(280, N)], [(0, 20), (280, N)])
    for start in (273, torch.tensor(273)):
        got = cached_attention(q, k, v, config, present_BN=present, start=start)
        for row, real in enumerate(present):
            alone = cached_attention(q[row : row + 1], k[row : row + 1, :, real], v[row : row + 1, :, real], config)
            torch.testing.assert_close(got[row : row + 1], alone, rtol=1e-4, atol=1e-5)


def test_rows_without_a_token_and_queries_that_are_padding_give_zeros():
    present = gaps([(0, N)], [(N - 10, N)])
    for m in (N, 10, 1):
        q, k, v = inputs(m=m)
        for config in (SMALL, HSAConfig()):
            out = cached_attention(q, k, v, config, present_BN=present)
            assert (out[0] == 0).all()
            assert (out[1, :, -min(10, m) :] == 0).all()
            assert out.isfinite().all()


def test_half_precision_chooses_and_attends_alike():
    q, k, v = inputs(m=3)
    config = replace(SMALL, budget=288)  # nearly all: rounded scores cannot move the rest much
    got = cached_attention(*(x.bfloat16() for x in (q, k, v)), config)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), cached_attention(q, k, v, config), rtol=3e-2, atol=3e-2)


def test_configurations_survive_as_text():
    for config in (HSAConfig(), SMALL, HSAConfig(coverage=0.9, residual=True, codes="sign")):
        assert ops.decode(ops.encode(config)) == config


def test_the_operator_is_sound():
    """Shapes, dtypes, strides and gradients that torch.compile is told are those that come out."""
    q, k, v = (x.requires_grad_() for x in inputs(m=N))
    arguments = (q, k, v, torch.tensor([N, 222]), 0.25, ops.encode(SMALL))
    torch.library.opcheck(
        torch.ops.stille.hsa_attention.default, arguments, test_utils=("test_schema", "test_faketensor")
    )


@pytest.mark.parametrize(("m", "padded"), [(N, True), (20, False), (1, True)])
def test_compiled_whole_with_gradients(m, padded):
    present = gaps([(0, 30)], [(100, 120)]) if padded else None

    def run(q, k, v):
        return cached_attention(q, k, v, SMALL, present_BN=present)

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager", dynamic=False)
    results = []
    for function in (run, compiled):
        leaves = [x.requires_grad_() for x in inputs(m=m)]
        out = function(*leaves)
        results.append([out.detach(), *torch.autograd.grad((out * rand(*out.shape, seed=5)).sum(), leaves)])
    for want, got in zip(*results, strict=True):
        assert want.abs().max() > 0
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_bad_input():
    q, k, v = inputs()
    with pytest.raises(ValueError, match=r"expected bool \(2, 300\)"):
        cached_attention(q, k, v, SMALL, present_BN=torch.ones(2, N))
    with pytest.raises(UnsupportedError, match="head_dim is 12"):
        cached_attention(q[..., :12], k[..., :12], v[..., :12], SMALL)
