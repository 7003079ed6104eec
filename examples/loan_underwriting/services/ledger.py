"""What really happened at a service: every effect once, whatever its callers believe. Kept in SQLite."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SCHEMA = """
CREATE TABLE IF NOT EXISTS effects (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, service TEXT NOT NULL, kind TEXT NOT NULL,
    reference TEXT NOT NULL, cents INTEGER, body TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS by_reference ON effects (kind, reference);
CREATE TABLE IF NOT EXISTS keys (
    key TEXT PRIMARY KEY, request TEXT NOT NULL, response TEXT NOT NULL, at REAL NOT NULL
);
"""


class KeyReusedError(Exception):
    """An idempotency key came with another request than the first time."""


class Ledger:
    """Append-only. Safe for threads and processes.

    Args:
        path: of the SQLite file; it is made if need be.
    """

    def __init__(self, path: Path):
        self.path = path
        with self._transaction() as db:
            for statement in SCHEMA.split(";"):
                db.execute(statement)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        db = sqlite3.connect(self.path, timeout=30, isolation_level=None)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        finally:
            db.close()

    def record(self, service: str, kind: str, reference: str, body: dict[str, Any], cents: int | None = None) -> int:
        """Appends an effect. Returns its number."""
        with self._transaction() as db:
            return self._append(db, service, kind, reference, body, cents)

    def record_once(
        self,
        key: str,
        service: str,
        kind: str,
        body: dict[str, Any],
        respond: Callable[[int], dict[str, Any]],
        cents: int | None = None,
    ) -> tuple[dict[str, Any], bool]:
        """Appends an effect unless its key is known; the effect and its key are one transaction.

        Args:
            respond: makes the answer from the effect's number; it is kept with the key.

        Returns:
            The answer, and whether it is the one of an earlier request.

        Raises:
            KeyReusedError: the key came before with another body.
        """
        request = json.dumps([service, kind, body], sort_keys=True)
        with self._transaction() as db:
            known = db.execute("SELECT request, response FROM keys WHERE key = ?", (key,)).fetchone()
            if known:
                if known[0] != request:
                    raise KeyReusedError(key)
                return json.loads(known[1]), True
            response = respond(self._append(db, service, kind, key, body, cents))
            row = (key, request, json.dumps(response), time.time())
            db.execute("INSERT INTO keys VALUES (?, ?, ?, ?)", row)
            return response, False

    def _append(
        self, db: sqlite3.Connection, service: str, kind: str, reference: str, body: dict[str, Any], cents: int | None
    ) -> int:
        row = (time.time(), service, kind, reference, cents, json.dumps(body, sort_keys=True))
        sql = "INSERT INTO effects (at, service, kind, reference, cents, body) VALUES (?, ?, ?, ?, ?, ?)"
        return int(db.execute(sql, row).lastrowid or 0)

    def effects(
        self, kind: str | None = None, reference: str | None = None, id: int | None = None
    ) -> list[dict[str, Any]]:
        """Effects in their order, all or those of a kind, a reference, a number."""
        sql = "SELECT id, at, service, kind, reference, cents, body FROM effects WHERE 1"
        values: list[str | int] = []
        for column, value in (("kind", kind), ("reference", reference), ("id", id)):
            if value is not None:
                sql += f" AND {column} = ?"
                values.append(value)
        with self._transaction() as db:
            rows = db.execute(sql + " ORDER BY id", values).fetchall()
        names = ("id", "at", "service", "kind", "reference", "cents", "body")
        return [{**dict(zip(names, row, strict=True)), "body": json.loads(row[6])} for row in rows]

    def duplicates(self) -> list[dict[str, Any]]:
        """Loans, reservations and payments that happened more than once for the same thing, with how often."""
        sql = """SELECT kind, body, COUNT(*) FROM effects WHERE kind IN ('loan', 'reservation', 'payment')
                 GROUP BY kind, body HAVING COUNT(*) > 1"""
        with self._transaction() as db:
            rows = db.execute(sql).fetchall()
        return [{"kind": kind, "body": json.loads(body), "count": count} for kind, body, count in rows]
