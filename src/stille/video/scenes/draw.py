"""Chance that depends on a clip's seed and on a name alone.

A generator that is drawn from in turn would give a clip other numbers when its neighbours change. Here each number is a
hash of (seed, name, position): the same on every device, in every batch, and for a name that is added later.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 2^64 / golden ratio, as int64
_FIRST, _SECOND = -4658895280553007687, -7723592293110705685  # multipliers of splitmix64


@lru_cache(maxsize=8192)
def constant(value: float | tuple, device: torch.device) -> Tensor:
    """A float32 tensor of a number or (nested) tuple, kept on the device: making one anew would wait for it.

    It is shared: never write into it.
    """
    return torch.tensor(value, dtype=torch.float32, device=device)


def mix(value: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014) on int64, whose products wrap."""
    value = (value ^ ((value >> 30) & 0x3FFFFFFFF)) * _FIRST
    value = (value ^ ((value >> 27) & 0x1FFFFFFFFF)) * _SECOND
    return value ^ ((value >> 31) & 0x1FFFFFFFF)


def clip_seeds(seed: int, batch: int, device: torch.device | str = "cpu") -> Tensor:
    """Seeds of `batch` clips, int64 [B]; the first of a larger batch are those of a smaller one."""
    index_B = torch.arange(batch, dtype=torch.int64, device=device)
    return mix(mix(torch.full_like(index_B, seed)) + (index_B + 1) * _GOLDEN)


class Draw:
    """Numbers for B clips.

    Args:
        seed_B: int64, well mixed, as those of `clip_seeds`.
    """

    def __init__(self, seed_B: Tensor):
        self.seed_B = seed_B
        self.device = seed_B.device

    def bits(self, name: str, *shape: int) -> Tensor:
        """int64 [B, *shape]."""
        stream = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big", signed=True)
        place = torch.arange(math.prod(shape), dtype=torch.int64, device=self.device) * _GOLDEN
        return mix((self.seed_B ^ stream)[:, None] + place).reshape(len(self.seed_B), *shape)

    def uniform(self, name: str, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """float32 [B, *shape] in low..high; the 24 bits of a float32's fraction, so that devices agree."""
        share = ((self.bits(name, *shape) >> 40) & 0xFFFFFF).to(torch.float32) / 2**24
        return low + share * (high - low)

    def integer(self, name: str, *shape: int, below: int) -> Tensor:
        """int64 [B, *shape] in 0..below-1."""
        return ((self.bits(name, *shape) >> 33) & 0x7FFFFFFF) % below

    def chance(self, name: str, *shape: int, p: float | Tensor) -> Tensor:
        """bool [B, *shape], true with probability p."""
        return self.uniform(name, *shape) < p

    def sign(self, name: str, *shape: int) -> Tensor:
        """-1.0 or 1.0."""
        return self.chance(name, *shape, p=0.5).to(torch.float32) * 2 - 1

    def choice(self, name: str, *shape: int, of: Sequence[Sequence[float]]) -> Tensor:
        """A row of a table each, float32 [B, *shape, C]."""
        table = constant(tuple(tuple(row) for row in of), self.device)
        return table[self.integer(name, *shape, below=len(of))]
