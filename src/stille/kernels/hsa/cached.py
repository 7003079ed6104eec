"""HSA over a plain cache of keys, as models outside the engine keep one: a few new queries, and rows with padding.

Prefill without padding is `hsa_attention`. This adds what a batch of prompts and decoding need: rows are shifted so
that their tokens start at 0, and new queries choose keys row by row. No signatures are kept, so scores come from the
keys themselves: decoding reads every key once, and the values of `budget` of them. Nothing waits for the GPU; shapes
alone decide what runs, so torch.compile and CUDA graphs take it.

Shapes: B batch, H query heads, K key/value heads, G = H / K, M new queries, N columns of the cache, D head width.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from stille.kernels.hsa import api
from stille.kernels.hsa.config import HSAConfig
from stille.kernels.hsa.ops import compiled_attention
from stille.kernels.hsa.paged_reference import FINEST, GRID_BITS, RANK_BITS

FEW = 16
"""So many queries over a cache choose row by row; more share their choice by tiles."""

_AT_ONCE = 1 << 27  # elements of scores, keys and values that are held at once


def cached_attention(
    q_BHMD: Tensor,
    k_BKND: Tensor,
    v_BKND: Tensor,
    config: HSAConfig | None = None,
    *,
    scale: float | None = None,
    present_BN: Tensor | None = None,
    start: Tensor | int | None = None,
) -> Tensor:
    """Causal sparse attention of M new tokens over N columns of a cache that holds them too.

    Caches of fewer columns than `config.dense_limit` are attended in full. Beyond: as many queries as columns choose by
    tiles, as in `hsa_attention`; at most 16 queries choose row by row, leaves of `config.decode_leaf` keys that the
    heads of a group share; more queries choose by tiles if there is no padding, else row by row too.

    Args:
        q_BHMD: queries of columns `start` to `start + M - 1`.
        k_BKND, v_BKND: keys and values, new ones included; K divides H.
        config: sizes; None: `HSAConfig()`.
        scale: factor of the scores; None: D ** -0.5.
        present_BN: bool, columns that hold a token; the others (padding on any side, unused columns) are never read.
            None: all.
        start: first column of the queries, an integer or a tensor of one element. None: N - M.

    Returns:
        o_BHMD in the inputs' dtype; zeros for queries that are padding.

    Raises:
        ValueError: shapes or devices do not fit.
        UnsupportedError: a dtype, head width or group that the kernels do not take.
    """
    config = HSAConfig() if config is None else config
    m, n = q_BHMD.shape[2], k_BKND.shape[2]
    factor = q_BHMD.shape[3] ** -0.5 if scale is None else scale
    if not torch.compiler.is_compiling():
        api._check(q_BHMD, k_BKND, v_BKND)
        if present_BN is not None and (present_BN.shape != (k_BKND.shape[0], n) or present_BN.dtype != torch.bool):
            raise ValueError(
                f"present_BN is {present_BN.dtype} {tuple(present_BN.shape)}: expected bool ({k_BKND.shape[0]}, {n})."
            )
    if present_BN is None:
        if m == n or m > FEW or n < config.dense_limit:
            return compiled_attention(q_BHMD, k_BKND, v_BKND, config, factor)
        position_BM = torch.arange(n - m, n, device=q_BHMD.device).expand(q_BHMD.shape[0], -1)
        return _by_row(q_BHMD, k_BKND, v_BKND, position_BM, None, factor, config)
    place_BN, order_BN = _places(present_BN)
    if m == n:
        q, k, v = (_columns(x, order_BN) for x in (q_BHMD, k_BKND, v_BKND))
        return _columns(compiled_attention(q, k, v, config, factor, present_BN.sum(1)), place_BN)
    column_M = torch.arange(m, device=q_BHMD.device) + (n - m if start is None else start)
    real_BM = present_BN.index_select(1, column_M)
    if n < config.dense_limit:
        read_BMN = present_BN[:, None] & (torch.arange(n, device=q_BHMD.device) <= column_M[:, None])
        return _in_full(q_BHMD, k_BKND, v_BKND, read_BMN, real_BM, factor)
    position_BM = place_BN.index_select(1, column_M).masked_fill(~real_BM, -1)
    return _by_row(q_BHMD, k_BKND, v_BKND, position_BM, order_BN, factor, config)


def _places(present_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Position of each column once tokens go before padding, both in their order; and the inverse."""
    tokens, gaps = present_BN.cumsum(1), (~present_BN).cumsum(1)
    place = torch.where(present_BN, tokens, tokens[:, -1:] + gaps) - 1
    column = torch.arange(place.shape[1], device=place.device).expand_as(place)
    return place, torch.empty_like(place).scatter(1, place, column)


def _columns(x_BHND: Tensor, index_BN: Tensor) -> Tensor:
    return x_BHND.gather(2, index_BN[:, None, :, None].expand_as(x_BHND))


