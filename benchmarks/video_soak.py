"""Cameras for half an hour with a fault every minute: is an event lost, does memory grow, how fast do they come back?

    python benchmarks/video_soak.py --json results.json                    # 30 minutes
    python benchmarks/video_soak.py --minutes 3 --every 15                 # a first look

A real RTSP server (its packages: tests/video/rtsp/serve.py) sends H.264 in which a red square, the intruder, is there
for five of every twelve seconds. Between it and `stille.video` lies a proxy that stalls, damages, resets; the server is
killed and comes back with pictures of another size, and with a stream that is cut within a picture. Perception is not
the model but the truth: it finds the square by its colour, as this is about everything else: sources, queues, rules,
desk, evidence, the store. What perception was shown is written down apart, and judged by this file alone:

    lost      an intruder who was shown for three seconds without a gap of one, and of whom no event tells
    false     an event without an intruder
    double    two events of a camera at the same time
"""

import argparse
import logging
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import av
import numpy as np
import psutil

from stille import ledger
from stille.video.events import Desk
from stille.video.evidence import Evidence
from stille.video.pipeline import Pipeline
from stille.video.rules import parse_rules
from stille.video.sinks import JsonLines, Lane, Sinks
from stille.video.store import Store
from stille.video.types import Frame, Seen, Trouble
from video_sides.faults import Proxy

SERVER = Path(__file__).resolve().parents[1] / "tests" / "video" / "rtsp" / "server.py"
FPS, CYCLE_S, COMES_S, GOES_S = 10, 12, 4, 9
DWELL_S, QUIET_S, SHOWN_S, GAP_S = 1.0, 1.5, 3.0, 1.0


