"""The engine as a model of agents, in the same process: calls that are forbidden or malformed cannot be expressed."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

from stille.agents.errors import ModelError
from stille.agents.models.arguments import parsed_arguments
from stille.agents.types import CallDelta, Message, ModelEvent, ModelRequest, Reply, TextDelta, ToolCall, Usage
from stille.engine.async_llm import AsyncLLM, RequestStream
from stille.engine.grammar import Grammar
from stille.engine.sampling_params import SamplingParams
from stille.engine.tool_calls import CallStart, Content, Event, ToolCallParser
from stille.engine.tool_grammar import Function, as_text, call_grammar, described, knows_tools
from stille.errors import QueueFullError, StilleError


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
        """See `ChatModel`. Requests that the engine has no place for wait for one."""
        await self._ready()
        grammar, parser = _form(request)
        try:
            params = SamplingParams(
                max_tokens=request.max_tokens, temperature=request.temperature, seed=request.seed, grammar=grammar
            )
            await asyncio.to_thread(self.engine.compile, params)
        except StilleError as error:
            raise ModelError(f"model {self.name}: {error}") from error
        prompt = await self._prompt(request)
        async with await self._start(prompt, params) as pieces:
            answer = _Answer(parser)
            usage, reason = None, None
            try:
                async for piece in pieces:
                    reason, usage = piece.finish_reason, piece.usage
                    for event in answer.feed(piece.text, ended=reason is not None):
                        yield event
            except StilleError as error:
                raise ModelError(f"model {self.name}: {error}") from error
        if reason not in ("stop", "length") or usage is None:
            what = "the engine was closed" if reason == "abort" else "its grammar is too complex; simplify the schemas"
            raise ModelError(f"model {self.name}: the answer was not finished: {what}")
        counted = Usage(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_tokens=usage.cached_tokens,
        )
        yield answer.reply(counted, cut=reason == "length")

    async def _start(self, prompt: list[int], params: SamplingParams) -> RequestStream:
        while True:
            try:
                return self.engine.generate(prompt, params)
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
        def render() -> list[int]:
            names = {call.id: call.name for message in request.messages for call in message.calls}
            plain = [_plain(message, names) for message in request.messages]
            functions = [Function(tool.name, tool.description, tool.parameters) for tool in request.tools]
            if not self._knows_tools:
                return self.engine.render_chat(as_text(plain, functions))
            template = {"tools": [described(function) for function in functions]} if functions else {}
            return self.engine.render_chat(plain, **template)

        try:
            return await asyncio.to_thread(render)
        except (StilleError, RecursionError) as error:
            raise ModelError(f"model {self.name}: {error}") from error


class _Answer:
    """An answer's text as events, and as the message that they add up to."""

    def __init__(self, parser: ToolCallParser | None):
        self._parser = parser
        self._text: list[str] = []
        self._calls: list[tuple[str, list[str]]] = []

    def feed(self, text: str, ended: bool) -> list[ModelEvent]:
        if self._parser is None:
            events: list[Event] = [Content(text)] if text else []
        else:
            events = self._parser.feed(text) + (self._parser.finish() if ended else [])
        return [self._take(event) for event in events]

    def _take(self, event: Event) -> ModelEvent:
        if isinstance(event, Content):
            self._text.append(event.text)
            return TextDelta(text=event.text)
        if isinstance(event, CallStart):
            self._calls.append((event.name, []))
            return CallDelta(index=event.index, name=event.name)
        self._calls[event.index][1].append(event.text)
        return CallDelta(index=event.index, arguments=event.text)

    def reply(self, usage: Usage, cut: bool) -> Reply:
        inside = self._parser is not None and self._parser.inside
        whole = self._calls[:-1] if inside else self._calls
        calls = tuple(
            ToolCall(id=f"call_{uuid.uuid4().hex[:24]}", name=name, arguments=parsed_arguments("".join(pieces)))
            for name, pieces in whole
        )
        message = Message(role="assistant", content="".join(self._text), calls=calls)
        return Reply(message=message, usage=usage, finish_reason="length" if cut else "tool_calls" if calls else "stop")


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
        grammar = call_grammar(open_to, forced=forced, parallel=request.parallel, answer=request.output_schema)
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
