"""cwe and fwe: which words are the most frequent? The evidence is everywhere."""

from __future__ import annotations

import math
import random
import string
from dataclasses import dataclass

from stille.evals.ruler.draft import Draft, Grown, split_off
from stille.evals.ruler.words import draw_words

_CWE_BEFORE = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n"
)
_CWE_AFTER = "\nQuestion: What are the {count} most common words in the above list?"
_CWE_PREFIX = " Answer: The top {count} words that appear most often in the list are:"

_FWE_BEFORE = (
    "Read the following coded text and track the frequency of each coded word. "
    "Find the three most frequently appeared coded words. "
)
_FWE_AFTER = (
    "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. "
    "What are the three most frequently appeared words in the above coded text?"
)
_FWE_PREFIX = " Answer: According to the coded text above, the three most frequently appeared words are:"

_SHORT = 4096
"""Below this many tokens RULER lowers cwe's counts: ten words thirty times would fill the context."""


@dataclass(frozen=True)
class CommonWords:
    """Ten words `often` times each among words that come `seldom` times, after a short example with its answer."""

    common: int = 10
    often: int = 30
    seldom: int = 3

    def draft(self, rng: random.Random, length: int) -> Draft:
        short = length < _SHORT
        often, seldom = (6, 1) if short else (self.often, self.seldom)
        shown = self._list(split_off(rng), *((3, 1) if short else (10, 3)))
        answer = " ".join(f"{i}. {word}" for i, word in enumerate(shown.references, 1))
        example = shown.prompt(10 if short else 30) + shown.answer_prefix + " " + answer
        own = self._list(split_off(rng), often, seldom)
        return Draft(
            before=f"{example}\n{own.before}",
            context=own.context,
            after=own.after,
            answer_prefix=own.answer_prefix,
            references=own.references,
            smallest=own.smallest,
        )

    def _list(self, rng: random.Random, often: int, seldom: int) -> Draft:
        words = Grown(draw_words(split_off(rng)))
        order = rng.getrandbits(64)
        common = words.first(self.common)

        def context(size: int) -> str:
            """`size` different words beside the common ones."""
            text = common * often + words.first(self.common + size)[self.common :] * seldom
            random.Random(order).shuffle(text)
            return " ".join(f"{i}. {word}" for i, word in enumerate(text, 1))

        return Draft(
            before=_CWE_BEFORE,
            context=context,
            after=_CWE_AFTER.format(count=self.common),
            answer_prefix=_CWE_PREFIX.format(count=self.common),
            references=common,
        )


@dataclass(frozen=True)
class FrequentWords:
    """Coded words whose counts fall as rank ** -alpha; the most frequent 'word' is dots, the next three are asked for.

    There are as many different words as fit `length` 50 times, as in RULER, which depends on the length alone.
    """

    alpha: float = 2.0
    letters: int = 6
    asked: int = 3

    def draft(self, rng: random.Random, length: int) -> Draft:
        words: dict[str, None] = {}
        while len(words) < max(self.asked + 1, length // 50):
            words["".join(rng.choices(string.ascii_lowercase, k=self.letters))] = None
        coded = ["...", *list(words)[1:]]
        order = rng.getrandbits(64)
        weights = [rank**-self.alpha / zeta(self.alpha) for rank in range(1, len(coded) + 1)]

        def context(size: int) -> str:
            text = [word for word, weight in zip(coded, weights, strict=True) for _ in range(int(size * weight))]
            random.Random(order).shuffle(text)
            return " ".join(text)

        return Draft(
            before=_FWE_BEFORE,
            context=context,
            after=_FWE_AFTER,
            answer_prefix=_FWE_PREFIX,
            references=coded[1 : 1 + self.asked],
            smallest=60,  # from here on the words asked for and the next have different counts
        )


def zeta(s: float, terms: int = 1000) -> float:
    """Riemann's zeta for s > 1: the first terms, and the rest by Euler and Maclaurin."""
    head = math.fsum(k**-s for k in range(1, terms))
    return head + terms ** (1 - s) / (s - 1) + terms**-s / 2 + s * terms ** (-s - 1) / 12
