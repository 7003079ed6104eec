"""Snapshots and clips of events. Heads are made unrecognisable before anything is written; identities are not named.

Shapes: H, W picture; N objects.
"""

from __future__ import annotations

import io
import logging
import os
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import numpy as np

from stille.video.film import Film
from stille.video.types import KINDS, Event, Frame, Seen

log = logging.getLogger(__name__)

HEAD = 0.3
"""Upper share of a person's box that is hidden; all of it if the box is wider than high, since the person lies."""
BLOCKS = 3
"""What is left of a head: this many by this many mean colours."""
NEAR_S = 0.5
"""A head is hidden where it is seen within so many seconds of the frame, too: a detector may miss it in one frame."""
MARK = (255, 200, 0)


class Recent:
    """The last seconds of a camera: what was seen in every frame, and some of the pictures.

    Args:
        seconds: that are kept.
        fps: pictures kept for each second; a picture of 640x360 takes 0.7 MB.
    """

    def __init__(self, seconds: float = 4.0, fps: float = 5.0):
        self.seconds, self.fps = seconds, fps
        self.seen: deque[Seen] = deque()
        self.frames: deque[Frame] = deque()

    def add(self, frame: Frame | None, seen: Seen) -> bool:
        """Whether the picture was kept."""
        if self.seen and not 0 < seen.time - self.seen[-1].time <= self.seconds:
            self.seen.clear()
            self.frames.clear()
        self.seen.append(seen)
        while seen.time - self.seen[0].time > self.seconds:
            self.seen.popleft()
        while self.frames and seen.time - self.frames[0].time > self.seconds:
            self.frames.popleft()
        if frame is None or (self.frames and frame.time - self.frames[-1].time < 0.9 / self.fps):
            return False
        self.frames.append(frame)
        return True


@dataclass(slots=True)
class Case:
    """An event with the short time around it.

    Attributes:
        until: time of the last frame that belongs to it.
    """

    event: Event
    frames: list[Frame] = field(repr=False)
    seen: list[Seen] = field(repr=False)
    until: float = 0.0


def hidden(frame: Frame, seen: Iterable[Seen]) -> np.ndarray:
    """A copy of the frame's picture in which the heads of all persons around its time are hidden."""
    image_HW3 = frame.image_HW3.copy()
    person = KINDS.index("person")
    for one in seen:
        if abs(one.time - frame.time) > NEAR_S:
            continue
        scale = np.array([*frame.size, *frame.size]) / np.array([*one.size, *one.size])
        for box in one.box_N4[one.kind_N == person] * scale:
            hide_head(image_HW3, box)
    return image_HW3


def hide_head(image_HW3: np.ndarray, box: Sequence[float] | np.ndarray) -> None:
    """Replace the head of a person with this box by a few mean colours, smoothed: in place.

    Nothing but those means goes into the result, so what is finer than they are cannot be had back.
    """
    height, width = image_HW3.shape[:2]
    x0, y0, x1, y1 = (float(v) for v in box)
    if not np.isfinite([x0, y0, x1, y1]).all():
        return
    margin = 0.1 * min(x1 - x0, y1 - y0)
    lower = y0 + HEAD * (y1 - y0) if y1 - y0 >= x1 - x0 else y1
    left, right = max(0, int(x0 - margin)), min(width, int(np.ceil(x1 + margin)))
    top, bottom = max(0, int(y0 - margin)), min(height, int(np.ceil(lower + margin)))
    if right <= left or bottom <= top:
        return
    region = image_HW3[top:bottom, left:right]
    rows, columns = (np.linspace(0, n, min(BLOCKS, n) + 1).astype(int) for n in region.shape[:2])
    sums = np.add.reduceat(np.add.reduceat(region.astype(np.float32), rows[:-1], axis=0), columns[:-1], axis=1)
    means = sums / (np.diff(rows)[:, None, None] * np.diff(columns)[None, :, None])
    # Between the middles of the blocks the colour changes evenly.
    for axis, edges in ((0, rows), (1, columns)):
        middles, at = (edges[:-1] + edges[1:] - 1) / 2, np.arange(edges[-1])
        upper = np.clip(np.searchsorted(middles, at), 1, max(len(middles) - 1, 1))
        if len(middles) == 1:
            means = np.repeat(means, len(at), axis=axis)
            continue
        share = np.clip((at - middles[upper - 1]) / (middles[upper] - middles[upper - 1]), 0, 1)
        share = share.reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        means = means.take(upper - 1, axis) * (1 - share) + means.take(upper, axis) * share
    region[:] = means.round().astype(np.uint8)


