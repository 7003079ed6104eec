"""Training clips from labelled recordings, see `recording_files` for what a folder of them looks like."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch

from stille.errors import ConfigError
from stille.video.scenes.clips import Clips
from stille.video.training.augment import Clip, Piece, make_clip
from stille.video.training.recording_files import FASTEST, Recording, read_recording
from stille.video.types import ATTRIBUTES

SLOWEST = 2.5
"""Least frames per second of a clip, unless the recording itself has less."""

GRIDS, GRID_CHANCE = (1, 2, 3), (0.6, 0.3, 0.1)
"""A clip shows one recording, or a grid of 2 x 2 or 3 x 3 different ones: more and smaller objects."""

IN_MEMORY = 6 << 30
"""Bytes of decoded pictures; more of them stay JPEG, and are decoded whenever they are taken."""


class Recordings:
    """A source of clips, as training takes it: `recordings(seed, clips, frames)`.

    A clip depends on its seed, its number and its frames alone. Times are those at which the frames were taken, as of a
    camera that drops some or runs at another rate; pictures are seen through a camera that pans, zooms, and is of
    another make. Attributes are unknown, and there are no slots.

    Args:
        folder: of recordings.
        size: width and height of the clips' frames.
        memory: bytes of decoded pictures that may be held.

    Raises:
        ConfigError: there is no recording, or something in one is wrong.
    """

    def __init__(self, folder: Path, size: tuple[int, int], *, memory: int = IN_MEMORY):
        folder = Path(folder)
        folders = sorted(path.parent for path in folder.glob("*/gt.txt"))
        if not folders:
            raise ConfigError(
                f"{folder} holds no recording: expected a folder for each, with gt.txt and a video or pictures in it"
            )
        self.size = size
        self._pool = ThreadPoolExecutor(thread_name_prefix="recordings")
        self.recordings = list(self._pool.map(read_recording, folders))
        for each in self.recordings:
            memory -= len(each) * each.picture(0).nbytes
            if memory >= 0:
                each.picture_F[:] = self._pool.map(each.picture, range(len(each)))
        weight = np.array([each.about.weight or len(each) ** 0.5 for each in self.recordings])
        self._chance = weight / weight.sum()

    def __call__(self, seed: int, count: int, frames: int) -> Clips:
        """
        Raises:
            ConfigError: `count` or `frames` is not positive.
        """
        if count < 1 or frames < 1:
            raise ConfigError(f"recordings were asked for {count} clips of {frames} frames; expected 1 or more of each")
        return stacked(list(self._pool.map(partial(self._clip, seed, frames), range(count))))

    def _clip(self, seed: int, frames: int, number: int) -> Clip:
        random = np.random.default_rng([seed % 2**64, number])
        side = int(random.choice(GRIDS, p=GRID_CHANCE))
        side = min(side, int(len(self.recordings) ** 0.5))  # nobody is to be in a clip twice
        chosen = random.choice(len(self.recordings), side * side, replace=False, p=self._chance)
        return make_clip([self._piece(self.recordings[which], random, frames) for which in chosen], self.size, random)

    def _piece(self, recording: Recording, random: np.random.Generator, frames: int) -> Piece:
        """Some frames of a recording, nine times of ten such that somebody is in them."""
        count = len(recording)
        asked_F = ((recording.visible_FN > 0) & ~recording.ignored_FN).any(1)
        near = np.flatnonzero(asked_F) if random.random() < 0.9 and asked_F.any() else np.arange(count)
        anchor = int(random.choice(near))
        index_T, time_T = sample_frames(random, frames, 1 if recording.still else count, recording.rate, anchor)
        here = np.flatnonzero((recording.visible_FN[index_T] > 0).any(0))
        pictures = {index: recording.picture(index) for index in np.unique(index_T).tolist()}
        return Piece(
            [pictures[index] for index in index_T.tolist()], time_T, recording.kind_N[here],
            recording.box_FN4[index_T][:, here], recording.visible_FN[index_T][:, here],
            recording.ignored_FN[index_T][:, here], recording.still,
        )  # fmt: skip


def sample_frames(
    random: np.random.Generator, frames: int, count: int, rate: float, anchor: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which frames of a recording make a clip with frame `anchor` in it, int64 [T], and when they are, seconds [T].

    `SLOWEST` to `FASTEST` frames a second, sometimes with some missing, sometimes backwards. A recording that is too
    short runs to its end and back. With a `count` of 1, frame `anchor` is repeated.
    """
    wanted = float(np.exp(random.uniform(np.log(SLOWEST), np.log(FASTEST))))
    if count == 1:
        return np.full(frames, anchor), np.arange(frames) / wanted
    step_T = np.full(frames, max(1, min(round(rate / wanted), 2 * count // frames)))
    if random.random() < 0.3:
        step_T = step_T * (1 + (random.random(frames) < 0.08))
    step_T[0] = 0
    run_T = step_T.cumsum()
    place_T = run_T + anchor - run_T[random.integers(frames)]
    if run_T[-1] < count:  # it fits: moved such that it need not turn
        place_T = place_T - min(0, place_T[0]) - max(0, place_T[-1] - (count - 1))
    place_T = np.abs((place_T + count - 1) % (2 * (count - 1)) - (count - 1))
    if random.random() < 0.3:
        place_T, run_T = place_T[::-1].copy(), (run_T[-1] - run_T)[::-1]
    return place_T.astype(np.int64), run_T / rate


def stacked(clips: list[Clip]) -> Clips:
    """As many places for objects as the clip that has most of them, at least one."""
    b, t, m = len(clips), len(clips[0].time_T), max(1, *(len(clip.kind_M) for clip in clips))

    def places(name: str, axis: int, fill: float) -> torch.Tensor:
        values = [getattr(clip, name) for clip in clips]
        widths = [[(0, m - x.shape[axis] if i == axis else 0) for i in range(x.ndim)] for x in values]
        return torch.from_numpy(
            np.stack([np.pad(x, width, constant_values=fill) for x, width in zip(values, widths, strict=True)])
        )

    return Clips(
        frame_BTHW3=torch.from_numpy(np.stack([clip.frame_THW3 for clip in clips])),
        time_BT=torch.from_numpy(np.stack([clip.time_T for clip in clips])),
        kind_BM=places("kind_M", 0, -1),
        box_BTM4=places("box_TM4", 1, 0),
        visible_BTM=places("visible_TM", 1, 0),
        attribute_BTMA=torch.full((b, t, m, len(ATTRIBUTES)), torch.nan),
        place_BTM2=torch.full((b, t, m, 2), torch.nan),
        slot_BS4=torch.zeros(b, 0, 4),
        occupied_BTS=torch.zeros(b, t, 0),
    )
