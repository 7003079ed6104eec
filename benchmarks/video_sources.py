"""How many cameras one core decodes and scales, from files and from a real RTSP server, and what is dropped.

    python benchmarks/video_sources.py --json benchmarks/results/video.json

A source is read as `stille watch` reads it: decoded by one thread, scaled to fit in 640 x 360, converted to RGB. The
figure is seconds of video over seconds of that thread's processor time, so that waiting for a busy machine does not
count (caches and sibling threads still do). At 5 FPS every frame of the 30 is decoded, as video coding wants it, but
only one of six is converted. The RTSP server (its packages: tests/video/rtsp/serve.py) is a process of its own; its
streams come in real time.
"""

import argparse
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from stille import ledger
from stille.video.sources import open_source
from stille.video.sources.reader import Counters

ROOT = Path(__file__).resolve().parents[1]
SERVER = ROOT / "tests" / "video" / "rtsp" / "server.py"
SIZES = {"360p": (640, 360), "1080p": (1920, 1080)}
BITS = {360: 800_000, 1080: 4_000_000}  # per second, as cameras are set up
RATE = 30
SECONDS = 4  # of video in a file


@dataclass
class Reading:
    """What one source took.

    Attributes:
        cpu_s: processor time of its thread.
        video_s: seconds of video that it read.
    """

    cpu_s: float
    video_s: float
    counters: Counters


