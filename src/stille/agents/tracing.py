"""OpenTelemetry spans of agents, from outside: wrappers around models, journals and tools.

Needs opentelemetry-api alone, with which nothing is recorded; where spans go is the affair of the SDK that a program
sets up. What messages say is recorded only when it is asked for, and never what is labelled "secret". What tools are
given and give bears no label, so it is never recorded; nor are errors' texts, which may quote it.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider

from stille._version import __version__
from stille.agents.errors import UnknownOutcomeError
from stille.agents.journal import ApprovalRequest, Decision, EffectCall, Journal
from stille.agents.models.base import ChatModel
from stille.agents.tools import Tool, ToolContext
from stille.agents.types import Json, Message, ModelEvent, ModelRequest, Reply

CONVENTIONS = "1.41.0"
"""The semantic conventions that names and values follow: their GenAI part is not stable, so a version is pinned."""

HIDDEN = "[secret]"
"""Recorded in place of what is labelled so."""

_NUMBERED = re.compile(r"[^\w]\w*\d\w*")


def traced_model(
    model: ChatModel,
    *,
    content: bool = False,
    provider: str = "stille",
    local: bool = False,
    tracer_provider: TracerProvider | None = None,
) -> ChatModel:
    """A model whose every answer is a span `chat NAME`.

    Args:
        content: record what messages and tools' definitions say. A request with a secret message makes a secret answer.
        provider: `gen_ai.provider.name`, for example "openai".
        local: it runs in this process, so that its spans are of kind INTERNAL and not CLIENT.
        tracer_provider: None: the global one.
    """
    kind = SpanKind.INTERNAL if local else SpanKind.CLIENT
    return _TracedModel(model, content, provider, kind, _tracer(tracer_provider))


def traced_journal(
    journal: Journal, *, agent: str | None = None, tracer_provider: TracerProvider | None = None
) -> Journal:
    """A journal whose steps, effects and approvals are spans, children of one another as they happen.

    `stille.replayed` tells what was recorded already from what happened now. Keys of effects are recorded: they are
    hashes or identifiers, not contents.

    Args:
        agent: `gen_ai.agent.name`.
    """
    return _TracedJournal(journal, agent, _tracer(tracer_provider))


def traced_tool(tool: Tool, *, tracer_provider: TracerProvider | None = None) -> Tool:
    """A tool whose every attempt is a span `execute_tool NAME`: one that is retried has several."""
    tracer = _tracer(tracer_provider)
    about = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": tool.name, "gen_ai.tool.type": "function"}

    async def run(arguments: Any, context: ToolContext) -> Any:
        call = {"gen_ai.tool.call.id": context.call_id} if context.call_id else {}
        with _spanned(tracer, f"execute_tool {tool.name}", {**about, **call, "stille.effect.kind": tool.effect}):
            return await tool.run(arguments, context)

    return replace(tool, run=run)


@contextmanager
def agent_span(
    name: str,
    *,
    run_id: str | None = None,
    conversation: str | None = None,
    tracer_provider: TracerProvider | None = None,
) -> Iterator[Span]:
    """A span `invoke_agent NAME` around a run; what is traced within is below it.

    Args:
        conversation: `gen_ai.conversation.id`, of several runs with one person.
    """
    attributes: dict[str, Any] = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": name}
    attributes |= {"gen_ai.provider.name": "stille"}
    if run_id is not None:
        attributes["stille.run.id"] = run_id
    if conversation is not None:
        attributes["gen_ai.conversation.id"] = conversation
    with _spanned(_tracer(tracer_provider), f"invoke_agent {name}", attributes) as span:
        yield span


class _TracedModel:
    def __init__(self, model: ChatModel, content: bool, provider: str, kind: SpanKind, tracer: trace.Tracer):
        self.name = model.name
        self._model, self._content, self._provider, self._kind, self._tracer = model, content, provider, kind, tracer

    async def count_tokens(self, request: ModelRequest) -> int:
        return await self._model.count_tokens(request)

    async def stream(self, request: ModelRequest) -> AsyncIterator[ModelEvent]:
        span = self._tracer.start_span(f"chat {self.name}", kind=self._kind, attributes=self._asked(request))
        begun, first, ended = time.perf_counter(), True, False
        events = self._model.stream(request)
        try:
            while True:
                with trace.use_span(span, record_exception=False, set_status_on_exception=False):
                    try:  # current only while the model works: whoever reads the events has spans of their own
                        event = await anext(events)
                    except StopAsyncIteration:
                        return
                if first:
                    span.set_attribute("gen_ai.response.time_to_first_chunk", time.perf_counter() - begun)
                    first = False
                if isinstance(event, Reply):  # the last one: who gets it may not ask whether there is another
                    span.set_attributes(self._given(request, event))
                    span.end()
                    ended = True
                yield event
        except BaseException as error:
            if not ended:
                _fail(span, error)
            raise
        finally:
            try:
                if (close := getattr(events, "aclose", None)) is not None:
                    await close()
            finally:
                if not ended:
                    span.end()

    def _asked(self, request: ModelRequest) -> dict[str, Any]:
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": self._provider,
            "gen_ai.request.model": self.name,
            "gen_ai.request.stream": True,
            "gen_ai.request.temperature": request.temperature,
            "gen_ai.output.type": "text" if request.output_schema is None else "json",
        }
        if request.max_tokens is not None:
            attributes["gen_ai.request.max_tokens"] = request.max_tokens
        if request.seed is not None:
            attributes["gen_ai.request.seed"] = request.seed
        if self._content:
            attributes["gen_ai.input.messages"] = _json([_message(message) for message in request.messages])
            tools = [{"type": "function", **tool.model_dump(mode="json")} for tool in request.tools]
            attributes["gen_ai.tool.definitions"] = _json(tools)
        return attributes

    def _given(self, request: ModelRequest, reply: Reply) -> dict[str, Any]:
        reason = {"tool_calls": "tool_call"}.get(reply.finish_reason, reply.finish_reason)
        attributes: dict[str, Any] = {
            "gen_ai.response.finish_reasons": [reason],
            "gen_ai.usage.input_tokens": reply.usage.prompt_tokens,
            "gen_ai.usage.output_tokens": reply.usage.completion_tokens,
            "gen_ai.usage.cache_read.input_tokens": reply.usage.cached_tokens,
        }
        if self._content:
            secret = any("secret" in message.labels for message in request.messages)
            message = _message(reply.message, secret)
            attributes["gen_ai.output.messages"] = _json([{**message, "finish_reason": reason}])
        return attributes


class _TracedJournal:
    def __init__(self, journal: Journal, agent: str | None, tracer: trace.Tracer):
        self.run_id = journal.run_id
        self._journal, self._tracer = journal, tracer
        self._about = {"stille.run.id": journal.run_id} | ({"gen_ai.agent.name": agent} if agent else {})

    async def step(self, name: str, run: Callable[[], Awaitable[Json]]) -> Json:
        kind = _NUMBERED.sub("", name)  # names of spans are few, so that they can be counted
        with self._span(f"step {kind}", {"stille.step": name}) as span:
            ran, noted = _noting(run)
            result = await self._journal.step(name, noted)
            span.set_attribute("stille.replayed", not ran)
            return result

    async def effect(
        self,
        call: EffectCall,
        run: Callable[[str], Awaitable[Json]],
        lookup: Callable[[str], Awaitable[Json | None]] | None = None,
    ) -> Json:
        about = {"gen_ai.tool.name": call.tool, "stille.effect.key": call.key, "stille.effect.kind": call.effect}
        with self._span(f"effect {call.tool}", about) as span:
            ran, noted = _noting(run)
            try:
                result = await self._journal.effect(call, noted, lookup)
            except UnknownOutcomeError:
                span.set_attribute("stille.effect.outcome", "unknown")
                raise
            span.set_attributes({"stille.effect.outcome": "known", "stille.replayed": not ran})
            return result

    async def approval(self, request: ApprovalRequest) -> Decision:
        about = {"gen_ai.tool.name": request.tool, "stille.approval.id": request.id}
        with self._span(f"approval {request.tool}", about) as span:
            decision = await self._journal.approval(request)
            span.set_attribute("stille.approval.verdict", decision.verdict)
            return decision

    def _span(self, name: str, attributes: Mapping[str, Any]) -> Any:
        return _spanned(self._tracer, name, {**self._about, **attributes})


def _tracer(provider: TracerProvider | None) -> trace.Tracer:
    schema = f"https://opentelemetry.io/schemas/{CONVENTIONS}"
    return trace.get_tracer("stille.agents", __version__, provider, schema)


@contextmanager
def _spanned(tracer: trace.Tracer, name: str, attributes: Mapping[str, Any]) -> Iterator[Span]:
    with tracer.start_as_current_span(
        name, attributes=attributes, record_exception=False, set_status_on_exception=False
    ) as span:
        try:
            yield span
        except BaseException as error:
            _fail(span, error)
            raise


def _fail(span: Span, error: BaseException) -> None:
    if isinstance(error, asyncio.CancelledError | GeneratorExit):  # someone wanted no more of it
        span.set_attribute("stille.cancelled", True)
        return
    kind = type(error)
    span.set_attribute(
        "error.type", kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    )
    span.set_status(Status(StatusCode.ERROR))


def _noting(run: Callable[..., Awaitable[Json]]) -> tuple[list[bool], Callable[..., Awaitable[Json]]]:
    """`run`, and a list that is empty until it is called."""
    ran: list[bool] = []

    async def noted(*args: Any) -> Json:
        ran.append(True)
        return await run(*args)

    return ran, noted


def _message(message: Message, secret: bool = False) -> dict[str, Any]:
    """In the conventions' form."""
    secret = secret or "secret" in message.labels
    text: Any = HIDDEN if secret else message.content
    if message.role == "tool":
        return {"role": "tool", "parts": [{"type": "tool_call_response", "id": message.call_id, "response": text}]}
    parts: list[dict[str, Any]] = [{"type": "text", "content": text}] if message.content else []
    for call in message.calls:
        arguments: Any = HIDDEN if secret else call.arguments
        parts.append({"type": "tool_call", "id": call.id, "name": call.name, "arguments": arguments})
    return {"role": message.role, "parts": parts}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
