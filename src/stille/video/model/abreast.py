"""Several `StilleCam`s side by side on a CPU: each core sees cameras of its own.

Operations of one frame are too small to be shared out among threads; frames of different cameras need nothing of each
other.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from stille.video.model.camera import StilleCam
from stille.video.model.network import StilleCamNet
from stille.video.types import Frame, Seen


class Abreast:
    """What a `StilleCam` does, for cameras that are dealt out to several of them.

    It makes torch compute each operation in one thread, in the whole process. Only one thread may call it at a time.

    Args:
        network: copied for each.
        threads: how many there are.
        options: of each `StilleCam`.
    """

    def __init__(self, network: StilleCamNet, threads: int, **options: Any):
        torch.set_num_threads(1)
        self.cams = [StilleCam(copy.deepcopy(network), "cpu", **options) for _ in range(threads)]
        self.config = network.config
        self._owner: dict[str, StilleCam] = {}
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="stille-see")

    @property
    def cameras(self) -> list[str]:
        """Those that are remembered."""
        return [name for cam in self.cams for name in cam.cameras]

    def see(self, frames: Sequence[Frame]) -> list[Seen]:
        """See `StilleCam.see`."""
        parts: dict[int, list[int]] = {}
        for i, frame in enumerate(frames):
            parts.setdefault(self.cams.index(self._of(frame.camera)), []).append(i)
        found: dict[int, Seen] = {}
        work = [(where, self._pool.submit(self.cams[n].see, [frames[i] for i in where])) for n, where in parts.items()]
        for where, result in work:
            found |= dict(zip(where, result.result(), strict=True))
        return [found[i] for i in range(len(frames))]

    def watch_slots(self, camera: str, slots: Mapping[str, tuple[float, float, float, float]]) -> None:
        self._of(camera).watch_slots(camera, slots)

    def forget(self, camera: str) -> None:
        if camera in self._owner:
            self._owner[camera].forget(camera)

    def state(self, camera: str) -> dict[str, Tensor]:
        return self._of(camera).state(camera)

    def set_state(self, camera: str, state: dict[str, Tensor]) -> None:
        self._of(camera).set_state(camera, state)

    def warm(self, cameras: int = 1) -> None:
        for cam in self.cams:
            cam.warm(-(-cameras // len(self.cams)))

    def _of(self, camera: str) -> StilleCam:
        """A camera stays where it was, also when it comes back; a new one goes where fewest are."""
        if camera not in self._owner:
            self._owner[camera] = min(self.cams, key=lambda cam: self._count(cam))
        return self._owner[camera]

    def _count(self, cam: StilleCam) -> int:
        return sum(owner is cam for owner in self._owner.values())
