from __future__ import annotations

import asyncio
import email.utils
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stille.agents.errors import PolicyError, ToolError
from stille.agents.resilience import Breaker, BreakerOpenError, Limiter, Retry, TransientError, in_thread, retry_after_s


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


class Flaky:
    """Fails with the given errors, then gives "done"."""

    def __init__(self, *errors: BaseException):
        self.errors = list(errors)
        self.calls = 0

    async def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


async def test_retry_waits_longer_each_time_up_to_the_longest():
    clock, flaky = Clock(), Flaky(*[ConnectionError()] * 4)
    retry = Retry(attempts=5, base_s=1, factor=3, max_s=8, jitter=False)
    assert await retry.run(flaky, sleep=clock.sleep) == "done"
    assert (flaky.calls, clock.now) == (5, 1 + 3 + 8 + 8)


async def test_retry_gives_the_last_error_when_attempts_are_spent():
    flaky = Flaky(ConnectionError("first"), TimeoutError("second"), ConnectionError("third"))
    with pytest.raises(TimeoutError, match="second"):
        await Retry(attempts=2).run(flaky, sleep=Clock().sleep)
    assert flaky.calls == 2


@pytest.mark.parametrize("error", [ToolError("no"), ValueError(), asyncio.CancelledError()])
async def test_retry_leaves_other_errors_alone(error: BaseException):
    flaky = Flaky(error)
    with pytest.raises(type(error)):
        await Retry(attempts=5).run(flaky, sleep=Clock().sleep)
    assert flaky.calls == 1


async def test_retry_waits_as_long_as_it_is_asked_to_and_gives_up_if_that_is_too_long():
    clock, flaky = Clock(), Flaky(TransientError("busy", retry_after_s=7))
    assert await Retry(base_s=0.1, max_s=10).run(flaky, sleep=clock.sleep) == "done"
    assert clock.now == 7
    flaky = Flaky(TransientError("busy", retry_after_s=11))
    with pytest.raises(TransientError):
        await Retry(base_s=0.1, max_s=10).run(flaky, sleep=clock.sleep)
    assert (flaky.calls, clock.now) == (1, 7)


@given(failed=st.integers(1, 5000), draw=st.floats(0, 1, exclude_max=True), factor=st.floats(1, 10))
def test_jitter_is_between_nothing_and_the_whole_wait(failed: int, draw: float, factor: float):
    full = Retry(base_s=0.5, factor=factor, max_s=9, jitter=False).wait_s(failed)
    assert 0 <= Retry(base_s=0.5, factor=factor, max_s=9).wait_s(failed, lambda: draw) <= full <= 9


def test_retry_after_headers():
    assert retry_after_s("7") == 7
    assert retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0  # long past
    later = retry_after_s(email.utils.formatdate(time.time() + 100, usegmt=True))
    assert later is not None
    assert 90 < later <= 100
    assert [retry_after_s(each) for each in (None, "", "soon", "-1")] == [None] * 4


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"base_s": -1}, {"factor": 0.5}])
def test_retry_refuses_nonsense(wrong: dict):
    with pytest.raises(ValueError, match="attempts has to be"):
        Retry(**wrong)


async def fail(breaker: Breaker, error: Exception | None = None) -> None:
    with pytest.raises(type(error or ConnectionError())):
        async with breaker.guard():
            raise error or ConnectionError()


async def test_breaker_opens_refuses_and_closes_after_one_good_trial():
    clock = Clock()
    breaker = Breaker(failures=2, cooldown_s=10, clock=clock)
    await fail(breaker)
    assert breaker.state == "closed"
    await fail(breaker)
    assert breaker.state == "open"
    clock.now = 4
    with pytest.raises(BreakerOpenError, match=r"failed 2 times in a row; next trial in 6.0 s") as refused:
        async with breaker.guard("score"):
            pytest.fail("called although open")
    assert refused.value.retry_after_s == 6
    clock.now = 10
    assert breaker.state == "half-open"
    async with breaker.guard():  # the trial: nobody else may pass meanwhile
        with pytest.raises(BreakerOpenError):
            async with breaker.guard():
                pytest.fail("a second trial")
    assert breaker.state == "closed"
    await fail(breaker)
    assert breaker.state == "closed"  # counting began anew


