"""The journal of a durable run."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from dbos import DBOS
from pydantic import TypeAdapter

from stille.agents.database import canonical
from stille.agents.durable.workflow import Workflow
from stille.agents.effects import Lookup, Run, decode_error, encode_error
from stille.agents.errors import UnknownOutcomeError
from stille.agents.journal import ApprovalRequest, Decision, EffectCall
from stille.agents.types import Json

if TYPE_CHECKING:
    from stille.agents.durable.workflows import Workflows

T = TypeVar("T")
logger = logging.getLogger(__name__)


class DurableJournal:
    """The journal of one durable run: `stille.agents.journal.Journal`, and what else survives a process.

    Steps are told apart by name and, among those of the same name, by their order; so branches that run at the same
    time may finish in another order the next time, as long as they do not give the same name to different things.
    """

    def __init__(self, flows: Workflows | None, run_id: str, recorded: Sequence[tuple[int, str]]):
        self.run_id = run_id
        self._open = flows
        self._recorded: dict[str, deque[int]] = {}
        for number, name in recorded:
            self._recorded.setdefault(name, deque()).append(number)
        self._next = max((number for number, _ in recorded), default=0) + 1
        self._received: dict[str, int] = {}
        self._started: dict[str, int] = {}

    @property
    def _flows(self) -> Workflows:
        assert self._open is not None, "a replayed run asks nobody"
        return self._open

    async def step(self, name: str, run: Callable[[], Awaitable[Json]]) -> Json:
        return await self._step(f"step:{name}", run)

    async def effect(self, call: EffectCall, run: Run, lookup: Lookup | None = None) -> Json:
        async def attempt() -> Json:
            effects = self._flows.effects
            while True:
                try:
                    return await effects.perform(self.run_id, call, run, lookup)
                except UnknownOutcomeError as error:
                    logger.warning("run %s is parked: %s", self.run_id, error)
                    await effects.wait_resolved(error.key)

        return await self._step(f"effect:{call.key}", attempt)

    async def approval(self, request: ApprovalRequest) -> Decision:
        async def ask() -> Json:
            return (await self._flows.approvals.ask(self.run_id, request)).model_dump()

        return Decision.model_validate(await self._step(f"approval:{request.id}", ask))

    async def sleep(self, seconds: float) -> None:
        """Until so many seconds after this was first asked for, over restarts."""

        async def wake() -> Json:
            return time.time() + seconds

        async def wait() -> Json:
            await asyncio.sleep(until - time.time())
            return None

        until: Any = await self._step("sleep", wake)
        await self._step("awake", wait)

    async def receive(self, name: str, type: type[T], timeout_s: float | None = None) -> T | None:
        """The next signal of that name; None if it did not come in time."""

        async def wait() -> Json:
            taken = self._received.get(name, 0)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if deadline is None else max(0.0, deadline - time.time())):
                    return {"value": await self._flows.signals.wait(self.run_id, name, taken)}
            return None

        async def until() -> Json:
            return time.time() + (timeout_s or 0)

        deadline: Any = None if timeout_s is None else await self._step(f"deadline:{name}", until)
        got: Any = await self._step(f"receive:{name}", wait)
        if got is None:
            return None
        self._received[name] = self._received.get(name, 0) + 1
        return TypeAdapter(type).validate_python(got["value"])

    async def start(self, flow: Workflow, *args: Any, run_id: str | None = None, **kwargs: Any) -> str:
        """Start a child, which gets its own journal; its id. It lives on if this run ends first."""
        inputs = flow.dump(args, kwargs)

        async def begin() -> Json:
            return await self._flows.enqueue(flow, run_id or f"{self.run_id}/{flow.name}.{number}", inputs)

        number = self._started[flow.name] = self._started.get(flow.name, 0) + 1
        return str(await self._step(f"start:{flow.name}", begin))

    async def result(self, run_id: str) -> Json:
        """What a child gave. Raises what it raised."""

        async def wait() -> Json:
            return await self._flows.result(run_id)

        return await self._step(f"result:{run_id}", wait)

    async def _step(self, name: str, run: Callable[[], Awaitable[Json]]) -> Json:
        """Errors are recorded as well; live and on replay they are what `decode_error` makes of them."""
        numbers = self._recorded.get(name)
        reserved = DBOS.reserve_step()
        if numbers:
            number = numbers.popleft()
        else:
            number, self._next = self._next, self._next + 1
        reserved._step_ctx.function_id = number  # DBOS counts in the order of asking, which branches may change

        async def record() -> Json:
            try:
                value = await run()
                canonical(value)
                return {"ok": value}
            except Exception as error:
                causes.append(error)
                return {"error": encode_error(error)}

        causes: list[Exception] = []
        outcome: Any = await reserved.run_async({"name": name, "preemptible": True}, record)
        if "error" in outcome:
            raise decode_error(outcome["error"]) from (causes[0] if causes else None)
        return outcome["ok"]
