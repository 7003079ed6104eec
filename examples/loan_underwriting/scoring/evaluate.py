"""How good the scorecard is out of sample, beside a booster, and what more facts are worth at equal approval rates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, roc_auc_score, roc_curve
from sklearn.model_selection import RepeatedStratifiedKFold
from threadpoolctl import threadpool_limits

from examples.loan_underwriting.scoring.data import FACTORS, FORM_AND_BUREAU, NAMES
from examples.loan_underwriting.scoring.scorecard import DOUBLES, EVEN_ODDS, fit

FOLDS, REPEATS, SEED = 5, 5, 0
APPROVED = (0.5, 0.6, 0.7)

Fit = Callable[[pd.DataFrame, np.ndarray], Callable[[pd.DataFrame], np.ndarray]]
"""Learns, and returns what gives the probability of bad."""


def fit_scorecard(table: pd.DataFrame, bad: np.ndarray, names: Sequence[str] = NAMES) -> Callable:
    card = fit(table, bad, names)
    return lambda rows: 1 / (1 + 2 ** ((card.points(rows) - EVEN_ODDS) / DOUBLES))


def fit_booster(table: pd.DataFrame, bad: np.ndarray) -> Callable:
    """Gradient boosted trees under the same directions; categories without an order are categories."""
    signs = {"worse": 1, "better": -1, "none": 0}

    def encode(rows: pd.DataFrame) -> np.ndarray:
        columns = [
            rows[f.name].map({v: i for i, v in enumerate(f.levels)}.get) if f.levels else rows[f.name] for f in FACTORS
        ]
        return np.stack([column.to_numpy(dtype=float) for column in columns], axis=1)

    model = HistGradientBoostingClassifier(
        max_iter=80,
        learning_rate=0.06,
        max_leaf_nodes=6,
        min_samples_leaf=20,
        l2_regularization=1.0,
        monotonic_cst=[signs[f.direction] for f in FACTORS],
        categorical_features=[bool(f.levels) and f.direction == "none" for f in FACTORS],  # pyright: ignore[reportArgumentType]
        random_state=SEED,
    )
    with threadpool_limits(1):  # the data is small: threads would wait for each other
        model.fit(encode(table), bad)
    return lambda rows: model.predict_proba(encode(rows))[:, 1]


def out_of_fold(learn: Fit, table: pd.DataFrame, bad: np.ndarray, repeats: int = REPEATS) -> np.ndarray:
    """Probability of bad of each loan by models that did not see it: one row for each repetition."""
    result = np.zeros((repeats, len(bad)))
    splits = RepeatedStratifiedKFold(n_splits=FOLDS, n_repeats=repeats, random_state=SEED).split(table, bad)
    for i, (train, test) in enumerate(splits):
        result[i // FOLDS, test] = learn(table.iloc[train], bad[train])(table.iloc[test])
    return result


def metrics(probabilities: np.ndarray, bad: np.ndarray) -> dict[str, Any]:
    """Means over the repetitions; the interval of the AUC is over loans (bootstrap, models not refitted)."""
    rows: dict[str, list[float]] = {
        "auc": [],
        "ks": [],
        "brier": [],
        "slope": [],
        "intercept": [],
        "calibration_error": [],
    }
    for p in probabilities:
        false, true, _ = roc_curve(bad, p)
        logit = np.log(np.clip(p, 1e-6, 1 - 1e-6) / np.clip(1 - p, 1e-6, 1)).reshape(-1, 1)
        line = LogisticRegression(C=1e6, max_iter=500).fit(logit, bad)
        tenths = np.array_split(np.argsort(p), 10)
        rows["auc"].append(float(roc_auc_score(bad, p)))
        rows["ks"].append(float((true - false).max()))
        rows["brier"].append(float(brier_score_loss(bad, p)))
        rows["slope"].append(float(line.coef_[0][0]))
        rows["intercept"].append(float(line.intercept_[0]))
        rows["calibration_error"].append(float(np.mean([abs(p[t].mean() - bad[t].mean()) for t in tenths])))
    rng = np.random.default_rng(SEED)
    draws = [rng.integers(0, len(bad), len(bad)) for _ in range(500)]
    aucs = [roc_auc_score(bad[d], probabilities[0][d]) for d in draws]
    interval = [round(float(np.quantile(aucs, q)), 4) for q in (0.025, 0.975)]
    return {**{name: round(float(np.mean(values)), 4) for name, values in rows.items()}, "auc_95": interval}


def bad_rate(probability: np.ndarray, bad: np.ndarray, approved: float) -> float:
    """Share of bad loans among the approved, the safest `approved` of all."""
    chosen = np.argsort(probability, kind="stable")[: round(approved * len(bad))]
    return float(bad[chosen].mean())


def against_baseline(table: pd.DataFrame, bad: np.ndarray, draws: int = 200) -> list[dict[str, Any]]:
    """Bad rates at equal approval rates: the scorecard against one of the form and the bureau alone.

    The point is from cross-validation. The interval is over bootstrap samples: both cards are fitted anew on each
    sample and compared on the loans that are not in it.
    """

    def baseline(rows: pd.DataFrame, outcome: np.ndarray) -> Callable:
        return fit_scorecard(rows, outcome, FORM_AND_BUREAU)

    ours, theirs = out_of_fold(fit_scorecard, table, bad), out_of_fold(baseline, table, bad)
    rng = np.random.default_rng(SEED)
    cuts: dict[float, list[float]] = {share: [] for share in APPROVED}
    for _ in range(draws):
        drawn = rng.integers(0, len(bad), len(bad))
        left = np.setdiff1d(np.arange(len(bad)), drawn)
        rows, outcome = table.iloc[drawn].reset_index(drop=True), bad[drawn]
        p = [learn(rows, outcome)(table.iloc[left]) for learn in (fit_scorecard, baseline)]
        for share in APPROVED:
            before = bad_rate(p[1], bad[left], share)
            cuts[share].append(1 - bad_rate(p[0], bad[left], share) / before if before else 0.0)
    result = []
    for share in APPROVED:
        before = float(np.mean([bad_rate(p, bad, share) for p in theirs]))
        after = float(np.mean([bad_rate(p, bad, share) for p in ours]))
        low, high = (float(np.quantile(cuts[share], q)) for q in (0.025, 0.975))
        result.append(
            {
                "approved": share,
                "baseline_bad_rate": round(before, 4),
                "bad_rate": round(after, 4),
                "cut": round(1 - after / before, 4),
                "cut_95": [round(low, 4), round(high, 4)],
            }
        )
    return result


def proxy_auc(table: pd.DataFrame, protected: pd.Series) -> float:
    """How well the scored factors tell a protected attribute (0.5: not at all), by the booster out of fold."""
    mask = (protected == protected.value_counts().index[-1]).to_numpy()
    return round(float(np.mean([roc_auc_score(mask, p) for p in out_of_fold(fit_booster_free, table, mask)])), 4)


def fit_booster_free(table: pd.DataFrame, outcome: np.ndarray) -> Callable:
    """A booster without directions, for questions that are not about risk."""
    columns = pd.get_dummies(table).columns

    def encode(rows: pd.DataFrame) -> np.ndarray:
        return pd.get_dummies(rows).reindex(columns=columns, fill_value=0).to_numpy(dtype=float)

    model = HistGradientBoostingClassifier(max_iter=60, max_leaf_nodes=6, min_samples_leaf=20, random_state=SEED)
    with threadpool_limits(1):
        model.fit(encode(table), outcome)
    return lambda rows: model.predict_proba(encode(rows))[:, 1]
