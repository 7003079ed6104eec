"""Where the clips of each step come from: rendered ahead of time, shown again mirrored, mixed with recordings.

What a step gets depends on its number and its phase alone, so that a run that was stopped goes on as if it had not.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from stille.video.scenes.clips import Clips
from stille.video.training.config import VideoTrainConfig

POOL = 8
"""Batches that are rendered before the first of them is shown again."""
AHEAD = 3
"""Steps for which recordings are read ahead."""
BUILT_AHEAD = 12
"""Batches that a source that builds ahead is told of."""
PAD = {"kind_BM": -1, "attribute_BTMA": torch.nan, "place_BTM2": torch.nan, "occupied_BTS": torch.nan}

Source = Callable[[int, int, int], Clips]
"""Clips for a seed, a number of clips and of frames; the same for the same seed, and other ones for every other."""


class Phase(NamedTuple):
    """Clips of a step, and their length."""

    clips: int
    frames: int


class Feed:
    """Clips of every step, on the device.

    Args:
        source: of rendered clips, on any device.
        recordings: of others, in `config.recordings_share` of a batch; called in a thread of its own.
    """

    def __init__(self, source: Source, recordings: Source | None, config: VideoTrainConfig, device: torch.device):
        self.source, self.recordings, self.config, self.device = source, recordings, config, device
        self.kept: dict[tuple[int, Phase], Clips] = {}
        self.side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.reading: dict[tuple[int, Phase], Future[Clips]] = {}
        self.reader = ThreadPoolExecutor(1, "recordings") if recordings is not None else None

    def close(self) -> None:
        """Stop reading ahead."""
        if self.reader is not None:
            self.reader.shutdown(wait=False, cancel_futures=True)

    def take(self, step: int, phase: Phase) -> Clips:
        """The clips of a step."""
        self._announce(step, phase)
        self.ahead(step, phase)
        seed, turn = self._which(step)
        clips = self.kept[seed, phase]
        if self.side is not None:
            torch.cuda.current_stream(self.device).wait_stream(self.side)
        if turn:
            random = torch.Generator().manual_seed(seed * 64 + turn)
            clips = tinted(mirrored(clips) if turn % 2 else clips, random)
        if self.reader is None or not (share := self._recorded(phase)):
            return clips
        for later in range(step, step + AHEAD):
            if (later, phase) not in self.reading:
                assert self.recordings is not None
                seed = self._seed(later)
                self.reading[later, phase] = self.reader.submit(self.recordings, seed, share, phase.frames)
        recorded = self.reading.pop((step, phase)).result()
        self.reading = {key: task for key, task in self.reading.items() if key[0] > step and key[1] == phase}
        return joined(clips, on(recorded, self.device))

    def ahead(self, step: int, phase: Phase) -> None:
        """Begin to render the clips of a step, if they are not there."""
        seed, _ = self._which(step)
        if (seed, phase) in self.kept:
            return
        block = (seed - self._seed(0)) // POOL
        self.kept = {
            key: clips for key, clips in self.kept.items()
            if key[1] == phase and (key[0] - self._seed(0)) // POOL == block and self.config.repeats > 1
        }  # fmt: skip
        count = phase.clips - self._recorded(phase)
        if self.side is None:
            self.kept[seed, phase] = on(self.source(seed, count, phase.frames), self.device)
            return
        with torch.cuda.stream(self.side):
            clips = on(self.source(seed, count, phase.frames), self.device)
        for x in tensors(clips):
            x.record_stream(torch.cuda.current_stream(self.device))
        self.kept[seed, phase] = clips

    def _announce(self, step: int, phase: Phase) -> None:
        """Tell a source that can build ahead which clips come next."""
        if (tell := getattr(self.source, "ahead", None)) is not None:
            count, later, told = phase.clips - self._recorded(phase), step, 0
            while told < BUILT_AHEAD:
                seed, turn = self._which(later)
                if turn:  # to the next block
                    later += POOL * (self.config.repeats - turn)
                    continue
                if (seed, phase) not in self.kept:
                    tell(seed, count, phase.frames)
                later, told = later + 1, told + 1

    def _recorded(self, phase: Phase) -> int:
        share = self.config.recordings_share if self.recordings is not None else 0.0
        return min(round(share * phase.clips), phase.clips - 1)

    def _seed(self, number: int) -> int:
        return self.config.seed * (1 << 20) + number

    def _which(self, step: int) -> tuple[int, int]:
        """Seed of a step's clips, and how often they were shown before."""
        block, at = divmod(step, POOL * self.config.repeats)
        turn, place = divmod(at, POOL)
        return self._seed(block * POOL + place), turn


def tensors(clips: Clips) -> list[Tensor]:
    return [getattr(clips, field.name) for field in fields(clips)]


def on(clips: Clips, device: torch.device) -> Clips:
    """The same on a device."""
    return Clips(*(x.to(device, non_blocking=True) for x in tensors(clips)))


def rows(clips: Clips, which: slice) -> Clips:
    """Some of the clips."""
    return Clips(*(x[which] for x in tensors(clips)))


def joined(a: Clips, b: Clips) -> Clips:
    """Both, one after the other; places and slots that only one has are empty in the other."""
    sizes = [
        max(p, q) for p, q in ((a.kind_BM.shape[1], b.kind_BM.shape[1]), (a.slot_BS4.shape[1], b.slot_BS4.shape[1]))
    ]
    both = zip(*(_widened(clips, *sizes) for clips in (a, b)), strict=True)
    return Clips(*(torch.cat([x, y.to(x.dtype)]) for x, y in both))


def _widened(clips: Clips, places: int, slots: int) -> list[Tensor]:
    wide = []
    for field in fields(clips):
        x, dims = getattr(clips, field.name), field.name.rpartition("_")[2]
        for letter, size in (("M", places), ("S", slots)):
            if letter in dims and (missing := size - x.shape[axis := dims.index(letter)]):
                shape = [*x.shape[:axis], missing, *x.shape[axis + 1 :]]
                x = torch.cat([x, x.new_full(shape, PAD.get(field.name, 0))], axis)
        wide.append(x)
    return wide


def mirrored(clips: Clips) -> Clips:
    """Left and right exchanged."""

    def turned(box: Tensor) -> Tensor:
        there = (box[..., 2:] > box[..., :2]).all(-1, keepdim=True)
        return torch.where(there, torch.stack([1 - box[..., 2], box[..., 1], 1 - box[..., 0], box[..., 3]], -1), box)

    return replace(
        clips, frame_BTHW3=clips.frame_BTHW3.flip(3), box_BTM4=turned(clips.box_BTM4), slot_BS4=turned(clips.slot_BS4)
    )


def tinted(clips: Clips, random: torch.Generator) -> Clips:
    """Each clip brighter or darker, with more or less contrast, and a cast."""
    b, device = clips.shape[0], clips.frame_BTHW3.device
    gain = torch.exp(
        0.3 * (torch.rand(b, 1, generator=random) - 0.5) + 0.2 * (torch.rand(b, 3, generator=random) - 0.5)
    )
    shift = (1 - gain.mean(1, keepdim=True)) * 110 + 20 * (torch.rand(b, 1, generator=random) - 0.5)
    gain, shift = (x.to(device, non_blocking=True)[:, None, None, None] for x in (gain, shift))
    frames = [
        (frame * gain[i] + shift[i]).round_().clamp_(0, 255).to(torch.uint8)
        for i, frame in enumerate(clips.frame_BTHW3)
    ]
    return replace(clips, frame_BTHW3=torch.stack(frames))
