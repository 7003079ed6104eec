"""Calls of functions on /v1/responses: the tiny model knows nothing of them, so only the grammar makes them."""

import json
from itertools import pairwise

import httpx
import jsonschema_rs
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from stille.engine.outputs import TokenLogprob
from stille.engine.tool_calls import ToolCallParser
from stille.server.answers import ChatAnswer
from stille.server.responses_events import ResponseBuilder
from stille.server.responses_run import new_response
from stille.server.schemas.base import PromptTokensDetails, Usage
from stille.server.schemas.responses import ResponseRequest

EVENT = TypeAdapter(ResponseStreamEvent)
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 6}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
}
UNIT = {"type": "object", "properties": {"unit": {"enum": ["C", "F"]}}, "required": ["unit"]}
SCHEMAS = {"get_weather": CITY, "set_unit": UNIT, "now": {"type": "object", "maxProperties": 0}}
TOOLS = [
    {"type": "function", "name": "get_weather", "description": "The weather of a city.", "parameters": CITY},
    {"type": "function", "name": "set_unit", "parameters": UNIT, "strict": True},
    {"type": "function", "name": "now"},
]
ASK = "What is the weather in Oslo?"
AS_CHAT = [
    {"type": "function", "function": {key: value for key, value in tool.items() if key not in ("type", "strict")}}
    for tool in TOOLS
]


