"""Anthropic's messages through the official client: the tiny model writes noise, the protocol must be right."""

import asyncio
import json

import anthropic
import httpx
import jsonschema_rs
import pytest

ASK = [{"role": "user", "content": "What is the weather in Oslo?"}]
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 6}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
}
UNIT = {"type": "object", "properties": {"unit": {"enum": ["C", "F"]}}, "required": ["unit"]}
TOOLS = [
    {"name": "get_weather", "description": "The weather of a city.", "input_schema": CITY},
    {"name": "set_unit", "input_schema": UNIT},
]
SCHEMAS = {"get_weather": CITY, "set_unit": UNIT}


@pytest.fixture
def client(idle):
    with anthropic.Anthropic(base_url=idle.base, api_key="unused", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
def create(client, idle):
    def create(messages=ASK, temperature=0, **arguments):
        arguments = {"max_tokens": 12, **arguments}
        return client.messages.create(
            model=idle.model, messages=messages, extra_body={"temperature": temperature}, **arguments
        )

    return create


@pytest.fixture
def stream(client, idle):
    """(events, message that they add up to)"""

    def stream(messages=ASK, temperature=0, **arguments):
        arguments = {"max_tokens": 12, **arguments}
        with client.messages.stream(
            model=idle.model, messages=messages, extra_body={"temperature": temperature}, **arguments
        ) as events:
            return list(events), events.get_final_message()

    return stream


def parts(message):
    """What a message says, without the identifiers that differ from one to the next."""
    blocks = [
        (block.type, block.text if block.type == "text" else (block.name, block.input)) for block in message.content
    ]
    return blocks, message.stop_reason, message.stop_sequence


def chat(idle, **fields):
    body = {"model": idle.model, "temperature": 0, "max_tokens": 12, **fields}
    return httpx.post(f"{idle.base}/v1/chat/completions", json=body, timeout=60).json()


def raw(idle, path="/v1/messages", **fields):
    body = {"model": idle.model, "messages": ASK, **({} if "count" in path else {"max_tokens": 12}), **fields}
    return httpx.post(idle.base + path, json=body, timeout=60)


def test_an_answer(create, idle):
    message = create()
    assert (message.type, message.role, message.model) == ("message", "assistant", idle.model)
    assert message.id.startswith("msg_")
    assert message.stop_reason == "max_tokens"
    assert message.stop_sequence is None
    (block,) = message.content
    assert block.text == chat(idle, messages=ASK)["choices"][0]["message"]["content"]
    assert message.usage.output_tokens == 12
    assert message.usage.cache_creation_input_tokens == 0


@pytest.mark.parametrize(
    ("fields", "messages"),
    [
        ({"system": "Be brief."}, [{"role": "system", "content": "Be brief."}, *ASK]),
        (
            {
                "system": [
                    {"type": "text", "text": "Be", "cache_control": {"type": "ephemeral"}},
                    {"type": "text", "text": "brief."},
                ]
            },
            [{"role": "system", "content": "Be\nbrief."}, *ASK],
        ),
        ({"system": ""}, ASK),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
            [{"role": "user", "content": "a\nb"}],
        ),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]},
            [{"role": "user", "content": "a\nb"}],
        ),
        (
            {"messages": [*ASK, {"role": "assistant", "content": "5"}, {"role": "system", "content": "x"}, *ASK]},
            [*ASK, {"role": "assistant", "content": "5"}, {"role": "system", "content": "x"}, *ASK],
        ),
    ],
    ids=["system", "system-blocks", "no-system", "blocks", "turns-of-one-role", "system-within"],
)
def test_a_conversation_reaches_the_model_as_by_the_chat_route(create, client, idle, fields, messages):
    message = create(**fields)
    expected = chat(idle, messages=messages)
    assert message.content[0].text == expected["choices"][0]["message"]["content"]
    count = client.messages.count_tokens(model=idle.model, messages=fields.get("messages", ASK), **{
        name: value for name, value in fields.items() if name == "system"
    })  # fmt: skip
    assert count.input_tokens == expected["usage"]["prompt_tokens"]


