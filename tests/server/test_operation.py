"""Models, tokens, probes, metrics, keys, CORS, request ids, logs."""

import json
import logging

import httpx
import openai
import pytest

from stille.errors import ConfigError
from stille.server import ServerSettings
from stille.server.logs import JsonFormatter

CHAT = "/v1/chat/completions"


@pytest.fixture
def client(idle):
    with httpx.Client(base_url=idle.base, timeout=60) as client:
        yield client


def chat_body(served, **fields):
    return {"model": served.model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, **fields}


def test_the_official_client_lists_models(idle):
    with openai.OpenAI(base_url=f"{idle.base}/v1", api_key="unused") as client:
        (model,) = client.models.list().data
        assert model.id == idle.model
        assert model.max_model_len == 16384
        assert client.models.retrieve(idle.model) == model


def test_tokens_there_and_back(client, idle):
    text = "naïve Zürich 東京 <|im_end|> \U0001f600"
    answer = client.post("/tokenize", json={"prompt": text}).json()
    assert answer["tokens"] == idle.engine.tokenizer.encode(text)
    assert answer["count"] == len(answer["tokens"])
    assert answer["max_model_len"] == 16384
    assert client.post("/detokenize", json={"tokens": answer["tokens"]}).json() == {"prompt": text}


def test_tokens_of_a_conversation_are_those_that_a_completion_counts(client, idle):
    messages = chat_body(idle)["messages"]
    count = client.post("/tokenize", json={"messages": messages}).json()["count"]
    assert client.post(CHAT, json=chat_body(idle)).json()["usage"]["prompt_tokens"] == count


def test_probes(client):
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ok"}


def test_metrics_count_what_happened(client, idle):
    before = idle.metrics()
    client.post(CHAT, json=chat_body(idle, ignore_eos=True, messages=[{"role": "user", "content": "fox " * 150}]))
    client.post(CHAT, json=chat_body(idle, ignore_eos=True, messages=[{"role": "user", "content": "fox " * 150}]))
    after = idle.metrics()
    grown = {name: after[name] - before[name] for name in after if name in before}
    assert grown["stille_generation_tokens_total"] == 8
    assert grown["stille_requests_total"] == 2
    assert grown["stille_prefix_cache_hit_tokens_total"] >= 128
    assert grown["stille_time_to_first_token_seconds_count"] == 2
    assert grown["stille_inter_token_latency_seconds_count"] == 6
    assert grown["stille_e2e_latency_seconds_count"] == 2
    assert grown["stille_prompt_tokens_total"] > 256
    assert after["stille_kv_pages"] == sum(after[f"stille_kv_pages_{kind}"] for kind in ("used", "cached", "free"))
    text = client.get("/metrics")
    assert text.headers["content-type"].startswith("text/plain")
    assert 'stille_answers_finished_total{reason="length"}' in text.text
    assert 'stille_inter_token_latency_seconds_bucket{le="+Inf"}' in text.text
    assert 'route="/v1/chat/completions",status="200"' in text.text


def test_request_ids_are_echoed_or_made(client):
    assert client.get("/health", headers={"X-Request-Id": "mine-42"}).headers["x-request-id"] == "mine-42"
    made = [client.get("/v1/models").headers["x-request-id"] for _ in range(2)]
    assert made[0] != made[1]
    for unfit in ("a b", "x" * 200, "né".encode()):
        echoed = client.get("/health", headers={"X-Request-Id": unfit}).headers["x-request-id"]
        assert len(echoed) == 32


def test_errors_carry_the_request_id(client):
    assert client.post(CHAT, json={}, headers={"X-Request-Id": "bad-1"}).headers["x-request-id"] == "bad-1"


def test_a_key_is_needed_where_one_is_set(start_server, tiny_checkpoint):
    settings = ServerSettings(
        served_model_names=("tiny", "alias"), api_key="secret", cors_origins=("https://a.example",)
    )
    with (
        start_server(tiny_checkpoint, settings, max_num_seqs=1) as server,
        httpx.Client(base_url=server.base) as client,
    ):
        right = {"Authorization": "Bearer secret"}
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "secret"},
            {"Authorization": "Basic secret"},
        ):
            for answer in (client.get("/v1/models", headers=headers), client.post(CHAT, json={}, headers=headers)):
                assert answer.status_code == 401
                assert answer.json()["error"]["code"] == "invalid_api_key"
                assert answer.headers["www-authenticate"] == "Bearer"
        for path in ("/health", "/ready", "/metrics"):
            assert client.get(path).status_code == 200
        models = client.get("/v1/models", headers=right).json()["data"]
        assert [model["id"] for model in models] == ["tiny", "alias"]
        answer = client.post(CHAT, json=chat_body(server, model="alias"), headers=right)
        assert answer.json()["model"] == "alias"
        document = client.get("/openapi.json").json()
        assert document["paths"]["/v1/models"]["get"]["security"] == [{"key": []}]
        assert "security" not in document["paths"]["/health"]["get"]

        preflight = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
        allowed = client.options(CHAT, headers={**preflight, "Access-Control-Request-Headers": "authorization"})
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == "https://a.example"
        answer = client.get("/v1/models", headers={**right, "Origin": "https://a.example"})
        assert answer.headers["access-control-allow-origin"] == "https://a.example"
        assert (
            "access-control-allow-origin" not in client.get("/health", headers={"Origin": "https://b.example"}).headers
        )

        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{server.base}/v1", api_key="wrong", max_retries=0).models.list()


def test_json_logs_are_one_object_per_line_with_the_records_fields():
    record = logging.LogRecord("stille.x", logging.INFO, __file__, 1, "%s said\n%s", ("a", "b"), None)
    record.fields = {"request_id": "r1", "status": 200}
    line = JsonFormatter().format(record)
    assert "\n" not in line
    entry = json.loads(line)
    assert entry["message"] == "a said\nb"
    assert (entry["level"], entry["request_id"], entry["status"]) == ("info", "r1", 200)


@pytest.mark.parametrize(
    "settings", [{"max_body_bytes": 1}, {"drain_timeout_s": -1}, {"max_choices": 0}, {"api_key": " "}]
)
def test_settings_that_make_no_sense(settings):
    with pytest.raises(ConfigError):
        ServerSettings(**settings)
