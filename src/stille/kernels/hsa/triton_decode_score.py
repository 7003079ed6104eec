"""Triton: masses of the leaves of cached keys, estimated from their codes for one new token per sequence.

The kernel is made for leaves of 16 keys, signatures of 128 bits (heads of width 128, or 64 with two bits per dimension)
and at most four heads to a key head: then every thread loads what it will multiply, a leaf's keys are summed within a
thread, and nothing moves between threads on the way.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportAssignmentType=false
# Triton's language is Python in looks only; its types are beyond the checker.

import triton
import triton.language as tl

from stille.kernels.hsa.triton_codes import query_codes, turn_hadamard


@triton.jit
def fourfold(x, N: tl.constexpr):
    """x [N] to [N, 4]: what four elements of an assembly statement see alike. A broadcast would be moved behind it."""
    x = tl.join(x, x)
    return tl.reshape(tl.join(x, x), [N, 4])


@triton.jit
def as_bytes(x, N: tl.constexpr, ASM: tl.constexpr):
    """int32 [N] to int8 [N, 4], low byte first; costs nothing."""
    if ASM:
        return tl.inline_asm_elementwise(
            "mov.b32 $0, $1;", "=r,r,r,r,r", [fourfold(x, N)], dtype=tl.int8, is_pure=True, pack=4
        )
    return (x[:, None] >> (tl.arange(0, 4) * 8)[None, :]).to(tl.int8)


@triton.jit
def unpack(x, ROWS: tl.constexpr, WORDS: tl.constexpr, ASM: tl.constexpr):
    """int32 [ROWS, WORDS] to int8 [ROWS, 32 * WORDS]: bit i of a byte becomes 0 or 2^(i % 4).

    The order of the components is the one in which a thread that holds a word holds what an integer tensor core wants
    of it, so that nothing moves between threads; four components cost an instruction. `triton_codes.query_codes`
    follows the same order.
    """
    if ASM:
        x = tl.reshape(fourfold(tl.reshape(x, [ROWS * WORDS]), ROWS * WORDS), [ROWS, WORDS, 4])
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
            "=r,=r,=r,=r,=r,=r,=r,=r,r,r,r,r", [x], dtype=(tl.int8,) * 8, is_pure=True, pack=4,
        )  # fmt: skip
        even = tl.join(tl.join(a0, a4), tl.join(a2, a6))
        odd = tl.join(tl.join(a1, a5), tl.join(a3, a7))
        y = tl.join(even, odd)
    else:
        i = tl.arange(0, 8)
        y = (x[:, :, None, None] >> (tl.arange(0, 4) * 8)[:, None]) >> (i // 4 * 4)
        y = tl.reshape((y & (1 << (i % 4))).to(tl.int8), [ROWS, WORDS, 4, 2, 2, 2])
    return tl.reshape(tl.permute(y, (0, 3, 4, 1, 5, 2)), [ROWS, 32 * WORDS])


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


@triton.jit
def page_row(table, page, last_page, kv_head, kv_heads):
    return tl.load(table + tl.minimum(page, last_page)).to(tl.int64) * kv_heads + kv_head


@triton.jit
def page_rows(table, tile, last_page, kv_head, kv_heads, PAGES: tl.constexpr):
    """Rows of a tile's pages in [num_pages * K], as scalars: what follows them needs no tensor to be rearranged."""
    row0 = page_row(table, tile * PAGES, last_page, kv_head, kv_heads)
    row1, row2, row3 = row0, row0, row0
    if PAGES > 1:
        row1 = page_row(table, tile * PAGES + 1, last_page, kv_head, kv_heads)
    if PAGES > 2:
        row2 = page_row(table, tile * PAGES + 2, last_page, kv_head, kv_heads)
        row3 = page_row(table, tile * PAGES + 3, last_page, kv_head, kv_heads)
    return row0, row1, row2, row3


