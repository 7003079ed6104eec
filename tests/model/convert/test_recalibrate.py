"""Thresholds placed anew: the mean is met at every budget, by hidden states of the model at that budget."""

from collections.abc import Callable

import pytest
import torch

from stille.errors import ConfigError
from stille.model import StilleConfig, StilleForCausalLM
from stille.model.convert.calibrate import recalibrate
from stille.model.experts import ExpertsFFN, expert_budget, expert_layers, record_routing

EXPERTS, WIDTH, LAYERS = 8, 24, 3
BUDGETS = [2, 3, 4.5, 6]
SHARES = [0.5, 1.0, 1.3]


def make_model(seed: int = 0, **experts) -> StilleForCausalLM:
    """A random one, whose thresholds know nothing of its scores."""
    torch.manual_seed(seed)
    settings = dict(num_experts=EXPERTS, expert_size=8, shared_size=16, router_size=6, target_k=3, max_k=EXPERTS)
    config = StilleConfig(
        vocab_size=64, hidden_size=WIDTH, intermediate_size=80, num_hidden_layers=LAYERS, num_attention_heads=3,
        num_key_value_heads=1, max_position_embeddings=64, initializer_range=0.2, ffn_kinds=["experts"] * LAYERS,
        experts=settings | experts,
    )  # fmt: skip
    model = StilleForCausalLM(config).eval()
    for layer in expert_layers(model):
        layer.gate.up.bias.data = torch.randn(EXPERTS)
        layer.gate.correction.fill_(0.5)
        layer.gate.load_bias.uniform_()
    return model


def disturb(model: StilleForCausalLM) -> None:
    """As if training had moved scores and the controller."""
    for layer in expert_layers(model):
        gate = layer.gate
        gate.quantiles.mul_(1.1).add_(0.1 * gate.quantiles.std())
        gate.correction.fill_(0.5)


def text(seed: int = 1) -> torch.Tensor:
    return torch.randint(64, (64, 64), generator=torch.Generator().manual_seed(seed))


def runner(model: StilleForCausalLM) -> Callable[[], None]:
    """Runs all of the text, a part at a time."""

    def run() -> None:
        for ids in text().split(24):
            model.model(ids)

    return run


def mean_k(model: StilleForCausalLM, budget: float) -> list[float]:
    """Measured, of each layer."""
    with torch.no_grad(), expert_budget(model, budget), record_routing(model) as logs:
        runner(model)()
    return [log.mean_k for log in logs]


def quantiles(model: torch.nn.Module) -> list[torch.Tensor]:
    return [layer.gate.quantiles for layer in expert_layers(model)]


