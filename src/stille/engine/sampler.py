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
_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64
_MIX1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX2 = -7723592293110705685  # 0x94D049BB133111EB


@dataclass(slots=True)
class RandomRows:
    """Parameters of the rows that are drawn, not greedy; None = no row uses the feature.

    Attributes:
        rows: int64, which rows of the batch these are; None = all.
        seed, slot: int64[R].
        temperature: float32[R], above 0.
        top_k: int64[R], 1 .. V; `max_top_k` is the largest below V.
        top_p, min_p: float32[R].
    """

    rows: Tensor | None
    seed: Tensor
    slot: Tensor
    temperature: Tensor
    top_k: Tensor | None
    max_top_k: int
    top_p: Tensor | None
    min_p: Tensor | None


def uniform(seed_R: Tensor, index_R: Tensor) -> Tensor:
    """float32 in [0, 1) with 24 bits, a function of (seed, index) alone; the same numbers on every device.

    Two rounds of the SplitMix64 finaliser (Steele, Lea, Flood 2014) in int64 arithmetic that wraps.
    """
    x = _mix(_mix(seed_R + _GOLDEN) ^ (index_R * _GOLDEN))
    return _shift_right(x, 40).to(torch.float32) * 2.0**-24


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX1
    x = (x ^ _shift_right(x, 27)) * _MIX2
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift: the sign bit does not spread."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


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
    sums = blocks.sum(dim=-1).cumsum(dim=-1)
    target = uniform_R * sums[:, -1]
    block = _first_above(sums, target)
    before = torch.where(block > 0, sums.gather(1, (block - 1).clamp(min=0)[:, None])[:, 0], 0.0)
    inside = blocks[torch.arange(len(block), device=block.device), block].cumsum(dim=-1)
    return block * _CDF_BLOCK + _first_above(inside, target - before)


def _first_above(sums_RK: Tensor, target_R: Tensor) -> Tensor:
    """First column whose running sum exceeds the target; rounding may have put the target at the end or beyond it."""
    below_end = torch.nextafter(sums_RK[:, -1], torch.zeros_like(target_R))
    target = torch.minimum(target_R, below_end).clamp(min=0.0)
    return torch.searchsorted(sums_RK, target[:, None], right=True)[:, 0]


def log_probabilities(logits_RV: Tensor, tokens_R: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of the chosen and of the `top` likeliest tokens under softmax(logits).

    Returns:
        chosen float32[R], top values float32[R, top] in descending order, top ids int64[R, top].
    """
    logprobs = torch.log_softmax(logits_RV, dim=-1)
    chosen = logprobs.gather(1, tokens_R[:, None])[:, 0]
    values, ids = logprobs.topk(min(top, logprobs.shape[-1]), dim=-1)
    return chosen, values, ids
