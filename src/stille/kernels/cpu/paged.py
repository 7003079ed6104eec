"""Attention over the paged cache: a tile of query rows of one sequence against the pages of one KV head.

Keys lie transposed in their page ([D, 64]), so scores as well as outputs are sums of cache rows times a scalar and
need no horizontal additions. Softmax is taken page by page with a running maximum; every `SPLIT_PAGES` pages the piece
is closed and merged into the total. The boundaries depend on positions only, so it does not matter, bit for bit,
whether the pieces of a row were computed by one thread (prefill) or by several (decode of a long context).

With sparse attention (`sparse.py`) a row leaves out parts of pages, quarters of 16 keys: for the row they are as if
they held nothing, so neither rows of its tile that read them nor empty pieces change its result.

A record is [maximum, sum, 14 unused, D accumulated values].
"""

from stille.kernels.cpu import job as J
from stille.kernels.cpu.simd import (
    add,
    broadcast,
    element_bytes,
    exp_f32,
    field,
    inner,
    keep_first,
    load,
    load_f32,
    load_i32,
    max_lanes,
    mul,
    mul_add,
    prefetch_span,
    store,
    store_f32,
    sub,
    sum_lanes,
    vexp,
    vmax,
)
from stille.kernels.cpu.sparse import read_in_page, read_in_split
from stille.kernels.cpu.tiles import call_kernel

_NOTHING = -1e30  # below every score; finite, so that differences of two of them are numbers
_ALL = 15  # quarters of a page


@inner
def _clear(record, dim):
    store_f32(record, _NOTHING)
    store_f32(record + 4, 0.0)
    zero = broadcast(0.0)
    for i in range(0, dim, 16):
        store(record + 64 + 4 * i, zero)


@inner
def _merge(total, piece, dim):
    """total += piece."""
    m0, m1 = load_f32(total), load_f32(piece)
    m = max(m0, m1)
    a, b = exp_f32(m0 - m), exp_f32(m1 - m)
    store_f32(total, m)
    store_f32(total + 4, load_f32(total + 4) * a + load_f32(piece + 4) * b)
    va, vb = broadcast(a), broadcast(b)
    for i in range(64, 64 + 4 * dim, 64):
        store(total + i, mul_add(load(piece + i), vb, mul(load(total + i), va)))


@inner
def _write(record, dim, out):
    factor = broadcast(1.0 / load_f32(record + 4))
    for i in range(0, 4 * dim, 64):
        store(out + i, mul(load(record + 64 + i), factor))


@inner
def _softmax_page(scores, limit, quarters, record, alpha):
    """Scores of a page -> weights, in place; only the first `limit` tokens are visible, and of these what is in one of
    the `quarters`, bits."""
    if limit <= 0 or quarters == 0:
        zero = broadcast(0.0)
        for i in range(0, 256, 64):
            store(scores + i, zero)
        store_f32(alpha, 1.0)
        return
    a, b, c, d = load(scores), load(scores + 64), load(scores + 128), load(scores + 192)
    whole = limit >= J.PAGE and quarters == _ALL
    keep_a, keep_b = limit * (quarters & 1), (limit - 16) * (quarters >> 1 & 1)
    keep_c, keep_d = (limit - 32) * (quarters >> 2 & 1), (limit - 48) * (quarters >> 3 & 1)
    if not whole:
        a, b = keep_first(a, keep_a, _NOTHING), keep_first(b, keep_b, _NOTHING)
        c, d = keep_first(c, keep_c, _NOTHING), keep_first(d, keep_d, _NOTHING)
    old = load_f32(record)
    peak = max(old, max_lanes(vmax(vmax(a, b), vmax(c, d))))
    peaks = broadcast(peak)
    a, b, c, d = vexp(sub(a, peaks)), vexp(sub(b, peaks)), vexp(sub(c, peaks)), vexp(sub(d, peaks))
    if not whole:
        a, b = keep_first(a, keep_a, 0.0), keep_first(b, keep_b, 0.0)
        c, d = keep_first(c, keep_c, 0.0), keep_first(d, keep_d, 0.0)
    store(scores, a)
    store(scores + 64, b)
    store(scores + 128, c)
    store(scores + 192, d)
    shrink = exp_f32(old - peak)
    store_f32(alpha, shrink)
    store_f32(record, peak)
    store_f32(record + 4, load_f32(record + 4) * shrink + sum_lanes(add(add(a, b), add(c, d))))