def test_the_answer_goes_on_from_a_last_message_of_the_assistant(create, idle):
    started = [*ASK, {"role": "assistant", "content": "The harbour"}]
    prompt = "<|im_start|>user\nWhat is the weather in Oslo?<|im_end|>\n<|im_start|>assistant\nThe harbour"
    request = {"model": idle.model, "prompt": prompt, "max_tokens": 12, "temperature": 0}
    expected = httpx.post(f"{idle.base}/v1/completions", json=request, timeout=60).json()
    message = create(started)
    assert message.content[0].text == expected["choices"][0]["text"]
    assert message.usage.input_tokens == expected["usage"]["prompt_tokens"]


def test_sampling_parameters_are_those_of_the_engine(create, client, idle):
    greedy = parts(create())
    for extra in ({"top_k": 1}, {"top_p": 1e-6}):
        message = client.messages.create(model=idle.model, messages=ASK, max_tokens=12, extra_body=extra)
        assert parts(message) == greedy
    assert len({str(parts(create(temperature=1.0))) for _ in range(4)}) > 1


def test_a_stop_sequence_ends_the_answer_and_is_named(create, stream):
    text = create(max_tokens=40).content[0].text
    found = text[len(text) // 2 :][:3]
    arguments = {"stop_sequences": ["never to be seen", found], "max_tokens": 40}
    message = create(**arguments)
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", found)
    assert message.content[0].text == text[: text.index(found)]
    assert parts(stream(**arguments)[1]) == parts(message)
    many = [f"stop {i}" for i in range(16)]
    assert create(stop_sequences=many).stop_reason == "max_tokens"


def test_streamed_and_whole_are_equal(create, stream):
    events, message = stream(max_tokens=30)
    assert parts(message) == parts(create(max_tokens=30))
    kinds = [event.type for event in events if event.type != "text"]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_events_have_names_and_no_done(idle):
    lines = raw(idle, stream=True).text.strip().split("\n\n")
    pairs = [event.split("\n") for event in lines]
    assert all(len(pair) == 2 for pair in pairs)
    for name, data in pairs:
        assert name == f"event: {json.loads(data.removeprefix('data: '))['type']}"
    names = [name.removeprefix("event: ") for name, _ in pairs]
    assert "ping" in names
    assert (names[0], names[-1]) == ("message_start", "message_stop")


def test_usage_tells_what_was_read_from_the_cache(create, stream, client, idle):
    long = [{"role": "user", "content": "the old grey stones of the quiet harbour " * 40}]
    total = client.messages.count_tokens(model=idle.model, messages=long).input_tokens
    first = create(long).usage
    assert first.input_tokens + first.cache_read_input_tokens == total
    again = create(long).usage
    assert again.cache_read_input_tokens >= 64
    assert again.input_tokens + again.cache_read_input_tokens == total
    events, message = stream(long)
    start = next(event for event in events if event.type == "message_start").message.usage
    end = next(event for event in events if event.type == "message_delta").usage
    for usage in (start, end, message.usage):
        assert usage.input_tokens == again.input_tokens
        assert usage.cache_read_input_tokens == again.cache_read_input_tokens
    assert end.output_tokens == message.usage.output_tokens == 12


def check_calls(message, names=None):
    calls = [block for block in message.content if block.type == "tool_use"]
    assert calls
    for call in calls:
        assert call.id.startswith("toolu_")
        assert call.name in (names or SCHEMAS)
        jsonschema_rs.validator_for(SCHEMAS[call.name]).validate(call.input)
    assert len({call.id for call in calls}) == len(calls)
    return calls


@pytest.mark.parametrize("seed", range(3))
def test_any_makes_a_call(create, seed):
    choice = {"type": "any", "disable_parallel_tool_use": True}
    message = create(tools=TOOLS, tool_choice=choice, max_tokens=200, temperature=1.0)
    assert message.stop_reason == "tool_use"
    assert len(message.content) == 1
    check_calls(message)


def test_several_calls_at_once(stream):
    arguments = {"tools": TOOLS[1:], "tool_choice": {"type": "any"}, "max_tokens": 400}
    for _ in range(60):  # one call after another is the grammar's right, and the model's whim
        events, message = stream(temperature=1, **arguments)
        if len(message.content) > 1:
            break
    assert len(message.content) > 1
    assert all(block.type == "tool_use" for block in message.content)
    assert len(message.content) > 2 or message.stop_reason == "tool_use"  # the last may be cut
    if message.stop_reason == "max_tokens":
        message.content.pop()
    check_calls(message, {"set_unit"})
    starts = [event.index for event in events if event.type == "content_block_start"]
    stops = [event.index for event in events if event.type == "content_block_stop"]
    assert starts == stops == list(range(len(starts)))


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("more", [{}, {"disable_parallel_tool_use": False}])
def test_a_named_tool_is_called_once(create, name, more):
    message = create(tools=TOOLS, tool_choice={"type": "tool", "name": name, **more}, max_tokens=200)
    assert message.stop_reason == "tool_use"
    assert len(check_calls(message, {name})) == 1


def test_auto_leaves_the_answer_free(create):
    for more in (
        {},
        {"tool_choice": {"type": "auto"}},
        {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
    ):
        message = create(tools=TOOLS, **more)
        assert [block.type for block in message.content] == ["text"]
        assert message.stop_reason == "max_tokens"


def test_none_is_as_without_tools(create):
    answers = [create(tools=TOOLS, tool_choice={"type": "none"}), create()]
    assert parts(answers[0]) == parts(answers[1])
    totals = [answer.usage.input_tokens + answer.usage.cache_read_input_tokens for answer in answers]
    assert totals[0] == totals[1]


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}, {"type": "auto"}])
@pytest.mark.parametrize("limit", [3, 20, 40, 80, 300])
def test_streamed_and_whole_calls_are_equal_wherever_they_end(create, stream, choice, limit):
    arguments = {"tools": TOOLS, "tool_choice": {**choice, "disable_parallel_tool_use": True}, "max_tokens": limit}
    message = create(**arguments)
    events, streamed = stream(**arguments)
    assert parts(streamed) == parts(message)
    if choice["type"] != "auto":
        cut = message.usage.output_tokens == limit
        assert message.stop_reason == ("max_tokens" if cut else "tool_use")
        written = "".join(event.partial_json for event in events if event.type == "input_json")
        if not cut:
            assert json.loads(written) == message.content[0].input


