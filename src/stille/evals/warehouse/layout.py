"""Where everything is in one warehouse: camera, zones, rack slots, what stands around.

Three plans (lane across with the rack behind it, lane along beside the rack, lane in front with the rack behind the
work places), each stretched, shifted and mirrored by the seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from stille.evals.warehouse.geometry import Camera, Point, Polygon, box_corners, rectangle

Size = tuple[int, int]

BAY_M, LEVEL_M, DEEP_M = 1.75, 1.75, 1.15


@dataclass(frozen=True)
class Slot:
    """A place in the rack.

    Attributes:
        low, high: corners of its space. dock: where a forklift stands before it, and its heading there.
        holds: whether a pallet belongs there.
    """

    name: str
    low: tuple[float, float, float]
    high: tuple[float, float, float]
    dock: Point
    heading: float
    holds: bool

    @property
    def middle(self) -> Point:
        return (self.low[0] + self.high[0]) / 2, (self.low[1] + self.high[1]) / 2

    def box(self, camera: Camera) -> tuple[float, float, float, float]:
        """Around what is in it, 0..1 of the picture, cut at the edge."""
        high = (*self.high[:2], self.low[2] + 1.35)
        pixel, _ = camera.project(box_corners(self.low, high))
        x0, y0 = np.clip(pixel.min(0) / np.array(camera.size), 0, 1)
        x1, y1 = np.clip(pixel.max(0) / np.array(camera.size), 0, 1)
        return float(x0), float(y0), float(x1), float(y1)


@dataclass(frozen=True)
class Layout:
    """
    Attributes:
        plan: 0, 1 or 2. camera: what sees it.
        room: x0, y0, x1, y1 of the walls.
        zones: rectangles on the floor: "work" (helmet and vest are needed), "lane" (of forklifts), "exit", "queue"
            (before the counter), "walk" (where nothing may stand), "hall" (all of what is watched after hours).
        ends: of the lane's middle, both out of the picture or nearly so.
        slots: of the rack. rack: low and high corner of it; rack_along: 0 if it runs along x, 1 along y.
        doors: where persons come in, out of the picture. meeting, lookout: places in no zone; lookout is beside the
            lane. counter: low and high corner.
        parking: of a forklift.
    """

    plan: int
    camera: Camera
    room: tuple[float, float, float, float]
    zones: dict[str, Polygon]
    ends: tuple[Point, Point]
    slots: tuple[Slot, ...]
    rack: tuple[tuple[float, float, float], tuple[float, float, float]]
    rack_along: int
    doors: tuple[Point, ...]
    meeting: Point
    lookout: Point
    counter: tuple[tuple[float, float, float], tuple[float, float, float]]
    parking: Point

    def meeting_near(self, rng: np.random.Generator) -> Point:
        """A place where people stand together."""
        return self.meeting[0] + float(rng.uniform(-0.7, 0.7)), self.meeting[1] + float(rng.uniform(-0.35, 0.35))

    def across(self, point: Point) -> Point:
        """Just beyond the lane from a place beside it."""
        (x0, y0), _, (x1, y1), _ = self.zones["lane"]
        if self.plan == 1:
            return (x0 - 0.6 if point[0] > (x0 + x1) / 2 else x1 + 0.6), point[1] + 0.4
        return point[0] + 0.4, (y1 + 0.6 if point[1] < (y0 + y1) / 2 else y0 - 0.6)


def layout(seed: int, size: Size) -> Layout:
    """The warehouse of a seed, seen in pictures of W, H."""
    rng = np.random.default_rng([seed, 1])
    plan = int(rng.integers(3))
    flip = -1.0 if rng.random() < 0.5 else 1.0
    bays = 4
    if plan == 0:
        zones = {
            "lane": (-12.0, 10.2, 12.0, 13.2), "work": (-5.2, 5.6, -0.4, 9.0), "queue": (1.6, 5.2, 4.6, 8.6),
            "exit": (5.0, 13.4, 7.4, 16.0), "walk": (-7.5, 8.2, 7.5, 9.4),
        }  # fmt: skip
        rack, along, ends = (-4.6, 15.6), 0, ((-13.0, 11.7), (13.0, 11.7))
        doors, meeting, lookout = ((-10.5, 8.8), (10.5, 8.8)), (5.6, 9.0), (0.6, 9.5)
        counter, parking = ((4.7, 5.4, 0.0), (5.4, 8.4, 1.05)), (-7.0, 14.8)
    elif plan == 1:
        zones = {
            "lane": (-2.0, 3.0, 1.2, 22.0), "work": (2.2, 10.0, 6.4, 14.0), "queue": (2.0, 5.6, 4.2, 8.8),
            "exit": (3.2, 14.8, 5.8, 17.4), "walk": (1.6, 8.85, 7.0, 9.95),
        }  # fmt: skip
        rack, along, ends = (-6.6, 7.6), 1, ((-0.4, 1.0), (-0.4, 23.0))
        doors, meeting, lookout = ((11.5, 9.4), (9.5, 14.6)), (6.6, 9.0), (1.7, 11.4)
        counter, parking = ((4.4, 5.4, 0.0), (5.1, 8.6, 1.05)), (-3.6, 16.6)
    else:
        zones = {
            "lane": (-11.0, 5.6, 11.0, 8.4), "work": (-7.0, 9.2, -3.4, 13.0), "queue": (3.4, 9.6, 6.0, 13.0),
            "exit": (5.8, 13.3, 8.4, 15.8), "walk": (-3.3, 9.0, 3.3, 11.0),
        }  # fmt: skip
        rack, along, ends = (-4.2, 14.6), 0, ((-12.0, 7.0), (12.0, 7.0))
        doors, meeting, lookout = ((-12.5, 10.2), (13.5, 11.0)), (-8.2, 11.2), (2.6, 8.9)
        counter, parking = ((6.2, 9.4, 0.0), (6.9, 12.8, 1.05)), (4.3, 14.9)

    def mirror(x: float) -> float:
        return flip * x

    def spot(point: Point) -> Point:
        return mirror(point[0]), point[1]

    def rect(x0: float, y0: float, x1: float, y1: float) -> Polygon:
        a, b = sorted((mirror(x0), mirror(x1)))
        return rectangle(a, y0, b, y1)

    slots = []
    for level in range(2):
        for bay in range(bays):
            z = level * LEVEL_M + (0.02 if level == 0 else 0.1)
            if along == 0:
                a, b = sorted((mirror(rack[0] + bay * BAY_M + 0.16), mirror(rack[0] + (bay + 1) * BAY_M - 0.16)))
                low, high = (a, rack[1], z), (b, rack[1] + DEEP_M, z + 1.5)
                dock, heading = ((a + b) / 2, rack[1] + DEEP_M / 2 - 1.55), 0.0
            else:
                a, b = sorted((mirror(rack[0]), mirror(rack[0] + DEEP_M)))
                y = rack[1] + bay * BAY_M
                low, high = (a, y + 0.16, z), (b, y + BAY_M - 0.16, z + 1.5)
                dock, heading = ((a + b) / 2 + flip * 1.55, y + BAY_M / 2), -flip * math.pi / 2
            slots.append(Slot(f"{'AB'[level]}{bay + 1}", low, high, dock, heading, bool(rng.random() < 0.75)))
    if all(slot.holds for slot in slots):
        slots[-1] = replace(slots[-1], holds=False)
    long = bays * BAY_M
    far = (rack[0] + long, rack[1] + DEEP_M) if along == 0 else (rack[0] + DEEP_M, rack[1] + long)
    ra, rb = sorted((mirror(rack[0]), mirror(far[0])))
    ca, cb = sorted((mirror(counter[0][0]), mirror(counter[1][0])))
    floor = {name: rect(*r) for name, r in zones.items()}
    floor["hall"] = rectangle(-9.0, 4.5, 9.0, 16.5)
    room = (-14.0, -0.3, 14.0, 18.6 if plan != 1 else 22.0)
    return Layout(
        plan, _camera(rng, size), room, floor, (spot(ends[0]), spot(ends[1])), tuple(slots),
        ((ra, rack[1], 0.0), (rb, far[1], 2 * LEVEL_M + 0.1)), along, tuple(spot(d) for d in doors), spot(meeting),
        spot(lookout), ((ca, *counter[0][1:]), (cb, *counter[1][1:])), spot(parking),
    )  # fmt: skip


def _camera(rng: np.random.Generator, size: Size) -> Camera:
    """High on the near wall, turned so that the middle of the hall is in the middle of the picture."""
    x, height = float(rng.uniform(-3.5, 3.5)), float(rng.uniform(4.2, 6.6))
    target = float(rng.uniform(-0.5, 0.5)), float(rng.uniform(9.2, 10.4))
    yaw = math.atan2(target[0] - x, target[1])
    pitch = math.atan2(height - 0.6, math.hypot(target[0] - x, target[1]))
    focal, bend = float(rng.uniform(0.50, 0.62)), float(rng.uniform(0.10, 0.34))
    return Camera((x, 0.1, height), yaw, pitch, float(rng.normal(0, 0.015)), focal, bend, size)
