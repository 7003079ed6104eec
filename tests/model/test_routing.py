"""Routing by thresholds and by top-k: who runs, with which weight, and what keeps it balanced."""

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stille.errors import ConfigError
from stille.model.routing import STEPS, ExpertsConfig, Gate, score_quantiles

C = 24
SMALL = ExpertsConfig(num_experts=8, expert_size=4, shared_size=8, router_size=12, target_k=3.0, max_k=8)


def gate(config=SMALL, seed=0, **changes):
    torch.manual_seed(seed)
    return Gate(C, dataclasses.replace(config, **changes)).eval()


def calibrated(x, **changes):
    g = gate(**changes)
    g.quantiles.copy_(score_quantiles(g.scores(x)))
    return g


def tokens(n, seed=1):
    return torch.randn(n, C, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("target", [1, 2.5, 3, 4.8, 7.25, 8])
def test_the_mean_and_every_load_meet_the_target(target):
    x = tokens(4096)
    mask = calibrated(x, min_k=0)(x, target).mask_TE
    assert mask.sum(1).float().mean() == pytest.approx(target, abs=0.02)
    assert mask.float().mean(0).sub(target / 8).abs().max() < 0.01  # each expert gets its share


def test_all_experts_at_full_budget_whatever_the_scores():
    routing = gate()(100 * tokens(50), 8)
    assert routing.mask_TE.all()
    assert (routing.expert_TK == torch.arange(8)).all()
    assert (routing.weight_TK == 1).all()


@given(st.integers(0, 3), st.integers(3, 8), st.floats(1, 8), st.integers(0, 40))
@settings(max_examples=40, deadline=None)
def test_tables_are_well_formed(min_k, max_k, target, n):
    g = gate(min_k=min_k, max_k=max_k, target_k=3.0)
    expert, weight, mask = g(5 * tokens(n, n), target)
    count = mask.sum(1)
    assert expert.shape == weight.shape == (n, max_k)
    assert n == 0 or (count.min() >= min_k and count.max() <= max_k)
    used = torch.arange(max_k) < count[:, None]
    assert ((expert < 8) == used).all()
    assert (weight[~used] == 0).all()
    for row in range(n):
        assert expert[row, : count[row]].tolist() == mask[row].nonzero().flatten().tolist()


def test_the_clamp_keeps_the_best():
    x = 5 * tokens(200)
    free, tight = calibrated(x, min_k=0)(x, 4.0), calibrated(x, min_k=2, max_k=4)(x, 4.0)
    margin = calibrated(x).scores(x) - calibrated(x).thresholds(4.0)
    for row in range(200):
        best = margin[row].argsort(descending=True, stable=True)
        k = int(free.mask_TE[row].sum().clamp(2, 4))
        assert set(tight.mask_TE[row].nonzero().flatten().tolist()) == set(best[:k].tolist())


@given(st.permutations(range(12)))
@settings(max_examples=20, deadline=None)
def test_a_token_is_routed_by_itself(order):
    x, g = tokens(12), calibrated(tokens(500))
    whole, shuffled, alone = g(x), g(x[list(order)]), g(x[5:6])
    assert (shuffled.mask_TE == whole.mask_TE[list(order)]).all()
    assert (alone.mask_TE == whole.mask_TE[5:6]).all()


def test_each_token_may_have_its_own_budget():
    x, g = tokens(64), calibrated(tokens(2000))
    budgets = torch.tensor([2.0, 8.0, 3.5, 5.0]).repeat(16)
    mixed = g(x, budgets)
    for target in (2.0, 8.0, 3.5, 5.0):
        at = budgets == target
        assert (mixed.mask_TE[at] == g(x, target).mask_TE[at]).all()


def test_a_larger_budget_only_adds_experts():
    x, g = tokens(300), calibrated(tokens(2000), min_k=0)
    masks = [g(x, k).mask_TE for k in (1, 2, 3.3, 4.8, 6, 7.5, 8)]
    for small, large in itertools.pairwise(masks):
        assert (large | ~small).all()


def test_training_balances_scores_that_move():
    """The gate drifts and is biased towards two experts; thresholds follow and the controller holds the mean."""
    g = gate(memory=0.8, min_k=0).train()
    with torch.no_grad():
        g.up.bias[:2] += 3
    for step in range(60):
        with torch.no_grad():
            g.up.weight += 0.01 * torch.randn(g.up.weight.shape, generator=torch.Generator().manual_seed(step))
        g(tokens(1024, 100 + step))
        g.balance()
    mask = g.eval()(tokens(8192, 7)).mask_TE.float()
    assert mask.sum(1).mean() == pytest.approx(3, rel=0.05)
    assert (mask.mean(0).max() / mask.mean() - 1) < 0.15


@given(st.lists(st.floats(0, 3), min_size=1, max_size=12), st.floats(1, 8), st.floats(1, 8))
@settings(max_examples=60, deadline=None)
def test_levels_of_layers_have_the_target_as_their_mean(parts, target, other):
    g, shares = gate(), [1.0] * len(parts) if sum(parts) < 0.1 else [len(parts) * part / sum(parts) for part in parts]
    found = []
    for share in shares:
        g.layer_share.fill_(share)
        assert float(g.level(8)) == 8
        found.append(g.level(torch.tensor([target, other, 8.0])))
        assert [float(g.level(target)), float(g.level(other))] == pytest.approx(found[-1][:2].tolist(), abs=1e-5)
    mean = torch.stack(found).mean(0)
    assert mean.tolist() == pytest.approx([target, other, 8], abs=1e-4)


@given(st.floats(1, 8))
def test_a_share_of_one_is_the_target_itself(target):
    assert torch.equal(gate().level(target), torch.tensor([target]))


@pytest.mark.parametrize("target", [2.0, 3.0, 5.5])
def test_a_layer_runs_its_level_and_everything_at_full_budget(target):
    x = tokens(4096)
    g = calibrated(x, min_k=0)
    for share in (0.5, 1.1):
        g.layer_share.fill_(share)
        assert g(x, target).mask_TE.sum(1).float().mean() == pytest.approx(8 - (8 - target) * share, abs=0.02)
        assert g(x, 8).mask_TE.all()
        assert (g(x[:3], torch.tensor([target, 8.0, 8.0])).mask_TE[1:]).all()


def test_balance_holds_the_mean_over_layers_with_shares():
    """Also where a bound keeps a layer from its level: the controller does not wind up."""
    shares, means = [0.6, 1.15, 1.25], []
    for seed, share in enumerate(shares):
        g = gate(seed=seed, memory=0.8).train()
        g.layer_share.fill_(share)
        for step in range(90):
            with torch.no_grad():  # scores move, then rest
                noise = torch.randn(g.up.weight.shape, generator=torch.Generator().manual_seed(step))
                g.up.weight += 0.01 * noise * (step < 30)
            g(tokens(1024, 100 + step))
            g.balance()
        means.append(float(g.eval()(tokens(8192, 7)).mask_TE.sum(1).float().mean()))
    assert means == pytest.approx([8 - 5 * share for share in shares], abs=0.15)
    assert sum(means) / 3 == pytest.approx(3, rel=0.03)
    g = gate(max_k=4, memory=0.8).train()
    g.layer_share.fill_(0.5)
    for step in range(60):
        g(tokens(256, step), 3.9)
        g.balance(3.9)
    assert g.correction.abs() < 1


def test_top_k_runs_just_so_many_and_its_bias_balances():
    g = gate(gate="top_k", weights="normalised", bias_rate=0.004, scaling=2.0).train()
    with torch.no_grad():
        g.up.bias[:2] += 2
    skewed = g(tokens(2000)).mask_TE.float().mean(0)
    for step in range(250):
        g(tokens(256, step))
        g.balance()
    routing = g.eval()(tokens(8192, 9))
    load = routing.mask_TE.float().mean(0)
    assert (routing.mask_TE.sum(1) == 3).all()
    assert skewed.max() > 0.9
    assert load.max() / load.mean() - 1 < 0.25
    torch.testing.assert_close(routing.weight_TK.sum(1), torch.full((8192,), 2.0))
    assert g.load_bias.mean().abs() < 1e-5  # it does not drift


def test_gradients_reach_the_gate_and_values_stay():
    x, g = tokens(40), calibrated(tokens(1000))
    still = g(x)
    g.train()
    trained = g(x)
    torch.testing.assert_close(trained.weight_TK, still.weight_TK)
    trained.weight_TK.square().sum().backward()
    for parameter in g.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    assert g.up.weight.grad.abs().sum() > 0


def test_balancing_state_keeps_its_precision():
    g = calibrated(tokens(1000))
    before = {name: value.clone() for name, value in g.named_buffers()}
    g.to(torch.bfloat16)
    assert g.up.weight.dtype == torch.bfloat16
    for name, value in g.named_buffers():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name])


