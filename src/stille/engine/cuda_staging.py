"""One host-to-device copy per step: integer sections packed into a pinned buffer that no step in flight still reads."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

ALIGN = 16
"""Sections start at multiples of so many integers, so that kernels see the same pointer alignment at every size."""


def aligned(size: int) -> int:
    """`size` rounded up to the alignment of sections."""
    return -(-size // ALIGN) * ALIGN


class Layout:
    """Where the sections of a packed buffer lie.

    Args:
        sizes: integers of each section, in order.
    """

    def __init__(self, sizes: dict[str, int]):
        self.spans: dict[str, slice] = {}
        start = 0
        for name, size in sizes.items():
            self.spans[name] = slice(start, start + size)
            start += aligned(size)
        self.size = start

    def view(self, buffer: Tensor, name: str) -> Tensor:
        """A section of a packed tensor, 1-d."""
        return buffer[self.spans[name]]


class Staging:
    """Buffers for packed int32 sections, used in turn.

    Args:
        device: where the sections go. On the CPU a buffer is simply handed over.
        depth: buffers; a step in flight keeps one busy.
    """

    def __init__(self, device: torch.device, depth: int = 3):
        self._device = device
        self._pinned = device.type == "cuda"
        self._buffers: list[Tensor] = [self._allocate(1 << 12) for _ in range(depth)]
        self._events = [torch.cuda.Event() for _ in range(depth)] if self._pinned else []
        self._turn = 0

    def _allocate(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.int32, pin_memory=self._pinned)

    def pack(self, layout: Layout, sections: dict[str, np.ndarray]) -> Tensor:
        """Write sections into the next buffer; what they do not fill of their span is 0.

        Args:
            layout: spans; every section's span is at least its size.
            sections: flattened into their spans. A span without a section is left as it is.

        Returns:
            int32 [layout.size] on the host; give it to `send` before the next `pack`.
        """
        self._turn = (self._turn + 1) % len(self._buffers)
        if self._pinned:
            self._events[self._turn].synchronize()  # long over: it belongs to the step before the one in flight
        if self._buffers[self._turn].numel() < layout.size:
            self._buffers[self._turn] = self._allocate(1 << (layout.size - 1).bit_length())
        buffer = self._buffers[self._turn][: layout.size]
        target = buffer.numpy()
        for name, values in sections.items():
            span = layout.spans[name]
            size = values.size
            target[span.start : span.start + size].reshape(values.shape)[...] = values
            target[span.start + size : span.stop] = 0
        return buffer

    def send(self, packed: Tensor, target: Tensor | None = None) -> Tensor:
        """Enqueue the copy to the device, into `target` (at least as long) or a new tensor; returns it."""
        if target is None:
            target = torch.empty(packed.shape, dtype=torch.int32, device=self._device)
        result = target[: packed.numel()].copy_(packed, non_blocking=True)
        if self._pinned:
            self._events[self._turn].record()
        return result
