"""The audit log: what was done, by whom, in a chain of hashes that shows what was changed afterwards.

Every entry carries the hash of the one before it. Whoever can write to the database can forge the whole chain from
some entry on; to rule that out, note the head (`AuditLog.head`) elsewhere, and give it to `verify`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import event

from stille.agents.database import Database, canonical, metadata, now
from stille.agents.types import Data, Json

GENESIS = "0" * 64
AUDIT_LOCK = 0x5711F

_entries = sa.Table(
    "stille_audit",
    metadata,
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("time", sa.Text, nullable=False),
    sa.Column("run", sa.Text),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("data", sa.Text, nullable=False),
    sa.Column("previous", sa.Text, nullable=False),
    sa.Column("hash", sa.Text, nullable=False),
)
_head = sa.Table(
    "stille_audit_head",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("sequence", sa.BigInteger, nullable=False),
    sa.Column("hash", sa.Text, nullable=False),
)
for operation in ("UPDATE", "DELETE"):
    event.listen(
        _entries,
        "after_create",
        sa.DDL(
            f"CREATE TRIGGER stille_audit_no_{operation.lower()} BEFORE {operation} ON stille_audit "
            "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
        ).execute_if(dialect="sqlite"),
    )
for statement in (
    "CREATE OR REPLACE FUNCTION stille_audit_append_only() RETURNS trigger LANGUAGE plpgsql AS "
    "$$BEGIN RAISE EXCEPTION 'the audit log is append-only'; END$$",
    "CREATE TRIGGER stille_audit_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON stille_audit "
    "FOR EACH STATEMENT EXECUTE FUNCTION stille_audit_append_only()",
):
    event.listen(_entries, "after_create", sa.DDL(statement).execute_if(dialect="postgresql"))


class AuditEntry(Data):
    """One entry. `hash` is SHA-256 over the canonical JSON of all the other fields, the previous hash among them."""

    sequence: int
    time: str
    run: str | None
    actor: str
    action: str
    data: Json
    previous: str
    hash: str

    def expected_hash(self) -> str:
        """What `hash` has to be."""
        return hashlib.sha256(canonical(self.model_dump(exclude={"hash"})).encode()).hexdigest()


class AuditHead(Data):
    """Number and hash of the last entry: what to note elsewhere."""

    sequence: int
    hash: str


class Verdict(Data):
    """What `verify` found: number of entries that are good, and what is wrong with the first that is not."""

    entries: int
    sequence: int | None = None
    problem: str | None = None

    @property
    def ok(self) -> bool:
        return self.problem is None


class AuditLog:
    """An append-only log in a database; several processes may append to it at once."""

    def __init__(self, database: Database):
        self.database = database

    def append(self, action: str, data: Json, *, actor: str, run: str | None = None) -> AuditEntry:
        """Add an entry.

        Args:
            action: what was done, such as `approval.decided`.
            data: about it; JSON.
            actor: who did it: a person's name, or the agent's.
        """
        with self.database.transaction() as connection:
            return append(connection, action, data, actor=actor, run=run)

    def entries(self, run: str | None = None) -> Iterator[AuditEntry]:
        """All entries in order, or those of a run."""
        query = sa.select(_entries).order_by(_entries.c.sequence)
        if run is not None:
            query = query.where(_entries.c.run == run)
        with self.database.reading() as connection:
            for row in connection.execute(query.execution_options(yield_per=1000)):
                yield AuditEntry(**{**row._mapping, "data": json.loads(row.data)})

    def head(self) -> AuditHead:
        """Of the last entry; the sequence is 0 if there is none."""
        with self.database.reading() as connection:
            row = connection.execute(sa.select(_head)).first()
        return AuditHead(sequence=0, hash=GENESIS) if row is None else AuditHead(sequence=row.sequence, hash=row.hash)

    def verify(self, known: AuditHead | None = None) -> Verdict:
        """Check the whole chain, and name the first entry that was changed, removed or inserted.

        Args:
            known: a head that was noted earlier; the chain has to contain it.
        """
        noted = {head.sequence: head.hash for head in (self.head(), known) if head is not None}
        previous, count = GENESIS, 0
        try:
            for entry in self.entries():
                problem = _problem(entry, count + 1, previous, noted)
                if problem is not None:
                    return Verdict(entries=count, sequence=entry.sequence, problem=problem)
                previous, count = entry.hash, count + 1
        except ValueError as error:
            return Verdict(entries=count, sequence=count + 1, problem=f"it cannot be read: {error}")
        least, most = max(noted, default=0), self.head().sequence
        if count < least:
            return Verdict(entries=count, sequence=count + 1, problem=f"removed, with all up to {least}")
        if count > most:
            return Verdict(entries=most, sequence=most + 1, problem="it was inserted: nobody appended it")
        return Verdict(entries=count)

    def export(self, path: str | Path, run: str | None = None) -> int:
        """Write entries as JSONL; their number."""
        count = 0
        with open(path, "w", encoding="utf-8") as file:
            for entry in self.entries(run):
                file.write(canonical(entry.model_dump()) + "\n")
                count += 1
        return count


def append(connection: sa.Connection, action: str, data: Json, *, actor: str, run: str | None = None) -> AuditEntry:
    """As `AuditLog.append`, within a transaction: the entry is there if and only if the rest of it is."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": AUDIT_LOCK})
    last = connection.execute(sa.select(_head)).first()
    sequence, previous = (0, GENESIS) if last is None else (last.sequence, last.hash)
    unsigned = AuditEntry(
        sequence=sequence + 1, time=now(), run=run, actor=actor, action=action, data=data, previous=previous, hash=""
    )
    entry = unsigned.model_copy(update={"hash": unsigned.expected_hash()})
    connection.execute(_entries.insert().values({**entry.model_dump(), "data": canonical(entry.data)}))
    head = {"sequence": entry.sequence, "hash": entry.hash}
    connection.execute(_head.insert().values(id=1, **head) if last is None else _head.update().values(**head))
    return entry


def _problem(entry: AuditEntry, sequence: int, previous: str, noted: dict[int, str]) -> str | None:
    if entry.sequence > sequence:
        return f"before it, entry {sequence} was removed"
    if entry.sequence < sequence:
        return "it was inserted before the first"
    if entry.hash != entry.expected_hash():
        return "it was changed: its hash is not that of its content"
    if entry.previous != previous:
        return "it does not follow the entry before it: one of the two was replaced"
    if entry.hash != noted.get(sequence, entry.hash):
        return "it was replaced: its hash is not the one that was noted"
    return None
