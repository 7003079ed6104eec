"""Batches and their lines, in the database."""

import dataclasses
import json
import sqlite3
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from stille.server.batches.database import Database
from stille.server.batches.files import UNFINISHED, FileRecord, FileStore
from stille.server.errors import ApiError

WINDOW_S = {"24h": 24 * 3600}
MAX_UNFINISHED = 100

_CHUNK = 200  # lines that are read at a time when files are written


@dataclass(frozen=True)
class BatchRecord:
    """A row of the table of batches; times in seconds since 1970, JSON as text."""

    seq: int
    id: str
    endpoint: str
    input_file_id: str
    completion_window: str
    metadata: str | None
    output_expires_after: int | None
    status: str
    model: str | None
    errors: str | None
    output_file_id: str | None
    error_file_id: str | None
    total: int
    completed: int
    failed: int
    created_at: int
    expires_at: int
    in_progress_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None


@dataclass(frozen=True)
class Line:
    """A request of a batch.

    Attributes:
        batch: `seq` of its batch; number: in the input file, from 1.
        offset, size: where it is in the input file, in bytes.
    """

    batch: int
    number: int
    custom_id: str
    offset: int
    size: int


@dataclass(frozen=True)
class LineResult:
    """A line is finished: whether with an answer, and the line of an output file that says so."""

    line: Line
    ok: bool
    text: str


