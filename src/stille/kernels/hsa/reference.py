"""Specification of hierarchical sparse attention in plain torch; every kernel is tested against it.

One sequence at a time. H query heads, K key heads (H = K * G), M queries, which are the last of N positions, D head
width, B leaves, T tiles of 128 queries, U units.

1. Leaves: `leaf` consecutive keys.
2. Codes stand for the keys in scoring. "keys": the keys themselves. "sign": the key minus its leaf's mean, rotated by a
   randomised Hadamard matrix, reduced to signs (one bit per dimension) and one scale per key; 1/16 of the memory.
3. Scores: a unit's mean query estimates the log-mass of each leaf, log sum_j exp(q . code_j). Masses become shares by a
   softmax over the leaves, and a tile averages the shares of its units. To that comes, times `row_weight`, what single
   rows look for: every query of the tile for itself scores a leaf's mean and its `outliers`, the keys farthest from the
   mean, and the leaf gets the largest share that any row gives to one of these (of a total that is estimated from the
   means of leaves).
   In long sequences a coarse pass over mean keys first narrows the leaves for a span of queries and its group of heads,
   so that scoring costs O(N).
   Tiles at the end of the queries (`tail`) score all keys by each of their rows instead; a leaf is worth its largest
   share in any row.
4. Selection: sinks, local window and the tile's own leaves always; then the best leaves up to the budget, or until
   `coverage` of the tile's mass is read. Equal scores: the earlier leaf.
5. Exact part: softmax attention over the selected leaves, causal.
6. Residual, optional: a unit's mean query attends to all keys that its tile pruned. Each row shifts the mass of that by
   (q - mean q) . (its mean key), to first order, and merges it. This also gives the missed mass of each row.

Causal rule: the output of a query depends on keys and values up to its own position only. Which leaves a tile reads
depends on all queries of the tile, and through candidates on those of its span.

Signs scored by real-valued queries follow the asymmetric distances of H. Jegou, M. Douze, C. Schmid, "Product
quantization for nearest neighbor search" (2011); selecting blocks by pooled queries is shared with MInference
(2407.02490).
"""

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from stille.kernels.hsa.config import COARSE, TILE, HSAConfig


@lru_cache
def hadamard_rotation(dim: int, seed: int = 0) -> Tensor:
    """Orthogonal [D, D]: Hadamard (times a random orthogonal matrix of the odd factor of D) times random signs."""
    power = dim & -dim
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while matrix.shape[0] < power:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)], 0) / math.sqrt(2)
    random = torch.Generator().manual_seed(seed)
    odd = dim // power
    if odd > 1:
        orthogonal, _ = torch.linalg.qr(torch.randn(odd, odd, generator=random, dtype=torch.float64))
        matrix = torch.kron(matrix, orthogonal.contiguous())
    flip = torch.randint(0, 2, (dim,), generator=random).double() * 2 - 1
    return (matrix * flip).float()


def leaf_means(k_KND: Tensor, leaf: int) -> Tensor:
    """[K, B, D]; the last leaf averages what there is."""
    heads, n, dim = k_KND.shape
    sums = pad(k_KND.float(), (0, 0, 0, -n % leaf)).view(heads, -1, leaf, dim).sum(2)
    count = (n - torch.arange(sums.shape[1], device=k_KND.device) * leaf).clamp(max=leaf)
    return sums / count[None, :, None]


def sign_codes(k_KND: Tensor, leaf: int) -> tuple[Tensor, Tensor]:
    """Signs +-1 of the rotated, centred keys [K, N, D], and their least-squares scale [K, N]."""
    centred = k_KND.float() - leaf_means(k_KND, leaf).repeat_interleave(leaf, 1)[:, : k_KND.shape[1]]
    turned = centred @ hadamard_rotation(k_KND.shape[2]).to(centred).T
    return torch.where(turned >= 0, 1.0, -1.0), turned.abs().mean(-1)


def coded_keys(k_KND: Tensor, config: HSAConfig) -> Tensor:
    """[K, N, D]: what is scored for the keys."""
    if config.codes == "keys":
        return k_KND.float()
    signs, scale = sign_codes(k_KND, config.leaf)
    turned_back = scale[..., None] * signs @ hadamard_rotation(k_KND.shape[2]).to(signs)
    return turned_back + leaf_means(k_KND, config.leaf).repeat_interleave(config.leaf, 1)[:, : k_KND.shape[1]]


def pool_queries(q_HMD: Tensor, unit: int) -> Tensor:
    """[H, U, D], means of `unit` consecutive queries; the last unit averages what there is."""
    return leaf_means(q_HMD, unit)


