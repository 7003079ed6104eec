"""Sparse attention over the paged cache: each row reads a budget of pages of its own choice.

A page that is full gets a summary for each KV head: hi, halfway between the mean of its keys and their maximum in each
dimension, and lo, halfway between mean and minimum. A query's score of the page is sum_d max(q_d hi_d, q_d lo_d): the
mean of its score of the mean key and of the upper bound that J. Tang et al., "Quest" (2406.10774), rank pages by. On
real heads it finds more of the attention than either. Scores become shares by a softmax over the full pages before the
row's own, and the heads of a group add theirs, so that one choice serves the group.

A row reads sinks, local window and its own page always, then the pages of the largest shares, up to the budget; equal
shares: the earlier page. If its pages fit the budget it reads them all. The choice depends on the row's query and on
the pages before it, on nothing else in the step.
"""

from dataclasses import dataclass

from stille.errors import ConfigError
from stille.kernels.cpu import job as J
from stille.kernels.cpu.simd import (
    add,
    broadcast,
    element_bytes,
    field,
    inner,
    load,
    load_elements,
    load_f32,
    load_i32,
    max_lanes,
    mul_add,
    store,
    store_f32,
    store_i64,
    sub,
    sum_lanes,
    vexp,
    vmax,
)

_NOTHING = -1e30  # below every score
_LANES = J.TILE_VECTORS  # query vectors of a tile, each in its own column
_ROW = 4 * _LANES


@dataclass(frozen=True)
class PageBudget:
    """How many pages a row reads.

    Attributes:
        keep: in all.
        sinks: first pages, always read.
        local: pages right before the row's own, always read.

    Raises:
        ConfigError: nothing is left to choose from.
    """

    keep: int
    sinks: int
    local: int

    def __post_init__(self) -> None:
        if min(self.sinks, self.local) < 0 or self.keep < self.sinks + self.local + 1:
            raise ConfigError(
                f"a budget of {self.keep} pages of {J.PAGE} keys cannot hold {self.sinks} pages of sinks, {self.local} "
                f"of the local window and the row's own: give a budget of at least "
                f"{(self.sinks + self.local + 1) * J.PAGE} keys"
            )


def summary_bytes(kv_heads: int, head_dim: int) -> int:
    """Of one page in one layer."""
    return 8 * kv_heads * head_dim


def scratch_bytes(head_dim: int, pages: int) -> int:
    """What `select_item` needs for sequences of so many pages."""
    return _ROW * (2 * head_dim + pages + 1) + 4 * pages