@given(st.integers(1, 50), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_quantiles_are_exceeded_by_the_wanted_share(n, experts):
    score = torch.randn(n, experts, generator=torch.Generator().manual_seed(n))
    q = score_quantiles(score)
    assert q.shape == (experts, STEPS * experts + 1)
    assert (q[:, :-1] >= q[:, 1:]).all()
    for j in range(STEPS * experts + 1):
        above = (score > q[:, j]).sum(0)
        assert ((above - j * n / (STEPS * experts)).abs() < 1).all()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"num_experts": 0}, "num_experts"), ({"expert_size": True}, "expert_size"), ({"gate": "best"}, "gate"),
        ({"weights": "two"}, "weights"), ({"min_k": 9}, "min_k"), ({"max_k": 0, "min_k": 0}, "max_k"),
        ({"target_k": 0.5}, "0.5"), ({"target_k": 9}, "9"), ({"gate": "top_k", "target_k": 2.5}, "whole"),
        ({"memory": 1.0}, "memory"),
    ],
)  # fmt: skip
def test_bad_settings(change, word):
    with pytest.raises(ConfigError, match=word):
        dataclasses.replace(SMALL, **change)


def test_unknown_settings():
    with pytest.raises(ConfigError, match="num_expert"):
        ExpertsConfig.from_dict({"num_expert": 3})
    with pytest.raises(ConfigError, match="dictionary"):
        ExpertsConfig.from_dict(None)
