"""Frozen, covered, blurred and moved cameras are found in synthesised pictures, and nothing else is taken for that."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from stille.video.alarms import Alarms
from stille.video.gate import MotionGate
from stille.video.health import Health
from stille.video.types import Frame, Trouble

W, H, FPS = 640, 360, 4

Paint = Callable[[int, np.ndarray, np.random.Generator], np.ndarray]


def hall(seed: int, width: int = W + 200, height: int = H + 200) -> np.ndarray:
    """A picture with shelves, boxes and fine detail, larger than a frame."""
    rng = np.random.default_rng(seed)
    picture = np.full((height, width), 90.0, np.float32)
    for _ in range(120):
        x, y = int(rng.integers(0, width - 20)), int(rng.integers(0, height - 20))
        w, h = (int(n) for n in rng.integers(8, 140, 2))
        picture[y : y + h, x : x + w] = rng.integers(20, 220)
        if rng.random() < 0.4:
            picture[y : y + h : 4, x : x + w] += 25
    return picture


HALL = hall(1)
VIEW = HALL[100 : 100 + H, 100 : 100 + W].copy()


def frames(paint: Paint, seconds: float, first: int = 0, noise: float = 2.0, seed: int = 0) -> Iterator[Frame]:
    rng = np.random.default_rng(seed + first)
    bank = [rng.normal(0, noise, (H + 64, W + 64)).astype(np.float32) for _ in range(2)]
    for i in range(first, first + int(seconds * FPS)):
        dy, dx = rng.integers(0, 64, 2)
        grain = bank[i % 2][dy : dy + H, dx : dx + W]
        grey = np.clip(paint(i, VIEW, rng) + grain, 0, 255, dtype=np.float32, casting="unsafe").astype(np.uint8)
        yield Frame("dock", i, 1000 + i / FPS, 0.0, np.broadcast_to(grey[:, :, None], (H, W, 3)))


def plain(i: int, view: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return view


def night(i: int, view: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Dark: two dim lamps, and almost nothing else but noise."""
    dark = 8 + 0.05 * view
    dark[40:90, 100:200] += 30
    dark[200:260, 450:520] += 20
    return dark


