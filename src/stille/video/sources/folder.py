"""A folder of images as if it were a recording."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import av
import av.error
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from stille.video.sources.address import Address, Options
from stille.video.sources.failures import ReadError
from stille.video.sources.reader import Counters, to_rgb

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


class FolderReader:
    """The images of a folder by name, with numbers in their order: 2.jpg before 10.jpg. The same methods as `Reader`.

    Raises:
        ReadError: there is no image in it.
    """

    def __init__(self, address: Address, options: Options, counters: Counters):
        self._options, self._counters = options, counters
        files = (file for file in Path(address.target).iterdir() if file.suffix.lower() in SUFFIXES)
        self._files = sorted(files, key=lambda file: _natural(file.name))
        if not self._files:
            raise ReadError("missing", address.shown, f"no image in this folder; expected {', '.join(SUFFIXES)}")
        self.interval = 1 / options.rate
        self.duration = len(self._files) * self.interval
        self.recorded = None
        self._scaler = VideoReformatter()

    def decoded(self) -> Iterator[VideoFrame | None]:
        """The images; one that cannot be read is left out and counted as corrupt."""
        for file in self._files:
            try:
                with av.open(f"file:{file}", options={"pattern_type": "none"}) as container:
                    frame = next(container.decode(video=0))
            except (av.error.FFmpegError, OSError, IndexError, StopIteration):
                self._counters.corrupt += 1
                self._counters.frames += 1
                continue
            frame.pts = None  # its time is its place in the folder
            yield frame

    def hurry(self, on: bool) -> None:
        """Images do not depend on each other: there is nothing to leave out."""

    def convert(self, frame: VideoFrame) -> np.ndarray:
        return to_rgb(self._scaler, frame, self._options.size)

    def close(self) -> None:
        pass


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
