"""Is every line of an input file a request of the batch?"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stille.server.batches.store import BatchRecord, Line

MAX_LINES = 50_000
MAX_ERRORS = 100
MAX_CUSTOM_ID = 512  # characters

_ENVELOPE_BYTES = 8192  # of a line beside its body
_FIELDS = {"custom_id", "method", "url", "body"}


@dataclass
class Checked:
    """What was found in an input file.

    Attributes:
        lines: its requests.
        model: that they all name.
        errors: OpenAI's objects, {code, message, line, param}; at most `MAX_ERRORS`. If there are any the file cannot
            be used.
    """

    lines: list[Line] = field(default_factory=list)
    model: str = ""
    errors: list[dict[str, Any]] = field(default_factory=list)

    def error(self, code: str, message: str, line: int | None = None, param: str | None = None) -> None:
        """Add an error, unless there are enough."""
        if len(self.errors) < MAX_ERRORS:
            self.errors.append({"code": code, "message": message, "line": line, "param": param})


def check(batch: BatchRecord, path: Path, models: Collection[str], max_body_bytes: int) -> Checked:
    """Read an input file to its end. Blocks.

    Args:
        path: the file.
        models: names that requests may use.
        max_body_bytes: of one request; longer lines are not read.
    """
    found, seen = Checked(), dict[str, int]()
    longest = max_body_bytes + _ENVELOPE_BYTES
    try:
        with path.open("rb") as file:
            number, offset = 0, 0
            while raw := file.readline(longest + 1):
                number += 1
                if len(raw) > longest:
                    found.error("line_too_long", f"This line is longer than {longest} bytes; shorten it.", number)
                    return found
                if raw.strip():
                    if len(found.lines) >= MAX_LINES:
                        message = f"The file has more than {MAX_LINES} requests; make several batches of it."
                        found.error("too_many_requests", message, number)
                        return found
                    _check_line(found, seen, batch, Line(batch.seq, number, "", offset, len(raw)), raw, models)
                offset += len(raw)
    except OSError as error:
        found.error("file_unreadable", f"The input file cannot be read ({error.strerror}); upload it again.")
        return found
    if not found.lines and not found.errors:
        found.error("empty_file", "The file has no requests; there has to be one on each line.")
    return found


def parse(raw: bytes) -> Any:
    """A line as JSON.

    Raises:
        ValueError: it is none.
    """
    try:
        return json.loads(raw)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _check_line(
    found: Checked, seen: dict[str, int], batch: BatchRecord, line: Line, raw: bytes, models: Collection[str]
) -> None:
    number = line.number
    try:
        request = parse(raw)
    except ValueError as error:
        return found.error("invalid_json_line", f"This line is not valid JSON: {error}.", number)
    if not isinstance(request, dict):
        return found.error("invalid_request", "This line must be a JSON object.", number)
    for name in sorted(request.keys() - _FIELDS):
        found.error("unknown_parameter", f"Unknown parameter: '{name[:100]}'.", number, name[:100])
    for name in sorted(_FIELDS - request.keys()):
        found.error("missing_required_parameter", f"Missing required parameter: '{name}'.", number, name)
    if request.keys() != _FIELDS:
        return None
    custom_id, url, body = request["custom_id"], request["url"], request["body"]
    if not (isinstance(custom_id, str) and 0 < len(custom_id) <= MAX_CUSTOM_ID and _encodable(custom_id)):
        message = f"custom_id must be a string of 1 to {MAX_CUSTOM_ID} characters."
        return found.error("invalid_custom_id", message, number, "custom_id")
    first = seen.setdefault(custom_id, number)
    if first != number:
        message = f"The custom_id '{custom_id}' is that of line {first} already; each must be unique."
        found.error("duplicate_custom_id", message, number, "custom_id")
    if request["method"] != "POST":
        found.error("invalid_method", "The method must be 'POST'.", number, "method")
    if url != batch.endpoint:
        message = f"The url must be the batch's endpoint, '{batch.endpoint}'; one batch is for one endpoint."
        found.error("mismatched_url", message, number, "url")
    if not isinstance(body, dict):
        return found.error("invalid_body", "The body must be a JSON object.", number, "body")
    _check_body(found, number, body, models)
    found.lines.append(Line(line.batch, number, custom_id, line.offset, line.size))
    return None


def _check_body(found: Checked, number: int, body: Mapping[str, Any], models: Collection[str]) -> None:
    for name in ("stream", "background"):
        if body.get(name):
            message = f"A request of a batch is answered as a whole; leave '{name}' out."
            found.error("unsupported_parameter", message, number, f"body.{name}")
    model = body.get("model")
    if not isinstance(model, str) or model not in models:
        message = f"The model must be one that this server has: {', '.join(sorted(models))}."
        return found.error("model_not_found", message, number, "body.model")
    if found.model and model != found.model:
        message = f"The model must be that of the lines before, '{found.model}'; one batch is for one model."
        return found.error("mismatched_model", message, number, "body.model")
    found.model = model
    return None


def _encodable(text: str) -> bool:
    """Whether there is no half of a surrogate pair in it, which neither SQLite nor UTF-8 files take."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
