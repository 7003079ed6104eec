"""Frames through a real H.264 encoder and decoder, as an IP camera would send them; or each through JPEG, where PyAV is
not installed."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import cv2
import numpy as np

from stille.errors import UnsupportedError


class Recoder:
    """Takes frames and gives back the same ones with the artefacts of a low bit rate, in order.

    Args:
        size: W, H, both even. rate: frames per second. bits: per second.

    Raises:
        UnsupportedError: PyAV is not installed.
    """

    def __init__(self, size: tuple[int, int], rate: float, bits: int) -> None:
        try:
            import av
            from av.video.codeccontext import VideoCodecContext
        except ImportError as error:
            raise UnsupportedError("H.264 needs PyAV: pip install 'stille[video]', or take uncoded frames") from error
        options = {"preset": "veryfast", "tune": "zerolatency", "threads": "1", "g": "50"}
        encoder = av.CodecContext.create("libx264", "w")
        assert isinstance(encoder, VideoCodecContext)
        encoder.width, encoder.height, encoder.pix_fmt = *size, "yuv420p"
        encoder.framerate = Fraction(rate).limit_denominator(1000)
        encoder.time_base = 1 / encoder.framerate
        encoder.bit_rate, encoder.options, encoder.thread_count = bits, options, 1
        decoder = av.CodecContext.create("h264", "r")
        assert isinstance(decoder, VideoCodecContext)
        decoder.thread_count = 1
        self._encoder: Any = encoder
        self._decoder: Any = decoder
        self._picture, self._count = av.VideoFrame.from_ndarray, 0

    def feed(self, image_HW3: np.ndarray) -> Iterator[np.ndarray]:
        """What is ready after one more frame."""
        frame = self._picture(image_HW3, format="rgb24")
        frame.pts, self._count = self._count, self._count + 1
        yield from self._decode(self._encoder.encode(frame))

    def end(self) -> Iterator[np.ndarray]:
        """What is left."""
        yield from self._decode([*self._encoder.encode(None), None])

    def _decode(self, packets) -> Iterator[np.ndarray]:
        for packet in packets:
            for frame in self._decoder.decode(packet):
                yield frame.to_ndarray(format="rgb24")


def still(image_HW3: np.ndarray, quality: float) -> np.ndarray:
    """A frame with the artefacts of JPEG instead.

    Args:
        quality: of the painter, 0.35 to 1.1; its H.264 has bits in proportion.
    """
    level = round(20 + 45 * quality)
    done, packed = cv2.imencode(".jpg", image_HW3[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, level])
    back = cv2.imdecode(packed, cv2.IMREAD_COLOR) if done else None
    assert back is not None
    return back[..., ::-1]
