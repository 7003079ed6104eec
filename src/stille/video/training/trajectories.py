"""Identities are learned from what a clip's objects look like: each object gets a random word, and at each frame is
asked for it, from what was seen of all of them before.

Trajectories are damaged on purpose, as MOTIP does it (R. Gao, J. Qi, L. Wang, CVPR 2025): hidden for a while, and
exchanged in single frames. A clip may also be cut in two with minutes between the parts, and the second one mirrored in
its positions: after a long time an object is somewhere else, and only its looks tell who it is. And in some clips looks
are mixed with those of others, more or less, so that places have to tell: elsewhere looks will say less than here.
And from some frame on objects may have other words, new ones or each other's, as if mistakes had been made: what is
right then is the word that an object had last.

B clips, T frames, M objects, C width, N = T * M.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from stille.video.model.identity import Context, IdentityDecoder
from stille.video.training.config import VideoTrainConfig
from stille.video.types import KINDS

OTHERS = 0.3
"""What an object weighs that is no person."""


@dataclass(slots=True)
class Damage:
    """
    Attributes:
        hidden_BTM: bool, as if the object had not been seen.
        source_BTM: whose looks a past object has, itself or another one of its frame.
        word_BM: of each object; from the number of words on, it has none.
        then_BM, from_B: what it is called from which frame on.
        mixed_B: share of others' looks in an object's; other_BTM: whose, a number among all of the batch.
        cut_B: first frame of the second part; gap_B: seconds before it, 0 for none; mirror_B: whether what moves is
            then elsewhere.
    """

    hidden_BTM: Tensor
    source_BTM: Tensor
    word_BM: Tensor
    then_BM: Tensor
    from_B: Tensor
    mixed_B: Tensor
    other_BTM: Tensor
    cut_B: Tensor
    gap_B: Tensor
    mirror_B: Tensor


@dataclass(slots=True)
class Luck:
    """What `damage` follows from: drawn on the CPU, of sizes that do not depend on what is in the clips.

    Attributes:
        number_BX: float32, 0 to 1.
        cut_B, gap_B: of `Damage`.
    """

    number_BX: Tensor
    cut_B: Tensor
    gap_B: Tensor

    @classmethod
    def draw(
        cls, clips: int, frames: int, objects: int, words: int, config: VideoTrainConfig, random: torch.Generator
    ) -> Luck:
        cut = 1 + (torch.rand(clips, generator=random) * max(1, frames - 1)).floor().long()
        gap = torch.exp(torch.rand(clips, generator=random) * math.log(config.longest_gap))
        gap = gap * (torch.rand(clips, generator=random) < config.gap)
        return cls(torch.rand(clips, sum(_sizes(frames, objects, words)), generator=random), cut, gap)

    def on(self, device: torch.device) -> Luck:
        """The same on a device; the CPU does not wait for it."""
        parts = self.number_BX, self.cut_B, self.gap_B
        if device.type == "cuda":
            parts = tuple(x.pin_memory() for x in parts)
        return Luck(*(x.to(device, non_blocking=True) for x in parts))


def _sizes(frames: int, objects: int, words: int) -> list[int]:
    """Of the parts of `number_BX`."""
    return [objects] * 4 + [frames * objects] * 3 + [words, 1, 2, frames * objects, objects, 2]


def damage(present_BTM: Tensor, words: int, config: VideoTrainConfig, luck: Luck) -> Damage:
    """What happens to the trajectories of a batch, on its device."""
    b, t, m = present_BTM.shape
    parts = luck.number_BX.split(_sizes(t, m, words), 1)
    start, length, chance, order = parts[:4]
    moves, *keys = (x.view(b, t, m) for x in parts[4:7])
    device = present_BTM.device
    frame = torch.arange(t, device=device)[None, :, None]
    begin = (start[:, None] * t).floor()
    end = begin + ((t - 1 - begin).clamp(min=0) * length[:, None]).ceil()
    hidden = (frame >= begin) & (frame < end) & (chance < config.occlusion)[:, None]
    moved = (moves < config.switch) & present_BTM & ~hidden
    last = 2.0 + torch.arange(m, device=device)
    to, source = (torch.where(moved, key, last).argsort(-1) for key in keys)
    source = torch.zeros_like(to).scatter(-1, to, source)
    rank = (order + ~present_BTM.any(1)).argsort(-1).argsort(-1)  # those that are ever seen come first
    none = torch.arange(words, max(words, m), device=device).expand(b, -1)
    drawn = parts[7].argsort(-1)
    word = torch.cat([drawn, none], 1).gather(1, rank)
    then = _renamed(word, drawn, present_BTM.any(1), parts[11] < config.rename, parts[12][:, 0] < 0.5)
    strength, mixes = parts[9].unbind(1)
    # After a gap that was made up nothing but looks can tell.
    mixed = torch.where((mixes < config.mixed) & (luck.gap_B == 0), strength, 0.0)
    other = (parts[10].view(b, t, m) * (b * t * m)).long().clamp(max=b * t * m - 1)
    at = (parts[12][:, 1] * t).long()
    return Damage(hidden, source, word, then, at, mixed, other, luck.cut_B, luck.gap_B, parts[8][:, 0] < 0.75)


def _renamed(word_BM: Tensor, drawn_BW: Tensor, ever_BM: Tensor, chosen_BM: Tensor, new_B: Tensor) -> Tensor:
    """[B, M] words of which the chosen objects' are others: such as nobody has while there are any, or each other's.

    Args:
        drawn_BW: all words; those of objects that are ever seen come first.
        new_B: bool, whether nobody's are taken.
    """
    words = drawn_BW.shape[1]
    chosen = chosen_BM & ever_BM & (word_BM < words)
    number, count = chosen.cumsum(1) - 1, chosen.sum(1, keepdim=True)
    free = ever_BM.sum(1, keepdim=True) + number
    new = torch.where(free < words, drawn_BW.gather(1, free.clamp(0, words - 1)), word_BM)
    first = (~chosen).to(torch.int8).argsort(dim=1, stable=True)
    others = word_BM.gather(1, first.gather(1, (number + 1).clamp(min=0) % count.clamp(min=1)))
    return torch.where(chosen, torch.where(new_B[:, None], new, others), word_BM)


@dataclass(slots=True)
class Judged:
    """The loss, and how many persons were asked for and named rightly: of those known before, of new ones, and of
    those known before that come after a gap that was made up."""

    loss: Tensor
    known: Tensor
    known_right: Tensor
    new: Tensor
    new_right: Tensor
    back: Tensor
    back_right: Tensor


def identity_loss(
    decoder: IdentityDecoder,
    token_BTMC: Tensor,
    box_BTM4: Tensor,
    present_BTM: Tensor,
    kind_BM: Tensor,
    time_BT: Tensor,
    how: Damage,
) -> Judged:
    """Cross-entropy over words and "new", of every object in every frame; boxes are corners.

    Objects whose number in the clip exceeds the words are left out. Persons weigh most: what stands where it stood is
    easily known again, and there is much of it.
    """
    b, t, m, c = token_BTMC.shape
    device = token_BTMC.device
    hidden, source = how.hidden_BTM, how.source_BTM
    frames = torch.arange(t, device=device)
    word = torch.where((frames >= how.from_B[:, None])[..., None], how.then_BM[:, None], how.word_BM[:, None])
    cut, gap, mirror = how.cut_B, how.gap_B, how.mirror_B
    seen = present_BTM & ~hidden & (word < decoder.words)
    later = frames >= cut[:, None]
    time = time_BT.double() + gap[:, None] * later
    moves = (kind_BM == KINDS.index("person")) | (kind_BM == KINDS.index("forklift"))
    far = (((gap > 0) & mirror)[:, None] & later)[:, :, None, None] & moves[:, None, :, None]
    mirrored = torch.stack([1 - box_BTM4[..., 2], box_BTM4[..., 1], 1 - box_BTM4[..., 0], box_BTM4[..., 3]], -1)
    box = torch.where(far, mirrored, box_BTM4)

    others = token_BTMC.detach().flatten(0, 2)[how.other_BTM]
    token = torch.lerp(token_BTMC, others, how.mixed_B[:, None, None, None].to(token_BTMC.dtype))
    x, position = (y.view(b, t, m, c) for y in decoder.describe(token.flatten(1, 2), box.flatten(1, 2)))

    def of_source(y_BTMX: Tensor) -> Tensor:
        return y_BTMX.gather(2, source[..., None].expand(-1, -1, -1, y_BTMX.shape[3])).flatten(1, 2)

    past, past_at, past_box = (of_source(y) for y in (x, position, box))
    there = seen.flatten(1)
    words = torch.where(there, word.flatten(1), -1)
    kv = decoder.remember(past, past_at, words)
    age = (time[:, :, None] - time[:, None]).clamp(min=0)
    before = torch.ones(t, t, dtype=torch.bool, device=device).tril(-1)
    context = Context(kv, words, past_box, age, before.expand(b, -1, -1), each=m)
    frame = torch.arange(t, device=device).repeat_interleave(m)
    here = (frame[:, None] == frame[None])[None, None] & there[:, None, None]
    here = here | torch.eye(t * m, dtype=torch.bool, device=device)
    logits = decoder(x.flatten(1, 2), position.flatten(1, 2), box.flatten(1, 2), context, here)

    upto = torch.where(seen, frames[:, None], -1).cummax(1).values  # when each was seen last
    last = torch.cat([torch.full_like(upto[:, :1], -1), upto[:, :-1]], 1)
    had = word.gather(1, last.clamp(min=0))
    label = torch.where((last >= 0) & seen, had, decoder.words).flatten(1)
    # A word that nothing has that may be read has no logit: damage may leave an object without its own past.
    known = torch.where(logits > -torch.inf, logits, -1e4)
    each = cross_entropy(known.flatten(0, 1), label.flatten(), reduction="none").view(b, -1).clamp(max=50.0)
    person = kind_BM == KINDS.index("person")
    weight = torch.where(person, 1.0, OTHERS)[:, None].expand(b, t, m).flatten(1) * there
    loss = (each * weight).sum() / weight.sum().clamp(min=1e-6)
    right, old = known.detach().argmax(-1) == label, label < decoder.words
    asked = there & person[:, None].expand(b, t, m).flatten(1)
    back = old & (later & (gap > 0)[:, None])[:, :, None].expand(b, t, m).flatten(1)
    return Judged(loss, *((asked & x).sum() for x in (old, old & right, ~old, ~old & right, back, back & right)))
