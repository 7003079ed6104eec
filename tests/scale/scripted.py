"""A perception whose identities can be told: what sees a red square first, gives it an identity of its own process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from stille.video.sinks import JsonLines, Lane
from stille.video.store import Store
from stille.video.types import Frame, Seen


class Scripted:
    """As `StilleCam` it has states: without its own a camera's square would be somebody else in another process."""

    def __init__(self) -> None:
        self._identity: dict[str, int] = {}

    @property
    def cameras(self) -> list[str]:
        return list(self._identity)

    def state(self, camera: str) -> dict[str, torch.Tensor]:
        return {"identity": torch.tensor(self._identity[camera])}

    def set_state(self, camera: str, state: dict[str, torch.Tensor]) -> None:
        self._identity[camera] = int(state["identity"])

    def forget(self, camera: str) -> None:
        self._identity.pop(camera, None)

    def see(self, frames: Sequence[Frame]) -> list[Seen]:
        return [self._find(frame) for frame in frames]

    def _find(self, frame: Frame) -> Seen:
        image_HW3 = frame.image_HW3.astype(int)
        rows, columns = np.nonzero(image_HW3[..., 0] - image_HW3[..., 1:].max(-1) > 100)
        if not len(rows):
            return Seen.nothing(frame.camera, frame.index, frame.time, frame.size)
        identity = self._identity.setdefault(frame.camera, os.getpid())
        box = np.array([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]], np.float32)
        return Seen(
            frame.camera, frame.index, frame.time, frame.size, box, np.zeros(1, np.int64), np.ones(1, np.float32),
            np.array([identity]), np.zeros((1, 5), np.float32),
        )  # fmt: skip


class Lanes:
    """Sinks of every shard: one store for all, and lines of each process, in which nothing is overwritten."""

    def __init__(self, out: Path):
        self.out = out

    def __call__(self, shard: str) -> list[Lane]:
        store = Lane(Store(self.out / "events.db"), spool=self.out / "spool" / shard)
        return [store, Lane(JsonLines(self.out / "lines" / f"{shard}-{os.getpid()}.jsonl"))]
