"""Loss and gradients of a batch of clips: a look at them, the matching, and what follows from it.

A step is some twenty thousand kernels of a few microseconds each, which a GPU runs faster than they can be launched.
So both halves of it are captured as CUDA graphs, once for each shape, and replayed from then on. Replays work on the
same memory each time: batches are copied into the inputs, gradients lie where they lay before.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from stille.video.model import StilleCamNet
from stille.video.model.on_gpu import capturing
from stille.video.scenes.clips import Clips
from stille.video.training.config import VideoTrainConfig
from stille.video.training.feed import PAD, tensors
from stille.video.training.matching import match
from stille.video.training.step import Looked, draw, judged, looked_at
from stille.video.training.trajectories import Luck

logger = logging.getLogger(__name__)

WARM = 2
"""Times that a batch is computed before it is captured: libraries choose their kernels, compilers compile."""
PLACES = 16
"""Batches are widened to multiples of so many places for objects, so that few shapes are met."""
AGREES = 0.98
"""Share of objects for which the matching on the GPU has to give what the CPU's gives; ties may differ."""

Gradients = list[Tensor | None]
Paired = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(slots=True)
class _Captured:
    """Two graphs, and the memory that they work on."""

    key: tuple[Any, ...]
    inputs: list[Tensor]
    first: Any
    pairing: Paired
    query_BTM: Tensor
    second: Any
    facts_F: Tensor
    gradients: Gradients


