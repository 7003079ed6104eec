"""A step's metadata on the device, and attention over the paged cache by it.

Shapes: N tokens, S sequences, B padded sequences of a decode step, H query and K key/value heads, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from stille.engine.cuda_staging import Layout, Staging
from stille.engine.executor import StepInput
from stille.engine.hsa import PromptRule, Segment
from stille.kernels.paged.triton_decode import DecodeWorkspace, decode_attention
from stille.kernels.paged.triton_prefill import PrefillConfig, plan_tiles, prefill_attention, prefill_config
from stille.kernels.paged.triton_write import write_kv
from stille.kernels.triton_support import PAGE

if TYPE_CHECKING:
    from stille.engine.cuda_hsa import SparseCache, SparseChunk


@dataclass(slots=True)
class KVCache:
    """The paged cache of all layers: keys and values [layers, pages, K, 64, D], and scratch for decode attention.

    `sparse` is what sparse attention needs, None for full attention.
    """

    keys: Tensor
    values: Tensor
    workspace: DecodeWorkspace
    sparse: SparseCache | None = None

    @staticmethod
    def allocate(shape: tuple[int, ...], heads: int, sequences: int, dtype: torch.dtype, device: torch.device):
        """Room for `shape`, and for decode attention of at most `sequences` at once."""
        # The kernels never read a slot that was not written, so the memory need not be cleared.
        keys, values = (torch.empty(shape, dtype=dtype, device=device) for _ in range(2))
        workspace = DecodeWorkspace(sequences, heads, shape[2], shape[4], dtype, device)
        return KVCache(keys, values, workspace)


@dataclass(slots=True)
class Chunks:
    """The prompt chunks of a step; integer tensors on the device."""

    table_SP: Tensor
    first_rows_S: Tensor
    starts_S: Tensor
    counts_S: Tensor
    tiles: Tensor
    config: PrefillConfig


@dataclass(slots=True)
class Batch:
    """What kernels must know of a step; integer tensors on the device.

    Attributes:
        positions_N: position of each token in its sequence.
        slots_N: where its key and value go, page * 64 + offset.
        decodes: leading rows that are sequences computing one token.
        lengths_S: tokens in the cache of each decode row, the new one included; 0 for padding.
        table: page tables of the decode rows, flat, rows `stride` apart.
        stride: a tensor where a captured graph must read it anew, else an integer.
        chunks: the prompt chunks that follow the decode rows, as far as they are attended in full.
        last_rows_S: last row of each sequence; None if every row is one.
        together: decode rows of one sequence, successive positions, that are attended together.
        pdl: launch dependents early (CUDA only).
        sparse: what of the prompt chunks is attended sparsely.
        budgets_N: float32, mean number of experts of each token; None: the model has none.
    """

    positions_N: Tensor
    slots_N: Tensor
    decodes: int
    lengths_S: Tensor
    table: Tensor
    stride: Tensor | int
    chunks: Chunks | None = None
    last_rows_S: Tensor | None = None
    together: int = 1
    pdl: bool = False
    sparse: list[SparseChunk] = field(default_factory=list)
    budgets_N: Tensor | None = None


def attend(cache: KVCache, batch: Batch, layer: int, q_NHD: Tensor, scale: float, out_NHD: Tensor) -> Tensor:
    """Attention of a step's rows over the cache, which holds their own keys and values already."""
    keys, values, sparse = cache.keys[layer], cache.values[layer], cache.sparse
    if sparse is not None:
        if batch.decodes:
            sparse.decode(layer, q_NHD, keys, values, batch, scale, out_NHD)
        else:
            sparse.written(layer, keys, batch.slots_N)
        for chunk in batch.sparse:
            sparse.prefill(chunk, q_NHD, keys, values, scale, out_NHD)
    elif batch.decodes:
        decode_attention(
            q_NHD, keys, values, batch.table, batch.lengths_S, scale, sequences=batch.decodes,
            together=batch.together, table_stride=batch.stride, out=out_NHD, workspace=cache.workspace, pdl=batch.pdl,
        )  # fmt: skip
    if batch.chunks is not None:
        chunks = batch.chunks
        prefill_attention(
            q_NHD, keys, values, chunks.table_SP, chunks.first_rows_S, chunks.starts_S, chunks.counts_S, scale,
            tiles=chunks.tiles, config=chunks.config, out=out_NHD,
        )  # fmt: skip
    return out_NHD


class PagedBackend:
    """`AttentionBackend` of one step, for models that run through their own modules."""

    def __init__(self, cache: KVCache, batch: Batch):
        self._cache, self._batch = cache, batch

    def attend(self, layer: int, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor, scale: float) -> Tensor:
        q_NHD, k_NKD, v_NKD = (t.contiguous() for t in (q_NHD, k_NKD, v_NKD))
        cache, batch = self._cache, self._batch
        write_kv(q_NHD, k_NKD, v_NKD, cache.keys[layer], cache.values[layer], batch.slots_N)
        return attend(cache, batch, layer, q_NHD, scale, torch.empty_like(q_NHD))


