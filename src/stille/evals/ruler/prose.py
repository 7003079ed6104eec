"""Sentences of essay-like prose by a small grammar: what stands in for Paul Graham's essays."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from stille.evals.ruler.words import word_list

# {n} noun, {p} plural noun, {a} adjective, {v} verb, {s} verb of the third person, {d} past, {g} -ing form
_PATTERNS = (
    "The {a} {n} {s} the {n}, and nobody who {s} a {n} would call it {a}.",
    "Most people who {v} a {n} never {v} the {a} {n} behind it.",
    "When you {v} a {n}, you also {v} whatever made the {n} so {a}.",
    "It is easier to {v} a {a} {n} than to {v} a {a} one.",
    "I once knew a {n} that could {v} any {n}, as long as the {n} stayed {a}.",
    "If {p} were {a}, we would {v} them every day; since they are {a}, we {v} them once and move on.",
    "There are two ways to {v} a {n}: you can {v} it early, or you can let the {n} {v} you.",
    "What makes {p} {a} is not how they {v}, but how long they {v} before anyone asks why.",
    "A {n} is {a} in the way that a {n} is {a}: only from far away.",
    "Years ago they {d} the {n} with nothing but a {n} and a {a} {n}.",
    "I suspect the reason is that {p} {v} more than they {v}.",
    "Nobody told the {n} that {g} the {a} {p} was supposed to be difficult.",
    "The trouble with {p} is that the {a} ones {v} and the {a} ones do not.",
    "You can tell a {a} {n} by the way it {s} a {n} when no one is looking.",
    "Perhaps that is why {p} so often {v} the {a} {n} and forget the {a} one.",
    "In a {a} {n}, {g} is cheap, and so everyone {s}.",
    "Suppose you had to {v} every {n} in the {n} before you could {v} a single {n}.",
    "They {d} it, {d} it again, and in the end the {n} looked more like a {n} than before.",
    "For a {a} {n} the best plan is to {v} slowly and {v} often.",
    "The {n} of a {n} says little about its {n}, yet people {v} it first.",
    "Of course, {g} a {n} will not make it {a}, any more than {g} a {n} will.",
    "One {a} {n} taught me to {v} before I {v}, and I have been {a} ever since.",
    "But look at what the {p} do: they {v} the {n}, {v} the {n}, and only then {v} each other.",
    "Every {n} I have {d} was {a} at the start and {a} by the end.",
    "So a {n} that {s} too much is nearly as {a} as a {n} that never {s}.",
    "My {n} used to say that a {a} {n} {s} itself.",
    "The more {a} the {n}, the less it matters whether the {n} is {a}.",
    "We {d} all {n} long and the {p} were still {a} when we stopped.",
    "Here the {n} is not {a} at all; it merely {s} like a {n} that is.",
    "Between the {n} and the {n} there is room for one {a} idea, and usually it is about {p}.",
    "Ask a {n} why it {s} and you will hear about {p}, about {g}, about anything but the {n}.",
    "That sounds {a}, but try to {v} a {n} without a {n} and see how far you get.",
    "It took a {a} {n} to notice that {p} and {p} {v} in opposite directions.",
    "Whatever {s} the {n} today will look {a} once the {p} are gone.",
)
_VOWELS = "aeiou"
_DOUBLED = frozenset({"drag", "plan", "rob", "stir", "wrap"})
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiou])")
_SLOT = re.compile(r"\{(\w)\}")


def _plural(word: str) -> str:
    if word.endswith(("s", "x", "ch", "sh", "z")):
        return word + "es"
    if word.endswith("y") and word[-2] not in _VOWELS:
        return word[:-1] + "ies"
    return word + "s"


def _stem(verb: str) -> str:
    """Before -ed and -ing."""
    if verb in _DOUBLED:
        return verb + verb[-1]
    return verb[:-1] if verb.endswith("e") else verb


def _past(verb: str) -> str:
    stem = _stem(verb)
    return stem[:-1] + "ied" if stem.endswith("y") and stem[-2] not in _VOWELS else stem + "ed"


def sentences(rng: random.Random) -> Iterator[str]:
    """Different sentences without end (a repetition is possible, and unlikely)."""
    nouns, adjectives, verbs = (word_list(name) for name in ("nouns", "adjectives", "verbs"))

    def fill(match: re.Match[str]) -> str:
        kind = match[1]
        if kind in "np":
            noun = rng.choice(nouns)
            return noun if kind == "n" else _plural(noun)
        if kind == "a":
            return rng.choice(adjectives)
        verb = rng.choice(verbs)
        return {"v": verb, "s": _plural(verb), "d": _past(verb), "g": _stem(verb) + "ing"}[kind]

    while True:
        yield _ARTICLE.sub(r"\1n ", _SLOT.sub(fill, rng.choice(_PATTERNS)))