def rain(i: int, view: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    wet = view.copy()
    for x, y in zip(rng.integers(0, W - 2, 250), rng.integers(0, H - 30, 250), strict=True):
        wet[y : y + 25, x] = 0.5 * wet[y : y + 25, x] + 110
    return wet


def person(i: int, view: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Somebody comes right before the camera at second 10, stays for 12 s and sways."""
    if not 10 * FPS <= i < 22 * FPS:
        return view
    sway = int(30 * np.sin(i / 3))
    body = 80 + 0.3 * HALL[::-1][60 : 60 + H, 100 + sway : 100 + sway + W]
    body[:, : W // 12] = view[:, : W // 12]
    return body


def dusk(i: int, view: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return view * max(0.25, 1 - i / (40 * FPS))


def blink(i: int, view: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return view * (1.0 if i // (8 * FPS) % 2 == 0 else 0.5)


@pytest.mark.parametrize(
    ("paint", "noise"),
    [(plain, 1.0), (night, 6.0), (night, 1.0), (rain, 2.0), (person, 2.0), (dusk, 2.0), (blink, 2.0)],
)
def test_a_healthy_camera_raises_nothing(paint: Paint, noise: float) -> None:
    health = Health("dock")
    assert [t for frame in frames(paint, 45, noise=noise) for t in health.look(frame)] == []


def blur(grey: np.ndarray, radius: int) -> np.ndarray:
    for axis in (0, 1, 0, 1):
        total = np.cumsum(np.concatenate([grey[:1] if axis == 0 else grey[:, :1], grey], axis), axis)
        size = grey.shape[axis]
        high = np.minimum(np.arange(size) + radius, size)
        low = np.maximum(np.arange(size) - radius, 0)
        width = (high - low)[:, None] if axis == 0 else high - low
        grey = (np.take(total, high, axis) - np.take(total, low, axis)) / width
    return grey


BLURRED = blur(VIEW, 6)
OTHER = hall(7)[:H, :W]


@pytest.mark.parametrize(
    ("kind", "broken", "noise"),
    [
        ("frozen", lambda i, view, rng: view, 0.0),
        ("black", lambda i, view, rng: np.full_like(view, 5), 2.0),
        ("black", lambda i, view, rng: np.full_like(view, 170), 4.0),
        ("blurred", lambda i, view, rng: BLURRED, 1.5),
        ("moved", lambda i, view, rng: HALL[115 : 115 + H, 60 : 60 + W], 2.0),
        ("moved", lambda i, view, rng: OTHER, 2.0),
    ],
    ids=["frozen", "covered", "fogged", "blurred", "shifted", "turned"],
)
def test_a_trouble_begins_once_and_ends_once(kind: str, broken: Paint, noise: float) -> None:
    health = Health("dock")
    found = [t for frame in frames(plain, 20) for t in health.look(frame)]
    found += [t for frame in frames(broken, 50, 20 * FPS, noise) for t in health.look(frame)]
    found += [t for frame in frames(plain, 10, 70 * FPS) for t in health.look(frame)]
    assert [(t.kind, t.over) for t in found] == [(kind, False), (kind, True)]
    began, ended = found
    assert 1020 <= began.since <= 1023 + 33 * (kind == "moved")  # "turned" counts from when it is sure
    assert began.time < 1070 <= ended.time < 1080
    assert ended.since == began.since
    assert began.detail


def test_a_view_that_stays_becomes_the_reference() -> None:
    from stille.video.health import HealthLimits

    health = Health("dock", HealthLimits(adopt_s=20))
    found = [t for frame in frames(plain, 10) for t in health.look(frame)]
    moved: Paint = lambda i, view, rng: HALL[115 : 115 + H, 60 : 60 + W]  # noqa: E731
    found += [t for frame in frames(moved, 60, 10 * FPS) for t in health.look(frame)]
    assert [(t.kind, t.over) for t in found] == [("moved", False), ("moved", True)]


def test_a_signal_that_flickers_is_one_trouble_and_a_short_one_is_none() -> None:
    alarms = Alarms("dock", {"black": (3.0, 2.0)})
    signal = [*"..##...", *"####.##.#", *"....", *"#...."]
    found: list[Trouble] = []
    for time, sign in enumerate(signal):
        if (trouble := alarms.update("black", sign == "#", float(time), "dark")) is not None:
            found.append(trouble)
    assert [(t.since, t.time, t.over) for t in found] == [(7, 10, False), (7, 18, True)]


def test_the_gate_skips_what_rests_and_lets_motion_through() -> None:
    gate = MotionGate(longest_skip_s=2.0, hold_s=1.0)
    calm = [gate.passes(frame) for frame in frames(plain, 60, noise=3.0)]
    assert np.mean(calm[-30 * FPS :]) < 0.2  # one of nine: never longer than 2 s
    assert gate.counters.longest_skip_s < 2.0 + 1.5 / FPS
    assert gate.counters.skipped == calm.count(False)

    def walk(i: int, view: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        picture = view.copy()
        x = (8 * i) % (W - 20)
        picture[150:200, x : x + 16] = 240 - picture[150:200, x : x + 16]
        return picture

    walking = [gate.passes(frame) for frame in frames(walk, 15, 60 * FPS, noise=3.0)]
    assert np.mean(walking) > 0.97
    flash = [gate.passes(frame) for frame in frames(lambda i, view, rng: 0.8 * view + 40, 1, 75 * FPS, 3.0)]
    assert any(flash)


def test_the_gate_never_skips_longer_than_it_may_on_night_noise() -> None:
    gate = MotionGate(longest_skip_s=1.0)
    passed = [frame.time for frame in frames(night, 40, noise=6.0) if gate.passes(frame)]
    assert max(np.diff(passed)) <= 1.0 + 1e-6
    assert gate.counters.skipped > 80