def first_leaf(tiles: int, tile: int, start: int, leaf: int, device: torch.device) -> Tensor:
    """[T]: the leaf in which a tile's first query lies; earlier leaves lie wholly in its past."""
    return (start + torch.arange(tiles, device=device) * tile) // leaf


def past_leaves(tiles: int, leaves: int, start: int, config: HSAConfig, device: torch.device) -> Tensor:
    """[T, B] bool: only these are scored, selected and pruned."""
    return torch.arange(leaves, device=device)[None] < first_leaf(tiles, TILE, start, config.leaf, device)[:, None]


def forced_leaves(tiles: int, leaves: int, start: int, config: HSAConfig, device: torch.device) -> Tensor:
    """[T, B] bool: sinks, local window and the leaves that the tile itself lies in."""
    own = first_leaf(tiles, TILE, start, config.leaf, device)[:, None]
    last = (start + (torch.arange(tiles, device=device)[:, None] + 1) * TILE - 1) // config.leaf
    b = torch.arange(leaves, device=device)[None]
    return ((b < config.sinks // config.leaf) | (b >= own - config.local // config.leaf)) & (b <= last)


def shares(log_mass: Tensor, allowed: Tensor) -> Tensor:
    """Softmax over the allowed leaves (last axis); 0 elsewhere and where nothing is allowed."""
    return torch.softmax(log_mass.masked_fill(~allowed, -math.inf), -1).nan_to_num(0.0)


def top_leaves(
    score: Tensor,
    allowed: Tensor,
    forced: Tensor,
    keep: int,
    coverage: Tensor | float | None = None,
    mass: Tensor | None = None,
) -> Tensor:
    """Bool like `score` [.., T, B]: forced leaves and the best allowed ones, `keep` in all.

    With `coverage`, free leaves are left out once those of larger score and the forced ones reach that share of the
    mass.
    """
    allowed, forced = allowed.expand_as(score), forced.expand_as(score)
    free = allowed & ~forced
    order = score.masked_fill(~free, -1.0).argsort(dim=-1, descending=True, stable=True)
    rank = order.argsort(-1)
    chosen = free & (rank < keep - forced.sum(-1, keepdim=True))
    if coverage is not None:
        mass = (score if mass is None else mass).masked_fill(~allowed, 0.0)
        need = coverage * mass.sum(-1, keepdim=True) - mass.masked_fill(free, 0.0).sum(-1, keepdim=True)
        ranked = mass.masked_fill(~free, 0.0).gather(-1, order)
        sinking = -score.masked_fill(~free, -1.0).gather(-1, order)
        larger = torch.searchsorted(sinking, sinking)  # leaves of larger score, in their order
        before = pad(ranked.cumsum(-1), (1, 0)).gather(-1, larger).gather(-1, rank)
        chosen &= before < need
    return forced | chosen


def candidate_leaves(q_HMD: Tensor, k_KND: Tensor, scale: float, config: HSAConfig) -> Tensor:
    """[K, T, B] bool: past leaves that are scored exactly.

    Mean keys before the span are scored by means of 128 queries; a leaf is worth its largest share in any row of the
    span and the group. Leaves inside the span are always candidates (their scores would depend on what later rows see).
    """
    (heads, m, _), (k_heads, n, _) = q_HMD.shape, k_KND.shape
    groups, start, dev = heads // k_heads, n - m, q_HMD.device
    pooled, means = pool_queries(q_HMD, COARSE), leaf_means(k_KND, config.leaf)
    tiles, leaves, per = -(-m // TILE), means.shape[1], config.span // TILE
    log_mass = torch.einsum("hud,hbd->hub", pooled, means.repeat_interleave(groups, 0)) * scale
    own, b = first_leaf(tiles, TILE, start, config.leaf, dev), torch.arange(leaves, device=dev)[None]
    share = shares(log_mass, b < own[::per].repeat_interleave(per)[:tiles, None])
    share = pad(share, (0, 0, 0, -tiles % per)).view(k_heads, groups, -1, per, leaves).amax((1, 3))
    span_own, span_last = own[::per, None], torch.cat([own[per - 1 :: per], own[-1:]])[: share.shape[1], None]
    allowed = b < span_last
    forced = allowed & ((b < config.sinks // config.leaf) | (b >= span_own - config.local // config.leaf))
    chosen = top_leaves(share, allowed, forced, config.candidates // config.leaf)
    return chosen.repeat_interleave(per, 1)[:, :tiles] & past_leaves(tiles, leaves, start, config, dev)


def tail_shares(q_HMD: Tensor, k_KND: Tensor, scale: float, config: HSAConfig) -> Tensor:
    """[H, E, B]: a leaf's largest share in any row, for the last E tiles, those with one of the last `tail` queries."""
    (heads, m, _), n = q_HMD.shape, k_KND.shape[1]
    tiles, leaves = -(-m // TILE), -(-n // config.leaf)
    first = max(0, m - config.tail) // TILE
    rows = q_HMD[:, first * TILE :].float()
    dots = torch.einsum("hmd,hnd->hmn", rows, k_KND.float().repeat_interleave(heads // k_KND.shape[0], 0)) * scale
    log_mass = pad(dots, (0, -n % config.leaf), value=-math.inf).unflatten(-1, (leaves, config.leaf)).logsumexp(-1)
    past = past_leaves(tiles, leaves, n - m, config, q_HMD.device)[first:].repeat_interleave(TILE, 0)
    share = shares(log_mass, past[: rows.shape[1]])
    return pad(share, (0, 0, 0, -rows.shape[1] % TILE)).unflatten(1, (-1, TILE)).amax(2)


def unit_shares(q_HMD: Tensor, k_KND: Tensor, allowed_HTB: Tensor, scale: float, config: HSAConfig) -> Tensor:
    """[H, T, B]: mean of a leaf's shares in the units of a tile."""
    (heads, tiles, leaves), n = allowed_HTB.shape, k_KND.shape[1]
    units, per = pool_queries(q_HMD, config.unit), TILE // config.unit
    code = coded_keys(k_KND, config).repeat_interleave(heads // k_KND.shape[0], 0)
    dots = pad(torch.einsum("hud,hnd->hun", units, code) * scale, (0, -n % config.leaf), value=-math.inf)
    log_mass = dots.unflatten(-1, (leaves, config.leaf)).logsumexp(-1)
    share = shares(log_mass, allowed_HTB.repeat_interleave(per, 1)[:, : units.shape[1]])
    return pad(share, (0, 0, 0, tiles * per - units.shape[1])).view(heads, tiles, per, leaves).mean(2)


def representatives(k_KND: Tensor, leaf: int, outliers: int) -> tuple[Tensor, Tensor]:
    """A leaf's mean and the keys farthest from it, [K, B, 1 + outliers, D], and how many keys each stands for [.., 1].

    Equally far: the earlier key. What an incomplete leaf gets is not defined.
    """
    means = leaf_means(k_KND, leaf)
    whole = pad(k_KND.float(), (0, 0, 0, -k_KND.shape[1] % leaf)).unflatten(1, (-1, leaf))
    far = (whole - means[:, :, None]).square().sum(-1).argsort(dim=-1, descending=True, stable=True)[..., :outliers]
    chosen = whole.gather(2, far[..., None].expand(-1, -1, -1, whole.shape[-1]))
    count = torch.ones(1 + outliers, 1, device=k_KND.device)
    count[0] = leaf - outliers
    return torch.cat([means[:, :, None], chosen], 2), count


def row_shares(q_HMD: Tensor, k_KND: Tensor, allowed_HTB: Tensor, scale: float, config: HSAConfig) -> Tensor:
    """[H, T, B]: the largest share that any row of a tile gives to a leaf's mean or to one of its outliers."""
    heads, m, _ = q_HMD.shape
    q, allowed = q_HMD.float() * scale, allowed_HTB.repeat_interleave(TILE, 1)[:, :m]
    stand, count = representatives(k_KND, config.leaf, config.outliers)
    x = torch.einsum("hmd,hbpd->hmbp", q, stand.repeat_interleave(heads // k_KND.shape[0], 0))
    total = x[..., 0].masked_fill(~allowed, -math.inf).logsumexp(-1, keepdim=True) + math.log(config.leaf)
    share = ((x + count[:, 0].log()).amax(-1) - total).exp().masked_fill(~allowed, 0.0)
    return pad(share, (0, 0, 0, -m % TILE)).unflatten(1, (-1, TILE)).amax(2)


def select(q_HMD: Tensor, k_KND: Tensor, scale: float, config: HSAConfig) -> Tensor:
    """[H, T, B] bool: the leaves that each tile reads exactly."""
    (heads, m, _), (k_heads, n, _) = q_HMD.shape, k_KND.shape
    groups, start, dev = heads // k_heads, n - m, q_HMD.device
    tiles, leaves = -(-m // TILE), -(-n // config.leaf)
    allowed = past_leaves(tiles, leaves, start, config, dev).expand(heads, -1, -1)
    forced = forced_leaves(tiles, leaves, start, config, dev)
    if config.uses_candidates(n):
        allowed = candidate_leaves(q_HMD, k_KND, scale, config).repeat_interleave(groups, 0)
    mass = score = unit_shares(q_HMD, k_KND, allowed, scale, config)
    if config.row_weight:
        score = mass + config.row_weight * row_shares(q_HMD, k_KND, allowed, scale, config)
    # a forced leaf is read whether it is a candidate or not
    chosen = top_leaves(score, allowed, forced, config.budget // config.leaf, config.coverage, mass)
    if config.tail:
        share = tail_shares(q_HMD, k_KND, scale, config)
        late, past = tiles - share.shape[1], past_leaves(tiles, leaves, start, config, dev)
        chosen[:, late:] = top_leaves(share, past[late:], forced[late:], config.budget // config.leaf)
    return chosen


def attend(
    q_HMD: Tensor, k_KND: Tensor, v_KND: Tensor, selected_HTB: Tensor | None, scale: float, config: HSAConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Exact part and residual, tile by tile, in fp32.

    Args:
        selected_HTB: what each tile reads; None: everything (dense attention).

    Returns:
        o [H, M, D]; log-sum-exp [H, M], residual included; the share of mass not read exactly [H, M], by the residual's
        estimate (0 without one).
    """
    (heads, m, _), (k_heads, n, _) = q_HMD.shape, k_KND.shape
    start, dev = n - m, q_HMD.device
    q, k, v = q_HMD.float(), *(x.float().repeat_interleave(heads // k_heads, 0) for x in (k_KND, v_KND))
    out, lse, missed = torch.empty_like(q), torch.empty(heads, m, device=dev), torch.zeros(heads, m, device=dev)
    for tile in range(-(-m // TILE)):
        rows = slice(tile * TILE, min(m, (tile + 1) * TILE))
        end = start + rows.stop  # later keys are in the future of all rows
        keys, values = k[:, :end], v[:, :end]
        logits = torch.einsum("hmd,hnd->hmn", q[:, rows], keys) * scale
        position = torch.arange(start + rows.start, end, device=dev)
        visible = (torch.arange(end, device=dev)[None] <= position[:, None]).expand_as(logits)
        if selected_HTB is not None:
            read = selected_HTB[:, tile].repeat_interleave(config.leaf, 1)[:, None, :end]
            visible = visible & read
        logits = logits.masked_fill(~visible, -math.inf)
        tile_lse, tile_out = logits.logsumexp(-1), torch.softmax(logits, -1) @ values
        if selected_HTB is not None and config.residual:
            past = torch.arange(end, device=dev) < (start + rows.start) // config.leaf * config.leaf
            res_out, res_lse = residual(q[:, rows], keys, values, past & ~read[:, 0], scale, config)
            total = torch.logaddexp(tile_lse, res_lse)
            share = (res_lse - total).exp()
            tile_out = tile_out * (tile_lse - total).exp()[..., None] + res_out * share[..., None]
            tile_lse, missed[:, rows] = total, share
        out[:, rows], lse[:, rows] = tile_out, tile_lse
    return out, lse, missed


def residual(
    q_HRD: Tensor, k_HND: Tensor, v_HND: Tensor, pruned_HN: Tensor, scale: float, config: HSAConfig
) -> tuple[Tensor, Tensor]:
    """Of one tile's rows, estimated by units: output of attention to the pruned keys, and its log-sum-exp [H, R]."""
    units = pool_queries(q_HRD, config.unit)
    logits = torch.einsum("hud,hnd->hun", units, k_HND) * scale
    logits = logits.masked_fill(~pruned_HN[:, None], -math.inf)
    weight = torch.softmax(logits, -1).nan_to_num(0.0)

    def spread(x: Tensor) -> Tensor:
        return x.repeat_interleave(config.unit, 1)[:, : q_HRD.shape[1]]

    shift = ((q_HRD - spread(units)) * spread(weight @ k_HND)).sum(-1) * scale
    return spread(weight @ v_HND), spread(logits.logsumexp(-1)) + shift


def hsa_attention(
    q_HMD: Tensor, k_KND: Tensor, v_KND: Tensor, config: HSAConfig, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Causal sparse attention of the last M of N positions, whatever the length; see `attend` for what is returned."""
    return attend(q_HMD, k_KND, v_KND, select(q_HMD, k_KND, scale, config), scale, config)
