"""Models behind an endpoint: a real HTTP server that answers what a test wants, and Stille's own."""

import asyncio
import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jsonschema_rs
import openai
import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st

from stille.agents.agent import Agent
from stille.agents.errors import ModelError
from stille.agents.models.arguments import misfit, parsed_arguments
from stille.agents.models.endpoint import EndpointModel
from stille.agents.tools import tool
from stille.agents.types import CallDelta, Message, ModelRequest, Reply, TextDelta, ToolCall, ToolSpec, Usage

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 6}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
}
TOOLS = [ToolSpec(name="get_weather", parameters=CITY), ToolSpec(name="delete_everything")]
OSLO = '{"city": "Oslo", "days": 1}'
ASK = [Message(role="user", content="Weather?")]


def chunk(delta=None, reason=None, usage=None):
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": reason}]
    return {
        "id": "x",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": choices,
        "usage": usage,
    }


def says(*texts, reason="stop"):
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 3,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 4},
    }
    return [*(chunk({"content": text}) for text in texts), chunk({}, reason), chunk(usage=usage)]


def calls(*written, text="", reason="tool_calls"):
    """An answer with calls as (name, arguments), whose arguments come in two pieces."""
    parts = [{"content": text}] if text else []
    for index, (name, arguments) in enumerate(written):
        first, second = arguments[:3], arguments[3:]
        parts.append({"tool_calls": [{"index": index, "id": f"id{index}", "type": "function",
                                      "function": {"name": name, "arguments": first}}]})  # fmt: skip
        parts.append({"tool_calls": [{"index": index, "function": {"arguments": second}}]})
    return [*(chunk(part) for part in parts), *says(reason=reason)]


class Endpoint:
    """Answers each request with the next of `answers`: chunks, or a status. `bodies` are what it was asked."""

    def __init__(self):
        self.answers, self.bodies, self.broken = [], [], threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                outer.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                answer = outer.answers.pop(0)
                if isinstance(answer, int):
                    self.send_response(answer)
                    self.send_header("Content-Type", "application/json")
                    self.end_headers()
                    self.wfile.write(json.dumps({"error": {"message": "not like this"}}).encode())
                    return
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.end_headers()
                try:
                    for piece in answer:
                        self.wfile.write(f"data: {json.dumps(piece)}\n\n".encode())
                    self.wfile.write(b"data: [DONE]\n\n")
                except OSError:
                    outer.broken.set()

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()


@pytest.fixture(scope="module")
def server():
    endpoint = Endpoint()
    yield endpoint
    endpoint.server.shutdown()
    endpoint.server.server_close()


@pytest.fixture
async def ask(server):
    server.answers.clear()
    server.bodies.clear()
    models = []

    async def answered(*answers, repeats=2, options=None, **request):
        server.answers += answers
        model = EndpointModel(server.base, "m", repeats=repeats, retries=0, **(options or {}))
        models.append(model)
        request = {"messages": ASK, "tools": TOOLS, **request}
        *events, reply = [event async for event in model.stream(ModelRequest(**request))]
        assert isinstance(reply, Reply)
        assert "".join(event.text for event in events if isinstance(event, TextDelta)) == reply.message.content
        deltas = [event for event in events if isinstance(event, CallDelta)]
        assert [(delta.name, json.loads(delta.arguments)) for delta in deltas] == [
            (call.name, call.arguments) for call in reply.message.calls
        ]
        return reply

    yield answered
    for model in models:
        await model.close()


async def test_text_and_usage(ask, server):
    reply = await ask(says("It ", "rains."), max_tokens=7, temperature=0.5, seed=3, options={"extra": {"top_k": 2}})
    assert reply.message.content == "It rains."
    assert reply.finish_reason == "stop"
    assert reply.usage == Usage(prompt_tokens=9, completion_tokens=3, cached_tokens=4)
    (body,) = server.bodies
    assert (body["max_tokens"], body["temperature"], body["seed"], body["top_k"]) == (7, 0.5, 3, 2)
    assert body["tool_choice"] == "auto"
    assert [entry["function"]["name"] for entry in body["tools"]] == ["get_weather", "delete_everything"]