class DecodeInputs:
    """The device buffer behind every decode step: one address per padded size, as captured graphs need.

    Args:
        rows: most sequences (padded).
        width: most pages of a sequence.
        device: of the buffer.
        experts: whether budgets of experts are part of it.
    """

    def __init__(self, rows: int, width: int, device: torch.device, experts: bool = False):
        self._layouts: dict[int, Layout] = {}
        self._width, self._experts = width, experts
        self._buffer = torch.zeros(self._layout(rows).size, dtype=torch.int32, device=device)
        self.ids_B = torch.zeros(rows, dtype=torch.int64, device=device)

    def _layout(self, rows: int) -> Layout:
        if rows not in self._layouts:
            sizes = {"stride": 1, "positions": rows, "slots": rows, "lengths": rows}
            if self._experts:
                sizes["budgets"] = rows
            sizes["table"] = rows * self._width  # last: copies end with what a step fills of it
            self._layouts[rows] = Layout(sizes)
        return self._layouts[rows]

    def load(self, step: StepInput, ids_S: Tensor, rows: int, staging: Staging) -> None:
        """Enqueue the copies that make the buffer describe a decode step padded to `rows`."""
        sequences = step.num_seqs
        starts, table_SP = step.starts, step.page_table
        width = min(table_SP.shape[1], int(starts.max()) // PAGE + 1)
        layout = self._layout(rows)
        pages_S = table_SP[np.arange(sequences), starts // PAGE]
        sections = {
            "stride": np.array([width], np.int32),
            "positions": starts,
            "slots": pages_S * PAGE + starts % PAGE,
            "lengths": starts + 1,
        }
        if self._experts and step.budgets is not None:
            sections["budgets"] = step.budgets.view(np.int32)
        packed = staging.pack(layout, sections)
        table_at = layout.spans["table"].start
        end = table_at + sequences * width
        packed[table_at:end].view(sequences, width).numpy()[...] = table_SP[:, :width]
        staging.send(packed[:end], self._buffer)
        self.ids_B[:sequences].copy_(ids_S)

    def batch(self, rows: int, pdl: bool, together: int = 1) -> Batch:
        """The buffer as the metadata of a decode step of `rows`."""
        layout = self._layout(rows)
        view = {name: layout.view(self._buffer, name) for name in layout.spans}
        budgets = view["budgets"].view(torch.float32) if self._experts else None
        return Batch(
            view["positions"], view["slots"], rows, view["lengths"], view["table"], view["stride"], pdl=pdl,
            together=together, budgets_N=budgets,
        )  # fmt: skip


def mixed_batch(
    step: StepInput, group: int, head_dim: int, dtype: torch.dtype, staging: Staging, rule: PromptRule | None = None
) -> Batch:
    """Enqueue the metadata of a step of any composition.

    Args:
        step: decode rows first, then prompt chunks.
        group: query heads of a key/value head.
        head_dim, dtype: of the attention, to choose tiles by.
        staging: for the copy.
        rule: how prompts are read under sparse attention; None: in full.
    """
    starts, counts = step.starts, step.lengths
    sequences, tokens, decodes = step.num_seqs, step.num_tokens, step.num_decodes
    ends = np.cumsum(counts)
    row_of_token = np.repeat(np.arange(sequences), counts)
    positions = np.arange(tokens) + (starts - (ends - counts))[row_of_token]
    width = min(step.page_table.shape[1], -(-int((starts + counts).max()) // PAGE))
    slots = step.page_table[row_of_token, positions // PAGE] * PAGE + positions % PAGE
    full_counts = counts[decodes:]
    parts: list[tuple[int, Segment]] = []  # row of the step, what of it is attended sparsely
    if rule is not None:
        split = [
            rule.segments(int(starts[r]), int(starts[r] + counts[r]), step.total(r)) for r in range(decodes, sequences)
        ]
        parts = [(decodes + i, part) for i, row in enumerate(split) for part in row if part.config is not None]
        full = [sum(part.end - part.start for part in row if part.config is None) for row in split]
        full_counts = np.array(full, np.int32)
    sections = {
        "positions": positions,
        "slots": slots,
        "lengths": starts[:decodes] + 1,
        "starts": starts[decodes:],
        "counts": full_counts,
        "first_rows": (ends - counts)[decodes:],
        "last_rows": ends - 1,
        "table": step.page_table[:, :width],
    }
    budgets = step.token_budgets()
    if budgets is not None:
        sections["budgets"] = budgets.view(np.int32)
    config = None
    if full_counts.any():
        config = prefill_config(int(full_counts.max()), group, head_dim, dtype)
        sections["tiles"] = plan_tiles(full_counts, config.tokens(group))
    layout = Layout({name: values.size for name, values in sections.items()})
    device = staging.send(staging.pack(layout, sections))
    view = {name: layout.view(device, name) for name in sections}
    table_SP = view["table"].view(sequences, width)
    chunks = None
    if config is not None:
        tiles = view["tiles"].view(-1, 2)
        chunks = Chunks(table_SP[decodes:], view["first_rows"], view["starts"], view["counts"], tiles, config)
    batch = Batch(
        view["positions"], view["slots"], decodes, view["lengths"], view["table"], width, chunks, view["last_rows"]
    )
    if budgets is not None:
        batch.budgets_N = view["budgets"].view(torch.float32)
    if parts:
        batch.sparse = _sparse_chunks(parts, ends - counts - starts, table_SP)
    return batch


def _sparse_chunks(parts: list[tuple[int, Segment]], row_of_position_0: np.ndarray, table_SP: Tensor):
    from stille.engine.cuda_hsa import SparseChunk

    chunks: list[SparseChunk] = []
    for row, part in parts:
        assert part.config is not None
        first = int(row_of_position_0[row])
        pages = table_SP[row, : -(-part.end // PAGE)]
        chunks.append(SparseChunk(slice(first + part.start, first + part.end), pages, part.end, part.config))
    return chunks
