"""Which shard a camera belongs to: rendezvous hashing (Thaler and Ravishankar, 1998).

Each shard has a score for each camera, and the highest takes it. When a shard goes, only its own cameras move; when one
comes, it takes about 1/n of each of the others'.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence


def choose(camera: str, shards: Sequence[str]) -> str:
    """The shard of a camera, the same in every process; their order does not matter.

    Raises:
        ValueError: there are no shards.
    """
    if not shards:
        raise ValueError(f"there is no shard for camera {camera!r}")
    return max(shards, key=lambda shard: (_score(camera, shard), shard))


def assign(cameras: Iterable[str], shards: Sequence[str]) -> dict[str, str]:
    """The shard of each camera."""
    return {camera: choose(camera, shards) for camera in cameras}


def _score(camera: str, shard: str) -> int:
    digest = hashlib.blake2b(f"{shard}\x1f{camera}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")
