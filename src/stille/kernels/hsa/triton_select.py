"""Triton: which leaves each tile reads. No host sync; launches depend on shapes only, so a graph can be captured."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# Triton's language is Python in looks only; its types are beyond the checker.

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from stille.kernels.hsa.config import COARSE, TILE, HSAConfig
from stille.kernels.hsa.reference import hadamard_rotation
from stille.kernels.hsa.triton_score import (
    centre_mass_kernel,
    leaf_mass_kernel,
    row_share_kernel,
    span_share_kernel,
    summarise_kernel,
    tail_mass_kernel,
    unit_means_kernel,
)
from stille.kernels.triton_support import next_power_of_2

LOG2_E = 1.4426950408889634
SCORE_ROWS = 64  # rows of mean queries in a scoring program


# Sizes that vary from call to call are not specialised: a server would compile for its prompts one after the other.
@triton.jit(
    do_not_specialize=[
        "rows", "start", "m", "coverage", "tail", "tiles", "cand_width", "cand_spans", "chosen_stride", "row_stride",
        "rows_stride",
    ]
)  # fmt: skip
def select_kernel(
    mass_ptr, centre_ptr, rows_ptr, cand_ptr, cand_count_ptr, index_ptr, count_ptr, chosen_ptr, length_ptr, rows,
    row_stride, rows_stride, start, keep, m, tail, coverage, tiles, heads, cand_width, tiles_per_cand, cand_spans,
    chosen_stride, index_stride,
    SPAN: tl.constexpr, IS_TAIL: tl.constexpr, SHARES: tl.constexpr, ROWS: tl.constexpr, G: tl.constexpr,
    W: tl.constexpr, TILE: tl.constexpr, LEAF: tl.constexpr, SPAN_TILE: tl.constexpr, SINKS: tl.constexpr,
    LOCAL: tl.constexpr, HAS_CENTRE: tl.constexpr, HAS_ROWS: tl.constexpr, HAS_CAND: tl.constexpr,
    HAS_CHOSEN: tl.constexpr, HAS_COVERAGE: tl.constexpr, HAS_LENGTH: tl.constexpr,
):  # fmt: skip
    """Picks the best past leaves of a tile of one query head and writes their ids, ascending.

    With SHARES, `mass` holds shares already, a row for each program; with HAS_ROWS, what single rows add stands in
    `rows`. With SPAN, TILE is a span of tiles of SPAN_TILE tokens: it picks candidates. With IS_TAIL, programs are the
    tiles of the last `tail` queries, from the end.
    The k-th best score is found by bisecting the bits of the (positive) floats: exact, deterministic, no sort.
    """
    t, s = tl.program_id(0), tl.program_id(1).to(tl.int64)
    mass_ptr += (s * tl.num_programs(0) + t) * row_stride if SHARES else 0
    if HAS_LENGTH:
        m = tl.load(length_ptr + s // heads).to(tl.int32)
    if IS_TAIL:
        t = (m - 1) // TILE - t
        if (t < 0) | (t < tl.maximum(m - tail, 0) // TILE):
            return
    if HAS_LENGTH:  # noqa: SIM102 (settled when compiling)
        if t * TILE >= m:  # padding: nothing is read
            tl.store(count_ptr + s * tiles + t, 0)
            return
    col = tl.arange(0, W)
    first = start + t * TILE
    own = first // LEAF
    if SPAN:  # leaves before the span's last tile; those inside the span are always candidates
        bound = tl.minimum(start + (t + 1) * TILE - SPAN_TILE, start + (m - 1) // SPAN_TILE * SPAN_TILE) // LEAF
        own_count = 0
    else:
        bound = own
        own_count = (tl.minimum(first + TILE, start + m) - 1) // LEAF - own + 1
    if HAS_CAND:
        cand = (s // G) * cand_spans + t // tiles_per_cand
        have = tl.load(cand_count_ptr + cand)
        leaf = tl.load(cand_ptr + cand * cand_width + col, mask=col < have, other=2147483647)
    else:
        leaf = col
    valid = leaf < bound
    if SHARES:
        score = tl.load(mass_ptr + col, mask=leaf < own, other=0.0)
    else:
        i = t * ROWS + tl.arange(0, ROWS)
        row = (s // G) * rows + i * G + s % G
        ok = (i * G < rows)[:, None] & valid[None, :]
        x = tl.load(mass_ptr + row[:, None] * row_stride + col[None, :], mask=ok, other=float("-inf"))
        if HAS_CENTRE:
            x += tl.load(centre_ptr + row[:, None] * row_stride + col[None, :], mask=ok, other=0.0)
        x = tl.where(ok, x, float("-inf"))
        p = tl.exp2(x - tl.maximum(tl.max(x, 1), -1e30)[:, None])
        score = tl.sum(p / tl.maximum(tl.sum(p, 1), 1e-30)[:, None], 0) / ROWS
    share = score
    if HAS_ROWS:
        score += tl.load(rows_ptr + (s * tiles + t) * rows_stride + col, mask=leaf < own, other=0.0)
    forced = valid & ((leaf < SINKS) | (leaf >= own - LOCAL))
    free = valid & (leaf >= SINKS) & (leaf < own - LOCAL)
    bits = tl.where(free, score.to(tl.int32, bitcast=True), -1)
    need = tl.maximum(keep - own_count - tl.sum(forced.to(tl.int32), 0), 0)
    threshold = 0
    for i in range(31):
        trial = threshold | (1 << (30 - i))
        threshold = tl.where(tl.sum((bits >= trial).to(tl.int32), 0) >= need, trial, threshold)
    sure = bits > threshold  # nothing, if nothing is needed: then the threshold is the largest integer
    tie = bits == threshold
    ties = need - tl.sum(sure.to(tl.int32), 0)
    sure |= tie & (tl.cumsum(tie.to(tl.int32), 0) <= ties)
    if HAS_COVERAGE:  # the largest threshold whose leaves reach the share wanted
        mass = tl.where(free, share, 0.0)
        lack = coverage * tl.sum(tl.where(valid, share, 0.0), 0) - tl.sum(tl.where(forced, share, 0.0), 0)
        enough = 0
        for i in range(31):
            trial = enough | (1 << (30 - i))
            enough = tl.where(tl.sum(tl.where(bits >= trial, mass, 0.0), 0) >= lack, trial, enough)
        sure &= bits >= enough
    chosen = forced | sure
    place = tl.cumsum(chosen.to(tl.int32), 0) - 1
    tl.store(index_ptr + (s * tiles + t) * index_stride + place, leaf, mask=chosen & (place < index_stride))
    tl.store(count_ptr + s * tiles + t, tl.minimum(tl.sum(chosen.to(tl.int32), 0), index_stride))
    if HAS_CHOSEN:
        tl.store(chosen_ptr + (s * tiles + t) * chosen_stride + leaf, chosen.to(tl.uint8), mask=valid)


@dataclass
class KeyMap:
    """What is scored for the keys.

    Attributes:
        code_KND: the keys themselves, or int8 signs (padded to whole leaves).
        scale_KN: scale of each key's signs; None for keys.
        mean_KBD: leaf means; None where the keys themselves are all that is scored.
        stand_KPBD: mean and outliers of complete leaves, where single rows search.
        n: keys.
    """

    code_KND: Tensor
    scale_KN: Tensor | None
    mean_KBD: Tensor | None
    stand_KPBD: Tensor | None
    n: int


@dataclass
class Selection:
    """What each tile reads.

    Attributes:
        index_HTL: int32, ids of past leaves, ascending; the first `count` of each row. A tile adds its own leaves.
        count_HT: int32.
        chosen_HTB: uint8 map of the same, defined for leaves before the tile; only for the residual.
        unit_means_KRD: mean queries, rows ordered (unit, head of the group).
        units: of a head.
    """

    index_HTL: Tensor
    count_HT: Tensor
    chosen_HTB: Tensor | None
    unit_means_KRD: Tensor
    units: int


_rotations: dict[tuple[int, torch.device, torch.dtype], Tensor] = {}


def _rotation(dim: int, like: Tensor) -> Tensor:
    key = (dim, like.device, like.dtype)
    if key not in _rotations:
        _rotations[key] = hadamard_rotation(dim).to(like.device, like.dtype)
    return _rotations[key]


def map_keys(k_KND: Tensor, config: HSAConfig) -> KeyMap:
    """One pass over the keys for means and codes; none at all where the keys themselves are all that is scored."""
    heads, n, dim = k_KND.shape
    sign, per = config.codes == "sign", 1 + config.outliers if config.row_weight else 0
    if not (sign or per or config.uses_candidates(n)):
        return KeyMap(k_KND, None, None, None, n)
    leaves, dev = triton.cdiv(n, config.leaf), k_KND.device
    mean = torch.empty(heads, leaves, dim, device=dev, dtype=k_KND.dtype)
    stand = torch.empty(heads, per, leaves, dim, device=dev, dtype=k_KND.dtype) if per else None
    code, scale = k_KND, None
    if sign:
        code = torch.empty(heads, leaves * config.leaf, dim, device=dev, dtype=torch.int8)
        scale = torch.empty(heads, leaves * config.leaf, device=dev, dtype=torch.float32)
    summarise_kernel[(leaves, heads)](
        k_KND, _rotation(dim, k_KND) if sign else mean, mean, mean if stand is None else stand,
        code, mean if scale is None else scale, n, k_KND.stride(0), k_KND.stride(1), leaves, D=dim,
        BLOCK_D=next_power_of_2(dim), LEAF=config.leaf, PER=per, SIGN=sign, num_warps=4,
    )  # fmt: skip
    return KeyMap(code, scale, mean, stand, n)


def select(
    q_HMD: Tensor,
    k_KND: Tensor,
    scale: float,
    config: HSAConfig,
    *,
    lengths_B: Tensor | None = None,
    want_map: bool = False,
) -> Selection:
    """The leaves that each tile of 128 queries reads; see `reference.select`.

    Args:
        q_HMD: the last M of the N positions.
        k_KND: all keys.
        scale: factor of the scores.
        lengths_B: queries (and keys) that each of B equal groups of heads really has; None: M.
        want_map: fill `chosen_HTB`.
    """
    heads, m, _ = q_HMD.shape
    k_heads, leaf, unit, dev = k_KND.shape[0], config.leaf, config.unit, q_HMD.device
    keys = map_keys(k_KND, config)
    groups, start, leaves = heads // k_heads, keys.n - m, triton.cdiv(keys.n, leaf)
    units, tiles, keep = triton.cdiv(m, unit), triton.cdiv(m, TILE), config.budget // leaf
    rows, factor = units * groups, scale * LOG2_E

    sign, has_cand = config.codes == "sign", config.uses_candidates(keys.n)
    mean_q, code_q, scale_q = _unit_means(q_HMD, k_heads, factor, config)
    cand = cand_count = mean_q
    spans, width = 0, leaves
    if has_cand:
        cand, cand_count = _candidates(mean_q, keys, m, groups, factor, config)
        spans, width = cand.shape[1:]
    mass, centre = _unit_masses(mean_q, code_q, scale_q, keys, cand, cand_count, m, width, groups, factor, config)
    alone = None
    if keys.stand_KPBD is not None:
        alone = _row_shares(q_HMD, keys, cand, cand_count, spans, width, factor, config)

    index = torch.empty(heads, tiles, keep, device=dev, dtype=torch.int32)
    count = torch.empty(heads, tiles, device=dev, dtype=torch.int32)
    chosen = None
    if want_map:  # with candidates, most leaves are never looked at
        chosen = (torch.zeros if has_cand else torch.empty)(heads, tiles, leaves, device=dev, dtype=torch.uint8)
    per_tile, w = TILE // unit, _padded(width)
    lengths, batch = (count, 1) if lengths_B is None else (lengths_B, lengths_B.shape[0])
    forced = dict(
        TILE=TILE, LEAF=leaf, SPAN_TILE=TILE, SINKS=config.sinks // leaf, LOCAL=config.local // leaf,
        HAS_CHOSEN=want_map, HAS_LENGTH=lengths_B is not None,
    )  # fmt: skip
    select_kernel[(tiles, heads)](
        mass, centre, mass if alone is None else alone, cand, cand_count, index, count,
        count if chosen is None else chosen, lengths, rows, mass.stride(1), 0 if alone is None else alone.stride(0),
        start, keep, m, 0, config.coverage or 1.0, tiles, heads // batch, width, config.span // TILE,
        spans, leaves, keep, SPAN=False, IS_TAIL=False, SHARES=False, ROWS=per_tile, G=groups, W=w, HAS_CENTRE=sign,
        HAS_ROWS=alone is not None, HAS_CAND=has_cand, HAS_COVERAGE=config.coverage is not None,
        num_warps=_select_warps(w * max(1, per_tile // 2)), **forced,
    )  # fmt: skip
    if config.tail:
        share = _tail_shares(q_HMD, k_KND, lengths_B, factor, config)
        select_kernel[(share.shape[1], heads)](
            share, share, share, cand, cand_count, index, count, count if chosen is None else chosen, lengths, 0,
            leaves, 0, start, keep, m, config.tail, 1.0, tiles, heads // batch, leaves, 1, 0, leaves, keep, SPAN=False,
            IS_TAIL=True, SHARES=True, ROWS=1, G=groups, W=_padded(leaves), HAS_CENTRE=False, HAS_ROWS=False,
            HAS_CAND=False, HAS_COVERAGE=False, num_warps=_select_warps(_padded(leaves)), **forced,
        )  # fmt: skip
    return Selection(index, count, chosen, mean_q, units)


def _unit_means(q_HMD: Tensor, k_heads: int, factor: float, config: HSAConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Mean queries [K, R, D], and for signs the same rotated at 8 bits with their scales [K, R]."""
    heads, m, dim = q_HMD.shape
    units, sign = triton.cdiv(m, config.unit), config.codes == "sign"
    rows, dev = units * heads // k_heads, q_HMD.device
    mean = torch.empty(k_heads, rows, dim, device=dev, dtype=q_HMD.dtype)
    code = scale = mean
    if sign:
        code = torch.empty(k_heads, rows, dim, device=dev, dtype=torch.int8)
        scale = torch.empty(k_heads, rows, device=dev, dtype=torch.float32)
    unit_means_kernel[(triton.cdiv(units, 16), heads)](
        q_HMD, _rotation(dim, q_HMD) if sign else mean, mean, code, scale, m, units, q_HMD.stride(0), q_HMD.stride(1),
        factor, G=heads // k_heads, D=dim, BLOCK_D=next_power_of_2(dim), UNIT=config.unit, SIGN=sign, num_warps=4,
    )  # fmt: skip
    return mean, code, scale


