"""Starts the RTSP server of these tests, and makes the videos that it serves."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest

PYTHON = "/usr/bin/python3"  # Debian's has GStreamer
PACKAGES = (
    "python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-bad"
)
_CHECK = (
    "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import Gst, GstRtspServer; Gst.init()"
)
_CHECK += "; assert all(map(Gst.ElementFactory.find, ('appsrc', 'rtph264pay', 'h264parse')))"


def write_video(
    path: Path, frames: int = 30, size: tuple[int, int] = (160, 96), fps: int = 15, **metadata: str
) -> Path:
    """A square that moves by 4 pixels a frame over a textured floor; H.264, a keyframe every half second."""
    raw = path.suffix == ".h264"
    with av.open(str(path), "w", format="h264" if raw else None) as container:
        container.metadata.update(metadata)
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        aud = "aud=1:" if raw else ""
        stream.options = {"preset": "ultrafast", "x264-params": f"{aud}bframes=0:keyint={fps // 2}:slices=1:threads=1"}
        floor = np.random.default_rng(0).integers(40, 200, (size[1] // 8, size[0] // 8, 1), np.uint8)
        floor = np.kron(floor, np.ones((8, 8, 3), np.uint8))
        for i in range(frames):
            picture = floor.copy()
            x = 4 * i % (size[0] - 20)
            picture[20:40, x : x + 20] = (250, 30, 30)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


class RtspServer:
    """gst-rtsp-server in a process of its own, on one port that stays."""

    def __init__(self, files: dict[str, Path], fps: int = 15, user: str | None = None, password: str | None = None):
        self._arguments = ["--fps", str(fps), *itertools.starmap("{}={}".format, files.items())]
        if user is not None and password is not None:
            self._arguments += ["--user", user, "--password", password]
        self.port = 0
        self.start()

    def start(self) -> None:
        command = [PYTHON, str(Path(__file__).parent / "server.py"), "--port", str(self.port), *self._arguments]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def url(self, name: str, login: str = "") -> str:
        return f"rtsp://{login}127.0.0.1:{self.port}/{name}"


def need_server() -> None:
    """Skips the test where the server cannot run."""
    try:
        subprocess.run([PYTHON, "-c", _CHECK], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip(f"no RTSP server; apt-get install --no-install-recommends {PACKAGES}")


def write_annexb(path: Path, parts: Sequence[tuple[int, tuple[int, int]]]) -> Path:
    """Raw H.264 that changes its size: for each part, frames and size."""
    pieces = [write_video(path.with_name(f"part{i}.h264"), n, size).read_bytes() for i, (n, size) in enumerate(parts)]
    path.write_bytes(b"".join(pieces))
    return path
