"""Experts on packed weights: a gate chooses for each row, and rows touch the weights of what they run.

Three stages of a layer take part. The gate's hidden layer is computed beside the shared expert; whoever finishes the
last of it for a tile of rows chooses for these rows. The next stage runs gate and up projections of the chosen experts,
rows gathered expert by expert, and multiplies the activations by the routing weights. The down projections of shared
and routed experts go to the residual stream in one stage, experts in the order of their numbers.

A row's choice and sums depend on nothing else in the step. `stille.model.routing` is the specification of the choice.

Names: T rows, E experts, R inner width of the gate, C hidden size.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stille.errors import ConfigError
from stille.kernels.cpu import formats
from stille.kernels.cpu import job as J
from stille.kernels.cpu.formats import BLOCK, X_GROUP_BYTES
from stille.kernels.cpu.layers import block_bytes, quantize_row, residual_item
from stille.kernels.cpu.simd import (
    atomic_add,
    atomic_store,
    broadcast,
    copy_span,
    exp_f32,
    field,
    inner,
    load,
    load_f32,
    load_i32,
    load_i64,
    mul,
    prefetch_span,
    quantize_store,
    store,
    store_f32,
    store_i32,
    store_i64,
    swiglu,
)
from stille.kernels.cpu.tiles import call_kernel
from stille.kernels.grids import GROUP

GATES = ("threshold", "top_k")
WEIGHTS = ("unit", "sigmoid", "normalised")
MOST = 63
"""Experts of a layer: they are bits of a signed word."""


@dataclass(frozen=True)
class ExpertsShape:
    """Routed experts of a decoder; what every row runs beside them is the layer's `gate`, `up` and `down`.

    Attributes:
        layers: numbers of the layers that have experts.
        experts: routed ones (E).
        size: neurons of one, a multiple of 16.
        shared: neurons of the shared expert, a multiple of 32, or 0.
        router: inner width of the gate (R), a multiple of 32; 0: one linear map.
        gate, weights: as `ExpertsConfig` of stille.model.routing names them.
        scaling: of normalised weights.
    """

    layers: tuple[int, ...]
    experts: int
    size: int
    shared: int
    router: int = 0
    gate: str = "threshold"
    weights: str = "unit"
    scaling: float = 1.0

    def problems(self) -> list[str]:
        """What the kernels do not cover."""
        found = []
        if not 1 <= self.experts <= MOST:
            found.append(f"{self.experts} experts (1 to {MOST})")
        for name, value, unit, least in (
            ("expert size", self.size, BLOCK, BLOCK), ("shared size", self.shared, GROUP, 0),
            ("router size", self.router, GROUP, 0),
        ):  # fmt: skip
            if value < least or value % unit:
                found.append(f"{name} {value} (a multiple of {unit})")
        if self.gate not in GATES or self.weights not in WEIGHTS:
            found.append(f"gate {self.gate!r} with weights {self.weights!r}")
        return found

    @property
    def padded(self) -> int:
        """Experts, in whole vectors."""
        return -(-self.experts // BLOCK) * BLOCK

    @property
    def groups(self) -> int:
        """Groups of activations of one expert."""
        return -(-self.size // GROUP)

    def packed_bytes(self, hidden: int, bits: int) -> int:
        """Of a layer's gate and routed experts."""
        gate = formats.packed_bytes(self.experts, self.router or hidden, 8)
        if self.router:
            gate += formats.packed_bytes(self.router, hidden, 8)
        gate_up = formats.packed_bytes(2 * self.size, hidden, bits)
        return gate + self.experts * (gate_up + formats.packed_bytes(hidden, GROUP * self.groups, bits))

    def buffers(self, most_rows: int, layers: int) -> dict[int, tuple[int, int]]:
        """Workspace of steps of at most so many rows, by field: rows and bytes of one."""
        tiles, x_router = most_rows // J.ROW_TILE, self.router // GROUP * X_GROUP_BYTES
        return {
            J.ROUTER_HIDDEN: (most_rows, 4 * self.router), J.X_ROUTER: (most_rows, x_router),
            J.SCORES: (most_rows, 4 * self.padded), J.ROUTE_WEIGHTS: (most_rows, 4 * self.padded),
            J.TILE_MASKS: (layers, 8 * tiles), J.ROUTERS_DONE: (tiles, 8),
            J.ROUTE_ROWS: (self.experts, 4 * most_rows), J.ROUTE_COUNTS: (self.experts, 8 * tiles),
            J.X_ROUTED: (self.experts, most_rows * self.groups * X_GROUP_BYTES),
        }  # fmt: skip

    def constants(self, most_rows: int) -> dict[int, int]:
        """Numbers that the kernels read, by field."""
        return {
            J.EXPERTS: self.experts, J.EXPERT_SIZE: self.size, J.ROUTER_SIZE: self.router,
            J.GATE_KIND: GATES.index(self.gate), J.WEIGHT_KIND: WEIGHTS.index(self.weights),
            J.MASK_ROWS: most_rows, J.MASK_TILES: most_rows // J.ROW_TILE,
        }  # fmt: skip


