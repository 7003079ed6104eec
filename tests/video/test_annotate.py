"""Annotated pictures: what is drawn and hidden, films that survive, previews that cost nothing without viewers."""

from __future__ import annotations

import http.client
import socket
import time

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stille.video.annotate import ALARM, Annotator, draw, label, zones_of
from stille.video.errors import VideoError
from stille.video.evidence import hidden
from stille.video.film import Film
from stille.video.films import Films
from stille.video.preview import VIEWERS, Preview
from stille.video.rules import parse_rules
from stille.video.types import Event, Frame, Seen

RULES = parse_rules(
    """
cameras: [{name: dock, size: [160, 96]}, {name: yard}]
zones: [{name: floor, camera: dock, points: [[16, 48], [144, 48], [144, 90], [16, 90]]}]
slots: [{name: A1, camera: dock, points: [[0.1, 0.1], [0.3, 0.1], [0.3, 0.3]]}]
lines: [{name: gate, camera: yard, from: [0.5, 0.1], to: [0.5, 0.9]}]
rules: [{id: helmet, type: no_helmet, zones: [floor]}]
"""
)


def noise(camera="dock", index=0, at=100.0, size=(160, 96)) -> Frame:
    image = np.random.default_rng(index).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Frame(camera, index, at, 0.0, image)


def seen(frame: Frame, *boxes: tuple[float, float, float, float], at: float | None = None) -> Seen:
    n = len(boxes)
    odds = np.tile(np.array([-3.0, 2.0, 0.1, 5.0, 0.0], np.float32), (n, 1))
    return Seen(
        frame.camera, frame.index, frame.time if at is None else at, frame.size,
        np.array(boxes, np.float32).reshape(n, 4), np.zeros(n, np.int64), np.full(n, 0.9, np.float32),
        np.arange(n), odds,
    )  # fmt: skip


def alarm(**more) -> Event:
    fields = dict(id="e", state="open", revision=0, camera="dock", rule="helmet", kind="no_helmet", zone="floor")
    fields |= dict(began=1, changed=1, confidence=0.9, reason="a person without a helmet – sure", identities=(0,))
    return Event.model_validate(fields | more)


def red(image: np.ndarray) -> int:
    return int((image == ALARM).all(-1).sum())


def test_what_is_drawn():
    frame = noise()
    here = seen(frame, (60, 30, 90, 80))
    zones = zones_of(RULES, "dock")
    assert list(zones) == ["floor", "A1"]
    assert zones["floor"][0] == (0.1, 0.5)
    assert len(zones_of(RULES, "yard")["gate"]) == 2
    assert label(here, 0) == ["person 0", "no helmet", "vest"]
    plain, wrong = draw(frame, here, zones), draw(frame, here, zones, [alarm()])
    assert red(plain) == 0
    assert red(wrong) > 100
    for other in (alarm(withheld=True), alarm(camera="yard"), alarm(state="closed")):
        assert np.array_equal(draw(frame, here, zones, [other]), plain)
    assert not np.array_equal(plain, frame.image_HW3)
    assert np.array_equal(frame.image_HW3, noise().image_HW3)


numbers = st.floats(-400, 600, width=32) | st.sampled_from([float("nan"), float("inf")])


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(numbers, numbers, numbers, numbers), max_size=4), st.integers(20, 300), st.integers(20, 300),
    st.integers(0, 6),
)  # fmt: skip
def test_any_boxes_in_any_picture(boxes, width, height, alarms):
    frame = noise(size=(width, height))
    zones = {"z": ((-0.5, 0.2), (1.5, 0.2), (1.0, 3.0)), "l": ((0.0, 0.0), (1.0, 1.0))}
    image = draw(frame, seen(frame, *boxes), zones, [alarm(zone="z")] * alarms)
    assert (image.shape, image.dtype) == (frame.image_HW3.shape, np.uint8)


