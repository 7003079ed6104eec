"""What keeps a call to something unreliable from hurting its caller or the other side: retries, a breaker, a limit.

They know nothing of tools: model calls use them as well.
"""

from __future__ import annotations

import asyncio
import contextvars
import email.utils
import logging
import random
import threading
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from stille.agents.errors import AgentError, ModelError, ToolFailedError

T = TypeVar("T")

logger = logging.getLogger(__name__)


class TransientError(AgentError):
    """The other side could not be reached or is too busy; the same call may well succeed later.

    Attributes:
        retry_after_s: what the other side asked to wait; None: it did not say.
        started: False: the other side certainly did nothing.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None, started: bool = True):
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.started = started


class BreakerOpenError(AgentError):
    """A breaker is open: nothing was called.

    Attributes:
        retry_after_s: until it lets a trial through.
    """

    def __init__(self, message: str, retry_after_s: float):
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, kw_only=True)
class Retry:
    """Repeats a call that failed in a way that may pass.

    Attributes:
        attempts: calls in all; 1: no retry.
        base_s: wait before the first retry; each further one is `factor` times as long, up to `max_s`.
        jitter: waits a random part of it ("full jitter"), so that callers that failed together do not return together.
        max_s: longest wait. If the other side asks for a longer one, the call is given up at once.
        on: exceptions after which it is worth trying again.
    """

    attempts: int = 3
    base_s: float = 0.2
    factor: float = 2.0
    jitter: bool = True
    max_s: float = 20.0
    on: tuple[type[BaseException], ...] = (TransientError, ConnectionError, TimeoutError)

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.base_s < 0 or self.factor < 1 or self.max_s < 0:
            raise ValueError(f"attempts has to be 1 or more, base_s and max_s 0 or more, factor 1 or more; got {self}")

    def wait_s(self, failed: int, draw: Callable[[], float] = random.random) -> float:
        """Seconds to wait after `failed` calls (1 or more); `draw` gives numbers in [0, 1)."""
        try:
            wait = min(self.max_s, self.base_s * self.factor ** (failed - 1))
        except OverflowError:
            wait = self.max_s
        return wait * draw() if self.jitter else wait

    async def run(
        self,
        call: Callable[[], Awaitable[T]],
        *,
        name: str = "call",
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        draw: Callable[[], float] = random.random,
    ) -> T:
        """The result of the first call that succeeds; the last error if none does."""
        for failed in range(1, self.attempts + 1):
            try:
                return await call()
            except self.on as error:
                asked_s = getattr(error, "retry_after_s", None) or 0.0
                if failed == self.attempts or asked_s > self.max_s:
                    raise
                wait = max(self.wait_s(failed, draw), asked_s)
                logger.info(
                    "%s failed (%r), attempt %d of %d; again in %.2f s", name, error, failed, self.attempts, wait
                )
                await sleep(wait)
        raise AssertionError("unreachable")


NO_RETRY = Retry(attempts=1)


def is_failure(error: BaseException) -> bool:
    """Whether an error says that the other side is unwell, rather than that it was asked for something wrong."""
    if isinstance(error, AgentError):
        return isinstance(error, TransientError | ToolFailedError | ModelError)
    return isinstance(error, Exception)


def retry_after_s(value: str | None) -> float | None:
    """Seconds that an HTTP Retry-After header asks to wait; None: none, or it cannot be read."""
    if not value:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


class Breaker:
    """Stops calling what keeps failing, and after a while lets one trial call find out whether it is well again.

    Closed: calls pass. Open, after `failures` failures in a row: calls are refused for `cooldown_s` seconds. Half-open:
    one call passes; if it succeeds the breaker closes, otherwise it is open for as long again. May be shared by
    everything that stands on the same service. For one event loop at a time.

    Args:
        counts: tells which errors are failures; all others show that the other side answers.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        failures: int = 5,
        cooldown_s: float = 30.0,
        counts: Callable[[BaseException], bool] = is_failure,
        clock: Callable[[], float] = time.monotonic,
    ):
        if failures < 1 or cooldown_s < 0:
            raise ValueError(f"failures has to be 1 or more, cooldown_s 0 or more; got {failures} and {cooldown_s}")
        self.failures = failures
        self.cooldown_s = cooldown_s
        self._counts = counts
        self._clock = clock
        self._failed = 0
        self._opened: float | None = None
        self._trial = False
        self._generation = 0  # a verdict on a call that began before the last change of state says nothing any more

    @property
    def state(self) -> Literal["closed", "open", "half-open"]:
        if self._opened is None:
            return "closed"
        return "half-open" if self._clock() - self._opened >= self.cooldown_s else "open"

    @asynccontextmanager
    async def guard(self, name: str = "call") -> AsyncIterator[None]:
        """Around one call.

        Raises:
            BreakerOpenError: it must not be made now.
        """
        state = self.state
        if state == "open" or (state == "half-open" and self._trial):
            left = 0.0 if self._opened is None else max(0.0, self._opened + self.cooldown_s - self._clock())
            raise BreakerOpenError(
                f"{name} is not called: it failed {self._failed} times in a row; next trial in {left:.1f} s", left
            )
        trial = self._trial = state == "half-open"
        generation = self._generation
        try:
            yield
        except Exception as error:
            self._settle(generation, failed=self._counts(error))
            raise
        except BaseException:  # cancelled: no verdict, but the place of the trial is free again
            if trial and generation == self._generation:
                self._trial = False
            raise
        self._settle(generation, failed=False)

    def _settle(self, generation: int, *, failed: bool) -> None:
        if generation != self._generation:
            return
        was_open = self._opened is not None
        self._failed = self._failed + 1 if failed else 0
        if failed and (was_open or self._failed >= self.failures):
            self._opened = self._clock()
        elif not failed:
            self._opened = None
        if was_open or self._opened is not None:
            self._generation += 1
            self._trial = False


class Limiter:
    """At most `limit` at a time in each event loop, in the order of arrival. Used with `async with`."""

    def __init__(self, limit: int):
        if limit < 1:
            raise TypeError(f"a limit of calls at a time has to be 1 or more; got {limit}")
        self.limit = limit
        # A semaphore belongs to the loop that first waited for it, but a tool may outlive several loops.
        self._of_loop: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore]
        self._of_loop = weakref.WeakKeyDictionary()

    async def __aenter__(self) -> None:
        await self._of_loop.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(self.limit)).acquire()

    async def __aexit__(self, *error: object) -> None:
        self._of_loop[asyncio.get_running_loop()].release()


async def in_thread(function: Callable[[], Any]) -> Any:
    """The result of a blocking function, in a thread of its own: one that hangs keeps neither the threads of others
    nor the end of the process waiting."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()
    variables = contextvars.copy_context()

    def settle(result: Any, error: BaseException | None) -> None:
        if future.done():  # its time was over
            return
        if error is None:
            future.set_result(result)
        elif isinstance(error, Exception) and not isinstance(error, StopIteration):
            future.set_exception(error)
        else:  # what would end the loop, or what a future refuses
            future.set_exception(RuntimeError(f"the function raised {error!r}"))

    def work() -> None:
        result, error = None, None
        try:
            result = variables.run(function)
        except BaseException as raised:
            error = raised
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, name="tool", daemon=True).start()
    return await future
