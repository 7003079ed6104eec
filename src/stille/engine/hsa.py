"""Sparse attention over prompts: which queries use it, and where a prompt may be cut so that the cut changes nothing.

HSA chooses keys for a tile of 128 queries at a time, and, far into a sequence, candidates for a span of tiles. An
answer should not depend on how a prompt came to be cut into steps. So every rule here goes by positions in the
sequence, and tiles and spans begin at the same positions however it is cut.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

from stille.errors import UnsupportedError
from stille.kernels.hsa import HSAConfig
from stille.kernels.hsa.config import TILE

PACKED_BUDGET = 4096
"""Default budget where weights are packed: rows choose by bounds there, which find less than what others choose by."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive new tokens of one sequence, all attended in the same way.

    Attributes:
        start, end: positions.
        config: for `hsa_attention` over the first `end` keys; None: attend to everything.
    """

    start: int
    end: int
    config: HSAConfig | None


@dataclass(frozen=True, slots=True)
class PromptRule:
    """How a prompt is read under a configuration.

    Queries at positions below `dense_until` are attended in full: few keys make sparse attention slower, not faster.
    Those from `candidates_from` on score candidates only, per span; tiles with one of the last `tail` queries of the
    prompt choose row by row.
    """

    config: HSAConfig
    dense_until: int
    candidates_from: int

    @staticmethod
    def of(config: HSAConfig) -> PromptRule:
        dense_until, candidates_from = _tile_ceil(config.dense_limit), _tile_ceil(config.candidates_from)
        return PromptRule(config, dense_until, max(dense_until, candidates_from))

    def floor(self, position: int) -> int:
        """The last position up to `position` where a prompt may be cut."""
        if position < self.candidates_from:
            return position // TILE * TILE
        span = self.config.span
        return self.candidates_from + (position - self.candidates_from) // span * span

    def step(self, length: int) -> int:
        """Tokens between two cuts at the most, in sequences of up to `length` tokens."""
        return TILE if length <= self.candidates_from else self.config.span

    def segments(self, start: int, end: int, total: int) -> list[Segment]:
        """How tokens `start` .. `end` - 1 of a prompt of `total` tokens are attended.

        Args:
            start: 0 or a position that `floor` returned.
            end: of the chunk; the keys before it are in the cache.
            total: tokens of the whole prompt.
        """
        edges = [start, *(edge for edge in (self.dense_until, self.candidates_from) if start < edge < end), end]
        return [
            Segment(first, last, None if first < self.dense_until else self._config(first, last, total))
            for first, last in pairwise(edges)
            if first < last
        ]

    def _config(self, first: int, last: int, total: int) -> HSAConfig:
        tail_from = max(first, max(0, total - self.config.tail) // TILE * TILE)
        narrow = first >= self.candidates_from
        return replace(
            self.config,
            dense_below=0,
            candidates_from=0 if narrow else last + 1,
            tail=max(0, last - tail_from) if self.config.tail else 0,
        )


def check_heads(head_dim: int, group: int) -> None:
    """Raises UnsupportedError unless the HSA kernels take these heads."""
    from stille.kernels.hsa.api import MAX_DIM, MAX_GROUP

    if head_dim % 16 or head_dim > MAX_DIM or group > MAX_GROUP:
        raise UnsupportedError(
            f"attention 'hsa' takes heads whose width is a multiple of 16 up to {MAX_DIM}, at most {MAX_GROUP} to a "
            f"key/value head; the model's are {head_dim} wide, {group} to one: use attention 'full'"
        )


def _tile_ceil(position: int) -> int:
    return -(-position // TILE) * TILE
