"""The specification of HSA against dense attention and its own invariants."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stille.errors import ConfigError
from stille.kernels.hsa import HSAConfig
from stille.kernels.hsa import reference as ref

SMALL = HSAConfig(budget=512, leaf=32, sinks=64, local=64, candidates=768, candidates_from=1 << 30)
CHANGES = [
    {},
    {"leaf": 64, "unit": 32},
    {"codes": "sign", "residual": True},
    {"candidates_from": 0},
    {"candidates_from": 0, "span": 256, "unit": 64, "residual": True},
    {"tail": 0},
    {"row_weight": 0},
    {"row_weight": 0.5, "candidates_from": 0, "leaf": 64, "outliers": 7, "coverage": 0.9},
]


def rand(heads, n, dim, seed, gain=1.0):
    return torch.randn(heads, n, dim, generator=torch.Generator().manual_seed(seed)) * gain


@pytest.mark.parametrize("dim", [64, 96, 128])
def test_rotation_is_orthogonal(dim):
    rotation = ref.hadamard_rotation(dim)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(dim), atol=1e-5, rtol=0)


@pytest.mark.parametrize("codes", ["keys", "sign"])
@pytest.mark.parametrize(("n", "m", "groups"), [(512, 512, 2), (700, 700, 4), (640, 301, 1), (130, 1, 3)])
def test_full_budget_is_dense(n, m, groups, codes):
    q, k, v = rand(2 * groups, m, 64, 0), rand(2, n, 64, 1), rand(2, n, 64, 2)
    config = HSAConfig(budget=1024, codes=codes, residual=True)
    out, lse, missed = ref.hsa_attention(q, k, v, config, 0.125)
    mask = torch.ones(m, n, dtype=torch.bool).tril(n - m)
    expected = torch.nn.functional.scaled_dot_product_attention(
        q[None], k[None], v[None], attn_mask=mask, scale=0.125, enable_gqa=True
    )
    torch.testing.assert_close(out, expected[0], atol=1e-5, rtol=1e-5)
    logits = (q @ k.repeat_interleave(groups, 0).mT * 0.125).masked_fill(~mask, -torch.inf)
    torch.testing.assert_close(lse, logits.logsumexp(-1))
    assert (missed == 0).all()


@settings(max_examples=8, deadline=None)
@given(change=st.sampled_from(CHANGES), cut=st.integers(1, 899), seed=st.integers(0, 10**6))
def test_the_future_changes_nothing(change, cut, seed):
    config = dataclasses.replace(SMALL, **change)
    q, k, v = rand(4, 900, 64, seed, 2), rand(2, 900, 64, seed + 1, 2), rand(2, 900, 64, seed + 2)
    out, lse, _ = ref.hsa_attention(q, k, v, config, 0.125)
    k[:, cut:], v[:, cut:] = rand(2, 900 - cut, 64, seed + 3, 5), rand(2, 900 - cut, 64, seed + 4, 5)
    out2, lse2, _ = ref.hsa_attention(q, k, v, config, 0.125)
    torch.testing.assert_close(out[:, :cut], out2[:, :cut], atol=1e-6, rtol=0)
    torch.testing.assert_close(lse[:, :cut], lse2[:, :cut], atol=1e-5, rtol=0)
    assert not torch.allclose(out[:, cut:], out2[:, cut:])


@settings(max_examples=12, deadline=None)
@given(change=st.sampled_from(CHANGES), n=st.integers(130, 1100), late=st.integers(0, 600), seed=st.integers(0, 10**6))
def test_budget_is_kept_and_used(change, n, late, seed):
    config = dataclasses.replace(SMALL, **change)
    m = max(1, n - late)
    q, k = rand(4, m, 64, seed), rand(2, n, 64, seed + 1)
    chosen = ref.select(q, k, 0.125, config)
    counts = chosen.sum(-1)
    tiles, leaves = chosen.shape[1:]
    assert (chosen | ~ref.forced_leaves(tiles, leaves, n - m, config, q.device)).all(), "what is always read is read"
    assert counts.max() <= config.budget // config.leaf
    reachable = ((n - m + (torch.arange(tiles) + 1) * 128).clamp(max=n) + config.leaf - 1) // config.leaf
    if not config.uses_candidates(n):
        assert (counts == reachable.clamp(max=config.budget // config.leaf)).all(), "all of the budget is used"


@pytest.mark.parametrize("codes", ["keys", "sign"])
def test_a_key_that_a_unit_looks_for_is_found(codes):
    q, k = rand(2, 2048, 64, 11), rand(2, 2048, 64, 12)
    k[:, 777] = q[:, 1984:2016].mean(1) * 12
    chosen = ref.select(q, k, 0.125, dataclasses.replace(SMALL, unit=32, codes=codes))
    assert chosen[:, 2000 // 128, 777 // 32].all()


def test_the_tail_finds_what_one_row_alone_looks_for():
    q, k = rand(2, 2000, 64, 31), rand(2, 2000, 64, 32)
    row = 1990  # one of the last 128, in a tile of unrelated rows
    k[:, 777] = q[:, row] / q[:, row].norm(dim=-1, keepdim=True) * 16
    leaf, config = 777 // SMALL.leaf, dataclasses.replace(SMALL, row_weight=0)
    late = ref.select(q, k, 0.125, config)
    assert late[:, row // 128, leaf].all()
    pooled = ref.select(q, k, 0.125, dataclasses.replace(config, tail=0))
    assert not pooled[:, row // 128, leaf].all(), "the case is a hard one"
    assert torch.equal(pooled[:, : 2000 // 128 - 1], late[:, : 2000 // 128 - 1])


@settings(max_examples=10, deadline=None)
@given(coverage=st.floats(0.05, 1.0), gain=st.floats(0.5, 4), seed=st.integers(0, 10**6))
def test_coverage_reads_no_more_than_it_takes(coverage, gain, seed):
    q, k = rand(2, 1200, 64, seed, gain), rand(1, 1200, 64, seed + 1, gain)
    config = dataclasses.replace(SMALL, tail=0, row_weight=0, coverage=coverage)
    chosen, whole = ref.select(q, k, 0.125, config), ref.select(q, k, 0.125, dataclasses.replace(config, coverage=None))
    assert (whole | ~chosen).all(), "a part of what the budget would read"
    past = ref.past_leaves(*chosen.shape[1:], 0, config, q.device)
    forced = ref.forced_leaves(*chosen.shape[1:], 0, config, q.device)
    units = ref.pool_queries(q, 128)
    dots = torch.einsum("hud,nd->hun", units, k[0]) * 0.125
    mass = torch.nn.functional.pad(dots, (0, -1200 % 32), value=-torch.inf).unflatten(-1, (-1, 32)).logsumexp(-1)
    share = ref.shares(mass, past)
    read = (share * chosen).sum(-1)
    stopped = chosen.sum(-1) < whole.sum(-1)
    assert (read[stopped] >= coverage - 1e-4).all(), "where it stopped early, enough is read"
    smallest = share.masked_fill(~chosen | forced, torch.inf).amin(-1)
    spare = stopped & smallest.isfinite()
    assert (read[spare] - smallest[spare] < coverage + 1e-4).all(), "without the last leaf it would be too little"


def test_what_one_row_alone_looks_for_is_found_in_mid_prompt():
    """The keys that are unlike their leaf tell what is in it; the default weight is enough."""
    q, k = rand(2, 2000, 64, 41), rand(2, 2000, 64, 42)
    k = k + k.roll(1, 1) + k.roll(2, 1)
    row, place = 1100, slice(400, 408)
    k[:, place] += q[:, row, None] / q[:, row, None].norm(dim=-1, keepdim=True) * 24
    leaf = 400 // SMALL.leaf
    config = dataclasses.replace(SMALL, tail=0)
    blind = dataclasses.replace(config, row_weight=0)
    assert not ref.select(q, k, 0.125, blind)[:, row // 128, leaf].all(), "the case is a hard one"
    assert ref.select(q, k, 0.125, config)[:, row // 128, leaf].all()


def test_candidates_that_hold_everything_change_nothing():
    q, k = rand(4, 1000, 64, 17), rand(2, 1000, 64, 18)
    narrow = dataclasses.replace(SMALL, candidates=992, candidates_from=0)
    assert narrow.uses_candidates(1000)
    assert torch.equal(ref.select(q, k, 0.125, SMALL), ref.select(q, k, 0.125, narrow))


def test_residual_helps_diffuse_heads_and_tells_what_was_missed():
    q, k, v = rand(2, 2048, 64, 14, 0.3), rand(2, 2048, 64, 15), rand(2, 2048, 64, 16) + 1.0
    dense, dense_lse, _ = ref.attend(q, k, v, None, 0.125, SMALL)

    def error(out):
        return float((out - dense).norm() / dense.norm())

    plain, plain_lse, _ = ref.hsa_attention(q, k, v, SMALL, 0.125)
    out, lse, missed = ref.hsa_attention(q, k, v, dataclasses.replace(SMALL, residual=True), 0.125)
    assert error(out) < 0.6 * error(plain)
    torch.testing.assert_close(lse, dense_lse, atol=0.15, rtol=0)
    truth = 1 - (plain_lse - dense_lse).exp()
    assert truth[:, -1].min() > 0.5
    torch.testing.assert_close(missed, truth, atol=0.05, rtol=0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"leaf": 48},
        {"unit": 256},
        {"codes": "lsh"},
        {"budget": 4100},
        {"budget": 512},
        {"sinks": -64},
        {"candidates": 512},
        {"span": 64},
        {"dense_below": -1},
        {"tail": -1},
        {"coverage": 0.0},
        {"outliers": 16},
        {"row_weight": -1.0},
        {"row_weight": float("nan")},
        {"decode_leaf": 128},
        {"leaf": 16, "decode_leaf": 64, "sinks": 16},
    ],
)
def test_contradictory_sizes_are_refused(wrong):
    with pytest.raises(ConfigError):
        HSAConfig(**wrong)
