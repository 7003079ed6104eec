"""`stille watch`: annotated films, previews, verifiers, NATS, and where weights come from."""

from __future__ import annotations

import http.client
import re
import threading
import time

import av
import numpy as np
import pytest

from stille.video.model import TINY, StilleCamNet, save
from stille.video.scenes.__main__ import write_film

RULES = """
version: 1
cameras: [{name: hall}, {name: yard}]
zones: [{name: all, camera: hall, points: [[0, 0], [1, 0], [1, 1], [0, 1]]}]
rules:
  - {id: trouble, type: camera_trouble, kinds: [black]}
  - {id: anybody, type: intrusion, zones: [all]}
"""


@pytest.fixture(scope="module")
def hall(tmp_path_factory):
    folder = tmp_path_factory.mktemp("views")
    frames = np.random.default_rng(0).integers(60, 200, (20, 96, 160, 3), dtype=np.uint8)
    write_film(folder / "hall.mp4", frames, 5)
    (folder / "rules.yaml").write_text(RULES)
    save(StilleCamNet(TINY), folder / "model", "# A network that has learned nothing")
    return folder


def frames_of(path) -> int:
    with av.open(str(path)) as film:
        return sum(1 for _ in film.decode(video=0))


def test_films_of_two_cameras_and_a_second_look(hall, stille_here, tmp_path):
    run = stille_here(
        "watch", f"{hall / 'hall.mp4'}#name=hall", f"{hall / 'hall.mp4'}#name=yard", "--rules", hall / "rules.yaml",
        "--model", hall / "model", "--out", tmp_path / "out", "--device", "cpu", "--annotate", tmp_path / "seen.mp4",
        "--verify", "second-look",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    for name in ("hall", "yard"):
        assert frames_of(tmp_path / f"seen-{name}.mp4") == 20
        assert f"annotated film of {name}" in run.stderr


def test_a_preview_of_a_file_that_acts_as_a_camera(hall, spawn, tmp_path):
    process = spawn(
        "watch", f"{hall / 'hall.mp4'}#name=hall,realtime=true,loop=true", "--rules", hall / "rules.yaml",
        "--model", hall / "model", "--out", tmp_path / "out", "--device", "cpu", "--preview", "0",
        "--annotate", tmp_path / "seen.mp4",
    )  # fmt: skip
    url = ""
    while not url:
        line = process.stderr.readline()
        assert line, "it ended"
        url = (re.findall(r"preview at http://127\.0\.0\.1:(\d+)/", line) or [""])[0]
    threading.Thread(target=process.stderr.read, daemon=True).start()
    connection = http.client.HTTPConnection("127.0.0.1", int(url), timeout=30)
    for _ in range(1000):  # until the first frame has been seen
        connection.request("GET", "/hall.jpg")
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        if answer.status == 200:
            break
        time.sleep(0.02)
    assert body[:2] == b"\xff\xd8"
    process.terminate()
    assert process.wait(60) == 0
    assert frames_of(tmp_path / "seen.mp4") >= 1


def test_without_a_model(hall, stille_here, tmp_path, monkeypatch):
    monkeypatch.setattr("stille.video.weights.BUNDLED", tmp_path)
    run = stille_here("watch", f"{hall / 'hall.mp4'}#name=hall", "--rules", hall / "rules.yaml")
    assert run.returncode == 2
    assert "stille train video" in run.stderr
