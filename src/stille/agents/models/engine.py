"""The engine as a model of agents, in the same process: calls that are forbidden or malformed cannot be expressed."""

from __future__ import annotations

import asyncio
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Any

from stille.agents.errors import ModelError
from stille.agents.models.arguments import parsed_arguments
from stille.agents.types import CallDelta, Message, ModelEvent, ModelRequest, Reply, TextDelta, ToolCall, Usage
from stille.engine.async_llm import AsyncLLM
from stille.engine.grammar import Grammar
from stille.engine.outputs import OutputDelta
from stille.engine.outputs import Usage as Counted
from stille.engine.quoted import said_in
from stille.engine.sampling_params import SamplingParams
from stille.engine.streams import RequestStream
from stille.engine.tool_calls import CallStart, Content, Event, ToolCallParser
from stille.engine.tool_grammar import Function, as_text, call_grammar, described, knows_tools
from stille.errors import QueueFullError, StilleError

PROMPT_TOKENS = 1 << 18
"""Of prompts that a model keeps; some MiB."""


class EngineModel:
    """A model that runs in this process.

    The grammar of calls is made from the tools that are permitted at the moment, while the prompt tells of all: its
    beginning stays the same, and so in the prefix cache, for every agent that shares it.

    Args:
        engine: an engine, started or not, which stays its owner's; or the name of a model, for which one is made.
        name: None: the model's.
        **config: fields of `EngineConfig`, if a name is given.

    Attributes:
        engine: which answers.
    """

    def __init__(self, engine: AsyncLLM | str = "stille-135m", *, name: str | None = None, **config: Any):
        self._owned = isinstance(engine, str)
        self.engine = AsyncLLM(model=engine, **config) if isinstance(engine, str) else engine
        self.name = name or self.engine.config.model
        self._knows_tools: bool | None = None
        self._prompts = _Prompts()

    async def close(self) -> None:
        """Closes the engine, if it was made here."""
        if self._owned:
            await self.engine.close()

    async def __aenter__(self) -> EngineModel:
        await self._ready()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def count_tokens(self, request: ModelRequest) -> int:
        """Tokens of the prompt, exactly."""
        await self._ready()
        return len(await self._prompt(request))

    async def stream(self, request: ModelRequest) -> AsyncIterator[ModelEvent]:
        """See `ChatModel`. Requests that the engine has no place for wait for one. What has come since an event was
        last asked for comes together."""
        answer, params, prompt = await self._prepared(request)
        async with await self._start(prompt, params) as pieces:
            try:
                while news := await pieces.take():
                    for event in answer.feed(news[0]):
                        yield event
            except StilleError as error:
                raise ModelError(f"model {self.name}: {error}") from error
        yield self._reply(answer)

    async def complete(self, request: ModelRequest) -> Reply:
        """The last event of `stream` alone, which takes much less of the processor than all of them.

        Raises:
            ModelError: as `stream`.
        """
        answer, params, prompt = await self._prepared(request)
        async with await self._start(prompt, params, whole=True) as pieces:
            try:
                while news := await pieces.take():
                    answer.take(news[0])
            except StilleError as error:
                raise ModelError(f"model {self.name}: {error}") from error
        return self._reply(answer)

    async def _prepared(self, request: ModelRequest) -> tuple[_Answer, SamplingParams, list[int]]:
        await self._ready()
        grammar, parser = _form(request)
        try:
            params = SamplingParams(
                max_tokens=request.max_tokens, temperature=request.temperature, seed=request.seed, grammar=grammar
            )
            if not self.engine.compiled(params):
                await asyncio.to_thread(self.engine.compile, params)
        except StilleError as error:
            raise ModelError(f"model {self.name}: {error}") from error
        return _Answer(parser), params, await self._prompt(request)

    def _reply(self, answer: _Answer) -> Reply:
        reason, usage = answer.reason, answer.usage
        if reason not in ("stop", "length") or usage is None:
            what = "the engine was closed" if reason == "abort" else "its grammar is too complex; simplify the schemas"
            raise ModelError(f"model {self.name}: the answer was not finished: {what}")
        counted = Usage(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_tokens=usage.cached_tokens,
        )
        return answer.reply(counted, cut=reason == "length")

    async def _start(self, prompt: list[int], params: SamplingParams, whole: bool = False) -> RequestStream:
        while True:
            try:
                return self.engine.generate(prompt, params, whole=whole)
            except QueueFullError as error:
                await asyncio.sleep(error.retry_after_s)
            except StilleError as error:
                raise ModelError(f"model {self.name}: {error}") from error

    async def _ready(self) -> None:
        if self.engine.health != "ready":
            try:
                await self.engine.start()
            except StilleError as error:
                raise ModelError(f"model {self.name} cannot be started: {error}") from error
        if self._knows_tools is None:
            self._knows_tools = knows_tools(self.engine.tokenizer)

    async def _prompt(self, request: ModelRequest) -> list[int]:
        known = self._prompts.get(request)
        if known is not None:
            return known

        def render() -> list[int]:
            names = {call.id: call.name for message in request.messages for call in message.calls}
            plain = [_plain(message, names) for message in request.messages]
            functions = [Function(tool.name, tool.description, tool.parameters) for tool in request.tools]
            if not self._knows_tools:
                return self.engine.render_chat(as_text(plain, functions))
            template = {"tools": [described(function) for function in functions]} if functions else {}
            return self.engine.render_chat(plain, **template)

        try:
            prompt = await asyncio.to_thread(render)
        except (StilleError, RecursionError) as error:
            raise ModelError(f"model {self.name}: {error}") from error
        self._prompts.put(request, prompt)
        return prompt