@inner
def _prefetch_keys(keys, dim, size, quarters):
    """Start loading parts of a page's keys."""
    if quarters == _ALL:
        prefetch_span(keys, dim * J.PAGE * size)
        return
    for line in range(keys, keys + dim * J.PAGE * size, J.PAGE * size):
        for i in range(4):
            if quarters >> i & 1:
                prefetch_span(line + 16 * i * size, 64)


@inner
def attend_item(target, job, layer, item, scratch):
    """One tile x one KV head: reads q from QKV, writes ATTENDED, or PARTIALS if the tile is one split of several."""
    kv_heads, heads, dim = field(job, J.KV_HEADS), field(job, J.HEADS), field(job, J.HEAD_DIM)
    tile = field(job, J.TILES) + item // kv_heads * 4 * J.TILE_FIELDS
    kv_head, group, size = item % kv_heads, heads // kv_heads, element_bytes(target)
    first, rows = load_i32(tile + 4 * J.TILE_ROW), load_i32(tile + 4 * J.TILE_ROWS)
    split_begin, split_end = load_i32(tile + 4 * J.TILE_SPLIT), load_i32(tile + 4 * J.TILE_SPLIT_END)
    sequence = load_i32(tile + 4 * J.TILE_SEQUENCE)
    pages = field(job, J.PAGE_TABLE) + 4 * sequence * field(job, J.PAGE_TABLE_WIDTH)
    position = load_i32(field(job, J.POSITIONS) + 4 * first)
    end = position + rows  # tokens that the last row sees
    vectors, record_bytes = rows * group, 4 * (J.RECORD_HEADER + dim)

    q = scratch
    scores = q + 4 * dim * J.TILE_VECTORS
    pieces = scores + 4 * J.PAGE * J.TILE_VECTORS
    totals = pieces + record_bytes * J.TILE_VECTORS
    alpha = totals + record_bytes * J.TILE_VECTORS
    zeros, ones = alpha + 4 * J.TILE_VECTORS, alpha + 8 * J.TILE_VECTORS
    stride = 4 * dim * (heads + 2 * kv_heads)
    source = field(job, J.QKV) + first * stride + 4 * dim * group * kv_head
    for r in range(rows):
        for i in range(0, 4 * dim * group, 64):
            store(q + 4 * dim * group * r + i, load(source + r * stride + i))
    for i in range(0, 4 * J.TILE_VECTORS, 64):
        store(zeros + i, broadcast(0.0))
        store(ones + i, broadcast(1.0))
    for v in range(vectors):
        _clear(totals + v * record_bytes, dim)

    kernel, partial = field(job, J.ATTEND), load_i32(field(job, J.ROW_PARTIALS) + 4 * first)
    leaves, words = field(job, J.LEAVES), field(job, J.SELECTION_WORDS)
    choice_stride = 8 * words * kv_heads
    choice = field(job, J.SELECTION) + 8 * words * (first * kv_heads + kv_head)
    for split in range(split_begin, split_end):
        if leaves > 0 and partial < 0 and not read_in_split(choice, choice_stride, rows, split, leaves):
            continue
        for v in range(vectors):
            _clear(pieces + v * record_bytes, dim)
        for number in range(split * J.SPLIT_PAGES, min((split + 1) * J.SPLIT_PAGES, (end - 1) // J.PAGE + 1)):
            read = _ALL
            if leaves > 0:
                read = 0
                for r in range(rows):
                    read |= read_in_page(choice + r * choice_stride, number, leaves)
                if read == 0:
                    continue
            page = load_i32(pages + 4 * number)
            shift = (page * kv_heads + kv_head) * dim * J.PAGE * size
            keys, values = field(layer, J.KEYS) + shift, field(layer, J.VALUES) + shift
            quarter = 0
            while quarter < 4:  # runs of neighbouring quarters
                begin = quarter
                while quarter < 4 and read >> quarter & 1:
                    quarter += 1
                columns = 16 * (quarter - begin)
                if columns > 0:
                    prefetch_span(values + 16 * begin * dim * size, columns * dim * size)
                    at, line = scores + 64 * begin, keys + 16 * begin * size
                    call_kernel(kernel, vectors, columns, q, 4 * dim, dim, line, J.PAGE * size, zeros, at, 4 * J.PAGE)
                quarter += 1
            for r in range(rows):
                limit, quarters = position + r + 1 - number * J.PAGE, _ALL
                if leaves > 0:
                    quarters = read_in_page(choice + r * choice_stride, number, leaves)
                for v in range(r * group, (r + 1) * group):
                    _softmax_page(
                        scores + 4 * J.PAGE * v, limit, quarters, pieces + record_bytes * v, alpha + 4 * v
                    )  # fmt: skip
            after, wanted = number + 1, _ALL
            if leaves > 0:  # the next page of the split that is read
                wanted = 0
                while wanted == 0 and after % J.SPLIT_PAGES > 0:
                    wanted = read_in_page(choice, after, leaves)
                    after += wanted == 0
            if wanted != 0 and after * J.PAGE < end:
                following = load_i32(pages + 4 * after) * kv_heads + kv_head
                _prefetch_keys(field(layer, J.KEYS) + following * dim * J.PAGE * size, dim, size, wanted)
            visible, shrink, quarter = min(J.PAGE, end - number * J.PAGE), alpha, 0
            while quarter < 4:
                begin = quarter
                while quarter < 4 and read >> quarter & 1:
                    quarter += 1
                depth = min(16 * quarter, visible) - 16 * begin
                if depth > 0:
                    a, b = scores + 64 * begin, values + 16 * begin * dim * size
                    call_kernel(
                        kernel, vectors, dim, a, 4 * J.PAGE, depth, b, dim * size, shrink, pieces + 64, record_bytes
                    )
                    shrink = ones
                quarter += 1
        for v in range(vectors):
            _merge(totals + v * record_bytes, pieces + v * record_bytes, dim)

    if partial < 0:
        for r in range(rows):
            for j in range(group):
                out = field(job, J.ATTENDED) + 4 * dim * ((first + r) * heads + kv_head * group + j)
                _write(totals + (r * group + j) * record_bytes, dim, out)
        return
    for j in range(group):
        place = (partial * heads + kv_head * group + j) * field(job, J.MAX_SPLITS) + split_begin
        out, piece = field(job, J.PARTIALS) + place * record_bytes, pieces + j * record_bytes
        for i in range(0, record_bytes, 64):
            store(out + i, load(piece + i))


@inner
def combine_row(job, row, scratch):
    """ATTENDED[row] from its PARTIALS, if the row was split."""
    partial = load_i32(field(job, J.ROW_PARTIALS) + 4 * row)
    if partial < 0:
        return
    heads, dim = field(job, J.HEADS), field(job, J.HEAD_DIM)
    record_bytes = 4 * (J.RECORD_HEADER + dim)
    splits = load_i32(field(job, J.POSITIONS) + 4 * row) // (J.PAGE * J.SPLIT_PAGES) + 1
    for head in range(heads):
        record = field(job, J.PARTIALS) + (partial * heads + head) * field(job, J.MAX_SPLITS) * record_bytes
        _clear(scratch, dim)
        for _ in range(splits):
            if load_f32(record) > _NOTHING:  # sparse attention leaves pieces empty
                _merge(scratch, record, dim)
            record += record_bytes
        _write(scratch, dim, field(job, J.ATTENDED) + 4 * dim * (row * heads + head))
