"""Four cameras at 5 FPS on two cores, in real time, from files and from an RTSP server: what is dropped, and how late.

    python benchmarks/video_cpu.py --json results.json                 # about five minutes on a quiet machine
    python benchmarks/video_cpu.py --ways int8 --origins file --seconds 10

Cameras are of 640x360 at 30 FPS, of which five a second are seen; decoding, health checks, perception, four rules and a
file of events share the two cores. The ways to see:

    bf16      the base model on 640x352 pictures
    int8      the same with its backbone in 8 bits (benchmarks/video_int8.py says what that costs in accuracy)
    gate      the same, spared the frames in which nothing moves

Weights are untrained unless `--model` is given; six objects are shown in a frame. A frame's time
runs from when it would have come had it been as fast as the fastest of its camera, until the desk is done with it.
"""

import argparse
import os
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import numpy as np

from stille import ledger

CAMERAS, FPS, CORES, SETTLE_S = 4, 5, 2, 4.0
WAYS = ("bf16", "int8", "gate")
SERVER = Path(__file__).resolve().parents[1] / "tests" / "video" / "rtsp" / "server.py"


@dataclass
class Outcome:
    """
    Attributes:
        dropped: percent of the frames that were asked for; spared: by the gate.
        cores: that were busy.
    """

    frames: int
    dropped: float
    spared: float
    p50_ms: float
    p99_ms: float
    cores: float


def make_cam(way: str, model: Path | None, film: Path, threads: int) -> Any:
    import torch

    from stille.video.model import Abreast, load
    from stille.video.model.camera import default_dtype
    from stille.video.model.quantized import measure
    from video_cameras import make_net

    network = load(model) if model is not None else make_net(film, "base", "cpu", FPS)
    if way == "bf16":
        cam = Abreast(network, threads, dtype=default_dtype(torch.device("cpu")))
    else:
        if not network.config.ranges:
            network.config = replace(network.config, ranges=measure(network, pictures(film, network.config)))
        cam = Abreast(network, threads, int8=True)
    cam.warm(CAMERAS)
    return cam


def pictures(film: Path, config: Any) -> Any:
    """Sixteen of the film, a second apart, as the network takes them."""
    import av
    import torch

    with av.open(str(film)) as container:
        for i, frame in enumerate(container.decode(video=0)):
            if i % 30 == 0 and i < 480:
                yield torch.from_numpy(frame.to_ndarray(format="rgb24", width=config.width, height=config.height))[None]


def watch(cam: Any, sources: list[str], names: list[str], gate: str, seconds: float, out: Path) -> Outcome:
    import psutil

    from stille.video.events import Desk
    from stille.video.pipeline import Pipeline
    from stille.video.sinks import JsonLines, Lane, Sinks
    from video_cameras import rules_of

    desk, late = Desk(rules_of(names), Sinks([Lane(JsonLines(out))])), list[float]()

    fastest: dict[str, float] = {}  # seconds from a frame's time to its arrival

    def sink(seen: Any, frame: Any) -> None:
        desk.see(seen, frame)
        came = frame.arrived - seen.time
        fastest[seen.camera] = min(came, fastest.get(seen.camera, came))
        late.append(1000 * (time.monotonic() - seen.time - fastest[seen.camera]))

    process = psutil.Process()

    def totals() -> np.ndarray:
        stats = pipeline.stats().values()
        return np.array([
            sum(getattr(one, name) for one in stats) for name in ("seen", "dropped", "gated")
        ] + [sum(one.source.late + one.source.corrupt for one in stats), sum(process.cpu_times()[:2])])  # fmt: skip

    with Pipeline(cam, on_seen=[sink], gate=gate, max_batch=CAMERAS) as pipeline:  # type: ignore[arg-type]
        for source in sources:
            pipeline.add(source)
        deadline = time.monotonic() + SETTLE_S + 30
        pipeline.run(
            until=lambda: time.monotonic() > deadline or all(s.seen + s.gated > 5 for s in pipeline.stats().values())
        )
        end = time.monotonic() + SETTLE_S
        pipeline.run(until=lambda: time.monotonic() > end)
        before, end = totals(), time.monotonic() + seconds
        late.clear()
        pipeline.run(until=lambda: time.monotonic() > end)
        seen, dropped, gated, lost, cpu = totals() - before
    desk.close()
    if not late:
        raise SystemExit("nothing was seen; nothing is recorded")
    lost *= FPS / 30  # of all frames, of which one in six is asked for
    whole = seen + dropped + gated + lost
    p50, p99 = np.percentile(late, (50, 99))
    return Outcome(
        int(whole), 100 * (dropped + lost) / whole, 100 * gated / whole, float(p50), float(p99),
        cpu / seconds,
    )  # fmt: skip


