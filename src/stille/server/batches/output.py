"""The files that say what became of a batch's requests."""

import json
import uuid
from pathlib import Path
from typing import Any

from stille.server.batches.files import OUTPUT_PURPOSE, FileRecord, FileStore
from stille.server.batches.store import BatchRecord, BatchStore, Line, LineResult
from stille.server.schemas.files import MAX_KEEP_S

_UNDONE = {
    "batch_cancelled": "The batch was cancelled before this request was finished.",
    "batch_expired": "The completion window ended before this request was finished.",
}


def answered(line: Line, status: int, request_id: str, body: bytes) -> LineResult:
    """The result of a line that was run."""
    try:
        document: Any = json.loads(body)
    except ValueError:
        document = body.decode("utf-8", "replace")
    response = {"status_code": status, "request_id": request_id, "body": document}
    return LineResult(line, 200 <= status < 300, _text(line, response, None))


def failed(line: Line, code: str, message: str) -> LineResult:
    """The result of a line that could not be run."""
    return LineResult(line, False, _text(line, None, {"code": code, "message": message}))


def finalize(batches: BatchStore, files: FileStore, batch: BatchRecord) -> None:
    """Write a batch's files and end it. Blocks. What a process that is killed leaves of it is done again.

    Raises:
        OSError, sqlite3.Error: the disk is full, for instance; the batch stays as it is.
    """
    batches.begin_finalizing(batch)
    undone = "batch_cancelled" if batch.status == "cancelling" else "batch_expired"
    parts: dict[bool, Path] = {True: files.new_part(), False: files.new_part()}
    used = set[bool]()
    published: list[FileRecord] = []
    try:
        with files.create(parts[True]) as output, files.create(parts[False]) as error:
            for line, ok, text in batches.results(batch):
                if text is None:
                    text = failed(line, undone, _UNDONE[undone]).text
                (output if ok else error).write(text.encode() + b"\n")
                used.add(ok)
        keep_s = batch.output_expires_after or MAX_KEEP_S
        records: dict[bool, FileRecord | None] = {True: None, False: None}
        for ok, name in ((True, "output"), (False, "error")):
            if ok in used:
                record = files.publish(parts[ok], f"{batch.id}_{name}.jsonl", OUTPUT_PURPOSE, keep_s)
                published.append(record)
                records[ok] = record
        batches.end(batch, files, records[True], records[False])
    except BaseException:
        for record in published:
            files.path(record.id).unlink(missing_ok=True)
        raise
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def _text(line: Line, response: dict[str, Any] | None, error: dict[str, str] | None) -> str:
    entry = {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": line.custom_id, "response": response, "error": error}
    return json.dumps(entry)  # in ASCII: readers that split text at U+2028 and the like still find one line
