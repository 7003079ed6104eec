"""Decisions that runs wait for: asked in the database, given from any process."""

from __future__ import annotations

import json
from typing import Literal

import sqlalchemy as sa

from stille.agents import audit
from stille.agents.database import Database, Watch, canonical, metadata, now
from stille.agents.errors import AgentError
from stille.agents.journal import ApprovalRequest, Decision
from stille.agents.types import Data, Json

table = sa.Table(
    "stille_approvals",
    metadata,
    sa.Column("run", sa.Text, primary_key=True),
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("tool", sa.Text, nullable=False),
    sa.Column("arguments", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("asked", sa.Text, nullable=False),
    sa.Column("verdict", sa.Text, index=True),
    sa.Column("by", sa.Text),
    sa.Column("note", sa.Text),
    sa.Column("decided", sa.Text),
)


class Approval(Data):
    """What was asked of a person, and the answer; `verdict` is None while the run waits for it."""

    run: str
    id: str
    tool: str
    arguments: dict[str, Json]
    reason: str
    asked: str
    verdict: Literal["approve", "reject"] | None = None
    by: str | None = None
    note: str | None = None
    decided: str | None = None


class Approvals:
    """The approvals of all runs in a database."""

    def __init__(self, database: Database, interval_s: float = 0.1):
        self.database = database
        self._decided = Watch(database, self._known, interval_s)

    async def ask(self, run: str, request: ApprovalRequest) -> Decision:
        """Ask, unless it was asked before, and wait for the decision."""
        decision = await self.database.call(self._ask, run, request)
        while decision is None:
            await self._decided.wait(_key(run, request.id))
            decision = await self.database.call(self._ask, run, request)
        return decision

    def decide(
        self, run: str, verdict: Literal["approve", "reject"], by: str, note: str = "", id: str | None = None
    ) -> Approval:
        """Say what a run waits for. The first decision stands.

        Args:
            id: of the request; None: the only one that the run waits for.

        Raises:
            AgentError: nothing waits, several do and no id was given, or it is decided already.
        """
        with self.database.transaction() as connection:
            rows = connection.execute(sa.select(table).where(table.c.run == run).with_for_update()).all()
            named = [row for row in rows if row.id == id] if id is not None else [r for r in rows if r.verdict is None]
            if not named and rows and id is None:
                named = rows[-1:]  # all are decided
            if not named:
                told = f"run {run!r} waits for no approval" + ("" if id is None else f" {id!r}")
                query = sa.select(table.c.run, table.c.id).where(table.c.verdict.is_(None)).limit(5)
                waiting = [f"{one.run} ({one.id})" for one in connection.execute(query)]
                raise AgentError(f"{told}; what does: {', '.join(waiting) or 'nothing'}")
            if len(named) > 1:
                raise AgentError(f"run {run!r} waits for several approvals, name one: {[row.id for row in named]}")
            row = named[0]
            if row.verdict is not None:
                raise AgentError(
                    f"run {run!r} waits for no approval: {row.id!r} was decided by {row.by}: {row.verdict}"
                )
            values = {"verdict": verdict, "by": by, "note": note, "decided": now()}
            connection.execute(table.update().where(table.c.run == run, table.c.id == row.id).values(values))
            data = {"id": row.id, "tool": row.tool, "arguments": json.loads(row.arguments), "verdict": verdict}
            audit.append(connection, "approval.decided", {**data, "note": note}, actor=by, run=run)
            return _approval(row).model_copy(update=values)

    def list(self, run: str | None = None, waiting: bool = False) -> list[Approval]:
        """Approvals in the order in which they were asked for."""
        query = sa.select(table).order_by(table.c.asked)
        if run is not None:
            query = query.where(table.c.run == run)
        if waiting:
            query = query.where(table.c.verdict.is_(None))
        with self.database.reading() as connection:
            return [_approval(row) for row in connection.execute(query)]

    def _ask(self, run: str, request: ApprovalRequest) -> Decision | None:
        with self.database.transaction() as connection:
            where = table.c.run == run, table.c.id == request.id
            row = connection.execute(sa.select(table).where(*where).with_for_update()).first()
            if row is None:
                data: dict[str, Json] = {**request.model_dump()}
                values = {**data, "run": run, "asked": now(), "arguments": canonical(request.arguments)}
                connection.execute(table.insert().values(values))
                audit.append(connection, "approval.asked", data, actor=request.tool, run=run)
                return None
            if row.tool != request.tool:
                raise AgentError(f"run {run!r} asked {request.id!r} for {row.tool}; {request.tool} needs another id")
            if row.verdict is None:
                return None
            return Decision(verdict=row.verdict, by=row.by, note=row.note)

    def _known(self, keys: list[str]) -> set[str]:
        where = self.database.among(table.c.run, {json.loads(key)[0] for key in keys})
        with self.database.reading() as connection:
            rows = connection.execute(sa.select(table.c.run, table.c.id).where(where, table.c.verdict.isnot(None)))
            return {_key(row.run, row.id) for row in rows}.intersection(keys)


def _key(run: str, id: str) -> str:
    return canonical([run, id])


def _approval(row: sa.Row) -> Approval:
    return Approval(**{**row._mapping, "arguments": json.loads(row.arguments)})