@inner
def summarise_item(target, job, layer, item):
    """Summary of one page that this step filled, for one KV head: hi[D], lo[D]."""
    kv_heads, dim, size = field(job, J.KV_HEADS), field(job, J.HEAD_DIM), element_bytes(target)
    page = load_i32(field(job, J.FULL_PAGES) + 4 * (item // kv_heads))
    place = page * kv_heads + item % kv_heads
    keys, out = field(layer, J.KEYS) + place * dim * J.PAGE * size, field(layer, J.SUMMARIES) + 8 * dim * place
    zero = broadcast(0.0)
    for i in range(dim):
        line = keys + i * J.PAGE * size
        a, b = load_elements(target, line), load_elements(target, line + 16 * size)
        c, d = load_elements(target, line + 32 * size), load_elements(target, line + 48 * size)
        mean = sum_lanes(add(add(a, b), add(c, d))) / J.PAGE
        high = max_lanes(vmax(vmax(a, b), vmax(c, d)))
        low = -max_lanes(vmax(vmax(sub(zero, a), sub(zero, b)), vmax(sub(zero, c), sub(zero, d))))
        store_f32(out + 4 * i, 0.5 * (mean + high))
        store_f32(out + 4 * (dim + i), 0.5 * (mean + low))


@inner
def _spread_queries(source, stride, rows, group, dim, positive, negative):
    """Positive and negative parts of the queries, a column each; columns up to the next 16 are zero."""
    for v in range(rows * group, (rows * group + 15) // 16 * 16):
        for i in range(dim):
            store_f32(positive + _ROW * i + 4 * v, 0.0)
            store_f32(negative + _ROW * i + 4 * v, 0.0)
    for r in range(rows):
        for g in range(group):
            query, column = source + r * stride + 4 * dim * g, 4 * (r * group + g)
            for i in range(dim):
                x = load_f32(query + 4 * i)
                store_f32(positive + _ROW * i + column, max(x, 0.0))
                store_f32(negative + _ROW * i + column, min(x, 0.0))


@inner
def _score_page(summary, dim, positive, negative, width, out):
    for first in range(0, 4 * width, 64):
        a, b = broadcast(0.0), broadcast(0.0)
        for i in range(dim):
            a = mul_add(load(positive + _ROW * i + first), broadcast(load_f32(summary + 4 * i)), a)
            b = mul_add(load(negative + _ROW * i + first), broadcast(load_f32(summary + 4 * (dim + i))), b)
        store(out + first, add(a, b))


@inner
def _weigh(scores, pages, width, inverse):
    """Scores -> weights in each column, and one over their sum."""
    for first in range(0, 4 * width, 64):
        peak, total = broadcast(_NOTHING), broadcast(0.0)
        for j in range(pages):
            peak = vmax(peak, load(scores + _ROW * j + first))
        for j in range(pages):
            weight = vexp(sub(load(scores + _ROW * j + first), peak))
            store(scores + _ROW * j + first, weight)
            total = add(total, weight)
        store(inverse + first, total)
    for v in range(width):
        store_f32(inverse + 4 * v, 1.0 / load_f32(inverse + 4 * v))


@inner
def _count(shares, begin, stop, least):
    """Pages whose share, as the integer that its bits are, is at least that; shares are positive, so order is kept."""
    count = 0
    for j in range(begin, stop):
        if load_i32(shares + 4 * j) >= least:
            count += 1
    return count


@inner
def _mark(out, words, own, shares, begin, stop, above, ties):
    """Bits of the pages that a row reads: all but those from `begin` to `stop`, and of these the ones with shares
    above, and so many of those equal to it."""
    for w in range(words):
        bits = 0
        for j in range(64 * w, min(64 * w + 64, own + 1)):
            read = j < begin or j >= stop
            if not read:
                share = load_i32(shares + 4 * j)
                read = share > above
                if share == above and ties > 0:
                    read, ties = True, ties - 1
            if read:
                bits |= 1 << (j - 64 * w)
        store_i64(out + 8 * w, bits)


@inner
def select_item(job, layer, item, scratch):
    """SELECTION of one tile's rows for one KV head."""
    kv_heads, heads, dim = field(job, J.KV_HEADS), field(job, J.HEADS), field(job, J.HEAD_DIM)
    tile = field(job, J.TILES) + item // kv_heads * 4 * J.TILE_FIELDS
    if load_i32(tile + 4 * J.TILE_SPLIT) != 0:
        return  # another tile holds the same row
    kv_head, group = item % kv_heads, heads // kv_heads
    first, rows = load_i32(tile + 4 * J.TILE_ROW), load_i32(tile + 4 * J.TILE_ROWS)
    table = field(job, J.PAGE_TABLE) + 4 * load_i32(tile + 4 * J.TILE_SEQUENCE) * field(job, J.PAGE_TABLE_WIDTH)
    position = load_i32(field(job, J.POSITIONS) + 4 * first)
    keep, sinks, local = field(job, J.KEEP_PAGES), field(job, J.SINK_PAGES), field(job, J.LOCAL_PAGES)
    words = field(job, J.SELECTION_WORDS)
    out, stride = field(job, J.SELECTION) + 8 * words * (first * kv_heads + kv_head), 8 * words * kv_heads
    pages = (position + rows - 1) // J.PAGE  # before the last row's own

    width = (rows * group + 15) // 16 * 16
    positive = scratch
    negative = positive + _ROW * dim
    inverse = negative + _ROW * dim
    scores = inverse + _ROW
    shares = scores + _ROW * pages
    if pages + 1 > keep:
        line = 4 * dim * (heads + 2 * kv_heads)
        source = field(job, J.QKV) + first * line + 4 * dim * group * kv_head
        _spread_queries(source, line, rows, group, dim, positive, negative)
        for j in range(pages):
            summary = field(layer, J.SUMMARIES) + 8 * dim * (load_i32(table + 4 * j) * kv_heads + kv_head)
            _score_page(summary, dim, positive, negative, width, scores + _ROW * j)
        for r in range(rows):  # a page that a later row of the tile fills is in this row's future
            for j in range((position + r) // J.PAGE, pages):
                for g in range(group):
                    store_f32(scores + _ROW * j + 4 * (r * group + g), _NOTHING)
        _weigh(scores, pages, width, inverse)

    for r in range(rows):
        own = (position + r) // J.PAGE
        begin, stop = sinks, max(sinks, own - local)
        need = keep - (own + 1 - (stop - begin))
        if need >= stop - begin:
            stop = begin  # everything is read
        above = 0
        for j in range(begin, stop):
            share = 0.0
            for v in range(r * group, (r + 1) * group):
                share += load_f32(scores + _ROW * j + 4 * v) * load_f32(inverse + 4 * v)
            store_f32(shares + 4 * j, share)
        if stop > begin:  # the largest number that `need` shares reach, bit by bit
            for i in range(31):
                trial = above | 1 << (30 - i)
                if _count(shares, begin, stop, trial) >= need:
                    above = trial
        ties = need - _count(shares, begin, stop, above + 1)
        _mark(out + r * stride, words, own, shares, begin, stop, above, ties)
