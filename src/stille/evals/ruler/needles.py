"""The eight needle-in-a-haystack tasks: keys with values hidden in a text, and some of them asked for."""

from __future__ import annotations

import random
from dataclasses import dataclass

from stille.evals.ruler.draft import Draft, Grown, split_off, spread
from stille.evals.ruler.prose import sentences
from stille.evals.ruler.words import NOISE, draw_different

_NEEDLE = "One of the special magic {kind} for {key} is: {value}."
_BEFORE = (
    "Some special magic {kind} are hidden within the following text. "
    "Make sure to memorize it. I will quiz you about the {kind} afterwards.\n"
)
_AFTER = "\nWhat are all the special magic {kind} for {query} mentioned in the provided text?"
_PREFIX = " The special magic {kind} for {query} mentioned in the provided text are"
_BEFORE_ONE = (
    "A special magic {kind} is hidden within the following text. "
    "Make sure to memorize it. I will quiz you about the {kind} afterwards.\n"
)
_AFTER_ONE = "\nWhat is the special magic {kind} for {query} mentioned in the provided text?"
_PREFIX_ONE = " The special magic {kind} for {query} mentioned in the provided text is"

DEPTHS = 40
"""Places in an essay where a needle may be: this many, from its start to its end, no two needles in one."""


@dataclass(frozen=True)
class Needles:
    """Parameters of one task, as in RULER's synthetic.yaml.

    Attributes:
        haystack: noise (one sentence again and again), essay, or needle (others of the same kind).
        key_kind, value_kind: words, numbers or uuids.
        keys: number of keys hidden; one more than that is asked for is a distractor.
        values: per key.
        queries: number of keys asked for at once.
    """

    haystack: str
    key_kind: str = "words"
    value_kind: str = "numbers"
    keys: int = 1
    values: int = 1
    queries: int = 1

    def draft(self, rng: random.Random, length: int) -> Draft:
        taken: set[str] = set()
        pairs = {
            draw_different(self.key_kind, rng, taken): [
                draw_different(self.value_kind, rng, taken) for _ in range(self.values)
            ]
            for _ in range(self.keys)
        }
        asked = rng.sample(list(pairs), self.queries)
        needles = [self._sentence(key, value) for key, values in pairs.items() for value in values]
        rng.shuffle(needles)
        if self.haystack == "essay":
            places = sorted(rng.sample([i / (DEPTHS - 1) for i in range(DEPTHS)], len(needles)))
        else:
            places = sorted(rng.random() for _ in needles)
        units = Grown(self._units(split_off(rng), taken))
        joint = " " if self.haystack == "essay" else "\n"
        several = self.queries * self.values > 1
        before, after, prefix = (_BEFORE, _AFTER, _PREFIX) if several else (_BEFORE_ONE, _AFTER_ONE, _PREFIX_ONE)
        names = {
            "kind": self.value_kind if several else self.value_kind.removesuffix("s"),
            "query": ", ".join(asked[:-1]) + ", and " + asked[-1] if len(asked) > 1 else asked[0],
        }
        return Draft(
            before=before.format(**names),
            context=lambda size: joint.join(spread(units.first(size), needles, places)),
            after=after.format(**names),
            answer_prefix=prefix.format(**names),
            references=[value for key in asked for value in pairs[key]],
            smallest=max(1, len(needles)),
        )

    def _sentence(self, key: str, value: str) -> str:
        return _NEEDLE.format(kind=self.value_kind, key=key, value=value)

    def _units(self, rng: random.Random, taken: set[str]):
        if self.haystack == "essay":
            yield from sentences(rng)
        while self.haystack == "noise":
            yield NOISE
        taken = set(taken)  # no other needle has a key that is asked for, or its value
        while True:
            yield self._sentence(draw_different(self.key_kind, rng, taken), draw_different(self.value_kind, rng, taken))
