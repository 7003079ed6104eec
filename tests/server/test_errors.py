"""Everything that can be wrong with a request gets an OpenAI-shaped error that names it."""

import contextlib
import http.client
import json
import socket

import httpx
import openai
import pytest

from stille.server import ServerSettings

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


@pytest.fixture
def http_client(idle):
    with httpx.Client(base_url=idle.base, timeout=60) as client:
        yield client


def body_for(path, served, **fields):
    start = {"messages": [{"role": "user", "content": "Hi"}]} if path == CHAT else {"prompt": "Hi"}
    body = {"model": served.model, "max_tokens": 2, **start, **fields}
    return {key: value for key, value in body.items() if value is not ...}


def check(response, status, code=..., param=..., mentions=()):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    if code is not ...:
        assert error["code"] == code, error
    if param is not ...:
        assert error["param"] == param, error
    for text in (mentions,) if isinstance(mentions, str) else mentions:
        assert text in error["message"], error
    return error


UNSUPPORTED = [
    (CHAT, "tools", [{"type": "custom", "custom": {"name": "f"}}], "functions only"),
    (CHAT, "tool_choice", "sometimes", "'required'"),
    (CHAT, "tool_choice", {"type": "allowed_tools", "allowed_tools": {}}, "'required'"),
    (CHAT, "functions", [{"name": "f"}], "send tools"),
    (CHAT, "function_call", {"name": "f"}, "send tool_choice"),
    (CHAT, "response_format", {"type": "xml"}, "'json_schema'"),
    (CHAT, "response_format", "json", "'json_schema'"),
    (TEXT, "response_format", {"type": "xml"}, "'json_schema'"),
    (CHAT, "modalities", ["text", "audio"], "['text']"),
    (CHAT, "audio", {"voice": "alloy", "format": "wav"}, "not supported"),
    (CHAT, "prediction", {"type": "content", "content": "x"}, "not supported"),
    (CHAT, "web_search_options", {}, "not supported"),
    (CHAT, "reasoning_effort", "high", "'none'"),
    (CHAT, "verbosity", "low", "'medium'"),
    (CHAT, "service_tier", "priority", "'auto'"),
    (CHAT, "store", True, "not stored"),
    (TEXT, "echo", True, "not supported"),
    (TEXT, "suffix", "end", "not supported"),
    (TEXT, "best_of", 2, "use n"),
]


@pytest.mark.parametrize(
    ("path", "name", "value", "hint"), UNSUPPORTED, ids=[f"{u[1]}-{i}" for i, u in enumerate(UNSUPPORTED)]
)
def test_an_unsupported_parameter_is_refused_and_named(http_client, idle, path, name, value, hint):
    error = check(http_client.post(path, json=body_for(path, idle, **{name: value})), 400, "unsupported_parameter")
    assert error["param"].split(".")[0].split("[")[0] == name
    assert name in error["message"]
    assert hint in error["message"]


@pytest.mark.parametrize("path", [CHAT, TEXT, "/tokenize", "/detokenize"])
def test_an_unknown_parameter_is_refused_and_named(http_client, idle, path):
    body = body_for(path, idle) if path in (CHAT, TEXT) else {"prompt": "x"} if path == "/tokenize" else {"tokens": []}
    response = http_client.post(path, json={**body, "min_tokens_please": 1})
    check(response, 400, "unknown_parameter", "min_tokens_please", "min_tokens_please")


WRONG = [
    ("temperature", "hot", "invalid_type"),
    ("temperature", 2.5, "invalid_value"),
    ("temperature", -0.1, "invalid_value"),
    ("top_p", 0, "invalid_value"),
    ("top_p", 1.5, "invalid_value"),
    ("max_tokens", 0, "invalid_value"),
    ("max_tokens", "5", "invalid_type"),
    ("max_tokens", 2.5, ...),
    ("max_tokens", True, "invalid_type"),
    ("n", 0, "invalid_value"),
    ("n", 17, "invalid_value"),
    ("seed", "7", "invalid_type"),
    ("stop", ["a", "b", "c", "d", "e"], ...),
    ("stop", "", ...),
    ("stream", "yes", "invalid_type"),
    ("presence_penalty", 3, "invalid_value"),
    ("logit_bias", {"5": 101}, ...),
    ("logit_bias", [1], "invalid_type"),
    ("top_k", -2, "invalid_value"),
    ("ignore_eos", 1, "invalid_type"),
    ("model", 5, "invalid_type"),
]


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize(("name", "value", "code"), WRONG, ids=[f"{w[0]}-{i}" for i, w in enumerate(WRONG)])
def test_a_wrong_value_is_refused_and_named(http_client, idle, path, name, value, code):
    error = check(http_client.post(path, json=body_for(path, idle, **{name: value})), 400, code)
    assert error["param"].split(".")[0].split("[")[0] == name


