"""Chance that knows which values and phrasings are held out, and templates of text that it fills."""

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from datetime import date, timedelta
from random import Random
from typing import TypeVar

T = TypeVar("T")
SHARE = 7
"""One of so many values and phrasings is held out, by what it says."""

OPEN, CLOSE = "\ue000", "\ue001"
"""Around a value within a text, so that nothing changes it; taken out at the end."""

_CHOICE = re.compile(r"\(([^()]*\|[^()]*)\)")
_SEGMENT = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{(\w+)\}")


def is_held_out(said: str) -> bool:
    """Whether a value or a phrasing is among those that training never sees."""
    return zlib.crc32(said.encode()) % SHARE == 0


class Dice(Random):
    """Drawn from for one example.

    Attributes:
        held_out: draws those values and phrasings that are held out; otherwise the others.
        today: of the conversation.
        told: whether the conversation says what day it is.
    """

    def __init__(self, seed: int, held_out: bool = False):
        super().__init__(seed)
        self.held_out = held_out
        self.today = date(2025, 1, 1) + timedelta(days=self.randrange(1000))
        self.told = self.chance(0.5)

    def chance(self, share: float) -> bool:
        return self.random() < share

    def one(self, values: Sequence[T]) -> T:
        """Of the side that is drawn from; where that has none, of all."""
        side = [value for value in values if is_held_out(str(value)) == self.held_out]
        return self.choice(side or values)

    def expand(self, template: str) -> str:
        """A template with its (choices|made)."""
        while match := _CHOICE.search(template):
            template = template[: match.start()] + self.choice(match[1].split("|")) + template[match.end() :]
        return template


def slots(template: str) -> set[str]:
    """Names of the {slots} of a template."""
    return set(_SLOT.findall(template))


def omissible(template: str) -> set[str]:
    """Slots that stand in [segments], so that the template can do without them."""
    return {slot for segment in _SEGMENT.findall(template) for slot in slots(segment)}


def fill(template: str, said: Mapping[str, str], dice: Dice) -> str:
    """Text of a template.

    Args:
        template: (choices|are made), [segments] are kept if all their slots are said, neighbouring ones in any order.
        said: what stands in each {slot}.
        dice: makes the choices.
    """
    template = dice.expand(template)

    def kept(match: re.Match[str]) -> str:
        segments = _SEGMENT.findall(match[0])
        dice.shuffle(segments)
        return "".join(segment for segment in segments if slots(segment) <= said.keys())

    template = re.sub(r"(\[[^\[\]]*\])+", kept, template)
    return _SLOT.sub(lambda match: OPEN + said[match[1]] + CLOSE, template)


def outside(text: str, change: Callable[[str], str]) -> str:
    """A text, changed where it is no value."""
    parts = re.split(f"({OPEN}[^{CLOSE}]*{CLOSE})", text)
    return "".join(part if part.startswith(OPEN) else change(part) for part in parts)


def plain(text: str) -> str:
    """Without the marks of values."""
    text = re.sub(r" {2,}", " ", text.replace(OPEN, "").replace(CLOSE, "")).strip()
    return text.replace(" 'd ", "'d ")
