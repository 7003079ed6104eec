"""How many cameras one machine carries, decoding, perception, rules and events included, and what ends first.

    python benchmarks/video_cameras.py --cameras 50 100 150 200 --shards 4 --workers 3 --graphs --compile   # a GPU
    python benchmarks/video_cameras.py --cameras 2 4 --preset tiny --seconds 5 --fps 5                       # a CPU

Cameras are H.264 files of a painted warehouse whose packets come in real time, each when its frame has been taken, in
phases at random. They are shared out to `--shards` processes, each a whole `Pipeline`: `--workers` processes that
decode and check the pictures, perception with all its cameras in one batch, a `Desk` with four rules and a file of
events. More cameras are added live from level to level, until one fails; a level is measured after a time to settle.
Shards that share a GPU want NVIDIA's MPS (`nvidia-cuda-mps-control -d`): else their work takes turns.
Latency is from when a frame was taken until the desk is done with it. Of the network only the time counts here, so
untrained weights will do: the threshold of what is shown is then set so that six objects are seen in a frame.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from stille import ledger

SIZES = {"360p": ((640, 360), 0.8), "1080p": ((1920, 1080), 4.0)}  # and megabits per second
SETTLE_S, OBJECTS = 5.0, 6
GOAL_MS, GOAL_DROPS = 150.0, 0.1


@dataclass
class Task:
    """What a shard has to know."""

    film: Path
    names: list[str]
    model: Path | None
    preset: str
    device: str
    fps: int
    workers: int
    batch: int
    graphs: bool
    compile: bool
    out: Path


@dataclass
class Level:
    """What one shard measured.

    Attributes:
        late_ms: of each frame.
        seen, dropped: frames.
        thread, child: shares of a core that perception's thread, and the busiest decoding process, took.
        cores: all that the shard took.
    """

    late_ms: np.ndarray
    seen: int
    dropped: int
    thread: float
    child: float
    cores: float
    batch: float
    errors: int
    events: int


# A shard


class Counted:
    """A perception whose batches are counted."""

    def __init__(self, cam: Any):
        self.cam, self.calls, self.frames = cam, 0, 0

    def see(self, frames: Sequence[Any]) -> list[Any]:
        self.calls += 1
        self.frames += len(frames)
        return self.cam.see(frames)

    def forget(self, camera: str) -> None:
        self.cam.forget(camera)


def make_net(film: Path, preset: str, device: str, fps: int, **sizes: int) -> Any:
    """An untrained network that shows six objects of a frame of the film on average."""
    import torch

    from stille.video.model import PRESETS, StilleCam, StilleCamNet, resized
    from stille.video.types import Frame
    from video_sides.paced import Paced

    torch.manual_seed(0)
    config = replace(PRESETS[preset], **sizes)
    net = StilleCamNet(config)
    images = [frame.image_HW3 for frame, _ in zip(Paced(film, "probe", 0.0, 1000.0), range(8), strict=False)]
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():  # batch norms that know the pictures, queries that differ
        net.maps(resized(torch.from_numpy(np.stack(images[:2])), config.width, config.height))
        torch.nn.init.normal_(net.decoder.presence.weight, std=0.1)
    state = {name: value.clone() for name, value in net.state_dict().items()}

    def with_threshold(value: float) -> Any:
        fresh = StilleCamNet(replace(config, shown=value, born=value))
        fresh.load_state_dict(state)
        return fresh

    cam = StilleCam(with_threshold(0.0), device)
    seen = [cam.see([Frame("probe", i, i / fps, 0.0, image)])[0] for i, image in enumerate(images)]
    return with_threshold(float(np.sort(np.concatenate([one.score_N for one in seen]))[-OBJECTS * len(seen)]))


def make_cam(task: Task) -> Any:
    from stille.video.model import StilleCam, load

    network = load(task.model) if task.model else make_net(task.film, task.preset, task.device, task.fps)
    return StilleCam(network, task.device, graphs=task.graphs, compile=task.compile)


def rules_of(names: list[str]) -> Any:
    from stille.video.rules import parse_rules

    def zone(kind: str, name: str, x0: float, x1: float) -> str:
        return f"  - {{name: {kind}-{name}, camera: {name}, points: [[{x0},0.3],[{x1},0.3],[{x1},1],[{x0},1]]}}\n"

    zones = "".join(zone("hall", name, 0, 1) + zone("lane", name, 0.3, 0.6) for name in names)
    halls, lanes = (", ".join(f"{kind}-{name}" for name in names) for kind in ("hall", "lane"))
    return parse_rules(
        f"cameras: [{', '.join(f'{{name: {name}}}' for name in names)}]\nzones:\n{zones}"
        f"rules:\n  - {{id: helmet, type: no_helmet, zones: [{halls}], dwell: 1}}\n"
        f"  - {{id: lane, type: person_in_lane, zones: [{lanes}], dwell: 0.5}}\n"
        "  - {id: fall, type: lying, dwell: 4}\n  - {id: trouble, type: camera_trouble}\n"
    )


def cpu_of(thread: threading.Thread) -> float:
    assert thread.ident is not None
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))


def shard(task: Task, orders: Connection) -> None:
    """The life of a shard: ("add", names), ("measure", seconds) -> Level, None."""
    import gc

    import psutil
    import torch

    from stille.video.events import Desk
    from stille.video.pipeline import Pipeline
    from stille.video.sinks import JsonLines, Lane, Sinks
    from stille.video.sources.workers import pin_for_cuda
    from video_sides.paced import Paced

    torch.set_num_threads(1)
    cam = Counted(make_cam(task))
    cam.cam.warm(len(task.names))
    desk = Desk(rules_of(task.names), Sinks([Lane(JsonLines(task.out))]))
    late: list[float] = []
    over = threading.Event()

    def sink(seen: Any, frame: Any) -> None:
        desk.see(seen, None)  # no pictures are kept: evidence is another matter
        late.append(time.time() - seen.time)

    rng, process = np.random.default_rng(os.getpid()), psutil.Process()
    with Pipeline(
        cam, on_seen=[sink], workers=task.workers, max_batch=task.batch,
        pin=pin_for_cuda if task.device == "cuda" else None,
    ) as pipeline:  # fmt: skip
        gc.freeze()

        def totals() -> tuple[int, int, int]:
            stats = pipeline.stats().values()
            return (
                sum(one.seen for one in stats),
                sum(one.dropped + one.source.late + one.source.corrupt for one in stats),
                sum(one.errors for one in stats),
            )

        def times() -> tuple[float, float, dict[int, float]]:
            children = {c.pid: sum(c.cpu_times()[:2]) for c in process.children()}
            return cpu_of(threading.main_thread()), sum(process.cpu_times()[:2]) + sum(children.values()), children

        def obey() -> None:
            while (order := orders.recv()) is not None:
                what, value = order
                if what == "add":
                    for name in value:
                        pipeline.add(Paced(task.film, name, time.time() + 1 + rng.random(), task.fps))
                    continue
                before, cpu, calls, frames = totals(), times(), cam.calls, cam.frames
                at, begun, opened = len(late), time.perf_counter(), desk.counts["opened"]
                time.sleep(value)
                wall, end, after = time.perf_counter() - begun, times(), totals()
                children = [end[2][pid] - cpu[2].get(pid, 0.0) for pid in end[2]]
                orders.send(Level(
                    1000 * np.array(late[at:]), after[0] - before[0], after[1] - before[1], (end[0] - cpu[0]) / wall,
                    max(children, default=0.0) / wall, (end[1] - cpu[1]) / wall,
                    (cam.frames - frames) / max(1, cam.calls - calls), after[2] - before[2],
                    desk.counts["opened"] - opened,
                ))  # fmt: skip
            over.set()

        orders.send("ready")
        threading.Thread(target=obey, daemon=True).start()
        while not over.is_set():
            pipeline.run(until=over.is_set)  # without cameras it returns at once
            time.sleep(0.05)
    desk.close()


# All together


@dataclass
class Outcome:
    """A level of all shards together."""

    cameras: int
    p50_ms: float
    p99_ms: float
    dropped_percent: float
    frames_per_s: float
    busy: dict[str, float] = field(default_factory=dict)
    batch: float = 0.0
    errors: int = 0
    events: int = 0

    @property
    def held(self) -> bool:
        return self.p99_ms < GOAL_MS and self.dropped_percent < GOAL_DROPS and not self.errors

    @property
    def first(self) -> str:
        return max(self.busy, key=lambda name: self.busy[name])


class Gpu:
    """How busy the GPU is, sampled; a share that is None where nobody can say."""

    def __init__(self, on: bool):
        self.samples: list[float] = []
        self._on = on
        if on:
            threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        try:
            import pynvml  # pyright: ignore[reportMissingImports]

            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByIndex(0)
            while self._on:
                self.samples.append(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100)
                time.sleep(0.25)
        except Exception as error:
            print(f"how busy the GPU is cannot be told: {error}", file=sys.stderr)

    def since(self, start: int) -> float | None:
        return float(np.mean(self.samples[start:])) if len(self.samples) > start else None


def join(cameras: int, fps: int, seconds: float, levels: list[Level], gpu: float | None) -> Outcome:
    late = np.concatenate([level.late_ms for level in levels])
    seen, dropped = (sum(getattr(level, name) for level in levels) for name in ("seen", "dropped"))
    if not len(late):
        raise SystemExit("nothing was seen; nothing is recorded")
    wanted = cameras * fps * seconds
    lost = max(dropped, round(wanted * 0.998) - seen)  # frames that never came are lost too
    busy = {
        "a perception thread": max(level.thread for level in levels),
        "a decoding process": max(level.child for level in levels),
        "all cores": sum(level.cores for level in levels) / (os.cpu_count() or 1),
    }
    if gpu is not None:
        busy["the GPU"] = gpu
    return Outcome(
        cameras, float(np.percentile(late, 50)), float(np.percentile(late, 99)), 100 * max(0, lost) / wanted,
        seen / seconds, busy, float(np.mean([level.batch for level in levels])), sum(level.errors for level in levels),
        sum(level.events for level in levels),
    )  # fmt: skip


def run(options: argparse.Namespace, film: Path, folder: Path) -> list[Outcome]:
    names = [f"cam{i:03d}" for i in range(max(options.cameras))]
    context, shards = multiprocessing.get_context("spawn"), []
    for i in range(options.shards):
        here, there = context.Pipe()
        task = Task(
            film, names[i :: options.shards], options.model, options.preset, options.device, options.fps,
            options.workers, options.batch, options.graphs, options.compile, folder / f"events-{i}.jsonl",
        )  # fmt: skip
        process = context.Process(target=shard, args=(task, there))
        process.start()
        there.close()
        shards.append((here, process))
    outcomes, gpu, before = [], Gpu(options.device == "cuda"), 0
    try:
        for here, _ in shards:
            assert here.recv() == "ready"
        for count in options.cameras:
            for i, (here, _) in enumerate(shards):
                here.send(("add", [name for name in names[before:count] if name in names[i :: options.shards]]))
            time.sleep(SETTLE_S + 2)
            start = len(gpu.samples)
            for here, _ in shards:
                here.send(("measure", options.seconds))
            levels = [here.recv() for here, _ in shards]
            outcome = join(count, options.fps, options.seconds, levels, gpu.since(start))
            outcomes.append(outcome)
            before = count
            print({**asdict(outcome), "held": outcome.held}, flush=True)
            if not outcome.held and not options.all:
                break
        for here, _ in shards:
            here.send(None)
    finally:
        for _, process in shards:
            process.join(20)
            if process.is_alive():
                process.kill()
    return outcomes


def records(options: argparse.Namespace, outcomes: list[Outcome], megabits: float) -> list[ledger.Record]:
    held = [outcome for outcome in outcomes if outcome.held]
    best, last = held[-1] if held else outcomes[0], outcomes[-1]
    size, where = SIZES[options.size][0], f"video.cameras.{options.size}.{options.device}"
    more = (
        f"{options.shards} shards of {options.workers} decoding processes; batches of {best.batch:.0f}; "
        f"{best.frames_per_s:.0f} frames/s seen, {best.events} events opened in {options.seconds:g} s. "
        f"Share in use: {', '.join(f'{name} {share:.0%}' for name, share in best.busy.items())}. "
    )
    if not last.held:
        more += (
            f"With {last.cameras} cameras p99 was {last.p99_ms:.0f} ms, {last.dropped_percent:.2f} % were dropped; "
            f"first at its end: {last.first}. "
        )
    more += "Weights trained." if options.model else f"Weights untrained, {OBJECTS} objects seen in a frame."
    command = f"python benchmarks/video_cameras.py {ledger.arguments()}"
    kind = f"{size[0]}x{size[1]} H.264 at {options.fps} FPS ({megabits:.1f} Mbit/s)"
    return [
        ledger.measure(
            where, len(held) and best.cameras, "cameras", command=command, goal="value >= 200",
            notes=f"Cameras of {kind} that one machine carries, decoding and events included. {more}",
        ),
        ledger.measure(
            f"{where}.p50", best.p50_ms, "ms", better="lower", command=command,
            notes=f"Median time from a frame being taken to its events, {best.cameras} cameras. {kind}.",
        ),
        ledger.measure(
            f"{where}.p99", best.p99_ms, "ms", better="lower", command=command, goal=f"value < {GOAL_MS:g}",
            notes=f"99 of 100 frames are through, events included, within this time, {best.cameras} cameras. {kind}.",
        ),
        ledger.measure(
            f"{where}.drops", best.dropped_percent, "%", better="lower", command=command,
            goal=f"value < {GOAL_DROPS:g}", notes=f"Frames dropped, {best.cameras} cameras. {kind}.",
        ),
    ]  # fmt: skip


def main() -> int:
    options = parse()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    options.cameras = sorted(options.cameras)
    with tempfile.TemporaryDirectory() as name:
        folder, (size, megabits) = Path(name), SIZES[options.size]
        film = options.film or folder / "film.mp4"
        if not film.exists():
            from video_sides.paced import write_film

            megabits = write_film(film, size, 10, options.fps, megabits)
        found = records(options, run(options, film, folder), megabits)
    print(ledger.render_table(found))
    if options.json:
        ledger.write(options.json, found)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the records there")
    parser.add_argument("--cameras", type=int, nargs="+", default=[50, 100, 150, 200], help="levels, one by one")
    parser.add_argument("--all", action="store_true", help="go on after a level that fails")
    parser.add_argument("--seconds", type=float, default=30.0, help="that a level is measured")
    parser.add_argument("--shards", type=int, default=1, help="processes with a pipeline")
    parser.add_argument("--workers", type=int, default=1, help="decoding processes of a shard; 0: threads")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--graphs", action="store_true", help="batches of few sizes, each a CUDA graph")
    parser.add_argument("--compile", action="store_true", help="torch.compile; the first start takes minutes")
    parser.add_argument("--fps", type=int, default=30)
    parser.add_argument("--size", choices=SIZES, default="360p")
    parser.add_argument("--model", type=Path, help="folder of trained weights")
    parser.add_argument("--preset", choices=("base", "coco", "tiny"), default="base", help="of untrained weights")
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--film", type=Path, help="instead of a painted one; painted there if there is none")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
