"""What forklifts do in the hour, and the cast that all scenes draw on."""

from __future__ import annotations

import math
from bisect import bisect_right

import numpy as np

from stille.evals.warehouse.geometry import Point
from stille.evals.warehouse.layout import Layout, Slot
from stille.evals.warehouse.meshes import looks
from stille.evals.warehouse.tracks import Track

HOUR = 3600.0
PERSON, FORKLIFT, PALLET, CART = range(4)
SPEED_LIMIT = 2.6


class Yard:
    """One warehouse in one hour: all tracks so far, and where on the lane forklifts pass at what time.

    Attributes:
        passes: time, place and direction of each pass.
        closing: seconds after which the shift is over.
    """

    def __init__(self, seed: int, place: Layout) -> None:
        self.seed, self.place = seed, place
        self.rng = np.random.default_rng([seed, 2])
        self.tracks: list[Track] = []
        self.flip = 1.0 if place.doors[0][0] * (1 if place.plan == 1 else -1) > 0 else -1.0
        self.passes: list[tuple[float, Point, Point]] = []
        self.closing = HOUR

    # Casting ----------------------------------------------------------------------------------------------------

    def new(self, kind: int) -> Track:
        seed = int(self.rng.integers(2**31))
        track = Track(len(self.tracks), kind, seed, looks(np.random.default_rng(seed)) if kind == PERSON else None)
        self.tracks.append(track)
        return track

    def somebody(self, time: float, helmet: bool = True, vest: bool = True) -> Track:
        """Comes in by a door at a time."""
        door = self.place.doors[int(self.rng.integers(len(self.place.doors)))]
        track = self.new(PERSON).begin(max(time, 0.0), door)
        return track.set("helmet", helmet).set("vest", vest)

    def leave(self, track: Track) -> None:
        door = min(self.place.doors, key=lambda d: math.dist(d, track.place))
        track.walk(door, self.pace()).gone()

    def pace(self) -> float:
        return float(self.rng.uniform(1.0, 1.6))

    def somewhere(self, zone: str, margin: float = 0.5) -> Point:
        (x0, y0), _, (x1, y1), _ = self.place.zones[zone]
        mx, my = min(margin, 0.4 * (x1 - x0)), min(margin, 0.4 * (y1 - y0))
        return float(self.rng.uniform(x0 + mx, x1 - mx)), float(self.rng.uniform(y0 + my, y1 - my))

    def seconds(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def angle(self) -> float:
        return self.seconds(-math.pi, math.pi)

    # Forklifts --------------------------------------------------------------------------------------------------

    def forklift(self) -> None:
        """One that works through the hour, and one that stands parked."""
        rng, place = self.rng, self.place
        stock: dict[str, Track | None] = {}
        for slot in place.slots:
            stock[slot.name] = None
            if slot.holds:
                stock[slot.name] = self._put(self.new(PALLET).begin(0.0, slot.middle, slot.heading), slot)
        parked = self.new(FORKLIFT).begin(0.0, place.parking, self.angle())
        parked.wait(HOUR)
        truck = self.new(FORKLIFT).begin(0.0, place.ends[0], 0.0)
        driver = self.new(PERSON).begin(0.0, place.ends[0]).set("helmet", 1).set("vest", 1)
        driver.set("driver", truck.identity + 1)
        truck.set("driven", 1)
        end, side = min(self.closing - 40, HOUR), 0
        while truck.time < end - 60:
            choice = int(rng.integers(8))
            if choice == 0:  # through, too fast
                side = self._through(truck, side, self.seconds(3.3, 4.2))
            elif choice == 1:
                side = self._through(truck, side, self.seconds(1.4, 2.1))
            elif choice == 2:
                self._leave_pallet(truck, side, "walk", self.seconds(30, 80) if rng.random() < 0.7 else 6.0)
            elif choice == 3:
                self._leave_pallet(truck, side, "exit", self.seconds(30, 80) if rng.random() < 0.7 else 6.0)
            else:
                slot = place.slots[int(rng.integers(len(place.slots)))]
                held = stock[slot.name]
                if held is None:
                    stock[slot.name] = self._bring(truck, side, slot)
                else:
                    self._take(truck, side, slot, held)
                    stock[slot.name] = None
                if slot.holds == (stock[slot.name] is None) and rng.random() < 0.75:  # set right again
                    truck.wait(self.seconds(0, 6) if rng.random() < 0.4 else self.seconds(15, 60))
                    held = stock[slot.name]
                    if held is None:
                        stock[slot.name] = self._bring(truck, side, slot)
                    else:
                        self._take(truck, side, slot, held)
                        stock[slot.name] = None
            truck.wait(self.seconds(2, 15))
        driver.key = [(t, x - 0.3 * math.sin(h), y - 0.3 * math.cos(h), h) for t, x, y, h in truck.key]
        truck.gone()
        driver.gone()
        for track in self.tracks:
            if track.kind == PALLET:
                track.until(HOUR)

    def _put(self, pallet: Track, slot: Slot) -> Track:
        pallet.set("z", slot.low[2]).set("slot", 1 + self.place.slots.index(slot))
        return pallet

    def _through(self, truck: Track, side: int, speed: float) -> int:
        start, a, b = truck.time, truck.place, self.place.ends[1 - side]
        truck.drive(b, speed)
        along = ((b[0] - a[0]) / math.dist(a, b), (b[1] - a[1]) / math.dist(a, b))
        for share in (0.4, 0.5, 0.6):
            at = (a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1]))
            times = np.arange(start, truck.time, 0.05)
            when = float(times[np.argmin(np.hypot(*(truck.at(times)[:, :2] - np.array(at)).T))])
            if self.place.camera.sees(at, 0.0, 0.05):
                self.passes.append((when, at, along))
        return 1 - side

    def _to_dock(self, truck: Track, dock: Point, heading: float) -> Point:
        """Along the lane until before the dock, then towards it; gives the point where it left the lane."""
        end = self.place.ends[0]
        turn = (dock[0], end[1]) if self.place.plan != 1 else (end[0], dock[1])
        truck.drive(turn, self.seconds(1.5, 2.1))
        truck.turn(heading, 1.4)
        return turn

    def _carry(self, truck: Track, pallet: Track, since: float) -> None:
        """Write the way of a pallet on the fork from a time on."""
        for t, x, y, h in truck.key[bisect_right(truck.key, since, key=lambda k: k[0]) :]:
            pallet.key.append((t, x + 1.55 * math.sin(h), y + 1.55 * math.cos(h), h))

    def _bring(self, truck: Track, side: int, slot: Slot) -> Track:
        since = truck.time
        pallet = self.new(PALLET)
        x, y = truck.place
        h = truck.heading
        pallet.begin(since, (x + 1.55 * math.sin(h), y + 1.55 * math.cos(h)), h).set("z", 0.2).set("on", 1)
        truck.set("loaded", 1).set("lift", 0.15)
        turn = self._to_dock(truck, slot.dock, slot.heading)
        self._carry(truck, pallet, since)
        lifted = truck.time
        truck.set("lift", slot.low[2] + 0.02).wait(1.5)
        pallet.set("z", slot.low[2] + 0.1)
        truck.drive(slot.dock, 0.7).wait(1.2)
        self._carry(truck, pallet, lifted)
        truck.set("loaded", 0).set("lift", slot.low[2])
        self._put(pallet, slot).set("on", 0)
        truck.drive(turn, 0.9, backwards=True).set("lift", 0.1)
        truck.drive(self.place.ends[side], self.seconds(1.5, 2.1))
        return pallet

    def _take(self, truck: Track, side: int, slot: Slot, pallet: Track) -> None:
        turn = self._to_dock(truck, slot.dock, slot.heading)
        truck.set("lift", slot.low[2]).wait(1.5).drive(slot.dock, 0.7).wait(1.2)
        self._haul(truck, pallet, turn, side)

    def _haul(self, truck: Track, pallet: Track, turn: Point, side: int) -> None:
        """Back out with a pallet and out of the picture."""
        since = truck.time
        pallet.until(since).turn(truck.heading, 0.01).set("on", 1).set("slot", 0)
        truck.set("loaded", 1)
        truck.drive(turn, 0.9, backwards=True).set("lift", 0.15)
        self._carry(truck, pallet, since + 0.02)
        pallet.set("z", 0.2)
        driven = truck.time
        truck.drive(self.place.ends[side], self.seconds(1.5, 2.1))
        self._carry(truck, pallet, driven)
        pallet.gone()
        truck.set("loaded", 0)

    def _leave_pallet(self, truck: Track, side: int, zone: str, stays: float) -> None:
        """Set one down where it must not stand, drive off, and fetch it again."""
        target = self.somewhere(zone, 0.8 if zone == "exit" else 0.55)
        end = self.place.ends[0]
        turn = (target[0], end[1]) if self.place.plan != 1 else (end[0], target[1])
        gap = math.dist(turn, target)
        heading = math.atan2(target[0] - turn[0], target[1] - turn[1])
        share = max(gap - 1.55, 0.05) / gap
        dock = (turn[0] + share * (target[0] - turn[0]), turn[1] + share * (target[1] - turn[1]))
        since = truck.time
        pallet = self.new(PALLET)
        pallet.begin(since, truck.place, truck.heading).set("z", 0.2).set("on", 1)
        truck.set("loaded", 1).set("lift", 0.15)
        turn = self._to_dock(truck, dock, heading)
        truck.drive(dock, 0.8).wait(0.8)
        self._carry(truck, pallet, since)
        truck.set("loaded", 0).set("lift", 0.0)
        pallet.set("z", 0.0).set("on", 0)
        truck.drive(turn, 0.9, backwards=True).drive(self.place.ends[side], 1.8).wait(stays)
        turn = self._to_dock(truck, dock, heading)
        truck.drive(dock, 0.8).wait(0.8)
        self._haul(truck, pallet, turn, side)
