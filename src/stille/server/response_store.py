"""Responses that are kept: one SQLite table, in a file or in memory."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stille.errors import ConfigError
from stille.server.settings import ServerSettings

FILE_NAME = "responses.sqlite3"

_VERSION = 1
_TABLES = """
CREATE TABLE IF NOT EXISTS responses (
    id TEXT PRIMARY KEY, previous TEXT, status TEXT NOT NULL, response TEXT NOT NULL, items TEXT NOT NULL,
    size INTEGER NOT NULL, used REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS by_use ON responses (used);
CREATE TABLE IF NOT EXISTS totals (count INTEGER NOT NULL, size INTEGER NOT NULL);
INSERT INTO totals SELECT 0, 0 WHERE NOT EXISTS (SELECT 1 FROM totals);
CREATE TRIGGER IF NOT EXISTS added AFTER INSERT ON responses BEGIN
    UPDATE totals SET count = count + 1, size = size + NEW.size;
END;
CREATE TRIGGER IF NOT EXISTS removed AFTER DELETE ON responses BEGIN
    UPDATE totals SET count = count - 1, size = size - OLD.size;
END;
"""
# What goes before a response, the newest first.
_CHAIN = """
WITH RECURSIVE chain(id, previous, depth) AS (
    SELECT id, previous, 0 FROM responses WHERE id = ?
    UNION ALL
    SELECT r.id, r.previous, chain.depth + 1 FROM responses r JOIN chain ON r.id = chain.previous
)
SELECT r.id, r.previous, r.response, r.items FROM chain JOIN responses r USING (id) ORDER BY depth
"""
_INTERRUPTED = {"code": "server_error", "message": "The server was stopped before the response was complete."}


@dataclass(frozen=True)
class StoredResponse:
    """A response as it was answered, and the items that it was asked with (those of earlier ones not included)."""

    response: dict[str, Any]
    items: list[dict[str, Any]]


class ResponseStore:
    """Keeps responses, the latest used of them, by three bounds.

    A response is used when it is stored and when another one goes on from it or from a later one of its chain, so that
    a conversation that goes on stays whole. Methods run in worker threads, one at a time, and suit any task.

    Args:
        directory: where the file is, which survives restarts; None: in memory.
        max_count: most responses that are kept.
        max_bytes: most bytes that they take as JSON.
        max_age_s: seconds after its last use that a response is kept.

    Raises:
        ConfigError: the directory cannot be used, or holds a file of another version.
    """

    def __init__(self, directory: Path | None, *, max_count: int, max_bytes: int, max_age_s: float):
        self._max_count, self._max_bytes, self._max_age_s = max_count, max_bytes, max_age_s
        self._lock = threading.Lock()
        path: Path | str = ":memory:"
        try:
            if directory is not None:
                directory.mkdir(parents=True, exist_ok=True)
                path = directory / FILE_NAME
            self._db = sqlite3.connect(path, timeout=10, check_same_thread=False, isolation_level=None)
            self._prepare()
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"cannot keep responses in {path}: {error}; choose another data directory") from error
        if directory is not None:
            (directory / FILE_NAME).chmod(0o600)  # it holds what users wrote

    @classmethod
    def from_settings(cls, settings: ServerSettings) -> ResponseStore:
        """The store that a server is set to have."""
        return cls(
            settings.data_dir,
            max_count=settings.stored_responses,
            max_bytes=settings.stored_responses_bytes,
            max_age_s=settings.stored_responses_days * 24 * 3600,
        )

    def _prepare(self) -> None:
        db = self._db
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, _VERSION):
            raise ConfigError(f"the kept responses are of version {version}; this release reads {_VERSION}: move them")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA secure_delete = ON")
        db.executescript(_TABLES)
        db.execute(f"PRAGMA user_version = {_VERSION}")
        # Nobody computes these any more.
        left = db.execute("SELECT response FROM responses WHERE status IN ('queued', 'in_progress')").fetchall()
        for (text,) in left:
            response = {**json.loads(text), "status": "failed", "error": _INTERRUPTED}
            db.execute(
                "UPDATE responses SET status = 'failed', response = ? WHERE id = ?",
                (json.dumps(response), response["id"]),
            )

    async def put(self, response: Mapping[str, Any], items: Sequence[Mapping[str, Any]]) -> None:
        """Keep a response under its id, in place of what is there; others may have to go."""
        await asyncio.to_thread(self._put, response, items)

    async def get(self, response_id: str) -> StoredResponse | None:
        """The response, if it is kept."""
        return await asyncio.to_thread(self._get, response_id)

    async def delete(self, response_id: str) -> bool:
        """Forget a response; whether it was there. Chains through it cannot be continued afterwards."""
        return await asyncio.to_thread(self._delete, response_id)

    async def chain(self, response_id: str) -> tuple[list[StoredResponse], str | None]:
        """A response and those that it goes on from, the oldest first, and the id at which the chain is broken.

        The id is None if all are there.
        """
        return await asyncio.to_thread(self._read_chain, response_id)

    def close(self) -> None:
        """Close the file. May be called twice."""
        with self._lock:
            self._db.close()

    def _put(self, response: Mapping[str, Any], items: Sequence[Mapping[str, Any]]) -> None:
        body, given = json.dumps(response), json.dumps(items)
        key, previous, now = response["id"], response["previous_response_id"], time.time()
        with self._lock, self._db as db:
            db.execute("BEGIN IMMEDIATE")
            db.execute("DELETE FROM responses WHERE id = ?", (key,))
            db.execute(
                "INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?, ?)",
                (key, previous, response["status"], body, given, len(body) + len(given), now),
            )
            self._trim(key, now)

    def _trim(self, newest: str, now: float) -> None:
        db = self._db
        db.execute("DELETE FROM responses WHERE used < ?", (now - self._max_age_s,))
        while True:
            count, size = db.execute("SELECT count, size FROM totals").fetchone()
            if count <= self._max_count and size <= self._max_bytes:
                return
            step = max(1, count - self._max_count)
            gone = db.execute(
                "DELETE FROM responses WHERE id IN (SELECT id FROM responses WHERE id != ? ORDER BY used LIMIT ?)",
                (newest, step),
            )
            if not gone.rowcount:  # the newest stays, however large it is
                return

    def _get(self, response_id: str) -> StoredResponse | None:
        with self._lock:
            row = self._db.execute(
                "SELECT response, items FROM responses WHERE id = ? AND used >= ?",
                (response_id, time.time() - self._max_age_s),
            ).fetchone()
        return None if row is None else StoredResponse(json.loads(row[0]), json.loads(row[1]))

    def _delete(self, response_id: str) -> bool:
        with self._lock:
            return bool(self._db.execute("DELETE FROM responses WHERE id = ?", (response_id,)).rowcount)

    def _read_chain(self, response_id: str) -> tuple[list[StoredResponse], str | None]:
        now = time.time()
        with self._lock, self._db as db:
            db.execute("BEGIN IMMEDIATE")
            db.execute("DELETE FROM responses WHERE used < ?", (now - self._max_age_s,))
            rows = db.execute(_CHAIN, (response_id,)).fetchall()
            db.executemany("UPDATE responses SET used = ? WHERE id = ?", [(now, row[0]) for row in rows])
        if not rows:
            return [], response_id
        return [StoredResponse(json.loads(row[2]), json.loads(row[3])) for row in reversed(rows)], rows[-1][1]
