"""Where a run's steps are recorded, so that it can go on after its process died.

An agent does nothing by itself: what it asks of models, tools and people goes through a `Journal`. Between two steps it
only computes, from what the steps gave; so a journal that hands out recorded results brings it back to where it was.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from typing import Literal, Protocol, TypeVar

from stille.agents.types import Data, Effect, Json

T = TypeVar("T")


class EffectCall(Data):
    """An effect on the world about to happen.

    Attributes:
        key: what it *is*, not which step wanted it: the same key never happens twice. See `Tool.effect_key`.
        tool: name of the tool.
        arguments: of the call.
        effect: "idempotent": repeated with the same key until its outcome is known. "once": never repeated; if it is
            not known whether it happened, `lookup` is asked, and without an answer the run is parked.
    """

    key: str
    tool: str
    arguments: dict[str, Json]
    effect: Effect


class ApprovalRequest(Data):
    """Something that a person has to allow: a call of a tool, with the reason why it is asked for."""

    id: str
    tool: str
    arguments: dict[str, Json]
    reason: str


class Decision(Data):
    """What a person said. `by` is who, `note` is told to the model."""

    verdict: Literal["approve", "reject"]
    by: str
    note: str = ""


class Journal(Protocol):
    """Records the steps of one run. Steps are told apart by their order: a run asks for the same ones each time."""

    run_id: str

    async def step(self, name: str, run: Callable[[], Awaitable[Json]]) -> Json:
        """The result of `run`, which is called unless it is recorded; it may be called again if the process dies."""
        ...

    async def effect(
        self,
        call: EffectCall,
        run: Callable[[str], Awaitable[Json]],
        lookup: Callable[[str], Awaitable[Json | None]] | None = None,
    ) -> Json:
        """The result of an effect, which happens at most once over all runs.

        Args:
            run: causes it, with its key.
            lookup: asks the other side for the result of a key; None if it never happened, and what was
                sent before cannot happen any more. Raises if it cannot tell.

        Raises:
            UnknownOutcomeError: it may have happened. The run is parked until someone resolves it.
        """
        ...

    async def approval(self, request: ApprovalRequest) -> Decision:
        """Waits for a person, over restarts if it has to."""
        ...


class Direct:
    """A journal that keeps nothing: for runs that need not survive their process.

    Args:
        run_id: of the run; None: one that no other has.
        approve: asked instead of a person; None: nothing is approved.
    """

    def __init__(
        self, run_id: str | None = None, approve: Callable[[ApprovalRequest], Awaitable[Decision]] | None = None
    ):
        self.run_id = run_id or uuid.uuid4().hex
        self._approve = approve
        self._results: dict[str, asyncio.Future[Json]] = {}

    async def step(self, name: str, run: Callable[[], Awaitable[Json]]) -> Json:
        return await run()

    async def effect(
        self,
        call: EffectCall,
        run: Callable[[str], Awaitable[Json]],
        lookup: Callable[[str], Awaitable[Json | None]] | None = None,
    ) -> Json:
        known = self._results.get(call.key)
        if known is None:
            known = self._results[call.key] = asyncio.ensure_future(run(call.key))  # type: ignore[arg-type]
        return await asyncio.shield(known)

    async def approval(self, request: ApprovalRequest) -> Decision:
        if self._approve is None:
            return Decision(verdict="reject", by="nobody", note="nobody is there to approve it")
        return await self._approve(request)
