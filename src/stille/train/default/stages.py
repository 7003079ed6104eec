"""Stages that are made once: each knows what it is made from, and is there whole or not at all.

A stage is a function that fills a folder. Its key is the hash of its version, of the settings and files that it reads,
and of what the stages before it have made; the folder of a finished one is `OUT/stages/NN-name-key`. Until it is
finished, it lies in `OUT/work`, where the function finds what a killed run of it has left.

To add a stage, write the function and put a `Stage` into the list of `stille.train.default.STAGES`.
"""

import hashlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stille.errors import ConfigError
from stille.ledger import describe_commit, describe_machine
from stille.model.convert.work import key_of
from stille.train.default.settings import DefaultSettings

logger = logging.getLogger(__name__)

NOTE, CLOCK = "stage.json", "seconds"
DONE, BEGUN, STALE, TO_DO = "done", "begun", "stale", "to do"
TICK = 2.0  # seconds between notes of the time spent


@dataclass
class Progress:
    """What a stage reports while it runs.

    Attributes:
        stage: its name.
        done, total: of its unit; total 0: unknown.
        text: what to say about it.
    """

    stage: str
    done: float
    total: float
    text: str = ""


@dataclass
class Context:
    """What a stage is given.

    Attributes:
        settings: filled.
        device: "cpu" or "cuda".
        folder: to fill.
        done: folders of the stages before it, by name.
        report: shows progress.
        quiet: show nothing else.
    """

    settings: DefaultSettings
    device: str
    folder: Path = Path()
    done: dict[str, Path] = field(default_factory=dict)
    report: Callable[[Progress], None] = lambda progress: None
    quiet: bool = False


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline.

    Attributes:
        name: of the stage.
        version: raised when what it makes of the same inputs changes.
        inputs: what it reads of settings and files, as JSON's types.
        run: fills `context.folder`, going on from what is there; returns facts for its note.
        needs: stages whose results it reads.
        about: what it does, in a line.
        kept: of its folder, what is part of the result; the rest is removed. Empty: everything.
    """

    name: str
    version: int
    inputs: Callable[[DefaultSettings], dict[str, Any]]
    run: Callable[[Context], dict[str, Any]]
    needs: tuple[str, ...] = ()
    about: str = ""
    kept: tuple[str, ...] = ()


@dataclass(frozen=True)
class Status:
    """How far a stage is.

    Attributes:
        stage: it.
        state: `DONE`; `BEGUN`: a part is there; `STALE`: made from other inputs; `TO_DO`.
        folder: of the result or the part, if there is one.
        minutes: spent on it, over all runs of it.
    """

    stage: Stage
    state: str
    folder: Path | None
    minutes: float


class Stopped(Exception):
    """A stage was stopped on request and keeps what it has."""


class Pipeline:
    """Stages in order, in a folder.

    Args:
        stages: in the order in which they run.
        out: the folder.
        settings: filled.
        device: "cpu" or "cuda".
    """

    def __init__(self, stages: Sequence[Stage], out: Path, settings: DefaultSettings, device: str):
        self.stages, self.out, self.settings, self.device = stages, out, settings, device

    def status(self) -> list[Status]:
        """Of every stage, in order."""
        found, done = [], {}
        for number, stage in enumerate(self.stages, 1):
            key = self._key(stage, done)
            folder = None if key is None else self._folder(number, stage, key)
            if folder is not None and (note := _note(folder)) is not None:
                done[stage.name] = folder
                found.append(Status(stage, DONE, folder, note["seconds"] / 60))
                continue
            part = None if key is None else self._work(number, stage, key)
            if part is not None and part.exists():
                found.append(Status(stage, BEGUN, part, _seconds(part) / 60))
                continue
            others = [f for f in (self.out / "stages").glob(f"{number:02d}-{stage.name}-*") if _note(f) is not None]
            others.sort(key=lambda folder: folder.stat().st_mtime)
            minutes = _note(others[-1])["seconds"] / 60 if others else 0.0  # pyright: ignore[reportOptionalSubscript]
            found.append(Status(stage, STALE if others else TO_DO, others[-1] if others else None, minutes))
        return found

    def run(
        self,
        *,
        only: str | None = None,
        until: str | None = None,
        report: Callable[[Progress], None] = lambda progress: None,
        quiet: bool = False,
    ) -> dict[str, Path]:
        """Make what is not there.

        Args:
            only: make this stage alone; those that it needs must be done.
            until: end after this one.
            report: shows progress.
            quiet: show nothing else.

        Returns:
            Folders of the finished stages, by name.

        Raises:
            ConfigError: an unknown stage, or one that needs another first.
            Stopped: SIGINT came; what is there is kept.
        """
        names = [stage.name for stage in self.stages]
        for name in (only, until):
            if name is not None and name not in names:
                raise ConfigError(f"there is no stage {name!r}; stages are {', '.join(names)}.")
        done: dict[str, Path] = {}
        for number, stage in enumerate(self.stages, 1):
            missing = [name for name in stage.needs if name not in done]
            if stage.name == only and missing:
                raise ConfigError(f"{stage.name} needs {', '.join(missing)} first: run without --only, or that stage.")
            key = None if missing else self._key(stage, done)
            if key is not None:
                folder = self._folder(number, stage, key)
                if _note(folder) is None and only in (None, stage.name):
                    context = Context(self.settings, self.device, self._work(number, stage, key), dict(done))
                    context.report, context.quiet = report, quiet
                    self._make(stage, key, context, folder)
                if _note(folder) is not None:
                    done[stage.name] = folder
            if stage.name in (only, until):
                break
        return done

    def _make(self, stage: Stage, key: str, context: Context, folder: Path) -> None:
        work = context.folder
        work.mkdir(parents=True, exist_ok=True)
        if _note(work) is None:  # else a kill came between the end of the work and its move
            logger.info("stage %s in %s", stage.name, work)
            with _Clock(work) as clock:
                facts = stage.run(context)
            note = dict(
                stage=stage.name, version=stage.version, key=key, inputs=stage.inputs(self.settings), needs=stage.needs,
                output=digest_of(work, stage.kept), seconds=round(clock.seconds, 2),
                date=time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime()), machine=describe_machine(),
                commit=describe_commit(), found=facts,
            )  # fmt: skip
            write_json(work / NOTE, note)
        for path in work.iterdir():
            if path.name == CLOCK or (stage.kept and path.name not in (*stage.kept, NOTE)):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists():  # without a note: somebody's remains
            shutil.rmtree(folder)
        os.replace(work, folder)

    def _key(self, stage: Stage, done: dict[str, Path]) -> str | None:
        """Hash of what a stage is made from; None while what it needs is not there."""
        if any(name not in done for name in stage.needs):
            return None
        before = {name: note_of(done[name])["output"] for name in stage.needs}
        inputs = stage.inputs(self.settings)
        return key_of(name=stage.name, version=stage.version, inputs=inputs, before=before)[:8]

    def _folder(self, number: int, stage: Stage, key: str) -> Path:
        return self.out / "stages" / f"{number:02d}-{stage.name}-{key}"

    def _work(self, number: int, stage: Stage, key: str) -> Path:
        return self.out / "work" / f"{number:02d}-{stage.name}-{key}"


class _Clock:
    """Seconds spent on a stage, over kills: noted in its folder every few seconds."""

    def __init__(self, folder: Path):
        self._file, self._before, self._began = folder / CLOCK, _seconds(folder), time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def seconds(self) -> float:
        return self._before + time.monotonic() - self._began

    def __enter__(self) -> "_Clock":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._write()

    def _run(self) -> None:
        while not self._over.wait(TICK):
            self._write()

    def _write(self) -> None:
        scratch = self._file.with_suffix(".tmp")
        scratch.write_text(f"{self.seconds:.2f}")
        os.replace(scratch, self._file)


def _seconds(folder: Path) -> float:
    try:
        return float((folder / CLOCK).read_text())
    except (OSError, ValueError):
        return 0.0


def _note(folder: Path) -> dict[str, Any] | None:
    try:
        note = json.loads((folder / NOTE).read_text(encoding="utf-8"))
        return note if {"output", "seconds"} <= note.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def note_of(folder: Path) -> dict[str, Any]:
    """The note of a finished stage.

    Raises:
        ConfigError: it is gone or damaged.
    """
    if (note := _note(folder)) is None:
        raise ConfigError(f"{folder / NOTE} is gone or damaged; remove the folder, the stage is made again.")
    return note


def digest_of(folder: Path, kept: Sequence[str] = ()) -> str:
    """sha256 over names and contents of a folder's files (of those kept, if it says so), but for notes."""
    found = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in (NOTE, CLOCK)):
        name = path.relative_to(folder)
        if not kept or name.parts[0] in kept:
            found.update(f"{name}\n{file_digest(path)}\n".encode())
    return found.hexdigest()


def file_digest(file: Path) -> str:
    """sha256 of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def files_digest(files: Iterable[str]) -> list[str]:
    """sha256 of files that the user names.

    Raises:
        ConfigError: one is not there.
    """
    try:
        return [file_digest(Path(file)) for file in files]
    except OSError as error:
        raise ConfigError(f"a file that the pipeline reads cannot be read: {error}.") from error


def write_json(file: Path, values: Any) -> None:
    """Whole or not at all."""
    scratch = file.with_suffix(".tmp")
    scratch.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    os.replace(scratch, file)
