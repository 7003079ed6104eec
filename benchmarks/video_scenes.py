"""Frames per second of the synthetic scenes: ray-caster and painter, truth checked first.

    python benchmarks/video_scenes.py                        # on this CPU, one thread
    python benchmarks/video_scenes.py --device cuda          # ray-caster in Triton, shading compiled
    python benchmarks/video_scenes.py --sizes 320x176 --json results.json

CPU figures are of processor time, so that a busy machine does not change them; GPU figures are of the clock, between
synchronisations. Scenes are built, cast, shaded and sent through the lens in each repetition, with other seeds.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from stille.ledger import Record, format_number, measure, write
from stille.video.scenes import Clips, SceneConfig, build_scenes, clip_seeds, make_clips, paint
from stille.video.scenes.outline import primitive_boxes
from stille.video.scenes.trace import trace

COMMAND = "python benchmarks/video_scenes.py"
GOAL_GPU = "value >= 10000"  # frames/s at 640x352
CPU_BATCH, CPU_FRAMES, GPU_BATCH, GPU_FRAMES, LONG = 2, 4, 64, 30, 100


class WrongTruth(Exception):
    """Pixels and truth contradict each other."""


def check_truth(size: tuple[int, int], device: str) -> int:
    """Hold seen pixels against boxes, and Triton's rays against torch's; returns how many objects were compared.

    Raises:
        WrongTruth: a pixel of an object lies outside of its box, or too many rays disagree.
    """
    w, h = size
    compared = 0
    for seed_1 in clip_seeds(99, 4, device).split(1):
        scenes = build_scenes(seed_1, 1, size, SceneConfig())
        prims = scenes.primitives
        box = primitive_boxes(prims, scenes.camera)
        found = trace(prims, scenes.camera, box, scenes.config.places)
        if device != "cpu":
            from stille.video.scenes.trace_triton import trace_triton

            other = trace_triton(prims, scenes.camera, box, scenes.config.places)
            wrong = float((found.index_BTHW != other.index_BTHW).float().mean())
            if wrong > 0.01:
                raise WrongTruth(f"torch and Triton disagree about {wrong:.1%} of the pixels")
            found = other
        clips = make_clips(1, 1, size, seed_1, device=device)
        group = torch.where(found.index_BTHW >= 0, prims.group_P[found.index_BTHW.long().clamp(min=0)], -1)[0, 0]
        for m in range(scenes.config.places):
            y, x = torch.nonzero(group == m, as_tuple=True)
            if not len(x):
                continue
            compared += 1
            x0, y0, x1, y1 = (clips.box_BTM4[0, 0, m].cpu() * torch.tensor([w, h, w, h])).tolist()
            if x.min() < x0 - 1 or y.min() < y0 - 1 or x.max() > x1 or y.max() > y1:
                raise WrongTruth(f"object {m} of clip {int(seed_1)}: pixels outside of its box")
    if compared < 10:
        raise WrongTruth(f"only {compared} objects were seen; expected at least 10")
    return compared


def frames_per_second(make: Callable[[int], Clips], frames: int, repeats: int, on_gpu: bool) -> float:
    """Median over repetitions with other seeds; one before them is not counted."""
    rates = []
    for seed in range(repeats + 1):
        if on_gpu:
            torch.cuda.synchronize()
        begin = time.perf_counter() if on_gpu else time.process_time()
        make(seed)
        if on_gpu:
            torch.cuda.synchronize()
        spent = (time.perf_counter() if on_gpu else time.process_time()) - begin
        rates.append(frames / spent)
    return statistics.median(rates[1:])


def run(size: tuple[int, int], device: str, repeats: int) -> list[Record]:
    """The figures of one size."""
    name, on_gpu = f"{size[0]}x{size[1]}", device != "cpu"
    records = []
    batch, frames = (GPU_BATCH, GPU_FRAMES) if on_gpu else (CPU_BATCH, CPU_FRAMES)
    value = frames_per_second(
        lambda s: make_clips(batch, frames, size, s, device=device), batch * frames, repeats, on_gpu
    )
    how = "Triton, shading through torch.compile" if on_gpu else "torch on one core"
    records.append(
        measure(
            f"video.scenes.{'gpu' if on_gpu else 'cast'}_{name}", value, "frames/s",
            command=f"{COMMAND} --device {device} --sizes {name}",
            goal=GOAL_GPU if on_gpu and size == (640, 352) else None,
            notes=f"Ray-cast synthetic frames at {name}, {how}. {batch} clips of {frames} frames, building the scenes "
            f"included, median of {repeats}.",
        )
    )  # fmt: skip
    if not on_gpu:
        config = SceneConfig(rate=(10, 10), gap_chance=0.0)
        value = frames_per_second(lambda s: paint(1, LONG, size, s, config=config), LONG, repeats, False)
        records.append(
            measure(
                f"video.scenes.paint_{name}", value, "frames/s", command=f"{COMMAND} --sizes {name}",
                notes=f"Painted synthetic frames at {name} on one core. One clip of {LONG} frames at 10 a second, "
                f"casting what stands still included, median of {repeats}.",
            )
        )  # fmt: skip
    return records


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sizes", nargs="+", default=["320x176", "640x352"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="merge the records into this file")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    records = []
    for text in given.sizes:
        w, _, h = text.partition("x")
        size = (int(w), int(h))
        try:
            compared = check_truth(size, given.device)
        except WrongTruth as error:
            print(f"{text}: {error}", file=sys.stderr)
            return 1
        print(f"{text}: boxes hold the pixels of {compared} objects")
        for record in run(size, given.device, given.repeats):
            print(f"  {record.id:32} {format_number(record.value):>8} {record.unit}")
            records.append(record)
    if given.json:
        write(given.json, records)
    return 0


if __name__ == "__main__":
    sys.exit(main())
