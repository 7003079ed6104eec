"""The SQLite file that files and batches share."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stille.errors import ConfigError

FILE_NAME = "batches.sqlite3"

_VERSION = 1
_TABLES = """
CREATE TABLE IF NOT EXISTS files (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, bytes INTEGER NOT NULL, created_at INTEGER NOT NULL,
    expires_at INTEGER, filename TEXT NOT NULL, purpose TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS batches (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, endpoint TEXT NOT NULL, input_file_id TEXT NOT NULL,
    completion_window TEXT NOT NULL, metadata TEXT, output_expires_after INTEGER, status TEXT NOT NULL,
    model TEXT, errors TEXT, output_file_id TEXT, error_file_id TEXT,
    total INTEGER NOT NULL DEFAULT 0, completed INTEGER NOT NULL DEFAULT 0, failed INTEGER NOT NULL DEFAULT 0,
    created_at INTEGER NOT NULL, expires_at INTEGER NOT NULL, in_progress_at INTEGER, finalizing_at INTEGER,
    completed_at INTEGER, failed_at INTEGER, expired_at INTEGER, cancelling_at INTEGER, cancelled_at INTEGER
);
CREATE INDEX IF NOT EXISTS batches_by_status ON batches (status);
CREATE TABLE IF NOT EXISTS lines (
    batch INTEGER NOT NULL, number INTEGER NOT NULL, custom_id TEXT NOT NULL, offset INTEGER NOT NULL,
    size INTEGER NOT NULL, ok INTEGER, result TEXT, UNIQUE (batch, number)
);
CREATE INDEX IF NOT EXISTS lines_to_do ON lines (batch, number) WHERE result IS NULL;
"""


class Database:
    """One connection, used by worker threads in turn.

    Write-ahead log, each commit synced: a client that was told of a batch or of a finished line finds it again after a
    loss of power too, not only after the end of the process. Lines are committed many at a time, so that costs little.

    Args:
        directory: where the file is; it exists.

    Raises:
        ConfigError: the file cannot be used, or is of another version.
    """

    def __init__(self, directory: Path):
        path = directory / FILE_NAME
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(path, timeout=10, check_same_thread=False, isolation_level=None)
            self._db.row_factory = sqlite3.Row
            path.chmod(0o600)  # it holds what users wrote
            self._prepare(path)
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"cannot keep batches in {path}: {error}; choose another data directory") from error

    def _prepare(self, path: Path) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, _VERSION):
            raise ConfigError(f"{path} is of version {version}, and this release reads {_VERSION}: move it away")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.executescript(_TABLES)
        self._db.execute(f"PRAGMA user_version = {_VERSION}")

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """The connection, for one thread at a time; what is done with it is done as a whole or not at all."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection, for one thread at a time, to look something up."""
        with self._lock:
            yield self._db

    def close(self) -> None:
        """Close the file. May be called twice."""
        with self._lock:
            self._db.close()
