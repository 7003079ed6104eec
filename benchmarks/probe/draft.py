"""The form that every task takes before it is laid out in tokens, and the helpers that tasks share.

A piece of text begins with its separator (a space or line ends) and never ends with one, so that pieces tokenised one
by one give the tokens of the whole text.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from probe.corpus import World


@dataclass(slots=True)
class Ask:
    """A question with its answer; `question` ends with the words that lead into the answer, if there are any."""

    question: str
    answer: str


@dataclass(slots=True)
class Draft:
    """A task of no fixed length yet.

    Attributes:
        opening: what precedes the context; may be empty.
        needles: pieces that the questions are about; they are scattered, in this order.
        filler: `filler(n)` makes n more pieces to bury them in; None: the needles are the whole context.
        asks: in the order in which they are put.
    """

    opening: str
    needles: list[str]
    filler: Callable[[int], list[str]] | None
    asks: list[Ask]


@dataclass(slots=True)
class Kit:
    """What a task is made with.

    Attributes:
        world: words and prose.
        rng: decides the content.
        style: decides wording and layout; an example before the task shares it.
        budget: tokens for the context.
        size: the number of tokens of each piece.
    """

    world: World
    rng: random.Random
    style: random.Random
    budget: int
    size: Callable[[list[str]], list[int]]

    def questions(self, most: int) -> int:
        """How many questions to put: often one, often many."""
        return min(most, self.rng.choice([1, 1, 2, 4, 8, 12, 16, 24]))


def join(items: list[str], form: int) -> str:
    """A list in one of five forms."""
    if form == 0 or len(items) == 1:
        return ", ".join(items)
    if form == 1:
        return ", ".join(items[:-1]) + " and " + items[-1]
    if form == 2:
        return " ".join(items)
    if form == 3:
        return ", ".join(items[:-1]) + ", and " + items[-1]
    return " ".join(f"{i}. {item}" for i, item in enumerate(items, 1))


def prose_filler(kit: Kit) -> Callable[[int], list[str]]:
    """Prose in reading order, with a paragraph break now and then."""

    def more(count: int) -> list[str]:
        sentences = kit.world.prose(kit.rng, count)
        return [("\n\n" if kit.rng.random() < 0.07 else " ") + sentence for sentence in sentences]

    return more


def noise_filler(kit: Kit, noise: list[str]) -> Callable[[int], list[str]]:
    """A few sentences over and over."""
    chosen = kit.rng.sample(noise, kit.rng.randint(2, 6))
    break_after = kit.style.random() < 0.5

    def more(count: int) -> list[str]:
        pieces = [" " + chosen[i % len(chosen)] for i in range(count)]
        if break_after:
            pieces = ["\n" + p[1:] if i % len(chosen) == 0 else p for i, p in enumerate(pieces)]
        return pieces

    return more
