"""A source of frames: recordings are read to their end, live sources until they are closed, whatever happens."""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from av.video.frame import VideoFrame

from stille.video.alarms import Alarms, TroubleKind
from stille.video.sources.address import Address, Options
from stille.video.sources.clocks import FileClock, LiveClock
from stille.video.sources.failures import ReadError
from stille.video.sources.folder import FolderReader
from stille.video.sources.reader import Counters, Reader
from stille.video.types import Frame, Trouble

log = logging.getLogger(__name__)

_LIMITS: dict[TroubleKind, tuple[float, float]] = {"offline": (0.0, 1.0), "clock": (0.0, 30.0), "size": (0.0, 10.0)}
_LATE_S, _CAUGHT_UP_S = 1.0, 0.3
_LONGEST_WAIT_S = 30.0
_STEADY_S = 5.0  # of frames, after which a connection counts as good
_LONGEST_PAUSE_S = 5.0  # that pacing keeps where a recording has a gap


class Source(Protocol):
    """Frames of one camera, from whatever decodes them. One thread iterates, once; any thread may close.

    Attributes:
        name: of the camera.
        live: the newest frame is worth more than a complete sequence: who cannot keep up drops frames.
        counters: so far.
    """

    name: str
    live: bool
    counters: Counters

    def __iter__(self) -> Iterator[Frame]: ...

    def close(self) -> None: ...


