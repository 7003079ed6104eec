"""The seeds on which a release is judged, committed to before training ends and opened once.

Only the hash of the list is kept here. The list is a text file with one seed a line in ascending order, after a first
line of random characters, so that nobody finds the seeds by trying. To open it for a release:

1. training has ended and the weights' hash is in the model card;
2. the list is put beside the results (`sealed_seeds.txt`), and `open_sealed(text)` gives the seeds, or refuses a list
   that is not the one that was committed to;
3. the measurement runs once, and its figures are published whatever they are, together with the list;
4. `COMMITMENT` is replaced by the hash of a new list (`commit`) before anything is trained further: a list that was
   opened is a development set from then on.
"""

from __future__ import annotations

import hashlib
import secrets

from stille.errors import ConfigError

COMMITMENT = "273b0f1abce839af14638322cce61c2e0caddb8601e32f23deca832b5d3d049a"
"""SHA-256 of the list's text, UTF-8."""

DEVELOPMENT = tuple(range(100))
"""Seeds for everything else: looking, tests, tuning. Sealed ones are from `LOWEST` on."""

LOWEST, SPAN = 1_000_000, 2**31 - 1_000_000


def commit(count: int) -> tuple[str, str]:
    """A new list's text and its hash."""
    seeds: set[int] = set()
    while len(seeds) < count:
        seeds.add(LOWEST + secrets.randbelow(SPAN))
    text = "\n".join([secrets.token_hex(32), *map(str, sorted(seeds))]) + "\n"
    return text, digest(text)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def open_sealed(text: str, commitment: str = COMMITMENT) -> tuple[int, ...]:
    """The seeds of the list that was committed to.

    Raises:
        ConfigError: it is another list.
    """
    if digest(text) != commitment:
        raise ConfigError(f"the list's SHA-256 is {digest(text)}, expected {commitment}: it is not the sealed one")
    return tuple(int(line) for line in text.split()[1:])
