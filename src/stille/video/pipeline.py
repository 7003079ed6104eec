"""Many cameras through one perception: the newest frame wins, every drop is counted, no camera harms another.

    a thread per camera     source -> health -> motion gate -> its queue
    one thread              newest frames of all cameras -> perception, as one batch -> on_seen

Decoding is in threads because libav releases the interpreter lock: on two cores two threads decode as fast as two
processes (benchmarks/video_sources.py), and no frame has to be copied from one process to another. With `workers` it is
in processes (`stille.video.sources.workers`): what is Python about 30 frames a second of some fifty cameras keeps the
lock of one interpreter so busy that perception waits for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np

from stille.video.checks import CheckCounts, Checks, CheckSettings
from stille.video.errors import VideoError
from stille.video.gate import GateCounters, MotionGate
from stille.video.health import HealthLimits
from stille.video.sources import Options, open_source, parse
from stille.video.sources.reader import Counters
from stille.video.sources.source import Source
from stille.video.sources.workers import Decoders, Decoding, Ended, Pin
from stille.video.types import Frame, Seen, Trouble

log = logging.getLogger(__name__)

OnSeen = Callable[[Seen, Frame], object]
OnTrouble = Callable[[Trouble], object]
State = Literal["waiting", "running", "offline", "ended", "failed", "removed"]

_LATENCIES = 4096  # kept for the percentiles, per camera
_POLL_S = 0.2


class Perception(Protocol):
    """What sees. It may also have `forget(camera: str)`, called when a camera was removed, in the same thread."""

    def see(self, frames: Sequence[Frame]) -> list[Seen]:
        """What is in each frame. The frames are of different cameras, and of each camera they come in order."""
        ...


@dataclass(frozen=True)
class CameraStats:
    """One camera so far.

    Attributes:
        state: "ended" is a recording that was read to its end; "failed" says why in `error`.
        source: what the source counted.
        dropped: frames that a newer one displaced before perception took them.
        gated: frames that perception was spared because nothing moved.
        gate: what the motion gate counted; None without one.
        gate_lost: with the gate in shadow, objects that were seen in frames that it would have skipped.
        seen, objects: frames that perception saw, and objects in them.
        errors: frames that perception, and calls that a sink or a check failed on.
        latency_p50_s, latency_p99_s: from a frame's arrival until perception had seen it, over the last 4,096.
    """

    state: State
    error: str | None
    source: Counters
    dropped: int
    gated: int
    gate: GateCounters | None
    gate_lost: int
    seen: int
    objects: int
    errors: int
    latency_p50_s: float
    latency_p99_s: float


class Pipeline:
    """Carries frames of many cameras to one perception, and what it sees to sinks.

        with Pipeline(perception, on_seen=[rules.see], on_trouble=[print]) as pipeline:
            pipeline.add("rtsp://viewer:secret@10.0.0.5/stream2#name=dock3,fps=5")
            pipeline.run()

    Args:
        on_seen: called with what was seen and its frame, in the thread of `run`, in order for each camera.
        on_trouble: called in the thread of the camera, so by several threads; with `workers` in the thread of `run`.
        options: of sources that are given as text.
        queue: frames of a camera that may wait for perception. Of a live camera the oldest is dropped, the reader of
            a recording waits.
        max_batch: frames that perception gets at once, one per camera.
        gate: "on" spares perception frames in which nothing moves; "shadow" only counts what that would lose.
        make_gate: makes each camera's gate.
        health: whether pictures are checked, by `limits`.
        workers: processes that decode and check pictures; 0: threads of this one. Sources then have to be text or
            picklable.
        pin: with `workers`, told of the memory that pictures lie in; `pin_for_cuda` for a perception on a GPU.
    """

    def __init__(
        self,
        perception: Perception,
        *,
        on_seen: Sequence[OnSeen] = (),
        on_trouble: Sequence[OnTrouble] = (),
        options: Options | None = None,
        queue: int = 2,
        max_batch: int = 64,
        gate: Literal["off", "on", "shadow"] = "off",
        make_gate: Callable[[], MotionGate] = MotionGate,
        health: bool = True,
        limits: HealthLimits | None = None,
        workers: int = 0,
        pin: Pin | None = None,
    ):
        if queue < 1 or max_batch < 1:
            raise VideoError(f"queue is {queue} and max_batch {max_batch}; expected 1 or more of both")
        if gate not in ("off", "on", "shadow"):
            raise VideoError(f"gate is {gate!r}; expected 'off', 'on' or 'shadow'")
        self._perception, self._on_seen, self._on_trouble = perception, tuple(on_seen), tuple(on_trouble)
        self._options, self._queue, self._max_batch = options, queue, max_batch
        self._settings = CheckSettings(gate, make_gate, health, limits)
        self._decoders = Decoders(workers, self._settings, queue, pin) if workers else None
        self._changed = threading.Condition()  # guards the cameras and their queues
        self._cameras: dict[str, _Camera] = {}
        self._numbers: dict[int, _Camera] = {}  # those that workers decode
        self._forget: list[str] = []
        self._stopped = False
        self._runner: int | None = None  # the thread of `run`
        self._next = 0  # whose turn it is to be first in a batch

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, source: str | Source) -> str:
        """Begins to read a source, now; returns its camera's name. Any thread, any time.

        Raises:
            SourceError: its text cannot be read.
            VideoError: there is a camera of this name, or the pipeline is closed.
        """
        name = parse(source, self._options)[0].name if isinstance(source, str) else source.name
        with self._changed:
            if self._stopped:
                raise VideoError("this pipeline is closed; make a new one")
            if name in self._cameras:
                raise VideoError(
                    f"there is a camera named {name!r} already; remove it first, or give this one a name: "
                    "SOURCE#name=other"
                )
            if self._decoders is not None:
                camera = _Camera(self._decoders.add(name, source, self._options))
                self._numbers[camera.number] = camera
            else:
                opened = (
                    open_source(source, self._options, on_trouble=self._tell) if isinstance(source, str) else source
                )
                camera = _Camera(opened, Checks(name, self._settings, self._tell))
                camera.thread = threading.Thread(target=self._read, args=(camera,), name=f"camera {name}", daemon=True)
            self._cameras[name] = camera
        if camera.thread is not None:
            camera.thread.start()
        return name

    def remove(self, name: str) -> CameraStats:
        """Ends a camera; of its frames only those that perception has already taken are still seen.

        Raises:
            VideoError: there is none of this name.
        """
        with self._changed:
            camera = self._cameras.pop(name, None)
            if camera is None:
                known = ", ".join(sorted(self._cameras)) or "none"
                raise VideoError(f"there is no camera named {name!r}; there are: {known}")
            self._end(camera)
            if self._runner != threading.get_ident():
                self._forget.append(name)
            self._changed.notify_all()
        if self._runner == threading.get_ident():  # at once: a camera of this name may come next
            self._forget_now([name])
        return camera.stats()

    def run(self, until: Callable[[], bool] | None = None) -> None:
        """Sees frames until every camera has ended, `close` is called, `until` says so, or Ctrl-C.

        Ctrl-C ends it as `close` does and is not raised again; what was taken from the queues is finished first.
        Live cameras never end by themselves.
        """
        self._runner = threading.get_ident()
        try:
            while not (until is not None and until()):
                batch = self._take()
                if batch is None:
                    break
                if batch:
                    self._see(batch)
        except KeyboardInterrupt:
            log.info("interrupted: closing %d cameras", len(self._cameras))
            self.close()
        finally:
            self._runner = None

    def close(self, wait_s: float = 2.0) -> None:
        """Ends all cameras and `run`.

        Args:
            wait_s: for the cameras' threads. One that waits for a dead network stays until its timeout, harmless.
        """
        with self._changed:
            self._stopped = True
            cameras = list(self._cameras.values())
            for camera in cameras:
                if camera.state not in ("ended", "failed"):
                    self._end(camera)
            self._changed.notify_all()
        if self._decoders is not None:
            self._decoders.close()
        deadline = time.monotonic() + wait_s
        for camera in cameras:
            if camera.thread is not None and camera.thread is not threading.current_thread():
                camera.thread.join(max(0.0, deadline - time.monotonic()))

    def stats(self) -> dict[str, CameraStats]:
        """By camera, those that were removed left out. Any thread."""
        with self._changed:
            return {name: camera.stats() for name, camera in self._cameras.items()}

    def _end(self, camera: _Camera) -> None:
        camera.closing, camera.state = True, "removed"
        camera.queue.clear()
        if isinstance(camera.source, Decoding):
            assert self._decoders is not None
            self._numbers.pop(camera.number, None)
            self._decoders.remove(camera.source)
        else:
            camera.source.close()

    # A camera's thread

    def _read(self, camera: _Camera) -> None:
        assert not isinstance(camera.source, Decoding)
        try:
            for frame in camera.source:
                camera.state = "running"
                self._offer(camera, frame)
                if camera.closing:
                    break
            state, error = "ended", None
        except VideoError as failure:
            log.error("camera %s: %s", camera.name, failure)
            state, error = "failed", str(failure)
        except Exception as failure:
            log.exception("camera %s ended by an unexpected error", camera.name)
            state, error = "failed", f"{type(failure).__name__}: {failure}"
        with self._changed:
            if not camera.closing:
                camera.state, camera.error = state, error
            self._changed.notify_all()

    def _offer(self, camera: _Camera, frame: Frame) -> None:
        """A frame to the camera's queue, if it is worth seeing."""
        assert camera.checks is not None
        moves = camera.checks.look(frame)
        if moves is None:
            return
        with self._changed:
            while not camera.source.live and len(camera.queue) >= self._queue and not camera.closing:
                self._changed.wait(_POLL_S)
            if camera.closing:
                return
            if len(camera.queue) >= self._queue:
                camera.queue.popleft()
                camera.dropped += 1
            camera.queue.append((frame, moves))
            self._changed.notify_all()

    def _tell(self, trouble: Trouble) -> None:
        camera = self._cameras.get(trouble.camera)
        if camera is not None and trouble.kind == "offline" and camera.state in ("waiting", "running", "offline"):
            camera.state = "running" if trouble.over else "offline"
        for sink in self._on_trouble:
            try:
                sink(trouble)
            except Exception:
                if camera is not None:
                    camera.count_error(f"a sink failed on {trouble.kind}")

    # The thread of `run`

    def _take(self) -> list[tuple[_Camera, Frame, bool]] | None:
        """The next frame of each camera that has one; [] after a moment without any, None when it is over."""
        with self._changed:
            idle = not any(camera.queue for camera in self._cameras.values())
            if idle and all(camera.state in ("ended", "failed") for camera in self._cameras.values()):
                return None
            if idle and self._decoders is None and not self._stopped:
                self._changed.wait(_POLL_S)
        if self._decoders is not None and not self._stopped:
            self._receive(self._decoders, _POLL_S if idle else 0.0)
        with self._changed:
            if self._stopped:
                return None
            forget, self._forget = self._forget, []
            ready = [camera for camera in self._cameras.values() if camera.queue]
            first = self._next % len(ready) if ready else 0
            chosen = (ready[first:] + ready[:first])[: self._max_batch]
            self._next = first + len(chosen)
            batch = [(camera, *self._pop(camera)) for camera in chosen]
            self._changed.notify_all()
        self._forget_now(forget)
        return batch

    def _forget_now(self, names: list[str]) -> None:
        if (method := getattr(self._perception, "forget", None)) is not None:
            for name in names:
                method(name)

    def _receive(self, decoders: Decoders, wait_s: float) -> None:
        """What workers have decoded, into the cameras' queues."""
        for what in decoders.take(wait_s):
            if isinstance(what, Trouble):
                self._tell(what)
                continue
            with self._changed:
                camera = self._numbers.get(what.number)
                if camera is None:
                    continue
                if isinstance(what, Ended):
                    camera.state, camera.error = ("ended" if what.error is None else "failed"), what.error
                    continue
                if camera.state == "waiting":
                    camera.state = "running"
                if len(camera.queue) >= self._queue:
                    self._pop(camera)
                    camera.dropped += 1
                camera.queue.append((what.frame, what.moves))

    def _pop(self, camera: _Camera) -> tuple[Frame, bool]:
        if isinstance(camera.source, Decoding):
            assert self._decoders is not None
            self._decoders.acknowledge(camera.source)
        return camera.queue.popleft()

    def _see(self, batch: list[tuple[_Camera, Frame, bool]]) -> None:
        for (camera, frame, passes), seen in zip(batch, self._perceive(batch), strict=True):
            if seen is None:
                continue
            camera.latencies.append(time.monotonic() - frame.arrived)
            camera.seen += 1
            camera.objects += len(seen)
            if not passes:
                camera.gate_lost += len(seen)
            for sink in self._on_seen:
                try:
                    sink(seen, frame)
                except Exception:
                    camera.count_error(f"a sink failed on frame {frame.index}")

    def _perceive(self, batch: list[tuple[_Camera, Frame, bool]]) -> list[Seen | None]:
        """What is seen in each frame; None for those that perception fails on, alone as in the batch."""
        frames = [frame for _, frame, _ in batch]
        try:
            found = self._perception.see(frames)
            if len(found) != len(frames):
                raise VideoError(f"perception returned {len(found)} results for {len(frames)} frames")
            return list(found)
        except Exception:
            if len(batch) == 1:
                batch[0][0].count_error(f"perception failed on frame {frames[0].index}")
                return [None]
            return [self._perceive([each])[0] for each in batch]


