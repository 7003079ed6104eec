"""From logits over words to identities that are never used again, and what is known about each of them.

B cameras, K objects of a frame, W words, A attributes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from stille.video.types import ATTRIBUTES, KINDS, NOBODY

APPLIES = torch.tensor([[a in names for a in ATTRIBUTES] for names in (
    ("helmet", "vest", "carrying", "lying"), ("loaded",), (), ("loaded",),
)])  # fmt: skip
"""[kinds, attributes] bool: which attributes a kind has."""

_SECONDS = {"helmet": 10.0, "vest": 10.0, "carrying": 2.0, "loaded": 2.0, "lying": 1.0}
LASTING = torch.tensor([_SECONDS[name] for name in ATTRIBUTES])
"""Seconds after which evidence counts for 1/e: clothes last, poses do not."""

LOOKS = 4.0
"""Looks at an object that count as independent, however many there were."""

LEAST = 0.2
"""Probability from which a word may be an object's second choice or a later one."""

ROUNDS = 4
"""Of claiming words: in each, who lost a word claims its next one."""

assert len(APPLIES) == len(KINDS)


@dataclass(slots=True)
class WordTable:
    """Rows of `Memory`: see there."""

    identity_BW: Tensor
    last_BW: Tensor
    evidence_BWA: Tensor
    weight_BWA: Tensor
    next_B: Tensor


@dataclass(slots=True)
class Settled:
    """What became of a frame's objects.

    Attributes:
        word_BK, identity_BK: -1 where it is not settled.
        attribute_BKA: log-odds.
        recycled_BW: words that stand for somebody else from now on.
    """

    word_BK: Tensor
    identity_BK: Tensor
    attribute_BKA: Tensor
    recycled_BW: Tensor


def settle(
    table: WordTable,
    logit_BKW: Tensor,
    score_BK: Tensor,
    kind_BK: Tensor,
    attribute_BKA: Tensor,
    time_B: Tensor,
    shown: float,
    born: float,
) -> tuple[Settled, WordTable]:
    """Give each object the word it most likely has, new ones a word that nobody in the frame has.

    Of objects that claim one word the likeliest gets it, the others claim the next that is likelier than being new.
    Who is left without is new as well. New objects take the words of those that were seen longest ago, free words
    first.

    Args:
        logit_BKW: over words and "new".
        attribute_BKA: logits of this frame.
        shown, born: presence from which an object gets a word, or a new one.
    """
    words = table.identity_BW.shape[1]
    word, held = _claimed(logit_BKW.softmax(-1), score_BK >= shown, words)
    new = (word == NOBODY) & (score_BK >= max(shown, born))
    rank = torch.where(new, score_BK, -1.0).argsort(dim=1, descending=True, stable=True).argsort(1)
    longest_ago = table.last_BW.masked_fill(held, math.inf).argsort(dim=1, stable=True)
    fresh = longest_ago.gather(1, rank.clamp(max=words - 1))
    word = torch.where(new, fresh, word)

    taken = _mark(word, new, words)
    number = table.next_B[:, None] + rank
    identity = _put(table.identity_BW, word, number, new)
    last = _put(table.last_BW, word, time_B[:, None].expand_as(word), word >= 0)
    evidence, weight = (x.masked_fill(taken[..., None], 0.0) for x in (table.evidence_BWA, table.weight_BWA))

    at = word.clamp(min=0)
    settled = word >= 0
    wide = at[..., None].expand(-1, -1, evidence.shape[2])
    gap = torch.where(new | ~settled, 0.0, time_B[:, None] - table.last_BW.gather(1, at)).clamp(min=0).float()
    all_apply, lasting = _constants(gap.device)
    decay = torch.exp(-gap[..., None] / lasting)
    applies = all_apply[kind_BK] & settled[..., None]
    seen = evidence.gather(1, wide) * decay + torch.where(applies, attribute_BKA, 0.0)
    looks = weight.gather(1, wide) * decay + applies
    evidence, weight = _put(evidence, word, seen, settled), _put(weight, word, looks, settled)
    odds = torch.where(applies, seen * (LOOKS / looks.clamp(min=LOOKS)), 0.0)
    identity_BK = torch.where(settled, identity.gather(1, at), NOBODY)
    after = WordTable(identity, last, evidence, weight, table.next_B + new.sum(1))
    return Settled(word, identity_BK, odds, taken), after


def _claimed(likely_BKW: Tensor, may_BK: Tensor, words: int) -> tuple[Tensor, Tensor]:
    """Words of objects, -1 for none, and bool [B, W], which are taken; as many steps whatever the values are."""
    rival = likely_BKW[..., words:]
    open_BKW = torch.where(may_BK[..., None] & (likely_BKW[..., :words] > rival), likely_BKW[..., :words], -1.0)
    place = torch.arange(likely_BKW.shape[1], device=likely_BKW.device)
    number = torch.arange(words, device=likely_BKW.device)
    word = torch.full_like(may_BK, NOBODY, dtype=torch.int64)
    for turn in range(ROUNDS):
        likely, choice = open_BKW.max(-1)
        claim = torch.where((choice[..., None] == number) & (likely >= 0)[..., None], likely[..., None], -1.0)
        best, winner = claim.max(1)  # by word: [B, W]
        won = (likely >= 0) & (winner.gather(1, choice) == place)
        word = torch.where(won, choice, word)
        open_BKW = open_BKW.masked_fill(won[..., None] | (best >= 0)[:, None], -1.0)
        if turn == 0:
            open_BKW = open_BKW.masked_fill(open_BKW < LEAST, -1.0)
    return word, (word[..., None] == number).any(1)


@cache
def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """`APPLIES` and `LASTING` on a device, brought there once: a copy waits for all that it computes."""
    with torch.inference_mode(False):
        return APPLIES.to(device), LASTING.to(device)


def _mark(word_BK: Tensor, which_BK: Tensor, words: int) -> Tensor:
    """bool [B, W]: words of the marked objects."""
    marks = torch.zeros(len(word_BK), words + 1, dtype=torch.bool, device=word_BK.device)
    return marks.scatter(1, torch.where(which_BK, word_BK, words), True)[:, :words]


def _put(table_BW: Tensor, word_BK: Tensor, value_BK: Tensor, which_BK: Tensor) -> Tensor:
    """A table in which the marked objects' words have new values; the words of marked objects differ."""
    spare = torch.cat([table_BW, table_BW[:, :1]], 1)
    at = torch.where(which_BK, word_BK, table_BW.shape[1])
    if table_BW.ndim == 3:
        at = at[..., None].expand(-1, -1, table_BW.shape[2])
    return spare.scatter(1, at, value_BK.to(table_BW.dtype))[:, :-1]
