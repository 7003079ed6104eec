"""What eight bits cost a camera model in accuracy, and what they gain on a CPU; `--out` keeps the smaller model.

    python benchmarks/video_int8.py --model cam/model --recordings recordings --out cam/small --json results.json

The ranges of activations are measured on clips of the recordings with one seed; accuracy is of clips with another one,
streamed frame by frame, by the same figures as training's. Sides:

    fp32      the weights as they are stored, in float32
    bf16      the same in bfloat16: what is given up anyhow
    weights   stored in eight bits, computed in bfloat16: what a GPU makes of the small file
    int8      the same, the backbone computed in eight bits

Time is the CPU time of one thread for a frame, median, all sides in turn on the same frames.
"""

import argparse
import dataclasses
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stille import ledger
from stille.video.model import StilleCam, load, save
from stille.video.model.quantized import measure
from stille.video.model.store import CARD, WEIGHTS
from stille.video.training.metrics import judge, watch
from stille.video.training.recordings import Recordings
from stille.video.types import Frame

CALIBRATE, JUDGE = 11, 12  # seeds
VISIBLE = 0.25
FIGURES = ("ap50", "recall", "precision", "hota", "idf1")


def main() -> int:
    options = parse()
    torch.set_num_threads(1)
    network = load(options.model)
    size = network.config.width, network.config.height
    recordings = Recordings(options.recordings, size)
    pictures = recordings(CALIBRATE, options.clips, 4).frame_BTHW3
    network.config = dataclasses.replace(network.config, ranges=measure(network, pictures))
    clips = recordings(JUDGE, options.clips, options.frames)
    with tempfile.TemporaryDirectory() as name:
        small = options.out or Path(name) / "small"
        save(network, small, (options.model / CARD).read_text(encoding="utf-8"), torch.int8)
        cams = {
            "fp32": StilleCam(load(options.model), dtype=torch.float32),
            "bf16": StilleCam(load(options.model), dtype=torch.bfloat16),
            "weights": StilleCam(load(small), dtype=torch.bfloat16),
            "int8": StilleCam(load(small), dtype=torch.bfloat16, int8=True),
        }
        sizes = [(folder / WEIGHTS).stat().st_size / 1e6 for folder in (options.model, small)]
    command = f"python benchmarks/video_int8.py {ledger.arguments()}".strip()
    what = f"{options.clips} clips of {options.frames} frames of the recordings"
    found = {side: judge(watch(cam, clips), clips, VISIBLE) for side, cam in cams.items()}
    for side, figures in found.items():
        print(side, {name: round(figures[name], 4) for name in FIGURES}, flush=True)
    took = timed(cams, clips.frame_BTHW3[:4, : options.frames].numpy())
    print({side: round(value, 1) for side, value in took.items()})
    base = found["bf16"]["ap50"]
    records = [
        ledger.measure(
            f"video.int8.{side}.ap50", 100 * found[side]["ap50"], "%", baseline="bf16 weights and arithmetic",
            baseline_value=100 * base, better="higher", goal=f"value >= {100 * base - 1:.4g}", command=command,
            notes=f"AP50 of {side} on {what}. {in_words(found[side])} In bf16: {in_words(found['bf16'])}",
        )
        for side in ("weights", "int8")
    ]  # fmt: skip
    records += [
        ledger.measure(
            "video.int8.frame", took["int8"], "ms", baseline="bf16", baseline_value=took["bf16"], better="lower",
            command=command, notes="CPU time of a frame, one thread, four cameras at a time, the backbone in int8.",
        ),
        ledger.measure(
            "video.int8.size", sizes[1], "MB", baseline="as it was", baseline_value=sizes[0], better="lower",
            command=command, goal="value <= 20", notes="Size of the weights' file.",
        ),
    ]  # fmt: skip
    print(ledger.render_table(records))
    if options.json:
        ledger.write(options.json, records)
    return 0


def timed(cams: dict[str, StilleCam], frame_BTHW3: np.ndarray) -> dict[str, float]:
    """Milliseconds of a frame."""
    took: dict[str, list[float]] = {side: [] for side in cams}
    for step in range(frame_BTHW3.shape[1]):
        for side, cam in cams.items():
            frames = [Frame(f"t{i}", step, step / 5, 0.0, each[step]) for i, each in enumerate(frame_BTHW3)]
            begin = time.thread_time()
            cam.see(frames)
            took[side].append(1000 * (time.thread_time() - begin) / len(frames))
    return {side: float(np.median(each[2:])) for side, each in took.items()}


def in_words(figures: dict[str, Any]) -> str:
    return ", ".join(f"{name} {figures[name]:.3f}" for name in FIGURES) + "."


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of trained weights")
    parser.add_argument("--recordings", type=Path, required=True, help="labelled ones, as training takes them")
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--out", type=Path, help="write the model there: weights in eight bits, with ranges")
    parser.add_argument("--json", type=Path, help="merge the records into this ledger file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