class BatchStore:
    """Life cycles of batches. Methods block: call them in worker threads.

    Every change of state is one transaction that asks for the state before it, so a batch that is cancelled in the
    middle of a change stays cancelled, and a change that a killed process did not commit is made again.
    """

    def __init__(self, database: Database):
        self._database = database

    def create(
        self,
        endpoint: str,
        input_file_id: str,
        window: str,
        metadata: Mapping[str, str] | None,
        output_expires_after: int | None,
    ) -> BatchRecord:
        """A new batch, to be validated.

        Raises:
            ApiError: there are too many unfinished ones.
        """
        now, batch_id = int(time.time()), f"batch_{uuid.uuid4().hex}"
        with self._database.transaction() as db:
            unfinished = db.execute(f"SELECT count(*) FROM batches WHERE status IN {UNFINISHED}").fetchone()[0]
            if unfinished >= MAX_UNFINISHED:
                message = f"There are {MAX_UNFINISHED} unfinished batches, the most allowed; wait, or cancel some."
                raise ApiError(
                    429, message, code="too_many_batches", type="rate_limit_error", headers={"Retry-After": "60"}
                )
            db.execute(
                """INSERT INTO batches (id, endpoint, input_file_id, completion_window, metadata, output_expires_after,
                status, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?, 'validating', ?, ?)""",
                (
                    batch_id,
                    endpoint,
                    input_file_id,
                    window,
                    None if metadata is None else json.dumps(dict(metadata)),
                    output_expires_after,
                    now,
                    now + WINDOW_S[window],
                ),
            )
            return _one(db, batch_id)

    def get(self, batch_id: str) -> BatchRecord:
        """A batch.

        Raises:
            ApiError: there is none.
        """
        with self._database.reading() as db:
            return _one(db, batch_id)

    def page(self, *, after: str | None, limit: int) -> tuple[Sequence[BatchRecord], bool]:
        """Batches, the newest first, and whether there are more.

        Args:
            after: the last one of the page before.

        Raises:
            ApiError: there is no such batch.
        """
        with self._database.reading() as db:
            before = 2**62 if after is None else _one(db, after, "after").seq
            query = "SELECT * FROM batches WHERE seq < ? ORDER BY seq DESC LIMIT ?"
            rows = db.execute(query, (before, limit + 1)).fetchall()
        return [BatchRecord(*row) for row in rows[:limit]], len(rows) > limit

    def cancel(self, batch_id: str) -> BatchRecord:
        """Ask for a batch to be cancelled; it is once the worker has seen it.

        Raises:
            ApiError: there is none, or it is too late.
        """
        with self._database.transaction() as db:
            db.execute(
                """UPDATE batches SET status = 'cancelling', cancelling_at = ?
                WHERE id = ? AND status IN ('validating', 'in_progress')""",
                (int(time.time()), batch_id),
            )
            record = _one(db, batch_id)
        if record.status != "cancelling":
            message = f"The batch '{record.id}' is {record.status}: it is too late to cancel it."
            raise ApiError(409, message, code="batch_not_cancellable", param="batch_id")
        return record

    # For the worker

    def unfinished(self) -> Sequence[BatchRecord]:
        """Batches with work to do, the oldest first."""
        with self._database.reading() as db:
            query = f"SELECT * FROM batches WHERE status IN {UNFINISHED} ORDER BY seq"
            return [BatchRecord(*row) for row in db.execute(query)]

    def begin(self, batch: BatchRecord, model: str, lines: Sequence[Line]) -> None:
        """The input is valid."""
        with self._database.transaction() as db:
            changed = db.execute(
                """UPDATE batches SET status = 'in_progress', in_progress_at = ?, model = ?, total = ?
                WHERE seq = ? AND status = 'validating'""",
                (int(time.time()), model, len(lines), batch.seq),
            )
            if changed.rowcount:
                query = "INSERT INTO lines (batch, number, custom_id, offset, size) VALUES (?, ?, ?, ?, ?)"
                db.executemany(query, [dataclasses.astuple(line) for line in lines])

    def refuse(self, batch: BatchRecord, errors: Sequence[Mapping[str, object]]) -> None:
        """The input is not valid."""
        with self._database.transaction() as db:
            db.execute(
                """UPDATE batches SET status = 'failed', failed_at = ?, errors = ?
                WHERE seq = ? AND status = 'validating'""",
                (int(time.time()), json.dumps(errors), batch.seq),
            )

    def to_do(self, batches: Collection[int], limit: int) -> Sequence[Line]:
        """Lines without a result, in the order of the batches and of their files."""
        marks = ", ".join("?" * len(batches))
        query = f"""SELECT batch, number, custom_id, offset, size FROM lines
            WHERE batch IN ({marks}) AND result IS NULL ORDER BY batch, number LIMIT ?"""
        with self._database.reading() as db:
            return [Line(*row) for row in db.execute(query, (*batches, limit))]

    def record(self, results: Sequence[LineResult]) -> None:
        """Keep results, all in one transaction. Of a line that has one already the first stays."""
        with self._database.transaction() as db:
            for result in results:
                line = result.line
                changed = db.execute(
                    "UPDATE lines SET ok = ?, result = ? WHERE batch = ? AND number = ? AND result IS NULL",
                    (result.ok, result.text, line.batch, line.number),
                )
                column = "completed" if result.ok else "failed"
                query = f"UPDATE batches SET {column} = {column} + ? WHERE seq = ?"
                db.execute(query, (changed.rowcount, line.batch))

    def begin_finalizing(self, batch: BatchRecord) -> None:
        """No more lines of the batch are run; one that is being cancelled goes on being that."""
        with self._database.transaction() as db:
            db.execute(
                """UPDATE batches SET status = 'finalizing', finalizing_at = ?
                WHERE seq = ? AND status = 'in_progress'""",
                (int(time.time()), batch.seq),
            )

    def results(self, batch: BatchRecord) -> Iterator[tuple[Line, bool, str | None]]:
        """(line, whether it has an answer, its result if it has one), in the order of the input."""
        last, query = 0, "SELECT * FROM lines WHERE batch = ? AND number > ? ORDER BY number LIMIT ?"
        while True:
            with self._database.reading() as db:
                rows = db.execute(query, (batch.seq, last, _CHUNK)).fetchall()
            for row in rows:
                line = Line(row["batch"], row["number"], row["custom_id"], row["offset"], row["size"])
                yield line, bool(row["ok"]), row["result"]
            if len(rows) < _CHUNK:
                return
            last = rows[-1]["number"]

    def end(self, batch: BatchRecord, files: FileStore, output: FileRecord | None, error: FileRecord | None) -> None:
        """The batch's files are written: these belong to it from now on, and its lines are dropped."""
        with self._database.transaction() as db:
            status, left = _one(db, batch.id).status, _left(db, batch)
            outcome = "cancelled" if status == "cancelling" else "expired" if left else "completed"
            for record in (output, error):
                if record is not None:
                    files.insert(db, record)
            db.execute(
                f"""UPDATE batches SET status = '{outcome}', {outcome}_at = ?, output_file_id = ?, error_file_id = ?
                WHERE seq = ?""",
                (int(time.time()), output and output.id, error and error.id, batch.seq),
            )
            db.execute("DELETE FROM lines WHERE batch = ?", (batch.seq,))


def _one(db: sqlite3.Connection, batch_id: str, param: str = "batch_id") -> BatchRecord:
    row = db.execute("SELECT * FROM batches WHERE id = ?", (batch_id,)).fetchone()
    if row is None:
        raise ApiError(404, f"There is no batch '{batch_id[:100]}'.", code="batch_not_found", param=param)
    return BatchRecord(*row)


def _left(db: sqlite3.Connection, batch: BatchRecord) -> int:
    query = "SELECT count(*) FROM lines WHERE batch = ? AND result IS NULL"
    return db.execute(query, (batch.seq,)).fetchone()[0]
