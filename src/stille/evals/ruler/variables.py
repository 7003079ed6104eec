"""vt, variable tracking: a chain of assignments in noise; which variables have the value?"""

from __future__ import annotations

import itertools
import random
import string
from collections.abc import Callable
from dataclasses import dataclass

from stille.evals.ruler.draft import Draft, split_off, spread
from stille.evals.ruler.words import NOISE

_BEFORE = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
_AFTER = "\nQuestion: Find all variables that are assigned the value {value} in the text above."
_PREFIX = (
    " Answer: According to the chain(s) of variable assignment in the text above, {count} variables are assigned the "
    "value {value}, they are:"
)
_EXAMPLE_NOISE = 10


@dataclass(frozen=True)
class Variables:
    """One chain of `hops` assignments after the first, and before it, as in RULER, a short example with its answer."""

    hops: int = 4

    def draft(self, rng: random.Random, length: int) -> Draft:
        taken: set[str] = set()
        shown = self._chain(split_off(rng), taken)
        example = shown.prompt(_EXAMPLE_NOISE) + shown.answer_prefix + " " + " ".join(shown.references)
        own = self._chain(split_off(rng), taken)
        return Draft(
            before=f"{example}\n\n{own.before}",
            context=own.context,
            after=own.after,
            answer_prefix=own.answer_prefix,
            references=own.references,
            smallest=own.smallest,
        )

    def _chain(self, rng: random.Random, taken: set[str]) -> Draft:
        def different(draw: Callable[[], str]) -> str:
            while (text := draw()) in taken:
                pass
            taken.add(text)
            return text

        value = different(lambda: str(rng.randint(10_000, 99_999)))
        names = [different(lambda: "".join(rng.choices(string.ascii_uppercase, k=5))) for _ in range(self.hops + 1)]
        chain = [f"VAR {names[0]} = {value}"]
        chain += [f"VAR {new} = VAR {old}" for old, new in itertools.pairwise(names)]
        places = sorted(rng.random() for _ in chain)
        return Draft(
            before=_BEFORE,
            context=lambda size: "\n".join(spread([NOISE] * size, chain, places)),
            after=_AFTER.format(value=value),
            answer_prefix=_PREFIX.format(value=value, count=len(names)),
            references=names,
            smallest=len(chain),
        )
