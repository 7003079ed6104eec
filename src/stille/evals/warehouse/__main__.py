"""`python -m stille.evals.warehouse --seed 3 --seconds 20 --out demo.mp4 --sheet sheet.png`: look at the warehouse."""

from __future__ import annotations

import argparse
import sys
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.stream import VideoStream

from stille.evals.warehouse.incidents import incidents
from stille.evals.warehouse.rules_file import rules_yaml
from stille.evals.warehouse.stream import FrameTruth, warehouse

_COLOURS = ((255, 70, 70), (80, 255, 80), (90, 140, 255), (255, 255, 80))


def marked(image_HW3: np.ndarray, truth: FrameTruth) -> np.ndarray:
    """The picture with boxes, numbers and the share that is seen."""
    image = image_HW3.copy()
    for box, kind, number, seen in zip(truth.box_N4, truth.kind_N, truth.identity_N, truth.visible_N, strict=True):
        x0, y0, x1, y1 = (round(float(v)) for v in box)
        cv2.rectangle(image, (x0, y0), (x1, y1), _COLOURS[int(kind)], 1)
        cv2.putText(image, f"{number} {seen:.1f}", (x0, max(y0 - 2, 8)), cv2.FONT_HERSHEY_PLAIN, 0.6, (255,) * 3, 1)
    return image


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stille.evals.warehouse", description=__doc__)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--start", type=float, default=0.0, help="seconds into the hour")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=10.0)
    parser.add_argument("--out", type=Path, help="film (MP4)")
    parser.add_argument("--sheet", type=Path, help="twelve frames with their boxes (PNG)")
    parser.add_argument("--rules", type=Path, help="rules file (YAML)")
    chosen = parser.parse_args()
    frames = round(chosen.seconds * chosen.rate)
    every, tiles = max(frames // 12, 1), []
    film = av.open(str(chosen.out), "w") if chosen.out else None
    stream = None
    for image, truth in warehouse(chosen.seed, frames, chosen.rate, start=chosen.start):
        if chosen.sheet and truth.index % every == 0 and len(tiles) < 12:
            tiles.append(marked(image, truth))
        if film is not None:
            if stream is None:
                stream = film.add_stream("libx264", rate=Fraction(chosen.rate).limit_denominator(1000))
                assert isinstance(stream, VideoStream)
                stream.height, stream.width, stream.pix_fmt = *image.shape[:2], "yuv420p"
            film.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
    if film is not None:
        if stream is not None:
            film.mux(stream.encode(None))
        film.close()
    if tiles:
        tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % 3)
        rows = [np.concatenate(tiles[i : i + 3], 1) for i in range(0, len(tiles), 3)]
        cv2.imwrite(str(chosen.sheet), np.concatenate(rows)[..., ::-1])
    if chosen.rules:
        chosen.rules.write_text(rules_yaml(chosen.seed))
    for one in incidents(chosen.seed):
        if one.began < chosen.start + chosen.seconds and one.ended >= chosen.start:
            doubt = " (doubtful)" if one.doubtful else ""
            about = f"{one.kind} {one.zone or ''} {list(one.identities)}{doubt}"
            sys.stdout.write(f"{one.began:7.1f} {one.ended:7.1f} {about}\n")


if __name__ == "__main__":
    main()
