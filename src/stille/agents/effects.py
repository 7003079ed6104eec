"""Effects on the world that happen once, whatever dies in between.

An effect has a key that says what it *is*. Before it is caused, an intent under that key is committed; after it, its
outcome. What is found of an intent says what may be done:

    started, its owner lives    somebody is at it: wait for the outcome
    started, its owner is gone  it may have happened: "idempotent" is repeated with the same key, of "once" the other
                                side is asked; if that does not tell, the effect is parked as `unknown`
    done, failed                the outcome, for everybody who asks from now on
    open                        it certainly did not happen, or may be repeated: whoever comes first causes it
    unknown                     a person has to find out: `resolve`
"""

from __future__ import annotations

import asyncio
import builtins
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

import stille.agents.errors
import stille.errors
from stille.agents import audit
from stille.agents.database import Database, Watch, canonical, metadata, now
from stille.agents.errors import (
    AgentError,
    BudgetExceededError,
    PolicyError,
    ToolError,
    ToolFailedError,
    UnknownOutcomeError,
)
from stille.agents.journal import EffectCall
from stille.agents.types import Data, Effect, Json

Run = Callable[[str], Awaitable[Json]]
Lookup = Callable[[str], Awaitable[Json | None]]
State = Literal["started", "done", "failed", "open", "unknown"]