@triton.jit
def load_codes(
    signs_ptr, scales_ptr, means_ptr, mean_scales_ptr, row0, row1, row2, row3, there,
    D: tl.constexpr, BLOCK_D: tl.constexpr, PLANES: tl.constexpr, LEAF: tl.constexpr, PAGE: tl.constexpr,
    PAGES: tl.constexpr,
):  # fmt: skip
    """The codes of a tile, each by the threads that will want it.

    Those hold a leaf's keys in registers; a warp holds eight leaves, and of each either four parts or four heads. The
    compiler spreads a warp over the last axis as far as it is contiguous, then over the first axes. So it comes to:
    signs int32 [WORDS, LEAVES, LEAF], scales of four keys each int64 [4 (the same), LEAVES, LEAF / 8, 2], means int32
    [LEAVES, BLOCK_D / CHUNK, CHUNK / 4], their scales fp16 [4 (the same), LEAVES].
    """
    PER_PAGE: tl.constexpr = PAGE // LEAF
    LEAVES: tl.constexpr = PAGES * PER_PAGE
    WORDS: tl.constexpr = PLANES * BLOCK_D // 32
    USED: tl.constexpr = PLANES * ((D + 31) // 32)  # as many as words where there are two planes
    CHUNK: tl.constexpr = min(BLOCK_D, 64)
    leaf = tl.arange(0, LEAVES)
    row = row0 + leaf * 0
    if PAGES > 1:
        row = tl.where(leaf // PER_PAGE == 1, row1, row)
    if PAGES > 2:
        row = tl.where(leaf // PER_PAGE == 2, row2, row)
        row = tl.where(leaf // PER_PAGE == 3, row3, row)
    row = row * PER_PAGE + leaf % PER_PAGE
    there = leaf < LEAVES * there.to(tl.int32)
    w = (tl.arange(0, WORDS) << 1) >> 1  # so the compiler gives a thread one word, not four
    at = signs_ptr.to(tl.pointer_type(tl.int32)) + (row * (LEAF * USED))[None, :, None] + w[:, None, None]
    at += (tl.arange(0, LEAF) * USED)[None, None, :]
    if WORDS == USED:
        signs = tl.load(at, mask=there[None, :, None])
    else:
        signs = tl.load(at, mask=there[None, :, None] & (w < USED)[:, None, None], other=0)
    d = tl.arange(0, CHUNK // 4)
    first = tl.arange(0, BLOCK_D // CHUNK) * (CHUNK // 4)
    at = means_ptr.to(tl.pointer_type(tl.int32)) + (row * (D // 4))[:, None, None] + d[None, None, :]
    at += first[None, :, None]
    if BLOCK_D == D:
        means = tl.load(at, mask=there[:, None, None])
    else:
        used = first[None, :, None] + d[None, None, :] < D // 4
        means = tl.load(at, mask=there[:, None, None] & used, other=0)
    head = tl.arange(0, 4) * 0
    four = (tl.arange(0, LEAF // 8) * 2)[:, None] + tl.arange(0, 2)[None, :]
    at = scales_ptr.to(tl.pointer_type(tl.int64)) + (row * (LEAF // 4))[None, :, None, None]
    scales = tl.load(at + head[:, None, None, None] + four[None, None, :, :], mask=there[None, :, None, None])
    mean_scales = tl.load(mean_scales_ptr + row[None, :] + head[:, None], mask=there[None, :])
    return signs, scales, means, mean_scales


@triton.jit
def scale_of(four, i: tl.constexpr):
    return (four >> (16 * i)).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def leaf_mass(
    signs, scales, means, mean_scales, sign_code, mean_code, alpha, gamma,
    GC: tl.constexpr, BLOCK_D: tl.constexpr, PLANES: tl.constexpr, LEAF: tl.constexpr, LEAVES: tl.constexpr,
    ASM: tl.constexpr,
):  # fmt: skip
    """Log-masses (base 2) of the leaves of a tile, fp32 [LEAVES, GC / 4, 4]."""
    KEYS: tl.constexpr = LEAF * LEAVES  # in the order of a leaf's keys: [LEAF, LEAVES]
    CHUNK: tl.constexpr = min(BLOCK_D, 64)
    WORDS: tl.constexpr = PLANES * BLOCK_D // 32
    bits = unpack(tl.reshape(tl.permute(signs, (2, 1, 0)), [KEYS, WORDS]), KEYS, WORDS, ASM)
    dots = tl.dot(bits, sign_code, out_dtype=tl.int32)
    coarse, fine = tl.split(tl.reshape(dots, [KEYS, GC // 4, 4, 2]))
    first = tl.join(scale_of(scales, 0), scale_of(scales, 1))
    size = tl.join(first, tl.join(scale_of(scales, 2), scale_of(scales, 3)))
    size = tl.reshape(tl.permute(size, (2, 3, 5, 4, 1, 0)), [KEYS, 4])
    score = ((coarse * 254 + fine).to(tl.float32) * alpha[None, :, :] - gamma[None, :, :]) * size[:, None, :]
    # Centred scores need no maximum taken off; the bound keeps their sum finite.
    score = exp2(tl.minimum(score, 120.0), ASM)
    mass = log2(tl.sum(tl.reshape(score, [LEAF, LEAVES, GC // 4, 4]), 0), ASM)
    means = as_bytes(tl.reshape(means, [LEAVES * BLOCK_D // 4]), LEAVES * BLOCK_D // 4, ASM)
    means = tl.reshape(means, [LEAVES, BLOCK_D // CHUNK, 4, CHUNK // 32, 8])
    means = tl.reshape(tl.permute(means, (0, 1, 3, 2, 4)), [LEAVES, BLOCK_D])
    dots = tl.dot(means, mean_code, out_dtype=tl.int32)
    coarse, fine = tl.split(tl.reshape(dots, [LEAVES, GC // 4, 4, 2]))
    centre = (coarse * 254 + fine).to(tl.float32) * (0.5 * alpha)[None, :, :]
    return mass + centre * tl.trans(mean_scales).to(tl.float32)[:, None, :]


@triton.jit(do_not_specialize=["table_stride", "budget"])
def score_kernel(
    q_ptr, rotation_ptr, code_ptr, coef_ptr, signs_ptr, scales_ptr, means_ptr, mean_scales_ptr, table_ptr, lengths_ptr,
    mass_ptr,  # fp32 [S, K, GP, width], base 2
    stat_ptr,  # fp32 [S, K, splits, 2, GP]: largest mass of a split, and sum of masses relative to it
    table_stride, q_stride, budget, width, scale_log2,
    G: tl.constexpr, GP: tl.constexpr, GC: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, PLANES: tl.constexpr,
    LEAF: tl.constexpr, PAGE: tl.constexpr, PAGES: tl.constexpr, TURN: tl.constexpr, ON_DEVICE: tl.constexpr,
    ASM: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Log-masses, for GC query heads of a group, of a split of the leaves before the newest token's.

    A tile of PAGES pages at a time, while the next one is on its way. TURN: log2(D), then the queries are encoded here,
    the rotation being Hadamard's; or 0, then `encode_queries` was there before.
    """
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    split, seq = tl.program_id(0), tl.program_id(2)
    kv_head, part = tl.program_id(1) // (GP // GC), tl.program_id(1) % (GP // GC)
    kv_heads, splits = tl.num_programs(1) // (GP // GC), tl.num_programs(0)
    length = tl.load(lengths_ptr + seq)
    if length <= budget:
        return
    LEAVES: tl.constexpr = PAGES * (PAGE // LEAF)
    complete = (length - 1) // LEAF
    tiles = tl.cdiv(complete, LEAVES)
    per_split = tl.cdiv(tiles, splits)
    first = split * per_split
    if first >= tiles:
        return
    if part * GC >= G:
        return
    end = tl.minimum(first + per_split, tiles)
    table = table_row(table_ptr, table_stride, seq, ON_DEVICE)
    last_page = (length - 1) // PAGE
    cell = seq.to(tl.int64) * kv_heads + kv_head
    row0, row1, row2, row3 = page_rows(table, first, last_page, kv_head, kv_heads, PAGES)
    signs, scales, means, mean_scales = load_codes(
        signs_ptr, scales_ptr, means_ptr, mean_scales_ptr, row0, row1, row2, row3, first < end,
        D, BLOCK_D, PLANES, LEAF, PAGE, PAGES,
    )  # fmt: skip
    row0, row1, row2, row3 = page_rows(table, first + 1, last_page, kv_head, kv_heads, PAGES)

    if TURN > 0:
        d = tl.arange(0, D)
        g = part * GC + tl.arange(0, GC)
        q_at = q_ptr + seq.to(tl.int64) * q_stride + (kv_head * G + g)[:, None] * D + d[None, :]
        q = tl.load(q_at, mask=(g < G)[:, None], other=0.0).to(tl.float32)
        flip = tl.load(rotation_ptr + d).to(tl.float32)  # the first row: the signs, and the norm of all rows
        turned = turn_hadamard(q * flip[None, :], GC, D, TURN)
        sign_code, mean_code, unit, total = query_codes(turned, GC, BLOCK_D, PLANES)
    else:
        SIGN_D: tl.constexpr = PLANES * BLOCK_D
        c = (part * (2 * GC) + tl.arange(0, 2 * GC))[None, :]
        g = tl.arange(0, GC)
        code_ptr += cell * (2 * GP * (SIGN_D + BLOCK_D))
        sign_code = tl.load(code_ptr + c * SIGN_D + tl.arange(0, SIGN_D)[:, None])
        mean_code = tl.load(code_ptr + 2 * GP * SIGN_D + c * BLOCK_D + tl.arange(0, BLOCK_D)[:, None])
        at = coef_ptr + cell * (2 * GP) + part * GC + g
        unit, total = tl.load(at), tl.load(at + GP)
    alpha = tl.reshape(unit * (2 * scale_log2 / 254), [GC // 4, 4])
    gamma = tl.reshape(total * scale_log2, [GC // 4, 4])

    leaf = tl.arange(0, LEAVES)
    head = part * GC + tl.arange(0, GC // 4)[:, None] * 4 + tl.arange(0, 4)[None, :]
    mass_at = mass_ptr + (cell * GP + head)[None, :, :] * width + leaf[:, None, None]
    top = tl.full([LEAVES, GC // 4, 4], -1e30, tl.float32)
    total = tl.zeros([LEAVES, GC // 4, 4], tl.float32)
    for tile in tl.range(first, end, num_stages=1):
        next_signs, next_scales, next_means, next_mean_scales = load_codes(
            signs_ptr, scales_ptr, means_ptr, mean_scales_ptr, row0, row1, row2, row3, tile + 1 < end,
            D, BLOCK_D, PLANES, LEAF, PAGE, PAGES,
        )  # fmt: skip
        row0, row1, row2, row3 = page_rows(table, tile + 2, last_page, kv_head, kv_heads, PAGES)
        mass = leaf_mass(
            signs, scales, means, mean_scales, sign_code, mean_code, alpha, gamma,
            GC, BLOCK_D, PLANES, LEAF, LEAVES, ASM,
        )  # fmt: skip
        ok = (tile * LEAVES + leaf < complete)[:, None, None]
        tl.store(mass_at + tile * LEAVES, mass, mask=ok & (head < G)[None, :, :])
        mass = tl.where(ok, mass, float("-inf"))
        new = tl.maximum(top, mass)
        total = total * exp2(top - new, ASM) + exp2(mass - new, ASM)
        top = new
        signs, scales, means, mean_scales = next_signs, next_scales, next_means, next_mean_scales
    most = tl.max(top, 0)
    total = tl.sum(total * exp2(top - most[None, :, :], ASM), 0)
    stat_at = stat_ptr + (cell * splits + split) * (2 * GP) + head
    tl.store(stat_at, most)
    tl.store(stat_at + GP, total)
