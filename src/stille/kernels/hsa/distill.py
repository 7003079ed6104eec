"""Teaching the selector: a loss that draws its shares to where the attention mass of a tile lies.

A selection has no gradient, so the choice of leaves is taught by a loss of its own: the divergence of the selector's
shares from block-pooled true attention, as in SeerAttention (2410.13276), here pooled over the rows of a tile, since
they share one selection. Plain torch on any device, a tile of one group of heads at a time; for some tiles per step, as
the teacher costs full attention of the tiles that are looked at.
"""

import torch
from torch import Tensor

from stille.errors import UnsupportedError
from stille.kernels.hsa import reference as ref
from stille.kernels.hsa.config import TILE, HSAConfig


def selector_loss(
    q_BHTD: Tensor,
    k_BKTD: Tensor,
    config: HSAConfig | None = None,
    *,
    scale: float | None = None,
    tiles: int | None = 4,
    projection_KDE: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """KL divergence from true attention mass to the selector's shares, over leaves that selection decides about.

    Of each tile of 128 queries and each head, the teacher is the mass of exact causal attention in each leaf, averaged
    over the rows, and is held constant. The student is what `hsa_attention` ranks leaves by: the shares of leaves in
    the eyes of mean queries. Leaves that are read anyway (sinks, window, the tile's own) are left out of both.
    Candidates, the tail and the search of single rows are not modelled: every past leaf is scored, by units.

    Gradients reach the queries and keys, so a model can learn to be easy to select from; detach them and give a
    projection to teach a selector alone. With codes of signs, gradients pass the rounding as if it were not there.

    Args:
        q_BHTD, k_BKTD: as many queries as keys, any float dtype; K divides H. Sums are fp32.
        config: leaf, unit, codes, sinks and local are used; None: `HSAConfig()`.
        scale: factor of the scores; None: D ** -0.5.
        tiles: of each sequence that are looked at, drawn anew in each call; None: all.
        projection_KDE: what the student scores, queries and keys times this matrix of their key head; None: as given.
        generator: of the tiles drawn, on the CPU.

    Returns:
        scalar fp32, the mean over batch, heads and tiles.

    Raises:
        ValueError: shapes do not fit, or no tile has two leaves to choose between.
        UnsupportedError: fewer queries than keys.
    """
    config = HSAConfig() if config is None else config
    _check(q_BHTD, k_BKTD, projection_KDE)
    (batch, heads, n, dim), k_heads = q_BHTD.shape, k_BKTD.shape[1]
    factor, groups = dim**-0.5 if scale is None else scale, heads // k_heads
    count, leaves = -(-n // TILE), -(-n // config.leaf)
    past = ref.past_leaves(count, leaves, 0, config, q_BHTD.device)
    free_TB = past & ~ref.forced_leaves(count, leaves, 0, config, q_BHTD.device)
    first = config.sinks + config.local + 2 * config.leaf  # keys before a tile that leave it two leaves to choose from
    usable = torch.arange(-(-first // TILE), count)
    if not len(usable):
        raise ValueError(
            f"{n} tokens: no tile has leaves to choose between, besides {config.sinks} sinks and a window of "
            f"{config.local}; give more than {-(-first // TILE) * TILE} tokens."
        )
    losses = []
    for b in range(batch):
        drawn = usable if tiles is None else usable[torch.randperm(len(usable), generator=generator)[:tiles]]
        for kv in range(k_heads):
            q_GTD, k_TD = q_BHTD[b, kv * groups : (kv + 1) * groups].float(), k_BKTD[b, kv].float()
            matrix = None if projection_KDE is None else projection_KDE[kv].float()
            student_q, student_k = (x if matrix is None else x @ matrix for x in (q_GTD, k_TD))
            code_ND = _codes(student_k, config)
            for t in drawn.tolist():
                rows = slice(t * TILE, min(n, (t + 1) * TILE))
                with torch.no_grad():
                    target = pooled_mass(q_GTD[:, rows], k_TD[: rows.stop], factor, config.leaf)
                size = int(past[t].sum())
                share = _shares(student_q[:, rows], code_ND[: size * config.leaf], factor, config)
                losses.append(_divergence(target[:, :size], share, free_TB[t, :size]))
    return torch.stack(losses).mean()


def pooled_mass(q_GMD: Tensor, k_ND: Tensor, scale: float, leaf: int) -> Tensor:
    """[G, B]: share of causal attention of the last M of N positions in each leaf, averaged over the rows."""
    m, n = q_GMD.shape[1], k_ND.shape[0]
    logits = q_GMD @ k_ND.T * scale
    future = torch.ones(m, n, dtype=torch.bool, device=k_ND.device).triu(n - m + 1)
    weight = torch.softmax(logits.masked_fill(future, -torch.inf), -1).mean(1)
    return torch.nn.functional.pad(weight, (0, -n % leaf)).unflatten(-1, (-1, leaf)).sum(-1)


def _check(q: Tensor, k: Tensor, projection: Tensor | None) -> None:
    if q.ndim != 4 or k.ndim != 4 or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3] or q.shape[1] % k.shape[1]:
        raise ValueError(
            f"q {tuple(q.shape)} and k {tuple(k.shape)}: expected [batch, heads, tokens, head_dim] and [batch, "
            "kv_heads, tokens, head_dim] with heads a multiple of kv_heads."
        )
    if q.shape[2] != k.shape[2]:
        raise UnsupportedError(f"{q.shape[2]} queries and {k.shape[2]} keys: the loss takes whole sequences.")
    if projection is not None and (projection.ndim != 3 or projection.shape[:2] != (k.shape[1], k.shape[3])):
        raise ValueError(
            f"projection_KDE is {tuple(projection.shape)}: expected ({k.shape[1]}, {k.shape[3]}, any width)."
        )


def _codes(k_ND: Tensor, config: HSAConfig) -> Tensor:
    if config.codes == "keys":
        return k_ND
    return k_ND + (ref.coded_keys(k_ND[None], config)[0] - k_ND).detach()


def _shares(q_GRD: Tensor, code_ND: Tensor, scale: float, config: HSAConfig) -> Tensor:
    """[G, B]: the tile's score of each past leaf, as `reference.select` computes it."""
    dots = ref.pool_queries(q_GRD, config.unit) @ code_ND.T * scale
    return torch.softmax(dots.unflatten(-1, (-1, config.leaf)).logsumexp(-1), -1).mean(1)


def _divergence(target_GB: Tensor, share_GB: Tensor, free_B: Tensor) -> Tensor:
    target, share = (x[:, free_B].clamp(min=1e-20) for x in (target_GB, share_GB))
    target, share = (x / x.sum(-1, keepdim=True) for x in (target, share))
    return (target * (target.log() - share.log())).sum(-1).mean()
