"""The second look, by a perception that really looks at pixels: red is a person, white on top of it a helmet."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stille.video.events import Consistency, Desk
from stille.video.evidence import Case
from stille.video.rules import parse_rules
from stille.video.second_look import All, SecondLook, View, closer, tube
from stille.video.sinks import Sinks
from stille.video.types import Event, Frame, Seen

RULES = """
cameras: [{name: cam}]
rules:
  - {id: helmet, type: no_helmet, quiet: 1}
"""
BOX = (100, 60, 130, 130)


def picture(boxes=(BOX,), helmets=(False,), size=(320, 180)) -> np.ndarray:
    image = np.full((size[1], size[0], 3), 60, np.uint8)
    for (x0, y0, x1, y1), helmet in zip(boxes, helmets, strict=True):
        image[y0:y1, x0:x1] = (220, 30, 30)
        if helmet:
            image[y0 : y0 + (y1 - y0) // 5, x0:x1] = 255
    return image


class Eyes:
    """Sees what is in the pixels; of cameras in `wrong` a person without a helmet, whatever is there."""

    def __init__(self, wrong=()):
        self.wrong, self.known, self.looked = set(wrong), set(), 0

    def see(self, frames):
        return [self._one(frame) for frame in frames]

    def _one(self, frame):
        self.known.add(frame.camera)
        self.looked += frame.camera not in ("cam",)
        if frame.camera in self.wrong:
            return seen(frame, [BOX], [-4.0])
        image = frame.image_HW3.astype(int)
        mask = ((image[..., 0] > 150) & ((image[..., 1] < 120) | (image.min(-1) > 200))).astype(np.uint8)
        count, _, stats, _ = cv2.connectedComponentsWithStats(mask)
        boxes, odds = [], []
        for x, y, w, h, area in stats[1:count]:
            if area > 100:
                boxes.append((x, y, x + w, y + h))
                odds.append(4.0 if image[y + h // 10, x + w // 2].min() > 200 else -4.0)
        return seen(frame, boxes, odds)

    def forget(self, camera):
        self.known.discard(camera)


def seen(frame: Frame, boxes, odds) -> Seen:
    n = len(boxes)
    attribute = np.zeros((n, 5), np.float32)
    attribute[:, 0] = odds
    return Seen(
        frame.camera, frame.index, frame.time, frame.size, np.array(boxes, np.float32).reshape(n, 4),
        np.zeros(n, np.int64), np.full(n, 0.9, np.float32), np.arange(1, n + 1), attribute,
    )  # fmt: skip


def run(eyes: Eyes, image_of, seconds=6.0, verifier=None) -> list[Event]:
    desk = Desk(parse_rules(RULES), Sinks(), verifier or SecondLook(eyes))
    changes = []
    for i in range(round(seconds * 10)):
        frame = Frame("cam", i, 1000 + i / 10, 0.0, image_of(i))
        changes += desk.see(eyes.see([frame])[0], frame)
    return changes


def test_what_is_so_passes_and_what_is_not_is_withheld():
    eyes = Eyes()
    opened = run(eyes, lambda _: picture())[0]
    assert not opened.withheld
    assert eyes.looked > 0
    assert eyes.known == {"cam"}
    for image, why in ((picture((), ()), "ghost"), (picture(helmets=(True,)), "worn")):
        changes = run(Eyes(wrong=["cam"]), lambda _, image=image: image)
        assert changes, why
        assert all(one.withheld for one in changes), why
        assert "0% of" in str(changes[0].facts["verdict"])


def test_what_bears_itself_out_in_time_is_released():
    changes = run(Eyes(wrong=["cam"]), lambda i: picture(helmets=(i < 5,)))
    assert changes[0].withheld
    released = [one for one in changes if not one.withheld]
    assert released
    assert "bear it out" in str(released[0].facts["verdict"])


def test_without_pictures_or_identities_nothing_is_withheld():
    frame = Frame("cam", 0, 5.0, 0.0, picture())
    event = Event(
        id="e", state="open", revision=0, camera="cam", rule="helmet", kind="no_helmet", began=5, changed=5,
        identities=(1,), confidence=0.9, reason="r",
    )  # fmt: skip
    one = seen(frame, [BOX], [-4.0])
    blind = SecondLook(Eyes(wrong=["\0look 0", "\0look 1"]))
    assert not blind.judge(Case(event, [], [one], 5.0)).withhold
    assert not blind.judge(Case(event.model_copy(update={"identities": ()}), [frame], [one], 5.0)).withhold
    assert len(tube(Case(event, [frame], [one], 5.0), 1)) == 1
    assert tube(Case(event, [frame], [one], 9.0), 1) == []
    both = All([Consistency(), SecondLook(Eyes())])
    assert "share of frames" in both.judge(Case(event, [frame], [one], 5.0)).why
    assert All([Consistency(score=0.95), SecondLook(Eyes())]).judge(Case(event, [frame], [one], 5.0)).withhold
    with pytest.raises(ValueError, match="0 looks"):
        SecondLook(Eyes(), looks=0)


def test_the_perception_forgets_even_if_it_fails():
    class Broken(Eyes):
        def _one(self, frame):
            found = super()._one(frame)
            if frame.camera != "cam":
                raise RuntimeError("no memory left")
            return found

    eyes = Broken(wrong=["cam"])
    changes = run(eyes, lambda _: picture())
    assert not changes[0].withheld  # an event is rather sent than lost
    assert eyes.known == {"cam"}


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 300), st.integers(0, 160), st.integers(12, 320), st.integers(12, 180), st.floats(1, 8),
    st.booleans(),
)  # fmt: skip
def test_the_box_is_where_the_object_is_in_the_enlarged_picture(x, y, w, h, zoom, mirrored):
    box = (x, y, min(320, x + w), min(180, y + h))
    frame = Frame("cam", 0, 0.0, 0.0, picture((box,)))
    near, there = closer(frame, np.array(box, np.float32), View(zoom, mirrored), "n")
    assert near.size == frame.size
    ys, xs = np.nonzero(near.image_HW3[..., 0] > 140)
    found = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
    assert np.abs(found - there).max() <= zoom + 1.5
    grown = (there[2] - there[0]) / (box[2] - box[0])
    assert 0.98 <= grown <= zoom * 1.1 + 0.1
