"""The engine as a model: a tiny random one, which only the grammar makes call tools, and the real default model."""

import asyncio
import json

import jsonschema_rs
import pytest

from stille.agents.agent import Agent
from stille.agents.errors import ModelError
from stille.agents.events import Finished
from stille.agents.models.engine import EngineModel
from stille.agents.tools import tool
from stille.agents.types import CallDelta, Message, ModelRequest, Reply, TextDelta, ToolCall, ToolSpec
from stille.engine.async_llm import AsyncLLM
from stille.engine.build import assemble
from stille.engine.config import EngineConfig

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 6}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
}
UNIT = {"type": "object", "properties": {"unit": {"enum": ["C", "F"]}}, "required": ["unit"]}
TOOLS = [
    ToolSpec(name="get_weather", description="The weather of a city.", parameters=CITY),
    ToolSpec(name="set_unit", parameters=UNIT),
    ToolSpec(name="delete_everything"),
]
SCHEMAS = {spec.name: {**spec.parameters, "additionalProperties": False} for spec in TOOLS}
ASK = [Message(role="user", content="What is the weather in Oslo?")]


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint):
    limits = {"kv_cache_tokens": 16384, "max_num_seqs": 4, "max_queue": 4}
    llm = AsyncLLM(model=str(tiny_checkpoint), dtype="fp32", device="cpu", threads=1, **limits)
    asyncio.run(llm.start())
    yield llm
    assert llm.load().waiting == llm.load().foreground == 0
    asyncio.run(llm.close())


async def answered(model, **request):
    """The events of an answer, and the reply, which has to be the last and the sum of the others."""
    request = {"messages": ASK, "tools": TOOLS, "max_tokens": 300, "temperature": 1.0, "seed": 1, **request}
    events = [event async for event in model.stream(ModelRequest(**request))]
    *pieces, reply = events
    assert isinstance(reply, Reply)
    assert "".join(event.text for event in pieces if isinstance(event, TextDelta)) == reply.message.content
    names, written = {}, {}
    for event in pieces:
        if isinstance(event, CallDelta):
            if event.name is not None:
                names[event.index] = event.name
            written[event.index] = written.get(event.index, "") + event.arguments
    for index, call in enumerate(reply.message.calls):
        assert (call.name, call.arguments) == (names[index], json.loads(written[index]))
    assert len(names) - len(reply.message.calls) in ((0, 1) if reply.finish_reason == "length" else (0,))
    return reply


def check(reply, permitted):
    for call in reply.message.calls:
        assert call.name in permitted
        jsonschema_rs.validator_for(SCHEMAS[call.name]).validate(call.arguments)
    assert len({call.id for call in reply.message.calls}) == len(reply.message.calls)


@pytest.mark.parametrize("permitted", [None, {"get_weather"}, {"set_unit", "get_weather"}, {"delete_everything"}])
@pytest.mark.parametrize("parallel", [True, False])
async def test_calls_are_permitted_and_valid_whatever_the_model_wants(tiny, permitted, parallel):
    model = EngineModel(tiny)
    ended = 0
    for seed in range(4):
        reply = await answered(model, choice="required", permitted=permitted, parallel=parallel, seed=seed)
        check(reply, permitted or SCHEMAS)
        assert reply.message.content == ""
        if reply.finish_reason == "tool_calls":
            ended += 1
            assert reply.message.calls
            assert parallel or len(reply.message.calls) == 1
    assert ended


async def test_a_quoted_argument_is_words_that_were_said(tiny):
    quoted = {"type": "object", "properties": {"city": {"type": "string", "x-quoted": True}}, "required": ["city"]}
    asked = {"tools": [ToolSpec(name="get_weather", parameters=quoted)], "choice": "required", "parallel": False}
    for seed in range(3):
        (call,) = (await answered(EngineModel(tiny), seed=seed, **asked)).message.calls
        assert f" {call.arguments['city'].lower()} " in " what is the weather in oslo "


