"""A decoder on the CPU: packed weights, a paged cache and steps over flat rows, computed by compiled kernels.

This knows tensors and sizes, no model class. Attention with grouped heads, rotary embedding, optional head norms and
biases; SwiGLU, with routed experts beside it where a layer has them (`experts.py`); 4- or 8-bit layers; 8-bit embedding
and head; activations quantised to 8 bits in groups of 32.

Names: N rows of a step, S sequences, P pages per sequence, C hidden size, I intermediate size, D head width,
V vocabulary. A page holds 64 tokens.
"""

import mmap
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stille.errors import ConfigError, UnsupportedError
from stille.kernels import grids
from stille.kernels.cpu import formats, step
from stille.kernels.cpu import job as J
from stille.kernels.cpu.experts import ExpertsShape, ExpertTensors, RowBudgets
from stille.kernels.cpu.simd import Target
from stille.kernels.cpu.sparse import KeyBudget
from stille.kernels.cpu.team import team_for
from stille.kernels.cpu.tiles import kernels

MAX_ROWS = 256
"""Rows that go through the layers together: enough to reuse weights from the first cache, few enough for the second."""

_SPLIT_ROWS = 16
"""Up to so many single-token rows, long contexts are split among threads."""


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of a decoder; `intermediate` is that of layers without experts.

    Raises:
        UnsupportedError: sizes that the kernels do not cover; the message names them.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    eps: float
    scale: float
    bits: int = 4
    experts: ExpertsShape | None = None

    def __post_init__(self) -> None:
        problems = []
        if self.bits not in grids.BITS:
            problems.append(f"{self.bits} bits (4 or 8)")
        for name, value, unit in (
            ("hidden size", self.hidden, 32),
            ("intermediate size", self.intermediate, 32),
            ("head width", self.head_dim, 16),
            ("heads x head width", self.heads * self.head_dim, 32),
        ):
            if value < unit or value % unit:
                problems.append(f"{name} {value} (a multiple of {unit})")
        if self.kv_heads < 1 or self.heads % self.kv_heads or self.heads // self.kv_heads > J.TILE_VECTORS:
            problems.append(f"{self.heads} heads over {self.kv_heads} (whole groups of at most {J.TILE_VECTORS})")
        if self.experts is not None:
            problems += self.experts.problems()
        if self.layers < 1 or self.vocab < 1:
            problems.append(f"{self.layers} layers, {self.vocab} tokens (at least one)")
        if problems:
            raise UnsupportedError(f"the CPU kernels do not cover {'; '.join(problems)}")

    def inner(self, layer: int) -> int:
        """Neurons of a layer that every row runs."""
        experts = self.experts_of(layer)
        return self.intermediate if experts is None else experts.shared

    def experts_of(self, layer: int) -> ExpertsShape | None:
        """None for a layer without."""
        return self.experts if self.experts is not None and layer in self.experts.layers else None

    def packed_bytes(self, layer: int) -> int:
        """Of a layer's matrices."""
        inner, bits = self.inner(layer), self.bits
        matrices = ((self.qkv_features, self.hidden), (self.hidden, self.heads * self.head_dim))
        matrices += 2 * ((inner, self.hidden),) + ((self.hidden, inner),)
        size = sum(formats.packed_bytes(out, inputs, bits) for out, inputs in matrices)
        experts = self.experts_of(layer)
        return size if experts is None else size + experts.packed_bytes(self.hidden, bits)

    @property
    def qkv_features(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    def page_bytes(self, target: Target, budget: KeyBudget | None = None) -> int:
        """Bytes of one cache page over all layers, keys, values and the summaries of sparse attention together."""
        element = 2 if target.kv == "f16" else 4
        cache = 2 * self.kv_heads * J.PAGE * self.head_dim * element
        if budget is not None:
            cache += budget.summary_bytes(self.kv_heads, self.head_dim, element)
        return self.layers * cache


@dataclass
class LayerTensors:
    """One layer's weights, floating point, [out, in]; None where the model has no such part.

    `gate`, `up` and `down` are the FFN, or in a layer with `experts` the shared expert (None: there is none).
    """

    attention_norm_C: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    ffn_norm_C: Tensor
    gate: Tensor | None
    up: Tensor | None
    down: Tensor | None
    q_bias: Tensor | None = None
    k_bias: Tensor | None = None
    v_bias: Tensor | None = None
    out_bias: Tensor | None = None
    q_norm_D: Tensor | None = None
    k_norm_D: Tensor | None = None
    experts: ExpertTensors | None = None


class CpuDecoder:
    """Weights, cache and workspace of one decoder.

    Load every part (`load_layer` for each layer, `load_ends`), then call `forward`. Weights are packed as they come, so
    a caller that frees each layer after loading it never holds the model twice.

    Args:
        shape: sizes.
        num_pages: pages of the cache; page 0 takes no special part here.
        target: what to compile for.
        threads: threads of a step, the caller's included.
        budget: keys that a row may read; None: all.

    Raises:
        ConfigError: a count is not positive.
        UnsupportedError: no POSIX threads.
    """

    def __init__(
        self,
        shape: DecoderShape,
        num_pages: int,
        target: Target | None = None,
        threads: int = 1,
        budget: KeyBudget | None = None,
    ):
        if num_pages < 1 or threads < 1:
            raise ConfigError(f"a decoder needs at least one page and one thread, got {num_pages} and {threads}")
        self.shape, self.num_pages, self.threads, self.budget = shape, num_pages, threads, budget
        self.target = target or Target()
        self._team = team_for(self.target)
        self._keep: list[object] = []  # owners of memory that the job block points to
        self._job = np.zeros(J.JOB_FIELDS, np.int64)
        self._table = np.zeros((shape.layers, J.LAYER_FIELDS), np.int64)
        element = 2 if self.target.kv == "f16" else 4
        per_layer = num_pages * shape.kv_heads * J.PAGE * shape.head_dim * element
        self.cache = _pages(2 * shape.layers * per_layer).reshape(shape.layers, 2, per_layer)
        for layer in range(shape.layers):
            self._table[layer, J.KEYS] = self.cache[layer, 0].ctypes.data
            self._table[layer, J.VALUES] = self.cache[layer, 1].ctypes.data
        if budget is not None:
            self._summaries = _pages(
                shape.layers * num_pages * budget.summary_bytes(shape.kv_heads, shape.head_dim, element)
            )
            for layer, part in enumerate(self._summaries.reshape(shape.layers, -1)):
                self._table[layer, J.SUMMARIES] = part.ctypes.data
        ends = np.cumsum([shape.packed_bytes(layer) for layer in range(shape.layers)])
        self._weights = np.split(_pages(int(ends[-1]), large=True), ends[:-1])
        self._budgets: RowBudgets | None = None  # the last ones, found to be right
        self._logits = torch.empty(0, 0)
        self._partials = np.zeros(0, np.uint8)
        self._workspace()

    def load_layer(self, layer: int, tensors: LayerTensors) -> None:
        """Pack one layer.

        Raises:
            ConfigError: a tensor of the wrong shape, or one that cannot be quantised.
        """
        s, t = self.shape, tensors
        kv, inner, width, experts = s.kv_heads * s.head_dim, s.heads * s.head_dim, s.inner(layer), s.experts_of(layer)
        for name, want in (
            ("q", (inner, s.hidden)), ("k", (kv, s.hidden)), ("v", (kv, s.hidden)), ("out", (s.hidden, inner)),
            ("gate", (width, s.hidden)), ("up", (width, s.hidden)), ("down", (s.hidden, width)),
            ("attention_norm_C", (s.hidden,)), ("ffn_norm_C", (s.hidden,)),
            ("q_bias", (inner,)), ("k_bias", (kv,)), ("v_bias", (kv,)), ("out_bias", (s.hidden,)),
            ("q_norm_D", (s.head_dim,)), ("k_norm_D", (s.head_dim,)),
        ):  # fmt: skip
            value = getattr(t, name)
            if value is not None and tuple(value.shape) != want:
                raise ConfigError(f"layer {layer}: {name} must be {want}, got {tuple(value.shape)}")
        if (t.experts is None) != (experts is None):
            raise ConfigError(f"layer {layer}: tensors {'without' if t.experts is None else 'with'} experts")
        row, place = self._table[layer], 0
        matrices = {J.QKV_WEIGHT: [(torch.cat([t.q, t.k, t.v]), None)], J.OUT_WEIGHT: [(t.out, None)]}
        if width:
            if t.gate is None or t.up is None or t.down is None:
                raise ConfigError(f"layer {layer}: gate, up and down of {width} neurons are missing")
            matrices |= {J.GATE_WEIGHT: [(t.gate, None)], J.UP_WEIGHT: [(t.up, None)], J.DOWN_WEIGHT: [(t.down, None)]}
        if t.experts is not None and experts is not None:
            matrices |= t.experts.matrices(experts)
            for entry, value in t.experts.vectors(experts).items():
                row[entry] = self._floats(value)
        row[J.INNER], row[J.NUMBER] = width, layer
        memory = self._weights[layer]
        for entry, pieces in matrices.items():
            row[entry] = memory.ctypes.data + place
            for matrix, bits in pieces:
                size = formats.packed_bytes(matrix.shape[0], matrix.shape[1], bits or s.bits)
                formats.pack(grids.quantize(matrix, bits or s.bits), memory[place : place + size])
                place += size
        biases = [t.q_bias, t.k_bias, t.v_bias]
        if any(b is not None for b in biases):
            widths = (inner, kv, kv)
            parts = [torch.zeros(n) if b is None else b.float() for b, n in zip(biases, widths, strict=True)]
            row[J.QKV_BIAS] = self._floats(torch.cat(parts))
        for entry, value in (
            (J.ATTENTION_NORM, t.attention_norm_C), (J.FFN_NORM, t.ffn_norm_C), (J.OUT_BIAS, t.out_bias),
            (J.Q_NORM, t.q_norm_D), (J.K_NORM, t.k_norm_D),
        ):  # fmt: skip
            row[entry] = 0 if value is None else self._floats(value)

    def load_ends(self, embedding_VC: Tensor, head_VC: Tensor | None, norm_C: Tensor, cos_TD: Tensor, sin_TD: Tensor):
        """Pack what lies around the layers.

        Args:
            head_VC: None if the head is the embedding.
            cos_TD, sin_TD: rotary table by position, the second half of D repeating the first.

        Raises:
            ConfigError: see `load_layer`.
        """
        s = self.shape
        for name, value, want in (("embedding", embedding_VC, (s.vocab, s.hidden)),
                                  ("head", head_VC, (s.vocab, s.hidden)),
                                  ("norm", norm_C, (s.hidden,)), ("cos", cos_TD, (cos_TD.shape[0], s.head_dim)),
                                  ("sin", sin_TD, tuple(cos_TD.shape))):  # fmt: skip
            if value is not None and tuple(value.shape) != want:
                raise ConfigError(f"{name} must be {want}, got {tuple(value.shape)}")
        self._job[J.EMBEDDING] = self._packed8(embedding_VC)
        self._job[J.HEAD] = self._job[J.EMBEDDING] if head_VC is None else self._packed8(head_VC)
        self._job[J.FINAL_NORM] = self._floats(norm_C)
        self._norm_C = norm_C.detach().float().cpu().clone()
        self._job[J.COS], self._job[J.SIN] = self._floats(cos_TD), self._floats(sin_TD)
        self.max_positions = cos_TD.shape[0]

    def forward(
        self,
        starts: np.ndarray,
        lengths: np.ndarray,
        ids: np.ndarray,
        page_table: np.ndarray,
        sample: np.ndarray,
        budgets: RowBudgets | None = None,
        masks: list[np.ndarray] | None = None,
    ) -> Tensor:
        """Compute `lengths[i]` tokens of each sequence from position `starts[i]`; see engine.executor.StepInput.

        Args:
            starts, lengths: int32[S].
            ids: int64[N], sequence after sequence.
            page_table: int32[S, P].
            sample: bool[S], sequences whose logits are wanted.
            budgets: needed by a decoder with experts.
            masks: takes what rows ran, int64[layers, rows] with a bit for each expert, in pieces, in order.

        Returns:
            logits_SV float32: the last row of each sequence, undefined where not wanted. A buffer of this object: the
            next call overwrites it.

        Raises:
            ConfigError: ids, positions or pages that would lead outside of the tables.
        """
        if not len(starts):
            return self._logits_buffer(0)
        lengths64 = lengths.astype(np.int64)
        ends = np.cumsum(lengths64)
        count = int(ends[-1])
        first_rows = ends - lengths64
        sequence_N = np.repeat(np.arange(len(starts)), lengths64)
        positions = (np.arange(count) - np.repeat(first_rows - starts, lengths64)).astype(np.int32)
        table = np.ascontiguousarray(page_table, np.int32)
        self._check(ids, count, int(starts.min()), int((starts + lengths64).max()), table)
        row_pages = table[sequence_N, positions // J.PAGE]
        ids32 = ids.astype(np.int32)
        if self.shape.experts is not None:
            self._take_budgets(budgets, count)
        logits = self._logits_buffer(len(starts))
        for begin in range(0, count, MAX_ROWS):
            end = min(count, begin + MAX_ROWS)
            first, last = int(sequence_N[begin]), int(sequence_N[end - 1])
            parts = []
            for i in range(first, last + 1):
                lo, hi = max(begin, int(first_rows[i])), min(end, int(ends[i]))
                parts.append((i, lo - begin, hi - lo, int(positions[lo])))
            finished = [i for i in range(first, last + 1) if ends[i] <= end]
            wanted = finished if finished and sample[finished].any() else []
            selected = np.array([ends[i] - 1 - begin for i in wanted], np.int32)
            out = logits.data_ptr() + (wanted[0] * logits.stride(0) * 4 if wanted else 0)
            if budgets is not None:
                self._job[J.ROW_BUDGETS] = budgets.budget_N.ctypes.data + 4 * begin
            self._run(ids32[begin:end], positions[begin:end], row_pages[begin:end], table, parts, selected, out)
            if masks is not None:
                masks.append(self._masks[:, : end - begin].copy())
        return logits[:, : self.shape.vocab]

    def hidden(self, rows: int) -> Tensor:
        """float32 [rows, C]: hidden states after the final norm of the last step, which had so many rows, all in one
        pass (MAX_ROWS at most)."""
        x_NC = torch.from_numpy(self._stream[:rows])
        return torch.nn.functional.rms_norm(x_NC, (self.shape.hidden,), self._norm_C, self.shape.eps)

    def _check(self, ids: np.ndarray, count: int, begin: int, end: int, table: np.ndarray) -> None:
        """The kernels follow these numbers without looking."""
        if len(ids) != count or ids.min() < 0 or ids.max() >= self.shape.vocab:
            raise ConfigError(f"a step of {count} rows needs as many token ids in 0..{self.shape.vocab - 1}")
        if begin < 0 or end > self.max_positions:
            raise ConfigError(f"positions {begin}..{end - 1} leave the rotary table of {self.max_positions} positions")
        if end > table.shape[1] * J.PAGE or table.min() < 0 or table.max() >= self.num_pages:
            raise ConfigError(
                f"{end} positions need page numbers 0..{self.num_pages - 1} in {-(-end // J.PAGE)} columns, "
                f"got a table of {table.shape[1]} columns with pages {table.min()}..{table.max()}"
            )

    def _take_budgets(self, budgets: RowBudgets | None, rows: int) -> None:
        experts = self.shape.experts
        assert experts is not None
        if budgets is None:
            raise ConfigError("a decoder with experts needs budgets")
        if budgets is self._budgets and len(budgets.budget_N) == rows:
            return
        budgets.check(rows, self.shape.layers, experts)
        self._job[J.THRESHOLDS] = budgets.thresholds_BLE.ctypes.data
        self._job[J.BOUNDS] = budgets.bounds_B2.ctypes.data
        self._budgets = budgets

    def _run(self, ids, positions, row_pages, table, parts, selected, logits: int) -> None:
        """One pass over at most MAX_ROWS rows; parts are (sequence, first row, rows, first position)."""
        tiles, partials, max_splits = _tiles(parts, self.shape.heads // self.shape.kv_heads, len(ids))
        if len(selected) > self._selected.shape[0]:
            self._selected = self._buffer(J.X_SELECTED, len(selected), self._x_bytes)
        if max_splits:
            record = 4 * (J.RECORD_HEADER + self.shape.head_dim)
            size = _SPLIT_ROWS * self.shape.heads * max_splits * record
            if size > self._partials.size:
                self._partials = formats.aligned_bytes(size + size // 2)
        job = self._job
        if self.budget is not None:
            last = positions % self.budget.leaf == self.budget.leaf - 1  # keys that complete a leaf
            full = row_pages[last] * self.budget.leaves + positions[last] % J.PAGE // self.budget.leaf
            job[J.FULL_LEAVES], job[J.FULL_LEAF_COUNT] = full.ctypes.data, len(full)
            self._make_room(table.shape[1])
        job[J.ROWS], job[J.THREADS] = len(ids), self.threads
        job[J.IDS], job[J.POSITIONS] = ids.ctypes.data, positions.ctypes.data
        job[J.ROW_PAGES], job[J.ROW_PARTIALS] = row_pages.ctypes.data, partials.ctypes.data
        job[J.TILES], job[J.TILE_COUNT] = tiles.ctypes.data, len(tiles)
        job[J.MAX_SPLITS], job[J.PARTIALS] = max_splits, self._partials.ctypes.data
        job[J.PAGE_TABLE], job[J.PAGE_TABLE_WIDTH] = table.ctypes.data, table.shape[1]
        job[J.SELECTED], job[J.SELECTED_COUNT], job[J.LOGITS] = selected.ctypes.data, len(selected), logits
        self._team.run(job)

    def _workspace(self) -> None:
        s, job = self.shape, self._job
        x_bytes = lambda width: width // grids.GROUP * formats.X_GROUP_BYTES  # noqa: E731
        inner, self._x_bytes = s.heads * s.head_dim, x_bytes(s.hidden)
        self._stream = self._buffer(J.STREAM, MAX_ROWS, 4 * s.hidden).view(np.float32)
        for entry, row_bytes in (
            (J.X, self._x_bytes), (J.QKV, 4 * s.qkv_features), (J.ATTENDED, 4 * inner),
            (J.X_ATTENDED, x_bytes(inner)), (J.X_ACTIVATED, x_bytes(max(s.inner(i) for i in range(s.layers)))),
        ):  # fmt: skip
            self._keep.append(self._buffer(entry, MAX_ROWS, row_bytes))
        self._selected = self._buffer(J.X_SELECTED, 32, self._x_bytes)
        record = J.RECORD_HEADER + s.head_dim
        self._scratch_least = max(4 * J.TILE_VECTORS * (s.head_dim + J.PAGE + 2 * record + 3), 256 * J.ROW_TILE)
        if s.experts is not None:
            self._scratch_least = max(self._scratch_least, 4 * s.experts.padded)
            self._experts_workspace(s.experts)
        self._make_room(0)
        self._keep.append(self._buffer(J.COUNTERS, step.stage_count(s.layers), step.COUNTER_BYTES))
        self._keep.append(self._buffer(J.ZEROS, 1, 64))
        self._keep.append(self._table)
        matmul, attend = kernels(self.target.isa, self.target.kv)
        self._keep += [matmul, attend]
        for entry, value in (
            (J.HIDDEN, s.hidden), (J.HEADS, s.heads), (J.KV_HEADS, s.kv_heads),
            (J.HEAD_DIM, s.head_dim), (J.LAYERS, s.layers), (J.LAYER_TABLE, self._table.ctypes.data),
            (J.BITS, s.bits), (J.CONSTANTS, self._floats(torch.tensor([s.eps, s.scale]))),
            (J.HEAD_BLOCKS, -(-s.vocab // formats.BLOCK)),
            (J.MATMUL, matmul.address), (J.ATTEND, attend.address),
        ):  # fmt: skip
            job[entry] = value
        if self.budget is not None:
            job[J.LEAVES], job[J.KEEP_LEAVES] = self.budget.leaves, self.budget.keep
            job[J.SINK_LEAVES], job[J.LOCAL_LEAVES] = self.budget.sinks, self.budget.local

    def _experts_workspace(self, experts: ExpertsShape) -> None:
        for entry, (rows, row_bytes) in experts.buffers(MAX_ROWS, self.shape.layers).items():
            self._keep.append(self._buffer(entry, rows, row_bytes))
        self._masks = self._buffer(J.MASKS, self.shape.layers, 8 * MAX_ROWS).view(np.int64)
        self._job[J.SCALING] = self._floats(torch.tensor([experts.scaling]))
        for entry, value in experts.constants(MAX_ROWS).items():
            self._job[entry] = value

    def _make_room(self, pages: int) -> None:
        """Scratch memory for sequences of so many pages, and room for what sparse attention chooses among them."""
        size = self._scratch_least
        if self.budget is not None:
            size = max(size, self.budget.scratch_bytes(self.shape.head_dim, pages))
            words = -(-pages * self.budget.leaves // 64)
            if words > self._job[J.SELECTION_WORDS]:
                self._selection = self._buffer(J.SELECTION, MAX_ROWS * self.shape.kv_heads, 8 * words)
                self._job[J.SELECTION_WORDS] = words
        if self.shape.experts is not None:
            size += J.ROW_TILE * self._x_bytes
        if size > self._job[J.SCRATCH_BYTES]:
            size = -(-size // 4096) * 4096
            self._scratch = self._buffer(J.SCRATCH, self.threads, size)
            self._job[J.SCRATCH_BYTES] = size

    def _buffer(self, entry: int, rows: int, row_bytes: int) -> np.ndarray:
        memory = formats.aligned_bytes(rows * row_bytes)
        self._job[entry] = memory.ctypes.data
        return memory.reshape(rows, row_bytes)

    def _floats(self, t: Tensor) -> int:
        memory = formats.aligned_bytes(4 * t.numel())
        memory.view(np.float32)[:] = t.detach().float().cpu().reshape(-1).numpy()
        self._keep.append(memory)
        return memory.ctypes.data

    def _packed8(self, weight: Tensor) -> int:
        """Packs in slices, so that the temporaries of a large vocabulary stay small."""
        rows, inputs = weight.shape
        memory = _pages(formats.packed_bytes(rows, inputs, 8), large=True)
        per_row, place = formats.block_bytes(inputs, 8) // formats.BLOCK, 0
        for part in weight.split(4096):
            size = -(-len(part) // formats.BLOCK) * formats.BLOCK * per_row
            formats.pack(grids.quantize_int8(part), memory[place : place + size])
            place += size
        self._keep.append(memory)
        return memory.ctypes.data

    def _logits_buffer(self, rows: int) -> Tensor:
        if rows > self._logits.shape[0]:
            self._logits = torch.zeros(rows, formats.BLOCK * int(self._job[J.HEAD_BLOCKS]))
        return self._logits[:rows]


def _pages(size: int, large: bool = False) -> np.ndarray:
    """Zeroed memory, committed when touched.

    Args:
        large: in large pages where the system offers them; they are committed whole.
    """
    # private: Python's default is shared memory, which gets large pages only where an administrator says so
    flags = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    memory = mmap.mmap(-1, max(size, 1), **flags)
    if large and hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)[:size]


def _tiles(parts: list[tuple[int, int, int, int]], group: int, rows: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Divide a pass into attention tiles.

    Returns:
        int32[tiles, TILE_FIELDS]; int32[rows] index among split rows or -1; most splits of a row (0 if none is split).
    """
    span = J.PAGE * J.SPLIT_PAGES
    singles = sum(1 for part in parts if part[2] == 1)
    tiles, partials, max_splits, split_rows = [], np.full(rows, -1, np.int32), 0, 0
    for sequence, row, count, position in parts:
        splits = (position + count - 1) // span + 1
        if count == 1 and splits > 1 and singles <= _SPLIT_ROWS:
            tiles += [(sequence, row, 1, s, s + 1) for s in range(splits)]
            partials[row], max_splits, split_rows = split_rows, max(max_splits, splits), split_rows + 1
            continue
        # few rows: smaller tiles, so that there is something to do for every thread
        height = max(1, min(J.TILE_VECTORS // group, -(-count // 4)))
        for r in range(0, count, height):
            n = min(height, count - r)
            tiles.append((sequence, row + r, n, 0, (position + r + n - 1) // span + 1))
    return np.array(tiles, np.int32), partials, max_splits
