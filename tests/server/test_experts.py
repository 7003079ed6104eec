"""A served model with experts: budgets by number and by word, and what /metrics says of its gates."""

import httpx
import openai
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from transformers import AutoTokenizer

from stille.model import StilleConfig, StilleForCausalLM
from stille.model.experts import expert_layers
from stille.model.routing import score_quantiles

MESSAGES = [{"role": "user", "content": "Tell me of the quick brown fox."}]


@pytest.fixture(scope="module")
def served(tiny_checkpoint, tmp_path_factory, start_server):
    folder = tmp_path_factory.mktemp("experts")
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(3)
    config = StilleConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.3, ffn_kinds=["dense", "experts"],
        experts={"num_experts": 8, "expert_size": 8, "shared_size": 16, "router_size": 0, "target_k": 3.0, "max_k": 8},
    )  # fmt: skip
    model = StilleForCausalLM(config)
    with torch.no_grad():
        for layer in expert_layers(model):
            layer.gate.quantiles.copy_(score_quantiles(layer.gate.scores(torch.randn(1000, 64))))
    model.save_pretrained(folder)
    with start_server(folder, max_num_seqs=4, kv_cache_tokens=4096) as server:
        yield server


@pytest.fixture
def client(served):
    with openai.OpenAI(base_url=f"{served.base}/v1", api_key="none", max_retries=0) as client:
        yield client


def answer(client, **more):
    body = {"ignore_eos": True, **more.pop("extra", {})}
    reply = client.chat.completions.create(
        model="tiny", messages=MESSAGES, temperature=0, max_tokens=24, extra_body=body, **more
    )
    return reply.choices[0].message.content


def test_a_word_is_a_number(client):
    for word, number in (("low", 1.875), ("medium", 3.0), ("high", 5.0), ("xhigh", 8.0)):
        assert answer(client, reasoning_effort=word) == answer(client, extra={"expert_budget": number})
    assert answer(client, reasoning_effort="none") == answer(client) == answer(client, reasoning_effort="medium")
    assert len({answer(client, extra={"expert_budget": k}) for k in (1, 3, 5, 8)}) > 1


def test_anthropics_words_are_numbers_too(client, served):
    def message(**fields):
        body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 24, "temperature": 0, **fields}
        reply = httpx.post(f"{served.base}/v1/messages", json=body, timeout=60).json()
        return "".join(block["text"] for block in reply["content"])

    for word, number in (("low", 1.5), ("medium", 1.875), ("high", 3.0), ("xhigh", 5.0), ("max", 8.0)):
        expected = answer(client, extra={"expert_budget": number, "ignore_eos": False})
        assert message(output_config={"effort": word}) == expected
    assert message() == message(output_config={"effort": "high"})
    assert len({message(output_config={"effort": word}) for word in ("low", "high", "max")}) > 1


def test_refusals_name_what_is_possible(client):
    with pytest.raises(openai.BadRequestError, match="1 to 8 experts") as error:
        answer(client, extra={"expert_budget": 9})
    assert error.value.param == "expert_budget"
    with pytest.raises(openai.BadRequestError, match="give one of them"):
        answer(client, extra={"expert_budget": 4}, reasoning_effort="high")


def test_the_document_names_the_range(served):
    schemas = httpx.get(f"{served.base}/openapi.json").json()["components"]["schemas"]
    for name in ("ChatCompletionRequest", "CompletionRequest"):
        branches = schemas[name]["properties"]["expert_budget"]["anyOf"]
        assert {"minimum": 1, "maximum": 8}.items() <= next(b for b in branches if b["type"] == "number").items()


def test_metrics_say_what_the_gates_did(client, served):
    answer(client)
    text = httpx.get(f"{served.base}/metrics").text
    samples = {f.name: f.samples for f in text_string_to_metric_families(text)}
    loads = [s.value for s in samples["stille_expert_tokens"] if s.name.endswith("_total")]
    assert len(loads) == 8
    counts = {s.name.rsplit("_", 1)[1]: s.value for s in samples["stille_experts_per_token"] if "le" not in s.labels}
    assert counts["sum"] == sum(loads) > 0
    assert 1 <= counts["sum"] / counts["count"] <= 8
    (violation,) = samples["stille_expert_max_violation"]
    assert violation.labels == {"layer": "1"}
    assert violation.value == pytest.approx(max(loads) / (sum(loads) / 8) - 1)
    assert samples["stille_experts_dead"][0].value == loads.count(0)