def test_a_conversation_goes_on_with_what_tools_returned(create, idle):
    first = create(tools=TOOLS, tool_choice={"type": "any", "disable_parallel_tool_use": True}, max_tokens=200)
    call = first.content[0]
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "5 degrees"}
    turns = [*ASK, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    message = create(turns, tools=TOOLS)
    function = {"name": call.name, "arguments": json.dumps(call.input, ensure_ascii=False)}
    tools = [
        {
            "type": "function",
            "function": {
                **{name: tool[name] for name in ("name", "description") if name in tool},
                "parameters": tool["input_schema"],
            },
        }
        for tool in TOOLS
    ]
    expected = chat(
        idle,
        tools=tools,
        messages=[
            *ASK,
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c", "type": "function", "function": function}],
            },
            {"role": "tool", "tool_call_id": "c", "content": "5 degrees"},
        ],
    )
    assert message.content[0].text == expected["choices"][0]["message"]["content"]
    usage = message.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == expected["usage"]["prompt_tokens"]


CALL = {"type": "tool_use", "id": "t1", "name": "get_weather", "input": {"city": "Oslo", "days": 1}}


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ({"content": "5"}, "5"),
        ({"content": [{"type": "text", "text": "5"}, {"type": "text", "text": "rain"}]}, "5\nrain"),
        ({}, ""),
        ({"content": "no such city", "is_error": True}, "Error:\nno such city"),
        ({"content": "5", "is_error": False, "cache_control": {"type": "ephemeral", "ttl": "1h"}}, "5"),
    ],
    ids=["text", "blocks", "nothing", "error", "no-error"],
)
def test_every_form_of_a_result_reaches_the_prompt(create, idle, result, text):
    block = {"type": "tool_result", "tool_use_id": "t1", **result}
    more = {"type": "text", "text": "And now?"}
    turns = [*ASK, {"role": "assistant", "content": [{"type": "text", "text": "I look."}, CALL]}]
    message = create([*turns, {"role": "user", "content": [block, more]}])
    call = {"name": "get_weather", "arguments": {"city": "Oslo", "days": 1}}
    expected = chat(
        idle,
        messages=[
            *ASK,
            {"role": "assistant", "content": f"I look.\n<tool_call>\n{json.dumps(call)}\n</tool_call>"},
            {"role": "user", "content": f"<tool_response>\n{text}\n</tool_response>"},
            {"role": "user", "content": "And now?"},
        ],
    )
    usage = message.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == expected["usage"]["prompt_tokens"]
    assert message.content[0].text == expected["choices"][0]["message"]["content"]


