"""The fleet: shards in Ray actors, the cameras shared out to them, and what happens when one of them dies.

A shard that is gone or deaf is killed for good before others get its cameras, so that no camera has two owners; its
checkpoints refuse it besides. It is started again after a pause that doubles, and then gets its cameras back: those
that rendezvous hashing gives it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from stille.scale.checkpoint import Checkpoint, next_turn
from stille.scale.hashing import choose
from stille.scale.shard import Shard, ShardSettings, ShardStatus
from stille.video.errors import VideoError
from stille.video.sources import parse

log = logging.getLogger(__name__)

_LONGEST_PAUSE_S = 60.0
_TOGETHER = 8  # cameras that a shard takes at once: reading their state holds up its frames
_STEADY_S = 60.0  # after which a shard's failures are forgotten


@dataclass
class Member:
    """A shard as the fleet sees it.

    Attributes:
        actor: None while it is down; ready: it answers.
        failures: in a row; restarts: so far.
        up, down: `time.monotonic()` when it last came and went.
    """

    name: str
    actor: Any = None
    ready: bool = False
    failures: int = 0
    restarts: int = 0
    up: float = 0.0
    down: float = 0.0
    pending: Any = None
    asked: float = 0.0
    status: ShardStatus | None = None


@dataclass
class Placed:
    """A camera: its source, and the shard that has it; None while none does."""

    source: str
    shard: str | None = None
    error: str | None = None
    retry: float = 0.0


class Fleet:
    """N shards and their cameras.

        with Fleet(settings, shards=4, gpus=0.25) as fleet:
            fleet.add("rtsp://viewer:secret@10.0.0.5/stream2#name=dock3")

    Starts Ray on this machine unless it is connected to a cluster already.

    Args:
        cpus, gpus: of each shard, for Ray to place it.
        beat_s: between two looks at each shard.
        deaf_s: after which a shard that does not answer, or whose thread does nothing, counts as dead. Loading weights
            may take longer, so a shard that starts has `start_s`.
        backoff_s: before a shard is started again; doubles with each failure in a row.
    """

    def __init__(
        self, settings: ShardSettings, shards: int, *, cpus: float = 1.0, gpus: float = 0.0, beat_s: float = 0.5,
        deaf_s: float = 10.0, start_s: float = 120.0, backoff_s: float = 1.0,
    ):  # fmt: skip
        if shards < 1:
            raise VideoError(f"shards is {shards}; expected 1 or more")
        import ray  # pyright: ignore[reportMissingImports]

        self._own_cluster = not ray.is_initialized()
        if self._own_cluster:
            ray.init(include_dashboard=False, log_to_driver=True, logging_level=logging.WARNING)
        self._ray: Any = ray
        self._settings, self._cpus, self._gpus = settings, cpus, gpus
        self._beat_s, self._deaf_s, self._start_s, self._backoff_s = beat_s, deaf_s, start_s, backoff_s
        self._state = settings.out / "state"
        self._lock = threading.RLock()  # guards members and cameras
        self._members = {name: Member(name) for name in (f"shard{i}" for i in range(shards))}
        self._cameras: dict[str, Placed] = {}
        self._ending = threading.Event()
        self.moves: list[tuple[float, str, str]] = []  # when, camera, to which shard
        for member in self._members.values():
            self._start(member)
        self._thread = threading.Thread(target=self._supervise, name="stille-fleet", daemon=True)
        self._thread.start()

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, source: str) -> str:
        """A camera by its source's text; its name. It is placed as soon as a shard is there.

        Raises:
            SourceError: the text cannot be read.
            VideoError: there is a camera of this name.
        """
        name = parse(source)[0].name
        with self._lock:
            if name in self._cameras:
                raise VideoError(f"there is a camera named {name!r} already; give this one a name: SOURCE#name=other")
            self._cameras[name] = Placed(source)
        return name

    def remove(self, camera: str) -> None:
        """
        Raises:
            VideoError: there is none of this name.
        """
        with self._lock:
            placed = self._cameras.pop(camera, None)
            if placed is None:
                known = ", ".join(sorted(self._cameras)) or "none"
                raise VideoError(f"there is no camera named {camera!r}; there are: {known}")
            if placed.shard is not None:
                self._call([(self._members[placed.shard], "remove", camera)])

    def status(self) -> tuple[dict[str, Member], dict[str, Placed]]:
        """Shards and cameras by name, as they were at the last beat."""
        with self._lock:
            return (
                {name: Member(**vars(member)) for name, member in self._members.items()},
                {name: Placed(**vars(placed)) for name, placed in self._cameras.items()},
            )

    def close(self) -> None:
        """Let all shards write their checkpoints, and end."""
        if self._ending.is_set():
            return
        self._ending.set()
        self._thread.join(30)
        calls = [member.actor.close.remote() for member in self._members.values() if member.actor is not None]
        with suppress(Exception):
            self._ray.wait(calls, num_returns=len(calls), timeout=20)
        for member in self._members.values():
            if member.actor is not None:
                self._ray.kill(member.actor)
        if self._own_cluster:
            self._ray.shutdown()

    # The supervisor's thread

    def _supervise(self) -> None:
        while not self._ending.wait(self._beat_s):
            try:
                with self._lock:
                    for member in self._members.values():
                        self._look_after(member)
                    self._place()
            except Exception:
                log.exception("the fleet's supervisor failed; it goes on")

    def _start(self, member: Member) -> None:
        actor = self._ray.remote(Shard)
        member.actor = actor.options(
            num_cpus=self._cpus, num_gpus=self._gpus, max_concurrency=4, max_restarts=0
        ).remote(member.name, self._settings)  # fmt: skip
        member.up, member.ready, member.status = time.monotonic(), False, None
        self._ask(member)

    def _ask(self, member: Member) -> None:
        member.pending, member.asked = member.actor.status.remote(), time.monotonic()

    def _look_after(self, member: Member) -> None:
        now = time.monotonic()
        if member.actor is None:
            pause = min(_LONGEST_PAUSE_S, self._backoff_s * 2.0 ** (member.failures - 1))
            if now - member.down >= pause:
                member.restarts += 1
                log.warning("%s is started again (%d times so far)", member.name, member.restarts)
                self._start(member)
            return
        done, _ = self._ray.wait([member.pending], timeout=0)
        if not done:
            if now - member.asked > (self._deaf_s if member.ready else self._start_s):
                self._lost(member, "does not answer")
            return
        try:
            member.status = self._ray.get(done[0])
        except Exception as error:
            self._lost(member, f"is gone ({type(error).__name__})")
            return
        assert member.status is not None
        if member.status.idle_s > self._deaf_s and member.status.cameras:
            self._lost(member, f"has done nothing for {member.status.idle_s:.0f} s")
            return
        member.ready = True
        if now - member.up > _STEADY_S:
            member.failures = 0
        self._ask(member)

    def _lost(self, member: Member, why: str) -> None:
        log.error("%s %s: its cameras move", member.name, why)
        with suppress(Exception):
            self._ray.kill(member.actor)
        member.actor, member.ready, member.status = None, False, None
        member.failures += 1
        member.down = time.monotonic()
        for placed in self._cameras.values():
            if placed.shard == member.name:
                placed.shard = None

    def _place(self) -> None:
        """Every camera to the shard that hashing gives it, among those that are there."""
        ready = [name for name, member in self._members.items() if member.ready]
        if not ready:
            return
        now = time.monotonic()
        moving = {
            name: target
            for name, placed in self._cameras.items()
            if now >= placed.retry and placed.shard != (target := choose(name, ready))
        }
        for name in list(moving):
            shard = self._cameras[name].shard
            if shard is not None and list(moving).index(name) >= _TOGETHER:
                del moving[name]  # what is seen to already can wait for the next beat
        leaving: defaultdict[str, list[str]] = defaultdict(list)
        coming: defaultdict[str, list[tuple[str, str, int]]] = defaultdict(list)
        for name, target in moving.items():
            shard = self._cameras[name].shard
            if shard is not None:
                leaving[shard].append(name)
            turn = next_turn(self._state, name)
            coming[target].append((name, self._cameras[name].source, turn))
        self._call([(self._members[shard], "release", names) for shard, names in leaving.items()])
        while coming:
            calls = []
            for target in list(coming):
                first, coming[target] = coming[target][:_TOGETHER], coming[target][_TOGETHER:]
                if not first or not self._members[target].ready:
                    del coming[target]
                    continue
                for name, _, turn in first:
                    self._cameras[name].shard = None
                    Checkpoint(self._state, name, turn).claim()
                calls.append((self._members[target], "add", [(source, turn) for _, source, turn in first]))
            for (member, *_), errors in zip(calls, self._call(calls), strict=True):
                for name, error in (errors or {}).items():
                    placed = self._cameras[name]
                    if error is None:
                        placed.shard, placed.error = member.name, None
                        self.moves.append((time.time(), name, member.name))
                    else:
                        log.error("%s: camera %s: %s", member.name, name, error)
                        placed.error, placed.retry = error, time.monotonic() + 10.0

    def _call(self, calls: list[tuple[Member, str, Any]]) -> list[Any]:
        """What shards answer, all asked at once; None of one that failed over it."""
        refs = [getattr(member.actor, method).remote(what) for member, method, what in calls]
        answers = []
        for (member, method, _), ref in zip(calls, refs, strict=True):
            try:
                answers.append(self._ray.get(ref, timeout=self._deaf_s))
            except Exception as error:
                answers.append(None)
                self._lost(member, f"failed to {method} cameras ({type(error).__name__})")
        return answers
