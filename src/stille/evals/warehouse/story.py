"""What happens in one hour of a warehouse: who comes, works, walks, meets, falls; what forklifts bring and take.

Everything is written before anything is painted, so that the truth does not depend on frame rate or picture.
Regulars fill the hour; each thing worth an alarm, and many a harmless thing that looks like one, is played by somebody
who comes for it. What counts as an incident is not decided here but measured on the tracks, in `incidents`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from stille.evals.warehouse.layout import Layout, Size, layout
from stille.evals.warehouse.tracks import Track
from stille.evals.warehouse.yard import CART, HOUR, PERSON, Yard


@dataclass(frozen=True)
class Story:
    """
    Attributes:
        seed: that it was told from. layout: where.
        tracks: all objects, by identity.
        begins: time of day of its first second, seconds since 1970 (UTC).
        closing: when the shift ends, seconds since it begins; beyond the hour if it does not end in it.
        decoys: things that stand around and are none of the objects: name, x, y, heading.
    """

    seed: int
    layout: Layout
    tracks: tuple[Track, ...]
    begins: float
    closing: float
    decoys: tuple[tuple[str, float, float, float], ...]


@lru_cache(8)
def story(seed: int, size: Size = (640, 352)) -> Story:
    """The hour of a seed; the size of the picture changes nothing in it but the camera's pixels."""
    return _Author(seed, layout(seed, size)).write()


