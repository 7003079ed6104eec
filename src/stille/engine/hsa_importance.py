"""How much each dimension counts where sparse attention tells keys apart: kept beside a sequence's first pages.

It is the mean square of a sequence's first 128 queries (`kernels.hsa.reference.importance`). Each of the first pages
holds the part of its own 64 positions: a page found in the prefix cache then brings what belongs to its tokens, though
the pages after it may come from another sequence.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from stille.engine.config import PAGE_SIZE
from stille.engine.executor import StepInput
from stille.kernels.hsa.config import TILE

PAGES = TILE // PAGE_SIZE
"""First pages of a sequence that hold a part."""


class Importance:
    """The store of all layers.

    Args:
        shape: of the cache, [layers, pages, K, 64, D].
        device: of the cache.

    Attributes:
        parts: bfloat16 [layers, pages, K, D], sums of squares of queries, over 128 times their heads; a sequence's
            importance is the sum of its first pages'.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device):
        layers, pages, kv_heads, _, dim = shape
        self.parts = torch.zeros(layers, pages, kv_heads, dim, dtype=torch.bfloat16, device=device)

    @staticmethod
    def bytes_per_page(kv_heads: int, head_dim: int) -> int:
        """Memory of one page of one layer."""
        return 2 * kv_heads * head_dim

    def of(self, layer: int, pages_P: Tensor) -> Tensor:
        """fp32 [K, D] of the sequence that lies in these pages (integers on the device, from its first on)."""
        return self.parts[layer].index_select(0, pages_P[:PAGES]).sum(0, dtype=torch.float32)

    def forget(self, step: StepInput) -> None:
        """Before a step: clear the pages that answers reach whose prompts ended before.

        No prompt wrote a part there; what stands there is another sequence's.
        """
        for page in range(1, PAGES):
            for row in np.flatnonzero(step.starts[: step.num_decodes] == page * PAGE_SIZE):
                self.parts[:, int(step.page_table[row, page])] = 0


def begun(step: StepInput) -> np.ndarray:
    """int32 [prompts, 2 + PAGES], of prompts that a step begins: first row, how many rows count, first pages."""
    rows = step.num_decodes + np.flatnonzero(step.starts[step.num_decodes :] == 0)
    found = np.zeros((len(rows), 2 + PAGES), np.int32)
    found[:, 0] = (np.cumsum(step.lengths) - step.lengths)[rows]
    found[:, 1] = np.minimum(step.lengths[rows], TILE)
    pages = step.page_table[rows, :PAGES]
    found[:, 2 : 2 + pages.shape[1]] = pages
    return found