@pytest.mark.parametrize(
    ("message", "param", "mentions"),
    [
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            "messages[0].content[0].type",
            "text parts only",
        ),
        ({"role": "tool", "content": "42", "tool_call_id": "x"}, "messages[0].tool_call_id", "No message before"),
        ({"role": "tool", "content": "42"}, "messages[0].tool_call_id", "Missing"),
        ({"role": "function", "content": "42", "name": "f"}, "messages[0].role", "send role 'tool'"),
        ({"role": "assistant", "content": None}, "messages[0].content", "Missing"),
        ({"role": "assistant", "content": None, "tool_calls": []}, "messages[0].content", "Missing"),
        ({"role": "wizard", "content": "x"}, "messages[0].role", "wizard"),
        ({"content": "x"}, "messages[0].role", "Missing"),
        ({"role": "user"}, "messages[0].content", "Missing"),
        ({"role": "user", "content": None}, "messages[0].content", ""),
        ({"role": "user", "content": []}, "messages[0].content", ""),
        ({"role": "user", "content": "x", "mood": "good"}, "messages[0].mood", "Unknown"),
        ({"role": "user", "content": "x", "name": "Ann"}, "messages[0].name", "no place for names"),
        (
            {"role": "assistant", "content": "x", "tool_calls": [{"id": "1", "type": "function"}]},
            "messages[0].tool_calls[0].function",
            "Missing",
        ),
        ("just text", "messages[0]", ""),
    ],
    ids=[
        "image",
        "tool-without-call",
        "tool-without-id",
        "function",
        "assistant-null",
        "assistant-nothing",
        "role",
        "no-role",
        "no-content",
        "null",
        "empty-parts",
        "extra",
        "name",
        "tool-calls",
        "text",
    ],
)
def test_a_wrong_message_is_refused_and_located(http_client, idle, message, param, mentions):
    response = http_client.post(CHAT, json=body_for(CHAT, idle, messages=[message]))
    check(response, 400, ..., param, mentions)


@pytest.mark.parametrize(("path", "name"), [(CHAT, "messages"), (CHAT, "model"), (TEXT, "prompt"), (TEXT, "model")])
def test_a_missing_parameter_is_named(http_client, idle, path, name):
    response = http_client.post(path, json=body_for(path, idle, **{name: ...}))
    check(response, 400, "missing_required_parameter", name)


@pytest.mark.parametrize(
    ("path", "name", "value"),
    [
        (CHAT, "messages", []),
        (TEXT, "prompt", []),
        (TEXT, "prompt", ""),
        (TEXT, "prompt", [[]]),
        (TEXT, "prompt", [""]),
    ],
)
def test_nothing_to_answer_is_refused(http_client, idle, path, name, value):
    error = check(http_client.post(path, json=body_for(path, idle, **{name: value})), 400)
    assert error["param"].startswith(name)


@pytest.mark.parametrize(
    "content",
    [b"{", b"", b"[]", b'"text"', b"null", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000, b'{"model": "x" "y"}'],
    ids=["cut", "empty", "list", "string", "null", "not-utf8", "deep-lists", "deep-objects", "no-comma"],
)
def test_a_body_that_is_not_a_json_object(http_client, content):
    response = http_client.post(CHAT, content=content, headers={"Content-Type": "application/json"})
    check(response, 400)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999"])
def test_numbers_that_json_does_not_have(http_client, idle, text):
    content = json.dumps(body_for(CHAT, idle, temperature=777)).replace("777", text)
    response = http_client.post(CHAT, content=content, headers={"Content-Type": "application/json"})
    check(response, 400, ..., "temperature")


