"""What a model retains of its base's accuracy, by the same questions, with a paired bootstrap interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stille.errors import ConfigError
from stille.evals.protocol import Answer
from stille.evals.quality.answers import Asked
from stille.evals.quality.items import Item
from stille.evals.quality.tasks import task_of
from stille.evals.statistics import RESAMPLES, Interval, bootstrap

ERRORS = 2.0
"""Standard errors of guessing by which the base has to be better than it, for a task to count."""


@dataclass(frozen=True, slots=True)
class TaskRetention:
    """One task.

    Attributes:
        metric: by which answers are right: acc or acc_norm.
        samples: pairs of answers.
        chance: accuracy of guessing.
        base, model: accuracies.
        retention: model / base; None where the base is never right.
        above_chance: (model - chance) / (base - chance); None where the base is at chance.
        worse, better: questions that only the base, only the model gets right.
        counted: whether the task is part of the headline: the base is better than chance by `ERRORS` standard errors.
    """

    task: str
    metric: str
    samples: int
    chance: float
    base: float
    model: float
    retention: Interval | None
    above_chance: float | None
    worse: int
    better: int
    counted: bool


@dataclass(frozen=True, slots=True)
class Retention:
    """A setting against the base.

    Attributes:
        tasks: all of them, in the order of the questions.
        base, model: means of the counted tasks' accuracies, each of the same weight.
        retention: their ratio; None if no task counts.
        above_chance: mean over the counted tasks of the same ratio above chance.
    """

    tasks: list[TaskRetention]
    base: float
    model: float
    retention: Interval | None
    above_chance: float | None


def compare(
    asked: Sequence[Asked], base: Sequence[Answer], model: Sequence[Answer], resamples: int = RESAMPLES, seed: int = 0
) -> Retention:
    """Pair the answers of base and model to the same questions; texts are left out.

    Raises:
        ConfigError: they answered different questions.
    """
    keys = [(one.task, one.index) for one in asked]
    if any([(answer.task, answer.index) for answer in given] != keys for given in (base, model)):
        raise ConfigError("retention needs the answers of both to the same questions.")
    rows: dict[str, list[tuple[Item, float, float]]] = {}
    for one, a, b in zip(asked, base, model, strict=True):
        if isinstance(one, Item):
            rows.setdefault(one.task, []).append((one, a.score, b.score))
    tasks, counted = [], []
    for task, given in rows.items():
        scores_N2 = np.array([(a, b) for _, a, b in given])
        chances = [1 / len(item.pairs) if len(item.pairs) > 1 else 0.0 for item, _, _ in given]
        one = _task(task, scores_N2, chances, resamples, seed)
        tasks.append(one)
        if one.counted:
            counted.append((one, scores_N2))
    if not counted:
        return Retention(tasks, 0.0, 0.0, None, None)
    pairs = [scores for _, scores in counted]
    means = np.mean([scores.mean(0) for scores in pairs], 0)
    above = [one.above_chance for one, _ in counted if one.above_chance is not None]
    return Retention(
        tasks, float(means[0]), float(means[1]), bootstrap(pairs, resamples, seed), sum(above) / len(above)
    )


def _task(task: str, scores_N2: np.ndarray, chances: list[float], resamples: int, seed: int) -> TaskRetention:
    base, model = scores_N2.mean(0).tolist()
    chance = sum(chances) / len(chances)
    error = math.sqrt(sum(c * (1 - c) for c in chances)) / len(chances)
    better_than_guessing = base > 0 and base > chance + ERRORS * error
    return TaskRetention(
        task=task,
        metric=task_of(task).metric,
        samples=len(scores_N2),
        chance=chance,
        base=base,
        model=model,
        retention=bootstrap([scores_N2], resamples, seed) if base else None,
        above_chance=(model - chance) / (base - chance) if better_than_guessing else None,
        worse=int((scores_N2[:, 1] < scores_N2[:, 0]).sum()),
        better=int((scores_N2[:, 1] > scores_N2[:, 0]).sum()),
        counted=better_than_guessing,
    )
