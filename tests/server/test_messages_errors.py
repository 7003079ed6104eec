"""Everything that can be wrong with a request to /v1/messages gets an error in Anthropic's form that names it."""

import asyncio
import concurrent.futures
import contextlib
import json

import anthropic
import httpx
import pytest

from stille.server import ServerSettings

PATH = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
ASK = [{"role": "user", "content": "Hi"}]
TOOL = {"name": "f", "input_schema": {"type": "object", "properties": {"x": {"type": "integer"}}}}
CALL = {"type": "tool_use", "id": "t1", "name": "f", "input": {"x": 1}}


def body_for(served, path=PATH, **fields):
    limit = {"max_tokens": 2} if path == PATH else {}
    body = {"model": served.model, "messages": ASK, **limit, **fields}
    return {key: value for key, value in body.items() if value is not ...}


def check(response, status, kind, code=..., param=..., mentions=()):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"type", "error", "request_id"}
    assert body["type"] == "error"
    assert body["request_id"] == response.headers["request-id"] == response.headers["x-request-id"]
    error = body["error"]
    assert error["type"] == kind, error
    if code is not ...:
        assert error["details"]["error_code"] == code, error
    if param is not ...:
        assert error["details"]["param"] == param, error
    for text in (mentions,) if isinstance(mentions, str) else mentions:
        assert text in error["message"], error
    return error


def post(served, path=PATH, **fields):
    return httpx.post(served.base + path, json=body_for(served, path, **fields), timeout=60)


