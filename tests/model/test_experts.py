"""The FFN kind "experts" in the decoder: shapes, saving, budgets, records."""

import dataclasses

import pytest
import torch
from transformers import AutoModelForCausalLM

from stille.errors import ConfigError
from stille.model import StilleConfig, StilleForCausalLM, expert_budget, load_config, record_routing
from stille.model.checkpoint import SafetensorsFolder, build_model
from stille.model.experts import balance, expert_layers
from stille.model.routing import ExpertsConfig, score_quantiles

EXPERTS = {"num_experts": 8, "expert_size": 6, "shared_size": 16, "router_size": 12, "target_k": 3.0, "max_k": 8}


def build(seed=0, **changes):
    torch.manual_seed(seed)
    config = StilleConfig(
        vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, ffn_kinds=["dense", "experts", "experts"],
        experts={**EXPERTS, **changes},
    )  # fmt: skip
    model = StilleForCausalLM(config).eval()
    with torch.no_grad():
        for layer in expert_layers(model):  # as if it had been calibrated
            layer.gate.quantiles.copy_(score_quantiles(layer.gate.scores(torch.randn(2000, 32))))
            layer.gate.correction.fill_(0.25)
    return model


@pytest.fixture
def ids():
    return torch.randint(0, 97, (2, 40), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "change", [{}, {"shared_size": 0}, {"router_size": 0}, {"gate": "top_k", "weights": "normalised"}]
)
@torch.no_grad()
def test_each_layer_is_the_sum_of_what_it_chose(change):
    layer = expert_layers(build(**change))[0]
    x = torch.randn(20, 32)
    expert, weight, _ = layer.gate(x)
    for t in range(20):
        want = torch.zeros(32) if layer.shared is None else layer.shared(x[t])
        for e, w in zip(expert[t].tolist(), weight[t], strict=True):
            if e < 8:
                gate, up = (layer.gate_up_proj[e] @ x[t]).chunk(2)
                want = want + w * (layer.down_proj[e] @ (torch.nn.functional.silu(gate) * up))
        torch.testing.assert_close(layer(x)[t], want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("change", [{}, {"shared_size": 0}, {"min_k": 0}, {"gate": "top_k", "weights": "normalised"}])
@pytest.mark.parametrize("training", [True, False])
def test_all_experts_under_a_mask_are_the_same_layer(change, training):
    """Values, gradients, what is recorded and what is kept for balancing."""
    found = []
    for masked in (False, True):
        layer = expert_layers(build(**change))[0].train(training)
        layer.masked, layer.budget = masked, torch.full((20,), 3.0)
        x = torch.randn(20, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
        with record_routing(layer) as logs:
            y = layer(x)
        y.square().sum().backward()
        seen = [] if layer.gate.seen is None else [layer.gate.seen.quantiles, layer.gate.seen.load]
        grads = [p.grad for p in layer.parameters() if p.grad is not None]
        found.append([y.detach(), x.grad, *grads, *seen, logs[0].load_E, logs[0].count_K])
    assert len(found[0]) == len(found[1])
    for plain, fast in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_saved_and_loaded_is_the_same_model(ids, tmp_path):
    model = build()
    want = model(ids).logits
    model.save_pretrained(tmp_path)
    for again in (
        AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32),
        build_model(load_config(tmp_path), SafetensorsFolder(tmp_path)),
    ):
        assert torch.equal(again(ids).logits, want)
        for name, value in model.named_buffers():
            assert torch.equal(again.get_buffer(name), value), name


@torch.no_grad()
def test_half_precision_keeps_the_balance(ids, tmp_path):
    model = build().to(torch.bfloat16)
    want = model(ids).logits
    model.save_pretrained(tmp_path)
    for again in (
        AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16),
        build_model(load_config(tmp_path), SafetensorsFolder(tmp_path), torch.bfloat16),
    ):
        assert {b.dtype for n, b in again.named_buffers() if n.endswith("quantiles")} == {torch.float32}
        assert torch.equal(again(ids).logits, want)


@torch.no_grad()
def test_cached_decoding_equals_the_whole(ids):
    model = build()
    whole, out = model(ids).logits, None
    for t in range(ids.shape[1]):
        out = model(ids[:, t : t + 1], past_key_values=None if out is None else out.past_key_values, use_cache=True)
        torch.testing.assert_close(out.logits[:, 0], whole[:, t], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_dial(ids):
    model = build()
    seen = {}
    for budget in (1.5, None, 6.0, 8):
        with expert_budget(model, budget), record_routing(model) as logs:
            seen[budget] = model(ids).logits
        mean = sum(log.mean_k for log in logs) / len(logs)
        assert mean == pytest.approx(budget or 3.0, rel=0.25)
        assert all(log.tokens == 80 and log.count_K.sum() == 80 for log in logs)
    assert torch.equal(model(ids).logits, seen[None])  # nothing is left behind
    budgets = torch.tensor([1.5] * 40 + [8.0] * 40)
    with expert_budget(model, budgets):
        mixed = model(ids).logits
    torch.testing.assert_close(mixed[0], seen[1.5][0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mixed[1], seen[8][1], rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="9"), expert_budget(model, 9):
        pass


@torch.no_grad()
def test_records(ids):
    model = build()
    layers = expert_layers(model)
    with record_routing(model) as logs:
        model(ids)
        model(ids[:1])
    assert [log.layer for log in logs] == [1, 2]
    x = torch.randn(50, 32)
    with record_routing(model) as logs:
        layers[0](x)
    mask = layers[0].gate(x).mask_TE
    assert torch.equal(logs[0].load_E, mask.sum(0))
    assert logs[1].tokens == 0
    assert logs[1].dead == []
    assert torch.equal(logs[0].count_K, torch.bincount(mask.sum(1), minlength=9))
    load = mask.sum(0).double()
    assert logs[0].max_violation == pytest.approx(float(load.max() / load.mean() - 1))
    assert logs[0].dead == (load == 0).nonzero().flatten().tolist()


def test_training_step_reaches_every_parameter(ids):
    model = build().train()
    model(ids, labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    before = [layer.gate.quantiles.clone() for layer in expert_layers(model)]
    balance(model)
    assert all(
        not torch.equal(layer.gate.quantiles, was) for layer, was in zip(expert_layers(model), before, strict=True)
    )


def test_the_configuration_is_checked():
    with pytest.raises(ConfigError, match="num_expert"):
        build(num_expert=3)
    with pytest.raises(ConfigError, match="a mean of 12"):
        build(target_k=12)
    assert dataclasses.asdict(ExpertsConfig.from_dict(EXPERTS))["weights"] == "unit"
