"""What HSA is asked to do, validated, and what it returns."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from stille.errors import ConfigError

TILE = 128
"""Queries that share one selection."""

COARSE = 128
"""Queries whose mean looks for candidates."""


@dataclass(frozen=True)
class HSAConfig:
    """Sizes count keys (tokens); they are multiples of `leaf`. The defaults are what an H100 and an H200 showed to pay.

    Attributes:
        budget: keys that a tile of 128 queries may read: sinks, window and the tile's own included.
        leaf: consecutive keys that are read or left together: 16, 32, 64 or 128. 64 is a page of the engine's cache and
            the fastest; smaller leaves catch more attention mass at the same budget.
        unit: queries whose mean stands for them in scoring, a power of two from 4 to 128.
        codes: what mean queries score: "keys", the keys themselves, or "sign", one bit per dimension and a scale each.
        row_weight: what the search of every single query counts beside that of the mean queries. Mean queries find what
            a tile attends to as a whole; what one row alone looks for is not to be seen in them. 0: no such search.
        outliers: keys of a leaf that such a search sees, those farthest from the leaf's mean, up to 15; the mean stands
            for the others.
        candidates: keys that a span of queries scores exactly; a coarse pass over leaf means picks them.
        candidates_from: keys in the sequence from which the coarse pass is used; below, every past key is scored.
        span: queries that share candidates, a multiple of 128.
        tail: last queries that choose row by row: a tile with one of them scores every key by each of its rows, and
            ranks leaves by the largest share that any row gives them. A pooled query can miss what one row alone looks
            for, and the end of a prompt holds the question. 0: none.
        coverage: stop before the budget once this share of a tile's estimated mass is covered; None: spend the budget.
            Tiles of the tail spend it always.
        decode_leaf: keys that decode reads or leaves together: 16, 32 or 64.
        sinks: first keys, always read.
        local: keys right before the tile's own leaves, always read.
        residual: add an estimate of what was not read; also gives the share of mass that it stands for. It costs a pass
            of one mean query per unit over all keys.
        dense_below: sequences of fewer keys are attended in full. None: 3 * budget (at 2 * budget, heads of 64
            were slower on an H100 than with FlashAttention-2).

    Raises:
        ConfigError: a size is out of range, not a multiple of the leaf, or the budget cannot hold what is always read.
    """

    budget: int = 2048
    leaf: int = 64
    unit: int = 128
    codes: str = "keys"
    row_weight: float = 1 / 64
    outliers: int = 3
    candidates: int = 16384
    candidates_from: int = 98304
    span: int = 512
    tail: int = 128
    coverage: float | None = None
    decode_leaf: int = 16
    sinks: int = 128
    local: int = 256
    residual: bool = False
    dense_below: int | None = None

    def __post_init__(self) -> None:
        if self.leaf not in (16, 32, 64, 128):
            raise ConfigError(f"leaf is {self.leaf}: expected 16, 32, 64 or 128")
        if self.unit not in (4, 8, 16, 32, 64, 128):
            raise ConfigError(f"unit is {self.unit}: expected a power of two from 4 to 128")
        if self.codes not in ("keys", "sign"):
            raise ConfigError(f"codes is {self.codes!r}: expected 'keys' or 'sign'")
        if not 0 <= self.row_weight < math.inf:
            raise ConfigError(f"row_weight is {self.row_weight}: expected a finite number, 0 or more")
        if not 0 <= self.outliers <= 15:
            raise ConfigError(f"outliers is {self.outliers}: expected 0 to 15")
        if self.decode_leaf not in (16, 32, 64):
            raise ConfigError(f"decode_leaf is {self.decode_leaf}: expected 16, 32 or 64")
        if self.tail < 0:
            raise ConfigError(f"tail is {self.tail}: expected 0 or more queries")
        if self.coverage is not None and not 0 < self.coverage <= 1:
            raise ConfigError(f"coverage is {self.coverage}: expected a share above 0 and up to 1, or None")
        for name in ("budget", "candidates", "sinks", "local"):
            value = getattr(self, name)
            step = max(self.leaf, self.decode_leaf)
            if value < 0 or value % step:
                raise ConfigError(f"{name} is {value}: expected a multiple of the leaf of {step}")
        if self.span <= 0 or self.span % TILE:
            raise ConfigError(f"span is {self.span}: expected a positive multiple of {TILE}")
        least = self.sinks + self.local + TILE + self.leaf  # a tile that starts inside a leaf lies in one more
        if self.budget < least:
            raise ConfigError(
                f"a budget of {self.budget} keys cannot hold {self.sinks} sinks, a window of {self.local} and the "
                f"tile's own: give at least {least}"
            )
        least = self.sinks + self.local + self.span + self.leaf
        if self.candidates < least:
            raise ConfigError(
                f"{self.candidates} candidates cannot hold {self.sinks} sinks, a window of {self.local} and a span of "
                f"{self.span}: give at least {least}"
            )
        if self.candidates_from < 0 or (self.dense_below is not None and self.dense_below < 0):
            raise ConfigError("candidates_from and dense_below are lengths: expected 0 or more")

    @property
    def dense_limit(self) -> int:
        """Sequences of fewer keys are attended in full."""
        return 3 * self.budget if self.dense_below is None else self.dense_below

    def uses_candidates(self, keys: int) -> bool:
        """Whether a sequence of so many keys is scored in two passes."""
        return keys >= self.candidates_from and self.candidates < keys


class HSAOutput(NamedTuple):
    """What `hsa_attention` returns with `return_details`.

    Attributes:
        out: [B, H, T, D], in the inputs' dtype.
        lse: float32 [B, H, T], natural logarithm of the sum of exponentials; the residual is part of it.
        missed: float32 [B, H, T], estimated share of the mass that was not read exactly; None without a residual.
    """

    out: Tensor
    lse: Tensor
    missed: Tensor | None