async def test_calls_and_the_conversation_that_follows(ask, server):
    reply = await ask(calls(("get_weather", OSLO), ("delete_everything", ""), text="I look."))
    assert [(call.name, call.arguments) for call in reply.message.calls] == [
        ("get_weather", json.loads(OSLO)),
        ("delete_everything", {}),
    ]
    assert reply.finish_reason == "tool_calls"
    results = [Message(role="tool", call_id=call.id, content="5") for call in reply.message.calls]
    await ask(says("Fine."), messages=[*ASK, reply.message, *results])
    *_, made, first, _ = server.bodies[-1]["messages"]
    assert made["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": OSLO}
    assert first == {"role": "tool", "content": "5", "tool_call_id": made["tool_calls"][0]["id"]}


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ([("delete_everything", "{}")], "'delete_everything' cannot be called now; what can be: get_weather"),
        ([("get_weather", '{"city": "Oslo"')], "the arguments are no JSON object"),
        ([("get_weather", "[1]")], "expected an object"),
        ([("get_weather", '{"city": "Oslo"}')], "'days' is a required property"),
        ([("get_weather", '{"city": "Oslo", "days": 99}')], "arguments['days']: 99 is greater"),
        ([("get_weather", '{"city": "Oslo", "days": 1, "x": 1}')], "there is no argument 'x'"),
        ([("get_weather", '{"city": "Oslo", "days": NaN}')], "NaN is no JSON"),
        ([("get_weather", OSLO), ("delete_everything", "{}")], "get_weather: not made, because another call was wrong"),
    ],
)
async def test_a_wrong_call_is_told_to_the_model_and_never_gets_out(ask, server, bad, told):
    permitted = {"get_weather"}
    reply = await ask(calls(*bad), calls(("get_weather", OSLO)), permitted=permitted)
    assert [(call.name, call.arguments) for call in reply.message.calls] == [("get_weather", json.loads(OSLO))]
    assert told in server.bodies[1]["messages"][-1]["content"]
    assert reply.usage.prompt_tokens == 18
    server.answers.clear()
    with pytest.raises(ModelError, match="no usable answer in 3 attempts"):
        await ask(*[calls(*bad)] * 3, permitted=permitted)


async def test_choices_are_passed_on(ask, server):
    await ask(calls(("get_weather", OSLO)), choice="required", permitted={"get_weather"}, parallel=False)
    assert server.bodies[-1]["tool_choice"] == {"type": "function", "function": {"name": "get_weather"}}
    assert server.bodies[-1]["parallel_tool_calls"] is False
    await ask(says("No"), calls(("get_weather", OSLO)), choice="required")
    assert [body["tool_choice"] for body in server.bodies[-2:]] == ["required", "required"]
    for request in ({"choice": "none"}, {"permitted": set()}):
        await ask(says("No"), **request)
        assert server.bodies[-1]["tool_choice"] == "none"
        assert server.bodies[-1]["tools"]
    with pytest.raises(ModelError, match="no tool is permitted"):
        await ask(choice="required", permitted=set())
    several = await ask(calls(("get_weather", OSLO), ("get_weather", OSLO)), parallel=False)
    assert len(several.message.calls) == 1


SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}


async def test_an_answer_of_a_schema(ask, server):
    assert (await ask(says('{"ok": true}'), output_schema=SCHEMA)).message.content == '{"ok": true}'
    assert "response_format" not in server.bodies[-1]
    reply = await ask(says("Yes, all is well"), says('{"ok": ', "true}"), output_schema=SCHEMA)
    assert reply.message.content == '{"ok": true}'
    assert server.bodies[-1]["response_format"]["json_schema"]["schema"] == SCHEMA
    assert server.bodies[-1]["tool_choice"] == "none"
    assert (await ask(calls(("get_weather", OSLO)), output_schema=SCHEMA)).message.calls
    await ask(says("{}"), output_schema=SCHEMA, tools=())
    assert server.bodies[-1]["response_format"]["type"] == "json_schema"


async def test_what_is_cut_is_left_out(ask):
    reply = await ask(calls(("get_weather", OSLO), ("get_weather", OSLO[:9]), reason="length"))
    assert reply.finish_reason == "length"
    assert len(reply.message.calls) == 1


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (401, "check api_key"),
        (404, "check base_url and the model's name"),
        (400, "not like this"),
        (429, "ask less often"),
        (500, "look at the endpoint's log"),
        (says("so", reason="content_filter"), "content_filter"),
        (says("so")[:1], "it broke off"),
        ([{"error": {"message": "out of memory"}}], "out of memory"),
    ],
)
async def test_what_goes_wrong_is_a_model_error_that_says_what_to_do(ask, answer, match):
    with pytest.raises(ModelError, match=match):
        await ask(answer)


async def test_an_endpoint_that_is_not_there():
    model = EndpointModel("http://127.0.0.1:9/v1", "m", retries=0)
    with pytest.raises(ModelError, match=r"cannot be reached.*check base_url"):
        [event async for event in model.stream(ModelRequest(messages=ASK))]


async def test_leaving_early_ends_the_request(server):
    server.answers.append(chunk({"content": "and "}) for _ in range(10_000_000))
    server.broken.clear()
    stream = EndpointModel(server.base, "m").stream(ModelRequest(messages=ASK))
    assert await anext(stream) == TextDelta(text="and ")
    await stream.aclose()
    assert await asyncio.to_thread(server.broken.wait, 10)


