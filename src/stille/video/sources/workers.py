"""Decoding in processes of its own: for more cameras than the threads of one interpreter can carry.

    a child    a thread per camera: source -> health -> motion gate -> picture into shared memory, a note into the pipe
    here       `Decoders.take`: notes of all children -> frames whose pictures lie in that memory, nothing copied

A picture's memory is the child's again when nobody holds the frame's array, or a view of it, any more. Of a live camera
at most `AHEAD` frames more than may wait here are on their way, newer ones are dropped and counted in the child; the
child of a recording waits. A child that dies is replaced: its live cameras go on, its recordings have failed.

Memory is a `memfd`: it takes only what is used, needs no /dev/shm, and goes with the last process that maps it.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
import pickle
import socket
import subprocess
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np

from stille.video.checks import CheckCounts, CheckSettings
from stille.video.errors import VideoError
from stille.video.sources.address import Options
from stille.video.sources.reader import Counters
from stille.video.sources.worker import MEMORY, rounded
from stille.video.types import Frame, Trouble

log = logging.getLogger(__name__)

_CHILD = "from stille.video.sources.worker import work; work(*map(int, __import__('sys').argv[1:]))"

Pin = Callable[[int, int], None]
"""Told the address and bytes of memory that pictures will lie in from now on, once for each piece."""


@dataclass(frozen=True)
class Came:
    """A frame of camera `number`, and whether the motion gate lets it pass."""

    number: int
    frame: Frame
    moves: bool


@dataclass(frozen=True)
class Ended:
    """Camera `number` gives no more; the error that ended it."""

    number: int
    error: str | None


@dataclass
class Decoding:
    """A camera that a child decodes.

    Attributes:
        counters, counts: as the child reported them last, half a second ago at most.
    """

    number: int
    name: str
    source: Any
    options: Options | None
    counters: Counters = field(default_factory=Counters)
    counts: CheckCounts = field(default_factory=CheckCounts)
    live: bool = False
    over: bool = False
    child: _Child | None = None


def pin_for_cuda(address: int, size: int) -> None:
    """Let the GPU copy from this memory by itself. Without a GPU, or if the driver refuses, nothing changes."""
    import torch

    if _refused or not torch.cuda.is_available():
        return
    runtime: Any = torch.cuda.cudart()
    if (code := int(runtime.cudaHostRegister(address, size, 0))) != 0:
        _refused.append(code)
        log.warning("CUDA does not pin the pictures' memory (error %d): they reach the GPU through a copy", code)
        with suppress(RuntimeError):  # the error waits for whoever asks next
            torch.ones(1, device="cuda").neg_()


_refused: list[int] = []  # a driver that refuses once does so always


class Decoders:
    """K children. `add`, `remove` and `close` are for any thread, the rest for one.

    Args:
        queue: frames of a camera that may wait here.
        pin: see `Pin`; `pin_for_cuda` for perceptions on a GPU.
    """

    def __init__(self, processes: int, settings: CheckSettings, queue: int, pin: Pin | None = None):
        self._settings, self._queue, self._pin = settings, queue, pin
        try:
            pickle.dumps(settings)
        except Exception as error:
            raise VideoError(
                f"make_gate has to reach the decoding processes: {error}; give a class or function"
            ) from None
        self._lock = threading.Lock()
        self._cameras: dict[int, Decoding] = {}
        self._next = 0
        self._closed = False
        self._children = [_Child(settings, queue, pin) for _ in range(processes)]

    def add(self, name: str, source: Any, options: Options | None) -> Decoding:
        """Begin to decode: a source's text, or a `Source` that can be pickled.

        Raises:
            VideoError: it cannot.
        """
        with self._lock:
            loads = Counter(camera.child for camera in self._cameras.values() if not camera.over)
            camera = Decoding(self._next, name, source, options)
            self._next += 1
            camera.child = min(self._children, key=lambda child: loads[child])
            try:
                camera.child.tell("add", camera.number, source, options)
            except (pickle.PicklingError, TypeError, AttributeError) as error:
                raise VideoError(
                    f"camera {name}: its source has to reach a decoding process: {error}; give its text, or use "
                    "workers=0"
                ) from None
            self._cameras[camera.number] = camera
        return camera

    def remove(self, camera: Decoding) -> None:
        with self._lock:
            camera.over = True
            if self._cameras.pop(camera.number, None) is not None and camera.child is not None:
                camera.child.tell("remove", camera.number)

    def acknowledge(self, camera: Decoding) -> None:
        """One of its frames waits no longer: it was taken, or dropped."""
        if camera.child is not None:
            camera.child.taken[camera.number] += 1

    def take(self, wait_s: float) -> Iterator[Came | Ended | Trouble]:
        """What has come, in order for each camera; waits so long if there is nothing."""
        for child in self._children:
            child.flush()
        by_pipe: dict[Any, _Child] = {child.pipe: child for child in self._children}
        for pipe in wait(list(by_pipe), wait_s):
            child = by_pipe[pipe]
            try:
                notes = child.receive()
            except (EOFError, OSError):
                yield from self._replace(child)
                continue
            for kind, number, *what in notes:
                camera = self._cameras.get(number)
                if kind == "frame":
                    offset, shape, index, moment, arrived, moves = what
                    image_HW3 = child.picture(offset, shape)
                    if camera is not None:  # else it was removed, and the memory is given back here
                        yield Came(number, Frame(camera.name, index, moment, arrived, image_HW3), moves)
                elif camera is None:
                    continue
                elif kind == "trouble":
                    yield what[0]
                elif kind == "report":
                    camera.counters, camera.counts, camera.live = what
                else:
                    camera.over = True
                    yield Ended(number, what[0])

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for child in self._children:
                child.close()

    def _replace(self, child: _Child) -> Iterator[Ended]:
        with self._lock:
            if self._closed:
                return
            code = child.close()
            fresh = _Child(self._settings, self._queue, self._pin)
            self._children[self._children.index(child)] = fresh
            mine = [camera for camera in self._cameras.values() if camera.child is child and not camera.over]
            log.error("a decoding process ended (%s); its %d cameras get another", code, len(mine))
            for camera in mine:
                camera.child = fresh
                if camera.live:
                    fresh.tell("add", camera.number, camera.source, camera.options)
                else:
                    camera.over = True
        for camera in mine:
            if camera.over:
                yield Ended(camera.number, "the process that decoded it ended")


class _Child:
    """A decoding process, seen from here."""

    def __init__(self, settings: CheckSettings, queue: int, pin: Pin | None):
        here, there = socket.socketpair()
        memory = os.memfd_create("stille-frames")
        try:
            os.ftruncate(memory, MEMORY)
            self._memory = mmap.mmap(memory, MEMORY)
            arguments = [str(there.fileno()), str(memory)]
            path = os.pathsep.join(filter(None, sys.path))
            self._process = subprocess.Popen(
                [sys.executable, "-c", _CHILD, *arguments], pass_fds=(there.fileno(), memory), stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )  # fmt: skip
        finally:
            os.close(memory)
            there.close()
        self.pipe = Connection(here.detach())
        self.taken: Counter[int] = Counter()
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._pin, self._pinned = pin, set[int]()
        self._free: deque[int] = deque()  # offsets that nobody holds any more
        self._sending = threading.Lock()
        self.tell("set", settings, queue)

    def tell(self, *command: Any) -> None:
        """Of a child that has died nothing is said here: `take` finds out."""
        data = pickle.dumps([command], pickle.HIGHEST_PROTOCOL)
        self._send(data)

    def _send(self, data: bytes) -> None:
        with self._sending, suppress(OSError):
            self.pipe.send_bytes(data)

    def flush(self) -> None:
        """Say what has been taken and given back."""
        free = [self._free.popleft() for _ in range(len(self._free))]
        if free or self.taken:
            taken, self.taken = dict(self.taken), Counter()
            self._send(pickle.dumps([("taken", taken), ("free", free)], pickle.HIGHEST_PROTOCOL))

    def receive(self) -> list[tuple[Any, ...]]:
        notes = self.pipe.recv()
        while self.pipe.poll():
            notes += self.pipe.recv()
        return notes

    def picture(self, offset: int, shape: tuple[int, int, int]) -> np.ndarray:
        """The picture in memory, given back when the array is gone."""
        address = self._address + offset
        if self._pin is not None and offset not in self._pinned:
            self._pinned.add(offset)
            self._pin(address, rounded(shape[0] * shape[1] * shape[2]))
        return np.asarray(_Piece(address, shape, self._memory, self._free, offset))

    def close(self) -> int | None:
        """Let it end; its exit status."""
        self.tell("stop")
        try:
            return self._process.wait(2.0)
        except subprocess.TimeoutExpired:  # a camera's thread waits for a dead network
            self._process.kill()
            return self._process.wait()


class _Piece:
    """Memory of one picture: numpy keeps it for as long as an array looks at it."""

    __slots__ = ("__array_interface__", "_free", "_memory", "_offset")

    def __init__(
        self, address: int, shape: tuple[int, int, int], memory: mmap.mmap, free: deque[int], offset: int
    ):  # fmt: skip
        self.__array_interface__ = {"shape": shape, "typestr": "|u1", "data": (address, False), "version": 3}
        self._memory, self._free, self._offset = memory, free, offset

    def __del__(self) -> None:
        self._free.append(self._offset)