def test_heads_are_hidden_whatever_the_times_say():
    """Where nothing is drawn, the head is what `hidden` leaves of it: of the frame's own objects, whose clock may be
    another, and of those seen shortly after."""
    frame = noise(size=(320, 240))
    box = (100.0, 60.0, 200.0, 220.0)
    head = np.s_[75:100, 105:195]
    for own, around in ((seen(frame, box, at=50.0), ()), (seen(frame), (seen(frame, box, at=100.3),))):
        image = draw(frame, own, around=around)
        expected = hidden(frame, [seen(frame, box)])
        assert np.array_equal(image[head], expected[head])
        assert not np.array_equal(image[head], frame.image_HW3[head])


class Wall:
    """An output that looks at one camera."""

    def __init__(self, camera="dock"):
        self.camera, self.moments = camera, []

    def wants(self, camera):
        return camera == self.camera

    def show(self, moment):
        self.moments.append(moment)


def test_moments_wait_for_heads_that_are_seen_later_and_nobody_pays_for_nothing():
    wall, asked = Wall(), []
    annotator = Annotator(lambda: RULES, lambda: asked.append(1) or [alarm(), alarm(camera="yard")], [wall], fps=5)
    box = (60.0, 30.0, 90.0, 80.0)
    for i in range(30):  # ten frames a second; the person is detected from the fourth frame on
        for camera in ("dock", "yard"):
            frame = noise(camera, i, 100 + i / 10)
            annotator.see(seen(frame, *([box] if i >= 3 else [])), frame)
        if wall.moments:
            assert frame.time - wall.moments[-1].frame.time > 0.5
    annotator.end()
    times = [moment.frame.time for moment in wall.moments]
    assert {moment.frame.camera for moment in wall.moments} == {"dock"}
    assert len(times) == len(asked) == 15
    assert times == sorted(times)
    first = wall.moments[0]
    assert [one.camera for one in first.alarms] == ["dock"]
    assert len(first.seen) == 0
    assert not np.array_equal(first.image()[35:44, 60:90], first.frame.image_HW3[35:44, 60:90])
    assert first.image() is first.image()


def test_films_of_two_cameras_with_gaps_and_changing_sizes(tmp_path):
    for _ in range(2):  # the second run leaves the first one's films alone
        films = Films(tmp_path / "deep" / "out.mp4", each=True, wait=True)
        annotator = Annotator(lambda: RULES, list, [films])
        for i in range(24):
            for camera, size in (("dock", (161, 97)), ("yard", (160, 96) if i < 12 else (320, 192))):
                frame = noise(camera, i, 100 + i / 8 + (30 if i >= 12 else 0) - (50 if i == 23 else 0), size)
                annotator.see(seen(frame, (60, 30, 90, 80)), frame)
        annotator.end()
        films.close()
        assert films.counts == {"written": 48}
    names = sorted(path.name for path in (tmp_path / "deep").iterdir())
    assert names == ["out-dock-2.mp4", "out-dock.mp4", "out-yard-2.mp4", "out-yard.mp4"]
    with av.open(str(tmp_path / "deep" / "out-dock.mp4")) as film:
        assert film.streams.video[0].codec.name == "h264"
        frames = list(film.decode(video=0))
    assert (len(frames), frames[0].width, frames[0].height) == (24, 160, 96)
    assert 32 < float(frames[22].time) < 34


def test_a_film_can_be_read_while_it_grows(tmp_path):
    film = Film(tmp_path / "live.mp4", (160, 96), grows=True)
    for i in range(120):
        film.write(noise(index=i).image_HW3, i / 10)
    with av.open(str(tmp_path / "live.mp4")) as growing:  # as a kill would leave it
        assert sum(1 for _ in growing.decode(video=0)) >= 40
    film.close()


def test_a_disk_that_takes_nothing_ends_the_film_and_nothing_else(tmp_path, caplog):
    films = Films(tmp_path / "out.mp4", wait=True)
    (tmp_path / "out.mp4").symlink_to("/nonexistent/out.mp4")
    annotator = Annotator(lambda: RULES, list, [films])
    for i in range(40):
        frame = noise(index=i, at=100 + i / 5)
        annotator.see(seen(frame), frame)
    films.close()
    assert films.counts["written"] < 40  # the encoder holds the first ones back
    assert films.counts["failed"] == 1
    assert not films.wants("dock")
    assert "the film of camera dock ends" in caplog.text
    with pytest.raises(VideoError, match=r"ends in \.mp4"):
        Films(tmp_path / "out.avi")