async def test_an_agent_on_an_endpoint(ask, server):
    @tool
    def add(a: int, b: int) -> int:
        return a + b

    server.answers += [calls(("add", '{"a": 1}')), calls(("add", '{"a": 1, "b": 2}')), says("It is 3.")]
    run = await Agent(name="a", model=EndpointModel(server.base, "m"), tools=[add]).run("1+2?")
    assert run.output == "It is 3."
    assert [message.content for message in run.messages if message.role == "tool"] == ["3"]
    assert run.usage.prompt_tokens == 27


@pytest.fixture(scope="module")
def far():
    return EndpointModel("http://127.0.0.1:9/v1", "m")


@given(st.lists(st.text(max_size=20), max_size=4))
@settings(deadline=None, max_examples=30)
def test_a_count_is_never_below_the_bytes_that_are_said(far, texts):
    messages = [Message(role="user", content=text) for text in texts]
    count = asyncio.run(far.count_tokens(ModelRequest(messages=messages)))
    assert count > sum(len(message.content.encode()) for message in messages)


async def test_who_knows_better_counts():
    model = EndpointModel("http://127.0.0.1:9/v1", "m", count=lambda request: 7)
    assert await model.count_tokens(ModelRequest(messages=ASK)) == 7


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("", {}),
        ('{"a": 1e999, "b": -1e999}', {"a": "1e999", "b": "-1e999"}),
        (f'{{"a": {"9" * 5000}}}', {"a": "9" * 5000}),
        ('{"a": 1.5, "b": [1, null]}', {"a": 1.5, "b": [1, None]}),
    ],
)
def test_arguments_can_always_be_stored_as_json(text, read):
    arguments = parsed_arguments(text)
    assert arguments == read
    json.dumps(arguments, allow_nan=False)


@pytest.mark.parametrize("text", ["[1]", "1", "{", '{"a": NaN}', '{"a": Infinity}', "[" * 100_000])
def test_other_arguments_are_refused(text):
    with pytest.raises(ValueError):
        parsed_arguments(text)


scalars = st.none() | st.booleans() | st.integers(-3, 12) | st.sampled_from(["Oslo", "Reykjavik", ""])


@given(st.dictionaries(st.sampled_from(["city", "days", "x"]), scalars))
@settings(deadline=None, max_examples=60)
def test_arguments_fit_when_another_implementation_says_so(arguments):
    strict = jsonschema_rs.validator_for({**CITY, "additionalProperties": False})
    assert (misfit(arguments, TOOLS[0]) is None) == strict.is_valid(arguments)


def test_a_schema_cannot_make_it_fetch_something():
    spec = ToolSpec(name="f", parameters={"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1:9/x"}}})
    with pytest.raises(Exception, match=r"127\.0\.0\.1:9/x"):
        misfit({"a": 1}, spec)


@contextlib.contextmanager
def stille_server(checkpoint):
    """Stille's own server, in a thread."""
    from stille.engine.async_llm import AsyncLLM
    from stille.server import ServerSettings, create_app

    engine = AsyncLLM(model=str(checkpoint), dtype="fp32", device="cpu", threads=1, kv_cache_tokens=8192)
    app = create_app(engine, ServerSettings(served_model_names=("tiny",)))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        threading.Event().wait(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    server.should_exit = True
    thread.join(30)


async def test_stilles_own_server_is_such_an_endpoint(tiny_checkpoint):
    with stille_server(tiny_checkpoint) as base:
        model = EndpointModel(base, "tiny")
        request = ModelRequest(
            messages=ASK, tools=TOOLS, choice="required", permitted=frozenset({"get_weather"}), max_tokens=300,
            temperature=1.0, seed=1,
        )  # fmt: skip
        *_, reply = [event async for event in model.stream(request)]
        (call,) = reply.message.calls
        assert call.name == "get_weather"
        jsonschema_rs.validator_for(CITY).validate(call.arguments)
        assert 0 < reply.usage.prompt_tokens <= await model.count_tokens(request)
        typed = {"choice": "none", "output_schema": {**SCHEMA, "additionalProperties": False}}
        *_, reply = [event async for event in model.stream(request.model_copy(update=typed))]
        assert isinstance(json.loads(reply.message.content)["ok"], bool)
        told = [*ASK, Message(role="assistant", calls=(call,)), Message(role="tool", call_id=call.id, content="5")]
        *_, reply = [event async for event in model.stream(ModelRequest(messages=told, tools=TOOLS, max_tokens=3))]
        assert reply.finish_reason == "length"
        await model.close()


async def test_a_client_can_be_given(server):
    server.answers.append(says("Yes"))
    async with openai.AsyncOpenAI(base_url=server.base, api_key="k") as client:
        *_, reply = [
            event async for event in EndpointModel(None, "m", client=client).stream(ModelRequest(messages=ASK))
        ]
    assert reply.message == Message(role="assistant", content="Yes")
    assert ToolCall(id="1", name="x", arguments={}) not in reply.message.calls
