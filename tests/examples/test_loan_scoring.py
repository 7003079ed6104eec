"""The scorecard: monotone, additive, without protected attributes, and as good as its card says."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from examples.loan_underwriting.scoring import evaluate
from examples.loan_underwriting.scoring.data import FACTORS, FORM_AND_BUREAU, NAMES, load
from examples.loan_underwriting.scoring.scorecard import MODEL, Scorecard, fit

CARD = Scorecard.load()
TABLE, BAD, PROTECTED = load()
FEATURES = st.fixed_dictionaries(
    {f.name: st.sampled_from(f.levels) if f.levels else st.integers(1, 20_000) for f in FACTORS}
)


def test_the_committed_model_is_what_training_gives():
    assert fit(TABLE, BAD).factors == CARD.factors
    assert fit(TABLE, BAD).base == CARD.base
    assert MODEL.stat().st_size < 200_000
    assert "scorecard" in json.loads(MODEL.read_text())["card"]


def test_more_of_a_factor_never_turns_round():
    for factor in FACTORS:
        scored = next((f for f in CARD.factors if f.name == factor.name), None)
        if scored is None or factor.direction == "none":
            continue
        values = factor.levels or [float(v) for v in range(1, 20_000, 7)]
        points = [scored.bin_of(value).points for value in values]
        assert points == sorted(points, reverse=factor.direction == "worse"), factor.name


@given(FEATURES)
def test_a_score_is_the_sum_of_its_points(features):
    score = CARD.score(features)
    assert score.points == CARD.base + sum(part.points for part in score.factors)
    assert all(part.lost >= 0 for part in score.factors)


@given(FEATURES)
def test_what_was_lost_on_a_factor_is_won_by_its_best_value(features):
    score = CARD.score(features)
    for part, factor in zip(score.factors, CARD.factors, strict=True):
        better = CARD.score({**features, part.name: factor.best_value()})
        assert better.points == score.points + part.lost
        assert better.probability_bad <= score.probability_bad


def test_rows_and_tables_score_alike():
    rows = TABLE.iloc[:50]
    assert CARD.points(rows).tolist() == [CARD.score(dict(row)).points for _, row in rows.iterrows()]


def test_bad_features_are_named():
    good: dict[str, Any] = dict(TABLE.iloc[0])
    with pytest.raises(ValueError, match=r"history.*'splendid'"):
        CARD.score({**good, "history": "splendid"})
    with pytest.raises(ValueError, match="amount missing"):
        CARD.score(dict(good, amount=None))
    with pytest.raises(ValueError, match="months"):
        CARD.score({**good, "months": float("nan")})


def test_protected_attributes_are_not_scored():
    assert not {"age", "sex", "foreign", "young", *PROTECTED.columns} & {f.name for f in CARD.factors}
    assert {f.name for f in CARD.factors} <= set(NAMES)


def test_out_of_sample_it_ranks_as_its_card_says():
    train, test = np.arange(0, 1000, 2), np.arange(1, 1000, 2)
    learned = evaluate.fit_scorecard(TABLE.iloc[train], BAD[train])
    auc = roc_auc_score(BAD[test], learned(TABLE.iloc[test]))
    assert auc == pytest.approx(CARD.card["scorecard"]["auc"], abs=0.05)
    assert auc > roc_auc_score(
        BAD[test], evaluate.fit_scorecard(TABLE.iloc[train], BAD[train], FORM_AND_BUREAU)(TABLE.iloc[test])
    )
    booster = evaluate.fit_booster(TABLE.iloc[train], BAD[train])(TABLE.iloc[test])
    assert roc_auc_score(BAD[test], booster) == pytest.approx(auc, abs=0.05)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_any_sample_gives_monotone_bins_of_some_size(seed):
    drawn = np.random.default_rng(seed).integers(0, 1000, 400)
    rows, bad = TABLE.iloc[drawn].reset_index(drop=True), BAD[drawn]
    for factor in fit(rows, bad).factors:
        assert sum(one.loans for one in factor.bins) == 400
        assert min(one.loans for one in factor.bins) >= 0.06 * 400
        assert min(one.points for one in factor.bins) == 0
        direction = next(f.direction for f in FACTORS if f.name == factor.name)
        rates = [one.bad / one.loans for one in factor.bins]
        assert rates == sorted(rates, reverse=direction != "worse")


def test_bad_rate_of_the_safest():
    assert evaluate.bad_rate(np.array([0.1, 0.9, 0.2, 0.8]), np.array([False, True, True, True]), 0.5) == 0.5