def hooks(model: torch.nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("bounds", [{}, {"min_k": 0}, {"min_k": 2, "max_k": 7}])
def test_every_layer_meets_every_budget(bounds):
    model = make_model(**bounds)
    recalibrate(model, runner(model), BUDGETS)
    disturb(model)
    assert any(abs(k / budget - 1) > 0.1 for budget in BUDGETS for k in mean_k(model, budget))
    recalibrate(model, runner(model), BUDGETS)
    for budget in [*BUDGETS, 2.5, 5]:
        assert mean_k(model, budget) == pytest.approx([budget] * LAYERS, rel=0.05), budget
    for layer in expert_layers(model):
        assert not layer.gate.correction.any()
        assert (layer.gate.quantiles.diff(dim=1) <= 0).all()
        assert layer.budget is None
    assert hooks(model) == 0


def test_thresholds_that_knew_nothing_are_right_after_two_rounds():
    """In the first one, layers are given what others with wrong thresholds make."""
    model = make_model()
    for _ in range(2):
        recalibrate(model, runner(model), BUDGETS)
    for budget in BUDGETS:
        assert mean_k(model, budget) == pytest.approx([budget] * LAYERS, rel=0.02), budget


def test_a_layer_with_another_share_meets_its_part():
    model = make_model()
    for layer, share in zip(expert_layers(model), SHARES, strict=True):
        layer.gate.layer_share.fill_(share)
    for _ in range(2):
        recalibrate(model, runner(model), BUDGETS)
    for budget in [3, 4.5, 6]:
        levels = [EXPERTS - (EXPERTS - budget) * share for share in SHARES]
        assert mean_k(model, budget) == pytest.approx(levels, rel=0.05), budget


class Shifted(torch.nn.Module):
    """One layer whose input, at a budget, lies in a place of its own: scores move by `slope` for each expert."""

    def __init__(self, slope: float, share: float):
        super().__init__()
        torch.manual_seed(0)
        settings = dict(num_experts=EXPERTS, expert_size=2, shared_size=0, router_size=0, target_k=3, max_k=EXPERTS)
        config = StilleConfig(
            vocab_size=8, hidden_size=EXPERTS, num_attention_heads=1, num_key_value_heads=1, num_hidden_layers=1,
            intermediate_size=16, ffn_kinds=["experts"], experts=settings,
        )  # fmt: skip
        self.mlp, self.slope = ExpertsFFN(config, 0), slope
        gate = self.mlp.gate
        gate.up.weight.data, gate.up.bias.data = torch.eye(EXPERTS), torch.zeros(EXPERTS)
        gate.layer_share.fill_(share)
        gate.correction.fill_(-1.0)
        self.x = torch.randn(4000, EXPERTS)
        self.budgets: list[float] = []

    def run(self) -> None:
        budget = self.mlp.budget
        assert isinstance(budget, float | int)
        self.budgets.append(budget)
        assert not self.training
        assert not torch.is_grad_enabled()
        self.mlp(self.x + self.slope * budget)

    @torch.no_grad()
    def mean_k(self, budget: float) -> float:
        with expert_budget(self, budget), record_routing(self) as logs:
            self.run()
        return logs[0].mean_k


@pytest.mark.parametrize("share", [0.5, 1.0, 1.25])
def test_thresholds_come_from_runs_at_their_budget_and_between(share):
    """In each layer's own levels: at share 0.5 a budget of 6 of 8 is a level of 7."""
    model = Shifted(-2.0, share).train()
    before = model.mlp.gate.quantiles.clone()
    seen = []

    def run() -> None:
        seen.append(model.mlp.gate.quantiles.clone())
        model.run()

    recalibrate(model, run, [3, 6])
    assert model.budgets == [6, 3]
    assert all(torch.equal(each, before) for each in seen)
    assert model.training

    def level(budget: float) -> float:
        return EXPERTS - (EXPERTS - budget) * share

    for budget in (3.0, 4.0, 5.0, 6.0):
        assert model.eval().mean_k(budget) == pytest.approx(level(budget), rel=0.03), budget
    # beyond the runs: thresholds of the nearest, not of a line through both
    gate = model.mlp.gate
    for budget, run_at in ((2.8, 3), (6.3, 6)):
        count = (model.x - 2.0 * run_at > gate.thresholds(budget)).sum(1).clamp(min=1)
        assert float(count.float().mean()) == pytest.approx(level(budget), rel=0.03), budget


def test_columns_do_not_increase_where_scores_rise_with_the_budget():
    model = Shifted(2.0, 1.0)
    recalibrate(model, model.run, [3, 6])
    assert (model.mlp.gate.quantiles.diff(dim=1) <= 0).all()


def test_one_budget_gives_all_thresholds():
    model = Shifted(0.0, 1.0).eval()
    recalibrate(model, model.run, [3])
    for budget in (1.5, 3, 7):
        assert model.mean_k(budget) == pytest.approx(budget, rel=0.03)


def test_top_k_is_left_as_it_is():
    model = make_model(gate="top_k").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def forbidden() -> None:
        raise AssertionError

    recalibrate(model, forbidden, BUDGETS)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert model.training


def test_weights_stay_and_the_state_keeps_its_precision():
    model = make_model().bfloat16()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    recalibrate(model, runner(model), BUDGETS)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(before[name], value)}
    assert {name.rsplit(".", 1)[1] for name in changed} == {"quantiles", "correction"}
    assert len(changed) == 2 * LAYERS
    assert all(table.dtype == torch.float32 for table in quantiles(model))


def test_a_failure_leaves_everything_as_it_was():
    model = make_model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run, left = runner(model), [2]

    def fail() -> None:
        run()
        left[0] -= 1
        if not left[0]:
            raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        recalibrate(model, fail, BUDGETS)
    assert hooks(model) == 0
    assert model.training
    assert all(layer.budget is None for layer in expert_layers(model))
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    ("budgets", "mentions"), [([], "budget"), ([0.5, 2], "from 1 to 8"), ([2, 9], "from 1 to 8"), ([2], "tokens")]
)
def test_wrong_calls_are_told(budgets, mentions):
    model = make_model()
    with pytest.raises(ConfigError, match=mentions):
        recalibrate(model, lambda: None, budgets)
    assert hooks(model) == 0
