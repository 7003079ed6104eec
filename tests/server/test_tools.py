"""Tool calls through the official client: the tiny model knows nothing of them, so only the grammar makes them."""

import json

import httpx
import jsonschema_rs
import openai
import pytest

from stille.engine.prompts import Prompts
from stille.engine.tool_grammar import as_text, instruction
from stille.server.prompts import PromptBuilder
from stille.server.schemas.chat import ChatCompletionRequest
from stille.server.tools import as_function

ASK = [{"role": "user", "content": "What is the weather in Oslo?"}]
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 6}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
}
UNIT = {"type": "object", "properties": {"unit": {"enum": ["C", "F"]}}, "required": ["unit"]}


def function(name, parameters=None, **more):
    return {
        "type": "function",
        "function": {"name": name, **({"parameters": parameters} if parameters else {}), **more},
    }


TOOLS = [
    function("get_weather", CITY, description="The weather of a city."),
    function("set_unit", UNIT),
    function("now"),
]
SCHEMAS = {"get_weather": CITY, "set_unit": UNIT, "now": {"type": "object", "maxProperties": 0}}
MARK = "<tool_call>"


@pytest.fixture
def client(idle):
    with openai.OpenAI(base_url=f"{idle.base}/v1", api_key="unused", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
def chat(client, idle):
    def create(messages=ASK, **arguments):
        arguments = {"temperature": 1.0, "max_tokens": 300, "seed": 1, "tools": TOOLS, **arguments}
        return client.chat.completions.create(model=idle.model, messages=messages, **arguments)

    return create


def check_calls(message, names=None):
    for call in message.tool_calls:
        assert call.type == "function"
        assert call.id.startswith("call_")
        assert call.function.name in (names or SCHEMAS)
        jsonschema_rs.validator_for(SCHEMAS[call.function.name]).validate(json.loads(call.function.arguments))
    assert len({call.id for call in message.tool_calls}) == len(message.tool_calls)


def reassembled(stream):
    """(content, [(name, arguments)], finish_reason) of a stream's first choice, its form checked on the way."""
    content, calls, reason = "", [], None
    for chunk in stream:
        (choice,) = chunk.choices
        assert reason is None
        reason = choice.finish_reason
        content += choice.delta.content or ""
        for part in choice.delta.tool_calls or []:
            if part.index == len(calls):
                assert part.id.startswith("call_")
                assert part.type == "function"
                assert part.function.arguments == ""
                calls.append([part.function.name, ""])
            else:
                assert part.index == len(calls) - 1
                assert (part.id, part.type, part.function.name) == (None, None, None)
                assert part.function.arguments
            calls[part.index][1] += part.function.arguments
    return content, [tuple(call) for call in calls], reason


def whole(answer):
    (choice,) = answer.choices
    calls = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls or []]
    return choice.message.content or "", calls, choice.finish_reason


@pytest.mark.parametrize("parallel", [True, False])
def test_required_calls(chat, parallel):
    ended = 0
    for seed in range(3):
        for choice in chat(tool_choice="required", parallel_tool_calls=parallel, n=4, seed=seed * 10).choices:
            if choice.finish_reason == "length":  # one call after another is the grammar's right
                assert parallel
                continue
            ended += 1
            assert choice.finish_reason == "tool_calls"
            assert choice.message.content is None
            check_calls(choice.message)
            assert parallel or len(choice.message.tool_calls) == 1
    assert ended


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_tool_can_be_chosen(chat, idle, name):
    first = str(idle.engine.tokenizer.convert_tokens_to_ids(name[0]))
    answer = chat(tool_choice="required", parallel_tool_calls=False, logit_bias={first: 100}).choices[0]
    check_calls(answer.message, {name})


def test_parallel_calls_come_several_at_once(chat, idle):
    line_feed = str(idle.engine.tokenizer.convert_tokens_to_ids("Ċ"))
    answer = chat(tool_choice="required", logit_bias={line_feed: 100}, max_tokens=400, tools=TOOLS[1:]).choices[0]
    assert answer.finish_reason == "length"
    assert len(answer.message.tool_calls) > 2
    answer.message.tool_calls.pop()
    check_calls(answer.message, {"set_unit", "now"})


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_named_tool_is_called_once(chat, name):
    answer = chat(tool_choice={"type": "function", "function": {"name": name}}).choices[0]
    assert answer.finish_reason == "tool_calls"
    assert len(answer.message.tool_calls) == 1
    check_calls(answer.message, {name})