@pytest.fixture
def client(idle):
    with openai.OpenAI(base_url=f"{idle.base}/v1", api_key="unused", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
def create(client, idle):
    def create(input=ASK, **arguments):
        arguments = {"temperature": 0, "max_output_tokens": 300, "tools": TOOLS, **arguments}
        return client.responses.create(model=idle.model, input=input, **arguments)

    return create


def check(call, names=tuple(SCHEMAS)):
    assert (call.type, call.status) == ("function_call", "completed")
    assert call.id.startswith("fc_")
    assert call.call_id.startswith("call_")
    assert call.name in names
    jsonschema_rs.validator_for(SCHEMAS[call.name]).validate(json.loads(call.arguments))


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_named_function_is_called_once(create, client, idle, name):
    response = create(tool_choice={"type": "function", "name": name})
    (call,) = response.output
    check(call, (name,))
    assert response.status == "completed"
    raw = httpx.get(f"{idle.base}/v1/responses/{response.id}").json()
    assert Response.model_validate(raw, strict=True).output == response.output
    assert [tool["name"] for tool in raw["tools"]] == list(SCHEMAS)
    assert raw["tool_choice"] == {"type": "function", "name": name}


def test_it_calls_what_chat_calls(create, client, idle):
    for choice in ("required", "auto", "none"):
        response = create(tool_choice=choice, parallel_tool_calls=False, max_output_tokens=40)
        chat = client.chat.completions.create(
            model=idle.model,
            messages=[{"role": "user", "content": ASK}],
            tools=AS_CHAT,
            tool_choice=choice,
            parallel_tool_calls=False,
            max_tokens=40,
            temperature=0,
        )
        message = chat.choices[0].message
        calls = [(call.function.name, call.function.arguments) for call in message.tool_calls or []]
        given = [(item.name, item.arguments) for item in response.output if item.type == "function_call"]
        assert given == calls
        assert response.output_text == (message.content or "")
        assert response.usage.input_tokens == chat.usage.prompt_tokens
        assert response.usage.output_tokens == chat.usage.completion_tokens


def test_allowed_tools_narrow_what_is_called(create):
    for names in (["now"], ["set_unit", "now"]):
        choice = {
            "type": "allowed_tools",
            "mode": "required",
            "tools": [{"type": "function", "name": n} for n in names],
        }
        for seed in range(4):
            response = create(tool_choice=choice, parallel_tool_calls=False, temperature=1, extra_body={"seed": seed})
            check(response.output[0], names)
    whole = create(tool_choice="required", parallel_tool_calls=False)
    assert response.usage.input_tokens == whole.usage.input_tokens, "the prompt tells of all tools"


def from_stream(events):
    """[(kind, name, text)] of the items that a stream's events add up to."""
    assert [event.sequence_number for event in events] == list(range(len(events)))
    items, text = [], ""
    for event in events:
        EVENT.validate_python(event.model_dump(by_alias=True), strict=True)
        kind = event.type.removeprefix("response.")
        if kind == "output_item.added":
            text = ""
            assert event.output_index == len(items)
            if event.item.type == "function_call":
                assert (event.item.status, event.item.arguments) == ("in_progress", "")
        elif kind.endswith(".delta"):
            text += event.delta
        elif kind == "function_call_arguments.done":
            assert event.arguments == text
        elif kind == "output_item.done":
            name = event.item.name if event.item.type == "function_call" else None
            items.append((event.item.type, name, text))
    assert len(items) == len(events[-1].response.output)
    return items


@pytest.mark.parametrize("limit", [3, 20, 40, 300])
def test_streamed_and_whole_are_equal_wherever_they_end(create, limit):
    arguments = {"tool_choice": "required", "max_output_tokens": limit, "parallel_tool_calls": False}
    whole = create(**arguments)
    events = list(create(stream=True, **arguments))
    items = [(item.type, item.name, item.arguments) for item in whole.output]
    assert from_stream(events) == items
    last = events[-1].response
    assert events[-1].type == f"response.{whole.status}"
    assert (last.status, last.usage.output_tokens) == (whole.status, whole.usage.output_tokens)
    if limit < 20:
        assert whole.output == []
    if whole.status == "incomplete":
        assert whole.usage.output_tokens == limit
        assert all(item.status == "incomplete" for item in whole.output)
    else:
        check(whole.output[0])


CALLS = ('{"name": "now", "arguments": {}}', '{"name": "set_unit", "arguments": {"unit": "C"}}')
WRITTEN = "I look — там." + "".join(f"\n<tool_call>\n{call}\n</tool_call>" for call in CALLS)


@given(cuts=st.sets(st.integers(1, len(WRITTEN) - 1)), with_tokens=st.booleans())
def test_text_and_calls_are_items_of_their_own(cuts, with_tokens):
    """A text as a better model would write it, which comes in any pieces."""
    pieces = [WRITTEN[i:j] for i, j in pairwise([0, *sorted(cuts), len(WRITTEN)])]
    body = ResponseRequest.model_validate({"model": "tiny", "input": "x", "tools": TOOLS})
    builder = ResponseBuilder(new_response(body, "tiny", "resp_1"), 0 if with_tokens else None)
    answer = ChatAnswer(ToolCallParser())
    happened = list(builder.begin())
    for index, piece in enumerate(pieces):
        deltas, reason = answer.feed(piece, "stop" if index == len(pieces) - 1 else None)
        token = TokenLogprob(token_id=1, logprob=-1.0, text=piece, bytes=piece.encode())
        happened += builder.feed(deltas, [token] if with_tokens else None)
    details = PromptTokensDetails(cached_tokens=0)
    usage = Usage(prompt_tokens=1, completion_tokens=2, total_tokens=3, prompt_tokens_details=details)
    happened += builder.finish(reason, usage)
    events = [EVENT.validate_python(json.loads(json.dumps(one)), strict=True) for one in happened]
    assert from_stream(events) == [
        ("message", None, "I look — там."),
        ("function_call", "now", "{}"),
        ("function_call", "set_unit", '{"unit": "C"}'),
    ]
    response = Response.model_validate(builder.response, strict=True)
    assert response.status == "completed"
    message, *called = response.output
    for call in called:
        check(call)
    tokens = "".join(token.token for token in message.content[0].logprobs)
    assert tokens.startswith("I look — там.") == with_tokens
    if len(cuts) == len(WRITTEN) - 1:
        assert tokens in ("", "I look — там.")


@pytest.mark.parametrize("form", ["items", "dumped", "kept"])
def test_a_round_trip(create, client, idle, form):
    """A call, its result, and the answer to it: the same prompt as chat's, whatever way the call comes back."""
    first = create(tool_choice="required", parallel_tool_calls=False)
    (call,) = first.output
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "5 degrees"}
    arguments = {"tool_choice": "none", "max_output_tokens": 8}
    if form == "kept":
        second = create([result], previous_response_id=first.id, **arguments)
    else:
        item = call if form == "items" else call.model_dump()
        second = create([{"role": "user", "content": ASK}, item, result], **arguments)
    chat = client.chat.completions.create(
        model=idle.model,
        messages=[
            {"role": "user", "content": ASK},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": call.call_id,
                        "type": "function",
                        "function": {"name": call.name, "arguments": call.arguments},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": call.call_id, "content": "5 degrees"},
        ],
        max_tokens=8,
        temperature=0,
    )
    assert second.output_text == chat.choices[0].message.content
    assert second.usage.input_tokens == chat.usage.prompt_tokens


