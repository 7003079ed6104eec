"""`python -m stille.video.scenes --out demo.mp4 --seed 3`: a painted clip as a film, and rendered ones on one sheet."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from stille.video.scenes.clips import Clips
from stille.video.scenes.config import SceneConfig
from stille.video.scenes.make import make_clips
from stille.video.scenes.paint import paint
from stille.video.types import ATTRIBUTES, KINDS

_COLOURS = ((60, 220, 60), (250, 80, 60), (70, 160, 250), (230, 90, 230))  # of KINDS


def draw_truth(image: NDArray[np.uint8], clips: Clips, clip: int, frame: int) -> NDArray[np.uint8]:
    """A picture with the boxes, places and attributes of one frame, and its slots."""
    import cv2

    image = image.copy()
    h, w = image.shape[:2]
    scale = np.array([w, h, w, h])
    for box, full in zip(clips.slot_BS4[clip].numpy(), clips.occupied_BTS[clip, frame].numpy(), strict=True):
        if not np.isnan(full):
            x0, y0, x1, y1 = (box * scale).astype(int).tolist()
            cv2.rectangle(image, (x0, y0), (x1, y1), (220, 220, 80) if full else (120, 120, 120), 1)
    for m, kind in enumerate(clips.kind_BM[clip].tolist()):
        if kind < 0 or clips.visible_BTM[clip, frame, m] < 0.05:
            continue
        x0, y0, x1, y1 = (clips.box_BTM4[clip, frame, m].numpy() * scale).astype(int).tolist()
        cv2.rectangle(image, (x0, y0), (x1, y1), _COLOURS[kind], 1)
        has = [
            name for name, v in zip(ATTRIBUTES, clips.attribute_BTMA[clip, frame, m].tolist(), strict=True) if v == 1
        ]
        text = " ".join([f"{KINDS[kind]} {m}", *has])
        cv2.putText(image, text, (x0, max(y0 - 3, 8)), cv2.FONT_HERSHEY_SIMPLEX, 0.3, _COLOURS[kind], 1, cv2.LINE_AA)
    return image


def contact_sheet(clips: Clips, columns: int, truth: bool) -> NDArray[np.uint8]:
    """The middle frame of each clip, side by side."""
    b, t, _, _ = clips.shape
    frames = clips.frame_BTHW3[:, t // 2].numpy()
    pictures = [draw_truth(f, clips, i, t // 2) if truth else f for i, f in enumerate(frames)]
    pictures += [np.zeros_like(pictures[0])] * (-b % columns)
    rows = [np.concatenate(pictures[i : i + columns], 1) for i in range(0, len(pictures), columns)]
    return np.concatenate(rows, 0)


def write_film(path: Path, frame_THW3: NDArray[np.uint8], rate: float) -> None:
    """As H.264.

    Raises:
        OSError: the file cannot be written.
    """
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=round(rate))
        stream.height, stream.width = frame_THW3.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frame_THW3:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m stille.video.scenes", description=(__doc__ or "").split(": ")[1])
    parser.add_argument("--out", type=Path, help="film, .mp4")
    parser.add_argument("--sheet", type=Path, help="contact sheet of rendered clips, .png")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=20.0, help="of the film")
    parser.add_argument("--rate", type=float, default=10.0, help="frames per second of the film")
    parser.add_argument("--size", type=int, nargs=2, default=(640, 352), metavar=("W", "H"))
    parser.add_argument("--clips", type=int, default=12, help="on the sheet")
    parser.add_argument("--difficulty", type=float, default=0.5)
    parser.add_argument("--truth", action="store_true", help="with boxes and attributes")
    given = parser.parse_args(arguments)
    if not (given.out or given.sheet):
        parser.error("give --out film.mp4, --sheet sheet.png, or both")
    size = (given.size[0], given.size[1])
    config = SceneConfig(difficulty=given.difficulty)
    if given.out:
        film = config.replace(rate=(given.rate, given.rate), gap_chance=0.0, irregular=0.0)
        clips = paint(1, max(1, round(given.seconds * given.rate)), size, given.seed, config=film)
        frames = clips.frame_BTHW3[0].numpy()
        if given.truth:
            frames = np.stack([draw_truth(frame, clips, 0, t) for t, frame in enumerate(frames)])
        write_film(given.out, frames, given.rate)
        sys.stdout.write(f"{given.out}: {len(frames)} frames\n")
    if given.sheet:
        import cv2

        small = (size[0] // 2, size[1] // 2)
        sheet = contact_sheet(make_clips(given.clips, 1, small, given.seed, config=config), 3, given.truth)
        cv2.imwrite(str(given.sheet), np.ascontiguousarray(sheet[..., ::-1]))
        sys.stdout.write(f"{given.sheet}: {given.clips} clips\n")
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)  # small tensors: threads only cost
    sys.exit(main())