@pytest.fixture
def preview():
    one = Preview(port=0)
    yield one
    one.close()


def connect(one: Preview, path: str, host: str | None = None) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", int(one.url.split(":")[2].split("/")[0]), timeout=30)
    connection.request("GET", path, headers={"Host": host} if host else {})
    response = connection.getresponse()
    response.connection = connection  # type: ignore[attr-defined]  # kept open as long as the answer
    return response


def until(said, seconds=30.0) -> bool:
    end = time.monotonic() + seconds
    while not said() and time.monotonic() < end:
        time.sleep(0.002)
    return said()


def test_a_preview_draws_only_for_viewers_and_once_for_all(preview):
    annotator = Annotator(lambda: RULES, list, [preview], fps=100)
    count = iter(range(10**6))

    def step(frames=10):
        for _ in range(frames):
            i = next(count)
            frame = noise(index=i, at=100 + i / 10)
            annotator.see(seen(frame, (60, 30, 90, 80)), frame)

    step()
    assert preview.counts["packed"] == 0
    assert b'src="/dock.mjpg"' in connect(preview, "/").read()
    viewers = [connect(preview, "/dock.mjpg") for _ in range(2)]
    assert until(lambda: preview.counts["viewers"] == 2)
    step(7)
    for viewer in viewers:
        assert viewer.readline() == b"--stille\r\n"
        assert viewer.readline() == b"Content-Type: image/jpeg\r\n"
        length = int(viewer.readline().split()[1])
        viewer.readline()
        assert viewer.read(length)[:2] == b"\xff\xd8"
    assert 1 <= preview.counts["packed"] <= 2
    for viewer in viewers:
        viewer.close()
        viewer.connection.close()
    assert until(lambda: step(1) or not preview.wants("dock"))


def test_a_slow_viewer_holds_nobody(preview):
    annotator = Annotator(lambda: RULES, list, [preview], fps=1000)
    frame = noise(size=(640, 480))
    annotator.see(seen(frame), frame)
    slow = socket.create_connection(("127.0.0.1", preview._server.server_port))
    slow.sendall(b"GET /dock.mjpg HTTP/1.0\r\nHost: localhost\r\n\r\n")  # and never reads
    assert until(lambda: preview.wants("dock"))
    longest = 0.0
    for i in range(1, 60):
        before = time.monotonic()
        frame = Frame("dock", i, 100 + i / 5, 0.0, frame.image_HW3)
        annotator.see(seen(frame), frame)
        longest = max(longest, time.monotonic() - before)
    assert longest < 3  # it would be 10 s, until a viewer is held for dead
    packed = preview.counts["packed"]
    assert packed < 57
    slow.close()


def test_who_may_look(preview):
    preview.wants("dock")
    assert connect(preview, "/yard.jpg").status == 404
    assert connect(preview, "/", host="evil.example").status == 403
    assert connect(preview, "/../etc/passwd").status == 404
    many = [connect(preview, "/dock.mjpg") for _ in range(VIEWERS)]
    assert {one.status for one in many} == {200}
    assert connect(preview, "/dock.mjpg").status == 503
    with pytest.raises(VideoError, match="expected a key"):
        Preview("0.0.0.0", 0)
    with pytest.raises(VideoError, match="another port"):
        Preview(port=int(preview.url.split(":")[2].strip("/")))
    keyed = Preview("0.0.0.0", 0, key="let me in")
    try:
        assert keyed.url.endswith("?key=let%20me%20in")
        assert connect(keyed, "/?key=let%20me").status == 403
        keyed.wants("dock")
        page = connect(keyed, "/?key=let%20me%20in", host="dock.example")
        assert b"/dock.mjpg?key=let%20me%20in" in page.read()
    finally:
        keyed.close()
