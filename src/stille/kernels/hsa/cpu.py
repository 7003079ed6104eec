"""HSA on CPU tensors: the rule of `reference.py`, with less work and less memory.

One key head at a time. Keys and values are copied once, in fp32 and side by side, so that one gather brings a few
selected leaves for two matrix products whose scores stay in the cache. Tiles are dealt out to threads that compute
alone: the steps of a tile are too short to be worth a meeting of threads in each of them.
"""

import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from threading import Barrier, Lock

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from stille.kernels.hsa import reference as ref
from stille.kernels.hsa.config import TILE, HSAConfig

LOG2_E = math.log2(math.e)
_COLUMNS = 1024
"""Keys of a tile that are attended at a time."""
_SCORES = 1 << 23
"""Scores of units that are held at a time."""
_LARGE = 2.0**60
"""A row whose sum of exponentials lies between this and its inverse needed no maximum taken off: nothing came near the
ends of fp32, and values had as much room."""


@torch.no_grad()
def hsa_attention(
    q_HMD: Tensor, k_KND: Tensor, v_KND: Tensor, config: HSAConfig, scale: float, *, want_lse: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Causal sparse attention of the last M of N positions; `reference.hsa_attention`, faster.

    It uses torch's number of threads. The residual is left to the reference, with the leaves selected here.

    Args:
        q_HMD, k_KND, v_KND: fp32, bf16 or fp16, any strides; products and sums are fp32.
        want_lse: False leaves rows that read everything to torch's attention, which gives no log-sum-exp.

    Returns:
        o [H, M, D] in the queries' dtype; log-sum-exp fp32 [H, M], of use only if wanted; missed share fp32 [H, M], 0
        without a residual.
    """
    (heads, m, dim), (k_heads, n, _) = q_HMD.shape, k_KND.shape
    groups, leaves = heads // k_heads, -(-n // config.leaf)
    out = torch.empty(heads, m, dim, dtype=q_HMD.dtype)
    lse, missed = torch.zeros(heads, m), torch.zeros(heads, m)
    both_NE = torch.zeros(leaves * config.leaf, 2 * dim)
    for head in range(k_heads):
        group = slice(head * groups, (head + 1) * groups)
        q, k, v = q_HMD[group], k_KND[head], v_KND[head]
        both_NE[:n, :dim], both_NE[:n, dim:] = k, v
        selected = select(q, k[None], scale, config, k_ND=both_NE[:n, :dim])
        if config.residual:
            out[group], lse[group], missed[group] = ref.attend(q, k[None], v[None], selected, scale, config)
            continue
        first = 0 if want_lse or n > m else _prefix(selected, m, config.leaf)
        if first:
            q_1GMD, k_1GND, v_1GND = q[None, :, :first], k[None, None, :first], v[None, None, :first]
            out[group, :first] = scaled_dot_product_attention(
                q_1GMD, k_1GND.expand_as(q_1GMD), v_1GND.expand_as(q_1GMD), is_causal=True, scale=scale
            )[0]
        exact = _Exact(q, both_NE, selected, out[group], lse[group], scale * LOG2_E, config.leaf, n - m)
        exact.run(first, torch.get_num_threads())
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
    share = ref.shares(log_mass, allowed.repeat_interleave(per, 1)).unflatten(1, (tiles, per)).sum(2)
    chosen = ref.top_leaves(share, allowed, forced, keep, config.coverage)
    if config.tail:
        late = max(0, m - config.tail) // TILE
        keys_ND = k_ND if config.codes == "keys" else k_1ND[0].float()
        share = torch.stack(
            [_tail_share(q_GMD, keys_ND, tile, start, leaves, scale, leaf) for tile in range(late, tiles)], 1
        )
        chosen[:, late:] = ref.top_leaves(share, past[late:], forced[late:], keep)
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


def _prefix(selected_GTB: Tensor, m: int, leaf: int) -> int:
    """Rows of the first tiles that read all before them in every head; positions start at 0."""
    tiles = selected_GTB.shape[1]
    reach = (torch.arange(1, tiles + 1) * TILE).clamp(max=m).add(leaf - 1).div(leaf, rounding_mode="floor")
    full = (selected_GTB.sum(-1) >= reach).all(0)
    return min(m, int(full.long().cumprod(0).sum()) * TILE)


@dataclass(frozen=True)
class _Exact:
    """Softmax over the selected leaves, for the heads of one key head.

    Attributes:
        both_NE: fp32, keys and values side by side, whole leaves.
        out_GMD, lse_GM: written.
        factor: of the scores, for powers of two.
        start: position of the first query.
    """

    q_GMD: Tensor
    both_NE: Tensor
    selected_GTB: Tensor
    out_GMD: Tensor
    lse_GM: Tensor
    factor: float
    leaf: int
    start: int

    def run(self, first: int, threads: int) -> None:
        """All rows from `first` on, a multiple of the tile."""
        groups, m, _ = self.q_GMD.shape
        todo = product(range(groups), range(first // TILE, -(-m // TILE)))
        if threads == 1:
            self._drain(todo)
            return
        shared, pool = _locked(todo), _pool(threads)
        for result in [pool.submit(self._drain, shared) for _ in range(threads)]:
            result.result()

    @torch.inference_mode()
    def _drain(self, todo: Iterator[tuple[int, int]]) -> None:
        width = self.both_NE.shape[1]
        scores, taken = torch.empty(TILE * _COLUMNS), torch.empty(_COLUMNS * width)
        # What a tile must not see of the leaves it lies in; the same for every tile, for it is as long as whole leaves.
        row, column = torch.arange(TILE)[:, None] + self.start % self.leaf, torch.arange(TILE + self.leaf)[None]
        future = torch.zeros(TILE, TILE + self.leaf).masked_fill(column > row, -math.inf)
        careful: set[int] = set()  # heads with large scores
        for head, tile in todo:
            rows = slice(tile * TILE, min(self.q_GMD.shape[1], (tile + 1) * TILE))
            q_RD = self.q_GMD[head, rows].float() * self.factor
            ids = self.selected_GTB[head, tile].nonzero().view(-1)
            begin, size = self.start + rows.start, q_RD.shape[0]
            own = ((begin + size - 1) // self.leaf - begin // self.leaf + 1) * self.leaf
            args = q_RD, ids, future[:size, :own], scores, taken
            out, lse, good = self._tile(*args, careful=head in careful)
            if not good:
                careful.add(head)
                out, lse, _ = self._tile(*args, careful=True)
            self.out_GMD[head, rows], self.lse_GM[head, rows] = out, lse

    def _tile(
        self, q_RD: Tensor, ids: Tensor, future: Tensor, scores: Tensor, taken: Tensor, *, careful: bool
    ) -> tuple[Tensor, Tensor, bool]:
        """Output and log-sum-exp of a tile, and whether they are good; if careful (maxima are taken off), they are."""
        (rows, dim), width, step = q_RD.shape, self.leaf * self.both_NE.shape[1], _COLUMNS // self.leaf
        blocks = self.both_NE.view(-1, width)
        out, total, top = torch.zeros(rows, dim), torch.zeros(rows), None
        for end in range(len(ids), 0, -step):  # the leaves that every row sees something of come first
            part = ids[max(0, end - step) : end]
            low, high = int(part[0]), int(part[-1]) + 1
            if high - low == len(part):
                both = blocks[low:high]
            else:
                both = torch.index_select(blocks, 0, part, out=taken[: len(part) * width].view(-1, width))
            both = both.view(-1, 2 * dim)
            s = torch.mm(q_RD, both[:, :dim].T, out=scores[: rows * both.shape[0]].view(rows, -1))
            if end == len(ids):
                s[:, -future.shape[1] :] += future
            if careful:
                new = s.amax(-1) if top is None else torch.maximum(top, s.amax(-1))
                if top is not None:
                    decay = torch.exp2(top - new)
                    total *= decay
                    out *= decay[:, None]
                s -= new[:, None]
                top = new
            torch.exp2(s, out=s)
            total += s.sum(-1)
            out.addmm_(s, both[:, dim:])
        lse = total.log2() if top is None else total.log2() + top
        least, most = (float(x) for x in torch.aminmax(total))
        good = top is not None or not (most > _LARGE or least < 1 / _LARGE)  # NaN stays what it is
        return out.div_(total[:, None]), lse / LOG2_E, good


class _locked(Iterator[tuple[int, int]]):
    """An iterator that several threads may take from."""

    def __init__(self, items: Iterator[tuple[int, int]]):
        self._items, self._lock = items, Lock()

    def __next__(self) -> tuple[int, int]:
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
                torch.set_num_threads(1)  # counts for the calling thread, and for threads to come
                here.wait()

            for _ in range(threads):
                pool.submit(settle)
            here.wait()
            torch.set_num_threads(threads)
            _pools[key] = pool
        return _pools[key]