def _unit_masses(
    mean_q: Tensor, code_q: Tensor, scale_q: Tensor, keys: KeyMap, cand: Tensor, cand_count: Tensor, m: int,
    width: int, groups: int, factor: float, config: HSAConfig,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Log-masses of leaves or candidates for each unit [K, R, width], and for signs the part of the leaves' means."""
    (k_heads, rows, dim), leaf, unit, n = mean_q.shape, config.leaf, config.unit, keys.n
    start, leaves, sign, has_cand = n - m, triton.cdiv(n, leaf), config.codes == "sign", config.uses_candidates(n)
    code_k, scale_k, dev = keys.code_KND, keys.scale_KN, mean_q.device
    tokens = config.span if has_cand else max(TILE, min(4096, SCORE_ROWS // groups * unit) // TILE * TILE)
    blocks, per_block = triton.cdiv(m, tokens), tokens // unit
    common = dict(
        UNITS=per_block, BLOCK_R=max(16, next_power_of_2(per_block * groups)), TILE=TILE, HAS_CAND=has_cand, G=groups,
        UNIT=unit, D=dim, BLOCK_D=next_power_of_2(dim), LEAF=leaf, num_warps=4, num_stages=3,
    )  # fmt: skip
    mass = torch.empty(k_heads, rows, triton.cdiv(width, 16) * 16, device=dev, dtype=torch.float32)
    leaf_mass_kernel[(blocks, k_heads)](
        code_q, scale_q, code_k, mass if scale_k is None else scale_k, cand, cand_count, mass, rows, mass.stride(1), n,
        code_k.stride(0), code_k.stride(1), 0 if scale_k is None else scale_k.stride(0), start, leaves, width, factor,
        STEP=max(1, 128 // leaf), SIGN=sign, STAGES=3, **common,
    )  # fmt: skip
    centre = mass
    if sign:
        centre = torch.empty_like(mass)
        centre_mass_kernel[(blocks, k_heads)](
            mean_q, keys.mean_KBD, cand, cand_count, centre, rows, centre.stride(1), leaves, start, width, factor,
            STEP=64, **common,
        )  # fmt: skip
    return mass, centre


def _row_shares(
    q_HMD: Tensor, keys: KeyMap, cand: Tensor, cand_count: Tensor, spans: int, width: int, factor: float,
    config: HSAConfig,
) -> Tensor:  # fmt: skip
    """Weighted shares [H * T, width] that single rows give to leaves or candidates."""
    assert keys.stand_KPBD is not None
    (heads, m, dim), (k_heads, per, leaves, _) = q_HMD.shape, keys.stand_KPBD.shape
    tiles, block_d = triton.cdiv(m, TILE), next_power_of_2(dim)
    share = torch.empty(heads * tiles, triton.cdiv(width, 16) * 16, device=q_HMD.device, dtype=torch.float32)
    held = next_power_of_2(per) * block_d * q_HMD.element_size()  # bytes that stand for a leaf, or some more
    step = min(64, max(16, 65536 // held))
    warps = 8 if held > 512 else 4
    row_share_kernel[(tiles, heads)](
        q_HMD, keys.stand_KPBD, cand, cand_count, share, m, keys.n - m, q_HMD.stride(0), q_HMD.stride(1), leaves,
        share.stride(0), width, spans, config.span // TILE, factor, config.row_weight,
        G=heads // k_heads, TILE=TILE, D=dim, BLOCK_D=block_d, LEAF=config.leaf, PER=per, STEP=step,
        WIDE=64 if warps == 4 or block_d > 128 else 128, HAS_CAND=config.uses_candidates(keys.n), num_warps=warps,
        num_stages=2 if warps == 8 else 3,
    )  # fmt: skip
    return share


def _tail_shares(q_HMD: Tensor, k_KND: Tensor, lengths_B: Tensor | None, factor: float, config: HSAConfig) -> Tensor:
    """[H, E, leaves]: largest share of each leaf in any row of the E last tiles, counted from the end."""
    (heads, m, dim), n = q_HMD.shape, k_KND.shape[1]
    leaf, leaves, batch = config.leaf, triton.cdiv(n, config.leaf), 1 if lengths_B is None else lengths_B.shape[0]
    # Where the end is not known here, the tail may straddle one tile more.
    late = triton.cdiv(m, TILE) - max(0, m - config.tail) // TILE
    late = late if lengths_B is None else min(triton.cdiv(m, TILE), triton.cdiv(config.tail, TILE) + 1)
    mass = torch.empty(heads, late, TILE, leaves, device=q_HMD.device, dtype=torch.float32)
    step = max(1, 128 // leaf)
    tail_mass_kernel[(triton.cdiv(leaves, step), late, heads)](
        q_HMD, k_KND, mass if lengths_B is None else lengths_B, mass, m, n, n - m, config.tail, q_HMD.stride(0),
        q_HMD.stride(1), k_KND.stride(0), k_KND.stride(1), leaves, heads // batch, factor, G=heads // k_KND.shape[0],
        TILE=TILE, D=dim, BLOCK_D=next_power_of_2(dim), LEAF=leaf, STEP=step,
        HAS_LENGTH=lengths_B is not None, num_warps=8,
    )  # fmt: skip
    return torch.softmax(mass, -1).nan_to_num_(0.0).amax(2)  # rows without a past leaf have no shares


def _candidates(
    mean_q: Tensor, keys: KeyMap, m: int, groups: int, factor: float, config: HSAConfig
) -> tuple[Tensor, Tensor]:
    """Ids [K, spans, width] of the leaves whose codes a span reads, and how many there are [K, spans]."""
    k_heads, rows, dim = mean_q.shape
    start, leaves, leaf, unit = keys.n - m, triton.cdiv(keys.n, config.leaf), config.leaf, config.unit
    spans, per_span = triton.cdiv(m, config.span), config.span // COARSE
    span_rows = next_power_of_2(per_span * groups)
    per_block = max(1, SCORE_ROWS // span_rows, 16 // span_rows)
    share = torch.empty(k_heads, spans, leaves, device=mean_q.device, dtype=torch.float32)
    span_share_kernel[(triton.cdiv(spans, per_block), k_heads)](
        mean_q, keys.mean_KBD, share, m, rows // groups, leaves, start, factor, spans, SPANS=per_block,
        SPAN_ROWS=span_rows, SPAN_MEANS=per_span, G=groups, UNIT=unit, D=dim, BLOCK_D=next_power_of_2(dim), LEAF=leaf,
        STEP=64, COARSE=COARSE // unit, num_warps=4, num_stages=3,
    )  # fmt: skip
    width, w = config.candidates // leaf, _padded(leaves)
    cand = torch.empty(k_heads, spans, width, device=mean_q.device, dtype=torch.int32)
    count = torch.empty(k_heads, spans, device=mean_q.device, dtype=torch.int32)
    select_kernel[(spans, k_heads)](
        share, share, share, cand, count, cand, count, count, count, rows, leaves, 0, start, width, m, 0, 1.0, spans, 1,
        0, 1, 0, 0, width, SPAN=True, IS_TAIL=False, SHARES=True, ROWS=1, G=groups, W=w, TILE=config.span, LEAF=leaf,
        SPAN_TILE=TILE, SINKS=config.sinks // leaf, LOCAL=config.local // leaf, HAS_CENTRE=False, HAS_ROWS=False,
        HAS_CAND=False, HAS_CHOSEN=False, HAS_COVERAGE=False, HAS_LENGTH=False, num_warps=_select_warps(w),
    )  # fmt: skip
    return cand, count


def _padded(leaves: int) -> int:
    """Leaves that a selecting program holds; short sequences share one kernel."""
    return max(128, next_power_of_2(leaves))


def _select_warps(width: int) -> int:
    return 1 if width <= 256 else 4 if width <= 4096 else 8 if width <= 16384 else 16