def main() -> int:
    options = parse()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])

    from video_sides.paced import write_film

    records: list[ledger.Record] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        film, raw = folder / "film.mp4", folder / "film.h264"
        write_film(film, (640, 360), 10, 30, 0.8)
        to_annexb(film, raw)
        names = [f"cam{i}" for i in range(CAMERAS)]
        for way in options.ways:
            cam = make_cam(way, options.model, film, options.threads)
            for origin in options.origins:
                for camera in cam.cameras:
                    cam.forget(camera)
                server = None
                if origin == "rtsp":
                    command = ["/usr/bin/python3", str(SERVER), "--fps", "30", *(f"{one}={raw}" for one in names)]
                    server = Popen(command, stdout=PIPE, text=True)
                    assert server.stdout is not None
                    port = int(server.stdout.readline() or 0) or sys.exit(
                        "no RTSP server: see tests/video/rtsp/serve.py"
                    )
                    sources = [f"rtsp://127.0.0.1:{port}/{one}#name={one},fps={FPS}" for one in names]
                else:
                    sources = [f"{film}#name={one},fps={FPS},realtime=true,loop=true" for one in names]
                try:
                    gate = "on" if way == "gate" else "off"
                    outcome = watch(cam, sources, names, gate, options.seconds, folder / "events.jsonl")
                finally:
                    if server is not None:
                        server.kill()
                        server.wait()
                print(way, origin, outcome, flush=True)
                records += record(way, origin, outcome, options)
    print(ledger.render_table(records))
    if options.json:
        ledger.write(options.json, records)
    return 0


def to_annexb(film: Path, raw: Path) -> None:
    """The same pictures as the RTSP server wants them: Annex B with access unit delimiters."""
    import av

    with av.open(str(film)) as container, av.open(str(raw), "w", format="h264") as out:
        stream = out.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        stream.bit_rate = 800_000
        stream.options = {"preset": "veryfast", "x264-params": "aud=1:bframes=0:keyint=60:slices=1:threads=1"}
        for frame in container.decode(video=0):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame.to_ndarray(format="rgb24"), format="rgb24")))
        out.mux(stream.encode())


def record(way: str, origin: str, outcome: Outcome, options: argparse.Namespace) -> list[ledger.Record]:
    command = f"python benchmarks/video_cpu.py {ledger.arguments()}".strip()
    where = "files" if origin == "file" else "an RTSP server"
    what = f"{CAMERAS} cameras at {FPS} FPS from {where} on {CORES} cores, {way}"
    more = (
        f"{options.seconds:g} s, {outcome.frames} frames, {options.threads} threads; {outcome.cores:.2f} cores busy, "
        f"the gate spared {outcome.spared:.0f} %. Weights {'trained' if options.model else 'untrained'}."
    )
    name = f"video.cpu.{origin}.{way}"
    return [
        ledger.measure(
            f"{name}.drops", outcome.dropped, "%", better="lower", command=command, goal="value < 1",
            notes=f"Frames dropped, {what}. {more}",
        ),
        ledger.measure(
            f"{name}.p99", outcome.p99_ms, "ms", better="lower", command=command,
            notes=f"99 of 100 frames are through within this time, {what}. Median {outcome.p50_ms:.0f} ms. {more}",
        ),
    ]  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the records there")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--origins", nargs="+", choices=("file", "rtsp"), default=["file", "rtsp"])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--threads", type=int, default=CORES, help="of perception")
    parser.add_argument("--model", type=Path, help="folder of trained weights")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