class Passes:
    """Loss and gradients of batches, by graphs on GPUs if `config.graphs` says so.

    Attributes:
        graphs: whether steps are captured.
        kernel: whether the GPU matches by itself.
        names: of the facts.
    """

    def __init__(self, network: StilleCamNet, config: VideoTrainConfig, device: torch.device):
        self.network, self.config, self.device = network, config, device
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.graphs = config.graphs and device.type == "cuda"
        self.kernel = device.type == "cuda"
        self.names: list[str] = []
        self._checked = False
        self._captured: _Captured | None = None
        self._sizes = 0, 0  # places and slots

    def __call__(
        self, clips: Clips, identities: bool, random: torch.Generator, share: float = 1.0,
        meanwhile: Callable[[], object] | None = None,
    ) -> tuple[Tensor, Gradients]:  # fmt: skip
        """The loss and its facts, float32 [F], and the gradient of `share` of the loss for each of the parameters, None
        where it has none. With graphs, they hold until the next call.

        Args:
            identities: whether they are learned.
            random: of the damage to trajectories, on the CPU.
            meanwhile: called when the device has got work, at the latest while the CPU would wait for it.
        """
        if self.graphs:
            clips = self._widened(clips)
        luck = draw(self.network, clips, self.config, random) if identities else None
        run = self._replayed if self.graphs else self._at_once
        facts, gradients, told = run(clips, luck, share, meanwhile)
        if not told and meanwhile is not None:
            meanwhile()
        return facts, gradients

    def free(self) -> None:
        """Give the graphs' memory back."""
        if self._captured is not None:
            torch.cuda.synchronize(self.device)
            self._captured = None
            gc.collect()
            torch.cuda.empty_cache()

    def _at_once(
        self, clips: Clips, luck: Luck | None, share: float, meanwhile: Callable[[], object] | None
    ) -> tuple[Tensor, Gradients, bool]:
        looked = looked_at(self.network, clips, self.config, luck)
        query, told = self._matched(looked.pairing, meanwhile)
        facts, gradients = self._learned(clips, looked, query, luck, share)
        return facts, gradients, told

    def _learned(
        self, clips: Clips, looked: Looked, query_BTM: Tensor, luck: Luck | None, share: float
    ) -> tuple[Tensor, Gradients]:
        loss = judged(self.network, clips, looked, query_BTM, self.config, luck)
        self.names = ["loss", *loss.facts]
        found = torch.autograd.grad(loss.total * share, self.parameters, allow_unused=True)
        pairs = zip(found, self.parameters, strict=True)
        # Fused optimizers take gradients that lie as their parameters do.
        gradients: Gradients = [
            g if g is None or g.stride() == p.stride() else torch.empty_like(p).copy_(g) for g, p in pairs
        ]
        return torch.stack([loss.total.detach(), *(x.float() for x in loss.facts.values())]), gradients

    def _matched(self, paired: Paired, meanwhile: Callable[[], object] | None) -> tuple[Tensor, bool]:
        """The queries of objects, on the device, and whether `meanwhile` was called."""
        if self.kernel:
            query = self._by_kernel(paired)
            if query is not None:
                return query, False
        query = match(*paired, meanwhile)
        if self.device.type == "cuda":
            query = query.pin_memory()
        return query.to(self.device, non_blocking=True), True

    def _by_kernel(self, paired: Paired) -> Tensor | None:
        """None, from the first time on, if the kernel does not run here or gives something else."""
        try:
            from stille.video.training.matching_triton import match_triton

            query = match_triton(*paired)
            if not self._checked:
                there = paired[3].cpu()
                same = (query.cpu() == match(*paired))[there].float().mean().item() if bool(there.any()) else 1.0
                if same < AGREES:
                    raise RuntimeError(f"{same:.1%} of the queries are those that the CPU finds: expected {AGREES:.0%}")
                self._checked = True
            return query
        except torch.OutOfMemoryError:
            raise
        except Exception:
            logger.warning("matching on the GPU failed; the CPU does it", exc_info=True)
            self.kernel = False
            return None

    def _widened(self, clips: Clips) -> Clips:
        places, slots = clips.kind_BM.shape[1], clips.slot_BS4.shape[1]
        self._sizes = max(self._sizes[0], -(-places // PLACES) * PLACES), max(self._sizes[1], slots)
        return widened(clips, *self._sizes)

    def _replayed(
        self, clips: Clips, luck: Luck | None, share: float, meanwhile: Callable[[], object] | None
    ) -> tuple[Tensor, Gradients, bool]:
        key = luck is None, share, *(x.shape for x in tensors(clips))
        if self._captured is None or self._captured.key != key:
            self.free()
            self._captured = self._capture(key, clips, luck, share)
        held = self._captured
        for into, x in zip(held.inputs, _inputs(clips, luck), strict=True):
            into.copy_(x, non_blocking=True)
        held.first.replay()
        query, told = self._matched(held.pairing, meanwhile)
        held.query_BTM.copy_(query, non_blocking=True)
        held.second.replay()
        return held.facts_F, held.gradients, told

    def _capture(self, key: tuple[Any, ...], clips: Clips, luck: Luck | None, share: float) -> _Captured:
        """Nothing is computed here that stays: batch norms keep what they had gathered."""
        inputs = [x.clone() for x in _inputs(clips, luck)]
        count = len(fields(Clips))
        clips, luck = Clips(*inputs[:count]), None if luck is None else Luck(*inputs[count:])
        gathered = [(x, x.clone()) for x in self.network.buffers()]
        main, side = torch.cuda.current_stream(self.device), torch.cuda.Stream(self.device)
        try:
            side.wait_stream(main)
            with torch.cuda.stream(side):
                for _ in range(WARM):
                    self._at_once(clips, luck, share, None)
            main.wait_stream(side)
        finally:
            for x, was in gathered:
                x.copy_(was)
        torch.cuda.synchronize(self.device)
        gc.collect()
        first, second, pool = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        with capturing(first, pool, side):
            looked = looked_at(self.network, clips, self.config, luck)
        query = torch.zeros(looked.pairing[3].shape, dtype=torch.int64, device=self.device)
        with capturing(second, pool, side):
            facts, gradients = self._learned(clips, looked, query, luck, share)
        return _Captured(key, inputs, first, looked.pairing, query, second, facts, gradients)


def widened(clips: Clips, places: int, slots: int) -> Clips:
    """The same with more places for objects and slots, in which nothing is."""
    wide: dict[str, Tensor] = {}
    for field in fields(clips):
        x, dims = getattr(clips, field.name), field.name.rpartition("_")[2]
        sizes = zip(dims, x.shape, strict=True)
        missing = [{"M": places, "S": slots}.get(letter, size) - size for letter, size in sizes]
        if any(missing):
            edges = [edge for n in reversed(missing) for edge in (0, n)]
            wide[field.name] = pad(x, edges, value=PAD.get(field.name, 0))
    return replace(clips, **wide)


def _inputs(clips: Clips, luck: Luck | None) -> list[Tensor]:
    return tensors(clips) + ([] if luck is None else [luck.number_BX, luck.cut_B, luck.gap_B])