def content(*blocks, role="user"):
    return {"messages": [{"role": role, "content": list(blocks)}]}


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
REFUSED = {
    "thinking": ({"thinking": {"type": "enabled", "budget_tokens": 2048}}, "thinking.type", "'disabled'"),
    "adaptive": ({"thinking": {"type": "adaptive"}}, "thinking.type", "'disabled'"),
    "image": (content(IMAGE), "messages[0].content[0].type", "reads text"),
    "document": (content({"type": "document", "source": {}}), "messages[0].content[0].type", "reads text"),
    "thought": (
        content({"type": "thinking", "thinking": "x", "signature": "y"}, role="assistant"),
        "messages[0].content[0].type",
        "reads text",
    ),
    "image-in-a-result": (
        content({"type": "tool_result", "tool_use_id": "t", "content": [IMAGE]}),
        "messages[0].content[0].content[0].type",
        "reads text",
    ),
    "image-in-the-system-prompt": ({"system": [IMAGE]}, "system[0].type", "reads text"),
    "server-tool": (
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        "tools[0].type",
        "of the client",
    ),
    "choice": ({"tools": [TOOL], "tool_choice": {"type": "required"}}, "tool_choice.type", "'any'"),
    "choice-as-text": ({"tools": [TOOL], "tool_choice": "auto"}, "tool_choice", "'auto'"),
    "container": ({"container": "c"}, "container", "leave it out"),
    "mcp": ({"mcp_servers": [{"type": "url", "url": "http://x", "name": "x"}]}, "mcp_servers", "tool_result"),
    "editing": ({"context_management": {"edits": []}}, "context_management", "leave it out"),
    "tier": ({"service_tier": "priority"}, "service_tier", "'auto'"),
    "speed": ({"speed": "fast"}, "speed", "'standard'"),
    "geography": ({"inference_geo": "eu"}, "inference_geo", "leave it out"),
    "diagnostics": ({"diagnostics": {"previous_message_id": "m"}}, "diagnostics", "leave it out"),
    "format": ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type", "'json_schema'"),
    "effort": ({"output_config": {"effort": "max"}}, "output_config.effort", "'high'"),
    "citations": (
        content({"type": "text", "text": "x", "citations": [{}]}),
        "messages[0].content[0].citations",
        "leave",
    ),
    "cache": ({"cache_control": {"type": "persistent"}}, "cache_control.type", "'ephemeral'"),
    "examples": ({"tools": [{**TOOL, "input_examples": [{"x": 1}]}]}, "tools[0].input_examples", "description"),
    "deferred": ({"tools": [{**TOOL, "defer_loading": True}]}, "tools[0].defer_loading", "false"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_honoured_is_refused_and_says_what_to_send(idle, name):
    fields, param, mentions = REFUSED[name]
    check(post(idle, **fields), 400, "invalid_request_error", "unsupported_parameter", param, mentions)


@pytest.mark.parametrize(
    ("name", "mentions"),
    [
        ("stop", "stop_sequences"),
        ("n", "several requests"),
        ("response_format", "output_config.format"),
        ("banana", ""),
    ],
)
def test_an_unknown_parameter_is_refused_and_named(idle, name, mentions):
    check(post(idle, **{name: 1}), 400, "invalid_request_error", "unknown_parameter", name, [name, mentions])


WRONG = [
    ({"max_tokens": ...}, "missing_required_parameter", "max_tokens"),
    ({"model": ...}, "missing_required_parameter", "model"),
    ({"messages": ...}, "missing_required_parameter", "messages"),
    ({"max_tokens": 0}, "invalid_value", "max_tokens"),
    ({"max_tokens": "5"}, "invalid_type", "max_tokens"),
    ({"temperature": 1.5}, "invalid_value", "temperature"),
    ({"top_p": 0}, "invalid_value", "top_p"),
    ({"top_k": -1}, "invalid_value", "top_k"),
    ({"stop_sequences": "x"}, "invalid_type", "stop_sequences"),
    ({"stop_sequences": [""]}, ..., "stop_sequences[0]"),
    ({"stop_sequences": ["x"] * 17}, ..., "stop_sequences"),
    ({"stream": 1}, "invalid_type", "stream"),
    ({"system": 5}, ..., "system"),
    ({"messages": []}, ..., "messages"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "invalid_value", "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "missing_required_parameter", "messages[0].content"),
    ({"messages": [{"role": "user", "content": []}]}, ..., "messages[0].content"),
    ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, "unknown_parameter", "messages[0].name"),
    (content({"text": "x"}), "missing_required_parameter", "messages[0].content[0].type"),
    (content({"type": "text"}), "missing_required_parameter", "messages[0].content[0].text"),
    (content(CALL), "incompatible_parameters", "messages[0].content[0]"),
    (content({**CALL, "input": "x"}, role="assistant"), "invalid_type", "messages[0].content[0].input"),
    (content(CALL, role="assistant"), "invalid_prompt", "messages"),
    (content(CALL, role="system"), "incompatible_parameters", "messages[0].content[0]"),
    (content({"type": "tool_result", "tool_use_id": "t9"}), "invalid_prompt", "messages[0].content[0].tool_use_id"),
    (
        content({"type": "tool_result", "tool_use_id": "t9"}, role="assistant"),
        "incompatible_parameters",
        "messages[0].content[0]",
    ),
    ({"tools": [{"name": "f"}]}, "missing_required_parameter", "tools[0].input_schema"),
    ({"tools": [{**TOOL, "name": "two words"}]}, "invalid_value", "tools[0].name"),
    ({"tools": [TOOL, TOOL]}, "incompatible_parameters", "tools[1].name"),
    ({"tools": [{"name": "f", "input_schema": {"type": "string"}}]}, "invalid_request", "tools[0].input_schema"),
    ({"tools": [TOOL] * 129}, ..., "tools"),
    ({"tool_choice": {"type": "any"}}, "incompatible_parameters", "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "incompatible_parameters", "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "missing_required_parameter", "tool_choice.name"),
    (
        {"tools": [TOOL], "output_config": {"format": {"type": "json_schema", "schema": {}}}},
        "incompatible_parameters",
        "output_config.format",
    ),
    ({"metadata": {"session": "x"}}, "unknown_parameter", "metadata.session"),
]


SHARED = {"messages", "model", "system", "tools", "tool_choice"}  # by answering and counting
CASES = [(PATH, *case) for case in WRONG] + [(COUNT, *case) for case in WRONG if set(case[0]) <= SHARED]


@pytest.mark.parametrize(("path", "fields", "code", "param"), CASES, ids=[f"w{i}" for i in range(len(CASES))])
def test_a_wrong_value_is_refused_and_named(idle, path, fields, code, param):
    error = check(post(idle, path, **fields), 400, "invalid_request_error", code, param)
    assert error["message"]


def test_a_schema_that_cannot_be_used(idle):
    schema = {"type": "object", "properties": {"a": {"$ref": "https://example.com/x"}}}
    for fields in (
        {"tools": [{"name": "f", "input_schema": schema}], "tool_choice": {"type": "any"}},
        {"output_config": {"format": {"type": "json_schema", "schema": schema}}},
    ):
        check(post(idle, **fields), 400, "invalid_request_error", "invalid_request", ..., "example.com")


@pytest.mark.parametrize(
    "data",
    [b"{", b"", b"[]", b"null", b"\xff\xfe", b'{"a":' * 50_000],
    ids=["cut", "empty", "list", "null", "utf8", "deep"],
)
def test_a_body_that_is_not_a_json_object(idle, data):
    response = httpx.post(idle.base + PATH, content=data, headers={"Content-Type": "application/json"})
    check(response, 400, "invalid_request_error")


@pytest.mark.parametrize("depth", [100, 500, 900, 980])
def test_input_that_is_nested_deeply_breaks_nothing(idle, depth):
    call = {**CALL, "input": {"x": "HERE"}}
    turns = [*ASK, {"role": "assistant", "content": [call]}]
    turns.append({"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "5"}]})
    data = json.dumps(body_for(idle, messages=turns)).replace('"HERE"', "[" * depth + "]" * depth)
    response = httpx.post(idle.base + PATH, content=data, headers={"Content-Type": "application/json"}, timeout=60)
    assert response.status_code in (200, 400), response.text


def test_a_lone_surrogate_is_refused(idle):
    turns = [*ASK, {"role": "assistant", "content": [{**CALL, "input": {"x": "Hi"}}]}]
    turns.append({"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "5"}]})
    for messages in (ASK, turns):
        data = json.dumps(body_for(idle, messages=messages)).replace('"Hi"', '"\\ud800"')
        response = httpx.post(idle.base + PATH, content=data, headers={"Content-Type": "application/json"})
        check(response, 400, "invalid_request_error")


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long(idle, stream):
    turns = [{"role": "user", "content": "harbour " * 20_000}]
    response = post(idle, messages=turns, stream=stream)
    check(response, 400, "invalid_request_error", "context_length_exceeded", "messages", "16384")
    assert post(idle, COUNT, messages=turns).json()["input_tokens"] > 16384


def test_another_model_and_another_path(idle):
    for path in (PATH, COUNT):
        check(
            post(idle, path, model="claude-9"), 404, "not_found_error", "model_not_found", "model", ["claude-9", "tiny"]
        )
    check(httpx.get(f"{idle.base}{PATH}/batches"), 404, "not_found_error")
    response = httpx.get(idle.base + PATH)
    check(response, 405, "invalid_request_error", mentions="POST")
    assert response.headers["allow"] == "POST"


def test_other_routes_keep_their_form(idle):
    response = httpx.post(f"{idle.base}/v1/chat/completions", json={})
    assert set(response.json()) == {"error"}
    assert "request-id" not in response.headers
    assert httpx.get(f"{idle.base}/v1/messages_of_others").json()["error"]["code"] == "unknown_url"


def test_the_official_client_raises_its_own_errors(idle):
    with anthropic.Anthropic(base_url=idle.base, api_key="x", max_retries=0) as client:
        ask = {"messages": ASK, "max_tokens": 2}
        with pytest.raises(anthropic.BadRequestError, match="temperature") as refused:
            client.messages.create(model=idle.model, extra_body={"temperature": 9}, **ask)
        assert refused.value.request_id
        assert refused.value.body["error"]["type"] == "invalid_request_error"
        with pytest.raises(anthropic.NotFoundError):
            client.messages.create(model="other", **ask)


def test_an_error_in_a_stream_is_an_event(idle):
    schema = {"$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}, "minItems": 1}}, "$ref": "#/$defs/a"}
    output = {"format": {"type": "json_schema", "schema": schema}}
    check(post(idle, output_config=output, max_tokens=400), 400, "invalid_request_error", "grammar_too_complex")
    text = post(idle, output_config=output, max_tokens=400, stream=True).text
    *_, last = text.strip().split("\n\n")
    name, data = last.split("\n")
    assert name == "event: error"
    assert "message_stop" not in text
    assert json.loads(data.removeprefix("data: "))["error"]["details"]["error_code"] == "grammar_too_complex"
    with (
        anthropic.Anthropic(base_url=idle.base, api_key="x", max_retries=0) as client,
        pytest.raises(anthropic.APIStatusError, match="too complex"),
        client.messages.stream(model=idle.model, messages=ASK, max_tokens=400, output_config=output) as events,
    ):
        list(events)


@pytest.fixture(scope="module")
def guarded(start_server, tiny_checkpoint):
    settings = ServerSettings(served_model_names=("tiny",), api_key="secret", max_body_bytes=2048)
    with start_server(tiny_checkpoint, settings, max_num_seqs=1, max_queue=1) as server:
        yield server


def test_the_key_comes_in_either_header(guarded):
    for headers in ({"x-api-key": "secret"}, {"Authorization": "Bearer secret"}):
        response = httpx.post(guarded.base + PATH, json=body_for(guarded), headers=headers, timeout=60)
        assert response.status_code == 200
        assert response.headers["request-id"]
    for headers in ({}, {"x-api-key": "wrong"}, {"Authorization": "Bearer wrong"}):
        response = httpx.post(guarded.base + PATH, json=body_for(guarded), headers=headers)
        check(response, 401, "authentication_error", "invalid_api_key")
    with pytest.raises(anthropic.AuthenticationError):
        anthropic.Anthropic(base_url=guarded.base, api_key="wrong", max_retries=0).messages.create(
            model="tiny", messages=ASK, max_tokens=2
        )


def test_a_body_above_the_limit(guarded):
    messages = [{"role": "user", "content": "x" * 4096}]
    headers = {"x-api-key": "secret"}
    response = httpx.post(guarded.base + PATH, json=body_for(guarded, messages=messages), headers=headers)
    check(response, 413, "request_too_large", "body_too_large", mentions="2048")


@contextlib.contextmanager
def endless(client):
    """A streamed answer that has begun and goes on for long."""
    ask = {"model": "tiny", "messages": ASK, "max_tokens": 12_000, "extra_body": {"temperature": 0}}
    with client.messages.create(stream=True, **ask) as events:
        for event in events:
            if event.type == "content_block_delta":
                break
        yield


def test_a_full_queue_is_a_429_with_retry_after(guarded):
    with (
        anthropic.Anthropic(base_url=guarded.base, api_key="secret", max_retries=0) as client,
        concurrent.futures.ThreadPoolExecutor() as pool,
    ):
        with endless(client):
            ask = {"messages": ASK, "max_tokens": 3, "extra_body": {"temperature": 0}}
            waiting = pool.submit(client.messages.create, model="tiny", **ask)
            guarded.wait_for(lambda m: m["stille_queue_requests"] == 1)
            for stream in (False, True):
                with pytest.raises(anthropic.RateLimitError) as refused:
                    client.messages.create(model="tiny", messages=ASK, max_tokens=2, stream=stream)
                assert refused.value.body["error"]["type"] == "rate_limit_error"
                assert int(refused.value.response.headers["retry-after"]) >= 1
        assert waiting.result().usage.output_tokens == 3
    guarded.wait_idle()


def test_a_server_that_is_closed_is_overloaded(start_server, tiny_checkpoint):
    with start_server(tiny_checkpoint, max_num_seqs=1) as server:
        assert post(server).status_code == 200
        asyncio.run(server.engine.close())
        response = post(server)
        check(response, 503, "overloaded_error", "service_unavailable")
        assert int(response.headers["retry-after"]) >= 1
