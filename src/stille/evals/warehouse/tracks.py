"""How an object moves in an hour: key times with places between which it goes straight, and states that hold from a
time on. Seconds since the beginning of the hour; shapes: N times.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, field

import numpy as np

from stille.evals.warehouse.geometry import Point
from stille.evals.warehouse.meshes import Looks

STEP_M = 1.45
"""Of two steps of a person."""
ACCELERATION = 1.4
"""Of a forklift, m/s^2."""


@dataclass
class Track:
    """One object from when it comes until it has gone.

    Attributes:
        identity: its number. kind: its number in `stille.video.types.KINDS`.
        looks: of a person. seed: of other things' looks.
        key: times with x, y and heading. state: by name, times from which on a value holds.
    """

    identity: int
    kind: int
    seed: int
    looks: Looks | None = None
    key: list[tuple[float, float, float, float]] = field(default_factory=list)
    state: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    # Writing ----------------------------------------------------------------------------------------------------

    @property
    def time(self) -> float:
        """Until when it is written."""
        return self.key[-1][0]

    @property
    def place(self) -> Point:
        return self.key[-1][1:3]

    @property
    def heading(self) -> float:
        return self.key[-1][3]

    def begin(self, time: float, place: Point, heading: float = 0.0) -> Track:
        self.key.append((time, *place, heading))
        return self.set("there", 1)

    def set(self, name: str, value: float) -> Track:
        """From the last key time on; states that were never set are 0."""
        self.state.setdefault(name, []).append((self.time, float(value)))
        return self

    def wait(self, seconds: float, heading: float | None = None) -> Track:
        """Stand; turn first if a heading is given."""
        if heading is not None:
            self.turn(heading, min(0.6, seconds / 2))
            seconds = max(seconds - 0.6, seconds / 2)
        if seconds > 0:
            self.key.append((self.time + seconds, *self.place, self.heading))
        return self

    def until(self, time: float, heading: float | None = None) -> Track:
        """Wait until a time, if it has not passed."""
        return self.wait(time - self.time, heading) if time > self.time + 1e-6 else self

    def turn(self, heading: float, seconds: float) -> Track:
        """The shorter way round."""
        by = (heading - self.heading + math.pi) % (2 * math.pi) - math.pi
        self.key.append((self.time + seconds, *self.place, self.heading + by))
        return self

    def walk(self, place: Point, speed: float = 1.3) -> Track:
        """Straight to a place, facing it."""
        way = math.dist(self.place, place)
        if way > 0.05:
            self.turn(math.atan2(place[0] - self.place[0], place[1] - self.place[1]), 0.3)
            self.key.append((self.time + way / speed, *place, self.heading))
        return self

    def drive(self, place: Point, speed: float, backwards: bool = False) -> Track:
        """To a place as a forklift does: turn on the spot, gain speed, go, brake."""
        way = math.dist(self.place, place)
        if way < 0.05:
            return self
        heading = math.atan2(place[0] - self.place[0], place[1] - self.place[1]) + (math.pi if backwards else 0.0)
        by = abs((heading - self.heading + math.pi) % (2 * math.pi) - math.pi)
        if by > 0.02:
            self.turn(heading, 0.2 + by / 1.3)
        start, (x, y), top = self.time, self.place, min(speed, math.sqrt(way * ACCELERATION))
        ramp = top / ACCELERATION
        total = way / top + ramp
        for t in [*np.arange(0.1, total, 0.1).tolist(), total]:
            if t < ramp:
                gone = ACCELERATION * t * t / 2
            elif t < total - ramp:
                gone = top * (t - ramp / 2)
            else:
                gone = way - ACCELERATION * (total - t) ** 2 / 2
            share = gone / way
            self.key.append((start + t, x + share * (place[0] - x), y + share * (place[1] - y), self.heading))
        return self

    def gone(self) -> Track:
        return self.set("there", 0)

    # Reading ----------------------------------------------------------------------------------------------------

    def at(self, time_N: np.ndarray) -> np.ndarray:
        """x, y, heading and way gone so far. [N, 4]"""
        if not hasattr(self, "_array") or len(self._array) != len(self.key):
            self._array = np.array(self.key)
            step = np.hypot(np.diff(self._array[:, 1]), np.diff(self._array[:, 2]))
            self._way = np.concatenate([[0.0], np.cumsum(step)])
        array = self._array
        return np.stack(
            [np.interp(time_N, array[:, 0], column) for column in (*array[:, 1:].T, self._way)],
            -1,
        )

    def get(self, name: str, time_N: np.ndarray) -> np.ndarray:
        """A state at given times; 0 before it was set, and after the track's end."""
        changes = self.state.get(name)
        if not changes:
            return np.zeros(len(time_N))
        begun, value = np.array(changes).T
        found = np.searchsorted(begun, time_N, side="right") - 1
        return np.where(found >= 0, value[np.maximum(found, 0)], 0.0)

    def now(self, name: str, second: float) -> float:
        """The same at one time."""
        value = 0.0
        for begun, then in self.state.get(name, ()):
            if begun > second:
                break
            value = then
        return value

    def spot(self, second: float) -> tuple[float, float, float, float]:
        """x, y, heading and way gone at one time."""
        if len(getattr(self, "_times", ())) != len(self.key):
            self._times = [k[0] for k in self.key]
            self.at(np.zeros(1))
        i = bisect_right(self._times, second)
        if i in (0, len(self.key)):
            j = min(i, len(self.key) - 1)
            return *self.key[j][1:], float(self._way[j])
        (t, *a), (u, *b) = self.key[i - 1], self.key[i]
        share = (second - t) / (u - t)
        x, y, heading = (p + share * (q - p) for p, q in zip(a, b, strict=True))
        return x, y, heading, float(self._way[i - 1] + share * (self._way[i] - self._way[i - 1]))

    def velocity(self, time_N: np.ndarray) -> np.ndarray:
        """m/s, over the 0.3 s around each time. [N, 2]"""
        return (self.at(time_N + 0.15)[:, :2] - self.at(time_N - 0.15)[:, :2]) / 0.3
