"""The streaming API: one engine thread, any number of asynchronous consumers."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np

from stille.engine.build import Engine, build_engine
from stille.engine.config import EngineConfig
from stille.engine.core import EngineCore
from stille.engine.embedding import Embedder
from stille.engine.executor import ExpertRange
from stille.engine.outputs import OutputDelta
from stille.engine.prompts import Prompts
from stille.engine.sampling_params import SamplingParams
from stille.engine.stats import EngineStats, Load
from stille.engine.streams import Outbox, Parcel, RequestStream
from stille.errors import EngineClosedError, EngineFailedError, InvalidRequestError

logger = logging.getLogger(__name__)

background: ContextVar[bool] = ContextVar("background", default=False)
"""Set around requests that should only use what others leave: `AsyncLLM.load` counts them apart, so that who makes them
can hold back. It changes nothing in how a request is served."""


class AsyncLLM:
    """An engine for many concurrent streams. The model is loaded and run in one background thread.

    Every method may be called from any thread; `generate` needs a running event loop and delivers into it.

    Args:
        config: the engine's settings.
        **overrides: fields of `EngineConfig` in place of a config.

    Attributes:
        config: the settings; resolved once started.
        tokenizer, model_name, max_model_len: of the model; set by `start`.

    Example:
        >>> async with AsyncLLM() as llm:
        ...     async for piece in llm.generate("Once upon a time", SamplingParams(max_tokens=50)):
        ...         print(piece.text, end="")
    """

    tokenizer: Any
    model_name: str
    max_model_len: int
    experts: ExpertRange | None
    prompts: Prompts

    def __init__(self, config: EngineConfig | None = None, **overrides: Any):
        self.config = config if config is not None else EngineConfig(**overrides)
        self._engine: Engine | None = None
        self._core: EngineCore | None = None
        self._embedder: Embedder | None = None
        self._thread: threading.Thread | None = None
        self._started = threading.Event()
        self._wake = threading.Condition()  # guards what follows
        self._inbox: deque[tuple[str, list[int], SamplingParams, float]] = deque()
        self._aborts: deque[str] = deque()
        # Weak: a stream that its consumer has dropped must be able to notice (and abort).
        self._streams: dict[str, weakref.ref[RequestStream]] = {}
        self._outboxes: dict[asyncio.AbstractEventLoop, Outbox] = {}  # of the engine's thread
        self._background: dict[str, int] = {}  # sequences of the unfinished requests that were made in the background
        self._state = "new"
        self._failure: Exception | None = None
        self._ids = itertools.count()

    @classmethod
    def from_engine(cls, engine: Engine) -> AsyncLLM:
        """Around an engine that is built already; `start` it all the same."""
        llm = cls(engine.core.config)
        llm._engine = engine
        return llm

    # Life cycle

    @property
    def health(self) -> str:
        """new, starting, ready, draining, closed or failed."""
        return self._state

    @property
    def failure(self) -> Exception | None:
        """What made the engine fail."""
        return self._failure

    async def start(self) -> None:
        """Loads the model and starts the engine's thread; returns when requests can be served.

        Raises:
            StilleError: the model cannot be found, loaded or run.
            EngineClosedError: the engine was closed.
        """
        with self._wake:
            if self._state not in ("new", "starting", "ready"):
                raise EngineClosedError(f"this engine is {self._state}; make a new one")
            if self._thread is None:
                self._state = "starting"
                self._thread = threading.Thread(target=self._main, name="stille-engine", daemon=True)
                self._thread.start()
        await asyncio.to_thread(self._started.wait)
        if self._failure is not None:
            raise self._failure

    async def drain(self, timeout: float | None = None) -> bool:
        """Takes no more requests and waits for those there are.

        Args:
            timeout: seconds to wait at most.

        Returns:
            Whether all of them finished; if not, they go on until `close`.
        """
        with self._wake:
            if self._state == "ready":
                self._state = "draining"
        end = None if timeout is None else time.monotonic() + timeout
        while self._streams and self._state == "draining":
            if end is not None and time.monotonic() >= end:
                return False
            await asyncio.sleep(0.02)
        return not self._streams

    async def close(self) -> None:
        """Aborts what runs, ends the thread and lets go of the model. May be called again."""
        with self._wake:
            if self._state not in ("closed", "failed"):
                self._state = "closed"
            self._wake.notify()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    async def __aenter__(self) -> AsyncLLM:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # Requests

    def generate(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        request_id: str | None = None,
        whole: bool = False,
    ) -> RequestStream:
        """Queues a request at once, whether or not the stream is read.

        Args:
            prompt: text or token ids.
            params: None = the defaults.
            request_id: unique among the unfinished; None = made here.
            whole: the stream gives one piece of each answer, when all are finished. It costs the host least.

        Raises:
            InvalidRequestError, PromptTooLongError: the request can never be served.
            QueueFullError: too many are waiting.
            EngineClosedError: not started, draining or closed.
            EngineFailedError: the engine broke down.
        """
        arrival = time.perf_counter()
        params = params or SamplingParams()
        core = self._ready_core()
        prompt_ids = self.prompts.ids(prompt)
        core.check(prompt_ids, params)
        with self._wake:
            self._ready_core()
            request_id = request_id or f"gen-{next(self._ids)}"
            if request_id in self._streams:
                raise InvalidRequestError(f"request id {request_id!r} is in use; ids must be unique", "request_id")
            core.check_queue(also_waiting=len(self._inbox))
            stream = RequestStream(request_id, prompt_ids, self.abort, whole)
            self._streams[request_id] = weakref.ref(stream)
            if background.get():
                self._background[request_id] = params.n
            self._inbox.append((request_id, prompt_ids, params, arrival))
            self._wake.notify()
        return stream

    async def embed(self, inputs: Sequence[Sequence[int]]) -> np.ndarray:
        """Embeddings of token ids: the mean of the model's last hidden states, scaled to length 1.

        Computed between the steps of what is generated. A cancelled call computes no more.

        Returns:
            float32 [inputs, hidden size].

        Raises:
            InvalidRequestError, PromptTooLongError: an input can never be embedded; `embedding_limit` tokens can.
            QueueFullError, EngineClosedError, EngineFailedError: as `generate`.
        """
        with self._wake:
            self._ready_core()
            assert self._embedder is not None, "the engine is ready"
            job = self._embedder.add(inputs)
            self._wake.notify()
        return await asyncio.wrap_future(job.future)

    @property
    def embedding_limit(self) -> int:
        """Most tokens of an input of `embed`."""
        self._ready_core()
        assert self._embedder is not None, "the engine is ready"
        return self._embedder.limit

    @property
    def embedding_size(self) -> int:
        """Numbers of an embedding: the model's hidden size."""
        self._ready_core()
        assert self._embedder is not None, "the engine is ready"
        return self._embedder.width

    def compiled(self, params: SamplingParams) -> bool:
        """Whether `compile` has nothing to do.

        Raises:
            EngineClosedError, EngineFailedError: as `generate`.
        """
        return params.grammar is None or self._ready_core().grammars.knows(params.grammar)

    def compile(self, params: SamplingParams) -> None:
        """Compiles a request's grammar, if it has one, so that `generate` finds it done; may take a tenth of a second.

        Raises:
            InvalidRequestError: it cannot be compiled.
            UnsupportedError: grammars do not work with this model's tokenizer.
            EngineClosedError, EngineFailedError: as `generate`.
        """
        if params.grammar is not None:
            self._ready_core().grammars.matcher(params.grammar)

    def abort(self, request_id: str) -> None:
        """Ends a request: its stream gets a last piece with finish_reason "abort". Unknown ids are no error."""
        with self._wake:  # re-entrant, for this may run in a destructor
            if request_id in self._streams:
                self._aborts.append(request_id)
                self._wake.notify()

    def render_chat(self, messages: Sequence[Any], **template: Any) -> list[int]:
        """Token ids of a conversation in the model's chat format; see `Prompts.render_chat`."""
        return self.prompts.render_chat(messages, **template)

    def stats(self) -> EngineStats:
        """Counters, gauges and histograms.

        Raises:
            EngineClosedError: not started.
        """
        if self._core is None:
            raise EngineClosedError("the engine is not started")
        with self._wake:
            stats = self._core.stats()
            return dataclasses.replace(stats, queue_depth=stats.queue_depth + len(self._inbox))

    def load(self) -> Load:
        """Who uses the slots now. The engine goes on meanwhile, so it may be off by what a step changes.

        Raises:
            EngineClosedError: not started.
        """
        if self._core is None:
            raise EngineClosedError("the engine is not started")
        with self._wake:
            scheduler = self._core.scheduler
            inbox = sum(params.n for _, _, params, _ in self._inbox)
            waiting, behind = len(scheduler.waiting) + inbox, sum(self._background.values())
            return Load(
                slots=self._core.config.max_num_seqs or 0,
                foreground=max(0, scheduler.num_running + waiting - behind),
                background=behind,
                waiting=waiting,
            )

    def _ready_core(self) -> EngineCore:
        if self._state == "failed":
            raise EngineFailedError(f"the engine failed: {self._failure!r}; restart it") from self._failure
        if self._state != "ready" or self._core is None:
            raise EngineClosedError(f"the engine takes no requests: it is {self._state}")
        return self._core

    # The engine's thread

    def _main(self) -> None:
        try:
            engine = self._engine or build_engine(self.config)
            with self._wake:
                self._engine = engine
                self._core, self._embedder = engine.core, Embedder(engine.core)
                self.config = engine.core.config
                self.tokenizer = engine.tokenizer
                self.model_name = engine.model_name
                self.max_model_len = engine.core.max_model_len
                self.experts = engine.core.experts
                self.prompts = Prompts(engine.tokenizer)
                if self._state == "starting":
                    self._state = "ready"
        except Exception as error:
            self._failure = error
            self._state = "failed"
            return
        finally:
            self._started.set()
        try:
            self._serve(engine.core, self._embedder)
        except Exception as error:
            logger.exception("the engine failed")
            self._fail(error)

    def _serve(self, core: EngineCore, embedder: Embedder) -> None:
        while True:
            with self._wake:
                while not (
                    self._inbox or self._aborts or core.has_work or embedder.has_work or self._state == "closed"
                ):
                    self._wake.wait()
                closing = self._state == "closed"
                while self._inbox:
                    core.add(*self._inbox.popleft())
                aborts, self._aborts = self._aborts, deque()
            if not closing:
                embedder.turn()
            deltas = [delta for request_id in aborts for delta in core.abort(request_id)]
            deltas += core.abort_all() if closing else core.step()
            self._dispatch(deltas)
            if closing:
                embedder.fail(EngineClosedError("the engine was closed before the embeddings were computed"))
                return

    def _dispatch(self, deltas: list[OutputDelta]) -> None:
        """Hands pieces to their streams, with one call into each event loop at most."""
        parcels: dict[asyncio.AbstractEventLoop, list[Parcel]] = {}
        for delta in deltas:
            if delta.finish_reason is not None and delta.request_id in self._background:
                self._ended_in_background(delta.request_id)
            reference = self._streams[delta.request_id]
            if delta.usage is not None:
                del self._streams[delta.request_id]
            stream = reference()
            if stream is None:
                continue
            if stream.cached_tokens is None:
                stream.cached_tokens = self._cached_tokens(delta)
            if stream.kept is None:
                parcels.setdefault(stream.loop, []).append((stream, delta))
                continue
            stream.kept.add(delta)
            if delta.usage is not None:
                parcels.setdefault(stream.loop, []).extend((stream, answer) for answer in stream.kept.pieces())
            elif stream.loop.is_closed():
                self.abort(delta.request_id)
        for loop, batch in parcels.items():
            if not self._send(loop, batch):
                for stream, _ in batch:
                    self.abort(stream.request_id)

    def _send(self, loop: asyncio.AbstractEventLoop, parcels: list[Parcel]) -> bool:
        outbox = self._outboxes.get(loop)
        if outbox is None:
            self._outboxes = {each: box for each, box in self._outboxes.items() if not each.is_closed()}
            outbox = self._outboxes[loop] = Outbox(loop)
        return outbox.send(parcels)

    def _ended_in_background(self, request_id: str) -> None:
        with self._wake:
            self._background[request_id] -= 1
            if not self._background[request_id]:
                del self._background[request_id]

    def _cached_tokens(self, delta: OutputDelta) -> int | None:
        request = None if self._core is None else self._core.requests.get(delta.request_id)
        if delta.usage is not None:
            return delta.usage.cached_tokens
        return None if request is None else request.cached_tokens

    def _fail(self, error: Exception) -> None:
        with self._wake:
            self._failure = error
            self._state = "failed"
            self._inbox.clear()
            streams = [stream for reference in self._streams.values() if (stream := reference()) is not None]
            self._streams.clear()
            self._background.clear()
        if self._embedder is not None:
            self._embedder.fail(EngineFailedError(f"the engine failed: {error!r}; restart it"))
        for stream in streams:
            failure = EngineFailedError(f"the engine failed: {error!r}; restart it")
            failure.__cause__ = error
            self._send(stream.loop, [(stream, failure)])
