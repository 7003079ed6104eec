"""A shard: a pipeline with some of the cameras, their desks, and the checkpoints that let others go on with them.

All that touches perception and desks happens in one thread, between two batches. Before a change that opens or closes
an event goes to the sinks it is in the camera's checkpoint, and it stays there until they have it: who goes on tells it
again. Sinks know by id and revision what they have.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue, SimpleQueue
from typing import Any, Literal

from pydantic import TypeAdapter
from torch import Tensor

from stille.errors import StilleError
from stille.scale.checkpoint import Checkpoint
from stille.video.errors import VideoError
from stille.video.events import Consistency, Desk
from stille.video.evidence import Evidence
from stille.video.pipeline import CameraStats, Perception, Pipeline
from stille.video.rules import Rules
from stille.video.sinks import Lane, Sinks
from stille.video.sources import parse
from stille.video.types import Event, Frame, Seen, Trouble

log = logging.getLogger(__name__)

_EVENTS = TypeAdapter(list[Event])
_IDLE_S = 0.02


@dataclass(frozen=True)
class ShardSettings:
    """What every shard does; has to be picklable.

    Attributes:
        out: folder; checkpoints are in `state`, evidence in `evidence`.
        make_perception: makes what sees; `state` and `set_state` of it, as `StilleCam` has them, keep identities.
        make_lanes: makes the sinks of the shard with this name.
        verify: withhold events that their frames do not bear out.
        evidence: keep pictures and clips.
        workers: decoding processes of a shard; 0: threads.
        checkpoint_s: between two checkpoints of a camera.
    """

    rules: Rules
    out: Path
    make_perception: Callable[[], Perception]
    make_lanes: Callable[[str], Sequence[Lane]]
    verify: bool = True
    evidence: bool = False
    workers: int = 0
    gate: Literal["off", "on", "shadow"] = "off"
    checkpoint_s: float = 1.0


@dataclass
class ShardStatus:
    """
    Attributes:
        idle_s: since the shard's thread did something last: many seconds mean that it is stuck.
        open_events: ids by camera.
    """

    pid: int
    idle_s: float
    cameras: dict[str, CameraStats] = field(default_factory=dict)
    open_events: dict[str, list[str]] = field(default_factory=dict)
    unsaved: int = 0


class Shard:
    """Lives in a process of its own; its methods may be called by any thread."""

    def __init__(self, name: str, settings: ShardSettings):
        self.name, self._settings = name, settings
        self._perception = settings.make_perception()
        self._sinks = Sinks(settings.make_lanes(name))
        self._troubles: SimpleQueue[Trouble] = SimpleQueue()
        self._pipeline = Pipeline(
            self._perception, on_seen=[self._see], on_trouble=[self._troubles.put], gate=settings.gate,
            workers=settings.workers,
        )  # fmt: skip
        self._kept: dict[str, _Kept] = {}
        self._orders: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()
        self._writer = _Writer()
        self._ending = threading.Event()
        self._alive = time.monotonic()
        self._thread = threading.Thread(target=self._work, name=f"stille-shard-{name}", daemon=True)
        self._thread.start()

    def add(self, cameras: list[tuple[str, int]]) -> dict[str, str | None]:
        """Go on with cameras where their checkpoints are, or begin: sources and turns.

        Returns:
            by name, what is wrong: its source cannot be read, its checkpoint is damaged, or it is here already.
        """
        return self._order(lambda: dict(self._add(*camera) for camera in cameras))

    def release(self, cameras: list[str]) -> None:
        """Others go on with them: their last checkpoints are written when this returns."""
        self._order(lambda: [self._release(camera) for camera in cameras])

    def remove(self, camera: str) -> None:
        """The camera is no more: its events close, its checkpoint goes."""
        self._order(lambda: self._remove(camera))

    def status(self) -> ShardStatus:
        kept = dict(self._kept)
        return ShardStatus(
            os.getpid(), time.monotonic() - self._alive, self._pipeline.stats(),
            {name: one.open_ids for name, one in kept.items()}, self._writer.failed,
        )  # fmt: skip

    def close(self) -> None:
        """Write all checkpoints and end; open events go on with whoever comes next."""
        self.release(list(self._kept))
        self._ending.set()
        self._thread.join(10)
        self._pipeline.close()
        self._sinks.close(5)

    def _order(self, what: Callable[[], Any]) -> Any:
        done: Future[Any] = Future()
        self._orders.put((what, done))
        return done.result(60)

    # The shard's thread

    def _work(self) -> None:
        while not self._ending.is_set():
            try:
                self._pipeline.run(until=self._tick)  # without cameras it is over at once
            except Exception:
                log.exception("shard %s: its pipeline ended by an unexpected error", self.name)
            time.sleep(_IDLE_S)

    def _tick(self) -> bool:
        now = self._alive = time.monotonic()
        while True:
            try:
                what, done = self._orders.get_nowait()
            except Empty:
                break
            try:
                done.set_result(what())
            except BaseException as error:
                done.set_exception(error)
        while not self._troubles.empty():
            trouble = self._troubles.get()
            if (kept := self._kept.get(trouble.camera)) is not None:
                self._tell(kept, kept.trouble(trouble))
        due = [kept for kept in self._kept.values() if now >= kept.due]
        for kept in due[: max(1, len(self._kept) // 16)]:  # a few at a time: frames do not wait for all
            self._save(kept, now)
        return self._ending.is_set()

    def _see(self, seen: Seen, frame: Frame) -> None:
        if (kept := self._kept.get(seen.camera)) is not None:
            self._tell(kept, kept.see(seen, frame))

    def _tell(self, kept: _Kept, changes: list[Event]) -> None:
        """To the checkpoint first, then to the sinks."""
        if not changes:
            return
        kept.unsent += changes
        if any(one.revision == 0 or one.state == "closed" for one in changes):
            if not kept.checkpoint.mine:
                self._drop(kept)
                return
            kept.save_rules()
        self._sinks.put(changes)

    def _save(self, kept: _Kept, now: float) -> None:
        kept.due = now + self._settings.checkpoint_s
        if not kept.checkpoint.mine:
            self._drop(kept)
            return
        stats = self._pipeline.stats().get(kept.camera)
        if stats is not None and stats.state in ("offline", "ended", "failed"):
            self._tell(kept, kept.advance(time.time()))
        if kept.unsent and self._sinks.secure(0.002):
            kept.unsent.clear()
        kept.save_rules()
        if (memory := self._memory(kept.camera)) is not None:
            self._writer.put(kept.checkpoint, memory)

    def _memory(self, camera: str) -> dict[str, Tensor] | None:
        perception: Any = self._perception
        if not hasattr(perception, "state") or camera not in perception.cameras:
            return None
        return perception.state(camera)

    def _add(self, source: str, turn: int) -> tuple[str, str | None]:
        name = parse(source)[0].name
        try:
            self._go_on(name, source, Checkpoint(self._settings.out / "state", name, turn))
        except StilleError as error:
            return name, str(error)
        return name, None

    def _go_on(self, name: str, source: str, checkpoint: Checkpoint) -> None:
        if name in self._kept:
            raise VideoError(f"there is a camera named {name!r} already")
        kept = _Kept(name, self._settings, checkpoint)
        perception: Any = self._perception
        memory = checkpoint.load_memory() if hasattr(perception, "set_state") else None
        if memory is not None:
            if "next_R" in memory:  # rules may have been saved later, and know identities that came after
                memory["next_R"] = memory["next_R"].clamp(min=kept.next_identity)
            perception.set_state(name, memory)
        self._pipeline.add(source)
        self._kept[name] = kept
        kept.unsent += kept.restored
        self._sinks.put(kept.restored)

    def _release(self, camera: str) -> None:
        if (kept := self._kept.pop(camera, None)) is None:
            return
        memory = self._memory(camera)
        self._pipeline.remove(camera)
        kept.desk.close()
        if kept.checkpoint.mine:
            self._tell(kept, kept.outbox.take())
            if self._sinks.secure(1.0):
                kept.unsent.clear()
            kept.save_rules()
            self._writer.drain(kept.checkpoint)
            if memory is not None:
                kept.checkpoint.save_memory(memory)

    def _remove(self, camera: str) -> None:
        if (kept := self._kept.pop(camera, None)) is None:
            return
        self._pipeline.remove(camera)
        self._tell(kept, kept.end())
        self._sinks.secure(1.0)
        self._writer.drain(kept.checkpoint)
        kept.checkpoint.delete()

    def _drop(self, kept: _Kept) -> None:
        log.error("shard %s: camera %s has another owner; it is dropped here", self.name, kept.camera)
        del self._kept[kept.camera]
        self._pipeline.remove(kept.camera)
        kept.desk.close(1.0)


class _Outbox(Sinks):
    """Takes what a desk tells."""

    def __init__(self) -> None:
        super().__init__()
        self._told: list[Event] = []

    def put(self, events: Iterable[Event]) -> None:
        self._told += events

    def take(self) -> list[Event]:
        told, self._told = self._told, []
        return told


class _Kept:
    """A camera's desk and checkpoint.

    Attributes:
        unsent: changes that sinks may lack.
        restored: changes to tell again, of a checkpoint.
        due: `time.monotonic()` of the next checkpoint.
    """

    def __init__(self, camera: str, settings: ShardSettings, checkpoint: Checkpoint):
        self.camera, self.checkpoint = camera, checkpoint
        self.outbox = _Outbox()
        evidence = Evidence(settings.out / "evidence") if settings.evidence else None
        self.desk = Desk(settings.rules, self.outbox, Consistency() if settings.verify else None, evidence)
        self.desk.load(checkpoint.rules)
        self.unsent: list[Event] = []
        self.restored = [*self._left(), *self.outbox.take()]
        self.due = 0.0

    @property
    def open_ids(self) -> list[str]:
        return [event.id for event in self.desk.engine.open_events()]

    @property
    def next_identity(self) -> int:
        """One that the rules do not know yet."""
        camera = self.desk.engine.state()["cameras"].get(self.camera, {})
        return max((int(identity) + 1 for identity in camera.get("tracks", {}).get("known", {})), default=0)

    def see(self, seen: Seen, frame: Frame) -> list[Event]:
        self.desk.see(seen, frame)
        return self.outbox.take()

    def trouble(self, trouble: Trouble) -> list[Event]:
        self.desk.trouble(trouble)
        return self.outbox.take()

    def advance(self, moment: float) -> list[Event]:
        self.desk.advance(self.camera, moment)
        return self.outbox.take()

    def end(self) -> list[Event]:
        self.desk.end(self.camera)
        self.desk.close()
        return self.outbox.take()

    def save_rules(self) -> None:
        """A full disk is told of and does not end the shard."""
        unsent = _EVENTS.dump_python(self.unsent, mode="json")
        try:
            self.checkpoint.save_rules({**self.desk.engine.state(), "unsent": unsent})
        except OSError as error:
            log.error("camera %s: its checkpoint cannot be written: %s", self.camera, error)

    def _left(self) -> list[Event]:
        """What the process before may not have delivered."""
        import json

        try:
            return _EVENTS.validate_python(json.loads(self.checkpoint.rules.read_bytes()).get("unsent", []))
        except FileNotFoundError:
            return []


class _Writer:
    """Writes what perception remembers, some megabytes per camera, in a thread; of a camera only the newest."""

    def __init__(self) -> None:
        self.failed = 0
        self._newest: dict[Path, tuple[Checkpoint, dict[str, Tensor]]] = {}
        self._due: Queue[Path] = Queue()
        threading.Thread(target=self._work, name="stille-checkpoints", daemon=True).start()

    def put(self, checkpoint: Checkpoint, memory: dict[str, Tensor]) -> None:
        if self._newest.get(checkpoint.memory) is None:
            self._newest[checkpoint.memory] = checkpoint, memory
            self._due.put(checkpoint.memory)
        else:
            self._newest[checkpoint.memory] = checkpoint, memory

    def drain(self, checkpoint: Checkpoint) -> None:
        """Forget what waits of a camera, and let what is being written be finished."""
        self._newest.pop(checkpoint.memory, None)
        self._due.join()

    def _work(self) -> None:
        while True:
            path = self._due.get()
            try:
                if (newest := self._newest.pop(path, None)) is not None and newest[0].mine:
                    newest[0].save_memory(newest[1])
            except OSError as error:
                self.failed += 1
                log.error("%s cannot be written: %s", path, error)
            finally:
                self._due.task_done()