def _in_full(q_BHMD: Tensor, k_BKND: Tensor, v_BKND: Tensor, read_BMN: Tensor, real_BM: Tensor, scale: float) -> Tensor:
    """Every key that a query may read. The heads of a group go as rows: masks and grouped heads exclude each other in
    the fused kernels of torch."""
    groups = q_BHMD.shape[1] // k_BKND.shape[1]
    q = q_BHMD.unflatten(1, (-1, groups)).flatten(2, 3)
    mask = (read_BMN | ~real_BM[..., None])[:, None]  # a row without keys would be NaN
    out = scaled_dot_product_attention(q, k_BKND, v_BKND, attn_mask=mask.repeat(1, 1, groups, 1), scale=scale)
    out = out.unflatten(2, (groups, -1)).flatten(1, 2)
    return out.masked_fill(~real_BM[:, None, :, None], 0)


def _by_row(
    q_BHMD: Tensor,
    k_BKND: Tensor,
    v_BKND: Tensor,
    position_BM: Tensor,
    order_BN: Tensor | None,
    scale: float,
    config: HSAConfig,
) -> Tensor:
    """Each query chooses for itself; a few at a time, which bounds memory.

    Args:
        position_BM: of each query in its sequence; -1: padding.
        order_BN: columns of each sequence's tokens, in order; None: columns are positions.
    """
    (batch, heads, m, dim), n = q_BHMD.shape, k_BKND.shape[2]
    if m == 1:
        return _few_rows(q_BHMD, k_BKND, v_BKND, position_BM, order_BN, scale, config)
    held = batch * (heads * n + 2 * k_BKND.shape[1] * min(config.budget, n) * dim)
    rows = max(1, min(FEW, _AT_ONCE // held))
    parts = [
        _few_rows(q, k_BKND, v_BKND, position, order_BN, scale, config)
        for q, position in zip(q_BHMD.split(rows, 2), position_BM.split(rows, 1), strict=True)
    ]
    return torch.cat(parts, 2)


def _few_rows(
    q_BHMD: Tensor,
    k_BKND: Tensor,
    v_BKND: Tensor,
    position_BM: Tensor,
    order_BN: Tensor | None,
    scale: float,
    config: HSAConfig,
) -> Tensor:
    (batch, heads, m, dim), (k_heads, n) = q_BHMD.shape, k_BKND.shape[1:3]
    q_BKMGD = q_BHMD.unflatten(1, (k_heads, -1)).transpose(2, 3)
    last = position_BM.clamp(min=0)[:, None, :, None]  # of padding: something to read, thrown away below
    with torch.no_grad():
        token_BKMS, read_BKMS = _choose(q_BKMGD, k_BKND, last, order_BN, scale, config)
    column = token_BKMS.clamp(max=n - 1)
    if order_BN is not None:
        column = order_BN[:, None, None].expand(-1, k_heads, m, -1).gather(-1, column)
    index = column.flatten(2)[..., None].expand(-1, -1, -1, dim)
    # fp32 costs little for so few keys, and keeps the weights from being rounded.
    k, v = (x.gather(2, index).view(batch, k_heads, m, -1, dim).float() for x in (k_BKND, v_BKND))
    logits = (q_BKMGD.float() @ k.transpose(-1, -2) * scale).masked_fill(~read_BKMS[..., None, :], float("-inf"))
    out = (logits.softmax(-1) @ v).transpose(2, 3).reshape(batch, heads, m, dim).to(q_BHMD.dtype)
    return out.masked_fill((position_BM < 0)[:, None, :, None], 0)


def _choose(
    q_BKMGD: Tensor, k_BKND: Tensor, last_B1M1: Tensor, order_BN: Tensor | None, scale: float, config: HSAConfig
) -> tuple[Tensor, Tensor]:
    """Positions of up to `budget` keys for each query and head of keys, and which of them it really reads.

    The rule is that of decoding over pages (`paged_reference`), with the keys themselves in the place of signatures.
    """
    leaf, groups, n = config.decode_leaf, q_BKMGD.shape[3], k_BKND.shape[2]
    score = (q_BKMGD.flatten(2, 3) @ k_BKND.transpose(2, 3)).float() * scale
    if order_BN is not None:
        score = score.gather(-1, order_BN[:, None, None].expand_as(score))
    score = pad(score.unflatten(2, (-1, groups)), (0, -n % leaf))
    mass = score.unflatten(-1, (-1, leaf)).logsumexp(-1)
    leaves = mass.shape[-1]
    b, whole = torch.arange(leaves, device=mass.device), last_B1M1 // leaf
    share = mass.masked_fill((b >= whole)[..., None, :], float("-inf")).softmax(-1).nan_to_num(0.0).mean(3)
    # Ranks of the shares, then the earlier leaf first: integers without ties.
    rank = ((share.view(torch.int32) - FINEST).clamp(min=0) >> GRID_BITS).clamp(max=(1 << RANK_BITS) - 1)
    always = (b < config.sinks // leaf) | (b >= whole - config.local // leaf)
    rank = (rank.masked_fill(always, 1 << RANK_BITS) * leaves + (leaves - 1 - b)).masked_fill(b > last_B1M1 // leaf, -1)
    best, chosen = rank.topk(min(config.budget // leaf, leaves), -1)
    token = chosen[..., None] * leaf + torch.arange(leaf, device=chosen.device)
    read = (best >= 0)[..., None] & (token <= last_B1M1[..., None])
    return token.flatten(-2), read.flatten(-2)
