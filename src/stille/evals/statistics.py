"""What is left of a model's scores under a setting, and how sure that is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from stille.errors import ConfigError
from stille.evals.protocol import Answer

RESAMPLES = 10_000
KINDS = 16
"""Pairs of scores that differ, up to which a resample is drawn by their counts."""
FLOOR = 0.5
"""Tasks on which the full model scores less than this say little about a setting, and stay out of the headline."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A ratio and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class TaskScore:
    """Scores of one task at one length, in 0..1.

    Attributes:
        samples: number of pairs.
        full, sparse: mean scores.
        retention: sparse / full; None where full is 0.
        worse, better: pairs on which the setting scored lower, higher.
        counted: whether the task is part of the headline.
    """

    task: str
    samples: int
    full: float
    sparse: float
    retention: float | None
    worse: int
    better: int
    counted: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """One setting against the full model at one length.

    Attributes:
        tasks: every task, in RULER's order.
        full, sparse: means over the counted tasks, each of the same weight.
        retention: their ratio; None if no task is counted.
    """

    length: int
    tasks: list[TaskScore]
    full: float
    sparse: float
    retention: Interval | None


def compare(
    full: Sequence[Answer],
    sparse: Sequence[Answer],
    *,
    floor: float = FLOOR,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Comparison]:
    """Pair the answers of two settings to the same samples.

    Retention is mean(sparse) / mean(full), where a mean is that of the counted tasks' means. Its interval is the
    percentile bootstrap over samples: within each task pairs are drawn with replacement, as many as there are.

    Args:
        floor: a task counts where full attention scores at least this.

    Returns:
        One comparison per length, ascending.

    Raises:
        ConfigError: the two have not answered the same samples.
    """
    pairs = _pair(full, sparse)
    lengths = sorted({length for length, _ in pairs})
    return [
        _compare_one(length, {task: p for (at, task), p in pairs.items() if at == length}, floor, resamples, seed)
        for length in lengths
    ]


def _pair(full: Iterable[Answer], sparse: Iterable[Answer]) -> dict[tuple[int, str], np.ndarray]:
    """(length, task) -> scores [samples, 2], full first."""
    one, two = ({(a.length, a.task, a.index): a.score for a in answers} for answers in (full, sparse))
    if not one or one.keys() != two.keys():
        raise ConfigError(
            f"retention needs the same samples under both settings; one answered {len(one)}, the other {len(two)}, "
            f"{len(one.keys() & two.keys())} of them the same"
        )
    rows: dict[tuple[int, str], list[tuple[float, float]]] = defaultdict(list)
    for (length, task, _), score in sorted(one.items()):
        rows[length, task].append((score, 0.0))
    for (length, task), values in rows.items():
        keys = sorted(key for key in one if key[:2] == (length, task))
        values[:] = [(one[key], two[key]) for key in keys]
    return {key: np.array(values) for key, values in rows.items()}


def _compare_one(length: int, pairs: dict[str, np.ndarray], floor: float, resamples: int, seed: int) -> Comparison:
    from stille.evals.ruler import TASKS

    order = [task for task in TASKS if task in pairs] + sorted(pairs.keys() - TASKS.keys())
    tasks = []
    for task in order:
        scores_N2 = pairs[task]
        a, b = scores_N2.mean(0).tolist()
        tasks.append(
            TaskScore(
                task=task,
                samples=len(scores_N2),
                full=a,
                sparse=b,
                retention=b / a if a else None,
                worse=int((scores_N2[:, 1] < scores_N2[:, 0]).sum()),
                better=int((scores_N2[:, 1] > scores_N2[:, 0]).sum()),
                counted=a > 0 and a >= floor,
            )
        )
    counted = [pairs[t.task] for t in tasks if t.counted]
    full = float(np.mean([p[:, 0].mean() for p in counted])) if counted else 0.0
    sparse = float(np.mean([p[:, 1].mean() for p in counted])) if counted else 0.0
    return Comparison(length, tasks, full, sparse, bootstrap(counted, resamples, seed) if counted else None)


def bootstrap(pairs: Sequence[np.ndarray], resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """The ratio of the second to the first mean, with its interval.

    Args:
        pairs: per stratum (task) scores [samples, 2]; means weigh every stratum the same.

    Raises:
        ConfigError: the first mean is zero, so that there is no ratio.
    """
    means = np.mean([scores_N2.mean(0) for scores_N2 in pairs], 0)
    if means[0] <= 0:
        raise ConfigError("full attention scores zero everywhere; there is nothing to retain")
    generator = np.random.default_rng(seed)
    total_R2 = np.zeros((resamples, 2))
    for scores_N2 in pairs:
        n = len(scores_N2)
        kinds_U2, counts_U = np.unique(scores_N2, axis=0, return_counts=True)
        if len(kinds_U2) <= KINDS:  # how often each kind of pair is drawn says as much, and is drawn faster
            total_R2 += generator.multinomial(n, counts_U / n, resamples) @ kinds_U2 / n
            continue
        for start in range(0, resamples, 500):  # a block at a time bounds the memory
            rows = min(500, resamples - start)
            drawn_RN2 = scores_N2[generator.integers(0, n, (rows, n))]
            total_R2[start : start + rows] += drawn_RN2.mean(1)
    ratios = total_R2[:, 1] / np.maximum(total_R2[:, 0], np.finfo(float).tiny)
    low, high = np.percentile(ratios[total_R2[:, 0] > 0], [2.5, 97.5])
    return Interval(float(means[1] / means[0]), float(low), float(high))