async def test_a_failed_trial_opens_for_as_long_again():
    clock = Clock()
    breaker = Breaker(failures=1, cooldown_s=10, clock=clock)
    await fail(breaker)
    clock.now = 15
    await fail(breaker)
    clock.now = 24
    assert breaker.state == "open"
    clock.now = 25
    assert breaker.state == "half-open"


async def test_a_cancelled_trial_leaves_room_for_another():
    clock = Clock()
    breaker = Breaker(failures=1, cooldown_s=1, clock=clock)
    await fail(breaker)
    clock.now = 1
    with pytest.raises(asyncio.CancelledError):
        async with breaker.guard():
            raise asyncio.CancelledError
    assert breaker.state == "half-open"
    async with breaker.guard():
        pass
    assert breaker.state == "closed"


async def test_late_results_of_calls_from_before_it_opened_change_nothing():
    clock = Clock()
    breaker = Breaker(failures=1, cooldown_s=10, clock=clock)
    async with breaker.guard():  # begins while closed, succeeds while open
        await fail(breaker)
    assert breaker.state == "open"


@pytest.mark.parametrize("error", [ToolError("wrong argument"), PolicyError("no")])
async def test_what_the_other_side_refuses_is_no_failure_of_it(error: Exception):
    breaker = Breaker(failures=1)
    await fail(breaker, error)
    assert breaker.state == "closed"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(["ok", "fail"]), st.floats(0, 12)), max_size=40))
def test_breaker_never_calls_while_cooling_down_and_lets_calls_through_otherwise(events: list[str | float]):
    async def play() -> None:
        clock = Clock()
        breaker = Breaker(failures=3, cooldown_s=10, clock=clock)
        in_a_row, opened = 0, None  # what a plain reading of the rules expects
        for event in events:
            if isinstance(event, float):
                clock.now += event
                continue
            called = False
            try:
                async with breaker.guard():
                    called = True
                    if event == "fail":
                        raise ConnectionError
            except (BreakerOpenError, ConnectionError):
                pass
            assert called == (opened is None or clock.now - opened >= 10)
            if called:
                trial, in_a_row = opened is not None, in_a_row + 1 if event == "fail" else 0
                opened = clock.now if event == "fail" and (trial or in_a_row >= 3) else None

    asyncio.run(play())


async def test_limiter_lets_only_so_many_in_at_a_time():
    limiter, inside, most = Limiter(3), 0, 0

    async def work() -> None:
        nonlocal inside, most
        async with limiter:
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(work() for _ in range(20)))
    assert (inside, most) == (0, 3)


def test_limiter_serves_one_event_loop_after_another():
    limiter = Limiter(1)

    async def crowd() -> int:
        async def work() -> int:
            async with limiter:
                await asyncio.sleep(0)
                return 1

        return sum(await asyncio.gather(*(work() for _ in range(5))))

    assert [asyncio.run(crowd()) for _ in range(2)] == [5, 5]


def test_limiter_refuses_zero():
    with pytest.raises(TypeError, match="1 or more"):
        Limiter(0)


def test_a_thread_that_hangs_does_not_keep_the_loop_from_ending():
    release = threading.Event()

    async def run() -> None:
        async with asyncio.timeout(0.01):
            await in_thread(release.wait)

    with pytest.raises(TimeoutError):
        asyncio.run(run())  # would wait for `release` here if it used the loop's own threads
    assert not release.is_set()
    release.set()


@pytest.mark.parametrize("error", [SystemExit(3), StopIteration()])
async def test_what_would_end_the_process_in_a_thread_is_an_ordinary_error(error: BaseException):
    def leave() -> None:
        raise error

    with pytest.raises(RuntimeError, match=type(error).__name__):
        await in_thread(leave)
