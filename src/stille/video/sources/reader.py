"""One opening of a stream or file by libav: packets in, decoded frames out, scaled by libav as they are wanted."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, cast

import av
import av.error
import numpy as np
from av.codec.context import Flags
from av.codec.hwaccel import HWAccel
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from stille.video.sources.address import Address, Options
from stille.video.sources.failures import ReadError, explain

_SKIP: dict[str, Literal["DEFAULT", "NONREF", "NONKEY"]] = {"all": "DEFAULT", "nonref": "NONREF", "keyframes": "NONKEY"}
_BAD_IN_A_ROW = 500
_NO_DEVICE = (errno.EPERM, errno.ENOSYS, errno.ENOMEM, errno.ENODEV, errno.EIO)  # as drivers answer


@dataclass
class Counters:
    """Frames of a source and what became of them.

    Attributes:
        frames: that there were, delivered or not.
        delivered: that were given out.
        unwanted: left out because fewer per second are asked for.
        late: left out because reading had fallen behind.
        corrupt: packets that could not be decoded, and frames that were decoded with errors.
        reconnects, clock_jumps, size_changes: how often that happened.
    """

    frames: int = 0
    delivered: int = 0
    unwanted: int = 0
    late: int = 0
    corrupt: int = 0
    reconnects: int = 0
    clock_jumps: int = 0
    size_changes: int = 0


class Reader:
    """An open container and the decoder of its first video stream.

    Attributes:
        interval: seconds from frame to frame, as announced; 1/25 where nothing is.
        duration: seconds; None for what has no end.
        recorded: seconds since 1970 at which a recording began, if its file says so.

    Raises:
        ReadError: it cannot be opened, or has no video.
    """

    def __init__(self, address: Address, options: Options, counters: Counters):
        self._address, self._options, self._counters = address, options, counters
        live = address.kind in ("rtsp", "webcam")
        accelerator = None
        if options.hardware is not None:
            accelerator = HWAccel(device_type=options.hardware, allow_software_fallback=False)
        begun = time.monotonic()
        try:
            self._container = av.open(
                _target(address),
                format="v4l2" if address.kind == "webcam" else None,
                options=_settings(address, options),
                timeout=(options.timeout, options.timeout),
                hwaccel=accelerator,
            )
        except (av.error.FFmpegError, OSError) as error:
            if options.hardware is not None and error.errno in _NO_DEVICE:
                raise ReadError("hardware", address.shown, f"no device {options.hardware!r} that decodes") from None
            raise self._explain(error, begun) from None  # its text holds the address, password included
        except (RuntimeError, NotImplementedError, ValueError) as error:
            raise ReadError("hardware", address.shown, f"{options.hardware!r} cannot decode it ({error})") from None
        try:
            if not self._container.streams.video:
                raise ReadError("damaged", address.shown, "has no video stream")
            self._stream = self._container.streams.video[0]
            context = self._stream.codec_context
            context.thread_count = options.threads
            if live:
                context.flags |= Flags.low_delay
            if options.threads > 1:
                context.thread_type = "SLICE" if live else "AUTO"  # frame threads add a frame of delay each
            context.skip_frame = _SKIP[options.decode]
        except BaseException:
            self._container.close()
            raise
        rate = self._stream.average_rate or self._stream.guessed_rate
        self.interval = 1 / float(rate) if rate else 1 / 25
        length = self._container.duration
        self.duration = length / av.time_base if length is not None and length > 0 else None
        self.recorded = _parse_moment(self._container.metadata.get("creation_time", ""))
        self._scaler = VideoReformatter()
        self._hurried = False

    def decoded(self) -> Iterator[VideoFrame | None]:
        """Frames without known damage, in order; None for one that was left out to catch up.

        Raises:
            ReadError: the stream broke off, nothing came for `timeout` seconds, or nothing that can be decoded.
        """
        good, bad = time.monotonic(), 0
        packets = self._container.demux()
        while True:
            begun = time.monotonic()
            try:
                packet = next(packets)
                if packet.stream is not self._stream:
                    frames = []
                else:
                    frames = packet.decode()
                    if self._hurried and not frames and packet.size:
                        yield None
            except (StopIteration, av.error.EOFError):
                return
            except av.error.InvalidDataError as error:
                if time.monotonic() - begun >= 0.95 * self._options.timeout:
                    raise self._explain(error, begun) from None
                self._counters.corrupt += 1
                self._counters.frames += 1
                bad += 1
                packets = self._container.demux()  # an error ends the generator, not the stream
                frames = []
            except (av.error.FFmpegError, OSError) as error:
                raise self._explain(error, begun) from None
            for frame in cast(list[VideoFrame], frames):
                if frame.is_corrupt:
                    self._counters.corrupt += 1
                    self._counters.frames += 1
                    continue
                yield frame
                good, bad = time.monotonic(), 0
            if bad > _BAD_IN_A_ROW or time.monotonic() - good > 2 * self._options.timeout:
                raise ReadError("damaged", self._address.shown, "sends nothing that can be decoded")

    def hurry(self, on: bool) -> None:
        """Decodes keyframes only, to catch up. Call it when a keyframe came, else what follows lacks its references."""
        if on != self._hurried:
            self._hurried = on
            self._stream.codec_context.skip_frame = "NONKEY" if on else _SKIP[self._options.decode]

    def convert(self, frame: VideoFrame) -> np.ndarray:
        """The frame as uint8 RGB [H, W, 3] in the working size; its memory is libav's, read-only."""
        return to_rgb(self._scaler, frame, self._options.size)

    def close(self) -> None:
        self._container.close()

    def _explain(self, error: Any, begun: float) -> ReadError:
        return explain(error, self._address.shown, time.monotonic() - begun, self._options.timeout)


