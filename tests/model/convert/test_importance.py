"""Gates fitted to what experts are worth, by text that runs through the dense model."""

import pytest
import torch

from stille.model.config import StilleConfig
from stille.model.convert.importance import fit_routers
from stille.model.convert.router import Router
from stille.model.convert.split import Layout
from stille.model.decoder import StilleForCausalLM

LAYOUT = Layout(shared=8, experts=4, size=8)
WIDTH, INNER, LAYERS = 32, 40, 2


@pytest.fixture
def dense() -> StilleForCausalLM:
    torch.manual_seed(0)
    config = StilleConfig(
        vocab_size=64, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    model = StilleForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)  # else nothing depends on anything
    return model


def blank(size: int) -> Router:
    torch.manual_seed(1)
    down = torch.randn(size, WIDTH) / WIDTH**0.5 if size else None
    return Router(down, torch.zeros(4, size or WIDTH), torch.zeros(4), 0.0)


def fit(model: StilleForCausalLM, fisher: float, size: int = 16, count: int = 96, **options) -> list[Router]:
    vocabulary = model.config.vocab_size
    ids_ST = torch.randint(vocabulary, (count, 64), generator=torch.Generator().manual_seed(2))
    orders = torch.arange(INNER, dtype=torch.int32).repeat(LAYERS, 1)
    begun = [blank(size) for _ in range(LAYERS)]
    return fit_routers(model, ids_ST, orders, begun, LAYOUT, fisher=fisher, batch=128, rate=1e-2, **options)


def test_sizes_are_explained_the_better_the_more_text_there_is(dense):
    for few, many in zip(fit(dense, 0.0, count=30), fit(dense, 0.0, count=300), strict=True):
        assert many.r2 > 0.25
        assert many.r2 > few.r2 + 0.05


def test_a_linear_gate_stays_one(dense):
    for router in fit(dense, 0.0, size=0):
        assert router.down is None
        assert router.up.shape == (4, WIDTH)
        assert router.r2 > 0.05


@torch.no_grad()
def test_what_does_not_reach_the_prediction_is_worth_less(dense):
    """Expert 3 of the last layer writes, in large numbers, where the head does not read."""
    last = dense.model.layers[-1].mlp
    dense.lm_head.weight[:, : WIDTH // 2] = 0
    last.down_proj.weight[:, 32:] *= 3
    last.down_proj.weight[WIDTH // 2 :, 32:] = 0
    mean = {fisher: fit(dense, fisher)[-1].bias for fisher in (0.0, 1.0)}
    largest = {fisher: int(bias.argmax()) for fisher, bias in mean.items()}
    assert largest[0.0] == 3
    assert largest[1.0] != 3


def test_a_seed_gives_one_result_and_progress_is_told(dense):
    told: list[int] = []
    one, again = fit(dense, 0.5, count=40, advance=told.append), fit(dense, 0.5, count=40)
    assert sum(told) == 40
    assert all(torch.equal(a.up, b.up) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one[0].up, fit(dense, 0.5, count=40, seed=1)[0].up)


def test_the_model_is_left_as_it_was(dense):
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    fit(dense, 0.5, count=8)
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())
    assert all(parameter.grad is None for parameter in dense.parameters())
    assert not any(layer.mlp._forward_hooks for layer in dense.model.layers)
