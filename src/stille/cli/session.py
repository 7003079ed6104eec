"""An engine for the length of a command, driven from ordinary blocking code."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Coroutine, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from stille.cli.download import fetch, stderr_console

if TYPE_CHECKING:
    from stille.engine.async_llm import AsyncLLM
    from stille.engine.config import EngineConfig
    from stille.engine.outputs import OutputDelta
    from stille.engine.sampling_params import SamplingParams
    from stille.engine.streams import RequestStream

T = TypeVar("T")


class Session:
    """A started `AsyncLLM` and the event loop that it reports to.

    Ctrl-C during `run` or `stream` cancels what is running and raises KeyboardInterrupt; the engine stays usable.
    """

    def __init__(self, engine: AsyncLLM, loop: asyncio.AbstractEventLoop):
        self.engine = engine
        self.loop = loop
        self._interrupted = False
        self._task: asyncio.Task | None = None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end."""
        with self._interruptible():
            return self._run(work)

    def stream(self, prompt: list[int], params: SamplingParams) -> Iterator[OutputDelta]:
        """The deltas of one request. Leaving the loop early, or Ctrl-C, aborts the request."""

        async def begin() -> RequestStream:
            return self.engine.generate(prompt, params)

        with self._interruptible():
            stream = self._run(begin())
            try:
                while (delta := self._run(_next(stream))) is not None:
                    yield delta
            finally:
                self.loop.run_until_complete(stream.aclose())

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        self._task = self.loop.create_task(work)
        if self._interrupted:
            self._task.cancel()
        try:
            return self.loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None
        finally:
            self._task = None

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """SIGINT cancels the running task, or the next one if it comes between two."""

        def on_interrupt(*_: object) -> None:
            self._interrupted = True
            if self._task is not None:
                self.loop.call_soon_threadsafe(self._task.cancel)

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._interrupted = False
        previous = signal.signal(signal.SIGINT, on_interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)


async def _next(stream: RequestStream) -> OutputDelta | None:
    return await anext(stream, None)


@contextlib.contextmanager
def open_session(config: EngineConfig, *, quiet: bool = False) -> Iterator[Session]:
    """Fetch the model if it is absent, load it, start the engine; close it at the end."""
    fetch(config.model, quiet=quiet)
    from stille.engine.async_llm import AsyncLLM

    loop = asyncio.new_event_loop()
    try:
        with stderr_console(quiet).status(f"Loading {config.model}"):
            engine = AsyncLLM(config)
            loop.run_until_complete(engine.start())
        try:
            yield Session(engine, loop)
        finally:
            loop.run_until_complete(engine.close())
    finally:
        loop.close()
