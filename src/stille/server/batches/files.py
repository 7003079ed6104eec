"""Files that were uploaded, and those that batches wrote."""

import os
import sqlite3
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from stille.server.batches.database import Database
from stille.server.errors import ApiError

UNFINISHED = ("validating", "in_progress", "finalizing", "cancelling")
"""States of a batch that still needs its input file."""
OUTPUT_PURPOSE = "batch_output"

_PART = ".part"
_COLUMNS = "id, bytes, created_at, expires_at, filename, purpose"
_IN_USE = f"SELECT id FROM batches WHERE input_file_id = ? AND status IN {UNFINISHED}"


@dataclass(frozen=True)
class FileRecord:
    """What is known about a file.

    Attributes:
        id: its name, also in the folder.
        bytes: its size.
        created_at, expires_at: in seconds since 1970; without the second it is kept until it is deleted.
    """

    id: str
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str


class FileStore:
    """Files in a folder, and what is known about them in the database. Methods block: call them in worker threads.

    A file is written under another name, synced and renamed before its row is added; what is in the folder without a
    row is what a process that was killed had not finished, and is removed at the start.

    Args:
        folder: made if need be.
        max_files: most uploaded files at a time.
    """

    def __init__(self, database: Database, folder: Path, max_files: int):
        self._database = database
        self._folder = folder
        self._max_files = max_files
        folder.mkdir(mode=0o700, exist_ok=True)
        with database.reading() as db:
            known = {row["id"] for row in db.execute("SELECT id FROM files")}
        for path in folder.iterdir():
            if path.name not in known:
                path.unlink()

    def path(self, file_id: str) -> Path:
        """Where a file's content is; ids come from records, never from requests."""
        return self._folder / file_id

    def new_part(self) -> Path:
        """Where to write a file before it is complete."""
        return self._folder / f"{uuid.uuid4().hex}{_PART}"

    def create(self, part: Path) -> BinaryIO:
        """Open a new file for writing, its owner's only: it holds what users wrote."""
        return os.fdopen(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb")

    def upload(self, part: Path, filename: str, purpose: str, keep_s: int | None) -> FileRecord:
        """Keep a file that was written to `part`.

        Args:
            keep_s: seconds until it expires; None: it does not.

        Raises:
            ApiError: there are too many.
        """
        self.sweep()
        record = self.publish(part, filename, purpose, keep_s)
        try:
            with self._database.transaction() as db:
                query = "SELECT count(*) FROM files WHERE purpose != ?"
                if db.execute(query, (OUTPUT_PURPOSE,)).fetchone()[0] >= self._max_files:
                    message = f"There are {self._max_files} uploaded files already, the most allowed; delete some."
                    raise ApiError(400, message, code="too_many_files", param="file")
                self.insert(db, record)
        except BaseException:
            self.path(record.id).unlink(missing_ok=True)
            raise
        return record

    def publish(self, part: Path, filename: str, purpose: str, keep_s: int | None) -> FileRecord:
        """Give a complete file its id and its place; it is lost unless `insert` follows."""
        now = int(time.time())
        expires_at = None if keep_s is None else now + keep_s
        record = FileRecord(f"file-{uuid.uuid4().hex}", part.stat().st_size, now, expires_at, filename, purpose)
        _sync(part)
        os.replace(part, self.path(record.id))
        _sync(self._folder)
        return record

    def insert(self, db: sqlite3.Connection, record: FileRecord) -> None:
        """Add a file's row in somebody's transaction."""
        values = (record.id, record.bytes, record.created_at, record.expires_at, record.filename, record.purpose)
        db.execute(f"INSERT INTO files ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)", values)

    def get(self, file_id: str) -> FileRecord | None:
        """What is known about a file, if there is one."""
        query = f"SELECT {_COLUMNS} FROM files WHERE id = ? AND (expires_at IS NULL OR expires_at > ?)"
        with self._database.reading() as db:
            row = db.execute(query, (file_id, int(time.time()))).fetchone()
        return None if row is None else FileRecord(*row)

    def page(
        self, *, after: str | None, limit: int, newest_first: bool, purpose: str | None
    ) -> tuple[Sequence[FileRecord], bool]:
        """Files in the order of their making, and whether there are more.

        Args:
            after: the last one of the page before.

        Raises:
            ApiError: there is no such file.
        """
        sign, order = ("<", "DESC") if newest_first else (">", "ASC")
        where, values = "(expires_at IS NULL OR expires_at > ?)", [int(time.time())]
        with self._database.reading() as db:
            if after is not None:
                found = db.execute("SELECT seq FROM files WHERE id = ?", (after,)).fetchone()
                if found is None:
                    raise no_file(after, "after")
                where, values = f"{where} AND seq {sign} ?", [*values, found["seq"]]
            if purpose is not None:
                where, values = f"{where} AND purpose = ?", [*values, purpose]
            query = f"SELECT {_COLUMNS} FROM files WHERE {where} ORDER BY seq {order} LIMIT ?"
            rows = db.execute(query, (*values, limit + 1)).fetchall()
        return [FileRecord(*row) for row in rows[:limit]], len(rows) > limit

    def delete(self, file_id: str) -> None:
        """Remove a file.

        Raises:
            ApiError: there is none, or a batch needs it.
        """
        with self._database.transaction() as db:
            user = db.execute(_IN_USE, (file_id,)).fetchone()
            if user is not None:
                message = f"The file '{file_id}' is the input of batch '{user['id']}'; cancel that one first."
                raise ApiError(409, message, code="file_in_use", param="file_id")
            if not db.execute("DELETE FROM files WHERE id = ?", (file_id,)).rowcount:
                raise no_file(file_id, "file_id")
        self.path(file_id).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove files that have expired and that no batch needs."""
        query = f"""DELETE FROM files WHERE expires_at <= ? AND id NOT IN
            (SELECT input_file_id FROM batches WHERE status IN {UNFINISHED}) RETURNING id"""
        with self._database.transaction() as db:
            gone = [row["id"] for row in db.execute(query, (int(time.time()),)).fetchall()]
        for file_id in gone:
            self.path(file_id).unlink(missing_ok=True)


def no_file(file_id: str, param: str) -> ApiError:
    """404: there is no file of this id."""
    return ApiError(404, f"There is no file '{file_id[:100]}'.", code="file_not_found", param=param)


def _sync(path: Path) -> None:
    """Have the system write a file, or a folder's names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
