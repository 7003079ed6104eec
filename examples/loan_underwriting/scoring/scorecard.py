"""Scorecards: monotone bins, weight of evidence, logistic regression, whole points.

A score is a sum of points, so what an applicant lost on a factor is a fact about the score and not an estimate.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from examples.loan_underwriting.scoring.data import FACTORS, Factor

EVEN_ODDS = 500
"""Points at which a loan is as likely good as bad."""
DOUBLES = 40
"""Points that double the odds."""
SMALLEST_BIN = 0.06
"""Share of the loans."""
MODEL = Path(__file__).with_name("model.json")

Features = Mapping[str, str | float]


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Bin(_Data):
    """Either a range of numbers above the last bin's up to and with `upper` (None: any), or levels."""

    upper: float | None = None
    levels: tuple[str, ...] = ()
    points: int
    loans: int
    bad: int

    @property
    def woe(self) -> float:
        return math.log((self.loans - self.bad + 0.5) / (self.bad + 0.5))


class ScoredFactor(_Data):
    name: str
    text: str
    bins: tuple[Bin, ...]

    def bin_of(self, value: str | float) -> Bin:
        """
        Raises:
            ValueError: no bin has this value.
        """
        for one in self.bins:
            if one.levels:
                if value in one.levels:
                    return one
            elif (
                isinstance(value, Real)
                and not math.isnan(float(value))
                and (one.upper is None or float(value) <= one.upper)
            ):
                return one
        known = [level for one in self.bins for level in one.levels] or "a number"
        raise ValueError(f"{self.name} is {value!r}, expected {known}")

    @property
    def best(self) -> int:
        return max(one.points for one in self.bins)

    def best_value(self) -> str | float:
        """A value that loses no points."""
        one = max(self.bins, key=lambda b: b.points)
        if one.levels:
            return one.levels[-1]
        return one.upper if one.upper is not None else (self.bins[-2].upper or 0) + 1


class FactorPoints(_Data):
    """What a factor gave; `lost` against its best bin."""

    name: str
    text: str
    value: str | float
    points: int
    lost: int


class Score(_Data):
    points: int
    factors: tuple[FactorPoints, ...]

    @property
    def probability_bad(self) -> float:
        """In a population like the training data's, in which bad loans are oversampled."""
        return 1 / (1 + 2 ** ((self.points - EVEN_ODDS) / DOUBLES))


class Scorecard(_Data):
    """`card` says what it was trained on and how good it is."""

    base: int
    factors: tuple[ScoredFactor, ...]
    card: dict = {}

    def score(self, features: Features) -> Score:
        """Points of an application, factor by factor.

        Raises:
            ValueError: a factor is missing or has a value that is not known.
        """
        missing = [factor.name for factor in self.factors if features.get(factor.name) is None]
        if missing:
            raise ValueError(f"{', '.join(missing)} missing: a score needs all of its factors")
        parts = []
        for factor in self.factors:
            value = features[factor.name]
            points = factor.bin_of(value).points
            lost = factor.best - points
            parts.append(FactorPoints(name=factor.name, text=factor.text, value=value, points=points, lost=lost))
        return Score(points=self.base + sum(part.points for part in parts), factors=tuple(parts))

    def points(self, table: pd.DataFrame) -> np.ndarray:
        """Points of many applications."""
        total = np.full(len(table), self.base)
        for factor in self.factors:
            by_value = {value: factor.bin_of(value).points for value in table[factor.name].unique()}
            total += table[factor.name].map(by_value.get).to_numpy()
        return total

    @staticmethod
    def load(path: Path = MODEL) -> Scorecard:
        return Scorecard.model_validate_json(path.read_text())

    def save(self, path: Path = MODEL) -> None:
        path.write_text(json.dumps(self.model_dump(mode="json"), indent=1) + "\n")


def _merged(groups: list[list], loans: list[int], bad: list[int], monotone: bool) -> list[list]:
    """Joins neighbours until each has its share of loans and, if asked, bad rates fall or stay."""

    def join(i: int) -> None:
        groups[i : i + 2] = [groups[i] + groups[i + 1]]
        loans[i : i + 2] = [loans[i] + loans[i + 1]]
        bad[i : i + 2] = [bad[i] + bad[i + 1]]

    smallest = SMALLEST_BIN * sum(loans)
    while len(groups) > 1:
        small = min(range(len(groups)), key=lambda i: loans[i])
        if loans[small] < smallest or min(bad[small], loans[small] - bad[small]) < 1:
            join(
                max(small - 1, 0)
                if small == len(groups) - 1 or (small and loans[small - 1] < loans[small + 1])
                else small
            )
            continue
        rising = [i for i in range(len(groups) - 1) if monotone and bad[i + 1] / loans[i + 1] >= bad[i] / loans[i]]
        if not rising:
            break
        join(rising[0])
    return groups


