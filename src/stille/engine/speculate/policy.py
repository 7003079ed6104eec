"""What a guess is worth and what checking it costs: both estimated beforehand and corrected by what happens."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Sequence

import numpy as np
import torch

from stille.engine.executor import Executor, StepInput

_PRIOR = 4.0
_MEMORY = 400.0
_HOST_SECONDS = 2e-4  # of a step of one sequence that cannot overlap, before any was seen
# Kernels for CPUs take rows one by one, graphs powers of two: a point on both sides of each.
_SIZES = (1, 2, 3, 4, 5, 8, 9, 12, 13, 16, 17, 24, 25, 32, 33, 48, 64)


class Calibration:
    """Observed shares of guesses that were right, by kind of guess. An early estimate counts as _PRIOR observations,
    and older observations fade once there are _MEMORY."""

    def __init__(self) -> None:
        self._seen: dict[Hashable, list[float]] = {}

    def chance(self, kind: Hashable, estimate: float) -> float:
        """Probability that a guess of this kind is right, given that all before it were."""
        right, all_ = self._seen.get(kind, (0.0, 0.0))
        return (right + _PRIOR * estimate) / (all_ + _PRIOR)

    def observe(self, kind: Hashable, right: bool) -> None:
        """A guess of this kind was checked."""
        seen = self._seen.setdefault(kind, [0.0, 0.0])
        if seen[1] >= _MEMORY:
            seen[0] *= 0.5
            seen[1] *= 0.5
        seen[0] += right
        seen[1] += 1


class CostCurve:
    """Seconds of a step: by its rows, linear between points, times a factor that follows what steps really take.

    The factor is one for each magnitude (power of two) of sequences, which is what the host's part depends on.

    Args:
        rows: ascending.
        seconds: of a step of so many rows.
    """

    def __init__(self, rows: Sequence[int], seconds: Sequence[float]):
        self.rows, self.seconds = list(rows), list(seconds)
        self._factor: dict[int, float] = {}

    def __call__(self, rows: int, sequences: int) -> float:
        return self._shape(rows) * self._factor.get(sequences.bit_length(), 1.0)

    def _shape(self, rows: int) -> float:
        if rows >= self.rows[-1]:
            return self.seconds[-1] * rows / self.rows[-1]
        return float(np.interp(rows, self.rows, self.seconds))

    def observe(self, rows: int, sequences: int, seconds: float) -> None:
        """A step took so long. What is far off was disturbed and counts as less far off."""
        known, place = self(rows, sequences), sequences.bit_length()
        change = min(3.0, max(1 / 3, seconds / known)) - 1.0
        self._factor[place] = self._factor.get(place, 1.0) * (1 + 0.15 * change)


class Costs:
    """What steps take, with guesses in them and without.

    Steps without guesses may overlap with the host's work, those with guesses cannot.

    Args:
        plain, checked: of steps without and with.
    """

    def __init__(self, plain: CostCurve, checked: CostCurve):
        self.plain, self.checked = plain, checked

    @classmethod
    def unknown(cls) -> Costs:
        """Nothing is known: checking seems to cost nothing, until steps show what it does."""
        return cls(*(CostCurve((1, 4096), (1e-3, 1e-3)) for _ in range(2)))

    @classmethod
    def measure(cls, executor: Executor, most: int) -> Costs:
        """By running steps over the scratch page.

        Args:
            most: rows of the largest step.
        """
        sizes = [size for size in _SIZES if size <= most] or [1]
        if executor.device.type == "cpu":
            sizes = [size for size in sizes if size <= 17]
        seconds = np.maximum.accumulate([_step_seconds(executor, size) for size in sizes])
        host = _HOST_SECONDS if executor.async_depth else 0.0
        return cls(CostCurve(sizes, seconds.tolist()), CostCurve(sizes, (seconds + host).tolist()))


def _step_seconds(executor: Executor, rows: int) -> float:
    ones = np.ones(rows, np.int32)
    budgets = None if executor.experts is None else np.full(rows, executor.experts.own, np.float32)
    step = StepInput(
        slots=np.arange(rows, dtype=np.int32),
        starts=0 * ones,
        lengths=ones,
        token_ids=np.zeros(rows, np.int64),
        page_table=np.zeros((rows, 1), np.int32),
        sample=np.ones(rows, bool),
        num_decodes=rows,
        budgets=budgets,
    )
    ids = torch.zeros(rows, dtype=torch.int64, device=executor.device)
    return min(_timed(lambda: executor.forward(step, ids), executor.device) for _ in range(2))


def _timed(run: Callable[[], object], device: torch.device) -> float:
    begun = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


def choose(sequences: int, chances: Iterable[Sequence[float]], costs: Costs, most: int) -> tuple[list[int], float]:
    """How many guesses of each draft to check.

    The step with the most tokens per second wins. Guesses are added in order of the probability that they survive, so
    those of a draft in their own order.

    Args:
        sequences: that decode in the step, with a draft or without.
        chances: of each draft, see `Calibration.chance`.
        most: guesses in one step.

    Returns:
        How many of each draft, and tokens per second of the step against one without guesses.
    """
    survivors: list[tuple[float, int]] = []
    drafts = list(chances)
    for number, chance in enumerate(drafts):
        alive = 1.0
        for each in chance:
            alive = min(alive * each, alive)
            survivors.append((alive, number))
    survivors.sort(key=lambda entry: -entry[0])
    plain = sequences / costs.plain(sequences, sequences)
    best, best_count, expected = 1.0, 0, float(sequences)
    for count, (alive, _) in enumerate(survivors[:most], 1):
        expected += alive
        ratio = expected / costs.checked(sequences + count, sequences) / plain
        if ratio > best:
            best, best_count = ratio, count
    taken = [0] * len(drafts)
    for _, number in survivors[:best_count]:
        taken[number] += 1
    return taken, best
