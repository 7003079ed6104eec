"""Retention and its interval."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stille.errors import ConfigError
from stille.evals.protocol import Answer
from stille.evals.statistics import bootstrap, compare

SCORES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=2, max_size=12).filter(any)
RESAMPLES = 400  # enough for properties


def pairs(full, sparse):
    return np.array([full, sparse]).T


def answers(table, length=4096):
    return [Answer(task, length, i, "", s) for task, scores in table.items() for i, s in enumerate(scores)]


@settings(max_examples=30, deadline=None)
@given(st.lists(SCORES, min_size=1, max_size=4), st.sampled_from([0.25, 0.5, 1.0]))
def test_a_setting_that_keeps_a_fixed_share_has_no_spread(tasks, share):
    kept = bootstrap([pairs(scores, [share * s for s in scores]) for scores in tasks], RESAMPLES)
    assert (kept.value, kept.low, kept.high) == pytest.approx((share, share, share))


@settings(max_examples=40, deadline=None)
@given(st.data(), st.lists(SCORES, min_size=1, max_size=4))
def test_the_interval_is_ordered_reproducible_and_within_what_can_be(data, tasks):
    other = [data.draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=len(s), max_size=len(s))) for s in tasks]
    made = [pairs(a, b) for a, b in zip(tasks, other, strict=True)]
    kept = bootstrap(made, RESAMPLES, seed=1)
    assert kept.low <= kept.high
    assert kept == bootstrap(made, RESAMPLES, seed=1)
    a, b = (np.mean([p[:, side].mean() for p in made]) for side in (0, 1))
    assert kept.value == pytest.approx(b / a)
    worse = [np.minimum(p, p[:, :1]) for p in made]  # never better than full: neither is the interval
    assert bootstrap(worse, RESAMPLES).high <= 1 + 1e-9


def test_the_interval_is_that_of_theory_for_many_coin_flips():
    rng = np.random.default_rng(0)
    sparse = (rng.random(1000) < 0.9).astype(float)
    kept = bootstrap([pairs(np.ones(1000), sparse)])
    error = np.sqrt(sparse.mean() * (1 - sparse.mean()) / 1000)
    assert kept.low == pytest.approx(sparse.mean() - 1.96 * error, abs=0.2 * error)
    assert kept.high == pytest.approx(sparse.mean() + 1.96 * error, abs=0.2 * error)


def test_pairing_narrows_the_interval():
    """Samples on which both fail say nothing against the setting."""
    full = np.array([1.0, 0.0] * 50)
    together = bootstrap([pairs(full, full * np.array([1.0] * 98 + [0.0] * 2))])
    apart = bootstrap([pairs(full, np.roll(full, 1))])
    assert together.high - together.low < 0.3 * (apart.high - apart.low)


def test_tasks_weigh_the_same_and_hard_ones_stay_out():
    full = {"vt": [1, 1], "fwe": [1, 1, 1, 1], "cwe": [0.25, 0.5, 0.5, 0.25]}
    sparse = {"vt": [1, 0], "fwe": [1, 1, 1, 1], "cwe": [0, 0, 0, 0]}
    (one,) = compare(answers(full), answers(sparse))
    assert [task.task for task in one.tasks] == ["vt", "cwe", "fwe"]  # RULER's order
    assert [task.counted for task in one.tasks] == [True, False, True]
    assert one.retention.value == 0.75
    assert (one.tasks[0].retention, one.tasks[0].worse, one.tasks[0].better) == (0.5, 1, 0)
    (all_three,) = compare(answers(full), answers(sparse), floor=0)
    assert all_three.retention.value == pytest.approx((0.5 + 1 + 0) / (1 + 1 + 0.375))


def test_lengths_are_reported_apart():
    full = answers({"vt": [1, 1]}, 4096) + answers({"vt": [1, 1]}, 8192)
    sparse = answers({"vt": [1, 1]}, 4096) + answers({"vt": [1, 0]}, 8192)
    assert [(c.length, c.retention.value) for c in compare(full, sparse)] == [(4096, 1), (8192, 0.5)]


def test_nothing_to_retain_is_no_figure():
    (one,) = compare(answers({"vt": [0, 0]}), answers({"vt": [0, 1]}))
    assert one.retention is None
    assert one.tasks[0].retention is None
    with pytest.raises(ConfigError):
        bootstrap([pairs([0.0, 0.0], [1.0, 1.0])])


@pytest.mark.parametrize("other", [{"vt": [1]}, {"vt": [1, 1, 1]}, {"fwe": [1, 1]}, {}])
def test_different_samples_are_no_pair(other):
    with pytest.raises(ConfigError, match="the same samples"):
        compare(answers({"vt": [1, 1]}), answers(other))