def write_video(path: Path, size: tuple[int, int]) -> float:
    """Boxes that move over a textured floor, and sensor noise; H.264. Returns its megabits per second."""
    rng, (width, height) = np.random.default_rng(0), size
    scale = height // 360
    floor = np.kron(rng.integers(50, 180, (height // 12, width // 16, 3)), np.ones((12, 16, 1), np.int64))
    floor = np.pad(floor, ((0, height - floor.shape[0]), (0, width - floor.shape[1]), (0, 0)), "edge").astype(np.uint8)
    grain = rng.integers(0, 7, (height + 32, width + 32, 1), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.bit_rate = BITS[height]
        settings = f"aud=1:bframes=0:keyint={2 * RATE}:slices=1:threads=1"
        stream.options = {"preset": "veryfast", "x264-params": settings}
        for i in range(RATE * SECONDS):
            picture = floor.copy()
            for box in range(6):
                x, y = (
                    (37 * box + (box + 2) * i * scale) % (width - 40 * scale),
                    50 * box * scale % (height - 80 * scale),
                )
                picture[y : y + 80 * scale, x : x + 30 * scale] = (40 * box, 200 - 30 * box, 120)
            dy, dx = rng.integers(0, 32, 2)
            picture += grain[dy : dy + height, dx : dx + width]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path.stat().st_size * 8 / SECONDS / 1e6


def read(text: str, limit_s: float = float("inf")) -> Reading:
    """Reads a source to its end, or for so many seconds from its first frame."""
    source, first, begun = open_source(text), None, time.thread_time()
    frame = None
    for frame in source:
        if first is None:
            first = frame.time
            if limit_s < float("inf"):
                begun = time.thread_time()  # of a connection only what goes on counts
        if frame.time - first >= limit_s:
            break
    source.close()
    if first is None or frame is None:
        raise SystemExit(f"{text}: no frames")
    video_s = frame.time - first if limit_s < float("inf") else source.counters.frames / RATE
    return Reading(time.thread_time() - begun, video_s, source.counters)


def read_together(texts: list[str], limit_s: float) -> list[Reading]:
    """Several sources at once, one thread each."""
    readings: list[Reading | None] = [None] * len(texts)

    def one(i: int) -> None:
        readings[i] = read(texts[i], limit_s)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if None in readings:
        raise SystemExit("a stream failed; nothing is recorded")
    return [reading for reading in readings if reading is not None]


def from_file(file: Path, fps: int, repeats: int) -> tuple[float, list[Reading]]:
    """Cameras per core, the median of repeated readings."""
    readings = [read(f"{file}#fps={fps},size=640x360,start=0") for _ in range(repeats + 1)][1:]
    for reading in readings:
        if reading.counters.frames != RATE * SECONDS or abs(reading.counters.delivered - fps * SECONDS) > 1:
            raise SystemExit(f"WRONG: {reading.counters}; expected all frames of the file; nothing is recorded")
    return statistics.median(reading.video_s / reading.cpu_s for reading in readings), readings


def from_rtsp(file: Path, fps: int, streams: int, seconds: float) -> tuple[float, list[Reading]]:
    """Cameras per core, over streams that run at once."""
    command = ["/usr/bin/python3", str(SERVER), "--fps", str(RATE)]
    command += [f"cam{i}={file}" for i in range(streams)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            texts = [f"rtsp://127.0.0.1:{port}/cam{i}#fps={fps},size=640x360" for i in range(streams)]
            readings = read_together(texts, seconds)
        finally:
            server.kill()
    return sum(r.video_s for r in readings) / sum(r.cpu_s for r in readings), readings


def workers(file: Path, repeats: int) -> tuple[float, float]:
    """Frames per second of two threads and of two processes, each reading the file, nothing passed on."""
    texts, found = [f"{file}#size=640x360,start=0"] * 2, ([], [])
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.map(read, texts)  # started, and everything imported
        for _ in range(repeats):
            begun = time.perf_counter()
            read_together(texts, float("inf"))
            found[0].append(2 * RATE * SECONDS / (time.perf_counter() - begun))
            begun = time.perf_counter()
            pool.map(read, texts, chunksize=1)
            found[1].append(2 * RATE * SECONDS / (time.perf_counter() - begun))
    return statistics.median(found[0]), statistics.median(found[1])


def has_server() -> bool:
    check = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
    try:
        return subprocess.run(["/usr/bin/python3", "-c", check], capture_output=True).returncode == 0
    except OSError:
        return False


def main() -> int:
    options = parse()
    command = "python benchmarks/video_sources.py"
    records: list[ledger.Record] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, size in SIZES.items():
            file, raw = Path(folder) / f"{name}.mp4", Path(folder) / f"{name}.h264"
            megabits = write_video(file, size)
            if has_server():
                write_video(raw, size)  # the server wants it without container, which has no times
            for origin in ("file", "rtsp") if has_server() else ("file",):
                for fps in (30, 5):
                    if origin == "file":
                        cameras, readings = from_file(file, fps, options.repeats)
                        how = f"median of {options.repeats} readings of {SECONDS} s"
                    else:
                        streams = options.streams if name == "360p" else max(1, options.streams // 4)
                        cameras, readings = from_rtsp(raw, fps, streams, options.seconds)
                        how = f"{streams} streams at once over TCP for {options.seconds:g} s"
                    frames = sum(r.counters.frames for r in readings)
                    lost = sum(r.counters.late + r.counters.corrupt for r in readings)
                    notes = (
                        f"Cameras of {size[0]}x{size[1]} H.264 at 30 FPS ({megabits:.1f} Mbit/s) that one core decodes "
                        f"and scales, {fps} FPS taken, from {'a file' if origin == 'file' else 'an RTSP server'}. "
                        f"{how}; {lost} of {frames} frames dropped; by processor time of the reading threads."
                    )
                    where = f"video.sources.{origin}.{name}.fps{fps}"
                    records.append(ledger.measure(where, cameras, "cameras/core", command=command, notes=notes))
            if name == "360p":
                threads, processes = workers(file, options.repeats)
                records.append(
                    ledger.measure(
                        "video.sources.threads", threads, "frames/s", command=command,
                        baseline="two processes, frames not passed on", baseline_value=processes,
                        notes=f"Frames of 640x360 that two threads of one process decode and convert. Median of "
                        f"{options.repeats}, wall time: other work on the machine counts.",
                    )
                )  # fmt: skip
    if not has_server():
        print("no RTSP server here: left out; see tests/video/rtsp/serve.py", file=sys.stderr)
    print(ledger.render_table(records))
    if options.json:
        ledger.write(options.json, records)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", type=Path, help="write the records there")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--streams", type=int, default=8, help="at once from the RTSP server; of 1080p a quarter")
    parser.add_argument("--seconds", type=float, default=10.0, help="that RTSP streams run")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
