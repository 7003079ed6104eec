"""Responses at work: in front of a client or in the background, and kept when they are done."""

import asyncio
import logging
import sqlite3
import time
from collections.abc import AsyncGenerator
from typing import Any

from stille.server.answers import ChatAnswer
from stille.server.conversation import chat_prompt, start_chat
from stille.server.errors import ApiError
from stille.server.generation import Generation
from stille.server.response_store import ResponseStore
from stille.server.responses_events import Event, ResponseBuilder
from stille.server.responses_input import Conversation, allowed_names, as_chat, own_names, renamed
from stille.server.schemas.chat import ChatCompletionRequest, InstructionMessage, UserMessage
from stille.server.schemas.responses import ResponseRequest
from stille.server.state import ServerState
from stille.server.streaming import event

log = logging.getLogger("stille.server")


class Responses:
    """All responses of a server: those that are kept, and those that are being made.

    Attributes:
        store: of the kept ones.
        live: of those that will be kept, by id.
    """

    def __init__(self, store: ResponseStore):
        self.store = store
        self.live: dict[str, Run] = {}
        self.tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Wait for what runs in the background, which ends with the engine, and close the store."""
        if self.tasks:
            await asyncio.wait(self.tasks)
        self.store.close()


class EventLog:
    """The events of a background response for the one client that follows it."""

    def __init__(self):
        self._events: list[bytes] = []
        self._ended = False
        self._news = asyncio.Event()

    def append(self, encoded: bytes) -> None:
        self._events.append(encoded)
        self._news.set()

    def end(self) -> None:
        self._ended = True
        self._news.set()

    async def follow(self) -> AsyncGenerator[bytes, None]:
        """All events, from the first."""
        position = 0
        while True:
            while position < len(self._events):
                yield self._events[position]
                position += 1
            if self._ended:
                return
            self._news.clear()
            await self._news.wait()


class Run:
    """One response on its way.

    Args:
        owner: what knows of it while it is live.
        generation: started; whoever delivers closes it.
        answer: reads its text.
        builder: of the response.
        items: that the request asked with.
        stored: it is kept.

    Attributes:
        failure: why it failed, if it did.
    """

    def __init__(
        self,
        owner: Responses,
        generation: Generation,
        answer: ChatAnswer,
        builder: ResponseBuilder,
        items: list[dict[str, Any]],
        stored: bool,
    ):
        self.builder, self.items, self.stored = builder, items, stored
        self.failure: ApiError | None = None
        self._owner, self._generation, self._answer = owner, generation, answer
        self._task: asyncio.Task[None] | None = None
        self._cancelled = False

    @property
    def id(self) -> str:
        return self.builder.response["id"]

    @property
    def in_background(self) -> bool:
        """Whether it runs without a client, and can be cancelled."""
        return self._task is not None

    async def events(self) -> AsyncGenerator[Event, None]:
        """Everything that happens to the response. It is kept before the last event is given out."""
        if self.stored:
            self._owner.live[self.id] = self
        try:
            for happened in self.builder.begin():
                yield happened
            reason = "stop"
            try:
                async for _, delta in self._generation.updates():
                    news, ended = self._answer.feed(delta.text, delta.finish_reason)
                    reason = ended or reason
                    for happened in self.builder.feed(news, delta.logprobs):
                        yield happened
            except Exception as error:
                self.failure = renamed(error)
            if self.failure is not None:
                last = list(self.builder.fail(self.failure))
            elif self._cancelled:
                last = []
                self.builder.stop("cancelled")
            else:
                last = list(self.builder.finish(reason, self._generation.usage()))
            try:
                await self._keep()
            except sqlite3.Error as error:
                log.error("a response could not be kept: %s", error)
                message = f"The response could not be kept ({error}); send store: false, or make room for the server."
                self.failure = ApiError(500, message, code="internal_error", type="server_error")
                last = list(self.builder.fail(self.failure))
            for happened in last:
                yield happened
        finally:
            self._owner.live.pop(self.id, None)

    async def encoded(self) -> AsyncGenerator[bytes, None]:
        """The events as they are sent."""
        async for happened in self.events():
            yield _encoded(happened)

    async def collect(self) -> dict[str, Any]:
        """The response, when it is done.

        Raises:
            ApiError: it failed.
        """
        async for _ in self.events():
            pass
        if self.failure is not None:
            raise self.failure
        return self.builder.response

    async def detach(self, state: ServerState, events: EventLog | None) -> dict[str, Any]:
        """Go on in the background, from where the server's shutdown waits for it; returns the response as it begins.

        Args:
            events: what happens is written there.
        """
        self._owner.live[self.id] = self
        try:
            await self._keep()
        except BaseException:
            del self._owner.live[self.id]
            await self._generation.close()
            raise
        first = dict(self.builder.response)
        state.active += 1
        self._task = asyncio.create_task(self._work(state, events))
        self._owner.tasks.add(self._task)
        self._task.add_done_callback(self._owner.tasks.discard)
        return first

    async def cancel(self) -> None:
        """End a background response; one that has ended meanwhile stays as it is."""
        self._cancelled = True
        await self._generation.close()
        if self._task is not None:
            await asyncio.wait({self._task})

    async def forget(self) -> None:
        """It is not to be kept after all; in the background there is then nobody left to make it for."""
        self.stored = False
        if self.in_background:
            await self.cancel()

    async def _work(self, state: ServerState, events: EventLog | None) -> None:
        try:
            async for happened in self.events():
                if events is not None:
                    events.append(_encoded(happened))
        except Exception:
            log.exception("a background response failed")
        finally:
            state.active -= 1
            if events is not None:
                events.end()
            await self._generation.close()

    async def _keep(self) -> None:
        if self.stored:
            await self._owner.store.put(self.builder.response, self.items)
        if not self.stored:  # deleted while it was written
            await self._owner.store.delete(self.id)


def _encoded(happened: Event) -> bytes:
    return b"event: " + happened["type"].encode() + b"\n" + event(happened)


async def start_response(
    state: ServerState, body: ResponseRequest, talk: Conversation, response_id: str
) -> tuple[Generation, ChatAnswer]:
    """Start the answer to a conversation; what the results need is said at `start_chat`.

    Raises:
        StilleError, ApiError: it cannot be served.
    """
    allowed = allowed_names(body)
    with own_names(talk.places):
        chat = as_chat(body, talk.messages)
        if body.truncation == "auto":
            await _shorten(state, chat, talk)
        generation, answer = await start_chat(
            state, chat, response_id, allowed=allowed, whole=not (body.stream or body.background)
        )
    return generation, answer()


async def count_input(state: ServerState, body: ResponseRequest, talk: Conversation) -> int:
    """Tokens of the prompt that the request makes."""
    with own_names(talk.places):
        return len(await chat_prompt(state, as_chat(body, talk.messages)))


async def _shorten(state: ServerState, chat: ChatCompletionRequest, talk: Conversation) -> None:
    """Drop the oldest turns, as few as possible, until the prompt leaves room for an answer.

    A turn begins with a message of the user. System messages at the beginning stay, and so does the last turn.
    """
    context = state.engine.max_model_len
    room = context - min(chat.token_limit() or context // 4, context // 2)
    messages, places = list(talk.messages), list(talk.places)
    lead = next((i for i, message in enumerate(messages) if not isinstance(message, InstructionMessage)), 0)
    cuts = [lead, *(i for i, message in enumerate(messages) if i > lead and isinstance(message, UserMessage))]

    async def fits(cut: int) -> bool:
        chat.messages = talk.messages = messages[:lead] + messages[cut:]
        talk.places[:] = places[:lead] + places[cut:]  # the list that errors are named by
        return len(await chat_prompt(state, chat)) <= room

    if await fits(cuts[0]):
        return
    first, last = min(1, len(cuts) - 1), len(cuts) - 1
    while first < last:
        middle = (first + last) // 2
        if await fits(cuts[middle]):
            last = middle
        else:
            first = middle + 1
    await fits(cuts[last])


def new_response(body: ResponseRequest, model: str, response_id: str) -> dict[str, Any]:
    """The response to a request before anything of it is written."""
    background = bool(body.background)
    asked, reasoning, choice = body.text and body.text.format, body.reasoning, body.tool_choice
    return {
        "id": response_id,
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "queued" if background else "in_progress",
        "background": background,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": None,
        "model": model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {
            "effort": reasoning.effort if reasoning else None,
            "summary": reasoning.summary if reasoning else None,
        },
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": body.stored(),
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "presence_penalty": body.presence_penalty or 0.0,
        "frequency_penalty": body.frequency_penalty or 0.0,
        "top_logprobs": body.top_logprobs or 0,
        "text": {
            "format": asked.model_dump(by_alias=True) if asked else {"type": "text"},
            "verbosity": "medium",
        },
        "tool_choice": "auto" if choice is None else choice if isinstance(choice, str) else choice.model_dump(),
        "tools": [{**tool.model_dump(), "strict": tool.strict is not False} for tool in body.tools or []],
        "truncation": body.truncation or "disabled",
        "usage": None,
        "user": body.user,
        "metadata": body.metadata or {},
    }