def test_a_tool_without_parameters_takes_none(chat):
    answer = chat(tool_choice="required", parallel_tool_calls=False, tools=[function("now")])
    assert answer.choices[0].message.tool_calls[0].function.arguments == "{}"


def test_auto_leaves_the_answer_free(chat, client, idle):
    answer = chat(max_tokens=12).choices[0]
    assert answer.finish_reason == "length"
    assert answer.message.content
    assert answer.message.tool_calls is None


@pytest.fixture
def prompted(idle, monkeypatch):
    """Makes the tiny model write a given beginning: the grammar of the request is kept, its first tokens are forced."""
    from stille.engine.grammar import Matcher

    def begin(text):
        ids = idle.engine.tokenizer.encode(text)
        fill, consume, back = Matcher.fill, Matcher.consume, Matcher.back
        place = {"at": 0}

        def forced_fill(self, mask):
            fill(self, mask)
            if place["at"] < len(ids):
                token = ids[place["at"]]
                assert mask[token // 32] >> (token % 32) & 1, "the grammar does not allow the beginning"
                mask[:] = 0
                mask[token // 32] |= 1 << (token % 32) if token % 32 < 31 else -(1 << 31)

        def counted(self, token):
            place["at"] += 1
            return consume(self, token)

        monkeypatch.setattr(Matcher, "fill", forced_fill)

        def counted_back(self, count):
            place["at"] -= count
            back(self, count)

        monkeypatch.setattr(Matcher, "consume", counted)
        monkeypatch.setattr(Matcher, "back", counted_back)

    return begin


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("stream", [True, False])
def test_auto_holds_a_call_that_was_begun_to_its_form(chat, prompted, parallel, stream):
    prompted(f"I look.\n{MARK}")
    answer = chat(parallel_tool_calls=parallel, stream=stream, tools=TOOLS[:2])
    content, calls, reason = reassembled(answer) if stream else whole(answer)
    assert content == "I look."
    assert calls
    assert calls[0][0] in ("get_weather", "set_unit")
    jsonschema_rs.validator_for(SCHEMAS[calls[0][0]]).validate(json.loads(calls[0][1]))
    if not parallel:
        assert len(calls) == 1
        assert reason == "tool_calls"


def test_none_is_as_without_tools(chat):
    answers = [chat(tool_choice="none", max_tokens=12), chat(tools=openai.omit, max_tokens=12)]
    assert answers[0].choices[0].message.content == answers[1].choices[0].message.content
    assert answers[0].usage.prompt_tokens == answers[1].usage.prompt_tokens


@pytest.mark.parametrize("choice", ["required", "auto", {"type": "function", "function": {"name": "get_weather"}}])
@pytest.mark.parametrize("limit", [3, 20, 40, 80, 300])
def test_streamed_and_whole_are_equal_wherever_they_end(chat, choice, limit):
    arguments = {"tool_choice": choice, "temperature": 0, "max_tokens": limit, "parallel_tool_calls": False}
    answer = chat(**arguments)
    streamed = reassembled(chat(**arguments, stream=True))
    assert streamed == whole(answer)
    if choice != "auto":
        assert answer.choices[0].finish_reason == (
            "length" if answer.usage.completion_tokens == limit else "tool_calls"
        )
        assert answer.choices[0].message.content in (None, "")


def test_many_choices_have_their_own_calls(chat):
    arguments = {"tool_choice": "required", "n": 3, "parallel_tool_calls": False, "max_tokens": 200}
    expected = [
        [(call.function.name, call.function.arguments) for call in choice.message.tool_calls]
        for choice in chat(**arguments).choices
    ]
    chunks = list(chat(**arguments, stream=True))
    for index in range(3):
        mine = [chunk for chunk in chunks if chunk.choices[0].index == index]
        assert reassembled(mine)[1] == expected[index]


def test_log_probabilities_and_usage_count_every_token(chat):
    arguments = {"tool_choice": "required", "parallel_tool_calls": False, "logprobs": True, "temperature": 0}
    answer = chat(**arguments)
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == answer.usage.completion_tokens
    assert "".join(token.token for token in tokens).startswith(MARK)
    streamed = [
        token
        for chunk in chat(**arguments, stream=True)
        if chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content
    ]
    assert [token.token for token in streamed] == [token.token for token in tokens]


def test_a_conversation_goes_on_with_what_tools_returned(chat):
    first = chat(tool_choice="required", parallel_tool_calls=False).choices[0].message
    result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "5 degrees"}
    for message in (first, first.model_dump()):
        assert chat([*ASK, message, result], max_tokens=4).choices[0].message.content
    named = {**result, "name": first.tool_calls[0].function.name, "content": [{"type": "text", "text": "5 degrees"}]}
    assert chat([*ASK, first, named], max_tokens=4, tools=openai.omit).choices


def test_quoted_arguments_are_words_of_users_and_tools(chat):
    text = {"type": "string", "x-quoted": True}
    pair = {"type": "object", "properties": {"a": text, "b": text}, "required": ["a", "b"]}
    messages = [
        {"role": "system", "content": "Never say never"},
        {"role": "user", "content": [{"type": "text", "text": "Weather in Oslo?"}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": '{"warm": "Åse & Bo"}'},
    ]
    for seed in range(3):
        answer = chat(
            messages, tools=[function("f", pair)], tool_choice="required", parallel_tool_calls=False, seed=seed
        )
        (call,) = answer.choices[0].message.tool_calls
        for each in json.loads(call.function.arguments).values():
            assert f" {each.lower()} " in " weather in oslo | åse & bo "


CALL = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo", "days": 1}'}}
AFTER = [
    *ASK,
    {"role": "assistant", "content": None, "tool_calls": [CALL, {**CALL, "id": "c2"}]},
    {"role": "tool", "tool_call_id": "c1", "content": "5"},
    {"role": "tool", "tool_call_id": "c2", "content": "6"},
]


def read(**fields):
    return ChatCompletionRequest.model_validate({"model": "tiny", "messages": AFTER, "tools": TOOLS, **fields})


class Template:
    """An engine as prompts need it, with a chat template that shows what it was given."""

    def __init__(self, tokenizer, template):
        self.tokenizer = tokenizer
        self.tokenizer.chat_template = template
        self.prompts = Prompts(tokenizer)

    def render_chat(self, messages, **template):
        return self.prompts.render_chat(messages, **template)


@pytest.fixture
def rendered(tiny_checkpoint):
    from transformers import AutoTokenizer

    async def render(template, messages=AFTER, tools=TOOLS):
        body = read(messages=messages, tools=tools)
        engine = Template(AutoTokenizer.from_pretrained(tiny_checkpoint), template)
        return engine.tokenizer.decode(await PromptBuilder(engine).chat(body.messages, body.tools or []))

    return render


PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}"
WRITTEN = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo", "days": 1}}\n</tool_call>'


async def test_tools_become_text_for_a_template_that_knows_none(rendered):
    text = await rendered(PLAIN)
    assert text.startswith("[system]You can call functions.")
    assert '\n<tools>\n{"name": "get_weather", "description": "The weather of a city.", "parameters": {' in text
    assert text.endswith(
        f"[user]{ASK[0]['content']}\n[assistant]{WRITTEN}\n{WRITTEN}\n"
        "[user]<tool_response>\n5\n</tool_response>\n<tool_response>\n6\n</tool_response>\n"
    )
    system = {"role": "developer", "content": "Be brief."}
    assert (await rendered(PLAIN, [system, *AFTER])).startswith("[system]Be brief.\n\nYou can call functions.")
    assert (await rendered(PLAIN, ASK, [])) == f"[user]{ASK[0]['content']}\n"


async def test_a_template_that_knows_tools_is_given_them(rendered):
    template = (
        "{% if tools %}{{ tools | tojson }}\n{% endif %}{% for m in messages %}[{{ m.role }}]{{ m.content }}"
        "{% for c in m.tool_calls %}<tool_call>{{ c.function.name }} {{ c.function.arguments | tojson }}{% endfor %}"
        "{{ '\\n' }}{% endfor %}"
    )
    text = await rendered(template)
    listed, *lines = text.splitlines()
    assert [tool["function"]["name"] for tool in json.loads(listed)] == list(SCHEMAS)
    call = '<tool_call>get_weather {"city": "Oslo", "days": 1}'
    assert lines[1:] == [f"[assistant]{call}{call}", "[tool]5", "[tool]6"]


def test_rendering_as_text_changes_nothing_else():
    messages = [{"role": "system", "content": "x"}, {"role": "user", "content": "y", "name": "Ann"}]
    assert as_text(messages) == messages
    assert instruction([as_function(tool) for tool in read().tools]).count("\n{") == len(TOOLS) + 1


def test_tokenize_counts_tools_too(chat, idle):
    answer = chat(max_tokens=2)
    counted = httpx.post(f"{idle.base}/tokenize", json={"messages": ASK, "tools": TOOLS}).json()["count"]
    assert counted == answer.usage.prompt_tokens


def with_schema(parameters):
    return {"tools": [function("f", parameters)]}


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"tool_choice": "required", "tools": []}, "incompatible_parameters", "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "incompatible_parameters", "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "missing_required_parameter", "tool_choice.function"),
        ({"response_format": {"type": "json_object"}}, "incompatible_parameters", "response_format"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "incompatible_parameters", "tools[1].function.name"),
        ({"tools": [function("two words")]}, "invalid_value", "tools[0].function.name"),
        ({"tools": [function("x" * 65)]}, "invalid_value", "tools[0].function.name"),
        ({"tools": [{"type": "function"}]}, "missing_required_parameter", "tools[0].function"),
        ({"tools": [{**TOOLS[0], "more": 1}]}, "unknown_parameter", "tools[0].more"),
        ({"tools": [function(f"f{i}") for i in range(129)]}, ..., "tools"),
        (with_schema({"type": "string"}), "invalid_request", "tools[0].function.parameters"),
        (with_schema({"properties": {}}), "invalid_request", "tools[0].function.parameters"),
        (with_schema({"type": "object", "properties": {"a": {"type": "banana"}}}), "invalid_request", "tools"),
        (with_schema({"type": "object", "properties": {"a": {"$ref": "http://x.org/y"}}}), "invalid_request", "tools"),
        (with_schema({"type": "object", "description": "x" * 300_000}), "invalid_request", "tools"),
        ({"ignore_eos": True}, "invalid_request", "ignore_eos"),
        ({"messages": [*AFTER[:2], {**AFTER[2], "tool_call_id": "c3"}]}, "invalid_prompt", "messages[2].tool_call_id"),
        ({"messages": [*AFTER[:2], {**AFTER[2], "name": "now"}]}, "invalid_prompt", "messages[2].name"),
        ({"messages": [AFTER[2], *AFTER[:2]]}, "invalid_prompt", "messages[0].tool_call_id"),
    ],
    ids=[f"e{i}" for i in range(19)],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_does_not_fit_is_refused_and_named(idle, fields, code, param, stream):
    body = {"model": idle.model, "messages": ASK, "tools": TOOLS, "max_tokens": 4, "stream": stream, **fields}
    response = httpx.post(f"{idle.base}/v1/chat/completions", json=body, timeout=60)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param, error
    assert code in (..., error["code"]), error


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
def test_tools_that_are_nested_deeply_break_nothing(idle, path):
    for depth in (100, 500, 900, 980):
        tools = json.dumps([function("f", {"type": "object", "x": "HERE"})]).replace(
            '"HERE"', "[" * depth + "]" * depth
        )
        body = f'{{"model": "{idle.model}", "messages": {json.dumps(ASK)}, "tools": {tools}, "max_tokens": 4}}'
        if path == "/tokenize":
            body = body.replace(', "max_tokens": 4', "")
        response = httpx.post(idle.base + path, content=body, headers={"Content-Type": "application/json"}, timeout=60)
        assert response.status_code == 400 or (response.status_code == 200 and (depth < 128 or path == "/tokenize")), (
            response.text
        )


def test_a_format_goes_with_tools_that_are_not_used(chat):
    answer = chat(tool_choice="none", response_format={"type": "json_object"}, max_tokens=4)
    assert answer.choices[0].message.content.startswith("{")


def test_a_limit_of_tools_that_is_kept(chat):
    tools = [function(f"f{i}") for i in range(128)]
    answer = chat(tools=tools, tool_choice="required", parallel_tool_calls=False).choices[0]
    assert answer.message.tool_calls[0].function.name in {tool["function"]["name"] for tool in tools}
