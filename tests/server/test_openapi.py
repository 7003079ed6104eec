"""The OpenAPI document tells the truth.

schemathesis makes requests from it, right ones and wrong ones, and checks every answer: status, content type, body,
headers, and that wrong requests are refused and right ones are not.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from stille.server import ServerSettings
from stille.server.schemas.chat import ChatCompletionChunk
from stille.server.schemas.completions import CompletionChunk
from stille.server.schemas.messages import MessageBody, MessagesErrorBody, MessageStreamEvent, TokenCount

HERE = Path(__file__).parent
# A schema that a context of 64 tokens is long enough to become too complex for.
BROKEN = {
    "output_config": {
        "format": {
            "type": "json_schema",
            "schema": {
                "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}, "minItems": 1}},
                "$ref": "#/$defs/a",
            },
        }
    }
}
HEADERS = {"Authorization": "Bearer fuzz"}


@pytest.fixture(scope="module")
def short(start_server, tiny_checkpoint, tmp_path_factory):
    """A short context keeps every answer short, whatever max_tokens is."""
    settings = ServerSettings(served_model_names=("tiny",), api_key="fuzz", data_dir=tmp_path_factory.mktemp("data"))
    with start_server(tiny_checkpoint, settings, max_model_len=64, max_num_seqs=16, kv_cache_tokens=16 * 64) as server:
        yield server


# Systematic values for every parameter, then random ones; text completions share chat's parameters, responses its
# machinery, and the systematic values of messages would take 40 s.
WHOLE = [
    ("coverage,fuzzing", ["--exclude-path", "/v1/completions", "--exclude-path-regex",
                          "^/v1/(messages|responses|embeddings|files|batches)"]),
    ("fuzzing", ["--include-path", "/v1/messages"]),
    ("coverage,fuzzing", ["--include-path", "/v1/embeddings"]),
    ("coverage,fuzzing", ["--include-path-regex", "^/v1/(files|batches)"]),
    ("fuzzing", ["--include-path", "/v1/completions", "--include-path", "/v1/messages/count_tokens"]),
    ("fuzzing", ["--include-path-regex", "^/v1/responses(/input_tokens)?$"]),
    ("coverage,fuzzing", ["--include-path-regex", "^/v1/responses/.response_id"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("phases", "paths", "examples"),
    [
        ("fuzzing", [], 3),
        *(pytest.param(phases, paths, 12, marks=pytest.mark.slow) for phases, paths in WHOLE),
    ],
)
def test_every_answer_is_as_documented(short, tmp_path, phases, paths, examples):
    # Accepted requests are judged by the check in openapi_checks.py, which knows the codes.
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{short.base}/openapi.json"]
    command += ["--exclude-checks", "positive_data_acceptance", "--phases", phases, *paths]
    command += ["--max-examples", str(examples), "--seed", "1"]
    command += ["--header", f"Authorization: {HEADERS['Authorization']}"]
    command += ["--request-timeout", "60", "--continue-on-failure", "--no-color", "--no-shrink"]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": str(HERE / "openapi_checks.py")}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=170)
    assert run.returncode == 0, run.stdout[-12_000:] + run.stderr[-2000:]
    assert "valid_requests_are_refused" not in run.stdout
    short.wait_idle()


@pytest.mark.parametrize(
    ("path", "start", "chunk"),
    [
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "x"}], "logprobs": True},
            ChatCompletionChunk,
        ),
        ("/v1/completions", {"prompt": ["x", "y"], "logprobs": 2}, CompletionChunk),
    ],
)
def test_every_event_of_a_stream_is_as_documented(short, path, start, chunk):
    body = {"model": short.model, "stream": True, "stream_options": {"include_usage": True}, "n": 2, **start}
    text = httpx.post(short.base + path, json=body, headers=HEADERS, timeout=60).text
    events = [event.removeprefix("data: ") for event in text.strip().split("\n\n")]
    assert events.pop() == "[DONE]"
    assert len(events) > 4
    for event in events:
        chunk.model_validate_json(event)
    assert json.loads(events[-1])["usage"]["prompt_tokens"] > 0


@pytest.mark.parametrize(("fields", "last"), [({}, "message_stop"), ({"max_tokens": 900, **BROKEN}, "error")])
def test_every_event_of_a_message_is_as_documented(short, fields, last):
    ask = {"messages": [{"role": "user", "content": "x"}], "temperature": 0}
    body = {"model": short.model, "stream": True, "max_tokens": 5, **ask}
    text = httpx.post(f"{short.base}/v1/messages", json={**body, **fields}, headers=HEADERS, timeout=60).text
    events = [event.split("\ndata: ") for event in text.strip().split("\n\n")]
    assert len(events) > (4 if last == "message_stop" else 0)
    for _, data in events:
        MessageStreamEvent.model_validate_json(data)
    assert events[-1][0] == f"event: {last}"


@pytest.mark.parametrize(("path", "answer"), [("/v1/messages", MessageBody), ("/v1/messages/count_tokens", TokenCount)])
def test_whole_answers_in_anthropics_form_are_as_documented(short, path, answer):
    body = {"model": short.model, "messages": [{"role": "user", "content": "x"}]}
    body |= {"max_tokens": 5} if path == "/v1/messages" else {}
    answer.model_validate_json(httpx.post(short.base + path, json=body, headers=HEADERS, timeout=60).text)
    error = httpx.post(short.base + path, json={}, headers=HEADERS, timeout=60).text
    MessagesErrorBody.model_validate_json(error)


def test_the_document_names_what_is_served(short):
    document = httpx.get(f"{short.base}/openapi.json").json()
    chat = document["components"]["schemas"]["ChatCompletionRequest"]["properties"]
    assert chat["model"]["enum"] == ["tiny"]
    ids = document["components"]["schemas"]["DetokenizeRequest"]["properties"]["tokens"]["items"]
    assert ids["exclusiveMaximum"] == len(short.engine.tokenizer)
    assert "422" not in json.dumps(document)
    assert set(document["paths"]) == {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/responses/input_tokens",
        "/v1/responses/{response_id}",
        "/v1/responses/{response_id}/cancel",
        "/v1/responses/{response_id}/input_items",
        "/v1/embeddings",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/files",
        "/v1/files/{file_id}",
        "/v1/files/{file_id}/content",
        "/v1/batches",
        "/v1/batches/{batch_id}",
        "/v1/batches/{batch_id}/cancel",
        "/v1/models",
        "/v1/models/{model}",
        "/tokenize",
        "/detokenize",
        "/health",
        "/ready",
        "/metrics",
    }
