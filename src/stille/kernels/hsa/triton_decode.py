"""Triton: sparse attention of one new token per sequence over the paged cache.

Three launches: score (split over the sequence; estimates the mass of every leaf from its codes), select (one program
per sequence and key head; the best leaves), attend (split over what was selected, merged by the program that finishes
last). Where the rotation is not a plain Hadamard matrix, `triton_codes.encode_queries` comes before. Grids depend on
neither lengths nor pages: the whole can be captured in a CUDA graph.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# Triton's language is Python in looks only; its types are beyond the checker.

import triton
import triton.language as tl
from torch import Tensor

from stille.kernels.hsa.config import HSAConfig
from stille.kernels.hsa.paged import HSAWorkspace, PageCodes
from stille.kernels.hsa.paged_reference import FINEST, GRID_BITS, RANK_BITS, planes
from stille.kernels.hsa.triton_codes import (
    LOG2_E,
    encode_queries,
    encode_slot,
    padded_group,
    padded_width,
    rotation_stride,
)
from stille.kernels.hsa.triton_decode_score import exp2, score_kernel, table_row
from stille.kernels.triton_support import PAGE, interpreting, next_power_of_2


@triton.jit
def reaching(x, limit, ASM: tl.constexpr):
    """How many of the whole numbers x (float32) are at least a limit; floats add faster than integers compare."""
    if ASM:
        ones = tl.inline_asm_elementwise(
            "add.sat.f32 $0, $1, $2;", "=f,f,f", [x, 1.0 - limit], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        ones = tl.minimum(tl.maximum(x + (1.0 - limit), 0.0), 1.0)
    return tl.sum(ones, 0)


@triton.jit
def choices(first_place, W: tl.constexpr, PER_PAGE: tl.constexpr):
    """int64 [W]: each leaf of a sequence, and its place."""
    place = tl.reshape(first_place[:, None] + tl.arange(0, PER_PAGE)[None, :], [W])
    return (tl.arange(0, W).to(tl.int64) << 32) | place.to(tl.int64)


@triton.jit(do_not_specialize=["table_stride", "keep", "sinks", "local"])
def select_kernel(
    mass_ptr, stat_ptr, table_ptr, lengths_ptr,
    choice_ptr,  # int64 [S, K, keep]: leaves in order, 32 bits in the sequence, 32 among all pages and key heads
    count_ptr,  # int32 [S, K]
    table_stride, keep, sinks, local, width,
    G: tl.constexpr, GP: tl.constexpr, HEADS: tl.constexpr, LEAF: tl.constexpr, PAGE: tl.constexpr, W: tl.constexpr,
    SPLITS: tl.constexpr, TILE_LEAVES: tl.constexpr, FINEST: tl.constexpr, GRID_BITS: tl.constexpr,
    RANK_BITS: tl.constexpr, ON_DEVICE: tl.constexpr, ASM: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The leaves that a group of heads reads: the `keep` best, found by bisecting their ranks; exact, no sort.

    What does not come from `score_kernel` is loaded before its end, that is before the wait: programs of it start
    their dependents after their own wait, so what came before it is there.
    """
    kv_head, seq = tl.program_id(0), tl.program_id(1)
    kv_heads = tl.num_programs(0)
    length = tl.load(lengths_ptr + seq)
    leaves = tl.cdiv(length, LEAF)
    complete = leaves - 1
    table = table_row(table_ptr, table_stride, seq, ON_DEVICE)
    cell = seq.to(tl.int64) * kv_heads + kv_head
    PER_PAGE: tl.constexpr = PAGE // LEAF
    col = tl.arange(0, W)
    p = tl.arange(0, W // PER_PAGE)
    page = tl.load(table + p, mask=p * PER_PAGE < leaves, other=0).to(tl.int32)
    first_place = (page * kv_heads + kv_head) * PER_PAGE
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    if leaves <= keep:
        tl.store(choice_ptr + cell * keep + col, choices(first_place, W, PER_PAGE), mask=col < leaves)
        tl.store(count_ptr + cell, leaves)
    else:
        tiles = tl.cdiv(complete, TILE_LEAVES)
        used = tl.cdiv(tiles, tl.cdiv(tiles, SPLITS))
        s = tl.arange(0, SPLITS)
        share = tl.zeros([W], tl.float32)
        for first in range(0, G, HEADS):
            head = first + tl.arange(0, HEADS)
            there = head < G
            at = mass_ptr + (cell * GP + head)[:, None] * width + col[None, :]
            # Whole fours, so that loads are wide. What lies beyond the complete leaves is forced in any case.
            mass = tl.load(at, mask=there[:, None] & (col < tl.cdiv(complete, 4) * 4)[None, :], other=float("-inf"))
            at = stat_ptr + (cell * SPLITS + s)[:, None] * (2 * GP) + head[None, :]
            stated = (s < used)[:, None] & there[None, :]
            most = tl.load(at, mask=stated, other=-1e30)
            part = tl.load(at + GP, mask=stated, other=0.0)
            top = tl.max(most, 0)
            lse = top + tl.log2(tl.maximum(tl.sum(part * tl.exp2(most - top[None, :]), 0), 1e-30))
            share += tl.sum(exp2(mass - lse[:, None], ASM), 0)
        rank = tl.maximum((share / G).to(tl.int32, bitcast=True) - FINEST, 0) >> GRID_BITS
        forced = (col < sinks) | (col >= complete - local)  # the newest token's leaf follows the window
        rank = tl.where(forced, -1, tl.minimum(rank, (1 << RANK_BITS) - 1))
        need = keep - sinks - local - 1
        level = rank.to(tl.float32)
        threshold = 0
        above = 0  # leaves beyond the threshold
        for i in range(RANK_BITS):
            trial = threshold | (1 << (RANK_BITS - 1 - i))
            count = reaching(level, trial.to(tl.float32), ASM).to(tl.int32)
            above = tl.where(count >= need, above, count)
            threshold = tl.where(count >= need, trial, threshold)
        sure = (forced & (col < leaves)) | (rank > threshold)
        tie = rank == threshold
        ties = need - above
        # Two prefix sums in one: at most 8,191 leaves are kept, and W is below 2^18.
        both = (sure.to(tl.int32) << 18) | tie.to(tl.int32)
        both = tl.sum(tl.cumsum(both[None, :], 1), 0)  # two axes: so the scan takes the layout of the loads
        tied = both & 262143
        chosen = sure | (tie & (tied <= ties))
        at = cell * keep + (both >> 18) + tl.minimum(tied, ties) - 1
        tl.store(choice_ptr + at, choices(first_place, W, PER_PAGE), mask=chosen)
        tl.store(count_ptr + cell, keep)


@triton.jit(do_not_specialize=["keep", "sequences", "slots"])
def attend_kernel(
    q_ptr, k_pages_ptr, v_pages_ptr, choice_ptr, lengths_ptr, out_ptr,
    part_ptr,  # fp32 [S, K, SPLITS, G, D]: weighted values of a split, not yet divided
    stat_ptr,  # fp32 [S, K, 2, SPLITS, G]: maximum score (base 2) and sum of weights of a split
    ticket_ptr,  # int32 [S, K], 0 between launches
    rotation_ptr, signs_ptr, scales_ptr, means_ptr, mean_scales_ptr, slots_ptr,
    rotation_stride, q_stride, out_stride, keep, sequences, slots, scale_log2,
    G: tl.constexpr, D: tl.constexpr, LEAF: tl.constexpr, PAGE: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr, CODE_D: tl.constexpr, PLANES: tl.constexpr,
    CHUNK: tl.constexpr, MERGE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Exact attention to a split of the selected leaves; the program that finishes last merges, in order of splits.

    Programs beyond the sequences encode the leaves of slots meanwhile: nobody looks at them before the next token.
    Only what `select_kernel` has chosen waits for its end.
    """
    split, kv_head, seq = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    kv_heads = tl.num_programs(1)
    if seq >= sequences:
        if PDL:
            tl.extra.cuda.gdc_wait()
            tl.extra.cuda.gdc_launch_dependents()
        i = (seq - sequences) * SPLITS + split
        if i < slots:
            encode_slot(
                k_pages_ptr, rotation_ptr, rotation_stride, signs_ptr, scales_ptr, means_ptr, mean_scales_ptr,
                slots_ptr, i, kv_head, kv_heads, D, CODE_D, PLANES, CHUNK, LEAF, PAGE,
            )  # fmt: skip
        return
    cell = seq.to(tl.int64) * kv_heads + kv_head
    length = tl.load(lengths_ptr + seq)
    count = tl.minimum(tl.cdiv(length, LEAF), keep)
    end = count * LEAF - (LEAF - 1 - (length + LEAF - 1) % LEAF)  # the last leaf read is the sequence's last
    tiles = tl.cdiv(end, BLOCK_T)
    per_split = tl.maximum(tl.cdiv(tiles, SPLITS), 1)
    used = tl.maximum(tl.cdiv(tiles, per_split), 1)
    if split >= used:
        return

    g = tl.arange(0, BLOCK_G)
    d = tl.arange(0, BLOCK_D)
    g_mask, d_mask = g < G, d < D
    gd_mask = g_mask[:, None] & d_mask[None, :]
    head_at = (kv_head * G + g)[:, None] * D + d[None, :]
    q = tl.load(q_ptr + seq.to(tl.int64) * q_stride + head_at, mask=gd_mask, other=0.0)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    top = tl.full([BLOCK_G], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_G], tl.float32)
    acc = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    first = split * per_split
    for tile in range(first, tl.minimum(first + per_split, tiles)):
        t = tile * BLOCK_T + tl.arange(0, BLOCK_T)
        t_mask = t < end
        place = tl.load(choice_ptr + cell * keep + t // LEAF, mask=t_mask, other=0).to(tl.int32)
        at = (place * LEAF + t % LEAF).to(tl.int64)[:, None] * D + d[None, :]
        kv_mask = t_mask[:, None] & d_mask[None, :]
        k = tl.load(k_pages_ptr + at, mask=kv_mask, other=0.0)
        v = tl.load(v_pages_ptr + at, mask=kv_mask, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
        scores = tl.where(t_mask[None, :], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, axis=1))  # finite: the first key of a tile is never masked
        alpha = tl.exp2(top - new_top)
        weights = tl.exp2(scores - new_top[:, None])
        total = total * alpha + tl.sum(weights, axis=1)
        acc = acc * alpha[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        top = new_top

    if used == 1:
        acc = acc / tl.where(total > 0, total, 1.0)[:, None]  # length 0 (a padded row) gives 0
        tl.store(out_ptr + seq.to(tl.int64) * out_stride + head_at, acc, mask=gd_mask)
    else:
        part_at = part_ptr + ((cell * SPLITS + split) * G + g)[:, None] * D + d[None, :]
        stat_at = stat_ptr + cell * (2 * SPLITS * G)
        tl.store(part_at, acc, mask=gd_mask)
        tl.store(stat_at + split * G + g, top, mask=g_mask)
        tl.store(stat_at + (SPLITS + split) * G + g, total, mask=g_mask)
        tl.debug_barrier()  # every thread's stores come before the release below
        ticket = tl.atomic_add(ticket_ptr + cell, 1, sem="acq_rel", scope="gpu")
        if ticket == used - 1:
            tl.store(ticket_ptr + cell, 0)
            s = tl.arange(0, SPLITS)
            there = (s < used)[:, None]
            for start in tl.static_range(0, G, MERGE):  # heads whose parts fit the registers
                h = start + tl.arange(0, MERGE)
                mask = there & (h < G)[None, :]
                at = part_ptr + ((cell * SPLITS + s)[:, None] * G + h[None, :])[:, :, None] * D + d[None, None, :]
                parts = tl.load(
                    at, mask=mask[:, :, None] & d_mask[None, None, :], other=0.0, cache_modifier=".cg"
                )  # fmt: skip
                at = stat_at + s[:, None] * G + h[None, :]
                tops = tl.load(at, mask=mask, other=-1e30, cache_modifier=".cg")
                sums = tl.load(at + SPLITS * G, mask=mask, other=0.0, cache_modifier=".cg")
                factor = tl.exp2(tops - tl.max(tops, axis=0)[None, :])
                factor /= tl.maximum(tl.sum(sums * factor, axis=0), 1e-30)[None, :]
                merged = tl.sum(parts * factor[:, :, None], axis=0)
                head_out = out_ptr + seq.to(tl.int64) * out_stride + (kv_head * G + h)[:, None] * D + d[None, :]
                tl.store(head_out, merged, mask=(h < G)[:, None] & d_mask[None, :])


def hsa_decode(
    q_SHD: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    codes: PageCodes,
    rotation: Tensor,
    table: Tensor,
    table_stride: Tensor | int,
    lengths_S: Tensor,
    sequences: int,
    scale: float,
    config: HSAConfig,
    slots_N: Tensor | None,
    out: Tensor,
    workspace: HSAWorkspace,
    pdl: bool,
) -> None:
    """See `stille.kernels.hsa.paged.hsa_decode`, which checks the arguments. Leaves the choice in the workspace."""
    _, heads, dim = q_SHD.shape
    kv_heads, leaf, ws = k_pages.shape[1], config.decode_leaf, workspace
    group, width, keep = heads // kv_heads, padded_width(dim), config.budget // leaf
    cut = ws.cut(sequences)
    extra = {"launch_pdl": True} if pdl else {}
    turn = dim.bit_length() - 1 if codes.rotation is None and dim == width else 0
    if not turn:
        encode_queries(q_SHD, kv_heads, lengths_S, sequences, rotation, ws.code, ws.coef, config.budget, pdl)
    shape = dict(G=group, LEAF=leaf, PAGE=PAGE, PDL=pdl)
    padded, asm = padded_group(group), not interpreting()
    together = min(padded, 8)  # query heads of one program
    table_on = dict(ON_DEVICE=isinstance(table_stride, Tensor))
    kept = codes.signs, codes.scales, codes.means, codes.mean_scales
    score_kernel[(cut.score_splits, kv_heads * (padded // together), sequences)](
        q_SHD, rotation, ws.code, ws.coef, *kept, table, lengths_S, ws.mass, ws.mass_stat,
        table_stride, q_SHD.stride(0), config.budget, ws.mass_width, scale * LOG2_E,
        GP=padded, GC=together, D=dim, BLOCK_D=width, PLANES=planes(dim), PAGES=cut.score_pages, TURN=turn, ASM=asm,
        num_warps=1, maxnreg=cut.score_registers or None,
        **shape, **table_on, **extra,
    )  # fmt: skip
    columns = max(PAGE, next_power_of_2(ws.leaves))
    select_kernel[(kv_heads, sequences)](
        ws.mass, ws.mass_stat, table, lengths_S, ws.choice_SKL, ws.count_SK, table_stride,
        keep, config.sinks // leaf, config.local // leaf, ws.mass_width, GP=padded,
        HEADS=max(1, min(padded, 4, 2048 * cut.select_warps // columns)), W=columns,
        SPLITS=cut.score_splits, TILE_LEAVES=cut.score_pages * PAGE // leaf, FINEST=FINEST,
        GRID_BITS=GRID_BITS, RANK_BITS=RANK_BITS, ASM=asm, num_warps=cut.select_warps, **shape, **table_on, **extra,
    )  # fmt: skip
    slots = 0 if slots_N is None else len(slots_N)
    wide = max(16, next_power_of_2(dim))
    fits = (cut.attend_warps << 19) // (cut.attend_splits * max(wide, 128) ** 2)  # parts of heads, in registers
    attend_kernel[(cut.attend_splits, kv_heads, sequences + -(-slots // cut.attend_splits))](
        q_SHD, k_pages, v_pages, ws.choice_SKL, lengths_S, out, ws.part, ws.part_stat, ws.ticket,
        rotation, *kept, lengths_S if slots_N is None else slots_N,  # what stands for no slots is never read
        rotation_stride(rotation), q_SHD.stride(0), out.stride(0), keep, sequences, slots, scale * LOG2_E,
        D=dim, SPLITS=cut.attend_splits, BLOCK_T=cut.attend_keys, BLOCK_G=max(16, next_power_of_2(group)), BLOCK_D=wide,
        CODE_D=width, PLANES=planes(dim), CHUNK=min(width, 64), MERGE=max(1, min(next_power_of_2(group), fits)),
        num_warps=cut.attend_warps, num_stages=cut.attend_stages, **shape, **extra,
    )  # fmt: skip
