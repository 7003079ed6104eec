"""Rules files: what they may say, and what is said about mistakes in them."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo

import jsonschema
import pytest
import yaml

import stille.video.rules.schema as schema
from stille.video.errors import RulesError
from stille.video.rules import Engine, Finding, Rule, Rules, load_rules, parse_rules, register
from stille.video.rules.periods import period
from stille.video.rules.schedule import Schedule
from stille.video.types import Seen

GUIDE = Path(__file__).parents[2] / "docs" / "video-rules.md"


def example() -> str:
    """The full example of the guide."""
    (text,) = [t for t in re.findall(r"```yaml\n(.*?)```", GUIDE.read_text(), re.S) if "rules:" in t and "zones:" in t]
    return text


def test_the_guide_s_example_holds_and_has_every_type():
    rules = parse_rules(example())
    assert {rule.type for rule in rules.rules} == set(schema._families)
    jsonschema.validate(yaml.safe_load(example()), Rules.json_schema())
    assert Rules.model_validate(rules.model_dump(by_alias=True, mode="json")) == rules
    assert Engine(rules).see(Seen.nothing("dock3", 0, 1.0, (640, 360))) == []
    guide = GUIDE.read_text()
    for family in set(schema._families.values()):
        for field in set(family.model_fields) - {"type", "cameras", "id"}:
            assert f"`{field}`" in guide, f"the guide does not say what {field} is"


def test_pixels_and_fractions_are_the_same_place():
    rules = parse_rules(example())
    assert rules.scaled("dock3", [(640, 360)]) == ((0.5, 0.5),)
    assert rules.scaled("dock3", [(0.25, 1)]) == ((0.25, 1),)


WRONG = """\
timezone: Europe/Berln
cameras:
  - name: dock3
    size: [1280, 720]
    floor: {picture: [[0, 0], [1, 1], [0.5, 0.5], [0.2, 0.1]], metres: [[0, 0], [1, 1], [2, 2], [3, 4]]}
  - {name: yard}
zones:
  - {name: a, camera: dock4, points: [[0, 0], [1, 1], [1, 0], [0, 1]]}
  - {name: a, camera: dock3, points: [[0, 0], [2000, 10], [1, 0.5]]}
  - {name: b, camera: yard, points: [[0, 0], [100, 10], [1, 0]]}
lines:
  - {name: l, camera: yard, from: [0.1, 0.1], to: [0.1, 0.1]}
rules:
  - id: x
    type: no_helmet
    zones: [c]
    schedule: {days: [], hours: ["08:00-09:00"]}
    sure: 1
    sure: -3
    open_after: {hits: 9, of: 3}
  - {id: x, type: nope}
  - {id: q, type: queue}
  - {id: s, type: speeding, cameras: [yard], zones: [a], limit: 0, speed: 3}
  - {id: n, type: near_miss, cameras: [yard]}
  - {id: i, type: intrusion, schedule: {outside: true}}
  - {id: z, type: no_vest, sure: 3}
