"""`stille watch` on recordings, with a small network that has learned nothing: what a camera's trouble needs not."""

import json

import numpy as np
import pytest

from stille.video.model import TINY, StilleCamNet, save
from stille.video.scenes.__main__ import write_film
from stille.video.store import Store

RULES = """
version: 1
cameras:
  - name: hall
  - name: yard
rules:
  - {id: trouble, type: camera_trouble, kinds: [black]}
"""


@pytest.fixture(scope="module")
def hall(tmp_path_factory):
    """A folder with a film that goes black after a while, rules, and a model."""
    folder = tmp_path_factory.mktemp("watch")
    frames = np.random.default_rng(0).integers(60, 200, (60, 96, 160, 3), dtype=np.uint8)
    frames[20:50] = 0
    write_film(folder / "hall.mp4", frames, 5)
    (folder / "rules.yaml").write_text(RULES)
    save(StilleCamNet(TINY), folder / "model", "# A network that has learned nothing")
    return folder


def test_a_film_becomes_events(hall, stille_here, tmp_path):
    run = stille_here(
        "watch", f"{hall / 'hall.mp4'}#name=hall", "--rules", hall / "rules.yaml", "--model", hall / "model",
        "--out", tmp_path / "out", "--device", "cpu",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "camera 'yard', which no source is named" in run.stderr
    opened, closed = (line for line in run.stdout.splitlines() if "trouble" in line)
    assert "hall  trouble opened: camera hall black" in opened
    assert "trouble closed" in closed
    events = [json.loads(line) for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines()]
    assert [event["state"] for event in events if event["rule"] == "trouble"][:: len(events) - 1] == ["open", "closed"]
    store = Store(tmp_path / "out" / "events.db")
    (kept,) = store.find()
    store.close()
    assert (kept.rule, kept.state) == ("trouble", "closed")
    assert 3 < kept.ended - kept.began < 9
    assert "60" in run.stderr.split("hall")[-1]  # frames seen


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("--rules", "nothing.yaml"), "nothing.yaml"),
        (("--model", "nothing"), "is no folder of a StilleCam"),
        (("--webhook", "https://example.org/hook"), "STILLE_WEBHOOK_SECRET"),
        (("--gate", "maybe"), "choose off, on or shadow"),
        (("--mqtt", "broker:mqtts"), "HOST:PORT"),
        (("--nats", "http://broker"), "expected nats://HOST:PORT"),
        (("--verify", "twice"), "verifier 'twice' is unknown"),
        (("--preview", "here"), "expected PORT or"),
        (("--annotate", "seen.avi"), "ends in .mp4"),
    ],
)
def test_what_is_wrong_is_one_line(hall, stille_here, tmp_path, change, told):
    run = stille_here(
        "watch", f"{hall / 'hall.mp4'}#name=hall", "--rules", hall / "rules.yaml", "--model", hall / "model",
        "--out", tmp_path / "out", *change,
    )  # fmt: skip
    assert run.returncode == 2
    assert told in run.stderr


def test_a_source_that_is_not_there(hall, stille_here, tmp_path):
    run = stille_here(
        "watch", f"{tmp_path / 'none.mp4'}#name=hall", "--rules", hall / "rules.yaml", "--model", hall / "model",
        "--out", tmp_path / "out", "--device", "cpu",
    )  # fmt: skip
    assert run.returncode == 1
    assert "none.mp4" in run.stderr


def test_sigterm_ends_it_and_the_same_command_goes_on(hall, spawn, tmp_path):
    arguments = (
        "watch", f"{hall / 'black.mp4'}#name=hall,realtime=true,loop=true", "--rules", hall / "rules.yaml",
        "--model", hall / "model", "--out", tmp_path / "out", "--device", "cpu", "--no-evidence",
    )  # fmt: skip
    write_film(hall / "black.mp4", np.zeros((50, 96, 160, 3), np.uint8), 5)
    process = spawn(*arguments)
    opened = process.stdout.readline()
    assert "trouble opened" in opened
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "closed" not in out
    assert "1 opened, 0 closed" in err
    state = json.loads((tmp_path / "out" / "state.json").read_text())
    (incident,) = state["cameras"]["hall"]["incidents"].values()
    assert incident["event"]["id"] in opened
