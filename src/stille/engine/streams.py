"""Pieces of answers on their way from the engine's thread to those who read them in event loops."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable

from stille.engine.outputs import OutputDelta

EASY_S = 0.001
"""What readers may take for a delivery without a rest after it."""

MOST_REST_S = 0.02


class RequestStream(AsyncIterator[OutputDelta]):
    """Pieces of one request's answers, in order; ends after the last piece of the last answer.

    Ending it early (`aclose`, leaving `async with`, cancelling the task that waits in it, or dropping the last
    reference) aborts the request.

    Args:
        request_id, prompt_ids: see below.
        abort: ends the request.
        whole: pieces stay with the engine until the request has ended, and come as one of each answer.

    Attributes:
        request_id: the request's id.
        prompt_ids: its prompt's tokens.
        cached_tokens: how many of them were in the prefix cache; None until the first piece has come.
        kept: the pieces that stay with the engine; None: they are delivered.
    """

    def __init__(self, request_id: str, prompt_ids: list[int], abort: Callable[[str], None], whole: bool = False):
        self.request_id = request_id
        self.prompt_ids = prompt_ids
        self.cached_tokens: int | None = None
        self.loop = asyncio.get_running_loop()
        self.kept: Joined | None = Joined() if whole else None
        self._abort_request = abort
        self._pieces: deque[OutputDelta] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._complete = False
        self._closed = False
        self._error: Exception | None = None

    def __aiter__(self) -> RequestStream:
        return self

    async def __anext__(self) -> OutputDelta:
        if not self._pieces and not await self._more():
            raise StopAsyncIteration
        return self._pieces.popleft()

    async def take(self) -> list[OutputDelta]:
        """Everything that has come since the last reading, as one piece of each answer; waits until there is something.
        Empty: the stream has ended. Who reads seldom has less to do this way than piece by piece."""
        if not self._pieces and not await self._more():
            return []
        if len(self._pieces) == 1:
            return [self._pieces.popleft()]
        pieces = joined(self._pieces)
        self._pieces.clear()
        return pieces

    async def _more(self) -> bool:
        """Waits for a piece; false at the end."""
        while not self._pieces:
            if self._error is not None:
                raise self._error
            if self._complete or self._closed:
                return False
            self._waiter = self.loop.create_future()
            try:
                await self._waiter
            except asyncio.CancelledError:
                self._abort()
                raise
            finally:
                self._waiter = None
        return True

    async def __aenter__(self) -> RequestStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Aborts the request unless it is finished; the iterator then ends."""
        self._abort()
        self._closed = True
        self._pieces.clear()
        self._wake()

    def __del__(self) -> None:
        self._abort()

    def _abort(self) -> None:
        if not (self._complete or self._closed or self._error):
            self._abort_request(self.request_id)

    # In the reader's loop, called for the engine's thread

    def deliver(self, news: OutputDelta | Exception) -> None:
        """The next piece, or why there are no more."""
        if isinstance(news, Exception):
            self._error = news
        else:
            if not self._closed:
                self._pieces.append(news)
            self._complete = self._complete or news.usage is not None
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


Parcel = tuple[RequestStream, OutputDelta | Exception]


class Outbox:
    """From the engine's thread into one event loop, in order.

    A delivery takes all that has come since the one before. One whose readers take long is followed by a rest of the
    same length: what comes meanwhile reaches them together, and the engine's thread gets at Python's lock, for which it
    would have to wait at each of its calls otherwise.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self.loop = loop
        self._lock = threading.Lock()  # guards what follows
        self._parcels: list[Parcel] = []
        self._on_its_way = False

    def send(self, parcels: Iterable[Parcel]) -> bool:
        """From any thread; false if the loop is closed, so that nobody waits there any more."""
        if self.loop.is_closed():
            return False
        with self._lock:
            self._parcels += parcels
            if self._on_its_way:
                return True
            self._on_its_way = True
        try:
            self.loop.call_soon_threadsafe(self._deliver)
        except RuntimeError:  # closed in this moment
            return False
        return True

    # In the loop

    def _deliver(self) -> None:
        begun = time.perf_counter()
        with self._lock:
            parcels, self._parcels = self._parcels, []
        for stream, news in parcels:
            stream.deliver(news)
        self.loop.call_soon(self._delivered, begun)  # after the readers that this has woken

    def _delivered(self, begun: float) -> None:
        took = time.perf_counter() - begun
        if took > EASY_S:
            self.loop.call_later(min(took, MOST_REST_S), self._go_on)
        else:
            self._go_on()

    def _go_on(self) -> None:
        with self._lock:
            self._on_its_way = bool(self._parcels)
        if self._on_its_way:
            self._deliver()


class Joined:
    """Pieces of one request put together as they come, which keeps few objects: collecting garbage looks at each."""

    def __init__(self) -> None:
        self._answers: dict[int, tuple[OutputDelta, list[str]]] = {}

    def add(self, piece: OutputDelta) -> None:
        """The next piece, which stays as it is."""
        answer = self._answers.pop(piece.index, None) or (OutputDelta(piece.request_id, piece.index, "", []), [])
        self._answers[piece.index] = answer  # the last now
        whole, texts = answer
        texts.append(piece.text)
        whole.token_ids += piece.token_ids
        if piece.logprobs is not None:
            whole.logprobs = whole.logprobs or []
            whole.logprobs += piece.logprobs
        if piece.finish_reason is not None:
            whole.finish_reason, whole.stop_reason = piece.finish_reason, piece.stop_reason
        if piece.usage is not None:
            whole.usage = piece.usage

    def pieces(self) -> list[OutputDelta]:
        """One of each answer, in the order in which the answers' last pieces came."""
        for whole, texts in self._answers.values():
            whole.text = "".join(texts)
        return [whole for whole, _ in self._answers.values()]


def joined(pieces: Iterable[OutputDelta]) -> list[OutputDelta]:
    """See `Joined`."""
    together = Joined()
    for piece in pieces:
        together.add(piece)
    return together.pieces()
