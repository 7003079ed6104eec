"""Gates of converted layers: what is regressed, how well, and thresholds that keep their promise."""

import pytest
import torch

from stille.model.convert.calibrate import calibrate
from stille.model.convert.router import fit_router, log_norms, normalised
from stille.model.routing import ExpertsConfig, Gate

EXPERTS, WIDTH = 8, 12


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_log_norms_are_those_of_the_experts_outputs():
    h_TI, down = torch.randn(7, 3 * 5, generator=generator()), torch.randn(3, 9, 5, generator=generator(1))
    outputs = torch.einsum("eci,tei->tec", down, h_TI.view(7, 3, 5))
    torch.testing.assert_close(log_norms(h_TI, down), outputs.norm(dim=-1).log(), rtol=1e-4, atol=1e-4)


def test_a_silent_expert_has_a_finite_target():
    assert log_norms(torch.zeros(2, 6), torch.ones(2, 4, 3)).isfinite().all()


def made_targets(count: int = 4000) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs with dimensions of very different size, and targets that a small gate can learn."""
    x = torch.randn(count, WIDTH, generator=generator()) * torch.logspace(-2, 2, WIDTH)
    teacher = torch.randn(WIDTH, EXPERTS, generator=generator(1)) / torch.logspace(-2, 2, WIDTH)[:, None]
    return x, torch.nn.functional.silu(x @ teacher) + torch.arange(EXPERTS) / 4


class TestRouter:
    def test_it_explains_tokens_that_it_did_not_see(self):
        x, target = made_targets()
        router = fit_router(x.bfloat16(), normalised(target), 16, steps=300, batch=256)
        assert router.r2 > 0.8
        assert fit_router(x, torch.randn(len(x), EXPERTS, generator=generator(2)), 16, steps=50).r2 < 0.1

    def test_a_linear_gate_is_one_matrix(self):
        x, _ = made_targets(2000)
        target = x @ torch.randn(WIDTH, EXPERTS, generator=generator(3))
        router = fit_router(x, normalised(target), 0, steps=400)
        assert set(router.tensors()) == {"up.weight", "up.bias"}
        assert router.r2 > 0.9

    def test_scores_of_the_gate_are_what_was_judged(self):
        """R² computed from `Gate` itself, on the tokens that were left out."""
        x, target = made_targets()
        target = normalised(target)
        router = fit_router(x, target, 16, steps=100, held_out=0.25)
        gate = Gate(WIDTH, config())
        gate.load_state_dict(router.tensors(), strict=False)
        with torch.no_grad():
            error = (gate.scores(x[3000:]) - target[3000:]).square().sum()
        spread = (target[3000:] - target[3000:].mean(0)).square().sum()
        assert float(1 - error / spread) == pytest.approx(router.r2, abs=1e-4)

    def test_a_seed_gives_one_router(self):
        x, target = made_targets(500)
        one, same, other = (fit_router(x, target, 4, steps=5, seed=seed) for seed in (1, 1, 2))
        assert torch.equal(one.up, same.up)
        assert not torch.equal(one.up, other.up)

    def test_saved_in_half_precision_it_is_the_same(self):
        x, target = made_targets(500)
        for value in fit_router(x, target, 4, steps=5).tensors().values():
            assert torch.equal(value, value.bfloat16().float())


def config(**options) -> ExpertsConfig:
    values = {"num_experts": EXPERTS, "max_k": EXPERTS, "target_k": 3.0, "router_size": 16}
    return ExpertsConfig(**values | options)


@pytest.mark.parametrize("bounds", [{}, {"min_k": 0}, {"min_k": 2, "max_k": 6}])
def test_the_mean_is_met_for_every_target(bounds):
    """Scores that agree with each other, so that many tokens would run no expert and some all of them."""
    torch.manual_seed(0)
    gate = Gate(WIDTH, config(**bounds)).eval()
    x = torch.randn(5000, WIDTH) * torch.tensor([3.0] + [1.0] * (WIDTH - 1))
    found = calibrate(gate, x)
    assert found.dead == []
    least, most = bounds.get("min_k", 1), bounds.get("max_k", EXPERTS)
    for target in [least + 0.5, 3.0, 4.8, most - 0.3]:
        mean = gate(x, target).mask_TE.sum(1).float().mean()
        assert float(mean) == pytest.approx(target, rel=0.02), target
    assert found.mean_k_at_target == pytest.approx(3.0, rel=0.02)
    assert found.mean_k[max(1, least) - 1 : most] == pytest.approx(range(max(1, least), most + 1), rel=0.02)


def test_the_load_is_balanced_whatever_the_scores():
    torch.manual_seed(0)
    gate = Gate(WIDTH, config(min_k=0)).eval()
    gate.up.bias.data = torch.linspace(-5, 5, EXPERTS)
    assert calibrate(gate, torch.randn(4000, WIDTH)).max_violation < 0.02


def test_top_k_is_left_alone():
    gate = Gate(WIDTH, config(gate="top_k", target_k=3)).eval()
    found = calibrate(gate, torch.randn(300, WIDTH))
    assert found.mean_k == []
    assert found.mean_k_at_target == 3