@pytest.mark.parametrize("path", [CHAT, TEXT, "/tokenize"])
def test_a_lone_surrogate_is_refused(http_client, idle, path):
    body = {"prompt": "x"} if path == "/tokenize" else body_for(path, idle)
    content = json.dumps(body).replace('"Hi"', '"\\ud800"').replace('"x"', '"\\ud800"')
    response = http_client.post(path, content=content, headers={"Content-Type": "application/json"})
    check(response, 400)


def test_a_body_of_another_type_is_refused(http_client, idle):
    content = json.dumps(body_for(CHAT, idle))
    check(http_client.post(CHAT, content=content, headers={"Content-Type": "text/plain"}), 400, "invalid_json")


@pytest.mark.parametrize(("path", "param"), [(CHAT, "messages"), (TEXT, "prompt")])
@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long(http_client, idle, path, param, stream):
    text = "harbour " * 20_000
    start = {"messages": [{"role": "user", "content": text}]} if path == CHAT else {"prompt": text}
    response = http_client.post(path, json=body_for(path, idle, stream=stream, **start))
    check(response, 400, "context_length_exceeded", param, "16384")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"stop_token_ids": [999_999]}, "stop_token_ids"),
    ],
)
def test_values_that_do_not_fit_each_other_or_the_model(http_client, idle, fields, param):
    check(http_client.post(CHAT, json=body_for(CHAT, idle, **fields)), 400, ..., param)


def test_a_token_outside_the_vocabulary(http_client, idle):
    check(http_client.post(TEXT, json=body_for(TEXT, idle, prompt=[1, 999_999])), 400, ..., "prompt", "999999")
    check(http_client.post("/detokenize", json={"tokens": [1, 999_999]}), 400, ..., "tokens", "999999")


def test_too_many_choices(http_client, idle):
    response = http_client.post(TEXT, json=body_for(TEXT, idle, prompt=["x"] * 10, n=10))
    check(response, 400, "incompatible_parameters", "n", "64")


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_another_model(http_client, idle, path):
    check(
        http_client.post(path, json=body_for(path, idle, model="gpt-9")),
        404,
        "model_not_found",
        "model",
        ["gpt-9", "tiny"],
    )
    check(http_client.get("/v1/models/org/gpt-9"), 404, "model_not_found", "model")


def test_unknown_addresses_and_methods(http_client):
    check(http_client.get("/v1/nothing"), 404, "unknown_url", None, "GET /v1/nothing")
    response = http_client.get(CHAT)
    check(response, 405, "method_not_allowed", None, "POST")
    assert response.headers["allow"] == "POST"
    check(http_client.post("/v1/models"), 405, "method_not_allowed")


def test_the_official_client_raises_its_own_errors(idle):
    with openai.OpenAI(base_url=f"{idle.base}/v1", api_key="unused", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model=idle.model, messages=[{"role": "user", "content": "x"}], temperature=9)
        assert refused.value.param == "temperature"
        assert refused.value.request_id
        with pytest.raises(openai.NotFoundError) as absent:
            client.chat.completions.create(model="other", messages=[{"role": "user", "content": "x"}])
        assert absent.value.code == "model_not_found"


@pytest.fixture(scope="module")
def small(start_server, tiny_checkpoint):
    settings = ServerSettings(served_model_names=("tiny",), max_body_bytes=2048)
    with start_server(tiny_checkpoint, settings, max_num_seqs=1) as server:
        yield server


def test_a_body_above_the_limit(small):
    with httpx.Client(base_url=small.base) as client:
        body = body_for(TEXT, small, prompt="x" * 4096)
        check(client.post(TEXT, json=body), 413, "body_too_large", None, "2048")
        assert client.post(TEXT, json=body_for(TEXT, small)).status_code == 200


def test_a_body_above_the_limit_in_chunks_of_no_declared_length(small):
    def chunks():
        yield b'{"model": "tiny", "prompt": "'
        with contextlib.suppress(Exception):
            for _ in range(64):
                yield b"x" * 1024

    with httpx.Client(base_url=small.base) as client:
        response = client.post(TEXT, content=chunks(), headers={"Content-Type": "application/json"})
    check(response, 413, "body_too_large")


def test_a_length_that_is_a_lie_holds_nothing_up(small):
    with socket.create_connection(("127.0.0.1", small.port), timeout=10) as sock:
        sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        sock.sendall(b"Content-Length: 99999999999\r\n\r\n{")
        response = http.client.HTTPResponse(sock)
        response.begin()
        assert response.status == 413
