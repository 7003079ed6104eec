"""The rules engine: incidents in, events out."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stille.video.errors import RulesError
from stille.video.rules import Engine, Rules, parse_rules
from stille.video.types import ATTRIBUTES, KINDS, NOBODY, Event, Seen, Trouble

SIZE = (640, 360)
START = 1_764_000_000.0  # a Monday, 16:00 UTC
BASE = """
cameras:
  - name: cam
    floor: {picture: [[0, 0], [1, 0], [1, 1], [0, 1]], metres: [[0, 0], [20, 0], [20, 10], [0, 10]]}
zones:
  - {name: left, camera: cam, points: [[0, 0], [0.5, 0], [0.5, 1], [0, 1]]}
lines:
  - {name: door, camera: cam, from: [0.5, 0.2], to: [0.5, 0.8]}
slots:
  - {name: A1, camera: cam, points: [[0.8, 0], [0.9, 0], [0.9, 0.2], [0.8, 0.2]]}
  - {name: A2, camera: cam, points: [[0.9, 0], [1, 0], [1, 0.2], [0.9, 0.2]], holds: nothing}
rules:
"""


def rules(*lines: str) -> Rules:
    return parse_rules(BASE + "\n".join(f"  - {{{line}}}" for line in lines))


@dataclass(frozen=True)
class Thing:
    """One object: its foot point in 0..1, and what is known of it."""

    identity: int
    x: float
    y: float
    kind: str = "person"
    score: float = 0.9
    helmet: float = 4.0
    lying: float = -4.0
    width: float = 0.05
    height: float = 0.2


def seen(time: float, *things: Thing, camera: str = "cam", slots: dict[str, float] | None = None) -> Seen:
    odds = np.zeros((len(things), len(ATTRIBUTES)), np.float32)
    for row, one in zip(odds, things, strict=True):
        row[ATTRIBUTES.index("helmet")], row[ATTRIBUTES.index("lying")] = one.helmet, one.lying
    box = [(t.x - t.width / 2, t.y - t.height, t.x + t.width / 2, t.y) for t in things]
    box_N4 = (np.array(box, np.float32).reshape(-1, 4) * np.array([*SIZE, *SIZE])).astype(np.float32)
    return Seen(
        camera, int((time - START) * 10), time, SIZE, box_N4,
        np.array([KINDS.index(t.kind) for t in things], np.int64),
        np.array([t.score for t in things], np.float32),
        np.array([t.identity for t in things], np.int64), odds, slots or {},
    )  # fmt: skip


def run(engine: Engine, seconds: float, things, start: float = 0.0, fps: int = 10, **more) -> list[Event]:
    """Let `things(t)` be seen for so long."""
    changes = []
    for i in range(int(seconds * fps)):
        t = start + i / fps
        changes += engine.see(seen(START + t, *things(t), **more))
    return changes


def told(changes: list[Event]) -> list[str]:
    return [one.state if one.revision == 0 or one.state == "closed" else "update" for one in changes]


def check_lives(changes: list[Event]) -> None:
    """Revisions count up from 0, an event closes once, and nothing follows."""
    last: dict[str, Event] = {}
    for one in changes:
        before = last.get(one.id)
        assert one.revision == (0 if before is None else before.revision + 1)
        assert before is None or (before.state == "open" and before.began == one.began)
        assert (one.ended is None) == (one.state == "open")
        assert one.ended is None or one.ended >= one.began
        last[one.id] = one


def test_one_incident_is_one_event_however_it_flickers():
    """Bare-headed for 10 s with frames missed, absent for a second, one box far off, odds that waver."""
    engine = Engine(rules("id: helmet, type: no_helmet, zones: [left], dwell: 1"))
    rng = random.Random(1)

    def things(t: float):
        if 4 <= t < 4.9 or rng.random() < 0.2:
            return []
        there = Thing(7, 0.25, 0.6, helmet=-1.0 if rng.random() < 0.3 else -3.5)
        return [replace(there, x=0.9)] if abs(t - 6) < 0.01 else [there]

    changes = run(engine, 10, things) + run(engine, 5, lambda t: [], start=10)
    check_lives(changes)
    assert len({one.id for one in changes}) == 1
    assert told(changes)[0] == "open"
    assert told(changes)[-1] == "closed"
    first, last = changes[0], changes[-1]
    assert 0 <= first.began - START < 1
    assert 1 <= first.changed - first.began < 2
    assert last.ended == pytest.approx(START + 10, abs=0.5)
    assert (first.identities, first.zone, first.kind) == ((7,), "left", "no_helmet")
    assert first.confidence > 0.8
    assert "without a helmet in left" in first.reason


def test_what_must_open_nothing():
    engine = Engine(rules("id: helmet, type: no_helmet, zones: [left]", "id: in, type: intrusion, zones: [left]"))
    jump = run(engine, 4, lambda t: [Thing(1, 0.2 if abs(t - 2) < 0.01 else 0.8, 0.6, helmet=-5)])
    nobody = run(engine, 4, lambda t: [Thing(NOBODY, 0.2, 0.6, helmet=-5)], start=5)
    weak = run(engine, 4, lambda t: [Thing(2, 0.2, 0.6, helmet=-5, score=0.9 if t < 0.1 else 0.2)], start=10)
    assert jump == nobody == weak == []
    helmet = run(engine, 4, lambda t: [Thing(3, 0.2, 0.6, helmet=-1.9)], start=15)
    assert {one.rule for one in helmet} == {"in"}


def test_out_of_sight_for_a_moment_says_nothing():
    """Neither does the dwell start anew, nor is an event over that allows no quiet."""
    engine = Engine(rules("id: in, type: intrusion, zones: [left], dwell: 2, quiet: 0"))
    changes = run(engine, 5, lambda t: [] if 1 <= t < 1.8 or 3 <= t < 3.8 else [Thing(1, 0.2, 0.6)])
    assert told(changes) == ["open"]
    assert changes[0].began - START < 0.5
    assert changes[0].changed - START == pytest.approx(2.3, abs=0.4)


def test_on_the_edge_of_a_zone_nobody_is_in_it():
    engine = Engine(rules("id: in, type: intrusion, zones: [left], open_after: {hits: 1, of: 1}"))
    assert run(engine, 5, lambda t: [Thing(1, 0.49 if round(t * 10) // 2 % 2 else 0.51, 0.6)]) == []


def test_updates_come_at_most_once_a_second():
    engine = Engine(rules("id: queue, type: queue, zones: [left], persons: 1, dwell: 0"))
    changes = run(engine, 6, lambda t: [Thing(i, 0.1 + 0.03 * i, 0.6) for i in range(2 + round(t * 10) // 4)])
    assert told(changes)[0] == "open"
    assert 4 <= len(changes) <= 6
    assert all(b.changed - a.changed >= 1 for a, b in pairwise(changes))
    assert changes[-1].facts["persons"] > changes[0].facts["persons"]


def test_a_new_identity_in_the_same_place_goes_on_with_the_event():
    engine = Engine(rules("id: in, type: intrusion, zones: [left]"))
    changes = run(engine, 6, lambda t: [Thing(1 if t < 3 else 2, 0.2, 0.6)])
    assert told(changes) == ["open", "update"]
    assert changes[-1].identities == (1, 2)
    far = run(engine, 3, lambda t: [Thing(2, 0.2, 0.6), Thing(3, 0.45, 0.9)], start=6)
    assert told(far) == ["open"]
    assert far[0].id != changes[0].id


def test_lying_lane_and_schedule():
    engine = Engine(
        rules(
            "id: fall, type: lying",
            "id: lane, type: person_in_lane, zones: [left], with_forklift: true",
            'id: late, type: intrusion, schedule: {days: [mon], hours: ["16:00-16:01"], outside: true}',
        )
    )
    person, truck = Thing(1, 0.2, 0.6, lying=4), Thing(2, 0.4, 0.9, "forklift", height=0.3)
    driver = Thing(3, 0.4, 0.8)
    changes = run(engine, 5, lambda t: [person]) + run(engine, 3, lambda t: [person, truck, driver], start=5)
    assert [(one.rule, one.identities) for one in changes] == [("fall", (1,)), ("lane", (1,))]
    late = run(engine, 2, lambda t: [person], start=60) + run(engine, 1, lambda t: [person], start=70)
    assert [(one.rule, one.state) for one in late if one.rule == "late"] == [("late", "open")]


def test_a_driver_is_nobody_in_the_lane_until_they_get_off_and_who_walks_up_is_somebody():
    rule = "id: lane, type: person_in_lane, zones: [left]"

    def truck(t: float) -> Thing:
        """Comes in, turns on the spot (its outline widens, its middle sways), stands."""
        turning = 1 <= t < 3
        x = 0.05 + 0.2 * min(t, 1.0) + (0.02 * np.sin(4 * t) if turning else 0)
        return Thing(1, float(x), 0.6, "forklift", width=0.2 if turning else 0.14, height=0.3)

    def rider(t: float) -> Thing:
        return Thing(2, 0.05 + 0.2 * min(t, 1.0), 0.55)

    assert run(Engine(rules(rule)), 12, lambda t: [truck(t), rider(t)]) == []
    off = run(Engine(rules(rule)), 12, lambda t: [truck(t), replace(rider(t), y=0.55 + 0.1 * max(0, min(t - 6, 3)))])
    assert [one.began - START > 6 for one in off if one.state == "open" and one.revision == 0] == [True]

    # Somebody walks up and stands behind it.
    up = run(Engine(rules(rule)), 8, lambda t: [truck(5), Thing(3, max(0.45 - 0.1 * t, 0.25), 0.5)])
    assert [one.identities for one in up if one.revision == 0] == [(3,)]
    assert up[-1].state == "open"


def test_things_stand_where_the_middle_of_their_base_is():
    rule = "id: exit, type: blocked, zones: [upper], kinds: [cart, person], dwell: 1"
    upper = "  - {name: upper, camera: cam, points: [[0, 0], [1, 0], [1, 0.5], [0, 0.5]]}\n"
    engine = Engine(parse_rules(BASE.replace("lines:\n", upper + "lines:\n") + "  - {" + rule + "}"))
    low = run(engine, 4, lambda t: [Thing(1, 0.3, 0.51)])
    cart = run(engine, 4, lambda t: [Thing(2, 0.3, 0.51, "cart")], start=10)
    assert (low, [one.identities for one in cart if one.revision == 0]) == ([], [(2,)])


def test_speed_and_near_miss_by_the_floor():
    engine = Engine(
        rules(
            "id: fast, type: speeding, limit: 3",
            "id: near, type: near_miss, distance: 1.5, horizon: 1.0, moving: 1",
        )
    )
    # 4 m/s along y = 5 m towards a person at (16, 5); its driver goes along.
    person = Thing(2, 0.8, 0.5)

    def things(t: float):
        x = min(0.1 + 0.2 * t, 0.75)
        truck = Thing(1, x, 0.5, "forklift", width=0.15, height=0.3)
        return [truck, person, Thing(3, x + 0.01, 0.45)]

    changes = run(engine, 10, things)
    check_lives(changes)
    fast, near = ([one for one in changes if one.rule == rule] for rule in ("fast", "near"))
    assert [told(fast)[0], told(fast)[-1]] == [told(near)[0], told(near)[-1]] == ["open", "closed"]
    assert len({one.id for one in changes}) == 2
    assert fast[0].facts["speed"] == pytest.approx(4, rel=0.1)
    assert near[0].identities == (1, 2)
    # 4 m/s and 1 s ahead: within 1.5 m from 5.5 m away, which is at 10.5 m, 2.1 s after the start.
    assert near[0].began - START == pytest.approx(2.1, abs=0.4)


def test_blocked_exit_and_queue():
    engine = Engine(
        rules(
            "id: exit, type: blocked, zones: [left], dwell: 5",
            "id: queue, type: queue, zones: [left], persons: 2, dwell: 0",
        )
    )
    passing = run(engine, 12, lambda t: [Thing(i, (0.1 * t + 0.3 * i) % 1, 0.5) for i in range(2)])
    assert passing == []
    cart = Thing(NOBODY, 0.3, 0.5, "cart")
    blocked = run(engine, 8, lambda t: [cart], start=20) + run(engine, 7, lambda t: [], start=28)
    assert [(one.rule, one.state) for one in blocked] == [("exit", "open"), ("exit", "closed")]
    assert blocked[0].changed - blocked[0].began >= 5
    many = run(engine, 4, lambda t: [Thing(10 + i, 0.1 * i + 0.05, 0.5) for i in range(3 if t < 42 else 4)], start=40)
    assert [(one.state, one.facts["persons"]) for one in many] == [("open", 3), ("open", 4)]


def test_waiting_too_long_survives_a_short_occlusion():
    engine = Engine(rules("id: queue, type: queue, zones: [left], wait: 20"))
    changes = run(engine, 25, lambda t: [] if 10 < t < 14 else [Thing(1, 0.2, 0.5)])
    assert told(changes)[0] == "open"
    assert changes[0].began - START == pytest.approx(20, abs=1)


def test_slots():
    engine = Engine(
        rules("id: gone, type: pallet_missing", "id: more, type: pallet_extra", "id: wrong, type: pallet_misplaced")
    )
    right = run(engine, 8, lambda t: [Thing(1, 0.85, 0.15, "pallet", height=0.1)], slots={"A1": 0.97, "A2": 0.02})
    assert right == []
    wrong = run(
        engine, 25, lambda t: [Thing(1, 0.3, 0.9, "pallet")], start=10, slots={"A1": 0.05, "A2": 0.9, "other": 0.0}
    )
    assert {(one.rule, one.facts.get("slot")) for one in wrong} == {("gone", "A1"), ("more", "A2"), ("wrong", None)}
    assert told(wrong) == ["open"] * 3


def test_line_crossings_are_counted_by_direction():
    engine = Engine(rules("id: in, type: line_crossing, lines: [door], direction: left_to_right"))

    def to_and_fro(t: float):
        x = 0.5 + 0.3 * np.cos(2 * np.pi * t / 8)  # to the left at 2 s, to the right at 6 s, and so on
        return [Thing(1, x, 0.5), Thing(2, 0.5 + 0.005 * np.sin(9 * t), 0.5), Thing(3, x, 0.95)]

    changes = run(engine, 24, to_and_fro)
    # Looking from `from` down to `to`, the picture's left is to the right.
    assert [one.facts["count"] for one in changes] == [1, 2, 3]
    assert all(one.state == "closed" and one.identities == (1,) for one in changes)
    assert changes[0].began - START == pytest.approx(2, abs=0.6)
    assert len({one.id for one in changes}) == 3


def test_camera_trouble_without_frames():
    engine = Engine(rules("id: cam, type: camera_trouble, dwell: 3", "id: in, type: intrusion"))
    changes = run(engine, 3, lambda t: [Thing(1, 0.2, 0.5)])
    assert told(changes) == ["open"]
    at = START + 4
    assert engine.trouble(Trouble("cam", "offline", at, at - 1, False, "no route")) == []
    opened = engine.advance("cam", at + 2.5)
    assert [(one.rule, one.began) for one in opened] == [("cam", at - 1)]
    lost = engine.advance("cam", at + 100)
    assert [(one.rule, one.facts["closed_by"]) for one in lost] == [("in", "no frames")]
    assert lost[0].ended == pytest.approx(START + 2.9)
    engine.trouble(Trouble("cam", "offline", at + 110, at - 1, True, "no route"))
    back = run(engine, 4, lambda t: [], start=115)
    assert [(one.rule, one.state, one.ended) for one in back] == [("cam", "closed", at + 110)]


def test_clocks_gaps_and_ends():
    engine = Engine(rules("id: in, type: intrusion, zones: [left], dwell: 2"))
    here = [Thing(1, 0.2, 0.5)]
    opened = run(engine, 4, lambda t: here)
    assert told(opened) == ["open"]
    assert run(engine, 0.5, lambda t: here, start=3) == []
    assert engine.skipped["late"] == 5
    assert engine.see(replace(seen(START, *here), time=float("nan"))) == []
    gap = run(engine, 2, lambda t: here if t > 300.4 else [], start=300)
    assert gap == []  # still there, though not in the first frames: the same event goes on
    back = run(engine, 1, lambda t: here, start=-3600)
    assert [(one.id, one.facts["closed_by"]) for one in back] == [(opened[0].id, "clock")]
    assert back[0].ended == pytest.approx(START + 301.9)
    again = run(engine, 4, lambda t: here, start=-3599)
    ended = engine.end("cam")
    assert told(again + ended) == ["open", "closed"]
    assert again[0].id != opened[0].id
    check_lives(opened + back + again + ended)
    assert engine.end("cam") == []


def test_dwell_does_not_run_through_a_gap():
    engine = Engine(rules("id: in, type: intrusion, zones: [left], dwell: 3"))
    assert run(engine, 2, lambda t: [Thing(1, 0.2, 0.5)]) == []
    assert run(engine, 2, lambda t: [Thing(1, 0.2, 0.5)], start=20) == []
    assert told(run(engine, 4, lambda t: [Thing(1, 0.2, 0.5)], start=22)) == ["open"]


EVERYTHING = rules(
    "id: helmet, type: no_helmet, zones: [left], dwell: 0.5",
    "id: fast, type: speeding, limit: 2, quiet: 0.5",
    "id: near, type: near_miss",
    "id: exit, type: blocked, zones: [left], dwell: 2, quiet: 1",
    "id: queue, type: queue, zones: [left], persons: 1, quiet: 1",
    "id: in, type: line_crossing, lines: [door]",
    "id: gone, type: pallet_missing, dwell: 1",
    "id: cam, type: camera_trouble",
)


def day(seed: int, frames: int = 120) -> list[Seen | Trouble]:
    """A random walk of several things, with everything that goes wrong: ids lost, gaps, clocks, jumps, troubles."""
    rng = random.Random(seed)
    time, news, things = START, [], []
    for i in range(frames):
        time += rng.choice([0.1] * 20 + [0.5, 7.0, -0.3, -50.0])
        if rng.random() < 0.1 or not things:
            kind = rng.choice(["person", "person", "forklift", "cart"])
            things.append(Thing(i, rng.random(), rng.random(), kind, helmet=rng.choice([-4, 4])))
        things = [
            replace(t, x=t.x + rng.gauss(0, 0.02), y=t.y + rng.gauss(0, 0.01)) for t in things if rng.random() > 0.01
        ][-8:]
        shown = [replace(t, identity=NOBODY) if rng.random() < 0.05 else t for t in things if rng.random() > 0.1]
        news.append(seen(time, *shown, slots={"A1": rng.random() ** 3}))
        if rng.random() < 0.05:
            news.append(Trouble("cam", rng.choice(["offline", "black"]), time, time - 1, rng.random() < 0.5, "x"))
    return news


def feed(engine: Engine, news) -> list[Event]:
    return [one for item in news for one in (engine.see(item) if isinstance(item, Seen) else engine.trouble(item))]


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 120))
def test_a_restored_engine_goes_on_as_if_it_had_never_stopped(seed: int, cut: int):
    news = day(seed)
    whole = Engine(EVERYTHING)
    expected = feed(whole, news) + whole.end("cam")
    first = Engine(EVERYTHING)
    changes = feed(first, news[:cut])
    state = json.loads(json.dumps(first.state(), allow_nan=False))
    second, closed = Engine.restore(EVERYTHING, state)
    assert closed == []
    assert second.open_events() == first.open_events()
    changes += feed(second, news[cut:]) + second.end("cam")
    assert changes == expected
    check_lives(changes)
    assert whole.open_events() == []


def test_restoring_after_the_rules_changed_closes_what_is_no_more():
    engine = Engine(rules("id: a, type: intrusion, zones: [left]", "id: b, type: intrusion"))
    run(engine, 2, lambda t: [Thing(1, 0.2, 0.5)])
    again, closed = Engine.restore(rules("id: b, type: intrusion"), engine.state())
    assert [(one.rule, one.state, one.facts["closed_by"]) for one in closed] == [("a", "closed", "rules changed")]
    assert [one.rule for one in again.open_events()] == ["b"]
    with pytest.raises(RulesError, match="saved state"):
        Engine.restore(EVERYTHING, {"cameras": {"cam": {"start": "x"}}})


def test_cameras_do_not_mix():
    engine = Engine(rules("id: in, type: intrusion", "id: zone, type: intrusion, zones: [left]"))
    other = run(engine, 2, lambda t: [Thing(1, 0.2, 0.5)], camera="other")
    assert [(one.camera, one.rule) for one in other] == [("other", "in")]
    assert {one.rule for one in run(engine, 2, lambda t: [Thing(1, 0.2, 0.5)])} == {"in", "zone"}


def test_amend_counts_a_revision():
    engine = Engine(rules("id: in, type: intrusion"))
    (opened,) = run(engine, 2, lambda t: [Thing(1, 0.2, 0.5)])
    amended = engine.amend(opened.id, withheld=True)
    assert amended is not None
    assert (amended.revision, amended.withheld) == (1, True)
    (closed,) = engine.end("cam")
    assert (closed.revision, closed.withheld) == (2, True)
    assert engine.amend(opened.id, withheld=False) is None
