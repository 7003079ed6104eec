"""What the pages know and do: pictures, rules, events, cameras. The pipeline's thread looks in between two frames."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from stille.video.errors import VideoError
from stille.video.rules import Rules
from stille.video.sources.address import parse
from stille.video.types import Event, Trouble
from stille.web.log import Log
from stille.web.rules_file import RulesFile
from stille.web.wall import Wall

if TYPE_CHECKING:
    from stille.video.events import Desk
    from stille.video.pipeline import CameraStats, Pipeline
    from stille.video.store import Store
    from stille.web.ask import Ask

log = logging.getLogger(__name__)
LOOK_S = 0.2
"""Between two looks of the pipeline's thread at what the pages want."""
RATE_S = 5.0
"""Over which frames per second are counted."""


@dataclass(frozen=True)
class CameraHealth:
    """
    Attributes:
        fps: frames that perception saw in a second, lately; None before that is known.
        trouble: the last one, over or not.
        shown: where it is, without its password.
    """

    name: str
    shown: str
    stats: CameraStats
    fps: float | None
    trouble: Trouble | None

    @property
    def up(self) -> bool:
        return self.stats.state == "running"


class Site:
    """
    Args:
        evidence: folder of pictures and clips; None: there are none.
        state: file in which the desk keeps its state.
        ask: answers questions; None: nobody does.
        on_rules: told of new rules, in the pipeline's thread, once the desk has them.
        local: whether cameras may be files and devices of this machine; streams always may.
    """

    def __init__(
        self, rules: RulesFile, store: Store, state: Path, *, evidence: Path | None = None, ask: Ask | None = None,
        on_rules: Callable[[Rules], None] | None = None, local: bool = True,
    ):  # fmt: skip
        self.rules, self.log, self.wall, self.ask = rules, Log(store), Wall(), ask
        self.evidence = evidence.resolve() if evidence is not None else None
        self.desk_health: dict[str, Any] = {}
        self._state, self._on_rules, self._local = state, on_rules, local
        self._pipeline: Pipeline | None = None
        self._desk: Desk | None = None
        self._errands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._troubles: dict[str, Trouble] = {}
        self._shown: dict[str, str] = {}
        self._seen: dict[str, deque[tuple[float, int]]] = {}
        self._looked = self._tidied = 0.0
        self._lock = threading.Lock()

    # The pipeline's thread

    def start(self, pipeline: Pipeline, desk: Desk, sources: list[str]) -> None:
        """
        Args:
            sources: of the cameras that the pipeline has already, in words.
        """
        self._pipeline, self._desk = pipeline, desk
        for source in sources:
            address, options = parse(source)
            self._shown[options.name or address.name] = address.shown

    def look(self) -> bool:
        """Do what the pages want, and show them what there is. For `Pipeline.run(until=...)`: never says that it is
        over."""
        while True:
            try:
                errand = self._errands.get_nowait()
            except Empty:
                break
            try:
                errand()
            except Exception:
                log.exception("an errand of the page failed")
        now = time.monotonic()
        if now - self._looked < LOOK_S or self._desk is None:
            return False
        self._looked = now
        if self.rules.changed():
            self._use(self.rules.rules)
        alarms: dict[str, list[Event]] = {}
        for event in self._desk.engine.open_events():
            if not event.withheld:
                alarms.setdefault(event.camera, []).append(event)
        self.wall.alarms = alarms
        self.desk_health = self._desk.health()
        self._count()
        if now - self._tidied >= 3600:
            self._tidied = now
            self.log.tidy()
        return False

    def trouble(self, trouble: Trouble) -> None:
        """For `Pipeline(on_trouble=[...])`."""
        self._troubles[trouble.camera] = trouble

    def _use(self, rules: Rules) -> None:
        """The engine goes on under other rules: as after a restart, without one."""
        desk = self._desk
        assert desk is not None
        before = desk.rules
        if rules == before:
            return
        if not desk.save(self._state):
            self.rules.problem = f"the rules are not in use yet: the state cannot be saved to {self._state}"
            return
        try:
            desk.rules = rules
            desk.load(self._state)
        except VideoError as error:
            desk.rules, self.rules.problem = before, f"the rules are not in use: {error}"
            log.exception("new rules cannot be used")
            return
        log.info("rules of %s are in use", self.rules.path)
        if self._on_rules is not None:
            self._on_rules(rules)

    def _count(self) -> None:
        now = time.monotonic()
        with self._lock:
            for name, stats in self.stats().items():
                past = self._seen.setdefault(name, deque())
                past.append((now, stats.seen))
                while len(past) > 2 and now - past[0][0] > RATE_S:
                    past.popleft()

    # Any thread

    def stats(self) -> dict[str, CameraStats]:
        return self._pipeline.stats() if self._pipeline is not None else {}

    def rules_changed(self) -> None:
        """The rules file has been changed here: use it from the next frame on."""
        self._errands.put(lambda: self._use(self.rules.rules))

    def add_camera(self, source: str) -> str:
        """Begins to read a source; its camera's name.

        Raises:
            VideoError: it cannot be read, has a name that there is, or is of a kind that may not be added here.
        """
        if self._pipeline is None:
            raise VideoError("no camera can be added before the pipeline runs")
        address, _ = parse(source)
        if not self._local and address.kind not in ("rtsp", "http"):
            raise VideoError(
                f"{address.shown} is a {address.kind} of the machine that runs this; from other machines only streams "
                "(rtsp, rtsps, http, https) can be added"
            )
        name = self._pipeline.add(source)
        self._shown[name] = address.shown
        return name

    def remove_camera(self, name: str) -> None:
        """Ends a camera; its events close.

        Raises:
            VideoError: there is none of this name.
        """
        if self._pipeline is None:
            raise VideoError("no camera can be removed before the pipeline runs")
        self._pipeline.remove(name)

        def end() -> None:
            assert self._desk is not None
            self._desk.end(name)
            self.wall.forget(name)
            with self._lock:
                self._seen.pop(name, None)
            self._troubles.pop(name, None)

        self._errands.put(end)

    def health(self) -> list[CameraHealth]:
        """Of all cameras, by name."""
        found = []
        for name, stats in sorted(self.stats().items()):
            with self._lock:
                past = list(self._seen.get(name, ()))
            span = past[-1][0] - past[0][0] if len(past) > 1 else 0.0
            fps = (past[-1][1] - past[0][1]) / span if span > 0 else None
            found.append(CameraHealth(name, self._shown.get(name, ""), stats, fps, self._troubles.get(name)))
        return found

    def open_events(self) -> list[Event]:
        """Of all cameras, newest first."""
        found = [event for events in self.wall.alarms.values() for event in events]
        return sorted(found, key=lambda event: -event.began)

    def evidence_file(self, id: str, what: str) -> Path | None:
        """The snapshot or clip of an event; None if there is none.

        Raises:
            VideoError: the event names a file outside of the evidence folder.
        """
        entry = self.log.get(id)
        name = getattr(entry.event, what) if entry is not None else None
        if name is None or self.evidence is None:
            return None
        path = (self.evidence / name).resolve()
        if self.evidence not in path.parents or path.suffix not in (".jpg", ".mp4"):
            raise VideoError(f"{what} of event {id} is outside of the evidence folder")
        return path if path.is_file() else None
