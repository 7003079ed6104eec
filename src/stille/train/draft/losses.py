"""How far a head's guesses are from being accepted, with the gradient computed on the way.

A token that is drawn from q is accepted with probability min(p, q) summed over the vocabulary (speculative sampling,
2211.17192); 1 minus that is the total variation distance. It has no gradient worth the name where q is far from p, so
a little cross-entropy goes with it (DSpark, 2607.05147). p is the target's distribution over all tokens; q is over the
draft vocabulary, so what p gives to other tokens is never accepted.

Shapes: M positions, C hidden size, D draft vocabulary, R rows of the target.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stille.train.losses import LOGITS_AT_ONCE


def draft_chunk(
    logits_MD: Tensor, p_MD: Tensor, weight_M: Tensor, ce: float, tv: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses of a chunk of positions, in float32, and their gradient.

    Args:
        logits_MD: of the head.
        p_MD: the target's probabilities of the same tokens.
        weight_M: float32, of each position in the loss; 0: not in it.
        ce, tv: weights of the terms.

    Returns:
        float32 sums over positions of weight x cross-entropy and of weight x acceptance, the weighted loss, and its
        gradient [M, D] in the dtype of the logits.
    """
    log_q = logits_MD.float().log_softmax(-1)
    q, p = log_q.exp(), p_MD.float()
    ce_M = -(p * log_q).sum(-1)
    below = q < p
    accepted_M = torch.minimum(p, q).sum(-1)
    # d CE / d logits = q sum(p) - p;  d(-sum min(p, q)) / d logits = -q (below - sum(q below))
    moved_M1 = (q * below).sum(-1, keepdim=True)
    grad = ce * (q * p.sum(-1, keepdim=True) - p) - tv * q * (below.float() - moved_M1)
    ce_sum, accepted_sum = (ce_M * weight_M).sum(), (accepted_M * weight_M).sum()
    loss = ce * ce_sum + tv * (weight_M.sum() - accepted_sum)
    return ce_sum, accepted_sum, loss, (grad * weight_M[:, None]).to(logits_MD.dtype)


class _DraftLoss(torch.autograd.Function):
    """Head rows and losses for a chunk of positions at a time; logits are never kept."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, h_MC: Tensor, head_DC: Tensor, p_RD: Tensor, row_M: Tensor, weight_M: Tensor,
        terms: tuple[float, float], chunk_loss: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        grad_MC = torch.empty_like(h_MC)
        sums = h_MC.new_zeros(3, dtype=torch.float32)
        chunk = max(16, LOGITS_AT_ONCE // head_DC.shape[0])
        for begin in range(0, h_MC.shape[0], chunk):
            part = slice(begin, begin + chunk)
            logits = F.linear(h_MC[part], head_DC)
            *found, grad = chunk_loss(logits, p_RD[row_M[part]], weight_M[part], *terms)
            grad_MC[part] = grad @ head_DC
            sums += torch.stack(found)
        ctx.save_for_backward(grad_MC)
        ce, accepted, loss = (value.clone() for value in sums)
        ctx.mark_non_differentiable(ce, accepted)
        return loss, ce, accepted

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad_MC,) = ctx.saved_tensors
        return (grad_MC * grads[0].to(grad_MC.dtype), *(None,) * 6)


def draft_loss(
    h_MC: Tensor,
    head_DC: Tensor,
    p_RD: Tensor,
    row_M: Tensor,
    weight_M: Tensor,
    terms: tuple[float, float],
    chunk_loss: Any = draft_chunk,
) -> tuple[Tensor, Tensor, Tensor]:
    """ce x cross-entropy + tv x (1 - acceptance), summed over positions with their weights.

    Args:
        h_MC: states after the head's norm.
        head_DC: the target's rows of the draft vocabulary, frozen, in the dtype of h.
        p_RD: the target's probabilities, see `target.probabilities`.
        row_M: int64, the row of p for each position.
        weight_M: float32, 0 for positions that do not count.
        terms: ce and tv.
        chunk_loss: `draft_chunk`, or the same compiled.

    Returns:
        The loss; weighted sums of cross-entropy and of acceptance, without gradient.
    """
    return _DraftLoss.apply(h_MC, head_DC, p_RD, row_M, weight_M, terms, chunk_loss)  # pyright: ignore[reportReturnType]
