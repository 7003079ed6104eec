"""Workflows that go on after their process died: DBOS runs them, journals record what they ask for.

    @workflow
    async def refund(journal: DurableJournal, order: str) -> str: ...

    async with Workflows([refund], "runs.db") as flows:
        run_id = await flows.start(refund, order="4711")
        print(await flows.result(run_id))

A process that dies leaves its runs behind; the next one that opens the same database, or one that is still there,
takes them up. Between two steps a workflow may only compute, from what the steps gave: it is run again from its
beginning, and steps that are recorded give what they gave before.
"""

from stille.agents.durable.journal import DurableJournal
from stille.agents.durable.workflow import Workflow, workflow
from stille.agents.durable.workflows import Workflows

__all__ = ["Workflows", "workflow", "Workflow", "DurableJournal"]