"""


def test_every_mistake_is_told_at_once_with_its_line():
    with pytest.raises(RulesError) as caught:
        parse_rules(WRONG, "site.yaml")
    told = str(caught.value).splitlines()
    expected = """\
        1: timezone: no time zone 'Europe/Berln'
        5: cameras.0.floor: line
        8: zones.0.camera: no camera 'dock4'
        8: zones.0.points: crosses
        9: zones.1.name: 'a' occurs twice
        9: zones.1.points: beyond the picture of 1280x720
        10: zones.2.points: `size` of camera 'yard'
        12: lines.0: begins where it ends
        16: rules.0.zones.0: no zone 'c', expected one of a, b
        17: rules.0.schedule: never holds
        19: rules.0.sure: twice
        20: rules.0.open_after: 9 hits of 3
        21: rules.1: no rule type 'nope'
        21: rules.1.id: 'x' occurs twice
        22: rules.2: `persons` or by `wait`
        22: rules.2.zones: needs zones
        23: rules.3.zones.0: leave out
        23: rules.3.limit: greater than 0
        23: rules.3.speed: Extra
        24: rules.4.type: needs the `floor` of camera 'yard'
        25: rules.5.schedule: nothing is outside
        26: rules.6: sure 3.0 is above unsure"""
    for line in expected.splitlines():
        number, field, what = line.strip().split(": ", 2)
        assert any(one.startswith(f"site.yaml:{number}: {field}: ") and what in one for one in told), (line, told)
    # Besides: the floor of dock4, which is unknown as well, is asked for.
    assert len(told) == len(expected.splitlines()) + 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "r:1: file: it is empty"),
        ("cameras: [", "r:1: file: "),
        ("- a\n- b", "r:1: file: "),
        ("cameras: 3", "r:1: cameras: "),
        ("rules:\n  - 3\n  - {id: a}", "r:2: rules.0: "),
        ("a: &x [*x]", "r:1: "),
        ("rules: !!python/object/apply:os.getcwd []", "r:1: file: "),
        ("? [a, b]\n: 1", "r:1: "),
        ("version: 2", "r:1: version: "),
        ("\n\nzones: [{name: a, camera: c, points: [[.nan, 0], [1, 0], [1, 1]]}]", "r:3: zones.0."),
        ("cameras: &a [{name: x}]\nzones: *a", "r:1: zones.0.camera: "),
    ],
)
def test_what_is_no_rules_file(text, told):
    with pytest.raises(RulesError) as caught:
        parse_rules(text, "r")
    assert told in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(RulesError, match="cannot be read"):
        load_rules(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RulesError, match="cannot be read"):
        load_rules(tmp_path / "bytes.yaml")


def test_one_way_to_add_a_family():
    try:

        @register("crowd_test")
        class Crowd(Rule):
            """More persons than allowed, anywhere."""

            type: Literal["crowd_test"]
            at_most: int

            def find(self, view):
                count = len(view.here("person", min_score=self.min_score))
                if count > self.at_most:
                    yield Finding("all", 1.0, f"{count} persons")

        rules = parse_rules("rules:\n  - {id: c, type: crowd_test, at_most: 2}")
        assert isinstance(rules.rules[0], Crowd)
        assert "crowd_test" in str(Rules.json_schema())
        with pytest.raises(ValueError, match="already"):
            register("crowd_test")(type("Other", (Rule,), {}))
        with pytest.raises(RulesError, match=r"rules:1: rules\.0\.at_most"):
            parse_rules("rules: [{id: c, type: crowd_test}]")
    finally:
        del schema._families["crowd_test"]
        Rules.model_rebuild(force=True)


def at(text: str, zone: str = "Europe/Berlin") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


@pytest.mark.parametrize(
    ("schedule", "moment", "holds"),
    [
        (dict(days=["mon"], hours=["22:00-06:00"]), "2026-03-02T23:00", True),  # a Monday
        (dict(days=["mon"], hours=["22:00-06:00"]), "2026-03-03T05:59", True),
        (dict(days=["mon"], hours=["22:00-06:00"]), "2026-03-03T06:00", False),
        (dict(days=["mon"], hours=["22:00-06:00"]), "2026-03-02T05:00", False),
        (dict(days=["sun"], hours=["22:00-06:00"]), "2026-03-02T05:00", True),
        (dict(hours=["06:00-12:00", "13:00-24:00"]), "2026-07-01T12:30", False),
        (dict(hours=["06:00-12:00", "13:00-24:00"]), "2026-07-01T23:59", True),
        (dict(hours=["06:00-22:00"], outside=True), "2026-07-01T21:59", False),
        (dict(hours=["06:00-22:00"], outside=True), "2026-07-01T22:00", True),
        (dict(hours=["06:00-22:00"], timezone="America/New_York"), "2026-07-01T08:00", False),
    ],
)
def test_schedules(schedule, moment, holds):
    assert Schedule(**schedule).holds(at(moment), "Europe/Berlin") == holds


@pytest.mark.parametrize(
    ("text", "since", "until"),
    [
        ("yesterday", "2026-03-28T00:00", "2026-03-29T00:00"),
        ("today", "2026-03-29T00:00", "2026-03-30T00:00"),  # 23 hours: summer time begins
        ("last 2 hours", "2026-03-29T13:00", "2026-03-29T15:00"),
        ("Last week", "2026-03-16T00:00", "2026-03-23T00:00"),
        ("this month", "2026-03-01T00:00", "2026-04-01T00:00"),
        ("last month", "2026-02-01T00:00", "2026-03-01T00:00"),
        ("on Friday", "2026-03-27T00:00", "2026-03-28T00:00"),
        ("2026-03-01", "2026-03-01T00:00", "2026-03-02T00:00"),
        ("from 2026-03-01 to 2026-03-02?", "2026-03-01T00:00", "2026-03-03T00:00"),
        ("2026-03-01T10:00 to 2026-03-01T12:30", "2026-03-01T10:00", "2026-03-01T12:30"),
        ("since yesterday", "2026-03-28T00:00", "2026-03-29T15:00"),
    ],
)
def test_periods(text, since, until):
    assert period(text, at("2026-03-29T15:00"), "Europe/Berlin") == (at(since), at(until))