def snapshot(case: Case) -> bytes:
    """JPEG of the last frame, heads hidden, what the event is about framed."""
    from PIL import Image

    frame = case.frames[-1]
    image_HW3 = hidden(frame, case.seen)
    shown = min(case.seen, key=lambda one: abs(one.time - frame.time))
    scale = np.array([*frame.size, *frame.size]) / np.array([*shown.size, *shown.size])
    for box in shown.box_N4[np.isin(shown.identity_N, case.event.identities)] * scale:
        _mark(image_HW3, box)
    data = io.BytesIO()
    Image.fromarray(image_HW3).save(data, "JPEG", quality=85)
    return data.getvalue()


def _mark(image_HW3: np.ndarray, box: np.ndarray) -> None:
    height, width = image_HW3.shape[:2]
    x0, y0, x1, y1 = np.clip(np.nan_to_num(box), 0, [width - 2, height - 2, width - 2, height - 2]).astype(int)
    for y in (y0, y1):
        image_HW3[y : y + 2, x0 : x1 + 2] = MARK
    for x in (x0, x1):
        image_HW3[y0 : y1 + 2, x : x + 2] = MARK


def write_clip(file: IO[bytes], case: Case) -> None:
    """MP4 of the frames, heads hidden, at the speed at which they were taken."""
    film = Film(file, case.frames[-1].size)
    try:
        for frame in case.frames:
            film.write(hidden(frame, case.seen), frame.time - case.frames[0].time)
    finally:
        film.close()


@contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """A file that is there whole, or not at all, whatever happens meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


class Evidence:
    """Writes evidence in a thread of its own. When it does not keep up, or the disk is full, evidence is missing, and
    that is counted; events go on.

    Args:
        folder: files are `camera/day/event.jpg` and `.mp4` in it.
        waiting: cases that may wait, with their pictures.

    Attributes:
        counts: "written", "failed", "dropped".
    """

    def __init__(self, folder: str | os.PathLike[str], waiting: int = 64):
        self.folder = Path(folder)
        self.counts: Counter[str] = Counter()
        self._cases: queue.Queue[tuple[Case, str] | None] = queue.Queue(waiting)
        self._done: queue.SimpleQueue[tuple[str, str, str]] = queue.SimpleQueue()
        self._failing = False
        self._thread = threading.Thread(target=self._work, name="stille-evidence", daemon=True)
        self._thread.start()

    def write(self, case: Case, what: str) -> None:
        """
        Args:
            what: "snapshot" or "clip".
        """
        try:
            self._cases.put_nowait((case, what))
        except queue.Full:
            self.counts["dropped"] += 1
            log.warning("evidence is written too slowly: no %s of event %s", what, case.event.id)

    def done(self) -> list[tuple[str, str, str]]:
        """What has been written since the last call: event id, "snapshot" or "clip", path relative to the folder."""
        found = []
        while not self._done.empty():
            found.append(self._done.get())
        return found

    def close(self, timeout_s: float = 10.0) -> None:
        """Write what waits, for at most so long."""
        deadline = time.monotonic() + timeout_s
        try:
            self._cases.put(None, timeout=timeout_s)
        except queue.Full:
            return
        self._thread.join(max(0.0, deadline - time.monotonic()))

    def remove(self, paths: Iterable[str]) -> None:
        """Delete files, and folders that are empty then."""
        for name in paths:
            path = (self.folder / name).resolve()
            if self.folder.resolve() not in path.parents:
                log.error("evidence %s is outside of %s: not deleted", name, self.folder)
                continue
            path.unlink(missing_ok=True)
            with suppress(OSError):  # others are in it
                path.parent.rmdir()

    def _work(self) -> None:
        while (job := self._cases.get()) is not None:
            case, what = job
            try:
                path = self._path(case.event, "jpg" if what == "snapshot" else "mp4")
                with atomic(self.folder / path) as file:
                    (_write_snapshot if what == "snapshot" else write_clip)(file, case)
            except Exception as error:  # full disk, a picture that no encoder takes
                self.counts["failed"] += 1
                if not self._failing:
                    log.error("evidence cannot be written to %s: %s: %s", self.folder, type(error).__name__, error)
                self._failing = True
                continue
            self.counts["written"] += 1
            self._failing = False
            self._done.put((case.event.id, what, path))

    def _path(self, event: Event, ending: str) -> str:
        day = datetime.fromtimestamp(event.began, UTC).strftime("%Y-%m-%d")
        camera = "".join(c if c.isalnum() or c in "-_" else "_" for c in event.camera)
        return f"{camera}/{day}/{event.id}.{ending}"


def _write_snapshot(file: IO[bytes], case: Case) -> None:
    file.write(snapshot(case))