@dataclass
class ExpertTensors:
    """Routed experts of one layer, floating point; None where the model has no such part.

    Attributes:
        gate_up_E2IC, down_ECI: the experts, gate rows first.
        router_down_RC, router_up_ER, router_bias_E: the gate; up is [E, C] if there is no inner layer.
        scale_E: learned share of the score in "unit" weights.
        load_bias_E: of top-k.
    """

    gate_up_E2IC: Tensor
    down_ECI: Tensor
    router_up_ER: Tensor
    router_bias_E: Tensor
    router_down_RC: Tensor | None = None
    scale_E: Tensor | None = None
    load_bias_E: Tensor | None = None

    def matrices(self, shape: ExpertsShape) -> dict[int, list[tuple[Tensor, int | None]]]:
        """Matrices to pack one behind the other, by field, with their bits (None: those of the layer)."""
        E, size = shape.experts, shape.size
        gate_up = self.gate_up_E2IC.reshape(E, 2, size // BLOCK, BLOCK, -1).transpose(1, 2)
        padding = GROUP * shape.groups - size
        down = torch.nn.functional.pad(self.down_ECI, (0, padding)) if padding else self.down_ECI
        experts = zip(gate_up.reshape(E, 2 * size, -1), down, strict=True)
        found: dict[int, list[tuple[Tensor, int | None]]] = {
            J.ROUTER_UP: [(self.router_up_ER, 8)],
            J.EXPERT_WEIGHTS: [(matrix, None) for expert in experts for matrix in expert],
        }
        if self.router_down_RC is not None:
            found[J.ROUTER_DOWN] = [(self.router_down_RC, 8)]
        return found

    def vectors(self, shape: ExpertsShape) -> dict[int, Tensor]:
        """Floats by expert, padded, by field."""
        padded = shape.padded
        given = {J.ROUTER_BIAS: self.router_bias_E, J.LOAD_BIAS: self.load_bias_E, J.EXPERT_SCALES: self.scale_E}
        found = {}
        for place, value in given.items():
            found[place] = torch.zeros(padded)
            if value is not None:
                found[place][: shape.experts] = value.detach().float()
        return found


@dataclass
class RowBudgets:
    """How many experts the rows of a step run; not to be changed once a decoder has seen it.

    Attributes:
        thresholds_BLE: float32, for each budget and layer of the decoder, E padded; not read by top-k.
        bounds_B2: int32, least and most experts of a row (top-k: the number, twice).
        budget_N: int32, which budget each row has.
    """

    thresholds_BLE: np.ndarray
    bounds_B2: np.ndarray
    budget_N: np.ndarray

    def check(self, rows: int, layers: int, shape: ExpertsShape) -> None:
        """The kernels follow these numbers without looking.

        Raises:
            ConfigError: arrays of other shapes or dtypes, or numbers that lead outside.
        """
        budgets = len(self.bounds_B2)
        for name, want, kind in (
            ("thresholds_BLE", (budgets, layers, shape.padded), np.float32),
            ("bounds_B2", (budgets, 2), np.int32),
            ("budget_N", (rows,), np.int32),
        ):
            array = getattr(self, name)
            if array.shape != want or array.dtype != kind or not array.flags.c_contiguous:
                raise ConfigError(f"{name} must be {kind.__name__} {want}, got {array.dtype} {array.shape}")
        which, bounds = self.budget_N, self.bounds_B2
        if which.min() < 0 or which.max() >= budgets or bounds.min() < 0 or bounds[:, 1].max() > shape.experts:
            raise ConfigError(
                f"budgets {which.min()}..{which.max()} of {budgets} with bounds {bounds.min(0)}..{bounds.max(0)} lead "
                f"outside of {shape.experts} experts"
            )


# --------------------------------------------------------------------------- the gate


@inner
def router_blocks(job):
    """Work items of the gate of one tile of rows."""
    return max(1, field(job, J.ROUTER_SIZE) // BLOCK)


@inner
def router_item(job, layer, item, scratch):
    """16 inner features of the gate for a tile of rows; after the tile's last ones, its choice."""
    blocks, groups, inner_size = router_blocks(job), field(job, J.HIDDEN) // GROUP, field(job, J.ROUTER_SIZE)
    tile, block = item // blocks, item % blocks
    first = tile * J.ROW_TILE
    rows = min(J.ROW_TILE, field(job, J.ROWS) - first)
    if inner_size > 0:
        stride, x_stride = 4 * inner_size, groups * X_GROUP_BYTES
        x, out = field(job, J.X) + first * x_stride, field(job, J.ROUTER_HIDDEN) + first * stride + 64 * block
        weight = field(layer, J.ROUTER_DOWN) + block * block_bytes(8, groups)
        call_kernel(field(job, J.MATMUL), 8, weight, groups, rows, x, x_stride, field(job, J.ZEROS), 0, out, stride)
        one = broadcast(1.0)
        for r in range(rows):
            store(out + r * stride, swiglu(load(out + r * stride), one))
    done = field(job, J.ROUTERS_DONE) + 8 * tile
    if atomic_add(done, 1) == blocks - 1:
        atomic_store(done, 0)
        _choose_tile(job, layer, tile, first, rows, scratch)


@inner
def _gate_up_bytes(job):
    return 2 * (field(job, J.EXPERT_SIZE) // BLOCK) * block_bytes(field(job, J.BITS), field(job, J.HIDDEN) // GROUP)


@inner
def _weights(job, layer, expert):
    """Where an expert begins: what is requested ahead at the end of its gate and up is its down."""
    groups = (field(job, J.EXPERT_SIZE) + GROUP - 1) // GROUP
    down = field(job, J.HIDDEN) // BLOCK * block_bytes(field(job, J.BITS), groups)
    return field(layer, J.EXPERT_WEIGHTS) + expert * (_gate_up_bytes(job) + down)


@inner
def _request(job, layer, mask):
    """Start loading the beginning of chosen experts; the loops request the rest as they go."""
    expert = 0
    while mask != 0:
        if mask & 1:
            prefetch_span(_weights(job, layer, expert), 4096)
        mask, expert = mask >> 1, expert + 1


@inner
def _tile_masks(job, layer):
    """Each layer has its own: a thread that comes late still has to count the items of a stage as the others did."""
    return field(job, J.TILE_MASKS) + 8 * field(job, J.MASK_TILES) * field(layer, J.NUMBER)


@inner
def _choose_tile(job, layer, tile, first, rows, scratch):
    experts, inner_size = field(job, J.EXPERTS), field(job, J.ROUTER_SIZE)
    groups, x = field(job, J.HIDDEN) // GROUP, field(job, J.X)
    if inner_size > 0:
        groups, x = inner_size // GROUP, field(job, J.X_ROUTER)
        for row in range(first, first + rows):
            hidden = field(job, J.ROUTER_HIDDEN) + 4 * inner_size * row
            quantize_row(hidden, inner_size, x + groups * X_GROUP_BYTES * row)
    blocks = (experts + BLOCK - 1) // BLOCK
    stride, x_stride, matmul = 64 * blocks, groups * X_GROUP_BYTES, field(job, J.MATMUL)
    for b in range(blocks):
        weight, bias = field(layer, J.ROUTER_UP) + b * block_bytes(8, groups), field(layer, J.ROUTER_BIAS) + 64 * b
        out = field(job, J.SCORES) + first * stride + 64 * b
        call_kernel(matmul, 8, weight, groups, rows, x + first * x_stride, x_stride, bias, 0, out, stride)
    masks = field(job, J.MASKS) + 8 * field(job, J.MASK_ROWS) * field(layer, J.NUMBER)
    of_tile = 0
    for row in range(first, first + rows):
        mask = _choose(job, layer, row, scratch)
        store_i64(masks + 8 * row, mask)
        of_tile |= mask
    _request(job, layer, of_tile)
    store_i64(_tile_masks(job, layer) + 8 * tile, of_tile)


@inner
def _choose(job, layer, row, scratch):
    """Experts of a row as bits; their weights go to ROUTE_WEIGHTS. scratch: floats [E]."""
    experts, top_k = field(job, J.EXPERTS), field(job, J.GATE_KIND) == 1
    stride = 64 * ((experts + BLOCK - 1) // BLOCK)
    scores, weights = field(job, J.SCORES) + stride * row, field(job, J.ROUTE_WEIGHTS) + stride * row
    budget = load_i32(field(job, J.ROW_BUDGETS) + 4 * row)
    thresholds = field(job, J.THRESHOLDS) + stride * (budget * field(job, J.LAYERS) + field(layer, J.NUMBER))
    least, most = load_i32(field(job, J.BOUNDS) + 8 * budget), load_i32(field(job, J.BOUNDS) + 8 * budget + 4)
    mask, count = 0, 0
    for e in range(experts):
        score = load_f32(scores + 4 * e)
        chance = 1.0 / (1.0 + exp_f32(-score))
        store_f32(weights + 4 * e, chance)
        if top_k:
            margin = chance + load_f32(field(layer, J.LOAD_BIAS) + 4 * e)
        else:
            margin = score - load_f32(thresholds + 4 * e)
            if margin > 0.0:
                mask, count = mask | (1 << e), count + 1
        store_f32(scratch + 4 * e, margin)
    wanted = min(max(count, least), most)
    if wanted != count:  # the largest margins, the earlier expert first if equal
        mask = 0
        for _ in range(wanted):
            best = -1
            for e in range(experts):
                if mask >> e & 1 == 0 and (best < 0 or load_f32(scratch + 4 * e) > load_f32(scratch + 4 * best)):
                    best = e
            mask |= 1 << best
    kind, factor = field(job, J.WEIGHT_KIND), 1.0
    if kind == 2:
        total = 0.0
        for e in range(experts):
            if mask >> e & 1:
                total += load_f32(weights + 4 * e)
        factor = load_f32(field(job, J.SCALING)) / max(total, 1e-20)
    for e in range(experts):
        chance = load_f32(weights + 4 * e)
        if kind == 0:
            store_f32(weights + 4 * e, 1.0 + load_f32(field(layer, J.EXPERT_SCALES) + 4 * e) * chance)
        elif kind == 2:
            store_f32(weights + 4 * e, factor * chance)
    return mask


# --------------------------------------------------------------------------- the experts


@inner
def _bits(mask):
    count = 0
    while mask != 0:
        mask, count = mask & (mask - 1), count + 1
    return count


@inner
def _nth(mask, n):
    """Place of the n-th bit that is set."""
    place = 0
    while True:
        if mask >> place & 1:
            if n == 0:
                return place
            n -= 1
        place += 1


@inner
def _tiles(job):
    return (field(job, J.ROWS) + J.ROW_TILE - 1) // J.ROW_TILE


@inner
def expert_items(job, layer):
    """Items of the stage of gate and up projections. With one tile, only of experts that one of its rows runs."""
    parts, tiles = (field(job, J.EXPERT_SIZE) + GROUP - 1) // GROUP, _tiles(job)
    if tiles == 1:
        return parts * _bits(load_i64(_tile_masks(job, layer)))
    return parts * tiles * field(job, J.EXPERTS)


@inner
def expert_item(job, layer, item, scratch):
    """32 neurons of one expert for the rows of a tile that run it: silu(gate) * up * weight, quantised."""
    experts, size, bits = field(job, J.EXPERTS), field(job, J.EXPERT_SIZE), field(job, J.BITS)
    parts, tiles, groups = (size + GROUP - 1) // GROUP, _tiles(job), field(job, J.HIDDEN) // GROUP
    part, which = item % parts, item // parts
    if tiles == 1:
        tile, expert = 0, _nth(load_i64(_tile_masks(job, layer)), which)
    else:
        tile, expert = which // experts, which % experts
    first, most = tile * J.ROW_TILE, field(job, J.MASK_ROWS)
    masks = field(job, J.MASKS) + 8 * most * field(layer, J.NUMBER)
    listed, x_bytes = field(job, J.ROUTE_ROWS) + 4 * (expert * most + first), groups * X_GROUP_BYTES
    # The end of the scratch memory belongs to gathered rows alone: attention multiplies what it finds in its part by
    # zero, and bytes of quantised rows may look like infinities.
    x, gathered, count = field(job, J.X), scratch + field(job, J.SCRATCH_BYTES) - J.ROW_TILE * x_bytes, 0
    end = min(first + J.ROW_TILE, field(job, J.ROWS))
    if end == 1:
        gathered = x  # nothing to gather
    for row in range(first, end):
        if load_i64(masks + 8 * row) >> expert & 1:
            if end > 1:
                copy_span(gathered + count * x_bytes, x + row * x_bytes, x_bytes)
            if part == 0:
                store_i32(listed + 4 * count, row)
            count += 1
    if part == 0:
        store_i64(field(job, J.ROUTE_COUNTS) + 8 * (expert * field(job, J.MASK_TILES) + tile), count)
    if count == 0:
        return
    zeros, step, matmul = field(job, J.ZEROS), block_bytes(bits, groups), field(job, J.MATMUL)
    halves = min(2, size // BLOCK - 2 * part)
    for b in range(halves):
        weight = _weights(job, layer, expert) + 2 * (2 * part + b) * step
        call_kernel(matmul, bits, weight, groups, count, gathered, x_bytes, zeros, 0, scratch + 64 * b, 256)
        call_kernel(
            matmul, bits, weight + step, groups, count, gathered, x_bytes, zeros, 0, scratch + 128 + 64 * b, 256
        )  # fmt: skip
    out = field(job, J.X_ROUTED) + (expert * most + first) * parts * X_GROUP_BYTES + part * X_GROUP_BYTES
    stride, k = 64 * ((experts + BLOCK - 1) // BLOCK), 0
    for row in range(first, end):
        if load_i64(masks + 8 * row) >> expert & 1:
            line = scratch + 256 * k
            weight = broadcast(load_f32(field(job, J.ROUTE_WEIGHTS) + stride * row + 4 * expert))
            a, b = mul(swiglu(load(line), load(line + 128)), weight), broadcast(0.0)
            if halves == 2:
                b = mul(swiglu(load(line + 64), load(line + 192)), weight)
            quantize_store(out + k * parts * X_GROUP_BYTES, a, b)
            k += 1


@inner
def down_item(job, layer, item, scratch):
    """16 features of the down projections, shared and routed, for a tile of rows; adds to the residual stream."""
    residual_item(job, field(layer, J.DOWN_WEIGHT), field(job, J.X_ACTIVATED), field(layer, J.INNER), item)
    if field(layer, J.ROUTER_UP) == 0:
        return
    width, bits, most = field(job, J.HIDDEN), field(job, J.BITS), field(job, J.MASK_ROWS)
    blocks, groups = width // BLOCK, (field(job, J.EXPERT_SIZE) + GROUP - 1) // GROUP
    block, tile = item % blocks, item // blocks
    first, step, x_bytes = tile * J.ROW_TILE, block_bytes(bits, groups), groups * X_GROUP_BYTES
    stream, stride, matmul = field(job, J.STREAM) + 64 * block, 4 * width, field(job, J.MATMUL)
    mask, expert = load_i64(_tile_masks(job, layer) + 8 * tile), 0
    while mask != 0:
        if mask & 1:
            count = load_i64(field(job, J.ROUTE_COUNTS) + 8 * (expert * field(job, J.MASK_TILES) + tile))
            weight = _weights(job, layer, expert) + _gate_up_bytes(job) + block * step
            x = field(job, J.X_ROUTED) + (expert * most + first) * x_bytes
            listed = field(job, J.ROUTE_ROWS) + 4 * (expert * most + first)
            if count == 1:
                place = stream + stride * load_i32(listed)
                call_kernel(matmul, bits, weight, groups, 1, x, x_bytes, place, 0, place, 0)
            else:
                for k in range(count):
                    store(scratch + 64 * k, load(stream + stride * load_i32(listed + 4 * k)))
                call_kernel(matmul, bits, weight, groups, count, x, x_bytes, scratch, 64, scratch, 64)
                for k in range(count):
                    store(stream + stride * load_i32(listed + 4 * k), load(scratch + 64 * k))
        mask, expert = mask >> 1, expert + 1