table = sa.Table(
    "stille_effects",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("run", sa.Text, nullable=False),
    sa.Column("tool", sa.Text, nullable=False),
    sa.Column("arguments", sa.Text, nullable=False),
    sa.Column("effect", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False, index=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("outcome", sa.Text),  # result, error, or why it is not known: JSON
    sa.Column("begun", sa.Text, nullable=False),
    sa.Column("changed", sa.Text, nullable=False),
)


class EffectRecord(Data):
    """What is known of an effect. `run` asked for it first.

    Attributes:
        outcome: the result if it is done; {"type", "message"} of the error if it failed; why, if it is unknown.
    """

    key: str
    run: str
    tool: str
    arguments: dict[str, Json]
    effect: Effect
    state: State
    attempts: int
    outcome: Json
    begun: str
    changed: str


@dataclass(frozen=True)
class _Claim:
    """What a look at an effect says: it has an outcome, another process is at it, or it is ours to cause."""

    state: State
    outcome: Json = None
    ours: bool = False
    doubt: bool = False  # it may have happened already


class Effects:
    """The effects of all runs in a database.

    Args:
        interval_s: between two looks at what another process, or a person, has to finish.
    """

    def __init__(self, database: Database, interval_s: float = 0.1):
        self.database = database
        self.interval_s = interval_s
        self._tasks: dict[str, asyncio.Task[Json]] = {}
        self._resolved = Watch(database, self._known, interval_s)

    async def perform(self, run_id: str, call: EffectCall, run: Run, lookup: Lookup | None = None) -> Json:
        """As `Journal.effect`, for a run. Cancelling the caller does not interrupt an effect that was begun.

        Raises:
            UnknownOutcomeError: it is parked.
            ToolError: the tool said no, now or when it was asked before.
        """
        task = self._tasks.get(call.key)
        if task is None:
            task = self._tasks[call.key] = asyncio.create_task(self._perform(run_id, call, run, lookup))
            task.add_done_callback(lambda done: self._finish(call.key, done))
        return await asyncio.shield(task)

    async def wait_resolved(self, key: str) -> None:
        """Return when a parked effect is not parked any more."""
        await self._resolved.wait(key)

    def resolve(self, key: str, happened: bool, result: Json = None, by: str = "operator") -> EffectRecord:
        """Say what became of a parked effect; its run goes on.

        Args:
            happened: False: it is caused again.
            result: what the tool would have said, if it happened.

        Raises:
            AgentError: no such effect, or it is not parked.
        """
        with self.database.transaction() as connection:
            row = self._row(connection, key)
            if row is None:
                query = sa.select(table.c.key).where(table.c.state == "unknown").limit(5)
                parked = ", ".join(connection.execute(query).scalars())
                raise AgentError(f"there is no effect {key!r}; parked are: {parked or 'none'}")
            if row.state != "unknown":
                raise AgentError(f"effect {key!r} is {row.state}, not parked: there is nothing to resolve")
            self._set(connection, key, "done" if happened else "open", result if happened else None)
            data = {"key": key, "happened": happened, "result": result}
            audit.append(connection, "effect.resolved", data, actor=by, run=row.run)
            return _record(self._row(connection, key))

    def list(self, run: str | None = None, state: State | None = None) -> list[EffectRecord]:
        """Effects in the order in which they were begun."""
        query = sa.select(table).order_by(table.c.begun)
        if run is not None:
            query = query.where(table.c.run == run)
        if state is not None:
            query = query.where(table.c.state == state)
        with self.database.reading() as connection:
            return [_record(row) for row in connection.execute(query)]

    async def settle(self) -> None:
        """Wait for the effects that this process has begun."""
        while self._tasks:
            await asyncio.wait(list(self._tasks.values()))

    def _finish(self, key: str, task: asyncio.Task[Json]) -> None:
        self._tasks.pop(key, None)
        if not task.cancelled():
            task.exception()  # whoever waited has it; nobody may be left

    async def _perform(self, run_id: str, call: EffectCall, run: Run, lookup: Lookup | None) -> Json:
        arguments, wait_s = canonical(call.arguments), self.interval_s
        while True:
            claim = await self.database.call(self._claim, run_id, call, arguments, now())
            if claim.ours:
                break
            if claim.state == "done":
                return claim.outcome
            if claim.state == "failed":
                raise decode_error(claim.outcome)
            if claim.state == "unknown":
                raise UnknownOutcomeError(f"effect {call.key!r} may have happened: {claim.outcome}", call.key)
            await asyncio.sleep(wait_s)  # longer and longer: every look is a transaction that writers wait for
            wait_s = min(1.5 * wait_s, 10 * self.interval_s)
        if claim.doubt and call.effect != "idempotent":
            why = "its process ended before the outcome was recorded"
            found = await self._ask(call, lookup, why)
            if found is not None:
                return await self._done(call, found)
        try:
            result = await run(call.key)
        except ToolError as error:
            await self._record(call, "failed", encode_error(error))
            raise
        except (PolicyError, BudgetExceededError) as error:  # raised before anything is done
            await self._record(call, "open", encode_error(error))
            raise
        except Exception as error:
            sure = isinstance(error, ToolFailedError) and not error.started  # that nothing was done
            if call.effect != "idempotent" and not sure:
                found = await self._ask(call, lookup, f"{type(error).__name__}: {error}")
                if found is not None:
                    return await self._done(call, found)
            await self._record(call, "open", encode_error(error))
            raise
        return await self._done(call, result)

    async def _ask(self, call: EffectCall, lookup: Lookup | None, why: str) -> Json:
        """The result that the other side knows of; None: it never happened. Parks the effect if it cannot tell."""
        if lookup is None:
            why += "; the tool cannot look it up"
        else:
            try:
                return await lookup(call.key)
            except Exception as error:
                why += f"; looking it up gave {type(error).__name__}: {error}"
        await self._record(call, "unknown", why)
        raise UnknownOutcomeError(f"effect {call.key!r} may have happened: {why}", call.key)

    async def _done(self, call: EffectCall, result: Json) -> Json:
        try:
            canonical(result)
        except (TypeError, ValueError) as error:
            why = f"it happened, but its result cannot be stored as JSON: {error}"
            await self._record(call, "unknown", why)
            raise UnknownOutcomeError(f"effect {call.key!r}: {why}", call.key) from error
        await self._record(call, "done", result)
        return result

    async def _record(self, call: EffectCall, state: State, outcome: Json) -> None:
        await self.database.call(self._write, call, state, outcome)

    def _write(self, call: EffectCall, state: State, outcome: Json) -> None:
        me = self.database.owner
        with self.database.transaction() as connection:
            row = self._row(connection, call.key)
            if row is not None and (row.owner, row.state, row.outcome) == (me, state, canonical(outcome)):
                return  # it is committed, but the connection broke before it said so
            if row is None or row.owner != me or row.state != "started":
                # Another process believed this one dead, which happens if its connection to PostgreSQL broke.
                raise AgentError(f"effect {call.key!r} was taken over while it was carried out: look at both outcomes")
            self._set(connection, call.key, state, outcome)
            data = {"key": call.key, "tool": call.tool, "outcome": outcome}
            audit.append(connection, f"effect.{state}", data, actor=call.tool, run=row.run)

    def _claim(self, run_id: str, call: EffectCall, arguments: str, at: str) -> _Claim:
        """`at` tells this claim from others; it is made again with the same if the connection broke."""
        me = self.database.own()
        with self.database.transaction() as connection:
            row = self._row(connection, call.key)
            if row is None:
                values = dict(key=call.key, run=run_id, tool=call.tool, arguments=arguments, effect=call.effect)
                values |= dict(state="started", owner=me, attempts=1, begun=at, changed=at)
                insert = (sqlite if self.database.sqlite else postgresql).insert(table).values(values)
                if connection.execute(insert.on_conflict_do_nothing()).rowcount == 0:
                    return _Claim("started")  # another process was faster
                data = {"key": call.key, "tool": call.tool, "arguments": call.arguments}
                audit.append(connection, "effect.started", data, actor=call.tool, run=run_id)
                return _Claim("started", ours=True)
            if row.tool != call.tool:
                raise AgentError(f"key {call.key!r} is an effect of tool {row.tool}; {call.tool} needs another key")
            if row.state in ("done", "failed", "unknown"):
                return _Claim(row.state, json.loads(row.outcome))
            if (row.state, row.owner, row.changed) == ("started", me, at):
                # This very claim was committed, but the connection broke before it said so. What it found is not known.
                return _Claim("started", ours=True, doubt=row.attempts > 1)
            if row.state == "started" and row.owner != me and self.database.alive(row.owner, connection):
                return _Claim("started")
            connection.execute(
                table.update()
                .where(table.c.key == call.key)
                .values(state="started", owner=me, attempts=row.attempts + 1, changed=at)
            )
            return _Claim("started", ours=True, doubt=row.state == "started")

    def _known(self, keys: list[str]) -> set[str]:
        query = sa.select(table.c.key).where(self.database.among(table.c.key, keys), table.c.state != "unknown")
        with self.database.reading() as connection:
            return set(connection.execute(query).scalars())

    @staticmethod
    def _row(connection: sa.Connection, key: str) -> Any:
        return connection.execute(sa.select(table).where(table.c.key == key).with_for_update()).first()

    @staticmethod
    def _set(connection: sa.Connection, key: str, state: State, outcome: Json) -> None:
        values = {"state": state, "outcome": canonical(outcome), "changed": now()}
        connection.execute(table.update().where(table.c.key == key).values(values))


def _record(row: Any) -> EffectRecord:
    fields = {name: getattr(row, name) for name in EffectRecord.model_fields}
    fields |= {"arguments": json.loads(row.arguments), "outcome": json.loads(row.outcome or "null")}
    return EffectRecord(**fields)


def encode_error(error: BaseException) -> dict[str, Json]:
    """An error as JSON: its type's name, message, and those attributes that are JSON."""
    attributes: dict[str, Json] = {}
    for name, value in vars(error).items():
        if isinstance(value, (str, int, float, bool, type(None))) and not name.startswith("_"):
            attributes[name] = value
    return {"type": type(error).__name__, "message": str(error), "attributes": attributes}


def decode_error(data: Any) -> Exception:
    """The error of `encode_error`. What is neither Stille's nor Python's own becomes an `AgentError`."""
    name, message, attributes = data["type"], data["message"], data.get("attributes") or {}
    for place in (stille.agents.errors, stille.errors, builtins):
        kind = getattr(place, name, None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            try:
                return kind(message, **attributes)
            except TypeError:
                break
    return AgentError(f"{name}: {message}")
