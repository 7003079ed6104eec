"""Our model and its frames taken one by one, over many cameras at once; what they see goes to disk.

Of each camera and stretch of time three files: `truth`, `ours` (the model with its memory), `frame` (the same network
that remembers nothing: no carried objects, no identities). A run that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stille.evals.warehouse.stream import FrameTruth
from stille.video.types import ATTRIBUTES, NOBODY, Frame, Seen
from video_sides.kept import Kept, joined
from video_sides.studio import Camera, Shown, Studio

SAVE_S = 120.0
"""Seconds of camera time in a file."""
LOWEST = 0.05
"""Presence from which objects of single frames are kept: trackers use unsure ones, too."""


class SingleFrames:
    """The network of a camera model, to which every frame is the first one."""

    def __init__(self, cam: Any):
        self.cam = cam

    def see(self, frames: Sequence[Frame]) -> list[Seen]:
        import torch

        from stille.video.model import resized
        from stille.video.model.decoder import Recent

        cam, config = self.cam, self.cam.config
        with torch.inference_mode():
            images = torch.from_numpy(np.stack([frame.image_HW3 for frame in frames])).to(cam.device)
            maps = cam.network.maps(resized(images, config.width, config.height))
            time_B = torch.zeros(len(frames), dtype=torch.float64, device=cam.device)
            nothing = Recent.empty(config, len(frames), cam.device, cam.dtype)
            *_, objects = cam.network.look(maps, nothing, time_B)
            score = objects.presence_BK.sigmoid()[..., None]
            flat = torch.cat([objects.box_BK4.clamp(0, 1), score, objects.attribute_BKA], -1).float().cpu().numpy()
            kind = objects.kind_BKG.argmax(-1).cpu().numpy()
        found = []
        for frame, number, kinds in zip(frames, flat, kind, strict=True):
            on = number[:, 4] >= LOWEST
            number = number[on]
            box = number[:, :4] * np.tile(np.array(frame.size, np.float32), 2)
            nobody = np.full(len(number), NOBODY)
            found.append(
                Seen(
                    frame.camera, frame.index, frame.time, frame.size, box, kinds[on], number[:, 4], nobody,
                    number[:, 5:],
                )
            )  # fmt: skip
        return found


def as_seen(truth: FrameTruth, camera: str) -> Seen:
    """Scores are the share that is seen, identities and attributes are true."""
    return Seen(
        camera, truth.index, truth.time, truth.size, truth.box_N4, truth.kind_N, truth.visible_N, truth.identity_N,
        truth.attribute_NA.reshape(-1, len(ATTRIBUTES)), {name: float(full) for name, full in truth.slots.items()},
    )  # fmt: skip


class Files:
    """What is kept of one camera. Objects' places are beside the truth, one row for each."""

    def __init__(self, folder: Path, camera: Camera):
        self.folder, self.camera = folder / camera.name, camera
        self.folder.mkdir(parents=True, exist_ok=True)

    def load(self, side: str) -> Kept:
        return joined(Kept.load(path) for path in sorted(self.folder.glob(f"*.{side}.npz")))

    def places(self) -> np.ndarray:
        return np.concatenate([np.load(path) for path in sorted(self.folder.glob("*.place.npy"))])

    def save(self, first: int, sides: dict[str, list[Seen]], places: list[np.ndarray], slots: Sequence[str]) -> None:
        for side, seen in sides.items():
            Kept.of(seen, slots).save(self.folder / f"{first:06d}.{side}.npz")
        np.save(self.folder / f"{first:06d}.place.npy", np.concatenate(places))


def watch(
    models: dict[str, Any], cameras: list[Camera], studio: Studio, folder: Path, until: float, label: str = ""
) -> int:
    """Let models see all frames of a studio, until a moment of `time.monotonic()`.

    Args:
        models: by side; what has `see`, and `watch_slots`, `state`, `set_state` where slots and memory matter.

    Returns:
        The number of the next frame.
    """
    files = [Files(folder, camera) for camera in cameras]
    layouts = [camera.story().layout for camera in cameras]
    slots = [[slot.name for slot in layout.slots] for layout in layouts]
    for model in models.values():
        for camera, layout in zip(cameras, layouts, strict=True):
            if hasattr(model, "watch_slots"):
                model.watch_slots(camera.name, {slot.name: slot.box(layout.camera) for slot in layout.slots})
    _load_states(models, folder, studio.first)
    step = round(SAVE_S * studio.rate)
    held: list[dict[str, list[Seen]]] = [{} for _ in cameras]
    places: list[list[np.ndarray]] = [[] for _ in cameras]
    begun, first, index = time.monotonic(), studio.first, studio.first - 1
    last_told = begun

    def save(upto: int) -> None:
        for camera, mine, where, names in zip(files, held, places, slots, strict=True):
            camera.save(first, mine, where, names)
            mine.clear()
            where.clear()
        _save_states(models, cameras, folder, upto)

    for shown in studio.frames():
        index = shown.index
        frames = _frames(shown, cameras)
        for side, model in models.items():
            for mine, seen in zip(held, model.see(frames), strict=True):
                mine.setdefault(side, []).append(seen)
        for mine, where, camera, truth in zip(held, places, cameras, shown.truths, strict=True):
            mine.setdefault("truth", []).append(as_seen(truth, camera.name))
            where.append(truth.place_N2)
        now = time.monotonic()
        if now - last_told > 10:
            last_told, done = now, index + 1 - studio.first
            rate = done / (now - begun)
            tell(
                f"{label}{index + 1}/{studio.last} frames of {len(cameras)} cameras, {rate * len(cameras):.0f}/s, "
                f"{(studio.last - index - 1) / rate:.0f} s to go, {until - now:.0f} s allowed"
            )
        if index + 1 - first == step:
            save(index + 1)
            first = index + 1
        if now > until:
            break
    if index + 1 > first:
        save(index + 1)
    return index + 1


def tell(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _frames(shown: Shown, cameras: Iterable[Camera]) -> list[Frame]:
    return [
        Frame(camera.name, shown.index, truth.time, 0.0, image)
        for camera, truth, image in zip(cameras, shown.truths, shown.images, strict=True)
    ]


def _save_states(models: dict[str, Any], cameras: Iterable[Camera], folder: Path, upto: int) -> None:
    import torch

    states = {
        side: {camera.name: model.state(camera.name) for camera in cameras}
        for side, model in models.items()
        if hasattr(model, "state")
    }
    scratch = folder / "states.tmp"
    torch.save({"upto": upto, "states": states}, scratch)
    os.replace(scratch, folder / "states.pt")
    (folder / "progress.json").write_text(json.dumps({"upto": upto}))


def _load_states(models: dict[str, Any], folder: Path, first: int) -> None:
    if first == 0:
        return
    import torch

    held = torch.load(folder / "states.pt", weights_only=True)
    if held["upto"] != first:
        raise RuntimeError(f"{folder}: the model's state is of frame {held['upto']}, the frames of {first}")
    for side, states in held["states"].items():
        for name, state in states.items():
            models[side].set_state(name, state)


def progress(folder: Path) -> int:
    """The number of the next frame."""
    path = folder / "progress.json"
    return int(json.loads(path.read_text())["upto"]) if path.exists() else 0
