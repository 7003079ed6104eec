"""From logits to tokens: vectorised over the batch, on any device, without reading anything back.

Every function is pure. Randomness is one uniform number per token from a counter-based hash of (seed, index of the
token in its answer), so an answer depends on its seed alone, not on what else is in the batch.

Shapes: R sampled rows, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_CDF_BLOCK = 256
_BELOW_ONE = 1.0 - 2.0**-22  # keeps a target strictly below a sum of which it is a share, whatever rounding does
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(slots=True)
class RandomRows:
    """Parameters of the rows that are drawn, not greedy; None = no row uses the feature.

    Attributes:
        rows: int64, which rows of the batch these are; None = all.
        temperature: float32[R], above 0.
        top_k: int64[R], 1 .. V; `max_top_k` is the largest below V.
        top_p, min_p: float32[R].
    """

    rows: Tensor | None
    temperature: Tensor
    top_k: Tensor | None
    max_top_k: int
    top_p: Tensor | None
    min_p: Tensor | None


def uniform(seed_R: np.ndarray, index_R: np.ndarray) -> np.ndarray:
    """float32 in [0, 1) with 24 bits, a function of (seed, index) alone.

    Two rounds of the SplitMix64 finaliser (Steele, Lea, Flood 2014). Computed on the host, which knows how many tokens
    it has asked for: one small transfer instead of twenty launches, and the same numbers on every device.

    Args:
        seed_R, index_R: int64.
    """
    x = _mix(_mix(seed_R.astype(np.uint64) + _GOLDEN) ^ (index_R.astype(np.uint64) * _GOLDEN))
    return (x >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def penalize(
    logits_RV: Tensor,
    counts_RV: Tensor,
    in_prompt_RV: Tensor,
    repetition_R: Tensor,
    presence_R: Tensor,
    frequency_R: Tensor,
) -> Tensor:
    """Logits after the three penalties.

    Args:
        logits_RV: float32.
        counts_RV: how often each token occurs in the answer so far.
        in_prompt_RV: bool, whether the prompt has it (counts for the repetition penalty only).
        repetition_R: divides positive logits and multiplies negative ones (Keskar et al. 2019; as in transformers).
        presence_R, frequency_R: subtracted once, and once per occurrence (as in the OpenAI API).
    """
    counts = counts_RV.to(torch.float32)
    answered = counts > 0
    factor = torch.where(answered | in_prompt_RV, repetition_R[:, None], 1.0)
    logits = torch.where(logits_RV > 0, logits_RV / factor, logits_RV * factor)
    return logits - frequency_R[:, None] * counts - presence_R[:, None] * answered


def draw(logits_RV: Tensor, params: RandomRows, uniform_R: Tensor) -> Tensor:
    """One token per row: temperature, top-k, top-p, min-p, then the inverse of the cumulative distribution.

    Args:
        logits_RV: float32, the rows that `params` describes.
        uniform_R: float32 in [0, 1).

    Returns:
        int64[R].
    """
    # Masks are products: on CPU, torch's `where` and `masked_fill` cost three times as much.
    probs = torch.softmax(logits_RV / params.temperature[:, None], dim=-1)
    if params.top_k is not None:
        probs = probs * (probs >= _kth_largest(probs, params.top_k, params.max_top_k)[:, None])
    least = None
    if params.top_p is not None:
        least = nucleus_threshold(probs, params.top_p)
    if params.min_p is not None:
        floor = params.min_p * probs.amax(dim=-1)
        least = floor if least is None else torch.maximum(least, floor)
    if least is not None:
        probs = probs * (probs >= least[:, None])
    return invert_cdf(probs, uniform_R)


def _kth_largest(probs_RV: Tensor, k_R: Tensor, largest_k: int) -> Tensor:
    """The k-th largest probability of each row; 0 where k is not below V. Tokens that tie with it are kept."""
    width = probs_RV.shape[-1]
    top = probs_RV.topk(min(largest_k, width), dim=-1).values
    kth = top.gather(1, (k_R.clamp(max=top.shape[1]) - 1)[:, None])[:, 0]
    return torch.where(k_R < width, kth, 0.0)


def nucleus_threshold(probs_RV: Tensor, top_p_R: Tensor) -> Tensor:
    """Least probability in the smallest set of likeliest tokens that reaches top_p of the row's sum; 0 for top_p 1.

    Keeping what is at least this likely keeps that set, and all tokens that tie with its last.
    """
    sum_R = probs_RV.sum(dim=-1)
    if probs_RV.device.type == "cpu":
        rows = zip(probs_RV.numpy(), sum_R.tolist(), top_p_R.tolist(), strict=True)
        least = torch.tensor([_nucleus_of_row(probs_V, total, top_p) for probs_V, total, top_p in rows])
    else:
        least = nucleus_by_sorting(probs_RV, top_p_R * sum_R)
    return torch.where(top_p_R < 1, least, 0.0)


def nucleus_by_sorting(probs_RV: Tensor, mass_R: Tensor) -> Tensor:
    """On accelerators: all rows at once, and nothing that depends on the values has to be known on the host."""
    ordered = probs_RV.sort(dim=-1, descending=True).values
    last = (ordered.cumsum(dim=-1) < mass_R[:, None]).sum(dim=-1, keepdim=True)
    return ordered.gather(1, last.clamp_(max=probs_RV.shape[-1] - 1))[:, 0]


def _nucleus_of_row(probs_V: np.ndarray, total: float, top_p: float) -> np.float32:
    """On CPU, where a data-dependent shape costs nothing and numpy sorts faster than torch.

    Tokens less likely than (1 - top_p) total / V weigh less than (1 - top_p) total together, so the set is complete
    without them; half of that leaves room for rounding.
    """
    likely = probs_V.take(np.flatnonzero(probs_V >= 0.5 * (1.0 - top_p) * total / len(probs_V)))
    ordered = np.sort(likely)[::-1]
    last = np.searchsorted(np.cumsum(ordered), top_p * total)
    return ordered[min(last, len(ordered) - 1)]


def invert_cdf(probs_RV: Tensor, uniform_R: Tensor) -> Tensor:
    """The token in which `uniform` times the row's sum falls, tokens in order of id; never one of probability 0.

    Two levels, blocks of tokens and tokens of a block, which is faster and rounds less than one long running sum.

    Args:
        probs_RV: float32, not negative; rows need not sum to 1 but have a positive entry.
        uniform_R: float32 in [0, 1).
    """
    width = probs_RV.shape[-1]
    if width % _CDF_BLOCK:
        probs_RV = torch.nn.functional.pad(probs_RV, (0, _CDF_BLOCK - width % _CDF_BLOCK))
    blocks = probs_RV.unflatten(-1, (-1, _CDF_BLOCK))
    block, share = _locate(blocks.sum(dim=-1), uniform_R[:, None])
    inside = blocks.gather(1, block[:, :, None].expand(-1, 1, _CDF_BLOCK))[:, 0]
    token, _ = _locate(inside, share)
    return (block * _CDF_BLOCK + token)[:, 0]


def _locate(weights_RK: Tensor, share_R1: Tensor) -> tuple[Tensor, Tensor]:
    """The column in which a share (0 .. 1) of the row's sum falls, and how much of that column lies before it.

    Never a column of weight 0: the running sum must rise there above the target.
    """
    sums = torch.nn.functional.pad(weights_RK.cumsum(dim=-1), (1, 0))
    target = share_R1 * _BELOW_ONE * sums[:, -1:]
    after = torch.searchsorted(sums, target, right=True).clamp_(max=weights_RK.shape[-1])  # beyond it only for NaN
    before = sums.gather(1, after - 1)
    return after - 1, (target - before) / (sums.gather(1, after) - before)


def log_probabilities(logits_RV: Tensor, tokens_R: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of the chosen and of the `top` likeliest tokens under softmax(logits).

    Returns:
        chosen float32[R], top values float32[R, top] in descending order, top ids int64[R, top].
    """
    logprobs = torch.log_softmax(logits_RV, dim=-1)
    chosen = logprobs.gather(1, tokens_R[:, None])[:, 0]
    values, ids = logprobs.topk(min(top, logprobs.shape[-1]), dim=-1)
    return chosen, values, ids