def test_what_was_said_beside_a_call_stays_one_message(create, client, idle):
    said = {"role": "assistant", "content": "I look."}
    call = {"type": "function_call", "call_id": "c1", "name": "now", "arguments": "{}"}
    results = [
        {"type": "function_call_output", "call_id": name, "output": [{"type": "input_text", "text": "noon"}]}
        for name in ("c1", "c2")
    ]
    items = [{"role": "user", "content": ASK}, said, call, {**call, "call_id": "c2"}, *results]
    calls = [{"id": n, "type": "function", "function": {"name": "now", "arguments": "{}"}} for n in ("c1", "c2")]
    messages = [items[0], {**said, "tool_calls": calls}]
    messages += [{"role": "tool", "tool_call_id": n, "content": "noon"} for n in ("c1", "c2")]
    counted = httpx.post(f"{idle.base}/tokenize", json={"messages": messages, "tools": AS_CHAT}).json()["count"]
    assert create(items, max_output_tokens=1).usage.input_tokens == counted
    assert client.responses.input_tokens.count(model=idle.model, input=items, tools=TOOLS).input_tokens == counted


NAMED = {"type": "function", "name": "f"}
RESULT = {"type": "function_call_output", "call_id": "c9", "output": "x"}


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"tool_choice": "required", "tools": []}, "incompatible_parameters", "tool_choice"),
        ({"tool_choice": NAMED}, "incompatible_parameters", "tool_choice"),
        (
            {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [NAMED]}},
            "incompatible_parameters",
            "tool_choice.tools[0].name",
        ),
        ({"tool_choice": {"type": "file_search"}}, "unsupported_parameter", "tool_choice.type"),
        ({"text": {"format": {"type": "json_object"}}}, "incompatible_parameters", "text.format"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "incompatible_parameters", "tools[1].name"),
        ({"tools": [{**NAMED, "name": "two words"}]}, "invalid_value", "tools[0].name"),
        ({"tools": [{"type": "function"}]}, "missing_required_parameter", "tools[0].name"),
        ({"tools": [{"type": "mcp", "server_label": "x"}]}, "unsupported_parameter", "tools[0].type"),
        ({"tools": AS_CHAT}, "missing_required_parameter", "tools[0].name"),
        ({"tools": [{**NAMED, "parameters": {"type": "string"}}]}, "invalid_request", "tools[0].parameters"),
        (
            {"tools": [{**NAMED, "parameters": {"type": "object", "properties": {"a": {"type": "banana"}}}}]},
            "invalid_request",
            "tools",
        ),
        ({"input": [{"role": "user", "content": "x"}, RESULT]}, "invalid_prompt", "input[1].call_id"),
        ({"input": [RESULT]}, "invalid_prompt", "input[0].call_id"),
        (
            {"input": [{**RESULT, "output": [{"type": "input_image", "image_url": "x"}]}]},
            "unsupported_parameter",
            "input[0].output[0].type",
        ),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_and_named(idle, fields, code, param):
    body = {"model": idle.model, "input": ASK, "tools": TOOLS, "max_output_tokens": 4, **fields}
    response = httpx.post(f"{idle.base}/v1/responses", json=body, timeout=60)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["code"], error["param"]) == (code, param), error
    for name in ("messages", "response_format", "tool_call_id", ".function"):
        assert name not in error["message"]
