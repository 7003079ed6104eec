"""HSA on CPU tensors: the rule of `reference.py`, with less work and less memory.

A tile gathers a few of its leaves at a time, for two matrix products whose scores stay in the cache. The work is cut
into steps, one for each tile of a head, that threads compute alone: a tile's operations are too short to be worth a
meeting of threads in each of them.
"""

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier, Event, Lock
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from stille.kernels.hsa import reference as ref
from stille.kernels.hsa.config import TILE, HSAConfig

LOG2_E = math.log2(math.e)
_GATHERED = 1 << 17
"""Numbers of keys that a tile gathers at a time: few enough for the second cache, enough to be worth the calls."""
_SCORES = 1 << 23
"""Scores of units that are held at a time."""
_LARGE = 2.0**60
"""A row whose sum of exponentials lies between this and its inverse needed no maximum taken off: nothing came near the
ends of fp32, and values had as much room."""

_Step = Callable[["_Scratch"], None]


def hsa_attention(
    q_HMD: Tensor, k_KND: Tensor, v_KND: Tensor, config: HSAConfig, scale: float, *, want_lse: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Causal sparse attention of the last M of N positions; `reference.hsa_attention`, faster. No gradients.

    It uses torch's number of threads. The residual is left to the reference, with the leaves selected here.

    Args:
        q_HMD, k_KND, v_KND: fp32, bf16 or fp16, any strides; products and sums are fp32.
        want_lse: False leaves rows that read everything to torch's attention, which gives no log-sum-exp.

    Returns:
        o [H, M, D] in the queries' dtype; log-sum-exp fp32 [H, M], of use only if wanted; missed share fp32 [H, M], 0
        without a residual.
    """
    (heads, m, _), k_heads = q_HMD.shape, k_KND.shape[0]
    out = torch.empty(q_HMD.shape, dtype=q_HMD.dtype)
    lse, missed = torch.zeros(heads, m), torch.zeros(heads, m)

    def group(head: int) -> _Group:
        rows = slice(head * heads // k_heads, (head + 1) * heads // k_heads)
        return _Group(
            q_HMD[rows], k_KND[head], v_KND[head], config, scale, out[rows], lse[rows], missed[rows], want_lse
        )

    def steps() -> Iterator[_Step]:
        following = group(0)
        yield following.prepare
        for head in range(k_heads):
            now = following
            if head + 1 < k_heads:
                following = group(head + 1)
                yield following.prepare  # while others attend
            yield from now.steps()

    _run(steps(), torch.get_num_threads())
    return out, lse, missed


def select(q_GMD: Tensor, k_1ND: Tensor, scale: float, config: HSAConfig, *, k_ND: Tensor | None = None) -> Tensor:
    """`reference.select` for one key head, [G, T, B] bool; scores only the past of each unit.

    Args:
        k_ND: the keys in fp32, if there is such a copy.
    """
    (groups, m, _), n = q_GMD.shape, k_1ND.shape[1]
    start, leaf, dev = n - m, config.leaf, q_GMD.device
    tiles, leaves, per = -(-m // TILE), -(-n // leaf), TILE // config.unit
    keep = config.budget // leaf
    past = ref.past_leaves(tiles, leaves, start, config, dev)
    forced = ref.forced_leaves(tiles, leaves, start, config, dev)
    plain_ND = k_1ND[0] if k_ND is None else k_ND
    if config.codes == "sign" or k_ND is None:
        k_ND = ref.coded_keys(k_1ND, config)[0]
    units = ref.pool_queries(q_GMD, config.unit) * scale
    log_mass = torch.full((groups, tiles * per, leaves), -math.inf)
    step = max(1, _SCORES // (groups * per * n))
    # Tiles that can read their whole past rank nothing.
    skip = 0 if config.coverage is not None else max(0, (config.budget - start) // TILE - 1)
    for tile in range(min(skip, tiles), tiles, step):
        rows = slice(tile * per, min((tile + step) * per, units.shape[1]))
        last = (start + (min(tile + step, tiles) - 1) * TILE) // leaf  # leaves before the last of these tiles
        if last:
            dots = units[:, rows].flatten(0, 1) @ k_ND[: last * leaf].T
            log_mass[:, rows, :last] = dots.view(groups, rows.stop - rows.start, last, leaf).logsumexp(-1)
    allowed = past.expand(groups, -1, -1)
    if config.uses_candidates(n):
        allowed = ref.candidate_leaves(q_GMD, k_1ND, scale, config).expand(groups, -1, -1)
    mass = score = ref.shares(log_mass, allowed.repeat_interleave(per, 1)).unflatten(1, (tiles, per)).mean(2)
    if config.row_weight:
        score = _add_row_shares(mass, q_GMD, plain_ND, allowed, scale, config, min(skip, tiles))
    chosen = ref.top_leaves(score, allowed, forced, keep, config.coverage, mass)
    return _with_tail(chosen, q_GMD, plain_ND, past, forced, scale, config)


def _add_row_shares(
    mass_GTB: Tensor, q_GMD: Tensor, k_ND: Tensor, allowed_GTB: Tensor, scale: float, config: HSAConfig, first: int
) -> Tensor:
    """The same with what single rows look for; see `reference.row_shares`. Tiles before `first` are left alone."""
    (groups, m, _), tiles, leaf = q_GMD.shape, mass_GTB.shape[1], config.leaf
    stand_1BPD, count = ref.representatives(k_ND[None], leaf, config.outliers)
    stand, bias, per = stand_1BPD[0].flatten(0, 1), count[:, 0].log2(), count.shape[0]
    means, score = stand[::per].contiguous(), mass_GTB.clone()
    for tile in range(first, tiles):
        before, rows = (k_ND.shape[0] - m + tile * TILE) // leaf, slice(tile * TILE, min(m, (tile + 1) * TILE))
        if before:
            q_RD = q_GMD[:, rows].float().flatten(0, 1) * (scale * LOG2_E)
            left_out = ~allowed_GTB[:, tile, None, :before]
            total = (q_RD @ means[:before].T).view(groups, -1, before).masked_fill_(left_out, -math.inf)
            top = total.amax(-1, keepdim=True).clamp(min=-1e30)
            total = total.sub_(top).exp2_().sum(-1, keepdim=True).mul_(leaf).log2_().add_(top)
            best = (q_RD @ stand[: before * per].T).view(groups, -1, before * per).sub_(total)
            best = best.amax(1).view(groups, before, per).add_(bias).amax(-1).exp2_()
            score[:, tile, :before] += config.row_weight * best.masked_fill_(left_out[:, 0], 0.0)
    return score


def _with_tail(
    chosen: Tensor, q_GMD: Tensor, k_ND: Tensor, past: Tensor, forced: Tensor, scale: float, config: HSAConfig
) -> Tensor:  # fmt: skip
    """The same with the tiles of the tail choosing row by row."""
    m, (tiles, leaves) = q_GMD.shape[1], past.shape
    if config.tail:
        late, start = max(0, m - config.tail) // TILE, k_ND.shape[0] - m
        share = torch.stack(
            [_tail_share(q_GMD, k_ND.float(), tile, start, leaves, scale, config.leaf) for tile in range(late, tiles)],
            1,
        )
        chosen[:, late:] = ref.top_leaves(share, past[late:], forced[late:], config.budget // config.leaf)
    return chosen


def _tail_share(q_GMD: Tensor, k_ND: Tensor, tile: int, start: int, leaves: int, scale: float, leaf: int) -> Tensor:
    """[G, B]: the largest share that any row of a tile gives a leaf in its past."""
    q_GRD = q_GMD[:, tile * TILE : (tile + 1) * TILE].float() * (scale * LOG2_E)
    past = (start + tile * TILE) // leaf
    share = torch.zeros(q_GMD.shape[0], leaves)
    if past:
        scores = q_GRD.flatten(0, 1) @ k_ND[: past * leaf].T
        scores -= scores.amax(-1, keepdim=True)
        mass = scores.exp2_().view(*q_GRD.shape[:2], past, leaf).sum(-1)
        share[:, :past] = mass.div_(mass.sum(-1, keepdim=True)).amax(1)
    return share


def _whole_leaves(x_ND: Tensor, leaf: int) -> Tensor:
    """fp32 [B, leaf * D], padded with zeros; a view if that is how they lie."""
    n, dim = x_ND.shape
    if x_ND.dtype == torch.float32 and x_ND.is_contiguous() and n % leaf == 0:
        return x_ND.view(-1, leaf * dim)
    blocks = torch.zeros(-(-n // leaf), leaf * dim)
    blocks.view(-1, dim)[:n] = x_ND
    return blocks


class _Piece(NamedTuple):
    """Leaves of a tile that are attended together: their ids, the first, and one more than the last."""

    ids: Tensor
    low: int
    high: int


def _pieces(selected_GTB: Tensor, step: int) -> list[list[list[_Piece]]]:
    """The leaves of each head and tile, `step` at a time, the last first: every row sees something of those."""
    groups, tiles, _ = selected_GTB.shape
    ids, counts = selected_GTB.nonzero()[:, 2].contiguous(), selected_GTB.sum(-1).flatten().tolist()
    sizes = [[count % step] * (count % step > 0) + [step] * (count // step) for count in counts]
    numbers, parts, at = ids.tolist(), iter(ids.split([size for each in sizes for size in each])), 0
    pieces = []
    for each in sizes:
        pieces.append([])
        for size in each:
            pieces[-1].insert(0, _Piece(next(parts), numbers[at], numbers[at + size - 1] + 1))
            at += size
    return [pieces[group * tiles : (group + 1) * tiles] for group in range(groups)]


def _prefix(selected_GTB: Tensor, m: int, leaf: int) -> int:
    """Rows of the first tiles that read all before them in every head; positions start at 0."""
    tiles = selected_GTB.shape[1]
    reach = (torch.arange(1, tiles + 1) * TILE).clamp(max=m).add(leaf - 1).div(leaf, rounding_mode="floor")
    full = (selected_GTB.sum(-1) >= reach).all(0)
    return min(m, int(full.long().cumprod(0).sum()) * TILE)


class _Scratch:
    """Memory of one thread, by shape: every operation costs a turn at Python's lock, so none is spent here."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, int, int], Tensor] = {}

    def take(self, name: str, rows: int, columns: int) -> Tensor:
        key = name, rows, columns
        if key not in self._held:
            self._held[key] = torch.empty(rows, columns)
        return self._held[key]

    def gather(self, name: str, blocks: Tensor, piece: _Piece, dim: int) -> Tensor:
        """[keys, D] of a piece's leaves; no copy if they are neighbours."""
        count = piece.high - piece.low
        if count == piece.ids.shape[0]:
            return blocks[piece.low : piece.high].view(-1, dim)
        out = self.take(name, piece.ids.shape[0], blocks.shape[1])
        return torch.index_select(blocks, 0, piece.ids, out=out).view(-1, dim)


class _Group:
    """The heads of one key head. `prepare` comes first; the other steps wait for it."""

    def __init__(
        self,
        q_GMD: Tensor,
        k_ND: Tensor,
        v_ND: Tensor,
        config: HSAConfig,
        scale: float,
        out_GMD: Tensor,
        lse_GM: Tensor,
        missed_GM: Tensor,
        want_lse: bool,
    ):
        self.q_GMD, self.k_ND, self.v_ND, self.config, self.scale = q_GMD, k_ND, v_ND, config, scale
        self.out_GMD, self.lse_GM, self.missed_GM, self.want_lse = out_GMD, lse_GM, missed_GM, want_lse
        self.start = k_ND.shape[0] - q_GMD.shape[1]
        self.prefix = 0  # first rows, those that read everything and are left to torch
        self.tiles_from = q_GMD.shape[1]  # later rows are attended by tiles
        self.careful = [False] * q_GMD.shape[0]  # heads with large scores
        self._ready = Event()

    def steps(self) -> Iterator[_Step]:
        groups, m, _ = self.q_GMD.shape
        for head in range(groups):
            yield partial(self.attend_prefix, head)
        for head in range(groups):
            for tile in range(-(-m // TILE)):
                yield partial(self.attend_tile, head, tile)

    def prepare(self, scratch: _Scratch) -> None:
        try:
            self._prepare()
        finally:
            self._ready.set()  # if it failed, nothing is left to attend

    def _prepare(self) -> None:
        m, leaf = self.q_GMD.shape[1], self.config.leaf
        self.keys, self.values = _whole_leaves(self.k_ND, leaf), _whole_leaves(self.v_ND, leaf)
        k_ND = self.keys.view(-1, self.k_ND.shape[1])[: self.k_ND.shape[0]]
        selected_GTB = select(self.q_GMD, self.k_ND[None], self.scale, self.config, k_ND=k_ND)
        if self.config.residual:
            k_1ND, v_1ND = self.k_ND[None], self.v_ND[None]
            parts = ref.attend(self.q_GMD, k_1ND, v_1ND, selected_GTB, self.scale, self.config)
            for held, part in zip((self.out_GMD, self.lse_GM, self.missed_GM), parts, strict=True):
                held.copy_(part)
            return
        self.pieces = _pieces(selected_GTB, max(1 + TILE // leaf, _GATHERED // self.keys.shape[1]))
        self.q, self.out, self.lse = ([x.split(TILE) for x in held] for held in (self.q_GMD, self.out_GMD, self.lse_GM))
        # What a tile must not see of the leaves it lies in; the same for every tile, for it is as long as whole leaves.
        row, column = torch.arange(TILE)[:, None] + self.start % leaf, torch.arange(TILE + leaf)[None]
        self.future = torch.zeros(TILE, TILE + leaf).masked_fill(column > row, -math.inf)
        self.prefix = self.tiles_from = 0 if self.want_lse or self.start else _prefix(selected_GTB, m, leaf)

    def attend_prefix(self, head: int, scratch: _Scratch) -> None:
        self._ready.wait()
        if self.prefix:
            q, k, v = (x[None, None, : self.prefix] for x in (self.q_GMD[head], self.k_ND, self.v_ND))
            out = scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
            self.out_GMD[head, : self.prefix] = out[0, 0]

    def attend_tile(self, head: int, tile: int, scratch: _Scratch) -> None:
        self._ready.wait()
        if tile * TILE < self.tiles_from:
            return
        q_RD, pieces = self.q[head][tile].float(), self.pieces[head][tile]
        begin, size, leaf = self.start + tile * TILE, q_RD.shape[0], self.config.leaf
        own = ((begin + size - 1) // leaf - begin // leaf + 1) * leaf
        args = q_RD, pieces, self.future[:size, :own], scratch
        out, total, top = self._attend(*args, careful=self.careful[head])
        if top is None:
            least, most = (float(x) for x in torch.aminmax(total))
            if most > _LARGE or least < 1 / _LARGE:  # NaN stays what it is
                self.careful[head] = True
                out, total, top = self._attend(*args, careful=True)
        self.out[head][tile].copy_(out.div_(total[:, None]))
        if self.want_lse:
            lse = total.log2() if top is None else total.log2() + top
            self.lse[head][tile].copy_(lse / LOG2_E)

    def _attend(
        self, q_RD: Tensor, pieces: list[_Piece], future: Tensor, scratch: _Scratch, *, careful: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values weighted by powers of two, the sum of the weights, and what was taken off the exponents if careful."""
        rows, dim = q_RD.shape
        out, sums, top = scratch.take("out", rows, dim), scratch.take("sums", len(pieces), rows), None
        for number, piece in enumerate(pieces):
            k_ND = scratch.gather("keys", self.keys, piece, dim)
            scores = scratch.take("scores", rows, k_ND.shape[0])
            torch.addmm(scores, q_RD, k_ND.T, beta=0, alpha=self.scale * LOG2_E, out=scores)
            if number == 0:
                scores[:, -future.shape[1] :] += future
            if careful:
                new = scores.amax(-1) if top is None else torch.maximum(top, scores.amax(-1))
                if top is not None:
                    decay = torch.exp2(top - new)
                    sums[:number] *= decay
                    out *= decay[:, None]
                scores -= new[:, None]
                top = new
            torch.exp2(scores, out=scores)
            torch.sum(scores, 1, out=sums[number])
            v_ND = scratch.gather("values", self.values, piece, dim)
            torch.addmm(out, scores, v_ND, beta=min(number, 1), out=out)
        return out, sums.sum(0), top


def _run(steps: Iterator[_Step], threads: int) -> None:
    if threads == 1:
        _drain(steps)
        return
    shared, pool = _Shared(steps), _pool(threads)
    for result in [pool.submit(_drain, shared) for _ in range(threads)]:
        result.result()


@torch.inference_mode()
def _drain(steps: Iterator[_Step]) -> None:
    scratch = _Scratch()
    for step in steps:
        step(scratch)


class _Shared(Iterator[_Step]):
    """An iterator that several threads may take from."""

    def __init__(self, items: Iterator[_Step]):
        self._items, self._lock = items, Lock()

    def __next__(self) -> _Step:
        with self._lock:
            return next(self._items)


_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}
_pools_lock = Lock()


def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that compute alone: torch's operations do not spread from them. One pool per process and number."""
    with _pools_lock:
        key = os.getpid(), threads
        if key not in _pools:
            pool, here = ThreadPoolExecutor(threads, "stille-hsa"), Barrier(threads + 1)

            def settle() -> None:
                torch.get_num_threads()  # the first look at it sets it to what counts for all
                torch.set_num_threads(1)  # for this thread, and for threads to come
                here.wait()

            for _ in range(threads):
                pool.submit(settle)
            here.wait()
            torch.set_num_threads(threads)
            _pools[key] = pool
        return _pools[key]
