"""Where the attention mass really lies: the share of each leaf of keys, for tiles of queries and for single rows.

H query heads, K key heads (H = K * G), N positions, T tiles of 128 queries, R rows, B leaves, D head width.
"""

import math

import torch
from torch import Tensor

from stille.kernels.hsa.config import TILE, HSAConfig

CHUNK = 8  # tiles at a time


def tile_mass(q_HND: Tensor, k_KND: Tensor, scale: float, leaf: int) -> Tensor:
    """[H, T, B]: mean over a tile's rows of the softmax weight of each leaf. N is a multiple of tile and leaf."""
    (heads, n, _), groups = q_HND.shape, q_HND.shape[0] // k_KND.shape[0]
    if n % TILE or n % leaf:
        raise ValueError(f"{n} positions: expected a multiple of {TILE} and of the leaf of {leaf}")
    out = torch.zeros(heads, n // TILE, n // leaf, device=q_HND.device)
    for head in range(heads):
        k = k_KND[head // groups].float()
        for first in range(0, n, CHUNK * TILE):
            end = min(n, first + CHUNK * TILE)
            logits = q_HND[head, first:end].float() @ k[:end].T * scale
            own = torch.ones(end - first, end - first, dtype=torch.bool, device=k.device).triu(1)
            logits[:, first:].masked_fill_(own, -math.inf)
            weight = torch.softmax(logits, -1).view(-1, TILE, end // leaf, leaf)
            out[head, first // TILE : end // TILE, : end // leaf] = weight.sum((1, 3)) / TILE
    return out


def row_mass(q_HRD: Tensor, k_KND: Tensor, positions_R: Tensor, scale: float, leaf: int) -> Tensor:
    """[H, R, B]: softmax weight of each leaf for single rows at these positions."""
    k = k_KND.float().repeat_interleave(q_HRD.shape[0] // k_KND.shape[0], 0)
    logits = torch.einsum("hrd,hnd->hrn", q_HRD.float(), k) * scale
    logits.masked_fill_(torch.arange(k.shape[1], device=k.device) > positions_R[:, None], -math.inf)
    return torch.softmax(logits, -1).unflatten(-1, (-1, leaf)).sum(-1)


def row_leaves(positions_R: Tensor, leaves: int, config: HSAConfig) -> tuple[Tensor, Tensor]:
    """For single rows: complete past leaves of `decode_leaf`, and those that are always read; bool [R, B] each."""
    leaf = config.decode_leaf
    own = (positions_R[:, None] + 1) // leaf  # the leaf that is not complete, if there is one
    b = torch.arange(leaves, device=positions_R.device)[None]
    past = b < own
    always = (b < config.sinks // leaf) | (b >= own - config.local // leaf)
    return past, always & (b * leaf <= positions_R[:, None])


def ranked(score: Tensor, allowed: Tensor, forced: Tensor) -> Tensor:
    """Rank of each leaf [.., B]: forced ones first, then allowed ones by score, the earlier leaf first if equal.

    Leaves that are neither rank last. A budget of k leaves reads those of rank below k.
    """
    allowed, forced = allowed.expand_as(score), forced.expand_as(score)
    score = score.masked_fill(~allowed, -math.inf).masked_fill(forced, math.inf)
    return score.argsort(dim=-1, descending=True, stable=True).argsort(-1).masked_fill(~(allowed | forced), 1 << 30)


def recall_of(rank: Tensor, mass: Tensor, keep: int) -> Tensor:
    """Share of the mass [..] in the leaves of rank below `keep`."""
    return (mass * (rank < keep)).sum(-1)