class LibavSource:
    """A source that libav opens. Make it with `open_source`."""

    def __init__(self, address: Address, options: Options, on_trouble: Callable[[Trouble], None] | None):
        self.name = address.name
        self.shown = address.shown
        self.counters = Counters()
        self.live = address.kind not in ("file", "folder") or options.realtime
        self._address, self._options = address, options
        self._on_trouble = on_trouble
        self._alarms = Alarms(address.name, _LIMITS)
        self._closed = threading.Event()
        self._pick = _Pick(options.fps)
        self._size: tuple[int, int] | None = None

    def __iter__(self) -> Iterator[Frame]:
        """Frames until the end of a recording, or until `close`.

        Raises:
            ReadError: of a recording, always; of a live source after `attempts` failures in a row.
        """
        if self._address.kind in ("file", "folder"):
            yield from self._recording(self._open())
        else:
            yield from self._camera()

    def close(self) -> None:
        """Ends the iteration: at once while it waits, else after the frame or the timeout that it is at."""
        self._closed.set()

    def _open(self) -> Reader | FolderReader:
        kind = FolderReader if self._address.kind == "folder" else Reader
        return kind(self._address, self._options, self.counters)

    # Recordings

    def _recording(self, reader: Reader | FolderReader) -> Iterator[Frame]:
        options, clock, begun = self._options, None, None
        while True:
            before = self.counters.frames - self.counters.corrupt
            if clock is None:
                clock = FileClock(self._find_start(reader))
            clock.restart()
            try:
                for decoded in reader.decoded():
                    if self._closed.is_set():
                        return
                    if decoded is None:
                        self.counters.frames += 1
                        self.counters.late += 1
                        continue
                    moment, jump = clock.map(decoded.time, reader.interval)
                    if options.realtime:
                        now = time.monotonic()
                        if begun is None or moment - (now - begun) > _LONGEST_PAUSE_S:
                            begun = now - moment
                        if not self._keep_pace(reader, decoded, begun + moment):
                            continue
                    yield from self._deliver(reader, decoded, moment, jump)
            finally:
                reader.close()
            if self.counters.frames - self.counters.corrupt == before:
                raise ReadError("damaged", self.shown, "holds no picture that can be decoded")
            if not options.loop or self._closed.is_set():
                return
            reader = self._open()

    def _find_start(self, reader: Reader | FolderReader) -> float:
        if self._options.start is not None:
            return self._options.start
        if self._options.realtime or self._address.kind == "http":
            return time.time()
        if reader.recorded is not None:
            return reader.recorded
        return os.path.getmtime(self._address.target) - (reader.duration or 0.0)

    def _keep_pace(self, reader: Reader | FolderReader, decoded: VideoFrame, due: float) -> bool:
        """Waits until a frame is due; False if that is so long ago that it is left out."""
        late = time.monotonic() - due
        if late < 0:
            self._closed.wait(-late)
            late = 0.0
        self._catch_up(reader, decoded, late)
        if late < _LATE_S:
            return True
        self.counters.frames += 1
        self.counters.late += 1
        return False

    # Live

    def _camera(self) -> Iterator[Frame]:
        clock, failures = LiveClock(), 0
        while not self._closed.is_set():
            connected = time.monotonic()
            try:
                reader = self._open()
                if self._address.kind == "http" and isinstance(reader, Reader) and reader.duration is not None:
                    self.live = self._options.realtime
                    yield from self._recording(reader)
                    return
                clock.restart()
                connected = time.monotonic()
                try:
                    yield from self._connection(reader, clock)
                finally:
                    reader.close()
                if self._closed.is_set():
                    return
                raise ReadError("ended", self.shown, "the stream ended")
            except ReadError as error:
                if self._closed.is_set():
                    return
                if time.monotonic() - connected > _STEADY_S and self._size is not None and error.reason != "silent":
                    failures = 0
                failures += 1
                self._alarm("offline", True, time.time(), error.what)
                if self._options.attempts is not None and failures >= self._options.attempts:
                    raise
                wait = self._back_off(error, failures)
                log.warning("camera %s: %s; trying again in %.1f s", self.name, error, wait)
            self._closed.wait(wait)
            self.counters.reconnects += 1

    def _back_off(self, error: ReadError, failures: int) -> float:
        """Seconds until the next attempt. Cameras lock out who tries wrong passwords fast."""
        if error.reason == "access":
            return _LONGEST_WAIT_S
        return min(_LONGEST_WAIT_S, self._options.retry * 2.0 ** min(failures - 1, 16)) * random.uniform(0.5, 1.0)

    def _connection(self, reader: Reader | FolderReader, clock: LiveClock) -> Iterator[Frame]:
        for decoded in reader.decoded():
            if self._closed.is_set():
                return
            if decoded is None:
                self.counters.frames += 1
                self.counters.late += 1
                continue
            moment, jump = clock.map(decoded.time, time.monotonic())
            self._catch_up(reader, decoded, clock.lag)
            self._alarm("offline", False, moment)
            yield from self._deliver(reader, decoded, moment, jump)

    # Both

    def _catch_up(self, reader: Reader | FolderReader, decoded: VideoFrame, lag: float) -> None:
        if lag > _LATE_S:
            reader.hurry(True)
        elif lag < _CAUGHT_UP_S and decoded.key_frame:
            reader.hurry(False)

    def _deliver(
        self, reader: Reader | FolderReader, decoded: VideoFrame, moment: float, jump: str | None
    ) -> Iterator[Frame]:
        index = self.counters.frames
        self.counters.frames += 1
        self._watch(decoded, moment, jump)
        if not self._pick.wanted(moment):
            self.counters.unwanted += 1
            return
        image_HW3 = reader.convert(decoded)
        self.counters.delivered += 1
        yield Frame(self.name, index, moment, time.monotonic(), image_HW3)

    def _watch(self, decoded: VideoFrame, moment: float, jump: str | None) -> None:
        """Clock and size, which nobody can see in the pictures."""
        if jump is not None:
            self.counters.clock_jumps += 1
        self._alarm("clock", jump is not None, moment, jump or "")
        size = decoded.width, decoded.height
        before, self._size = self._size or size, size
        if size != before:
            self.counters.size_changes += 1
        detail = f"from {before[0]}x{before[1]} to {size[0]}x{size[1]}" if size != before else ""
        self._alarm("size", size != before, moment, detail)

    def _alarm(self, kind: TroubleKind, on: bool, moment: float, detail: str = "") -> None:
        trouble = self._alarms.update(kind, on, moment, detail)
        if trouble is not None and self._on_trouble is not None:
            self._on_trouble(trouble)


class _Pick:
    """Which frames to take so that `fps` of them are taken per second, evenly."""

    def __init__(self, fps: float | None):
        self._interval = 1 / fps if fps is not None else 0.0
        self._due = float("-inf")

    def wanted(self, moment: float) -> bool:
        if not self._interval:
            return True
        if self._due - moment > 2 * self._interval:  # the clock was put back
            self._due = moment
        if moment < self._due - 0.1 * self._interval:
            return False
        self._due += self._interval
        if self._due < moment:  # the first, or after a gap
            self._due = moment + self._interval
        return True
