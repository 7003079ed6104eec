"""Frames through a real H.264 encoder and decoder, as an IP camera would send them."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext


class Recoder:
    """Takes frames and gives back the same ones with the artefacts of a low bit rate, in order.

    Args:
        size: W, H, both even. rate: frames per second. bits: per second.
    """

    def __init__(self, size: tuple[int, int], rate: float, bits: int) -> None:
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
        self._encoder, self._decoder, self._count = encoder, decoder, 0

    def feed(self, image_HW3: np.ndarray) -> Iterator[np.ndarray]:
        """What is ready after one more frame."""
        frame = av.VideoFrame.from_ndarray(image_HW3, format="rgb24")
        frame.pts, self._count = self._count, self._count + 1
        yield from self._decode(self._encoder.encode(frame))

    def end(self) -> Iterator[np.ndarray]:
        """What is left."""
        yield from self._decode([*self._encoder.encode(None), None])

    def _decode(self, packets) -> Iterator[np.ndarray]:
        for packet in packets:
            for frame in self._decoder.decode(packet):
                yield frame.to_ndarray(format="rgb24")
