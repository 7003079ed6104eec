"""Triton: sparse attention of one new token per sequence over the paged cache.

Three launches after `triton_codes.prepare`: score (split over the sequence; estimates the mass of every leaf from sign
bits), select (one program per sequence and key head; the best leaves), attend (split over what was selected, merged by
the program that finishes last). Grids depend on neither lengths nor pages: the whole can be captured in a CUDA graph.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# Triton's language is Python in looks only; its types are beyond the checker.

import triton
import triton.language as tl
from torch import Tensor

from stille.kernels.hsa.config import HSAConfig
from stille.kernels.hsa.paged import HSAWorkspace, PageCodes
from stille.kernels.hsa.paged_reference import FINEST
from stille.kernels.hsa.triton_codes import LOG2_E, padded_group, padded_width, prepare
from stille.kernels.triton_support import PAGE, interpreting, next_power_of_2


@triton.jit
def unpack(x, ROWS: tl.constexpr, BYTES: tl.constexpr, ASM: tl.constexpr):
    """uint8 [ROWS, BYTES] to int8 [ROWS, 8 * BYTES]: bit i of a byte becomes 0 or 2^(i % 4).

    The order of the components is the one in which a thread that holds four bytes holds what an integer tensor core
    wants of it, so that nothing moves between threads; four components cost an instruction.
    `triton_codes.encode_query` follows the same order.
    """
    WORDS: tl.constexpr = BYTES // 4
    if ASM:
        a0, a1, a2, a3, a4, a5, a6, a7 = tl.inline_asm_elementwise(
            """
            {
            .reg .b32 t;
            and.b32 $0, $8, 0x01010101;
            and.b32 $1, $8, 0x02020202;
            and.b32 $2, $8, 0x04040404;
            and.b32 $3, $8, 0x08080808;
            shr.u32 t, $8, 4;
            and.b32 $4, t, 0x01010101;
            and.b32 $5, t, 0x02020202;
            and.b32 $6, t, 0x04040404;
            and.b32 $7, t, 0x08080808;
            }
            """,
            "=r,=r,=r,=r,=r,=r,=r,=r,r", [x], dtype=(tl.int8,) * 8, is_pure=True, pack=4,
        )  # fmt: skip
        even = tl.join(tl.join(a0, a4), tl.join(a2, a6))
        odd = tl.join(tl.join(a1, a5), tl.join(a3, a7))
        y = tl.reshape(tl.join(even, odd), [ROWS, WORDS, 4, 2, 2, 2])
    else:
        i = tl.arange(0, 8)
        y = (
            (x[:, :, None] >> (i // 4 * 4).to(tl.uint8)[None, None, :]) & (1 << (i % 4)).to(tl.uint8)[None, None, :]
        ).to(tl.int8)
        y = tl.reshape(y, [ROWS, WORDS, 4, 2, 2, 2])
    return tl.reshape(tl.permute(y, (0, 3, 4, 1, 5, 2)), [ROWS, 8 * BYTES])


@triton.jit
def exp2(x, ASM: tl.constexpr):
    if ASM:
        return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    return tl.exp2(x)


@triton.jit
def log2(x, ASM: tl.constexpr):
    if ASM:
        return tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    return tl.log2(x)


@triton.jit
def table_row(table_ptr, table_stride, seq, ON_DEVICE: tl.constexpr):
    stride = table_stride
    if ON_DEVICE:
        stride = tl.load(table_stride)
    return table_ptr + seq.to(tl.int64) * stride


@triton.jit(do_not_specialize=["table_stride", "budget"])
def score_kernel(
    q_ptr, code_ptr, coef_ptr, signs_ptr, scales_ptr, means_ptr, table_ptr, lengths_ptr,
    mass_ptr,  # fp32 [S, K, GP, width], base 2
    stat_ptr,  # fp32 [S, K, splits, 2, GP]: largest mass of a split, and sum of masses relative to it
    table_stride, q_stride, budget, width, scale_log2,
    G: tl.constexpr, GP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, LEAF: tl.constexpr, PAGE: tl.constexpr,
    PAGES: tl.constexpr, WARPS: tl.constexpr, ON_DEVICE: tl.constexpr, ASM: tl.constexpr, STAGES: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Log-masses of the complete leaves of a split, PAGES pages at a time."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    split, kv_head, seq = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    kv_heads, splits = tl.num_programs(1), tl.num_programs(0)
    length = tl.load(lengths_ptr + seq)
    if length <= budget:
        return
    KEYS: tl.constexpr = PAGES * PAGE
    LEAVES: tl.constexpr = KEYS // LEAF
    PER_PAGE: tl.constexpr = PAGE // LEAF
    BYTES: tl.constexpr = BLOCK_D // 8
    complete = length // LEAF
    tiles = tl.cdiv(complete, LEAVES)
    per_split = tl.cdiv(tiles, splits)
    first = split * per_split
    if first >= tiles:
        return
    table = table_row(table_ptr, table_stride, seq, ON_DEVICE)
    last_page = (length - 1) // PAGE
    cell = seq.to(tl.int64) * kv_heads + kv_head

    d = tl.arange(0, BLOCK_D)
    c = tl.arange(0, 2 * GP)
    g = tl.arange(0, GP)
    code = tl.load(code_ptr + (cell * (2 * GP) + c)[None, :] * BLOCK_D + d[:, None])
    q_at = q_ptr + seq.to(tl.int64) * q_stride + (kv_head * G + c // 2)[None, :] * D + d[:, None]
    q = tl.load(q_at, mask=((c % 2 == 0) & (c // 2 < G))[None, :] & (d < D)[:, None], other=0.0)
    alpha = tl.load(coef_ptr + cell * (2 * GP) + g)
    gamma = tl.load(coef_ptr + cell * (2 * GP) + GP + g)

    # Rows are loaded in the order in which warps hold the rows of a matrix product, so that none has to move.
    r = tl.arange(0, KEYS)
    key = r // (16 * WARPS) * (16 * WARPS) + r // 8 % WARPS * 16 + r // (8 * WARPS) % 2 * 8 + r % 8
    b = tl.arange(0, BYTES)
    byte = b // 4 * 4 + b % 4  # so the compiler gives a thread four bytes, not sixteen
    t = tl.arange(0, KEYS)
    leaf = tl.arange(0, LEAVES)
    top = tl.full([LEAVES, GP], -1e30, tl.float32)
    total = tl.zeros([LEAVES, GP], tl.float32)
    for tile in tl.range(first, tl.minimum(first + per_split, tiles), num_stages=STAGES):
        page = tile * PAGES + key // PAGE
        row = (tl.load(table + tl.minimum(page, last_page)).to(tl.int32) * kv_heads + kv_head) * PAGE + key % PAGE
        row = row.to(tl.int64)
        if BYTES * 8 == D:
            x = tl.load(signs_ptr + row[:, None] * (D // 8) + byte[None, :])
        else:
            x = tl.load(signs_ptr + row[:, None] * (D // 8) + byte[None, :], mask=(b < D // 8)[None, :], other=0)
        x = tl.reshape(x, [KEYS // (16 * WARPS), 2, WARPS, 8, BYTES])
        x = tl.reshape(tl.permute(x, (0, 2, 1, 3, 4)), [KEYS, BYTES])
        dots = tl.dot(unpack(x, KEYS, BYTES, ASM), code, out_dtype=tl.int32)
        coarse, fine = tl.split(tl.reshape(dots, [KEYS, GP, 2]))
        page_t = tile * PAGES + t // PAGE
        row_t = tl.load(table + tl.minimum(page_t, last_page)).to(tl.int32) * kv_heads + kv_head
        size = tl.load(scales_ptr + (row_t * PAGE + t % PAGE).to(tl.int64)).to(tl.float32)
        score = ((coarse * 254 + fine).to(tl.float32) * alpha[None, :] - gamma[None, :]) * size[:, None]
        # Centred scores need no maximum taken off; the bound keeps their sum finite.
        score = exp2(tl.minimum(score, 120.0), ASM)
        mass = log2(tl.sum(tl.reshape(score, [LEAVES, LEAF, GP]), 1), ASM)
        page_l = tile * PAGES + leaf // PER_PAGE
        row_l = tl.load(table + tl.minimum(page_l, last_page)).to(tl.int32) * kv_heads + kv_head
        mean_at = means_ptr + (row_l * PER_PAGE + leaf % PER_PAGE).to(tl.int64)[:, None] * D + d[None, :]
        if BLOCK_D == D:
            mean = tl.load(mean_at)
        else:
            mean = tl.load(mean_at, mask=(d < D)[None, :], other=0.0)
        centre, _ = tl.split(tl.reshape(tl.dot(mean, q, input_precision="ieee"), [LEAVES, GP, 2]))
        mass += centre * scale_log2
        b_leaf = tile * LEAVES + leaf
        ok = (b_leaf < complete)[:, None]
        tl.store(mass_ptr + (cell * GP + g)[None, :] * width + b_leaf[:, None], mass, mask=ok & (g < G)[None, :])
        mass = tl.where(ok, mass, float("-inf"))
        new = tl.maximum(top, mass)
        total = total * exp2(top - new, ASM) + exp2(mass - new, ASM)
        top = new
    most = tl.max(top, 0)
    total = tl.sum(total * exp2(top - most[None, :], ASM), 0)
    stat_at = stat_ptr + (cell * splits + split) * (2 * GP) + g
    tl.store(stat_at, most)
    tl.store(stat_at + GP, total)


@triton.jit(do_not_specialize=["table_stride", "keep", "sinks", "local"])
def select_kernel(
    mass_ptr, stat_ptr, table_ptr, lengths_ptr,
    index_ptr,  # int32 [S, K, keep]: leaves of the sequence, ascending
    place_ptr,  # int32 [S, K, keep]: where they lie in the cache, page * leaves of a page + leaf of the page
    count_ptr,  # int32 [S, K]
    table_stride, keep, sinks, local, width,
    G: tl.constexpr, GP: tl.constexpr, LEAF: tl.constexpr, PAGE: tl.constexpr, W: tl.constexpr, SPLITS: tl.constexpr,
    TILE_LEAVES: tl.constexpr, FINEST: tl.constexpr, ON_DEVICE: tl.constexpr, ASM: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The leaves that a group of heads reads: the `keep` best, found by bisecting their ranks; exact, no sort."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    kv_head, seq = tl.program_id(0), tl.program_id(1)
    kv_heads = tl.num_programs(0)
    length = tl.load(lengths_ptr + seq)
    complete, leaves = length // LEAF, tl.cdiv(length, LEAF)
    table = table_row(table_ptr, table_stride, seq, ON_DEVICE)
    cell = seq.to(tl.int64) * kv_heads + kv_head
    PER_PAGE: tl.constexpr = PAGE // LEAF
    col = tl.arange(0, W)
    if leaves <= keep:
        page = tl.load(table + col // PER_PAGE, mask=col < leaves, other=0)
        tl.store(index_ptr + cell * keep + col, col, mask=col < leaves)
        tl.store(place_ptr + cell * keep + col, page * PER_PAGE + col % PER_PAGE, mask=col < leaves)
        tl.store(count_ptr + cell, leaves)
    else:
        tiles = tl.cdiv(complete, TILE_LEAVES)
        used = tl.cdiv(tiles, tl.cdiv(tiles, SPLITS))
        s = tl.arange(0, SPLITS)
        share = tl.zeros([W], tl.float32)
        for h in tl.static_range(G):
            at = stat_ptr + (cell * SPLITS + s) * (2 * GP) + h
            most = tl.load(at, mask=s < used, other=float("-inf"))
            part = tl.load(at + GP, mask=s < used, other=0.0)
            top = tl.max(most, 0)
            lse = top + tl.log2(tl.sum(part * tl.exp2(most - top), 0))
            mass = tl.load(mass_ptr + (cell * GP + h) * width + col, mask=col < complete, other=float("-inf"))
            share += exp2(mass - lse, ASM)
        rank = tl.maximum((share / G).to(tl.int32, bitcast=True) - FINEST, 0) >> 15
        forced = (col < sinks) | (col >= complete - local)  # the incomplete leaf follows the window
        rank = tl.where(forced, -1, tl.minimum(rank, 8191))
        need = keep - sinks - local - (leaves - complete)
        threshold = 0
        for i in range(13):
            trial = threshold | (1 << (12 - i))
            threshold = tl.where(tl.sum((rank >= trial).to(tl.int32), 0) >= need, trial, threshold)
        sure = (forced & (col < leaves)) | (rank > threshold)
        tie = rank == threshold
        ties = need - tl.sum((rank > threshold).to(tl.int32), 0)
        # Two prefix sums in one: at most 8,191 leaves are kept, and W is below 2^18.
        both = tl.cumsum((sure.to(tl.int32) << 18) | tie.to(tl.int32), 0)
        tied = both & 262143
        chosen = sure | (tie & (tied <= ties))
        at = cell * keep + (both >> 18) + tl.minimum(tied, ties) - 1
        page = tl.load(table + col // PER_PAGE, mask=chosen, other=0)
        tl.store(index_ptr + at, col, mask=chosen)
        tl.store(place_ptr + at, page * PER_PAGE + col % PER_PAGE, mask=chosen)
        tl.store(count_ptr + cell, keep)


@triton.jit(do_not_specialize=["keep"])
def attend_kernel(
    q_ptr, k_pages_ptr, v_pages_ptr, place_ptr, count_ptr, lengths_ptr, out_ptr,
    part_ptr,  # fp32 [S, K, SPLITS, G, D]: weighted values of a split, not yet divided
    stat_ptr,  # fp32 [S, K, 2, SPLITS, G]: maximum score (base 2) and sum of weights of a split
    ticket_ptr,  # int32 [S, K], 0 between launches
    q_stride, out_stride, keep, scale_log2,
    G: tl.constexpr, D: tl.constexpr, LEAF: tl.constexpr, PAGE: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Exact attention to a split of the selected leaves; the program that finishes last merges, in order of splits."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    split, kv_head, seq = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    kv_heads = tl.num_programs(1)
    cell = seq.to(tl.int64) * kv_heads + kv_head
    length = tl.load(lengths_ptr + seq)
    count = tl.load(count_ptr + cell)
    PER_PAGE: tl.constexpr = PAGE // LEAF
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
    top = tl.full([BLOCK_G], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_G], tl.float32)
    acc = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    first = split * per_split
    for tile in range(first, tl.minimum(first + per_split, tiles)):
        t = tile * BLOCK_T + tl.arange(0, BLOCK_T)
        t_mask = t < end
        place = tl.load(place_ptr + cell * keep + t // LEAF, mask=t_mask, other=0)
        row = ((place // PER_PAGE).to(tl.int64) * kv_heads + kv_head) * PAGE + place % PER_PAGE * LEAF + t % LEAF
        at = row[:, None] * D + d[None, :]
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
            s_mask = s < used
            for head in tl.static_range(G):
                tops = tl.load(stat_at + s * G + head, mask=s_mask, other=float("-inf"), cache_modifier=".cg")
                sums = tl.load(stat_at + (SPLITS + s) * G + head, mask=s_mask, other=0.0, cache_modifier=".cg")
                factor = tl.exp2(tops - tl.max(tops, axis=0))
                parts = tl.load(
                    part_ptr + ((cell * SPLITS + s) * G + head)[:, None] * D + d[None, :],
                    mask=s_mask[:, None] & d_mask[None, :], other=0.0, cache_modifier=".cg",
                )  # fmt: skip
                merged = tl.sum(parts * factor[:, None], axis=0) / tl.sum(sums * factor, axis=0)
                head_out = out_ptr + seq.to(tl.int64) * out_stride + (kv_head * G + head) * D
                tl.store(head_out + d, merged, mask=d_mask)


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
    prepare(
        k_pages, codes.signs, codes.scales, codes.means, rotation, slots_N, leaf, q_SHD=q_SHD, lengths_S=lengths_S,
        queries=sequences, code=ws.code, coef=ws.coef, scale=scale, budget=config.budget, pdl=pdl,
    )  # fmt: skip
    shape = dict(G=group, LEAF=leaf, PAGE=PAGE, PDL=pdl)
    padded, asm = padded_group(group), not interpreting()
    table_on = dict(ON_DEVICE=isinstance(table_stride, Tensor))
    score_kernel[(cut.score_splits, kv_heads, sequences)](
        q_SHD, ws.code, ws.coef, codes.signs, codes.scales, codes.means, table, lengths_S, ws.mass, ws.mass_stat,
        table_stride, q_SHD.stride(0), config.budget, ws.leaves, scale * LOG2_E,
        GP=padded, D=dim, BLOCK_D=width, PAGES=cut.score_pages, WARPS=cut.score_warps, ASM=asm,
        STAGES=cut.score_stages, num_warps=cut.score_warps, **shape, **table_on, **extra,
    )  # fmt: skip
    select_kernel[(kv_heads, sequences)](
        ws.mass, ws.mass_stat, table, lengths_S, ws.index_SKL, ws.place_SKL, ws.count_SK, table_stride,
        keep, config.sinks // leaf, config.local // leaf, ws.leaves, GP=padded, W=next_power_of_2(ws.leaves),
        SPLITS=cut.score_splits, TILE_LEAVES=cut.score_pages * PAGE // leaf,
        FINEST=FINEST, ASM=asm, num_warps=cut.select_warps, **shape, **table_on, **extra,
    )  # fmt: skip
    attend_kernel[(cut.attend_splits, kv_heads, sequences)](
        q_SHD, k_pages, v_pages, ws.place_SKL, ws.count_SK, lengths_S, out, ws.part, ws.part_stat, ws.ticket,
        q_SHD.stride(0), out.stride(0), keep, scale * LOG2_E, D=dim, SPLITS=cut.attend_splits, BLOCK_T=cut.attend_keys,
        BLOCK_G=max(16, next_power_of_2(group)), BLOCK_D=max(16, next_power_of_2(dim)),
        num_warps=cut.attend_warps, num_stages=cut.attend_stages, **shape, **extra,
    )  # fmt: skip
