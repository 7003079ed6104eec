"""Many cameras of generator B, painted by worker processes into memory that is shared with whoever looks at them.

Work is cut into blocks of a few seconds of one camera, taken by whichever worker is free, in order of time: all cameras
go on together however much there is to paint before each.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import queue
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from stille.evals.warehouse.codec import still
from stille.evals.warehouse.gaps import gaps
from stille.evals.warehouse.rules_file import CAMERA
from stille.evals.warehouse.story import Story, story
from stille.evals.warehouse.stream import FrameTruth, Painter

SIZE = (640, 352)
NONE = np.zeros((0, 0), np.uint8)
BLOCK, DEPTH = 10, 4
"""Frames of a block, and blocks of a camera that may wait to be looked at."""


@dataclass(frozen=True, slots=True)
class Camera:
    """
    Attributes:
        kind: "hour", what `story` tells, or "gap", what `gaps` does.
        start: seconds into the story of its first frame.
    """

    seed: int
    kind: Literal["hour", "gap"] = "hour"
    start: float = 0.0

    @property
    def name(self) -> str:
        return f"{CAMERA}{self.seed}"

    def story(self) -> Story:
        return story(self.seed, SIZE) if self.kind == "hour" else gaps(self.seed, SIZE)[0]


@dataclass(frozen=True, slots=True)
class Shown:
    """Frame `index` of all cameras together: views that hold until the next one is asked for."""

    index: int
    images: list[np.ndarray]
    truths: list[FrameTruth]


class Studio:
    """Processes that paint; use it as a context.

    Args:
        first, last: numbers of frames, the last one not included; a multiple of `BLOCK` apart or less at the end.
        rate: frames per second.
        workers: processes. Fork before a GPU is touched.
        paint: whether there are pictures; else all of them stay black, and only the truth is made.
    """

    def __init__(
        self, cameras: list[Camera], first: int, last: int, rate: float, workers: int, paint: bool = True
    ):  # fmt: skip
        self.cameras, self.first, self.last, self.rate, self.paint = cameras, first, last, rate, paint
        self.blocks = -(-(last - first) // BLOCK)
        shape = (len(cameras), DEPTH * BLOCK, SIZE[1], SIZE[0], 3)
        self._ring = np.frombuffer(mmap.mmap(-1, int(np.prod(shape))), np.uint8).reshape(shape)
        fork = multiprocessing.get_context("fork")
        self._task, self._read = fork.Value("q", 0), fork.Value("q", 0)
        self._truths: Any = fork.Queue()
        self._workers = [fork.Process(target=self._work, daemon=True) for _ in range(workers)]

    def __enter__(self) -> Studio:
        for worker in self._workers:
            worker.start()
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.terminate()
        for worker in self._workers:
            worker.join()

    def _work(self) -> None:
        import cv2

        cv2.setNumThreads(1)
        painters: dict[int, Painter] = {}
        while True:
            with self._task.get_lock():
                task = self._task.value
                self._task.value += 1
            block, which = divmod(task, len(self.cameras))
            if block >= self.blocks:
                break
            if which not in painters:
                painters[which] = Painter(self.cameras[which].story(), SIZE)
            while block >= self._read.value + DEPTH:
                time.sleep(0.002)
                if os.getppid() == 1:
                    return
            truths = []
            for k in range(block * BLOCK, min((block + 1) * BLOCK, self.last - self.first)):
                index = self.first + k
                painter, second = painters[which], self.cameras[which].start + index / self.rate
                if self.paint:
                    image, truth = painter.frame(index, second)
                    self._ring[which, k % (DEPTH * BLOCK)] = still(image, painter.quality)
                else:
                    truth = painter.truth(index, second)
                truths.append(replace(truth, number_HW=NONE, slot_boxes={}))  # the large parts are of no use here
            self._truths.put((block, which, truths))

    def frames(self) -> Iterator[Shown]:
        """All frames in order.

        Raises:
            RuntimeError: a worker died.
        """
        held: dict[int, dict[int, list[FrameTruth]]] = {}
        for block in range(self.blocks):
            mine = held.setdefault(block, {})
            while len(mine) < len(self.cameras):
                try:
                    at, which, truths = self._truths.get(timeout=5)
                    held.setdefault(at, {})[which] = truths
                except queue.Empty:
                    if any(worker.exitcode for worker in self._workers):
                        raise RuntimeError("a process that paints frames has died") from None
            for k in range(len(mine[0])):
                place = (block * BLOCK + k) % (DEPTH * BLOCK)
                yield Shown(
                    self.first + block * BLOCK + k,
                    [self._ring[c, place] for c in range(len(self.cameras))],
                    [mine[c][k] for c in range(len(self.cameras))],
                )
            del held[block]
            self._read.value = block + 1