def without_ids(reply):
    calls = [(call.name, call.arguments) for call in reply.message.calls]
    return reply.message.content, calls, reply.finish_reason, reply.usage.completion_tokens


@pytest.mark.parametrize(
    "request_",
    [
        {"choice": "required", "max_tokens": 200},
        {"choice": "required", "max_tokens": 25},
        {"choice": "none", "max_tokens": 30},
        {"tools": (), "output_schema": UNIT | {"additionalProperties": False}},
    ],
)
async def test_a_reply_alone_is_the_streams_last_event(tiny, request_):
    model = EngineModel(tiny)
    for seed in range(3):
        streamed = await answered(model, seed=seed, **request_)
        request = {"messages": ASK, "tools": TOOLS, "temperature": 1.0, "seed": seed, "max_tokens": 300, **request_}
        assert without_ids(await model.complete(ModelRequest(**request))) == without_ids(streamed)


async def test_a_reply_that_is_cancelled_or_cannot_be_finished(tiny, tiny_checkpoint):
    model = EngineModel(tiny)
    aborted = tiny.stats().finished["abort"]
    asked = asyncio.create_task(model.complete(ModelRequest(messages=ASK, max_tokens=9000, temperature=1.0)))
    while not tiny.load().foreground:
        await asyncio.sleep(0.005)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    while tiny.load().foreground:
        await asyncio.sleep(0.005)
    assert tiny.stats().finished["abort"] == aborted + 1
    with pytest.raises(ModelError, match="messages is empty"):
        await model.complete(ModelRequest(messages=[], max_tokens=5))
    async with EngineModel(str(tiny_checkpoint), dtype="fp32", device="cpu", kv_cache_tokens=16384) as other:
        asked = asyncio.create_task(other.complete(ModelRequest(messages=ASK, max_tokens=9000, temperature=1.0)))
        while not other.engine.load().foreground:
            await asyncio.sleep(0.005)
        await other.engine.close()
        with pytest.raises(ModelError, match="closed"):
            await asked


async def test_a_prompt_is_made_once_for_the_same_messages_and_tools(tiny, monkeypatch):
    model, made = EngineModel(tiny), []
    monkeypatch.setattr("stille.agents.models.engine.PROMPT_TOKENS", 2000)
    render = tiny.render_chat
    monkeypatch.setattr(tiny, "render_chat", lambda *args, **options: made.append(1) or render(*args, **options))
    messages = list(ASK)
    first = await model.count_tokens(ModelRequest(messages=messages, tools=TOOLS))
    reply = await model.complete(ModelRequest(messages=messages, tools=TOOLS, max_tokens=1, choice="none", seed=3))
    assert (reply.usage.prompt_tokens, len(made)) == (first, 1)
    messages.append(Message(role="user", content="And in Rome?"))
    assert await model.count_tokens(ModelRequest(messages=messages, tools=TOOLS)) > first
    assert await model.count_tokens(ModelRequest(messages=messages)) < first
    equal = [Message(role="user", content="What is the weather in Bonn?")]  # another object, another prompt
    assert await model.count_tokens(ModelRequest(messages=equal, tools=TOOLS)) != 0
    assert len(made) == 4
    for number in range(20):  # more than is kept
        await model.count_tokens(ModelRequest(messages=[Message(role="user", content=f"{number} " * 100)]))
    assert await model.count_tokens(ModelRequest(messages=ASK, tools=TOOLS)) == first
    assert len(made) == 4 + 20 + 1


async def test_the_prompt_is_the_same_whatever_is_permitted(tiny):
    model = EngineModel(tiny)
    counts = {
        await model.count_tokens(ModelRequest(messages=ASK, tools=TOOLS, permitted=permitted, choice=choice))
        for permitted in (None, frozenset(), frozenset({"set_unit"}))
        for choice in ("auto", "required", "none")
    }
    assert len(counts) == 1
    reply = await answered(model, permitted={"set_unit"}, choice="required", parallel=False)
    assert {reply.usage.prompt_tokens} == counts
    again = await answered(model, permitted={"get_weather"}, choice="required", parallel=False)
    assert again.usage.cached_tokens >= 64
    assert again.usage.completion_tokens > 0


