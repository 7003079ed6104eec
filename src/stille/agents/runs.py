"""What is recorded of runs: read from any process, while they go on."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any, Literal

import sqlalchemy as sa
from pydantic import ValidationError

from stille.agents.approvals import Approval, Approvals
from stille.agents.database import Database
from stille.agents.effects import EffectRecord, Effects
from stille.agents.errors import AgentError
from stille.agents.types import Data, Json, Usage

RunState = Literal["queued", "running", "waiting", "parked", "done", "failed", "cancelled"]
ENDED = {"SUCCESS": "done", "ERROR": "failed", "CANCELLED": "cancelled", "MAX_RECOVERY_ATTEMPTS_EXCEEDED": "failed"}
COLUMNS = ("workflow_uuid", "status", "name", "application_version", "executor_id", "created_at", "updated_at")


class RunRecord(Data):
    """A run, without its steps.

    Attributes:
        state: "waiting" is for a person's approval; "parked": an effect has to be resolved.
        waits_for: why it is waiting or parked, and whether it lacks a process that works on it, one line each.
        created: seconds since 1970, as `updated`.
        version: of the code that it was started under.
    """

    id: str
    workflow: str
    state: RunState
    version: str | None
    created: float
    updated: float
    waits_for: tuple[str, ...] = ()


class StepRecord(Data):
    """A step that is recorded. `name` begins with what it is: `step:`, `effect:`, `approval:`, `receive:`, ...

    Attributes:
        error: {"type", "message", "attributes"} if it raised.
    """

    number: int
    name: str
    result: Json = None
    error: dict[str, Json] | None = None
    seconds: float | None = None


class RunDetail(RunRecord):
    """A run with all that is recorded of it. `usage` is the sum over its model calls."""

    input: dict[str, Json]
    result: Json = None
    error: dict[str, Json] | None = None
    steps: tuple[StepRecord, ...] = ()
    effects: tuple[EffectRecord, ...] = ()
    approvals: tuple[Approval, ...] = ()
    usage: Usage = Usage()


class RunStore:
    """The runs in a database."""

    def __init__(self, database: Database):
        self.database = database
        self._prefix = "" if database.sqlite else "dbos."  # of DBOS's own tables
        schema = None if database.sqlite else "dbos"
        self._runs = sa.table("workflow_status", *map(sa.column, COLUMNS), schema=schema).c

    def list(self, state: RunState | None = None, limit: int = 100) -> list[RunRecord]:
        """The newest runs first."""
        if not self._exists():
            return []
        reasons = self._reasons()
        query = sa.select(*self._runs).where(self._runs.name.notlike("stille.%"))
        # "waiting" and "parked" are not in DBOS's table, so with a state all rows are read.
        query = query.order_by(self._runs.created_at.desc()).limit(limit if state is None else None)
        with self.database.reading() as connection:
            rows = connection.execute(query).all()
        gone = self._gone(rows)
        records = [_record(row, reasons, gone) for row in rows]
        return [record for record in records if state is None or record.state == state][:limit]

    def get(self, run_id: str) -> RunDetail:
        """All that is recorded of a run.

        Raises:
            AgentError: there is none of that id.
        """
        row = self._row(run_id)
        record = _record(row, self._reasons(), self._gone([row]))
        steps = self._steps(run_id)
        with self.database.reading() as connection:
            inputs = connection.execute(self._payload("inputs", "workflow_input"), {"id": run_id}).scalar()
            output = connection.execute(self._payload("output", "workflow_output"), {"id": run_id}).scalar()
            failure = connection.execute(self._payload("error", "workflow_output"), {"id": run_id}).scalar()
        error = json.loads(failure) if failure else None
        if error is not None:
            error = {"type": error["name"], "message": error["message"], "attributes": error.get("data") or {}}
        return RunDetail(
            **record.model_dump(),
            input=json.loads(inputs)["positionalArgs"][0] if inputs else {},
            result=json.loads(output) if output else None,
            error=error,
            steps=steps,
            effects=tuple(Effects(self.database).list(run_id)),
            approvals=tuple(Approvals(self.database).list(run_id)),
            usage=sum((_usage(step.result) for step in steps), Usage()),
        )

    def ended(self, run_ids: Collection[str]) -> set[str]:
        """Which of these runs have ended."""
        those = self.database.among(self._runs.workflow_uuid, run_ids)
        return {row.workflow_uuid for row in self._rows(those, self._runs.status.in_(ENDED))}

    def has_ended(self, run_id: str) -> bool:
        """Raises AgentError if there is no such run."""
        return self._row(run_id).status in ENDED

    def step_numbers(self, run_id: str) -> list[tuple[int, str]]:
        """Numbers and names of the steps that are recorded."""
        query = f"SELECT function_id, function_name FROM {self._prefix}operation_outputs WHERE workflow_uuid = :id"
        with self.database.reading() as connection:
            rows = connection.execute(sa.text(f"{query} ORDER BY function_id"), {"id": run_id})
            return [(row.function_id, row.function_name) for row in rows]

    def dead_executors(self, version: str) -> list[str]:
        """Processes that are gone and left runs of that version behind."""
        rows = self._rows(self._runs.status == "PENDING", self._runs.application_version == version)
        return list(self._gone(rows))

    def stranded(self, version: str) -> list[str]:
        """Runs that no living process works on, and that a process with that version may not take up."""
        open_ = self._runs.status.in_(["PENDING", "ENQUEUED"])
        rows = self._rows(open_, self._runs.application_version != version)
        return [
            row.workflow_uuid for row in rows if row.status == "ENQUEUED" or not self.database.alive(row.executor_id)
        ]

    def _gone(self, rows: Sequence[Any]) -> set[str]:
        """Processes that work on these runs, to DBOS's knowledge, but do not live any more."""
        names = {row.executor_id for row in rows if row.status == "PENDING"}
        return {name for name in names if not self.database.alive(name)}

    def _exists(self) -> bool:
        return sa.inspect(self.database.engine).has_table("workflow_status", self._prefix.rstrip(".") or None)

    def _row(self, run_id: str) -> Any:
        rows = self._rows(self._runs.workflow_uuid == run_id) if self._exists() else []
        if not rows:
            raise AgentError(f"there is no run {run_id!r}; `stille agent runs` lists them")
        return rows[0]

    def _rows(self, *where: sa.ColumnElement[bool]) -> Sequence[Any]:
        with self.database.reading() as connection:
            return connection.execute(sa.select(*self._runs).where(*where)).all()

    def _payload(self, column: str, table: str) -> sa.TextClause:
        return sa.text(f"SELECT {column} FROM {self._prefix}{table} WHERE workflow_uuid = :id")

    def _steps(self, run_id: str) -> tuple[StepRecord, ...]:
        columns = "function_id, function_name, output, started_at_epoch_ms, completed_at_epoch_ms"
        query = f"SELECT {columns} FROM {self._prefix}operation_outputs WHERE workflow_uuid = :id"
        with self.database.reading() as connection:
            rows = connection.execute(sa.text(f"{query} ORDER BY completed_at_epoch_ms, function_id"), {"id": run_id})
            return tuple(_step(row) for row in rows)

    def _reasons(self) -> dict[str, list[tuple[RunState, str]]]:
        reasons: dict[str, list[tuple[RunState, str]]] = {}
        for effect in Effects(self.database).list(state="unknown"):
            text = f"effect {effect.key} may have happened: {effect.outcome}"
            reasons.setdefault(effect.run, []).append(("parked", text))
        for asked in Approvals(self.database).list(waiting=True):
            text = f"approval of {asked.tool}: {asked.reason}"
            reasons.setdefault(asked.run, []).append(("waiting", text))
        return reasons


