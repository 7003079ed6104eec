"""The perception model on generator B: tracks, events, false alarms and memory, against a strong baseline.

    python benchmarks/video_b.py --model cam/model --cache /tmp/b --minutes 25 --json benchmarks/results/video.json
    python benchmarks/video_b.py --model cam/model --cache /tmp/b --sealed ...   # once, for a release
    python benchmarks/video_b.py --oracle 0 --cache /tmp/o --cameras 4 --seconds 120       # the harness, no model

Both sides see the same frames: 640x352, five a second, painted by worker processes while GPUs look, each frame through
JPEG. "Ours" is the model with its memory. The baseline is the same network that takes each frame as its first (no
memory, no carried objects), with ByteTrack 2.6.1 and medians over tracks. Both go through the same rules engine; each
side's settings are searched on open seeds. What was seen is kept in `--cache`: a run that was stopped, or is called
again, paints nothing twice.

Needs TrackEval 1.3, trackers 2.6.1 and supervision (`pip install trackeval trackers`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from stille import ledger
from stille.evals.warehouse.gaps import SECONDS as GAP_CLIP_S
from stille.evals.warehouse.sealed import sealed
from video_sides import measure
from video_sides.gap import returns
from video_sides.judge import Strictness
from video_sides.measure import Job, Settings, judge
from video_sides.report import event_records, gap_records, track_records
from video_sides.strong import Tracking
from video_sides.studio import Camera, Studio
from video_sides.watch import progress, tell, watch

TUNE, OPEN = range(40), range(40, 100)
"""Open seeds: to search settings on, and for figures while nothing is released."""
STAGES = ("tune", "memory", "events", "score")
KINDS_OF_MEMORY = ("hsa", "dense", "window", "none")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", type=Path, help="folder of a trained model")
    source.add_argument("--oracle", type=float, help="the truth in the model's place, damaged by 0 to 1")
    parser.add_argument("--cache", type=Path, required=True, help="folder for what was seen")
    parser.add_argument("--sealed", action="store_true", help="on seeds that follow from the weights, not on open ones")
    parser.add_argument("--json", type=Path, help="merge the records into this file")
    parser.add_argument("--minutes", type=float, default=25.0, help="stop painting in time for all to end within this")
    parser.add_argument("--cameras", type=int, default=60, help="of the figures, at most as many as there are seeds")
    parser.add_argument("--seconds", type=float, default=1800.0, help="of each camera")
    parser.add_argument("--tune-cameras", type=int, default=20)
    parser.add_argument("--tune-seconds", type=float, default=600.0)
    parser.add_argument("--clips", type=int, default=60, help="about memory")
    parser.add_argument("--rate", type=float, default=5.0, help="frames per second")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--gpus", type=int, default=1, help="0: on the CPU")
    parser.add_argument("--change", nargs="*", default=[], help="of the model's configuration: shown=0.3 born=0.5")
    parser.add_argument(
        "--stages", nargs="+", choices=STAGES, default=STAGES, help="what to look at, and whether to score"
    )
    parser.add_argument("--part", nargs=3, metavar=("SET", "NUMBER", "OF"), help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.sealed and options.model is None:
        parser.error("--sealed goes with --model: the seeds follow from its weights")
    return options


def cameras_of(name: str, options: argparse.Namespace) -> list[Camera]:
    """Of a set: "tune", "events" or "memory", the latter two on sealed seeds if that is wanted."""
    if name == "tune":
        chosen = list(TUNE)[: options.tune_cameras]
    else:
        count = options.clips if name == "memory" else options.cameras
        chosen = list(sealed(options.model, count) if options.sealed else OPEN)[:count]
    if name == "memory":
        return [Camera(seed, "gap") for seed in chosen]
    long = options.tune_seconds if name == "tune" else options.seconds
    return [hour_camera(seed, long) for seed in chosen]


def hour_camera(seed: int, seconds: float) -> Camera:
    """A stretch of the hour that holds the shift's end, if there is one in it: half before it, half after it."""
    camera = Camera(seed)
    closing = camera.story().closing
    start = closing - seconds / 2 if closing < 3600 else 101.0 * (seed % 29)
    return replace(camera, start=float(round(min(max(start, 0.0), 3599.0 - seconds))))


def frames_of(name: str, options: argparse.Namespace) -> int:
    seconds = {"tune": options.tune_seconds, "memory": GAP_CLIP_S}.get(name, options.seconds)
    return int(seconds * options.rate)


def set_folder(name: str, options: argparse.Namespace) -> Path:
    prefix = "sealed-" if options.sealed and name != "tune" else ""
    return options.cache / f"{prefix}{name}"


def parts(name: str, options: argparse.Namespace) -> list[tuple[Path, list[Camera]]]:
    """What each GPU takes, and where it is kept."""
    number, every = max(options.gpus, 1), cameras_of(name, options)
    return [(set_folder(name, options) / f"part{i}of{number}", every[i::number]) for i in range(number)]