def write_scene(path: Path, size: tuple[int, int]) -> None:
    """One cycle as Annex B: a floor with noise, and the intruder."""
    rng, (width, height) = np.random.default_rng(0), size
    floor = np.kron(rng.integers(60, 150, (height // 20, width // 20, 1)), np.ones((20, 20, 3), np.int64))
    with av.open(str(path), "w", format="h264") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        settings = f"aud=1:bframes=0:keyint={FPS}:slices=1:threads=1"
        stream.options = {"preset": "ultrafast", "x264-params": settings}
        for i in range(FPS * CYCLE_S):
            picture = floor + rng.integers(0, 6, (height, width, 1))
            if COMES_S <= i / FPS < GOES_S:
                x = width // 4 + 2 * (i - FPS * COMES_S)
                picture[height // 3 : 2 * height // 3, x : x + width // 8] = (240, 20, 20)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture.astype(np.uint8), format="rgb24")))
        container.mux(stream.encode())


class Truth:
    """A perception by colour, and the log of what it was shown: times of a camera's frames with the intruder."""

    def __init__(self) -> None:
        self.shown: defaultdict[str, list[float]] = defaultdict(list)
        self.last: dict[str, float] = {}  # wall time of a camera's last frame
        self._identity: defaultdict[str, int] = defaultdict(int)

    def see(self, frames: Sequence[Frame]) -> list[Seen]:
        return [self._find(frame) for frame in frames]

    def _find(self, frame: Frame) -> Seen:
        camera, image_HW3 = frame.camera, frame.image_HW3[::2, ::2].astype(np.int16)
        self.last[camera] = time.time()
        red_HW = image_HW3[..., 0] - image_HW3[..., 1:].max(-1) > 100
        rows, columns = np.nonzero(red_HW)
        if len(rows) < 50:  # damaged pictures have specks
            return Seen.nothing(camera, frame.index, frame.time, frame.size)
        shown = self.shown[camera]
        if not shown or abs(frame.time - shown[-1]) > GAP_S:
            self._identity[camera] += 1
        shown.append(frame.time)
        box = 2 * np.array([np.percentile(columns, 2), np.percentile(rows, 2), columns.max(), rows.max()])
        return Seen(
            camera, frame.index, frame.time, frame.size, box[None].astype(np.float32), np.zeros(1, np.int64),
            np.ones(1, np.float32), np.array([self._identity[camera]]), np.zeros((1, 5), np.float32),
        )  # fmt: skip


class Servers:
    """The RTSP server: killed, stopped and started with other files, always on the same port."""

    def __init__(self, cameras: list[str], scene: Path):
        self._cameras, self.port = cameras, 0
        self.start(scene)

    def start(self, scene: Path) -> None:
        command = ["/usr/bin/python3", str(SERVER), "--fps", str(FPS), "--port", str(self.port)]
        self._process = subprocess.Popen(
            [*command, *(f"{name}={scene}" for name in self._cameras)], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline() or 0) or sys.exit(
            "no RTSP server; see tests/video/rtsp/serve.py"
        )

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@dataclass
class Faults:
    """What goes wrong, one after another; each is over when its function returns."""

    servers: Servers
    proxies: list[Proxy]
    scenes: dict[str, Path]
    log: list[tuple[str, float]] = field(default_factory=list)  # what, and when it was over

    def all(self) -> Iterator[tuple[str, Callable[[], None]]]:
        half = self.proxies[: len(self.proxies) // 2]
        while True:
            yield "server killed", lambda: self._restart("usual")
            yield "pictures damaged", lambda: self._hold(half, 5, corrupt=0.2)
            yield "network stalled", lambda: self._hold(half, 15, stalled=True)
            yield "picture size changed", lambda: self._restart("square")
            yield "clock put forward", lambda: self._hold(half, 0, jump_s=3600.0)
            yield "clock put back", lambda: self._hold(half, 0, jump_s=0.0)
            yield "connections reset", lambda: self._reset(half)
            yield "stream cut within a picture", lambda: self._restart("cut")
            yield "garbage sent", lambda: self._hold(half, 3, garbage=True)
            yield "connections refused", self._refuse
            yield "server back to normal", lambda: self._restart("usual")

    def _restart(self, scene: str) -> None:
        self.servers.kill()
        time.sleep(4)
        self.servers.start(self.scenes[scene])

    def _reset(self, proxies: list[Proxy]) -> None:
        for proxy in proxies:
            proxy.reset()

    def _hold(self, proxies: list[Proxy], seconds: float, **fault: Any) -> None:
        before = {name: getattr(proxies[0], name) for name in fault}
        for proxy in proxies:
            vars(proxy).update(fault)
        if seconds:
            time.sleep(seconds)
            for proxy in proxies:
                vars(proxy).update(before)

    def _refuse(self) -> None:
        for proxy in self.proxies:
            proxy.refused = True
            proxy.reset()
        time.sleep(5)
        for proxy in self.proxies:
            proxy.refused = False


def inject(faults: Faults, truth: Truth, every_s: float, until: float, back: dict[str, list[float]]) -> None:
    """A fault every so often, and after each how long the slowest camera took to come back."""
    for what, apply in faults.all():
        pause = min(every_s, until - time.time() - 20)  # the last one has time to heal
        if pause <= 0:
            return
        time.sleep(pause)
        apply()
        over = time.time()
        faults.log.append((what, over))
        names = [f"cam{i}" for i in range(len(faults.proxies))]
        while any(truth.last.get(name, 0.0) <= over for name in names) and time.time() - over < 60:
            time.sleep(0.1)
        slowest = max(0.0, max(truth.last.get(name, 0.0) - over for name in names))
        late = [name for name in names if truth.last.get(name, 0.0) <= over]
        back[what].append(60.0 if late else slowest)
        print(f"{what}: {'still away: ' + ', '.join(late) if late else f'back within {slowest:.1f} s'}", flush=True)


def runs(times: list[float]) -> list[tuple[float, float]]:
    """When the intruder was shown without a gap, long enough."""
    found, times = [], sorted(times)
    begin = 0
    for i in range(1, len(times) + 1):
        if i == len(times) or times[i] - times[i - 1] > GAP_S:
            found.append((times[begin], times[i - 1]))
            begin = i
    return [(a, b) for a, b in found if b - a >= SHOWN_S]


def judge(truth: Truth, events: list[Any], over: float) -> tuple[int, int, int, int]:
    """Intruders that were shown; lost, false and double events."""
    total = lost = false = double = 0
    for camera, times in truth.shown.items():
        mine = sorted((e.began, e.ended if e.ended is not None else over) for e in events if e.camera == camera)
        shown = runs(times)
        total += len(shown)
        lost += sum(not any(a < d and c < b for c, d in mine) for a, b in shown)
        false += sum(not any(a - GAP_S <= t <= b + GAP_S for t in times) for a, b in mine)
        double += sum(b > c + 1e-6 for (_, b), (c, _) in pairwise(mine))
    return total, lost, false, double


def main() -> int:
    options = parse()
    logging.basicConfig(level=logging.ERROR)
    names = [f"cam{i}" for i in range(options.cameras)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scenes = {scene: folder / f"{scene}.h264" for scene in ("usual", "square", "cut")}
        write_scene(scenes["usual"], (320, 180))
        write_scene(scenes["square"], (240, 240))  # as many pixels: memory can be compared
        data = scenes["usual"].read_bytes()
        scenes["cut"].write_bytes(data[: len(data) - len(data) // 50])
        records = soak(options, names, folder, scenes)
    print(ledger.render_table(records))
    if options.json:
        ledger.write(options.json, records)
    return 0


def soak(
    options: argparse.Namespace, names: list[str], folder: Path, scenes: dict[str, Path]
) -> list[ledger.Record]:  # fmt: skip
    servers, truth, troubles = Servers(names, scenes["usual"]), Truth(), SimpleQueue[Trouble]()
    proxies = [Proxy(servers.port) for _ in names]
    zones = "".join(f"  - {{name: {n}-all, camera: {n}, points: [[0,0],[1,0],[1,1],[0,1]]}}\n" for n in names)
    rules = parse_rules(
        f"cameras: [{', '.join(f'{{name: {n}}}' for n in names)}]\nzones:\n{zones}rules:\n"
        f"  - {{id: in, type: intrusion, zones: [{', '.join(f'{n}-all' for n in names)}], dwell: {DWELL_S}, "
        f"quiet: {QUIET_S}}}\n"
    )
    store = Store(folder / "events.db")
    lanes = [Lane(store, spool=folder / "spool"), Lane(JsonLines(folder / "events.jsonl"))]
    desk = Desk(rules, Sinks(lanes), None, Evidence(folder / "evidence"))
    memory: list[float] = []
    until, back = time.time() + 60 * options.minutes, defaultdict[str, list[float]](list)
    faults = Faults(servers, proxies, scenes)
    processes = [psutil.Process()]
    saved = measured = 0.0

    def look() -> bool:
        nonlocal saved, measured
        now = time.time()
        try:
            while True:
                desk.trouble(troubles.get_nowait())
        except Empty:
            pass
        if now - saved >= 1:
            saved = now
            for camera, stats in pipeline.stats().items():
                if stats.state == "offline":
                    desk.advance(camera, now)
            desk.save(folder / "state.json")
        if now - measured >= 1:
            measured = now
            memory.append(sum(p.memory_info().rss for p in [*processes, *pipeline_children()]) / 2**20)
        return now >= until

    def pipeline_children() -> list[psutil.Process]:
        return [p for p in processes[0].children() if p.pid != servers._process.pid] if options.workers else []

    try:
        with Pipeline(
            truth, on_seen=[desk.see], on_trouble=[troubles.put], workers=options.workers
        ) as pipeline:  # fmt: skip
            for camera, proxy in zip(names, proxies, strict=True):
                pipeline.add(f"rtsp://127.0.0.1:{proxy.port}/{camera}#name={camera},timeout=5")
            arguments = faults, truth, options.every, until, back
            threading.Thread(target=inject, args=arguments, daemon=True).start()
            pipeline.run(until=look)
            stats = pipeline.stats()
    finally:
        servers.kill()
    for camera in names:
        desk.end(camera)
    desk.close()
    events = Store(folder / "events.db").find(limit=100_000)
    total, lost, false, double = judge(truth, events, time.time())
    if not total:
        raise SystemExit("no intruder was shown; nothing is recorded")
    memory = memory[60:] if len(memory) > 600 else memory  # until everything is loaded
    third = len(memory) // 3
    grown = statistics.median(memory[-third:]) / statistics.median(memory[:third])
    seen, dropped = (sum(getattr(one, name) for one in stats.values()) for name in ("seen", "dropped"))
    errors = sum(one.errors for one in stats.values())
    slowest, what = max((max(times), what) for what, times in back.items())
    print({"seen": seen, "dropped": dropped, "errors": errors, "back": dict(back), "desk": desk.health()}, flush=True)
    command = f"python benchmarks/video_soak.py {ledger.arguments()}".strip()
    how = (
        f"{len(names)} cameras from an RTSP server for {options.minutes:g} minutes, {len(faults.log)} faults "
        f"({', '.join(dict.fromkeys(what for what, _ in faults.log))}); {seen} frames seen, {dropped} dropped, "
        f"{errors} errors. Perception is by colour, not the model."
    )
    return [
        ledger.measure(
            "video.soak.lost", lost, "events", better="lower", command=command, goal="value == 0",
            notes=f"Intruders of {total} that were shown to perception and of whom no event tells. {how}",
        ),
        ledger.measure(
            "video.soak.wrong", false + double, "events", better="lower", command=command, goal="value == 0",
            notes=f"Events of {len(events)} without an intruder ({false}), or at the same time as another ({double}). "
            f"{how}",
        ),
        ledger.measure(
            "video.soak.memory", grown, "of the first third", better="lower", command=command, goal="value <= 1.05",
            notes=f"Median resident memory in the last third of the time, of that in the first. From "
            f"{statistics.median(memory[:third]):.0f} to {statistics.median(memory[-third:]):.0f} MiB. {how}",
        ),
        ledger.measure(
            "video.soak.back", slowest, "s", better="lower", command=command, goal="value <= 30",
            notes=f"Longest time from the end of a fault until all cameras were seen again ({what}). {how}",
        ),
    ]  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the records there")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--every", type=float, default=60.0, help="seconds from a camera's return to the next fault")
    parser.add_argument("--cameras", type=int, default=8)
    parser.add_argument("--workers", type=int, default=0, help="decoding processes; 0: threads")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
