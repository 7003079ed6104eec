"""Events as lines of JSON in a file that begins anew when it is large."""

from __future__ import annotations

import os
from contextlib import suppress
from io import FileIO
from pathlib import Path

from stille.video.types import Event


class JsonLines:
    """
    Args:
        path: the newest lines; `path.1` has those before them, and so on.
        size: bytes after which a new file begins.
        keep: older files that are kept.
        sync: make each line safe against a power cut.
    """

    def __init__(
        self, path: str | os.PathLike[str], size: int = 64 << 20, keep: int = 5, withheld: bool = False,
        sync: bool = False,
    ):  # fmt: skip
        self.path, self.size, self.keep, self.withheld, self.sync = Path(path), size, keep, withheld, sync
        self.name = f"jsonl:{self.path}"
        self._file: FileIO | None = None

    def send(self, event: Event) -> None:
        file = self._file or self._open()
        line = event.model_dump_json().encode() + b"\n"
        before = file.tell()
        if before and before + len(line) > self.size:
            self.close()
            self._rotate()
            file, before = self._open(), 0
        try:
            written = 0
            while written < len(line):
                written += file.write(line[written:])
            if self.sync:
                os.fsync(file.fileno())
        except OSError:  # a full disk may have taken half of the line
            self._file = None
            with suppress(OSError):
                file.truncate(before)
            with suppress(OSError):
                file.close()
            raise

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> FileIO:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = FileIO(self.path, "a+")
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":  # a line that a crash cut off
                file.write(b"\n")
        self._file = file
        return file

    def _rotate(self) -> None:
        for number in range(self.keep, 0, -1):
            older = self.path.with_name(f"{self.path.name}.{number}")
            newer = self.path.with_name(f"{self.path.name}.{number - 1}") if number > 1 else self.path
            if newer.exists():
                os.replace(newer, older)
        if self.keep == 0:
            self.path.unlink()
