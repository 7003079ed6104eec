"""The seeds on which a release is judged: they follow from the SHA-256 of its weights.

Nobody can know them before training has ended, and anybody can find out that they are the right ones; there is no list
to keep secret, or to lose. The measurement runs once for a release, and its figures are published whatever they are.
Who chooses among several trainings does so on open seeds: weights whose sealed seeds were looked at are on record.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

WEIGHTS = "model.safetensors"
"""As `stille.video.model.store` names them, which needs torch to be imported."""

DEVELOPMENT = tuple(range(100))
"""Seeds for everything else: looking, tests, tuning. Sealed ones are from `LOWEST` on."""

LOWEST, SPAN = 1_000_000, 2**31 - 1_000_000


def sealed(model: Path, count: int) -> tuple[int, ...]:
    """Different seeds, in the order in which they are drawn: more of them begin with those of fewer.

    Args:
        model: the release's folder.

    Raises:
        OSError: its weights cannot be read.
    """
    key = hashlib.sha256((model / WEIGHTS).read_bytes()).digest()
    seeds: dict[int, None] = {}
    number = 0
    while len(seeds) < count:
        drawn = hashlib.sha256(b"stille.warehouse" + key + number.to_bytes(4, "big")).digest()
        seeds[LOWEST + int.from_bytes(drawn[:8], "big") % SPAN] = None
        number += 1
    return tuple(seeds)