@pytest.mark.parametrize("request_", [{"choice": "none"}, {"permitted": set()}, {"tools": ()}])
async def test_without_anything_to_call_there_is_only_text(tiny, request_):
    reply = await answered(EngineModel(tiny), max_tokens=12, **request_)
    assert reply.message.content
    assert reply.message.calls == ()
    assert reply.finish_reason == "length"


ANSWER = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}


async def test_an_answer_follows_its_schema_or_calls(tiny):
    model, kinds = EngineModel(tiny), set()
    for seed in range(12):
        reply = await answered(model, output_schema=ANSWER, permitted={"set_unit"}, parallel=False, seed=seed)
        kinds.add(bool(reply.message.calls))
        check(reply, {"set_unit"})
        if not reply.message.calls:
            jsonschema_rs.validator_for(ANSWER).validate(json.loads(reply.message.content))
    assert kinds == {True, False}
    alone = await answered(model, output_schema=ANSWER, tools=())
    jsonschema_rs.validator_for(ANSWER).validate(json.loads(alone.message.content))


@pytest.mark.parametrize("limit", [1, 9, 20, 40])
async def test_a_call_that_is_cut_is_left_out(tiny, limit):
    reply = await answered(EngineModel(tiny), choice="required", permitted={"get_weather"}, max_tokens=limit)
    assert reply.finish_reason == "length"
    check(reply, {"get_weather"})
    assert reply.message.content == ""


async def test_calls_and_results_are_shown_as_text_to_a_template_without_tools(tiny):
    call = ToolCall(id="c1", name="set_unit", arguments={"unit": "C"})
    messages = [*ASK, Message(role="assistant", calls=(call,)), Message(role="tool", call_id="c1", content="degrees")]
    model = EngineModel(tiny)
    prompt = await model._prompt(ModelRequest(messages=messages, tools=TOOLS))
    text = tiny.tokenizer.decode(prompt)
    assert '<tool_call>\n{"name": "set_unit", "arguments": {"unit": "C"}}\n</tool_call>' in text
    assert "<tool_response>\ndegrees\n</tool_response>" in text
    assert '{"name": "get_weather", "description": "The weather of a city.", "parameters": ' in text


async def test_leaving_early_stops_the_engine(tiny):
    stream = EngineModel(tiny).stream(ModelRequest(messages=ASK, temperature=1.0, max_tokens=4000, seed=3))
    async for event in stream:
        assert isinstance(event, TextDelta)
        break
    assert tiny.load().foreground == 1
    await stream.aclose()
    async with asyncio.timeout(20):
        while tiny.load().foreground:
            await asyncio.sleep(0.005)


async def test_more_agents_than_the_engine_has_places_wait(tiny):
    model = EngineModel(tiny)
    replies = await asyncio.gather(*(answered(model, max_tokens=4, tools=(), seed=seed) for seed in range(10)))
    assert all(reply.usage.completion_tokens == 4 for reply in replies)


@pytest.mark.parametrize(
    ("request_", "match"),
    [
        ({"choice": "required", "permitted": set()}, "no tool is permitted"),
        ({"tools": [ToolSpec(name="f", parameters={"type": "object", "properties": {"a": {"type": "x"}}})]}, "grammar"),
        ({"output_schema": {"type": "banana"}, "tools": ()}, "grammar"),
        ({"messages": [Message(role="user", content="x " * 40_000)]}, "tokens"),
        ({"messages": []}, "messages is empty"),
        ({"temperature": -1}, "temperature"),
    ],
)
async def test_what_cannot_be_served_is_a_model_error(tiny, request_, match):
    request_ = {"tools": (), **request_} if "messages" in request_ else request_
    with pytest.raises(ModelError, match=match):
        await answered(EngineModel(tiny), **request_)


