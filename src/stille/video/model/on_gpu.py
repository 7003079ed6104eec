"""The same network on GPUs: batches of few sizes, and all that a batch takes launched as one CUDA graph.

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
from torch import Tensor

log = logging.getLogger(__name__)

ROOMS = (1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 56, 64, 80, 96, 128, 160, 192, 224, 256)
"""Sizes of batches."""
SPARE = 0
"""The row of memory that is no camera's: what fills up a batch reads and writes it."""

_broken: list[Any] = []  # graphs whose capture failed: the allocator may still ask them

Compute = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, ...]]


@dataclass
class Room:
    """A batch in memory that stays where it is: what goes in, what came out, and the graph between, if there is one."""

    picture_BHW3: Tensor
    row_B: Tensor
    time_B: Tensor
    inside_B14: Tensor
    out: tuple[Tensor, ...] = ()
    graph: torch.cuda.CUDAGraph | None = None


class Rooms:
    """Batches by size, made when they are first needed. Not for several threads at a time.

    Args:
        compute: of pictures of the network's size, rows, times and `Fit.inside`; may write to memory by rows alone.
        size: width and height of pictures.
    """

    def __init__(self, compute: Compute, device: torch.device, size: tuple[int, int]):
        self._compute, self._device, self._size = compute, device, size
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
        size = next((size for size in ROOMS if size >= count), None)
        if size is None:
            return None
        if size not in self._rooms:
            self._rooms[size] = self._made(size)
        return self._rooms[size]

    def run(self, room: Room) -> tuple[Tensor, ...]:
        """What comes out, to be read before the next run of any room."""
        if room.graph is None:
            return self._compute(room.picture_BHW3, room.row_B, room.time_B, room.inside_B14)
        room.graph.replay()
        return room.out

    def _made(self, size: int) -> Room:
        (width, height), device = self._size, self._device
        room = Room(
            torch.zeros(size, height, width, 3, dtype=torch.uint8, device=device),
            torch.full((size,), SPARE, device=device),
            torch.zeros(size, dtype=torch.float64, device=device),
            torch.tensor([0.0, 0.0, 1.0, 1.0], device=device).repeat(size, 1, 1),
        )
        if not self._graphs:
            return room
        try:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # once before, in which libraries choose their kernels
                self._compute(room.picture_BHW3, room.row_B, room.time_B, room.inside_B14)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with capturing(graph, self._pool, stream):
                room.out = self._compute(room.picture_BHW3, room.row_B, room.time_B, room.inside_B14)
            room.graph = graph
        except Exception:
            log.warning("a CUDA graph of %d pictures failed; going on without graphs", size, exc_info=True)
            self._graphs, room.out = False, ()
        return room


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
