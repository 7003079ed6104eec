"""Runs a workflow again against what is recorded of a run: no model, no tool and nobody is asked."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable

from stille.agents.durable.journal import DurableJournal
from stille.agents.durable.workflow import Workflow
from stille.agents.effects import decode_error, encode_error
from stille.agents.errors import ReplayError
from stille.agents.runs import RunDetail, StepRecord
from stille.agents.types import Json


class Replayed(DurableJournal):
    """A journal that hands out what is recorded of a run, and raises ReplayError if it is asked for something else."""

    def __init__(self, run: RunDetail):
        super().__init__(None, run.id, [])
        self._run = run
        self._steps: dict[str, deque[StepRecord]] = {}
        for step in sorted(run.steps, key=lambda step: step.number):
            self._steps.setdefault(step.name, deque()).append(step)

    def finish(self) -> None:
        """Raises ReplayError if something is recorded that was not asked for."""
        left = [step.name for steps in self._steps.values() for step in steps]
        if left:
            raise ReplayError(f"run {self.run_id}: recorded, but not asked for this time: {', '.join(left)}")

    async def _step(self, name: str, run: Callable[[], Awaitable[Json]]) -> Json:
        if not self._steps.get(name):
            left = [step.name for steps in self._steps.values() for step in steps]
            raise ReplayError(
                f"run {self.run_id} asks for {name}, which is not recorded; it is {self._run.state}, and still "
                f"recorded are: {', '.join(left) or 'none'}"
            )
        step = self._steps[name].popleft()
        if step.error is not None:
            raise decode_error(step.error)
        return step.result


async def replay(flow: Workflow, run: RunDetail) -> Json:
    """Run a workflow against the record of a run; its result.

    Raises:
        ReplayError: it asks for something else, or comes to another end, than is recorded.
    """
    journal, error, result = Replayed(run), None, None
    try:
        result = await flow.run(journal, run.input)
    except ReplayError:
        raise
    except Exception as raised:
        error = encode_error(raised)
    journal.finish()
    if error != run.error or result != run.result:
        raise ReplayError(
            f"run {run.id} came to another end: recorded is {run.error or run.result!r}, now it is {error or result!r}"
        )
    return result
