"""Sparse attention over the paged cache: each row reads a budget of keys of its own choice.

Keys are read or left in leaves of 16, 32 or 64, parts of a page. A leaf that is full gets a summary for each KV head:
hi, halfway between the mean of its keys and their maximum in each dimension, and lo, halfway between mean and minimum.
A query's score of the leaf is sum_d max(q_d hi_d, q_d lo_d): the mean of its score of the mean key and of the upper
bound that J. Tang et al., "Quest" (2406.10774), rank pages by. On real heads it finds more of the attention than
either. Scores become shares by a softmax over the full leaves before the row's own, and the heads of a group add
theirs, so that one choice serves the group.

A row reads sinks, local window and its own leaf always, then the leaves of the largest shares, up to the budget; equal
shares: the earlier leaf. If its leaves fit the budget it reads them all. The choice depends on the row's query and on
the keys before it, on nothing else in the step.
"""

from dataclasses import dataclass

from stille.errors import ConfigError
from stille.kernels.cpu import job as J
from stille.kernels.cpu.simd import (
    add,
    broadcast,
    count_at_least,
    element_bytes,
    field,
    float_of_bits,
    inner,
    keep_first,
    load,
    load_elements,
    load_f32,
    load_i32,
    max_lanes,
    mul,
    mul_add,
    prefetch_span,
    store,
    store_elements,
    store_f32,
    store_i64,
    sub,
    sum_lanes,
    vexp,
    vmax,
)

_NOTHING = -1e30  # below every score