async def test_a_model_of_its_own_is_started_and_closed(tiny_checkpoint):
    async with EngineModel(str(tiny_checkpoint), name="t", dtype="fp32", device="cpu", kv_cache_tokens=1024) as model:
        assert model.name == "t"
        assert (await answered(model, tools=(), max_tokens=2)).usage.completion_tokens == 2
    assert model.engine.health == "closed"
    with pytest.raises(ModelError, match="closed"):
        await answered(model)
    with pytest.raises(ModelError, match="cannot be started"):
        await answered(EngineModel("/nowhere/at-all"))


@pytest.fixture(scope="module")
def real(default_model):
    config = EngineConfig(dtype="fp32", device="cpu", max_model_len=2048, kv_cache_tokens=8192, max_num_seqs=4)
    llm = AsyncLLM.from_engine(assemble(default_model, config))
    asyncio.run(llm.start())
    yield llm
    asyncio.run(llm.close())


@tool
def lookup(city: str) -> str:
    """The capital's weather, by the city's name."""
    return f"{city}: rain, 7 degrees"


async def test_agents_find_each_others_work_in_the_prefix_cache(real):
    model = EngineModel(real)
    instructions = "You answer questions about the weather. " + "Be exact and polite. " * 12

    def made(name, **options):
        options = {"instructions": instructions, "tools": [lookup], "max_tokens": 6, **options}
        return Agent(name=name, model=model, **options)

    first = await made("one", require_call=True, parallel=False, max_tokens=40, max_turns=2).run("Weather in Oslo?")
    assert first.calls[0].call.name == "lookup"
    assert first.calls[0].outcome == "done"
    assert first.usage.cached_tokens >= 64  # its second turn found its first
    second = await made("two").run("And in Rome, please?")
    assert second.usage.cached_tokens >= 128  # the instructions and tools of the first agent
    asked = second.usage.prompt_tokens
    more = await made("three", max_turns=1).run("Is that warm?", history=second.messages)
    assert more.usage.cached_tokens >= asked // 64 * 64  # all of the second's conversation, up to its last page
    assert more.usage.prompt_tokens > asked


class Delegates(EngineModel):
    """The engine computes its prompts, but the first answer is a call that it would take it long to write."""

    call = ToolCall(id="c", name="ask_below", arguments={"task": "Name a colour."})

    async def stream(self, request):
        calls = () if request.messages[-1].role == "tool" else (self.call,)
        async for event in super().stream(request.model_copy(update={"max_tokens": 1, "choice": "none"})):
            if isinstance(event, Reply):
                message = Message(role="assistant", content=event.message.content, calls=calls)
                yield Reply(message=message, usage=event.usage)


async def test_a_shared_sub_agent_finds_the_conversation_in_the_prefix_cache(real):
    below = Agent(
        name="below", model=EngineModel(real), instructions="You are brief.", tools=[lookup], max_tokens=4, max_turns=1
    )
    ask = below.as_tool("ask_below", "Asks someone who is brief.", shared=True)
    above = Agent(name="above", model=Delegates(real), instructions="You delegate. " * 30, tools=[ask])
    seen = []
    run = await above.run("What is the weather like?", observe=seen.append)
    finished = [event.run for event in seen if isinstance(event, Finished)]
    assert [one.agent for one in finished] == ["below", "above"]
    turns = [finished[0].usage.prompt_tokens, run.usage.prompt_tokens - finished[0].usage.prompt_tokens]
    assert finished[0].usage.cached_tokens >= 192
    assert run.usage.cached_tokens >= 2 * 192  # and the agent that asked it goes on from its own
    assert all(turn > 192 for turn in turns)


async def test_an_answer_of_a_type_on_the_real_model(real):
    agent = Agent(name="typed", model=EngineModel(real), output=dict[str, bool], max_tokens=200, max_turns=1)
    run = await agent.run('Is snow white? Answer like {"white": true}.')
    assert isinstance(run.output, dict)
    assert all(isinstance(value, bool) for value in run.output.values())
