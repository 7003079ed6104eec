"""HSA on CPU tensors: the rule of `reference.py`, with less work and less memory.

One key head at a time. Keys and values are copied once, in fp32 and side by side, so that one gather per tile fetches
the selected leaves for two plain matrix products. A softmax needs no second pass: its rows are shifted only where
their maxima would leave the range in which exponentials are exact.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from stille.kernels.hsa import reference as ref
from stille.kernels.hsa.config import TILE, HSAConfig

LOG2_E = math.log2(math.e)
_SCORES = 1 << 23
"""Scores of units held at a time."""
_SAFE = 60.0
"""Row maxima within 2**-60 .. 2**60 need no shift: fp32 holds their sums and products with room for the values."""


@torch.no_grad()
def hsa_attention(
    q_HMD: Tensor, k_KND: Tensor, v_KND: Tensor, config: HSAConfig, scale: float, *, want_lse: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Causal sparse attention of the last M of N positions; `reference.hsa_attention`, faster.

    The residual is left to the reference, with the leaves selected here.

    Args:
        q_HMD, k_KND, v_KND: fp32, bf16 or fp16, any strides; products and sums are fp32.
        want_lse: False allows torch's attention for rows that read everything, which gives no log-sum-exp.

    Returns:
        o [H, M, D] in the queries' dtype; log-sum-exp fp32 [H, M], undefined if not wanted; missed share fp32 [H, M],
        0 without a residual.
    """
    (heads, m, dim), (k_heads, n, _) = q_HMD.shape, k_KND.shape
    groups, leaves = heads // k_heads, -(-n // config.leaf)
    out = torch.empty(heads, m, dim, dtype=q_HMD.dtype)
    lse, missed = torch.zeros(heads, m), torch.zeros(heads, m)
    both_NE = torch.zeros(leaves * config.leaf, 2 * dim)  # a key and its value side by side
    work = _Work(both_NE, config.leaf, n - m)
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
        for i in range(groups):
            q_MD = q[i].float() * (scale * LOG2_E)
            work.attend(q_MD, selected[i], first, out[group.start + i], lse[group.start + i])
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
        dots = units[:, rows].flatten(0, 1) @ k_ND[: last * leaf].T
        log_mass[:, rows, :last] = dots.view(groups, -1, last, leaf).logsumexp(-1)
    allowed = past.expand(groups, -1, -1)
    if config.uses_candidates(n):
        allowed = ref.candidate_leaves(q_GMD, k_1ND, scale, config).expand(groups, -1, -1)
    share = ref.shares(log_mass, allowed.repeat_interleave(per, 1)).unflatten(1, (tiles, per)).sum(2)
    chosen = ref.top_leaves(share, allowed, forced, keep, config.coverage)
    if config.tail:
        share = ref.tail_shares(q_GMD, k_1ND, scale, config)
        late = tiles - share.shape[1]
        chosen[:, late:] = ref.top_leaves(share, past[late:], forced[late:], keep)
    return chosen


def _prefix(selected_GTB: Tensor, m: int, leaf: int) -> int:
    """Rows of the first tiles that read all before them in every head; positions start at 0."""
    tiles = selected_GTB.shape[1]
    reach = (torch.arange(1, tiles + 1) * TILE).clamp(max=m).add(leaf - 1).div(leaf, rounding_mode="floor")
    full = (selected_GTB.sum(-1) >= reach).all(0)
    return min(m, int(full.long().cumprod(0).sum()) * TILE)


class _Work:
    """The exact part of one head after another, and the memory that it reuses."""

    def __init__(self, both_NE: Tensor, leaf: int, start: int):
        self.both_NE, self.leaf, self.start = both_NE, leaf, start
        self.dim = both_NE.shape[1] // 2
        self.scores, self.gathered = torch.empty(0), torch.empty(0)
        # Columns of the leaves that a tile lies in; the same for every tile, as whole leaves fit a tile.
        row, column = torch.arange(TILE)[:, None] + start % leaf, torch.arange(TILE + leaf)[None]
        self.future = torch.zeros(TILE, TILE + leaf).masked_fill(column > row, -math.inf)

    def attend(self, q_MD: Tensor, selected_TB: Tensor, first: int, out_MD: Tensor, lse_M: Tensor) -> None:
        """Queries from row `first` on, a multiple of the tile; they are scaled for powers of two."""
        m, leaf, dim = q_MD.shape[0], self.leaf, self.dim
        ids = selected_TB.nonzero()[:, 1]
        counts = selected_TB.sum(-1).tolist()
        ids_of = ids.split(counts)
        for tile in range(first // TILE, -(-m // TILE)):
            rows = slice(tile * TILE, min(m, (tile + 1) * TILE))
            both = self._gather(ids_of[tile])
            q = q_MD[rows]
            scores = self._take("scores", q.shape[0] * both.shape[0]).view(q.shape[0], -1)
            torch.mm(q, both[:, :dim].T, out=scores)
            begin = self.start + rows.start
            own = ((begin + q.shape[0] - 1) // leaf - begin // leaf + 1) * leaf
            scores[:, -own:] += self.future[: q.shape[0], :own]
            top = scores.amax(-1)
            low, high = torch.aminmax(top)
            shifted = float(high) > _SAFE or float(low) < -_SAFE
            if shifted:
                scores -= top[:, None]
            torch.exp2(scores, out=scores)
            total = scores.sum(-1)
            out_MD[rows] = torch.mm(scores, both[:, dim:]).div_(total[:, None])
            lse = total.log2_()
            lse_M[rows] = (lse + top if shifted else lse) / LOG2_E

    def _gather(self, ids: Tensor) -> Tensor:
        """[L, 2D]: keys and values of leaves, without a copy if they are neighbours."""
        count, width = len(ids), self.leaf * 2 * self.dim
        low, high = int(ids[0]), int(ids[-1]) + 1
        if high - low == count:
            return self.both_NE[low * self.leaf : high * self.leaf]
        taken = self._take("gathered", count * width).view(count, width)
        torch.index_select(self.both_NE.view(-1, width), 0, ids, out=taken)
        return taken.view(-1, 2 * self.dim)

    def _take(self, name: str, size: int) -> Tensor:
        """The first elements of a buffer that only grows."""
        if getattr(self, name).numel() < size:
            setattr(self, name, torch.empty(size))
        return getattr(self, name)[:size]