@dataclass(frozen=True)
class KeyBudget:
    """What a row reads; all but `leaf` count leaves.

    Attributes:
        leaf: keys that are read or left together: 16, 32 or 64.
        keep: in all.
        sinks: first leaves, always read.
        local: leaves right before the row's own, always read.

    Raises:
        ConfigError: another leaf, or a budget that cannot hold what is always read.
    """

    leaf: int
    keep: int
    sinks: int
    local: int

    def __post_init__(self) -> None:
        if self.leaf not in (16, 32, 64):
            raise ConfigError(f"leaf is {self.leaf}: expected 16, 32 or 64 keys")
        always = self.sinks + self.local + 1
        if min(self.sinks, self.local) < 0 or self.keep < always:
            raise ConfigError(
                f"a budget of {self.keep} leaves of {self.leaf} keys cannot hold {self.sinks} of sinks, {self.local} "
                f"of the local window and the row's own: give a budget of at least {always * self.leaf} keys"
            )

    @property
    def leaves(self) -> int:
        """In a page."""
        return J.PAGE // self.leaf

    def summary_bytes(self, kv_heads: int, head_dim: int, element: int) -> int:
        """Of one page in one layer, with cache elements of so many bytes."""
        return 2 * element * self.leaves * kv_heads * head_dim

    def scratch_bytes(self, head_dim: int, pages: int) -> int:
        """What `select_item` needs for sequences of so many pages."""
        padded = 64 * -(-pages * self.leaves // 16)
        return J.TILE_VECTORS * (8 * head_dim + padded + 4) + padded


@inner
def _padded(leaves):
    return (leaves + 15) // 16 * 16


@inner
def summarise_item(target, job, layer, item, scratch):
    """Summary of one leaf that this step filled, for one KV head: hi[D], lo[D]."""
    kv_heads, dim, size = field(job, J.KV_HEADS), field(job, J.HEAD_DIM), element_bytes(target)
    leaves = field(job, J.LEAVES)
    full = load_i32(field(job, J.FULL_LEAVES) + 4 * (item // kv_heads))
    place, part = full // leaves * kv_heads + item % kv_heads, full % leaves
    width = J.PAGE // leaves
    keys = field(layer, J.KEYS) + (place * dim * J.PAGE + part * width) * size
    out = field(layer, J.SUMMARIES) + 2 * dim * size * (place * leaves + part)
    zero = broadcast(0.0)
    for i in range(dim):
        line = keys + i * J.PAGE * size
        first = load_elements(target, line)
        total, high, low = first, first, sub(zero, first)
        for key in range(16, width, 16):
            more = load_elements(target, line + key * size)
            total, high, low = add(total, more), vmax(high, more), vmax(low, sub(zero, more))
        mean = sum_lanes(total) / width
        store_f32(scratch + 4 * i, 0.5 * (mean + max_lanes(high)))
        store_f32(scratch + 4 * (dim + i), 0.5 * (mean - max_lanes(low)))
    for i in range(0, 2 * dim, 16):
        store_elements(target, out + i * size, load(scratch + 4 * i))


@inner
def _score(target, summary, dim, positive, negative):
    """sum_d max(q_d hi_d, q_d lo_d), the query given by its positive and negative parts."""
    a, b, size = broadcast(0.0), broadcast(0.0), element_bytes(target)
    for i in range(0, dim, 16):
        a = mul_add(load(positive + 4 * i), load_elements(target, summary + i * size), a)
        b = mul_add(load(negative + 4 * i), load_elements(target, summary + (dim + i) * size), b)
    return sum_lanes(add(a, b))


@inner
def _weigh(scores, count):
    """Scores -> weights, in place; returns one over their sum."""
    peaks, totals = broadcast(_NOTHING), broadcast(0.0)
    for j in range(0, count, 16):
        peaks = vmax(peaks, keep_first(load(scores + 4 * j), count - j, _NOTHING))
    peaks = broadcast(max_lanes(peaks))
    for j in range(0, count, 16):
        weights = keep_first(vexp(sub(load(scores + 4 * j), peaks)), count - j, 0.0)
        store(scores + 4 * j, weights)
        totals = add(totals, weights)
    return 1.0 / sum_lanes(totals)


@inner
def _count(shares, count, bits):
    """Shares that are at least the float with those bits; shares are positive, or -1 if they do not count."""
    least, found = broadcast(float_of_bits(bits)), 0
    for j in range(0, count, 16):
        found += count_at_least(load(shares + 4 * j), least)
    return found


@inner
def _mark(out, words, own, shares, begin, stop, above, ties):
    """Bits of the leaves that a row reads: all but those from `begin` to `stop`, and of these the ones with shares
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
def _choose(out, words, own, keep, sinks, local, group, scores, stride, inverse, shares):
    """SELECTION of one row, from the weights of its heads."""
    begin, stop = sinks, max(sinks, own - local)
    need = keep - (own + 1 - (stop - begin))
    if need >= stop - begin:
        _mark(out, words, own, shares, 0, 0, 0, 0)
        return
    for j in range(0, own, 16):
        total = mul(load(scores + 4 * j), broadcast(load_f32(inverse)))
        for g in range(1, group):
            total = mul_add(load(scores + stride * g + 4 * j), broadcast(load_f32(inverse + 4 * g)), total)
        store(shares + 4 * j, total)
    for j in range(begin):
        store_f32(shares + 4 * j, -1.0)
    for j in range(stop, (stop + 15) // 16 * 16):
        store_f32(shares + 4 * j, -1.0)
    above = 0
    for i in range(31):  # the largest number that `need` shares reach, bit by bit
        trial = above | 1 << (30 - i)
        if _count(shares, stop, trial) >= need:
            above = trial
    _mark(out, words, own, shares, begin, stop, above, need - _count(shares, stop, above + 1))


@inner
def select_item(target, job, layer, item, scratch):
    """SELECTION of one tile's rows for one KV head."""
    kv_heads, heads, dim = field(job, J.KV_HEADS), field(job, J.HEADS), field(job, J.HEAD_DIM)
    tile = field(job, J.TILES) + item // kv_heads * 4 * J.TILE_FIELDS
    if load_i32(tile + 4 * J.TILE_SPLIT) != 0:
        return  # another tile holds the same row
    kv_head, group = item % kv_heads, heads // kv_heads
    first, rows = load_i32(tile + 4 * J.TILE_ROW), load_i32(tile + 4 * J.TILE_ROWS)
    table = field(job, J.PAGE_TABLE) + 4 * load_i32(tile + 4 * J.TILE_SEQUENCE) * field(job, J.PAGE_TABLE_WIDTH)
    position = load_i32(field(job, J.POSITIONS) + 4 * first)
    keep, sinks, local = field(job, J.KEEP_LEAVES), field(job, J.SINK_LEAVES), field(job, J.LOCAL_LEAVES)
    per_page, words = field(job, J.LEAVES), field(job, J.SELECTION_WORDS)
    leaf = J.PAGE // per_page
    out, out_stride = field(job, J.SELECTION) + 8 * words * (first * kv_heads + kv_head), 8 * words * kv_heads
    leaves = (position + rows - 1) // leaf  # before the last row's own

    vectors, stride = rows * group, 4 * _padded(leaves)
    positive = scratch
    negative = positive + 4 * dim * J.TILE_VECTORS
    inverse = negative + 4 * dim * J.TILE_VECTORS
    shares = inverse + 4 * J.TILE_VECTORS
    scores = shares + stride
    if leaves + 1 > keep:
        line = 4 * dim * (heads + 2 * kv_heads)
        source, zero = field(job, J.QKV) + first * line + 4 * dim * group * kv_head, broadcast(0.0)
        for r in range(rows):
            for i in range(0, 4 * dim * group, 64):
                x = load(source + r * line + i)
                above = vmax(x, zero)
                store(positive + 4 * dim * group * r + i, above)
                store(negative + 4 * dim * group * r + i, sub(x, above))
        size = 2 * dim * element_bytes(target)
        for j in range(0, leaves, per_page):
            page = (
                field(layer, J.SUMMARIES)
                + (load_i32(table + 4 * (j // per_page)) * kv_heads + kv_head) * size * per_page
            )
            if j + per_page < leaves:
                following = load_i32(table + 4 * (j // per_page) + 4) * kv_heads + kv_head
                prefetch_span(field(layer, J.SUMMARIES) + following * size * per_page, size * per_page)
            for i in range(min(per_page, leaves - j)):
                for v in range(vectors):
                    score = _score(target, page + size * i, dim, positive + 4 * dim * v, negative + 4 * dim * v)
                    store_f32(scores + stride * v + 4 * (j + i), score)
        for v in range(vectors):  # each over the leaves before its own row's
            store_f32(inverse + 4 * v, _weigh(scores + stride * v, (position + v // group) // leaf))
    for r in range(rows):
        of = r * group
        _choose(
            out + r * out_stride, words, (position + r) // leaf, keep, sinks, local, group,
            scores + stride * of, stride, inverse + 4 * of, shares,
        )  # fmt: skip


@inner
def read_in_page(selection, number, per_page):
    """Which of a page's four quarters (16 keys each) a row reads, as bits."""
    at = number * per_page
    bits, quarters = field(selection, at // 64) >> at % 64, 0
    for i in range(4):
        quarters |= (bits >> i * per_page // 4 & 1) << i
    return quarters


@inner
def read_in_split(selection, stride, rows, split, per_page):
    """Whether any of the rows reads anything of a split; a word holds whole splits."""
    at, bits = split * J.SPLIT_PAGES * per_page, 0
    for r in range(rows):
        bits |= field(selection + r * stride, at // 64) >> at % 64
    return bits & ((1 << J.SPLIT_PAGES * per_page) - 1) != 0