def look(name: str, options: argparse.Namespace, until: float) -> None:
    """See all frames of a set, on all GPUs, until a moment."""
    number, running = max(options.gpus, 1), []
    for i in range(number):
        command = [sys.executable, *sys.argv, "--part", name, str(i), str(number), "--until", str(until)]
        running.append(subprocess.Popen(command, env={**os.environ, "CUDA_VISIBLE_DEVICES": str(i)}))
    ended = [process.wait() for process in running]
    if any(ended):
        raise SystemExit(f"looking at the cameras of {name!r} failed, see above")


def look_part(options: argparse.Namespace) -> None:
    """One GPU's share."""
    name, i, number = options.part[0], int(options.part[1]), int(options.part[2])
    folder, cameras = parts(name, options)[i]
    folder.mkdir(parents=True, exist_ok=True)
    first, last = progress(folder), frames_of(name, options)
    if first >= last or not cameras:
        return
    workers = max(1, min((options.workers - number) // number, 4 * len(cameras)))
    label = f"{name} {i + 1}/{number}: "
    with Studio(cameras, first, last, options.rate, workers, paint=options.oracle is None) as studio:
        done = watch(models_of(name, options), cameras, studio, folder, options.until, label)
    tell(f"{label}{done} of {last} frames of {len(cameras)} cameras are there")


def models_of(name: str, options: argparse.Namespace) -> dict:
    """What looks at a set, by side."""
    if options.oracle is not None:
        return {}
    import torch

    from stille.video.model import StilleCam, load
    from video_sides.watch import SingleFrames

    device = torch.device("cuda" if options.gpus else "cpu")
    changes = {key: json.loads(value) for key, value in (one.split("=", 1) for one in options.change)}
    torch.set_num_threads(1)
    if name == "memory":
        return {kind: StilleCam(load(options.model, **changes, long_memory=kind), device) for kind in KINDS_OF_MEMORY}
    ours = StilleCam(load(options.model, **changes), device)
    return {"ours": ours, "frame": SingleFrames(ours)}


def begun_with(name: str, options: argparse.Namespace) -> bool:
    """Whether something of a set has been looked at."""
    return any(progress(folder) for folder, _ in parts(name, options))


def jobs_of(name: str, options: argparse.Namespace, settings: Settings) -> list[Job]:
    return [
        Job(folder, camera, settings, options.rate, damage=options.oracle)
        for folder, cameras in parts(name, options)
        if progress(folder)
        for camera in cameras
    ]


def settings_of(options: argparse.Namespace, pool: ProcessPoolExecutor) -> dict[str, Settings]:
    """Both sides', searched on the cameras for that unless it was done before."""
    path = options.cache / "settings.json"
    if path.exists():
        held = json.loads(path.read_text())
        return {side: read_settings(one) for side, one in held.items()}
    found = {}
    for side, tracking in (("ours", None), ("strong", Tracking())):
        start = Settings(tracking)
        jobs = jobs_of("tune", options, start)
        found[side] = measure.tuned(pool, jobs, start, lambda text, side=side: tell(f"tune {side} {text}"))
    path.write_text(json.dumps({side: asdict(one) for side, one in found.items()}, indent=2))
    return found


def read_settings(held: dict) -> Settings:
    tracking = Tracking(**held["tracking"]) if held["tracking"] else None
    return Settings(tracking, held["least"], Strictness(**held["strictness"]), held["threshold"])


def main() -> int:
    options = parse()
    if options.part:
        look_part(options)
        return 0
    begun = time.monotonic()
    end = begun + 60 * options.minutes
    options.cache.mkdir(parents=True, exist_ok=True)
    records = []
    least = 1.0 if "score" not in options.stages else 0.6
    allowed = {"tune": 0.25 * least, "memory": 0.4 * least, "events": least}  # share of the time until each has to end
    for name in STAGES[:-1]:
        if name in options.stages:
            look(name, options, begun + 60 * options.minutes * allowed[name])
    if "score" not in options.stages:
        return 0
    with ProcessPoolExecutor(options.workers) as pool:
        if begun_with("events", options):
            options.searched = begun_with("tune", options) or (options.cache / "settings.json").exists()
            settings = settings_of(options, pool) if options.searched else DEFAULTS
            sides = {side: list(pool.map(judge, jobs_of("events", options, one))) for side, one in settings.items()}
            hours = sum(one.end - one.begin for one in sides["ours"]) / 3600
            tell(f"{len(sides['ours'])} cameras, {hours:.2f} camera-hours, {end - time.monotonic():.0f} s left")
            records += track_records(sides, settings, hours, options)
            records += event_records(sides, settings, hours, options)
        if begun_with("memory", options) and options.oracle is None:
            found = {
                kind: [one for folder, cameras in parts("memory", options) for camera in cameras
                       for one in returns(folder, camera, kind)]
                for kind in KINDS_OF_MEMORY
            }  # fmt: skip
            records += gap_records(found, options)
    print(ledger.render_table(records))
    if options.json and options.oracle is None:
        ledger.write(options.json, records)
    return 0


DEFAULTS = {"ours": Settings(), "strong": Settings(Tracking(), 0.0)}

if __name__ == "__main__":
    sys.exit(main())
