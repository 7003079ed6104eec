"""`experts_implementation="stille"` in transformers' mixture-of-experts models: logits, gradients, what is refused."""

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from stille.errors import UnsupportedError
from stille.model import hf_experts

SIZES = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
MODELS = {
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=6, num_experts_per_tok=3)),
    "qwen3_moe": lambda: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**SIZES, head_dim=8, num_experts=6, num_experts_per_tok=3, moe_intermediate_size=20)
    ),
}


def build(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.25)
    return model


@pytest.fixture
def ids():
    return torch.randint(1, 101, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_gradients_are_those_of_eager(name, ids, monkeypatch):
    used = []

    def counted(module, *rest):
        used.append(module)
        return hf_experts.experts_forward(module, *rest)

    monkeypatch.setitem(hf_experts.ALL_EXPERTS_FUNCTIONS._global_mapping, "stille", counted)
    results = []
    for implementation in ("eager", "stille"):
        model = build(name)
        model.set_experts_implementation(implementation)
        out = model(ids, labels=ids)
        out.loss.backward()
        results.append((out.logits, {key: p.grad for key, p in model.named_parameters()}))
    assert len(used) == 2
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-4, atol=1e-4)
    for key, grad in results[0][1].items():
        assert grad is not None, key
        torch.testing.assert_close(results[1][1][key], grad, rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_a_saved_model_loads_with_it_and_generates(ids, tmp_path):
    eager = build("qwen3_moe")
    eager.set_experts_implementation("eager")
    eager.save_pretrained(tmp_path)
    ours = AutoModelForCausalLM.from_pretrained(tmp_path, experts_implementation="stille")
    assert ours.config._experts_implementation == "stille"
    want = eager.generate(ids, max_new_tokens=6, do_sample=False)
    assert torch.equal(ours.generate(ids, max_new_tokens=6, do_sample=False), want)


@torch.no_grad()
def test_tables_may_leave_columns_unused(ids):
    model = build("qwen3_moe")
    model.set_experts_implementation("stille")
    experts = model.model.layers[0].mlp.experts
    x, weights = torch.randn(4, 32), torch.rand(4, 3)
    table = torch.tensor([[0, 1, 2], [3, 6, 6], [6, 4, 6], [6, 6, 6]])
    got = experts(x, table, weights)
    torch.testing.assert_close(got[:1], experts(x[:1], table[:1], weights[:1]))
    torch.testing.assert_close(got[1:2], experts(x[1:2], table[1:2, :1], weights[1:2, :1]))
    assert not got[3].any()


def test_experts_of_another_form_are_refused(ids):
    model = GptOssForCausalLM(
        GptOssConfig(**SIZES, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=16)
    )
    model.set_experts_implementation("stille")
    with pytest.raises(UnsupportedError, match="eager"):
        model(ids)


def test_other_activations_are_refused():
    model = build("mixtral")
    model.set_experts_implementation("stille")
    experts = model.model.layers[0].mlp.experts
    experts.act_fn = nn.GELU()
    with pytest.raises(UnsupportedError, match="SiLU"):
        experts(torch.randn(2, 32), torch.tensor([[0], [1]]), torch.rand(2, 1))
