"""Events against incidents: the harness can tell right from wrong, and its figures move the way they should."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stille.evals.events import Happening, count_windows, false_event_ratio, score_events, tally, threshold_at


def thing(began: float, ended: float, who: int = 1, rule: str = "no_vest", camera: str = "c", **more) -> Happening:
    return Happening(camera, rule, "work", frozenset({who}), began, ended, **more)


def scored(incidents: list[Happening], events: list[Happening]):
    return score_events(list(tally(incidents, events).values()))


happenings = st.lists(
    st.builds(
        lambda began, lasts, who, rule: thing(began, began + lasts, who, rule),
        st.integers(0, 200), st.integers(1, 30), st.integers(0, 3), st.sampled_from(["no_vest", "lying"]),
    ),
    max_size=8,
)  # fmt: skip


@settings(max_examples=40)
@given(happenings, happenings)
def test_counts_add_up_and_more_events_find_no_less(incidents, events):
    score = scored(incidents, events)
    assert score.incidents == len(incidents)
    assert score.found + score.false <= len(events)  # an event finds one incident
    assert 0 <= score.again <= score.false
    assert scored(incidents, [*events, thing(300, 301)]).false == score.false + 1
    perfect = scored(incidents, incidents)
    assert perfect.found == len(incidents)
    assert perfect.false == 0
    doubtful = [replace(one, doubtful=True) for one in incidents]
    assert scored(doubtful, events).incidents == 0
    assert scored(doubtful, incidents).false == 0, "what tells of a doubtful one is no false event"


@pytest.mark.parametrize(
    ("event", "found"),
    [
        (thing(12, 18), True),
        (thing(21.9, 30), True),
        (thing(22.1, 30), False),
        (thing(12, 18, who=2), False),
        (thing(12, 18, rule="lying"), False),
        (thing(12, 18, camera="d"), False),
        (replace(thing(12, 18), place="hall"), False),
    ],
)
def test_who_where_and_when_have_to_be_right(event, found):
    score = scored([thing(10, 20)], [event])
    assert (score.found, score.false) == ((1, 0) if found else (0, 1))


def test_pairs_need_both_and_places_need_nobody():
    pair = replace(thing(0, 5, rule="near_miss"), identities=frozenset({1, 2}))
    assert scored([pair], [replace(pair, identities=frozenset({1, 2, 3}))]).found == 1
    assert scored([pair], [thing(0, 5, rule="near_miss")]).found == 0
    slot = replace(thing(0, 5, rule="pallet_missing"), identities=frozenset(), place="A1")
    assert scored([slot], [slot]).found == 1


def test_the_surest_event_finds_it_and_the_other_is_false():
    counted = tally([thing(0, 60)], [thing(0, 5, confidence=0.4), thing(20, 50, confidence=0.9)])
    (one,) = counted.values()
    assert (one.found, one.false, one.again, one.late) == ([0.9], [0.4], 1, [20.0])
    assert score_events([one], 0.5).false == 0


def test_sides_are_compared_where_they_find_as_much():
    def side(false: int, reach: int):
        found = {}
        for c in range(20):
            real = [thing(100 * k, 100 * k + 10, camera=f"c{c}") for k in range(10)]
            events = [replace(one, confidence=0.9 - 0.05 * k) for k, one in enumerate(real[:reach])]
            events += [thing(2000 + 30 * k, 2005 + 30 * k, camera=f"c{c}", confidence=0.6) for k in range(false)]
            events += [thing(5000, 5005, camera=f"c{c}", confidence=0.1)]  # below what 0.9 needs
            found |= tally(real, events)
        return found

    cameras = [f"c{c}" for c in range(20)]
    ratio = false_event_ratio(side(1, 10), side(4, 10), cameras, 10.0, rounds=100)
    assert (ratio.ours, ratio.theirs, ratio.ratio) == (2.0, 8.0, 0.25)
    assert ratio.low == ratio.high == 0.25, "all cameras are alike"
    assert ratio.our_recall == ratio.their_recall == 0.9
    weaker = false_event_ratio(side(1, 10), side(4, 2), cameras, 10.0, rounds=10)
    assert weaker.recall == weaker.their_recall == 0.2, "no more is asked for than both can find"
    assert weaker.ours == 0, "and ours need not be as bold for that"
    assert threshold_at([], 0.9) == (0.0, 0.0)


def test_windows_are_right_within_two_seconds():
    real = [thing(20, 35)]
    good = count_windows(real, [thing(21.5, 36.5)], 0, 100)
    assert (good.hit, good.missed, good.false, good.accuracy) == (2, 0, 0, 1.0)
    silent = count_windows(real, [], 0, 100)
    assert (silent.missed, silent.accuracy) == (2, 0.5)
    wrong = count_windows(real, [thing(60, 75)], 0, 100)
    assert (wrong.missed, wrong.false) == (2, 2)
    doubt = count_windows([replace(real[0], doubtful=True)], [thing(20, 35)], 0, 100)
    assert (doubt.hit, doubt.missed, doubt.false) == (0, 0, 0)
    assert doubt.quiet < 10
    assert count_windows(real, [thing(60, 75, confidence=0.3)], 0, 100, threshold=0.5).false == 0
    assert count_windows([], [], 0, 100).accuracy is None


def test_what_is_hidden_is_no_incident():
    from stille.evals.warehouse.incidents import Incident
    from stille.evals.warehouse.shown import shown

    second_T = np.arange(0, 60, 0.2)
    one = Incident("no_helmet", "work", (7,), 10.0, 50.0)
    visible = {7: np.where((second_T < 20) | (second_T > 40), 1.0, 0.1)}
    found = shown([one], second_T, visible, np.zeros(len(second_T)))
    sure = [(round(i.began, 1), round(i.ended, 1)) for i in found if not i.doubtful]
    assert sure == [(10.0, 19.8), (40.2, 50.0)]
    assert [round(i.began, 1) for i in found if i.doubtful] == [20.0], "while hidden, a model may say either"
    assert not [i for i in shown([one], second_T, {}, np.zeros(len(second_T))) if not i.doubtful]