class _Camera:
    """One camera of a pipeline. Its counters are written by one thread each."""

    def __init__(self, source: Source | Decoding, checks: Checks | None = None):
        self.source, self.checks = source, checks
        self.name = source.name
        self.thread: threading.Thread | None = None
        self.queue: deque[tuple[Frame, bool]] = deque()
        self.state: State = "waiting"
        self.error: str | None = None
        self.closing = False
        self.dropped = self.gate_lost = self.seen = self.objects = self.errors = 0
        self.latencies: deque[float] = deque(maxlen=_LATENCIES)

    @property
    def number(self) -> int:
        """Among those that workers decode."""
        assert isinstance(self.source, Decoding)
        return self.source.number

    @property
    def counts(self) -> CheckCounts:
        if isinstance(self.source, Decoding):
            return self.source.counts
        assert self.checks is not None
        return self.checks.counts

    def count_error(self, what: str) -> None:
        """Of the exception that is being handled; the log gets the first ones whole."""
        self.errors += 1
        log.error("camera %s: %s", self.name, what, exc_info=self.errors <= 3)

    def stats(self) -> CameraStats:
        latencies = np.array(self.latencies.copy()) if self.latencies else np.zeros(1)
        p50, p99 = np.percentile(latencies, (50, 99))
        counts = self.counts
        return CameraStats(
            self.state, self.error, replace(self.source.counters), self.dropped + counts.dropped, counts.gated,
            replace(counts.gate) if counts.gate is not None else None, self.gate_lost, self.seen, self.objects,
            self.errors + counts.errors, float(p50), float(p99),
        )  # fmt: skip