def _record(row: Any, reasons: dict[str, list[tuple[RunState, str]]], gone: Collection[str]) -> RunRecord:
    state: Any = ENDED.get(row.status, "running" if row.status == "PENDING" else "queued")
    waits = [] if row.status in ENDED else reasons.get(row.workflow_uuid, [])
    if waits:
        state = min(kind for kind, _ in waits)  # parked before waiting
    told = [text for _, text in waits]
    if row.status == "PENDING" and row.executor_id in gone:
        told.append("a process: the one that worked on it has ended; start the program again")
    return RunRecord(
        id=row.workflow_uuid,
        workflow=row.name,
        state=state,
        version=row.application_version,
        created=row.created_at / 1000,
        updated=row.updated_at / 1000,
        waits_for=tuple(told),
    )


def _step(row: Any) -> StepRecord:
    outcome = json.loads(row.output) if row.output else None
    known = isinstance(outcome, dict)
    times = row.started_at_epoch_ms, row.completed_at_epoch_ms
    return StepRecord(
        number=row.function_id,
        name=row.function_name,
        result=outcome.get("ok") if known else outcome,
        error=outcome.get("error") if known else None,
        seconds=None if None in times else (times[1] - times[0]) / 1000,
    )


def _usage(result: Json) -> Usage:
    """Of a step that recorded a model's `Reply`."""
    if isinstance(result, dict) and "message" in result and "usage" in result:
        try:
            return Usage.model_validate(result["usage"])
        except ValidationError:
            pass
    return Usage()
