"""Words, names, numbers and sentences that the tasks are made of. All drawn from a given generator."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from functools import cache
from pathlib import Path

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."

_FOLDER = Path(__file__).with_name("words")


@cache
def word_list(name: str) -> tuple[str, ...]:
    """One of the bundled lists, sorted: adjectives, nouns, verbs, given (first names), or a line of world.txt."""
    path = _FOLDER / f"{name}.txt"
    if path.exists():
        words = path.read_text(encoding="utf-8").split()
    else:
        lines = (_FOLDER / "world.txt").read_text(encoding="utf-8").splitlines()
        words = dict(line.split(": ", 1) for line in lines)[name].split()
    return tuple(sorted(set(words)))


@cache
def all_words() -> tuple[str, ...]:
    """Every bundled word once; first names are not words."""
    return tuple(sorted({word for name in ("adjectives", "nouns", "verbs") for word in word_list(name)}))


def draw_words(rng: random.Random) -> Iterator[str]:
    """Different words without end: all bundled ones in random order, then compounds of two nouns."""
    words = list(all_words())
    rng.shuffle(words)
    yield from words
    seen, nouns = set(words), word_list("nouns")
    while True:
        word = rng.choice(nouns) + rng.choice(nouns)
        if word not in seen:
            seen.add(word)
            yield word


def draw(kind: str, rng: random.Random) -> str:
    """A key or value: words (adjective-noun), numbers (7 digits) or uuids."""
    if kind == "words":
        return f"{rng.choice(word_list('adjectives'))}-{rng.choice(word_list('nouns'))}"
    if kind == "numbers":
        return str(rng.randint(10**6, 10**7 - 1))
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def draw_different(kind: str, rng: random.Random, taken: set[str]) -> str:
    """As `draw`, but none of `taken`, which then holds it."""
    while (value := draw(kind, rng)) in taken:
        pass
    taken.add(value)
    return value
