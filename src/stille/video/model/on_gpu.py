"""The same network on GPUs: parts of it by kernels of our own, batches of few sizes, each launched as one CUDA graph.

A batch is well over a thousand small operations, as many for one camera as for two hundred: launched one by one they
can take more of the host's time than of the GPU's. And for each new size libraries choose their kernels anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from stille.video.model import kernels
from stille.video.model.attention import BoxAttention, MemoryAttention
from stille.video.model.backbone import CocoBackbone
from stille.video.model.network import StilleCamNet

log = logging.getLogger(__name__)

ROOMS = (1, 2, 4, 8, 12, *range(16, 257, 8))
"""Sizes of batches."""
SPARE = 0
"""The row of memory that is no camera's: what fills up a batch reads and writes it."""

_broken: list[Any] = []  # graphs whose capture failed: the allocator may still ask them

COLOURS = 8
"""Channels of pictures, zeros but for three: tensor cores multiply eight numbers at a time."""
TOLD = 6
"""Numbers of a frame besides its picture: row of memory, time, `Fit.inside`."""

Compute = Callable[[Tensor, Tensor], tuple[Tensor, ...]]


@dataclass
class Room:
    """A batch in memory that stays where it is: what goes in, what came out, and the graph between, if there is one."""

    picture_BHW3: Tensor
    told_B6: Tensor
    out: tuple[Tensor, ...] = ()
    graph: torch.cuda.CUDAGraph | None = None


class Rooms:
    """Batches by size, made when they are first needed. Not for several threads at a time.

    Args:
        compute: of pictures of the network's size, and what is told of each (see `TOLD`), in float64; may write to
            memory by rows alone.
        size: width and height of pictures.
        least: pictures in a batch.
    """

    def __init__(self, compute: Compute, device: torch.device, size: tuple[int, int], least: int = 1):
        self._compute, self._device, self._size, self._least = compute, device, size, least
        self._rooms: dict[int, Room] = {}
        self._graphs = device.type == "cuda"
        self._pool = torch.cuda.graph_pool_handle() if self._graphs else None

    def clear(self) -> None:
        """The memory that graphs write to is another one from now on."""
        self._rooms.clear()
        if self._graphs:
            self._pool = torch.cuda.graph_pool_handle()  # one that lost all its graphs cannot be used again

    def room(self, count: int) -> Room | None:
        """Where so many pictures go; None: they are too many."""
        size = next((size for size in ROOMS if size >= max(count, self._least)), None)
        if size is None:
            return None
        if size not in self._rooms:
            self._rooms[size] = self._made(size)
        return self._rooms[size]

    def sizes(self, most: int) -> list[int]:
        """Of batches of up to so many pictures, the smaller ones first."""
        return [size for size in ROOMS if self._least <= size <= most]

    def run(self, room: Room) -> tuple[Tensor, ...]:
        """What comes out, to be read before the next run of any room."""
        if room.graph is None:
            return self._compute(room.picture_BHW3, room.told_B6)
        room.graph.replay()
        return room.out

    def _made(self, size: int) -> Room:
        (width, height), device = self._size, self._device
        room = Room(
            torch.zeros(size, height, width, 3, dtype=torch.uint8, device=device),
            told([], size).to(device),
        )
        if not self._graphs:
            return room
        try:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # once before, in which libraries choose their kernels
                self._compute(room.picture_BHW3, room.told_B6)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with capturing(graph, self._pool, stream):
                room.out = self._compute(room.picture_BHW3, room.told_B6)
            room.graph = graph
        except Exception:
            log.warning("a CUDA graph of %d pictures failed; going on without graphs", size, exc_info=True)
            self._graphs, room.out = False, ()
        return room


def told(rows: list[tuple[float, ...]], size: int) -> Tensor:
    """float64 [size, 6] on the CPU: `TOLD` of frames, filled up with those of no camera."""
    return torch.tensor(rows + [(SPARE, 0.0, 0.0, 0.0, 1.0, 1.0)] * (size - len(rows)), dtype=torch.float64)


def untold(told_B6: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of memory, times, and `Fit.inside`, float32 [B, 1, 4]."""
    return told_B6[:, 0].long(), told_B6[:, 1].contiguous(), told_B6[:, None, 2:].float()


class Colours(nn.Module):
    """A convolution of pictures, by one of more channels that are zeros."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.more = COLOURS - conv.in_channels
        self.stride, self.padding, self.bias = conv.stride, conv.padding, conv.bias
        weight = pad(conv.weight.detach(), (0, 0, 0, 0, 0, self.more)).contiguous(memory_format=torch.channels_last)
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return conv2d(pad(x, (0, 0, 0, 0, 0, self.more)), self.weight, self.bias, self.stride, self.padding)


class Nothing(nn.Module):
    """`MemoryAttention` where there is no memory: all look at the one pair that is always there."""

    def __init__(self, attention: MemoryAttention):
        super().__init__()
        self.said = nn.Parameter(attention.out(attention.nothing[1]).detach(), requires_grad=False)

    def forward(self, x_BQC: Tensor, kv_BJ2C: Tensor, bias_BhJ: Tensor) -> Tensor:
        return self.said


def adapt(network: StilleCamNet) -> None:
    """Put these parts, and kernels of our own, into a network on a GPU; what it says is the same but for rounding."""
    if not kernels.usable(network.slots.reduce.weight):
        return
    with torch.no_grad():
        for module in list(network.decoder.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, BoxAttention):
                    setattr(module, name, kernels.BoxSampling(child))
                elif isinstance(child, MemoryAttention) and not network.config.history:
                    setattr(module, name, Nothing(child))
        network.decoder.copies = False
        stem = network.backbone.body.stem if isinstance(network.backbone, CocoBackbone) else network.backbone.stem
        stem.conv = Colours(stem.conv)  # pyright: ignore[reportAttributeAccessIssue]
        last = network.decoder.propose.head.down  # nine numbers: products of sixteen take half of the time
        last.weight = nn.Parameter(pad(last.weight, (0, 0, 0, -len(last.weight) % 16)), requires_grad=False)
        last.bias = nn.Parameter(pad(last.bias, (0, -len(last.bias) % 16)), requires_grad=False)


@contextmanager
def capturing(graph: Any, pool: Any, stream: Any) -> Iterator[None]:
    """Work is captured, not done; if it cannot be, all is as before, and the error is the first one.

    Other threads may go on with what a capture forbids: reading ahead pins memory.
    """
    main, cause = torch.cuda.current_stream(), None
    try:
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            try:
                yield
            except BaseException as error:
                cause = error
                raise
    except BaseException as error:
        torch.cuda.set_stream(main)
        _broken.append(graph)
        with suppress(Exception):
            torch._C._cuda_endAllocateToPool(main.device_index, pool)
        raise cause or error from None
