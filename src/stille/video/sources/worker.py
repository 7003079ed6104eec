"""A decoding process: what `stille.video.sources.workers` starts, and talks to through a pipe."""

from __future__ import annotations

import logging
import mmap
import os
import pickle
import signal
import threading
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from stille.video.checks import Checks, CheckSettings
from stille.video.errors import VideoError
from stille.video.sources.address import Options
from stille.video.sources.source import Source
from stille.video.types import Frame, Trouble

log = logging.getLogger(__name__)

AHEAD = 6
"""Frames of a live camera on their way, beyond those that may wait."""
MEMORY = 16 << 30
"""Bytes of address space for the pictures of a child; memory is taken as it is used."""

_REPORT_S = 0.5


def work(pipe: int, memory: int) -> None:
    """The life of a child: until the pipe closes, also because the parent died."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        _Worker(Connection(pipe), mmap.mmap(memory, MEMORY)).run()
    except BaseException:
        log.exception("a decoding process fails")
        os._exit(1)
    os._exit(0)  # threads may wait for a dead network


class _Worker:
    def __init__(self, pipe: Connection, memory: mmap.mmap):
        self.pipe, self.memory = pipe, np.frombuffer(memory, np.uint8)
        self.notes: SimpleQueue[tuple[Any, ...]] = SimpleQueue()
        self.lock = threading.Lock()
        self.free: dict[int, list[int]] = {}  # by size
        self.sizes: dict[int, int] = {}
        self.end = 0
        self.readings: dict[int, _Reading] = {}
        self.settings, self.queue = CheckSettings(), 2

    def run(self) -> None:
        threading.Thread(target=self._send, daemon=True).start()
        while True:
            try:
                commands = pickle.loads(self.pipe.recv_bytes())
            except (EOFError, OSError):
                return
            for name, *what in commands:
                getattr(self, f"_{name}")(*what)

    def store(self, image_HW3: np.ndarray) -> int | None:
        """Where the picture lies; None if there is no memory."""
        size = rounded(image_HW3.nbytes)
        with self.lock:
            if self.free.get(size):
                offset = self.free[size].pop()
            elif self.end + size <= len(self.memory):
                offset, self.end = self.end, self.end + size
                self.sizes[offset] = size
            else:
                return None
        self.memory[offset : offset + image_HW3.nbytes] = image_HW3.reshape(-1)
        return offset

    def _send(self) -> None:
        try:
            while True:
                notes = [self.notes.get()]
                try:
                    while len(notes) < 64:
                        notes.append(self.notes.get_nowait())
                except Empty:
                    pass
                self.pipe.send(notes)
        except OSError:
            os._exit(0)

    def _stop(self) -> None:
        """Let the sources take leave of their servers."""
        readings = list(self.readings.values())
        for reading in readings:
            reading.close()
        deadline = time.monotonic() + 1.0
        for reading in readings:
            reading.thread.join(max(0.0, deadline - time.monotonic()))
        os._exit(0)

    def _set(self, settings: CheckSettings, queue: int) -> None:
        self.settings, self.queue = settings, queue

    def _add(self, number: int, source: Any, options: Options | None) -> None:
        try:
            reading = self.readings[number] = _Reading(self, number, source, options)
        except VideoError as failure:
            self.notes.put(("end", number, str(failure)))
            return
        reading.thread.start()

    def _remove(self, number: int) -> None:
        if (reading := self.readings.pop(number, None)) is not None:
            reading.close()

    def _taken(self, counts: dict[int, int]) -> None:
        for number, count in counts.items():
            if (reading := self.readings.get(number)) is not None:
                reading.taken(count)

    def _free(self, offsets: list[int]) -> None:
        with self.lock:
            for offset in offsets:
                self.free.setdefault(self.sizes[offset], []).append(offset)


class _Reading:
    """One camera, in a thread."""

    def __init__(self, worker: _Worker, number: int, source: Any, options: Options | None):
        self.worker, self.number = worker, number
        self.source: Source = self._open(source, options)
        self.checks = Checks(self.source.name, worker.settings, self._tell)
        self.away = 0  # frames that the other side has and has not taken
        self.changed = threading.Condition()
        self.closing = False
        self.reported = 0.0
        self.thread = threading.Thread(target=self.run, name=f"camera {self.source.name}", daemon=True)

    def _open(self, source: Any, options: Options | None) -> Source:
        from stille.video.sources import open_source

        return open_source(source, options, on_trouble=self._tell) if isinstance(source, str) else source

    def run(self) -> None:
        error = None
        try:
            self._report()
            for frame in self.source:
                if self.closing:
                    return
                moves = self.checks.look(frame)
                if moves is not None:
                    self._offer(frame, moves)
                if time.monotonic() - self.reported >= _REPORT_S:
                    self._report()
        except VideoError as failure:
            log.error("camera %s: %s", self.source.name, failure)
            error = str(failure)
        except Exception as failure:
            log.exception("camera %s ended by an unexpected error", self.source.name)
            error = f"{type(failure).__name__}: {failure}"
        self._report()
        self.worker.notes.put(("end", self.number, error))

    def close(self) -> None:
        self.closing = True
        self.source.close()
        with self.changed:
            self.changed.notify_all()

    def taken(self, count: int) -> None:
        with self.changed:
            self.away -= count
            self.changed.notify_all()

    def _offer(self, frame: Frame, moves: bool) -> None:
        with self.changed:
            if not self.source.live:
                self.changed.wait_for(lambda: self.away < self.worker.queue or self.closing)
            elif self.away >= self.worker.queue + AHEAD:
                self.checks.counts.dropped += 1
                return
        offset = self.worker.store(frame.image_HW3)
        if offset is None:
            self.checks.counts.dropped += 1
            return
        with self.changed:
            self.away += 1
        note = offset, frame.image_HW3.shape, frame.index, frame.time, frame.arrived, moves
        self.worker.notes.put(("frame", self.number, *note))

    def _tell(self, trouble: Trouble) -> None:
        self.worker.notes.put(("trouble", self.number, trouble))

    def _report(self) -> None:
        self.reported = time.monotonic()
        counts = self.checks.counts
        counts = replace(counts, gate=replace(counts.gate) if counts.gate is not None else None)
        self.worker.notes.put(("report", self.number, replace(self.source.counters), counts, self.source.live))


def rounded(size: int) -> int:
    """Up to whole pages."""
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
