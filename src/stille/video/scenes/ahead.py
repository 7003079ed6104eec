"""Clips whose scenes are built ahead of time by processes of their own.

A scene is some twenty thousand small operations: on a GPU each of them is a launch, and together they take longer than
the rays. Processors do them while the GPU trains; it gets the finished geometry.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

import torch
from torch import Tensor

from stille.video.scenes.clips import Clips
from stille.video.scenes.config import SceneConfig
from stille.video.scenes.draw import clip_seeds
from stille.video.scenes.graph import Scenes, build_scenes, mapped
from stille.video.scenes.make import render

logger = logging.getLogger(__name__)

Asked = tuple[int, int, int]
"""Seed, clips, frames."""


class Renderer:
    """Makes clips as `make_clips` does; those that were announced by `ahead` come sooner.

    Args:
        size: width and height.
        workers: processes; 0: none, scenes are built when they are asked for.
    """

    def __init__(
        self, size: tuple[int, int], *, config: SceneConfig | None = None, device: torch.device | str = "cpu",
        workers: int = 0,
    ):  # fmt: skip
        self.size, self.config, self.device = size, config or SceneConfig(), torch.device(device)
        self._building: dict[Asked, Future[Any]] = {}
        self._pool: ProcessPoolExecutor | None = None
        if workers:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(workers, context, initializer=_alone)

    def __call__(self, seed: int, clips: int, frames: int) -> Clips:
        """The same for the same seed, on the device."""
        return render(self._scenes((seed, clips, frames)))

    def ahead(self, seed: int, clips: int, frames: int) -> None:
        """Begin to build a batch."""
        asked = seed, clips, frames
        if self._pool is not None and asked not in self._building:
            self._building[asked] = self._pool.submit(_build, asked, self.size, self.config)

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    def _scenes(self, asked: Asked) -> Scenes:
        task = self._building.pop(asked, None)
        if task is not None:
            try:
                return mapped(task.result(), lambda x: torch.from_numpy(x).to(self.device, non_blocking=True))
            except Exception:
                logger.warning("building scenes in processes failed; going on without them", exc_info=True)
                self.close()
                self._building.clear()
        seed, clips, frames = asked
        if self._pool is not None:  # one that was not announced: on the CPU as well, so that clips are the same
            scenes = build_scenes(clip_seeds(seed, clips), frames, self.size, self.config)
            return mapped(scenes, lambda x: x.to(self.device))
        return build_scenes(clip_seeds(seed, clips, self.device), frames, self.size, self.config)


def _alone() -> None:
    torch.set_num_threads(1)
    os.nice(5)


def _build(asked: Asked, size: tuple[int, int], config: SceneConfig) -> Any:
    """A `Scenes` with arrays in place of tensors: those would each be a file that two processes share."""
    seed, clips, frames = asked

    def plain(x: Tensor) -> Any:
        return x.contiguous().numpy()

    return mapped(build_scenes(clip_seeds(seed, clips), frames, size, config), plain)
