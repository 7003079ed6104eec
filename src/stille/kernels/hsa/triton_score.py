"""Triton: leaf means and sign codes of keys, mean queries of units, and the scores of leaves.

q [H, M, D], k [K, N, D], any strides with a dense last axis. Rows of units are ordered (key head, unit, query head of
the group). Logarithms are base 2: `factor` is the attention scale times log2(e).
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# Triton's language is Python in looks only; its types are beyond the checker.

import triton
import triton.language as tl


@triton.jit
def summarise_kernel(
    k_ptr, rotation_ptr, mean_ptr, stand_ptr, code_ptr, code_scale_ptr, n, stride_kh, stride_kn, leaves,
    D: tl.constexpr, BLOCK_D: tl.constexpr, LEAF: tl.constexpr, PER: tl.constexpr, SIGN: tl.constexpr,
):  # fmt: skip
    """Mean of a leaf; with PER, that and the PER - 1 keys farthest from it also in `stand`; with SIGN, the int8 signs
    of its centred, rotated keys and their least-squares scales."""
    b, h = tl.program_id(0), tl.program_id(1).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    key = b * LEAF + tl.arange(0, LEAF)
    mask = (key < n)[:, None] & (d < D)[None, :]
    k = tl.load(k_ptr + h * stride_kh + key.to(tl.int64)[:, None] * stride_kn + d[None, :], mask=mask, other=0.0)
    k = k.to(tl.float32)
    mean = tl.sum(k, 0) / tl.minimum(n - b * LEAF, LEAF).to(tl.float32)
    leaf = h * leaves + b
    tl.store(mean_ptr + leaf * D + d, mean.to(mean_ptr.dtype.element_ty), mask=d < D)
    if PER > 0:
        j = tl.arange(0, LEAF)
        far = tl.sum(tl.where(mask, (k - mean[None, :]) * (k - mean[None, :]), 0.0), 1)
        at = stand_ptr + (h * PER * leaves + b) * D + d
        tl.store(at, mean.to(stand_ptr.dtype.element_ty), mask=d < D)
        for p in tl.static_range(1, PER):
            place = tl.min(tl.where(far == tl.max(far, 0), j, LEAF - 1), 0)  # equally far: the first
            one = tl.minimum(b * LEAF + place, n - 1).to(tl.int64)
            x = tl.load(k_ptr + h * stride_kh + one * stride_kn + d, mask=d < D, other=0.0)
            tl.store(at + p * leaves * D, x, mask=d < D)
            far = tl.where(j == place, -1.0, far)
    if SIGN:
        centred = tl.where(mask, k - mean[None, :], 0.0)
        square = (d < D)[:, None] & (d < D)[None, :]
        rotation = tl.load(rotation_ptr + d[:, None] * D + d[None, :], mask=square, other=0.0)
        turned = tl.dot(centred.to(rotation_ptr.dtype.element_ty), tl.trans(rotation), input_precision="ieee")
        out = leaf * LEAF + tl.arange(0, LEAF)
        tl.store(code_scale_ptr + out, tl.sum(tl.abs(turned), 1) / D)
        sign = tl.where(turned >= 0, 1.0, -1.0).to(tl.int8)
        tl.store(code_ptr + out[:, None] * D + d[None, :], sign, mask=(d < D)[None, :])


@triton.jit(do_not_specialize=["m", "units"])
def unit_means_kernel(
    q_ptr, rotation_ptr, mean_ptr, code_ptr, code_scale_ptr, m, units, stride_qh, stride_qm, factor,
    G: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, UNIT: tl.constexpr, SIGN: tl.constexpr,
):  # fmt: skip
    """Means of UNIT queries; with SIGN also rotated, at 8 bits, as the other side of an integer product."""
    u = tl.program_id(0) * 16 + tl.arange(0, 16)
    h = tl.program_id(1).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    acc = tl.zeros([16, BLOCK_D], tl.float32)
    for i in range(0, UNIT, 4):
        for j in tl.static_range(4):
            token = u * UNIT + i + j
            at = q_ptr + h * stride_qh + token.to(tl.int64)[:, None] * stride_qm + d[None, :]
            acc += tl.load(at, mask=(token < m)[:, None] & (d < D)[None, :], other=0.0).to(tl.float32)
    mean = acc / tl.maximum(tl.minimum(m - u * UNIT, UNIT), 1).to(tl.float32)[:, None]
    row = ((h // G) * units + u) * G + h % G
    ok = (u < units)[:, None] & (d < D)[None, :]
    tl.store(mean_ptr + row[:, None] * D + d[None, :], mean.to(mean_ptr.dtype.element_ty), mask=ok)
    if SIGN:
        square = (d < D)[:, None] & (d < D)[None, :]
        rotation = tl.load(rotation_ptr + d[:, None] * D + d[None, :], mask=square, other=0.0)
        turned = tl.dot(mean.to(rotation_ptr.dtype.element_ty), tl.trans(rotation), input_precision="ieee")
        scale = (tl.max(tl.abs(turned), 1) + 1e-12) / 127.0
        code = tl.floor(turned / scale[:, None] + 0.5).to(tl.int8)
        tl.store(code_ptr + row[:, None] * D + d[None, :], code, mask=ok)
        tl.store(code_scale_ptr + row, scale * factor, mask=u < units)


@triton.jit(do_not_specialize=["rows", "n", "start", "leaves", "cand_width"])
def leaf_mass_kernel(
    q_ptr, q_scale_ptr, code_ptr, code_scale_ptr, cand_ptr, cand_count_ptr, mass_ptr, rows, row_stride, n,
    stride_ch, stride_cn, stride_scale, start, leaves, cand_width, factor,
    UNITS: tl.constexpr, G: tl.constexpr, BLOCK_R: tl.constexpr, TILE: tl.constexpr, UNIT: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, LEAF: tl.constexpr, STEP: tl.constexpr, HAS_CAND: tl.constexpr,
    SIGN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Log2-mass of leaves: mass[k, row, leaf or candidate] = log2 sum_j 2^(q . code_j * scales)."""
    # Late rows see the most keys: they start first.
    span, h = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1).to(tl.int64)
    r, d = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_D)
    row = span * UNITS * G + r
    ok = (r < UNITS * G) & (row < rows)
    row = h * rows + row
    q = tl.load(q_ptr + row[:, None] * D + d[None, :], mask=ok[:, None] & (d < D)[None, :], other=0.0)
    if SIGN:
        q_scale = tl.load(q_scale_ptr + row, mask=ok, other=0.0)
    limit = tl.minimum((start + (span + 1) * UNITS * UNIT - TILE) // LEAF, leaves)
    if HAS_CAND:
        limit = tl.load(cand_count_ptr + h * tl.num_programs(0) + span)
        cand_ptr += (h * tl.num_programs(0) + span) * cand_width
    j = tl.arange(0, STEP * LEAF)
    step = tl.arange(0, STEP)
    for b in tl.range(0, limit, STEP, num_stages=STAGES):
        if HAS_CAND:
            at = b + j // LEAF
            key = tl.load(cand_ptr + at, mask=at < limit, other=0) * LEAF + j % LEAF
        else:
            key = b * LEAF + j
        inside = key < n
        at = code_ptr + h * stride_ch + key.to(tl.int64)[:, None] * stride_cn + d[None, :]
        code = tl.load(at, mask=inside[:, None] & (d < D)[None, :], other=0.0)
        if SIGN:
            x = tl.dot(q, tl.trans(code)).to(tl.float32) * q_scale[:, None]
            x = x * tl.load(code_scale_ptr + h * stride_scale + key, mask=inside, other=0.0)[None, :]
        else:
            x = tl.dot(q, tl.trans(code), input_precision="ieee") * factor
        x = tl.reshape(x, [BLOCK_R, STEP, LEAF])
        top = tl.max(x, 2)
        mass = top + tl.log2(tl.sum(tl.exp2(x - top[:, :, None]), 2))
        out = mass_ptr + row[:, None] * row_stride + (b + step)[None, :]
        tl.store(out, mass, mask=ok[:, None] & (b + step < limit)[None, :])


@triton.jit(do_not_specialize=["rows", "start", "leaves", "cand_width"])
def centre_mass_kernel(
    q_ptr, mean_ptr, cand_ptr, cand_count_ptr, mass_ptr, rows, row_stride, leaves, start, cand_width, factor,
    UNITS: tl.constexpr, G: tl.constexpr, BLOCK_R: tl.constexpr, TILE: tl.constexpr, UNIT: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, LEAF: tl.constexpr, STEP: tl.constexpr, HAS_CAND: tl.constexpr,
):  # fmt: skip
    """What the leaf's mean adds to the mass of centred codes: mass[k, row, leaf or candidate] = q . mean * factor."""
    span, h = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1).to(tl.int64)
    r, d = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_D)
    row = span * UNITS * G + r
    ok = (r < UNITS * G) & (row < rows)
    row = h * rows + row
    q = tl.load(q_ptr + row[:, None] * D + d[None, :], mask=ok[:, None] & (d < D)[None, :], other=0.0)
    limit = tl.minimum((start + (span + 1) * UNITS * UNIT - TILE) // LEAF, leaves)
    if HAS_CAND:
        limit = tl.load(cand_count_ptr + h * tl.num_programs(0) + span)
        cand_ptr += (h * tl.num_programs(0) + span) * cand_width
    j = tl.arange(0, STEP)
    for b in range(0, limit, STEP):
        inside = b + j < limit
        leaf = tl.load(cand_ptr + b + j, mask=inside, other=0) if HAS_CAND else b + j
        at = mean_ptr + (h * leaves + leaf)[:, None] * D + d[None, :]
        mean = tl.load(at, mask=inside[:, None] & (d < D)[None, :], other=0.0)
        x = tl.dot(q, tl.trans(mean), input_precision="ieee") * factor
        out = mass_ptr + row[:, None] * row_stride + (b + j)[None, :]
        tl.store(out, x, mask=ok[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["m", "units", "start", "spans", "leaves"])
def span_share_kernel(
    q_ptr, mean_ptr, share_ptr, m, units, leaves, start, factor, spans,
    SPANS: tl.constexpr, SPAN_ROWS: tl.constexpr, SPAN_MEANS: tl.constexpr, G: tl.constexpr, UNIT: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, LEAF: tl.constexpr, STEP: tl.constexpr, COARSE: tl.constexpr,
):  # fmt: skip
    """share[k, span, leaf]: a leaf's largest share of the mass, by mean keys, over the rows of a span.

    The rows are, for each head of the group, SPAN_MEANS means of COARSE units; SPAN_ROWS is their number, padded. Two
    passes over the means instead of a buffer of all rows' scores.
    """
    block, h = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    r = tl.arange(0, SPANS * SPAN_ROWS)
    span = block * SPANS + r // SPAN_ROWS
    inner = r % SPAN_ROWS
    first = (span * SPAN_MEANS + inner // G) * COARSE
    real = (inner // G < SPAN_MEANS) & (first < units)
    q = tl.zeros([SPANS * SPAN_ROWS, BLOCK_D], tl.float32)
    for i in tl.static_range(COARSE):
        ok = real & (first + i < units)
        row = (h * units + first + i) * G + inner % G
        at = q_ptr + row[:, None] * D + d[None, :]
        weight = tl.minimum(m - (first + i) * UNIT, UNIT).to(tl.float32)  # the last unit may have fewer queries
        q += tl.load(at, mask=ok[:, None] & (d < D)[None, :], other=0.0).to(tl.float32) * weight[:, None]
    q = q / tl.maximum(tl.minimum(m - first * UNIT, COARSE * UNIT), 1).to(tl.float32)[:, None]
    q = q.to(q_ptr.dtype.element_ty)
    # Leaves before the span: shares of keys inside it would let an earlier row's candidates depend on its future.
    own = tl.where(real, tl.minimum((start + span * SPAN_MEANS * COARSE * UNIT) // LEAF, leaves), 0)
    limit = tl.max(own, 0)
    j = tl.arange(0, STEP)
    top = tl.full([SPANS * SPAN_ROWS], float("-inf"), tl.float32)
    total = tl.zeros([SPANS * SPAN_ROWS], tl.float32)
    for b in range(0, limit, STEP):
        at = mean_ptr + (h * leaves + b + j)[:, None] * D + d[None, :]
        mean = tl.load(at, mask=(b + j < limit)[:, None] & (d < D)[None, :], other=0.0)
        x = tl.dot(q, tl.trans(mean), input_precision="ieee") * factor
        x = tl.where((b + j)[None, :] < own[:, None], x, float("-inf"))
        new = tl.maximum(tl.maximum(top, tl.max(x, 1)), -1e30)
        total = total * tl.exp2(top - new) + tl.sum(tl.exp2(x - new[:, None]), 1)
        top = new
    lse = top + tl.log2(total)
    span_out = block * SPANS + tl.arange(0, SPANS)
    for b in range(0, limit, STEP):
        at = mean_ptr + (h * leaves + b + j)[:, None] * D + d[None, :]
        mean = tl.load(at, mask=(b + j < limit)[:, None] & (d < D)[None, :], other=0.0)
        x = tl.dot(q, tl.trans(mean), input_precision="ieee") * factor
        p = tl.where((b + j)[None, :] < own[:, None], tl.exp2(x - lse[:, None]), 0.0)
        p = tl.max(tl.reshape(p, [SPANS, SPAN_ROWS, STEP]), 1)
        out = share_ptr + (h * spans + span_out)[:, None] * leaves + (b + j)[None, :]
        tl.store(out, p, mask=(span_out < spans)[:, None] & (b + j < limit)[None, :])


@triton.jit(do_not_specialize=["m", "n", "first", "tail", "leaves"])
def tail_mass_kernel(
    q_ptr, k_ptr, length_ptr, mass_ptr, m, n, first, tail, stride_qh, stride_qm, stride_kh, stride_kn, leaves, heads,
    factor, G: tl.constexpr, TILE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    LEAF: tl.constexpr, STEP: tl.constexpr, HAS_LENGTH: tl.constexpr,
):  # fmt: skip
    """mass[h, e, row, leaf]: natural log-mass of past leaves for each row of a tile that holds a query of the tail.

    Tile e counts from the end of the sequence; -inf for leaves not in the past of the tile and for rows that are none.
    """
    block, e, s = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    end = tl.load(length_ptr + s // heads).to(tl.int32) if HAS_LENGTH else m
    tile = (end - 1) // TILE - e
    least = tl.maximum(end - tail, 0) // TILE * TILE
    row, d = tile * TILE + tl.arange(0, TILE), tl.arange(0, BLOCK_D)
    ok = (row >= least) & (row < end)
    own = (first + tile * TILE) // LEAF
    step = block * STEP + tl.arange(0, STEP)
    cell = (s * tl.num_programs(1) + e) * TILE + tl.arange(0, TILE)
    out = mass_ptr + cell[:, None] * leaves + step[None, :]
    mass = tl.full([TILE, STEP], float("-inf"), tl.float32)
    if (tile * TILE >= least) & (block * STEP < own):
        q_at = q_ptr + s * stride_qh + row.to(tl.int64)[:, None] * stride_qm + d[None, :]
        q = tl.load(q_at, mask=ok[:, None] & (d < D)[None, :], other=0.0)
        key = block * STEP * LEAF + tl.arange(0, STEP * LEAF)
        k_at = k_ptr + (s // G) * stride_kh + key.to(tl.int64)[:, None] * stride_kn + d[None, :]
        k = tl.load(k_at, mask=(key < n)[:, None] & (d < D)[None, :], other=0.0)
        x = tl.dot(q, tl.trans(k), input_precision="ieee") * factor
        x = tl.reshape(x, [TILE, STEP, LEAF])
        top = tl.max(x, 2)
        mass = (top + tl.log2(tl.sum(tl.exp2(x - top[:, :, None]), 2))) * 0.6931471805599453
        mass = tl.where(mass == mass, mass, 1e30)  # a leaf that holds NaN is chosen, not hidden
        mass = tl.where(ok[:, None] & (step < own)[None, :], mass, float("-inf"))
    tl.store(out, mass, mask=(step < leaves)[None, :])


@triton.jit
def add_means(q, at, ok, top, total, D: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr):
    """Largest score of each row and its sum of exponentials, base 2, with the means at `at` taken in."""
    if MASKED or BLOCK_D > D:
        mean = tl.load(at, mask=ok[:, None] & (tl.arange(0, BLOCK_D) < D)[None, :], other=0.0)
    else:
        mean = tl.load(at)
    x = tl.dot(q, tl.trans(mean), input_precision="ieee")
    if MASKED:
        x = tl.where(ok[None, :], x, float("-inf"))
    new = tl.maximum(top, tl.max(x, 1))
    return new, total * tl.exp2(top - new) + tl.sum(tl.exp2(x - new[:, None]), 1)


@triton.jit(do_not_specialize=["m", "start", "leaves", "cand_width", "cand_spans"])
def row_share_kernel(
    q_ptr, stand_ptr, cand_ptr, cand_count_ptr, share_ptr, m, start, stride_qh, stride_qm, leaves, row_stride,
    cand_width, cand_spans, tiles_per_cand, factor, weight,
    G: tl.constexpr, TILE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, LEAF: tl.constexpr, PER: tl.constexpr,
    STEP: tl.constexpr, WIDE: tl.constexpr, HAS_CAND: tl.constexpr,
):  # fmt: skip
    """share[h, tile, leaf or candidate]: weight times the largest share that any row gives to what stands for the leaf.

    What stands for leaves lies in PER planes [leaves, D], their means first. A pass over the means gives each row its
    total. Another takes the maximum over planes component by component, then, once for all planes, that over rows: with
    leaves as rows of the product it stays within a warp.
    """
    t, s = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1).to(tl.int64)
    tiles = tl.num_programs(0)
    h = s // G
    row, d = t * TILE + tl.arange(0, TILE), tl.arange(0, BLOCK_D)
    d_mask = (d < D)[None, :]
    q_at = q_ptr + s * stride_qh + row.to(tl.int64)[:, None] * stride_qm + d[None, :]
    q = tl.load(q_at, mask=(row < m)[:, None] & d_mask, other=0.0)
    q = (q.to(tl.float32) * factor).to(q.dtype)  # one multiplication of each query instead of one of each score
    own = (start + t * TILE) // LEAF
    stand_ptr += h * PER * leaves * D
    top = tl.full([TILE], -1e30, tl.float32)
    total = tl.zeros([TILE], tl.float32)
    wide = tl.arange(0, WIDE)
    if HAS_CAND:
        cand = h * cand_spans + t // tiles_per_cand
        limit = tl.load(cand_count_ptr + cand)
        cand_ptr += cand * cand_width
        for b in range(0, limit, WIDE):
            leaf = tl.load(cand_ptr + b + wide, mask=b + wide < limit, other=2147483647)
            at = stand_ptr + leaf.to(tl.int64)[:, None] * D + d[None, :]
            top, total = add_means(q, at, leaf < own, top, total, D, BLOCK_D, True)
    else:
        limit = own
        whole = own // WIDE * WIDE
        for b in range(0, whole, WIDE):
            at = stand_ptr + (b + wide)[:, None] * D + d[None, :]
            top, total = add_means(q, at, b + wide < own, top, total, D, BLOCK_D, False)
        if whole < own:
            at = stand_ptr + (whole + wide)[:, None] * D + d[None, :]
            top, total = add_means(q, at, whole + wide < own, top, total, D, BLOCK_D, True)
    lse = top + tl.log2(tl.maximum(total, 1e-30)) + tl.log2(LEAF * 1.0)
    lse = tl.where(row < m, lse, float("inf"))  # rows that are none look for nothing
    q = tl.trans(q)
    j = tl.arange(0, STEP)
    out = share_ptr + (s * tiles + t) * row_stride
    for b in range(0, limit, STEP):
        leaf = b + j
        if HAS_CAND:
            leaf = tl.load(cand_ptr + b + j, mask=b + j < limit, other=2147483647)
        ok = leaf < own
        at = stand_ptr + leaf.to(tl.int64)[:, None] * D + d[None, :]
        mean = tl.load(at, mask=ok[:, None] & d_mask, other=0.0)
        best = tl.dot(mean, q, input_precision="ieee") + tl.log2(LEAF - PER + 1.0)  # the mean stands for so many keys
        for p in tl.static_range(1, PER):
            outlier = tl.load(at + p * leaves * D, mask=ok[:, None] & d_mask, other=0.0)
            best = tl.maximum(best, tl.dot(outlier, q, input_precision="ieee"))
        share = tl.where(ok, tl.exp2(tl.max(best - lse[None, :], 1)) * weight, 0.0)
        tl.store(out + b + j, share, mask=b + j < limit)
