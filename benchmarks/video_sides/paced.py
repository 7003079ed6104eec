"""A file that comes as a camera sends it: each packet when its frame has been taken, so that decoding comes after."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from av.codec.context import Flags
from av.video.reformatter import VideoReformatter

from stille.video.sources.reader import Counters, to_rgb
from stille.video.types import Frame


class Paced:
    """A `Source` that can be pickled. H.264 without B-frames, over and over.

    Args:
        start: seconds since 1970 at which its first frame is taken.
        fps: of the file.
        size: that pictures are scaled to fit in.
    """

    live = True

    def __init__(self, path: Path, name: str, start: float, fps: float, size: tuple[int, int] = (640, 360)):
        self.name, self.counters = name, Counters()
        self._path, self._start, self._fps, self._size = path, start, fps, size
        self._closed = False

    def __iter__(self) -> Iterator[Frame]:
        scaler, index, nap = VideoReformatter(), 0, threading.Event()
        while not self._closed:
            with av.open(str(self._path)) as container:
                stream = container.streams.video[0]
                stream.codec_context.thread_count = 1
                stream.codec_context.flags |= Flags.low_delay
                for packet in container.demux(stream):
                    if packet.pts is None:
                        continue
                    moment = self._start + index / self._fps
                    if (early := moment - time.time()) > 0:
                        nap.wait(early)
                    if self._closed:
                        return
                    for decoded in packet.decode():
                        self.counters.frames += 1
                        self.counters.delivered += 1
                        image_HW3 = to_rgb(scaler, decoded, self._size)  # type: ignore[arg-type]
                        yield Frame(self.name, index, moment, time.monotonic(), image_HW3)
                        index += 1

    def close(self) -> None:
        self._closed = True


def write_film(path: Path, size: tuple[int, int], seconds: int, fps: int, megabits: float) -> float:
    """A painted warehouse as a camera encodes it, with sensor noise; the megabits per second that it came to."""
    import cv2

    from stille.video.scenes.config import SceneConfig
    from stille.video.scenes.paint import paint

    config = SceneConfig(difficulty=0.5).replace(rate=(fps, fps), gap_chance=0.0, irregular=0.0)
    pictures = paint(1, seconds * fps, (640, 352), 5, config=config).frame_BTHW3[0].numpy()
    rng = np.random.default_rng(0)
    grain = rng.integers(0, 7, (size[1] + 32, size[0] + 32, 1), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.bit_rate = int(1e6 * megabits)
        stream.options = {
            "preset": "veryfast", "x264-params": f"bframes=0:keyint={2 * fps}:slices=1:rc-lookahead=0:sync-lookahead=0",
        }  # fmt: skip
        for picture in pictures:
            y, x = rng.integers(0, 32, 2)
            whole = np.minimum(cv2.resize(picture, size), 248) + grain[y : y + size[1], x : x + size[0]]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(whole), format="rgb24")))
        container.mux(stream.encode())
    return path.stat().st_size * 8 / seconds / 1e6