def bins_of(factor: Factor, values: pd.Series, bad: np.ndarray) -> list[Bin]:
    """Bins of a factor; along its direction the bad rate never turns round. Their points are still 0."""
    if factor.levels:
        column = values.to_numpy(dtype=object)
        at_level = {level: column == level for level in factor.levels}
        levels = [level for level in factor.levels if at_level[level].any()]
        if factor.direction == "none":  # put in the order of their rates, then joined as the others are
            levels.sort(key=lambda level: -(bad[at_level[level]].sum() + 3) / (at_level[level].sum() + 10))
        loans = [int(at_level[level].sum()) for level in levels]
        bads = [int(bad[at_level[level]].sum()) for level in levels]
        groups = _merged([[level] for level in levels], loans, bads, monotone=True)
        unseen = [level for level in factor.levels if level not in levels]
        groups[0] = [*unseen, *groups[0]]  # what was never seen counts as the worst
        masks = [np.any([at_level[level] for level in group], axis=0) for group in groups]
        return [
            Bin(levels=tuple(g), points=0, loans=int(m.sum()), bad=int(bad[m].sum()))
            for g, m in zip(groups, masks, strict=True)
        ]
    numbers = values.to_numpy(dtype=float)
    worse = factor.direction == "worse"
    fitted = IsotonicRegression(increasing=worse).fit(numbers, bad).predict(np.unique(numbers))
    unique = np.unique(numbers)
    cuts = [float(unique[i]) for i in range(len(unique) - 1) if fitted[i] != fitted[i + 1]]
    edges = [*cuts, math.inf]
    at = np.searchsorted(edges, numbers)
    order = list(range(len(edges)))[:: -1 if worse else 1]  # worst first
    loans = [int((at == i).sum()) for i in order]
    bads = [int(bad[at == i].sum()) for i in order]
    groups = _merged([[i] for i in order], loans, bads, monotone=True)
    result = []
    for group in sorted(groups, key=max):
        mask = np.isin(at, group)
        upper = edges[max(group)]
        result.append(
            Bin(upper=None if math.isinf(upper) else upper, points=0, loans=int(mask.sum()), bad=int(bad[mask].sum()))
        )
    return result


def fit(table: pd.DataFrame, bad: np.ndarray, names: Sequence[str] | None = None) -> Scorecard:
    """A scorecard of the named factors (all). Factors whose bins would count the wrong way round are left out.

    Args:
        bad: of each row, whether the loan went bad; both must occur.
    """
    factors = [factor for factor in FACTORS if names is None or factor.name in names]
    bins = {factor.name: bins_of(factor, pd.Series(table[factor.name]), bad) for factor in factors}
    factors = [factor for factor in factors if len(bins[factor.name]) > 1]
    while True:
        columns = []
        for factor in factors:
            scored = ScoredFactor(name=factor.name, text=factor.text, bins=tuple(bins[factor.name]))
            by_value = {value: scored.bin_of(value).woe for value in table[factor.name].unique()}
            columns.append(table[factor.name].map(by_value.get).to_numpy(dtype=float))
        model = LogisticRegression(C=10.0, max_iter=500).fit(np.stack(columns, axis=1), ~bad)
        weights = model.coef_[0]
        if (weights > 0).all():
            break
        factors = [factor for factor, weight in zip(factors, weights, strict=True) if weight > 0]
    scale = DOUBLES / math.log(2)
    scored, base = [], EVEN_ODDS + scale * float(model.intercept_[0])
    for factor, weight in zip(factors, weights, strict=True):
        points = [scale * weight * one.woe for one in bins[factor.name]]
        lowest = min(points)  # a factor's worst bin gives no points, so that what is missing to the best is lost
        base += lowest
        made = [
            one.model_copy(update={"points": round(p - lowest)})
            for one, p in zip(bins[factor.name], points, strict=True)
        ]
        scored.append(ScoredFactor(name=factor.name, text=factor.text, bins=tuple(made)))
    return Scorecard(base=round(base), factors=tuple(scored))
