"""What a guess is worth and what checking it costs: both estimated beforehand and corrected by what happens."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterable, Sequence

import numpy as np
import torch

from stille.engine.executor import Executor, StepInput

_PRIOR = 4.0
_MEMORY = 400.0
_HOST_SECONDS = 2e-4  # of a step of one sequence that cannot overlap, before any was seen
_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


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
    """Seconds of a step by its rows: linear between points, which move towards what steps really take.

    Args:
        rows: ascending.
        seconds: of a step of so many rows.
    """

    def __init__(self, rows: Sequence[int], seconds: Sequence[float]):
        self.rows, self.seconds = list(rows), list(seconds)

    def __call__(self, rows: int) -> float:
        place, share = self._place(rows)
        if place + 1 == len(self.rows):
            return self.seconds[-1] * max(1.0, rows / self.rows[-1])
        return (1 - share) * self.seconds[place] + share * self.seconds[place + 1]

    def _place(self, rows: int) -> tuple[int, float]:
        """The point at or before `rows`, and how far it is to the next one."""
        place = max(0, bisect_left(self.rows, rows + 1) - 1)
        if place + 1 == len(self.rows):
            return place, 0.0
        return place, max(0.0, (rows - self.rows[place]) / (self.rows[place + 1] - self.rows[place]))

    def observe(self, rows: int, seconds: float) -> None:
        """A step of so many rows took so long. What is far off was disturbed and counts as less far off.

        Dearer is believed sooner than cheaper: who is too sure that guesses are cheap pays for it in every step.
        """
        known = self(rows)
        change = min(3.0, max(0.5, seconds / known)) - 1.0
        change *= 0.2 if change > 0 else 0.1
        place, share = self._place(rows)
        self.seconds[place] *= 1 + (1 - share) * change
        if share:
            self.seconds[place + 1] *= 1 + share * change
        for later in range(1, len(self.seconds)):  # more rows never take less time
            self.seconds[later] = max(self.seconds[later], self.seconds[later - 1])


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
            sizes = [size for size in sizes if size <= 16]
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
    return min(_timed(lambda: executor.forward(step, ids), executor.device) for _ in range(3))


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
    plain = sequences / costs.plain(sequences)
    best, best_count, expected = 1.0, 0, float(sequences)
    for count, (alive, _) in enumerate(survivors[:most], 1):
        expected += alive
        ratio = expected / costs.checked(sequences + count) / plain
        if ratio > best:
            best, best_count = ratio, count
    taken = [0] * len(drafts)
    for _, number in survivors[:best_count]:
        taken[number] += 1
    return taken, best
