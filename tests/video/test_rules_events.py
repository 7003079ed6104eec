"""The desk: verified, shown, sent, and going on after the process was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from stille.video.errors import RulesError
from stille.video.events import Consistency, Desk, Verdict
from stille.video.evidence import Case, Evidence, Recent, hide_head
from stille.video.rules import parse_rules
from stille.video.sinks import Lane, Sinks
from stille.video.store import Filter, Store
from stille.video.types import ATTRIBUTES, KINDS, Event, Frame, Seen, Trouble

START = 1_764_000_000.0
SIZE = (160, 96)
RULES = parse_rules(
    """
cameras: [{name: cam}]
zones: [{name: hall, camera: cam, points: [[0, 0], [1, 0], [1, 1], [0, 1]]}]
rules:
  - {id: in, type: intrusion, zones: [hall], dwell: 1}
  - {id: helmet, type: no_helmet, zones: [hall]}
  - {id: trouble, type: camera_trouble}
"""
)


class Took:
    """A sink that keeps what it gets."""

    name, withheld = "took", False

    def __init__(self):
        self.got: list[Event] = []

    def send(self, event: Event) -> None:
        self.got.append(event)

    def close(self) -> None:
        pass


def look(t: float, *boxes, helmet: float = 4.0, score: float = 0.9, size=SIZE) -> tuple[Seen, Frame]:
    """Persons with these boxes, and a picture of noise, so that what is hidden can be told from what is not."""
    n = len(boxes)
    odds = np.zeros((n, len(ATTRIBUTES)), np.float32)
    odds[:, ATTRIBUTES.index("helmet")] = helmet
    seen = Seen(
        "cam", round(t * 10), START + t, size, np.array(boxes, np.float32).reshape(n, 4),
        np.full(n, KINDS.index("person")), np.full(n, score, np.float32), np.arange(n), odds,
    )  # fmt: skip
    noise = np.random.default_rng(round(t * 10)).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return seen, Frame("cam", round(t * 10), START + t, time.monotonic(), noise)


BOX = (60, 10, 90, 90)


def feed(desk: Desk, seconds: float, start: float = 0.0, make=lambda t: look(t, BOX)) -> list[Event]:
    changes = []
    for i in range(round(seconds * 10)):
        seen, frame = make(start + i / 10)
        changes += desk.see(seen, frame)
    return changes


def test_evidence_is_whole_and_shows_no_head(tmp_path):
    import av
    from PIL import Image

    took, store = Took(), Store(tmp_path / "events.db")
    evidence = Evidence(tmp_path / "evidence")
    desk = Desk(RULES, Sinks([Lane(took), Lane(store)]), Consistency(), evidence)
    # Not detected in one frame in ten: the head is hidden there, too.
    feed(desk, 5, make=lambda t: look(t, *([] if round(t * 10) % 10 == 3 else [BOX])))
    desk.end("cam")
    desk.close()
    assert (took.got[0].state, took.got[0].revision) == ("open", 0)
    (kept,) = store.find()
    assert kept.state == "closed"
    assert kept.snapshot is not None
    assert kept.clip is not None
    files = sorted(str(path.relative_to(evidence.folder)) for path in evidence.folder.rglob("*") if path.is_file())
    assert files == sorted([kept.clip, kept.snapshot])
    picture = np.asarray(Image.open(evidence.folder / kept.snapshot), float)
    with av.open(evidence.folder / kept.clip) as container:
        frames = [(frame.time, frame.to_ndarray(format="rgb24").astype(float)) for frame in container.decode(video=0)]
    assert len(frames) >= 15
    assert frames[-1][0] == pytest.approx(0.2 * (len(frames) - 1), abs=0.25)
    for image in [picture, *(image for _, image in frames)]:
        head, body = image[14:30, 64:86].mean(-1), image[50:86, 64:86].mean(-1)
        # Noise is rough from one pixel to the next; what is hidden is smooth.
        assert np.abs(np.diff(head, axis=0)).mean() < 0.25 * np.abs(np.diff(body, axis=0)).mean()
    assert evidence.counts == {"written": 2}


def test_of_a_head_nine_mean_colours_are_left():
    """Whatever the picture, the result lies in a space of nine dimensions for each colour."""
    rng = np.random.default_rng(0)
    results = []
    for _ in range(40):
        image = rng.integers(0, 256, (60, 40, 3)).astype(np.uint8)
        before = image.copy()
        hide_head(image, (5, 5, 35, 105))
        assert (image[:2] == before[:2]).all()
        assert (image[45:] == before[45:]).all()
        results.append(image[5:35, 5:35, 0].ravel().astype(float))
    singular = np.linalg.svd(np.array(results), compute_uv=False)
    rounding = (30 * 30) ** 0.5 + 40**0.5  # times the deviation of rounding: the norm of a matrix of noise
    assert singular[9] < 1.2 * rounding / 12**0.5 < 0.2 * singular[8]
    lying = np.array(before)
    hide_head(lying, (0, 10, 40, 30))
    assert (lying[12:28] != before[12:28]).mean() > 0.9
    for odd in ((float("nan"), 0, 5, 5), (-90, -90, -50, -50), (5, 5, 5, 5), (-5, -5, 400, 2), (39, 0, 40, 1)):
        hide_head(image, odd)


def test_the_last_seconds_are_bounded():
    recent = Recent(seconds=2, fps=5)
    for i in range(300):
        seen, frame = look(i / 30, BOX)
        recent.add(frame, seen)
    assert 9 <= len(recent.frames) <= 11
    assert len(recent.seen) <= 61
    recent.add(*reversed(look(0.0, BOX)))  # the clock was set back
    assert len(recent.seen) == 1


def case(kind: str, frames: list[Seen], identities=(0,)) -> Case:
    fields = dict(id="e", state="open", revision=0, camera="cam", rule="r", kind=kind, reason="x", confidence=0.9)
    event = Event.model_validate(fields | dict(began=START, changed=START + 2, identities=identities))
    return Case(event, [], frames, START + 2)


@pytest.mark.parametrize(
    ("make", "withheld"),
    [
        (lambda t, i: look(t, BOX, helmet=-3)[0], ""),
        (lambda t, i: look(t, *([BOX] if i % 3 == 0 else []), helmet=-3)[0], "share of frames"),
        (lambda t, i: look(t, BOX, helmet=-3 if i % 3 == 0 else 3)[0], "share of frames"),
        (lambda t, i: look(t, BOX, helmet=-3, score=0.4)[0], "median score"),
        (lambda t, i: look(t, BOX if i % 2 else (5, 10, 35, 90), helmet=-3)[0], "steady boxes"),
    ],
)
def test_consistency(make, withheld):
    frames = [make(i / 10, i) for i in range(20)]
    verdict = Consistency().judge(case("no_helmet", frames))
    assert verdict.withhold == bool(withheld)
    assert withheld in verdict.why
    assert not Consistency().judge(case("queue", frames, identities=())).withhold


class Doubting:
    """Withholds until a time; fails after another."""

    def __init__(self, until: float, fails: float = 1e12):
        self.until, self.fails = START + until, START + fails

    def judge(self, case: Case) -> Verdict:
        if case.until >= self.fails:
            raise RuntimeError("no more")
        return Verdict(case.until < self.until, "not sure yet" if case.until < self.until else "sure")


def test_withheld_events_are_kept_and_released_when_they_bear_themselves_out(tmp_path):
    took, store = Took(), Store(tmp_path / "events.db")
    desk = Desk(RULES, Sinks([Lane(took), Lane(store)]), Doubting(until=5))
    assert {one.withheld for one in feed(desk, 3)} == {True}
    desk.sinks.drain(5)
    assert took.got == []
    (kept,) = store.find(Filter(withheld=None))
    assert (kept.withheld, kept.facts["verdict"]) == (True, "not sure yet")
    assert desk.save(tmp_path / "state.json")
    again = Desk(RULES, desk.sinks, Doubting(until=5))
    assert again.load(tmp_path / "state.json") == []
    feed(again, 4, start=3)
    again.end("cam")
    again.close()
    assert [(one.state, one.withheld, one.revision) for one in took.got] == [("open", False, 1), ("closed", False, 2)]
    assert took.got[-1].facts["verdict"] == "sure"
    assert again.counts == {"released": 1, "closed": 1}


def test_a_verifier_that_fails_withholds_nothing(caplog):
    took = Took()
    desk = Desk(RULES, Sinks([Lane(took)]), Doubting(until=9, fails=0))
    feed(desk, 3)
    desk.close()
    assert [one.withheld for one in took.got] == [False]
    assert "the verifier failed" in caplog.text


def test_evidence_that_cannot_be_written_stops_nothing(tmp_path):
    (tmp_path / "evidence").write_text("a file where a folder should be")
    evidence, took = Evidence(tmp_path / "evidence"), Took()
    desk = Desk(RULES, Sinks([Lane(took)]), None, evidence)
    feed(desk, 5)
    desk.close()
    assert [one.state for one in took.got] == ["open"]
    assert evidence.counts == {"failed": 2}
    assert not desk.save(tmp_path / "evidence" / "state.json")
    assert desk.health()["events"] == {"opened": 1, "unsaved": 1}


def test_troubles_and_bad_states(tmp_path):
    took = Took()
    desk = Desk(RULES, Sinks([Lane(took)]), Consistency(), Evidence(tmp_path / "evidence"))
    desk.trouble(Trouble("cam", "offline", START, START - 2, False, "no answer"))
    desk.trouble(Trouble("cam", "offline", START + 9, START - 2, True, "no answer"))
    desk.advance("cam", START + 20)
    assert desk.sinks.drain(5)
    assert [(one.rule, one.state, one.ended) for one in took.got] == [
        ("trouble", "open", None),
        ("trouble", "closed", START + 9),
    ]
    desk.close()
    for text in ("{", "[]", '{"cameras": 3, "skipped": {}}'):
        (tmp_path / "state.json").write_text(text)
        with pytest.raises(RulesError, match="state"):
            desk.load(tmp_path / "state.json")


def story(t: float) -> tuple[Seen, Frame]:
    boxes = [BOX] if t < 6 else []
    boxes += [(5, 20, 30, 95)] if 2 < t < 4.5 else []
    return look(t, *boxes, helmet=-4 if t < 3 else 4)


def open_desk(folder) -> Desk:
    sinks = Sinks([Lane(Store(folder / "events.db"), spool=folder / "spool")])
    desk = Desk(RULES, sinks, Consistency())
    desk.load(folder / "state.json")
    return desk


def test_a_killed_process_goes_on_with_the_same_events(tmp_path):
    (tmp_path / "whole").mkdir()
    whole = open_desk(tmp_path / "whole")
    feed(whole, 9, make=story)
    whole.close()
    code = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {os.path.dirname(__file__)!r})
from test_rules_events import feed, open_desk, story
folder = Path({str(tmp_path)!r})
desk = open_desk(folder)
feed(desk, 3.5, make=story)
assert desk.save(folder / "state.json")
feed(desk, 0.5, start=3.5, make=story)
print("saved", flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "saved\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    again = open_desk(tmp_path)
    feed(again, 5.5, start=3.5, make=story)
    again.close()
    expected = Store(tmp_path / "whole" / "events.db").find(Filter(withheld=None))
    assert len(expected) == 4
    assert {one.state for one in expected} == {"closed"}
    assert Store(tmp_path / "events.db").find(Filter(withheld=None)) == expected


def test_no_half_file_is_ever_seen(tmp_path):
    from stille.video.evidence import atomic

    path = tmp_path / "a" / "b.jpg"
    with pytest.raises(TypeError), atomic(path) as file:
        file.writelines([b"half", None])  # type: ignore[list-item]
    assert list(path.parent.iterdir()) == []
    with atomic(path) as file:
        file.write(b"whole")
    assert [one.name for one in path.parent.iterdir()] == ["b.jpg"]
