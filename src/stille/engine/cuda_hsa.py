"""Sparse attention of the CUDA executor: codes of the cached keys, decode rows by a budget, prompt chunks by tiles.

Shapes: N tokens, M tokens of a chunk, L keys, P pages of a sequence, H query and K key/value heads, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stille.engine.hsa import PromptRule
from stille.kernels.hsa import HSAConfig, hsa_attention
from stille.kernels.hsa.paged import HSAWorkspace, PageCodes, hsa_decode, update_codes

if TYPE_CHECKING:
    from stille.engine.cuda_batch import Batch


@dataclass(frozen=True, slots=True)
class SparseChunk:
    """New tokens of a prompt that are attended sparsely.

    Attributes:
        rows: of the step.
        pages_P: pages that hold the keys, integers on the device.
        keys: how many of them, the chunk's own included.
        config: of this chunk (see `PromptRule.segments`).
    """

    rows: slice
    pages_P: Tensor
    keys: int
    config: HSAConfig


class SparseCache:
    """What sparse attention keeps beside keys and values: their codes, and scratch of decode steps.

    Args:
        config: of the engine.
        shape: of the cache, [layers, pages, K, 64, D].
        device: of the cache.
        workspace: for decode steps.
    """

    def __init__(
        self,
        config: HSAConfig,
        shape: tuple[int, ...],
        device: torch.device,
        workspace: HSAWorkspace,
    ):
        self.config = config
        self.rule = PromptRule.of(config)
        self.codes = PageCodes.allocate(shape, config, device)
        self._of_layer = [self.codes.layer(layer) for layer in range(shape[0])]
        self._workspace = workspace

    def sizes(self, most: int) -> list[int]:
        """Numbers of decode rows up to `most`, one for each way in which the kernels are cut up."""
        return list({self._workspace.cut(rows): rows for rows in range(most, 0, -1)}.values())

    def written(self, layer: int, keys: Tensor, slots_N: Tensor) -> None:
        """Keys have been written to these slots: their codes follow."""
        update_codes(keys, self._of_layer[layer], slots_N, self.config)

    def decode(
        self, layer: int, q_NHD: Tensor, keys: Tensor, values: Tensor, batch: Batch, scale: float, out_NHD: Tensor
    ) -> None:
        """Codes of what the step has written, and attention of its decode rows; allocates nothing."""
        hsa_decode(
            q_NHD, keys, values, self._of_layer[layer], batch.table, batch.lengths_S, scale, self.config,
            slots_N=batch.slots_N, sequences=batch.decodes, table_stride=batch.stride, out=out_NHD,
            workspace=self._workspace, pdl=batch.pdl,
        )  # fmt: skip

    def prefill(self, chunk: SparseChunk, q_NHD: Tensor, keys: Tensor, values: Tensor, scale: float, out_NHD: Tensor):
        """Attention of a chunk, into its rows of `out_NHD`. Keys and values are gathered to lie side by side."""
        k_KLD, v_KLD = (
            pages.transpose(0, 1).index_select(1, chunk.pages_P).flatten(1, 2)[:, : chunk.keys]
            for pages in (keys, values)
        )
        q_HMD = q_NHD[chunk.rows].transpose(0, 1)
        out = hsa_attention(q_HMD[None], k_KLD[None], v_KLD[None], chunk.config, scale=scale)
        out_NHD[chunk.rows] = out[0].transpose(0, 1)