def test_counting_is_what_usage_says(create, client, idle):
    for fields in (
        {},
        {"system": "Be brief."},
        {"tools": TOOLS},
        {"tools": TOOLS, "tool_choice": {"type": "none"}},
        {"tools": TOOLS, "tool_choice": {"type": "tool", "name": "set_unit"}},
        {"thinking": {"type": "disabled"}},
        {"cache_control": {"type": "ephemeral"}},
    ):
        usage = create(**fields).usage
        count = client.messages.count_tokens(model=idle.model, messages=ASK, **fields).input_tokens
        assert count == usage.input_tokens + usage.cache_read_input_tokens


def test_an_answer_by_a_schema_ends_by_itself(create, stream):
    schema = {**CITY, "additionalProperties": False}
    output = {"format": {"type": "json_schema", "schema": schema}, "effort": "high"}
    message = create(output_config=output, max_tokens=200)
    assert message.stop_reason == "end_turn"
    jsonschema_rs.validator_for(schema).validate(json.loads(message.content[0].text))
    assert parts(stream(output_config=output, max_tokens=200)[1]) == parts(message)


def test_what_has_no_effect_is_accepted(create, idle):
    neutral = {
        "metadata": {"user_id": "u"},
        "service_tier": "standard_only",
        "thinking": {"type": "disabled"},
        "stop_sequences": [],
        "tools": [],
        "cache_control": {"type": "ephemeral", "ttl": "1h"},
    }
    assert parts(create(**neutral)) == parts(create())
    tool = {**TOOLS[0], "type": "custom", "cache_control": {"type": "ephemeral"}, "strict": True}
    assert create(tools=[tool]).content


async def test_the_asynchronous_client_and_leaving_a_stream(idle):
    async with anthropic.AsyncAnthropic(base_url=idle.base, api_key="unused", max_retries=0) as client:
        before = idle.metrics()["stille_generation_tokens_total"]
        stream = await client.messages.create(
            model=idle.model, messages=ASK, max_tokens=12_000, stream=True, extra_body={"temperature": 0}
        )
        seen = 0
        async for event in stream:
            seen += event.type == "content_block_delta"
            if seen == 3:
                break
        await stream.close()
        after = await asyncio.to_thread(idle.wait_idle)
        assert after["stille_generation_tokens_total"] - before < 6000


def test_leaving_before_a_whole_answer_aborts_it(idle):
    before = idle.metrics()["stille_generation_tokens_total"]
    body = {"model": idle.model, "messages": ASK, "max_tokens": 12_000, "temperature": 0}
    with httpx.Client(base_url=idle.base) as client, pytest.raises(httpx.ReadTimeout):
        client.post("/v1/messages", json=body, timeout=0.5)
    assert idle.wait_idle()["stille_generation_tokens_total"] - before < 6000
