"""H.264 in an MP4, at the speed at which pictures were taken."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import numpy as np

KEYFRAMES = 20
"""Frames from one keyframe to the next of a film that grows: what a killed process loses of it at most."""


class Film:
    """
    Args:
        target: path, or a file that is open for reading and writing.
        size: width and height, an odd one is cut; pictures of another size are scaled to it.
        grows: whether the MP4 is in fragments, so that it can be watched while it grows, and after a kill.

    Raises:
        OSError: the file cannot be made (PyAV's errors are of this type).
    """

    def __init__(self, target: str | Path | IO[bytes], size: tuple[int, int], grows: bool = False):
        import av

        flags = {"movflags": "faststart"}
        if grows:
            flags = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}
        place = str(target) if isinstance(target, str | Path) else target
        self._container = av.open(place, "w", format="mp4", options=flags)
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        self._stream: Any = self._container.add_stream(codec, rate=25)
        self._size = self._stream.width, self._stream.height = size[0] - size[0] % 2, size[1] - size[1] % 2
        self._stream.pix_fmt = "yuv420p"
        context = self._stream.codec_context
        context.time_base = self._stream.time_base = Fraction(1, 1000)
        context.thread_count = 1
        if grows:
            context.gop_size = KEYFRAMES
        if codec == "libx264":
            context.options = {"preset": "veryfast", "crf": "25"}
        self._last = -1

    def write(self, image_HW3: np.ndarray, seconds: float) -> None:
        """
        Args:
            image_HW3: uint8 RGB.
            seconds: since the beginning; at least a millisecond after the picture before.
        """
        import av

        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(image_HW3), format="rgb24")
        if (picture.width, picture.height) != self._size:
            picture = picture.reformat(*self._size)
        picture.pts = self._last = max(self._last + 1, round(1000 * seconds))
        picture.time_base = Fraction(1, 1000)
        self._container.mux(self._stream.encode(picture))

    def close(self) -> None:
        """With the pictures that the encoder still holds."""
        if self._last >= 0:
            self._container.mux(self._stream.encode())
        self._container.close()
