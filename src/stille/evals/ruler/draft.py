"""What a task makes: a prompt whose haystack can still be sized."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Draft:
    """A question with its answers, and a haystack of any size around them.

    Attributes:
        before: what the prompt starts with, examples included.
        context: the haystack of a given number of units, with the evidence in it. Pure: the same size gives the same
            text, so that a size can be searched for.
        after: the question.
        answer_prefix: how the answer begins, given to the model.
        references: the answers.
        smallest: number of units below which the task is not itself.
    """

    before: str
    context: Callable[[int], str]
    after: str
    answer_prefix: str
    references: list[str]
    smallest: int = 1

    def prompt(self, size: int) -> str:
        return self.before + self.context(size) + self.after


class Grown(Sequence[T]):
    """An endless stream of units of which more are made as they are asked for."""

    def __init__(self, units: Iterator[T]):
        self._units = units
        self._made: list[T] = []

    def first(self, count: int) -> list[T]:
        while len(self._made) < count:
            self._made.append(next(self._units))
        return self._made[:count]

    def __getitem__(self, index):  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._made[index]

    def __len__(self) -> int:
        return len(self._made)


def split_off(rng: random.Random) -> random.Random:
    """A generator of its own, so that how much one part of a sample draws does not change the others."""
    return random.Random(rng.getrandbits(64))


def spread(units: list[str], evidence: Sequence[str], places: Sequence[float]) -> list[str]:
    """Units with evidence between them.

    Args:
        places: for each piece of evidence the share of the units before it, 0..1, ascending.
    """
    out: list[str] = []
    start = 0
    for text, place in zip(evidence, places, strict=True):
        stop = min(len(units), int(place * (len(units) + 1)))
        out += units[start:stop]
        out.append(text)
        start = stop
    return out + units[start:]