def to_rgb(scaler: VideoReformatter, frame: VideoFrame, size: tuple[int, int] | None) -> np.ndarray:
    """uint8 RGB [H, W, 3], shrunk by libav to fit in `size` with its aspect kept, never enlarged."""
    width, height = frame.width, frame.height
    if size is not None and (width > size[0] or height > size[1]):
        scale = min(size[0] / width, size[1] / height)
        width, height = max(2, round(width * scale)), max(2, round(height * scale))
    shrunk = width != frame.width
    # One thread: libav's default takes one per core for every camera.
    picture = scaler.reformat(frame, width, height, "rgb24", interpolation="AREA" if shrunk else None, threads=1)
    plane = picture.planes[0]
    rows = np.frombuffer(cast(Any, plane), np.uint8).reshape(-1, plane.line_size)[:height, : 3 * width]
    image = np.ascontiguousarray(rows).reshape(height, width, 3)
    image.flags.writeable = False
    return image


def _target(address: Address) -> str:
    if address.kind != "file":
        return address.target
    path = address.target
    try:
        if os.path.getsize(path) == 0:
            raise ReadError("damaged", address.shown, "the file is empty")
    except OSError as error:
        raise explain(error, address.shown, 0.0, 1.0) from None
    return f"file:{path}"  # else a name like "concat:..." would mean something to libav


def _settings(address: Address, options: Options) -> dict[str, str]:
    """Of libav's demuxer and protocol."""
    timeout = str(int(options.timeout * 1e6))
    if address.kind == "rtsp":
        return {
            "rtsp_transport": options.transport,
            "allowed_media_types": "video",
            "timeout": timeout,
            "analyzeduration": "1000000",
            "fpsprobesize": "0",  # else it takes a second of frames to estimate their rate
            "fflags": "nobuffer",
        }
    if address.kind == "http":  # a playlist from outside must not name files of ours
        return {"timeout": timeout, "rw_timeout": timeout, "protocol_whitelist": "http,https,tcp,tls,crypto"}
    return {}


def _parse_moment(text: str) -> float | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment.timestamp() if moment.tzinfo is not None and moment.year > 1990 else None