class _Prompts:
    """The last prompts, for conversations are counted before they are asked, and asked more than once.

    They are told apart by which objects their messages and tools are: these are frozen, and kept.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[int, ...], tuple[ModelRequest, list[int]]] = OrderedDict()
        self._tokens = 0

    def get(self, request: ModelRequest) -> list[int] | None:
        key = self._key(request)
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key][1]

    def put(self, request: ModelRequest, prompt: list[int]) -> None:
        # A copy of the lists: whoever asks may change theirs.
        held = request.model_copy(update={"messages": tuple(request.messages), "tools": tuple(request.tools)})
        key = self._key(held)
        if (before := self._kept.pop(key, None)) is not None:
            self._tokens -= len(before[1])
        self._kept[key] = (held, prompt)
        self._tokens += len(prompt)
        while self._tokens > PROMPT_TOKENS:
            _, (_, dropped) = self._kept.popitem(last=False)
            self._tokens -= len(dropped)

    @staticmethod
    def _key(request: ModelRequest) -> tuple[int, ...]:
        return (len(request.messages), *map(id, request.messages), *map(id, request.tools))


class _Answer:
    """An answer's text as events, and as the message that they add up to.

    Attributes:
        reason: why the engine ended it; None until it has.
        usage: what it counted; likewise.
    """

    def __init__(self, parser: ToolCallParser | None):
        self.reason: str | None = None
        self.usage: Counted | None = None
        self._parser = parser
        self._text: list[str] = []
        self._calls: list[tuple[str, list[str]]] = []

    def feed(self, piece: OutputDelta) -> list[ModelEvent]:
        """Events for the next piece."""
        return [_event(event) for event in self.take(piece)]

    def take(self, piece: OutputDelta) -> list[Event]:
        """Adds the next piece."""
        self.reason, self.usage = piece.finish_reason, piece.usage
        if self._parser is None:
            events: list[Event] = [Content(piece.text)] if piece.text else []
        else:
            events = self._parser.feed(piece.text) + (self._parser.finish() if self.reason is not None else [])
        for event in events:
            if isinstance(event, Content):
                self._text.append(event.text)
            elif isinstance(event, CallStart):
                self._calls.append((event.name, []))
            else:
                self._calls[event.index][1].append(event.text)
        return events

    def reply(self, usage: Usage, cut: bool) -> Reply:
        inside = self._parser is not None and self._parser.inside
        whole = self._calls[:-1] if inside else self._calls
        calls = tuple(
            ToolCall(id=f"call_{uuid.uuid4().hex[:24]}", name=name, arguments=parsed_arguments("".join(pieces)))
            for name, pieces in whole
        )
        message = Message(role="assistant", content="".join(self._text), calls=calls)
        return Reply(message=message, usage=usage, finish_reason="length" if cut else "tool_calls" if calls else "stop")


def _event(event: Event) -> ModelEvent:
    if isinstance(event, Content):
        return TextDelta(text=event.text)
    if isinstance(event, CallStart):
        return CallDelta(index=event.index, name=event.name)
    return CallDelta(index=event.index, arguments=event.text)


def _form(request: ModelRequest) -> tuple[Grammar | None, ToolCallParser | None]:
    """What the answer must look like, and what finds the calls in it; None where there cannot be any."""
    open_to = [
        Function(tool.name, tool.description, tool.parameters)
        for tool in request.tools
        if request.permitted is None or tool.name in request.permitted
    ]
    if request.choice == "required" and not open_to:
        raise ModelError("the answer has to be a call, but no tool is permitted; permit one or leave the choice open")
    try:
        if request.choice == "none" or not open_to:
            schema = request.output_schema
            return (None if schema is None else Grammar.json_schema(schema, "output_schema")), None
        forced = request.choice == "required"
        said = said_in({"role": message.role, "content": message.content} for message in request.messages)
        grammar = call_grammar(
            open_to, forced=forced, parallel=request.parallel, answer=request.output_schema, said=said
        )
        return grammar, ToolCallParser(free_text=not forced)
    except StilleError as error:
        raise ModelError(str(error)) from error


def _plain(message: Message, names: dict[str, str]) -> dict[str, Any]:
    """A message as chat templates take it."""
    plain: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.call_id is not None:
        plain |= {"tool_call_id": message.call_id, "name": names.get(message.call_id, "")}
    if message.calls:
        plain["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.calls
        ]
    return plain
