"""Live pictures: heads hidden, made for who looks and no more often than they may be."""

import io
import time

import numpy as np
from PIL import Image

from stille.video.types import ATTRIBUTES, KINDS, Event, Frame, Seen
from stille.web.wall import Wall

HEAD = (slice(20, 35), slice(60, 80))


def feed(wall: Wall, t: float, person: bool, arrived: float | None = None) -> None:
    n = int(person)
    odds = np.zeros((n, len(ATTRIBUTES)), np.float32)
    odds[:, ATTRIBUTES.index("helmet")] = -5
    seen = Seen("hall", round(10 * t), t, (160, 96), np.array([[60, 20, 80, 90]] * n, np.float32).reshape(n, 4),
                np.full(n, KINDS.index("person")), np.full(n, 0.9, np.float32), np.full(n, 7), odds)  # fmt: skip
    noise = np.random.default_rng(round(10 * t)).integers(0, 256, (96, 160, 3), np.uint8)
    wall.see(seen, Frame("hall", round(10 * t), t, time.monotonic() if arrived is None else arrived, noise))


def detail(picture, where) -> float:
    return float(np.asarray(Image.open(io.BytesIO(picture.jpeg)).convert("L"))[where].std())


def test_heads_are_hidden_that_are_seen_half_a_second_later_only():
    wall = Wall(fps=1000)
    for i in range(14):
        feed(wall, i / 10, person=i >= 8)
        time.sleep(0.002)
        picture = wall.picture("hall")
        if picture is not None and picture.overlay["time"] > 0.3:  # the person comes at 0.8
            assert detail(picture, HEAD) < 25
            assert detail(picture, (slice(40, 90), slice(100, 150))) > 40
    assert picture.overlay["time"] == 0.8
    (box,) = picture.overlay["objects"]
    assert (box["kind"], box["identity"], box["says"], box["alarm"]) == ("person", 7, ["no helmet"], [])


def test_nobody_looks_nothing_is_made_and_viewers_share():
    wall = Wall(fps=10)
    for i in range(20):
        feed(wall, i / 10, True)
    assert wall.made == 0
    first = wall.picture("hall")
    assert all(wall.picture("hall") is first for _ in range(50))
    assert wall.made == 1
    assert wall.picture("yard") is None
    wall.forget("hall")
    assert wall.picture("hall") is None


def test_an_alarm_is_told_with_the_same_picture_and_a_dead_camera_shows_its_last():
    wall = Wall(fps=1000)
    feed(wall, 1.0, True)
    assert wall.picture("hall") is None  # who is to be seen next to it is not known yet
    wall.forget("hall")
    feed(wall, 1.0, True, arrived=time.monotonic() - 5)
    quiet = wall.picture("hall")
    event = Event(id="e", state="open", revision=0, camera="hall", rule="helmet", kind="no_helmet", began=1.0,
                  changed=1.0, identities=(7,), confidence=0.9, reason="a person")  # fmt: skip
    wall.alarms = {"hall": [event]}
    time.sleep(0.002)
    loud = wall.picture("hall")
    assert loud.jpeg is quiet.jpeg
    assert loud.number == quiet.number + 1
    assert loud.overlay["objects"][0]["alarm"] == ["helmet"]
    assert [alarm["rule"] for alarm in loud.overlay["alarms"]] == ["helmet"]
