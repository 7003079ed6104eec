"""Annotated films: H.264, one file per camera, written in a thread of its own."""

from __future__ import annotations

import logging
import queue
import threading
from collections import Counter
from pathlib import Path

from stille.video.annotate import Moment
from stille.video.errors import VideoError
from stille.video.film import Film

log = logging.getLogger(__name__)


class Films:
    """An output of an `Annotator`.

    Args:
        path: of the film, .mp4; with `each`, the camera's name is put before the ending. A file that is there stays,
            and the new one gets a number.
        wait: of recordings: hold the pipeline when the disk is slower; else frames are left out then, and counted.
        waiting: frames that may wait to be written, of all cameras.

    Attributes:
        counts: "written", "dropped" and "failed" frames.
        paths: of the films so far, by camera.

    Raises:
        VideoError: not a path of an MP4, or the folder cannot be made.
    """

    def __init__(self, path: str | Path, each: bool = False, wait: bool = False, waiting: int = 16):
        self.path, self.each, self.wait = Path(path), each, wait
        self.counts: Counter[str] = Counter()
        self.paths: dict[str, Path] = {}
        if self.path.suffix.lower() != ".mp4":
            raise VideoError(f"annotated film {self.path}: expected a name that ends in .mp4")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise VideoError(f"annotated film {self.path}: {error}") from error
        self._queue: queue.Queue[Moment | None] = queue.Queue(waiting)
        self._films: dict[str, Film | None] = {}  # None: it cannot be written
        self._begun: dict[str, float] = {}
        self._thread = threading.Thread(target=self._work, name="stille-films", daemon=True)
        self._thread.start()

    def wants(self, camera: str) -> bool:
        """Until its film has failed."""
        return self._films.get(camera, self) is not None

    def show(self, moment: Moment) -> None:
        """Put it in the queue."""
        try:
            self._queue.put(moment, block=self.wait)
        except queue.Full:
            self.counts["dropped"] += 1

    def close(self, timeout_s: float = 30.0) -> None:
        """Write what waits and end the films."""
        self._queue.put(None)
        self._thread.join(timeout_s)

    def _work(self) -> None:
        while (moment := self._queue.get()) is not None:
            self._write(moment)
        for camera, film in self._films.items():
            try:
                if film is not None:
                    film.close()
            except OSError as error:
                log.error("the film of camera %s was not ended well: %s", camera, error)

    def _write(self, moment: Moment) -> None:
        camera = moment.frame.camera
        try:
            if camera not in self._films:
                self.paths[camera] = path = self._path(camera)
                self._films[camera] = Film(path, moment.frame.size, grows=True)
                self._begun[camera] = moment.frame.time
            film = self._films[camera]
            if film is not None:
                film.write(moment.image(), moment.frame.time - self._begun[camera])
                self.counts["written"] += 1
        except Exception as error:  # whatever libav or the disk says: events go on
            log.error("the film of camera %s ends: %s: %s", camera, type(error).__name__, error)
            self.counts["failed"] += 1
            self._films[camera] = None

    def _path(self, camera: str) -> Path:
        name = f"{self.path.stem}-{camera}" if self.each else self.path.stem
        path, number = self.path.with_name(name + ".mp4"), 1
        while path.exists():
            number += 1
            path = self.path.with_name(f"{name}-{number}.mp4")
        return path
