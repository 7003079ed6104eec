"""The warehouse from painted film to alarm and report, with the films' own truth in place of a model."""

from __future__ import annotations

import json

import av
import numpy as np
import pytest

from examples.warehouse import demo, report, site, street
from examples.warehouse.site import HALLS, Recording
from examples.warehouse.truth import Names, TruthPerception
from stille.errors import StilleError
from stille.evals.warehouse import Incident
from stille.video.rules import load_rules
from stille.video.store import Store
from stille.video.types import Event, Frame, Seen


def test_from_film_to_report(tmp_path, capsys):
    arguments = ["--cameras", "hall-a", "--seconds", "14", "--size", "320", "176", "--perception", "truth"]
    assert demo.main([*arguments, "--out", str(tmp_path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "No model is at work here" in said
    assert "it takes a model" in said
    out = tmp_path / "run-1"
    found = {row["rule"]: row for row in json.loads((out / "report.json").read_text())["rules"]}
    for rule in ("no_helmet", "no_vest"):
        assert (found[rule]["incidents"], found[rule]["found"], found[rule]["false"]) == (1, 1, 0)
        assert 0 <= found[rule]["late"] < 2
    assert found["all"]["missed"] == found["all"]["false"] == found["all"]["again"] == 0

    store = Store(out / "halls" / "events.db")
    events = {one.rule: one for one in store.find()}
    store.close()
    helmet = events["no_helmet"]
    assert helmet.zone == "a-work"
    for path in (helmet.snapshot, helmet.clip):
        assert (out / "halls" / "evidence" / str(path)).stat().st_size > 1000
    assert list((out / "halls" / "stills").glob("hall-a-*no_helmet*.jpg"))
    with av.open(str(out / "halls" / "annotated.mp4")) as film:
        assert sum(1 for _ in film.decode(video=0)) == 70
    assert not list(out.rglob("*.part"))

    # Again: the film is not painted anew, and the first run stays.
    film, painted = tmp_path / "site" / "hall-a.mp4", (tmp_path / "site" / "hall-a.mp4").stat().st_mtime_ns
    assert demo.main([*arguments, "--verify", "second-look", "--no-street", "--out", str(tmp_path)]) == 2
    assert "truth has nothing to add" in capsys.readouterr().out
    assert film.stat().st_mtime_ns == painted
    assert (tmp_path / "run-2").exists()


def test_without_a_model_the_demo_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("stille.video.weights.BUNDLED", tmp_path)
    assert demo.main(["--out", str(tmp_path / "out")]) == 2
    said = " ".join(capsys.readouterr().out.split())
    assert "no trained perception is part of this version" in said
    assert "--perception truth" in said
    assert not (tmp_path / "out").exists()


def test_the_rules_file_is_that_of_the_site():
    assert site.RULES.read_text() == site.rules_text()
    rules = load_rules(site.RULES)
    assert [camera.name for camera in rules.cameras] == [hall.name for hall in HALLS]
    assert {rule.type for rule in rules.rules} >= {"no_helmet", "near_miss", "blocked", "pallet_missing", "intrusion"}
    assert {camera.name for camera in load_rules(street.RULES).cameras} == {"square"}


def frame_of(boxes, identities, kinds):
    n = len(boxes)
    return {
        "box_N4": boxes, "visible_N": [1.0] * n, "kind_N": kinds, "identity_N": identities, "size": [100, 100],
        "attribute_NA": [[float("nan")] * 5] * n, "slots": {"A1": True},
    }  # fmt: skip


def recording(tmp_path, incidents=()) -> Recording:
    frames = [frame_of([[10, 10, 20, 40], [60, 10, 90, 40]], [7, 8], [0, 1]) for _ in range(5)]
    return Recording(HALLS[0], tmp_path / "none.mp4", 100 + np.arange(5) / 5, frames, list(incidents))


def event(kind, identities=(), zone=None, began=101.0, withheld=False, **facts) -> Event:
    return Event(
        id=f"{kind}{began}{identities}", state="closed", revision=1, camera="hall-a", rule=kind, kind=kind, zone=zone,
        began=began, changed=began + 1, ended=began + 1, identities=identities, confidence=0.9, reason="r",
        withheld=withheld, facts=facts,
    )  # fmt: skip


def test_events_are_held_against_incidents_by_who_was_where(tmp_path):
    one = recording(
        tmp_path,
        [
            Incident("no_helmet", "work", (7,), 100.5, 103.0),
            Incident("near_miss", None, (8, 7), 101.0, 102.0),
            Incident("pallet_missing", "A1", (), 100.0, 104.0),
            Incident("speeding", "lane", (8,), 100.0, 101.0, doubtful=True),
            Incident("lying", None, (7,), 100.0, 104.0),
        ],
    )
    names = Names([one])
    # A model of whose identities 30 is the person, 40 the forklift, and 50 nobody; the picture is twice as large.
    boxes = np.array([[20, 20, 41, 80], [120, 22, 180, 80], [180, 180, 199, 199]], np.float32)
    seen = Seen(
        "hall-a", 0, 100.2, (200, 200), boxes, np.array([0, 1, 0]), np.ones(3, np.float32), np.array([30, 40, 50]),
        np.zeros((3, 5), np.float32),
    )  # fmt: skip
    names.see(seen, Frame("hall-a", 0, 100.2, 0.0, np.zeros((200, 200, 3), np.uint8)))
    assert (names.of("hall-a", [30, 40]), names.of("hall-a", [50, 60])) == ({7, 8}, set())
    events = [
        event("no_helmet", (30,), "a-work"),
        event("no_helmet", (30,), "a-work", began=102.5),  # told twice
        event("no_helmet", (50,), "a-work"),  # about nobody
        event("near_miss", (40, 30)),
        event("pallet_missing", slot="a-A1"),
        event("pallet_missing", slot="a-A2"),
        event("speeding", (40,), "a-lane"),
        event("lying", (30,), withheld=True),
        event("camera_trouble"),
    ]
    rows = {row.rule: row for row in report.rows([one], events, names)}
    told = {
        rule: (row.incidents, row.found, row.missed, row.false, row.again, row.withheld) for rule, row in rows.items()
    }
    assert told == {
        "no_helmet": (1, 1, 0, 1, 1, 0),
        "near_miss": (1, 1, 0, 0, 0, 0),
        "pallet_missing": (1, 1, 0, 1, 0, 0),
        "speeding": (0, 0, 0, 0, 0, 0),
        "lying": (1, 0, 1, 0, 0, 1),
    }
    assert report.total(list(rows.values())).found == 3
    assert rows["no_helmet"].late == 0.5


def test_truth_hides_what_cannot_be_seen_and_knows_no_more_than_it_is_told(tmp_path):
    one = recording(tmp_path)
    one.frames[2]["visible_N"] = [0.05, 0.9]
    one.frames[2]["attribute_NA"] = [[1.0] * 5, [float("nan")] * 3 + [0.0, float("nan")]]
    frame = Frame("hall-a", 9, 100.41, 0.0, np.zeros((200, 200, 3), np.uint8))
    (seen,) = TruthPerception([one]).see([frame])
    assert seen.identity_N.tolist() == [8]
    assert seen.box_N4.tolist() == [[120, 20, 180, 80]]
    assert seen.attribute_NA.tolist() == [[0, 0, 0, -5, 0]]
    assert seen.slots == {"a-A1": 0.99}


def test_the_real_film_is_found_fetched_or_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("STILLE_HOME", str(tmp_path))
    monkeypatch.setattr(street, "INSIDE", "usr/share/doc/film.avi")
    bin = tmp_path / "bin"
    bin.mkdir()
    for name, does in (
        ("apt-get", 'echo "E: Unable to locate package $2" >&2; exit 100'),
        ("dpkg", 'mkdir -p "$3/usr/share/doc"; cp "$2" "$3/usr/share/doc/film.avi"'),
    ):
        (bin / name).write_text(f"#!/bin/sh\n{does}\n")
        (bin / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin}:/usr/bin:/bin")
    with pytest.raises(StilleError, match=r"Unable to locate package opencv-doc\. Give the film with --video"):
        street.find()
    (bin / "apt-get").write_text("#!/bin/sh\necho a film > opencv-doc_1_all.deb\n")
    found = street.find()
    assert found.read_text() == "a film\n"
    assert [path.name for path in found.parent.iterdir()] == ["vtest.avi"]
    monkeypatch.setenv("PATH", "/nowhere")
    assert street.find() == found
    found.unlink()
    with pytest.raises(StilleError, match="there is no apt-get here"):
        street.find()
    with pytest.raises(StilleError, match="is no file"):
        street.find(tmp_path / "other.avi")
