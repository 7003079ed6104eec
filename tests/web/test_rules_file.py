"""Zones and lines are written into the rules file, and nothing else of it changes."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from stille.video.errors import RulesError
from stille.video.rules import load_rules, parse_rules
from stille.video.zones import polygon_problem
from stille.web.pages.zones import new_types
from stille.web.rules_file import RulesFile, Shape

GUIDE = Path(__file__).parents[2] / "docs" / "video-rules.md"
EXAMPLE = GUIDE.read_text().split("```yaml\n")[1].split("```")[0]

XY = st.tuples(*[st.integers(0, 1000).map(lambda n: n / 1000)] * 2)
NAMES = st.one_of(
    st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_. -]{0,12}", fullmatch=True),
    st.sampled_from(["on", "no", "12", "1e3", "null"]),
)


@pytest.fixture
def file(tmp_path):
    (tmp_path / "rules.yaml").write_text(EXAMPLE)
    return RulesFile(tmp_path / "rules.yaml")


@settings(max_examples=6, phases=[Phase.generate])
@given(
    name=NAMES,
    points=st.lists(XY, min_size=3, max_size=6, unique=True),
    camera=st.sampled_from(["dock3", "yard", "new"]),
    rules=st.sets(st.sampled_from(["helmet", "lane", "exit"])),
)
def test_a_zone_is_added_and_everything_else_stays(tmp_path_factory, name, points, camera, rules):
    path = tmp_path_factory.mktemp("rules") / "rules.yaml"
    path.write_text(EXAMPLE)
    file, before = RulesFile(path), parse_rules(EXAMPLE)
    try:
        after = file.put(Shape("zone", name, camera, tuple(points)), rules=sorted(rules))
    except RulesError:
        assert path.read_text() == EXAMPLE
        # Corners that fall into one pixel are no corners.
        assert polygon_problem([(round(x * 1280), round(y * 720)) for x, y in points]) or polygon_problem(points)
        return
    assert load_rules(path) == after
    (new,) = [zone for zone in after.zones if zone not in before.zones]
    assert (new.name, new.camera) == (name, camera)
    for drawn, written in zip(points, after.scaled(camera, new.points), strict=True):
        assert written == pytest.approx(drawn, abs=1 / 720)
    assert {rule.id for rule in after.rules if name in rule.zones} == rules
    for one, other in zip(before.rules, after.rules, strict=True):
        assert other.model_copy(update={"zones": one.zones}) == one
        assert tuple(zone for zone in other.zones if zone != name) == one.zones
    lines = path.read_text().splitlines()
    changed = [line for line in EXAMPLE.splitlines() if line not in lines]
    assert len(changed) <= len(rules)  # those that look there now, comments and all
    file.undo()
    assert path.read_text() == EXAMPLE


def test_a_change_moves_renames_and_keeps_the_rest(file):
    before = file.rules
    shape = next(one for one in file.shapes("dock3") if one.name == "dock3-lane")
    after = file.put(Shape("zone", "main lane", "dock3", shape.points), was="dock3-lane")
    assert after.rule("lane").zones == ("main lane",)
    assert after.rule("speed").zones == ("main lane",)
    moved, was = (rules.scaled("dock3", rules.zones[1].points) for rules in (after, before))
    assert np.array(moved) == pytest.approx(np.array(was), abs=1 / 720)
    assert [zone.keep_days for zone in after.zones] == [zone.keep_days for zone in before.zones]
    line = file.put(Shape("line", "gate", "yard", ((0.1, 0.2), (0.3, 0.4))), was="gate").lines[0]
    assert (line.start, line.end) == ((0.1, 0.2), (0.3, 0.4))


def test_a_zone_takes_the_rules_with_it_that_look_nowhere_else(file):
    assert file.only_there("zone", "dock3-exit") == ["exit"]
    after = file.remove("zone", "dock3-exit")
    assert after.rule("exit") is None
    assert "dock3-exit" not in file.path.read_text()
    with pytest.raises(RulesError, match="without which it would look everywhere"):
        file.put(next(s for s in file.shapes("dock3") if s.name == "dock3-lane"), was="dock3-lane", rules=[])
    with pytest.raises(RulesError, match="there is no zone 'nowhere'"):
        file.remove("zone", "nowhere")


def test_the_rules_that_are_offered_can_be_added(file):
    assert set(new_types("zone")) > {"intrusion", "no_helmet", "blocked", "near_miss"}
    assert not {"queue", "speeding", "line_crossing"} & set(new_types("zone"))  # need more than a zone
    assert new_types("line") == ["line_crossing"]
    shape = Shape("zone", "new", "dock3", ((0.1, 0.1), (0.5, 0.1), (0.3, 0.6)))
    rules = file.put(shape, new={"id": "new-rule", "type": "near_miss", "dwell": 2.5})
    assert (rules.rule("new-rule").zones, rules.rule("new-rule").dwell) == (("new",), 2.5)


def test_an_empty_file_grows(tmp_path):
    (tmp_path / "rules.yaml").write_text("version: 1  # as yet\n")
    file = RulesFile(tmp_path / "rules.yaml")
    shape = Shape("zone", "floor", "hall", ((0.1, 0.1), (0.9, 0.1), (0.5, 0.9)))
    rules = file.put(shape, new={"id": "walking", "type": "intrusion"})
    assert rules.rule("walking").zones == ("floor",)
    text = file.path.read_text()
    assert "# as yet" in text
    file.put(Shape("line", "door", "hall", ((0.1, 0.1), (0.9, 0.1))), new={"id": "in", "type": "line_crossing"})
    assert [one.kind for one in file.shapes("hall")] == ["zone", "line"]


def test_what_others_write_is_seen_and_never_overwritten(file):
    shape = Shape("zone", "new", "dock3", ((0.1, 0.1), (0.5, 0.1), (0.3, 0.6)))
    file.put(shape)
    text = file.path.read_text()
    file.path.write_text(text.replace("id: fall", "id: tumble"))
    os.utime(file.path, ns=(1, 1))
    assert file.changed()
    assert file.rules.rule("tumble") is not None
    assert not file.changed()
    with pytest.raises(RulesError, match="somebody else"):
        file.undo()
    file.path.write_text(text.replace("type: lying", "type: flying"))
    os.utime(file.path, ns=(2, 2))
    assert not file.changed()
    assert "flying" in file.problem
    with pytest.raises(RulesError, match="flying"):
        file.put(shape, was="new")
    assert file.rules.rule("tumble") is not None
    file.path.write_text(text)
    assert file.changed()
    assert file.problem is None