class _Author(Yard):
    """Writes an hour: what persons do; what forklifts do is in `Yard`."""

    # The hour ---------------------------------------------------------------------------------------------------

    def write(self) -> Story:
        rng = self.rng
        closes = rng.random() < 0.5
        self.closing = self.seconds(2500, 2900) if closes else HOUR + 600
        # 2024-01-01 was a Monday; the shift ends at 22:00.
        day = 1704067200.0 + 86400 * int(rng.integers(5))
        begins = day + 22 * 3600 - self.closing if closes else day + 3600 * int(rng.integers(8, 18))
        self.regulars()
        self.forklift()
        scenes: list[Callable[[float], None]] = [
            self.bare_headed, self.unvested, self.helmet_in_hand, self.crosses_lane, self.at_the_edge, self.falls,
            self.crouches, self.long_queue, self.short_queue, self.blocked_by_cart, self.cart_passes, self.drops_box,
            self.takes_helmet_off, self.near_miss, self.stands_by_parked,
        ]  # fmt: skip
        time = 4.0
        while time < min(self.closing, HOUR) - 110:
            for number in rng.permutation(len(scenes)):
                if time < min(self.closing, HOUR) - 110:
                    scenes[number](time)
                    time += self.seconds(12, 40)
        if closes:
            time = self.closing + self.seconds(60, 150)
            while time < HOUR - 60:
                self.intruder(time)
                time += self.seconds(120, 300)
        for track in self.tracks:
            if track.kind == PERSON and track.time < HOUR and track.state["there"][-1][1]:
                track.gone()
        return Story(self.seed, self.place, tuple(self.tracks), begins, self.closing, self.decoys())

    def decoys(self) -> tuple[tuple[str, float, float, float], ...]:
        (_, y0, _), (cx, y1, _) = self.place.counter
        found = [("mannequin", cx + 0.5, (y0 + y1) / 2 + self.seconds(-0.8, 0.8), self.angle())]
        if self.rng.random() < 0.4:
            found = []
        for _ in range(int(self.rng.integers(2, 6))):
            (_, low), _, (x1, _), _ = self.place.zones["lane"]
            side = (self.seconds(-6, 6), low - 0.15) if self.place.plan != 1 else (x1 * 1.06, self.seconds(6, 15))
            found.append(("cone", *side, 0.0))
        found.append(("poster", self.seconds(-6, 6), 1.2, 0.0))
        if self.rng.random() < 0.6:
            found.append(("helmet", cx - 0.3, (y0 + y1) / 2 + self.seconds(-1, 1), 0.0))
        return tuple(found)

    # Everyday ---------------------------------------------------------------------------------------------------

    def regulars(self) -> None:
        end = min(self.closing - 60, HOUR)
        for _ in range(int(self.rng.integers(3, 6))):
            track = self.somebody(self.seconds(0, 3) if self.rng.random() < 0.7 else self.seconds(0, 400))
            if track.time < 3:
                track.key[0] = (0.0, *self.somewhere("work"), self.angle())
                track.state = {name: [(0.0, v) for _, v in changes] for name, changes in track.state.items()}
            while track.time < end - 90:
                choice = int(self.rng.integers(6))
                if choice <= 2:
                    self.work(track)
                elif choice == 3:
                    track.walk(self.place.meeting_near(self.rng), self.pace()).wait(self.seconds(8, 30), self.angle())
                elif choice == 4:
                    track.set("carrying", 1).walk(self.somewhere("walk", 0.4), self.pace()).wait(self.seconds(1, 4))
                    track.walk(self.somewhere("work"), self.pace()).set("carrying", 0)
                else:
                    door = self.place.doors[int(self.rng.integers(len(self.place.doors)))]
                    track.walk(door, self.pace()).wait(self.seconds(20, 120))
            track.until(end - self.seconds(0, 40))
            self.leave(track)

    def work(self, track: Track) -> None:
        for _ in range(int(self.rng.integers(2, 5))):
            track.walk(self.somewhere("work"), self.pace()).wait(self.seconds(4, 16), self.angle())
            if self.rng.random() < 0.25:
                track.set("crouch", 1).wait(self.seconds(3, 9)).set("crouch", 0)

    # People's scenes --------------------------------------------------------------------------------------------

    def bare_headed(self, time: float) -> None:
        track = self.somebody(time, helmet=False)
        self.work(track)
        self.leave(track)

    def unvested(self, time: float) -> None:
        track = self.somebody(time, vest=False, helmet=self.rng.random() < 0.8)
        self.work(track)
        self.leave(track)

    def helmet_in_hand(self, time: float) -> None:
        """Harmless: without a helmet, but in no zone that needs one."""
        track = self.somebody(time, helmet=False).set("helmet_in_hand", 1)
        track.walk(self.place.meeting_near(self.rng), self.pace()).wait(self.seconds(6, 15), self.angle())
        self.leave(track)

    def takes_helmet_off(self, time: float) -> None:
        track = self.somebody(time)
        self.work(track)
        track.set("helmet", 0).set("helmet_in_hand", 1).wait(self.seconds(5, 14))
        if self.rng.random() < 0.7:
            track.set("helmet", 1).set("helmet_in_hand", 0)
            self.work(track)
        self.leave(track)

    def crosses_lane(self, time: float) -> None:
        track = self.somebody(time)
        track.walk(self.place.lookout, self.pace()).wait(self.seconds(1, 5))
        beyond = self.place.across(self.place.lookout)
        track.walk(beyond, self.pace()).wait(self.seconds(3, 12), self.angle())
        track.walk(self.place.lookout, self.pace())
        self.leave(track)

    def at_the_edge(self, time: float) -> None:
        """Harmless: stands beside the lane."""
        track = self.somebody(time)
        track.walk(self.place.lookout, self.pace()).wait(self.seconds(8, 30), self.angle())
        self.leave(track)

    def falls(self, time: float) -> None:
        track = self.somebody(time).walk(self.somewhere("work", 0.9), self.pace())
        track.set("lying", 1).wait(self.seconds(7, 25)).set("lying", 0)
        track.set("crouch", 1).wait(2).set("crouch", 0)
        self.leave(track)

    def crouches(self, time: float) -> None:
        """Harmless: ties a shoe."""
        track = self.somebody(time).walk(self.somewhere("walk", 0.5), self.pace())
        track.set("crouch", 1).wait(self.seconds(5, 15)).set("crouch", 0)
        self.leave(track)

    def drops_box(self, time: float) -> None:
        """Harmless: a box lies on the floor for a while."""
        track = self.somebody(time).set("carrying", 1).walk(self.somewhere("work", 0.8), self.pace())
        track.set("carrying", 0).set("dropped", 1).wait(self.seconds(4, 10)).set("crouch", 1).wait(1.5)
        track.set("crouch", 0).set("dropped", 0).set("carrying", 1)
        self.leave(track)

    def queue(self, time: float, persons: int, together: float) -> None:
        (x0, y0), _, (x1, y1), _ = self.place.zones["queue"]
        for k in range(persons):
            track = self.somebody(time + k * self.seconds(1.0, 3.0))
            spot = ((x0 + x1) / 2 + self.seconds(-0.3, 0.3), y0 + 0.4 + (y1 - y0 - 0.8) * k / 5)
            track.walk(spot, self.pace()).until(time + 22 + together + 2.0 * k, math.pi)
            self.leave(track)

    def long_queue(self, time: float) -> None:
        self.queue(time, int(self.rng.integers(5, 7)), self.seconds(10, 30))

    def short_queue(self, time: float) -> None:
        self.queue(time, int(self.rng.integers(2, 4)), self.seconds(10, 30))

    def push(self, track: Track) -> Track:
        """A cart that goes before somebody from now on."""
        cart = self.new(CART)
        cart.begin(track.time, track.place).set("by", track.identity + 1).set("loaded", self.rng.random() < 0.6)
        track.set("pushing", 1)
        return cart

    def _let_go(self, track: Track, cart: Track, since: float) -> None:
        """Write the cart's way: 0.9 m ahead of who pushed it."""
        cart.key.clear()
        for t, x, y, heading in track.key:
            if t >= since:
                cart.key.append((t, x + 0.9 * math.sin(heading), y + 0.9 * math.cos(heading), heading))
        track.set("pushing", 0)

    def cart_passes(self, time: float) -> None:
        """Harmless: a cart is pushed through."""
        track = self.somebody(time)
        cart = self.push(track)
        track.walk(self.somewhere("walk", 0.4), self.pace())
        self.leave(track)
        self._let_go(track, cart, time)
        cart.gone()

    def blocked_by_cart(self, time: float) -> None:
        """A cart is left before the exit: for long, or harmlessly for a moment."""
        track = self.somebody(time)
        cart = self.push(track)
        x, y = self.somewhere("exit", 0.8)
        if self.place.plan == 0:
            track.walk((x * 0.99, self.place.lookout[1]), self.pace())
        track.walk((x, y - 0.6), self.pace())
        track.wait(0.5)
        self._let_go(track, cart, time)
        stays = self.seconds(35, 90) if self.rng.random() < 0.65 else self.seconds(4, 10)
        until = track.time + stays
        if stays > 30:
            track.walk((x - self.flip * 2.2, y - 1.2), self.pace()).until(until - 3, self.angle()).walk((x, y - 0.6))
        else:
            track.until(until)
        back = track.time
        cart.until(back)
        keys = len(track.key)
        if self.place.plan == 0:
            track.walk((x * 0.99, self.place.lookout[1]), self.pace())
        self.leave(track)
        for t, px, py, heading in track.key[keys:]:
            cart.key.append((t, px + 0.9 * math.sin(heading), py + 0.9 * math.cos(heading), heading))
        cart.gone()

    def near_miss(self, time: float) -> None:
        """Somebody steps close to a forklift's way as it comes."""
        coming = [p for p in self.passes if time + 14 < p[0] < time + 120]
        if not coming:
            return
        when, at, along = coming[int(self.rng.integers(len(coming)))]
        side = (-along[1], along[0])
        if (self.place.lookout[0] - at[0]) * side[0] + (self.place.lookout[1] - at[1]) * side[1] < 0:
            side = (-side[0], -side[1])
        near, far = ((at[0] + d * side[0], at[1] + d * side[1]) for d in (self.seconds(0.7, 0.95), 2.6))
        track = self.somebody(when - 14).walk(far, 1.6)
        track.until(when - 1.4).walk(near, 1.4).wait(1.2).walk(far, 1.8)
        self.leave(track)

    def stands_by_parked(self, time: float) -> None:
        """Harmless: a person beside a forklift that stands."""
        x, y = self.place.parking
        if self.place.plan != 2:
            return  # only there no lane lies between
        track = self.somebody(time).walk((x + 1.3, y + 0.3), self.pace()).wait(self.seconds(6, 20), self.angle())
        self.leave(track)

    def intruder(self, time: float) -> None:
        track = self.somebody(time, helmet=self.rng.random() < 0.3, vest=self.rng.random() < 0.3)
        for _ in range(int(self.rng.integers(1, 4))):
            track.walk(self.somewhere("work" if self.rng.random() < 0.6 else "walk"), self.pace())
            track.wait(self.seconds(2, 12), self.angle())
        self.leave(track)
