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

HERE = Path(__file__).parent
HEADERS = {"Authorization": "Bearer fuzz"}


@pytest.fixture(scope="module")
def short(start_server, tiny_checkpoint):
    """A short context keeps every answer short, whatever max_tokens is."""
    settings = ServerSettings(served_model_names=("tiny",), api_key="fuzz")
    with start_server(tiny_checkpoint, settings, max_model_len=64, max_num_seqs=16, kv_cache_tokens=16 * 64) as server:
        yield server


@pytest.mark.parametrize(
    ("phases", "paths"),
    [
        # Systematic values for every parameter, then random ones; text completions share chat's parameters.
        ("coverage,fuzzing", ["--exclude-path", "/v1/completions"]),
        ("fuzzing", ["--include-path", "/v1/completions"]),
    ],
)
def test_every_answer_is_as_documented(short, tmp_path, phases, paths):
    # Accepted requests are judged by the check in openapi_checks.py, which knows the codes.
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{short.base}/openapi.json"]
    command += ["--exclude-checks", "positive_data_acceptance", "--phases", phases, *paths]
    command += ["--max-examples", "12", "--seed", "1", "--header", f"Authorization: {HEADERS['Authorization']}"]
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
        "/v1/models",
        "/v1/models/{model}",
        "/tokenize",
        "/detokenize",
        "/health",
        "/ready",
        "/metrics",
    }
