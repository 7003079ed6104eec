"""Rules about moving forklifts: speed, near misses; and about lines that are crossed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

from pydantic import Field, FiniteFloat

from stille.video.rules.schema import Kind, Name, Rule, register
from stille.video.rules.tracks import Track, rides
from stille.video.rules.view import Finding, View
from stille.video.zones import closest_approach


@register("speeding")
class Speeding(Rule):
    """Faster than the limit, by the floor points of the camera."""

    type: Literal["speeding"]
    needs = ("floor",)
    kinds: tuple[Kind, ...] = Field(default=("forklift",), min_length=1)
    limit: FiniteFloat = Field(gt=0)
    """m/s"""
    slack: FiniteFloat = Field(default=0.1, ge=0, lt=1)
    """An open event is quiet once the speed is this share below the limit."""

    def find(self, view: View) -> Iterator[Finding]:
        for track in view.here(*self.kinds, min_score=self.min_score):
            key = str(track.identity)
            limit = self.limit * (1 - self.slack) if key in view.ongoing else self.limit
            if track.seen and track.speed is not None and track.speed > limit:
                reason = f"a {track.kind} at {track.speed:.1f} m/s {view.where}, {self.limit:g} are allowed"
                facts = {"speed": round(track.speed, 2), "limit": self.limit}
                yield Finding(key, track.score, reason, (track.identity,), facts, int(track.speed / 0.5))


@register("near_miss")
class NearMiss(Rule):
    """A forklift that moves and a person will be, or are, closer than `distance` if both go on as they do.

    The driver does not count.
    """

    type: Literal["near_miss"]
    needs = ("floor",)
    distance: FiniteFloat = Field(default=1.5, gt=0)
    """metres"""
    horizon: FiniteFloat = Field(default=1.5, ge=0)
    """Seconds that are looked ahead."""
    moving: FiniteFloat = Field(default=0.5, gt=0)
    """A forklift slower than this, in m/s, stands."""

    def find(self, view: View) -> Iterator[Finding]:
        persons = view.here("person", min_score=self.min_score)
        for forklift in view.here("forklift", min_score=self.min_score):
            if not forklift.seen or forklift.place is None or (forklift.speed or 0.0) < self.moving:
                continue
            for person in persons:
                if person.seen and person.place is not None and not rides(person, forklift):
                    found = self._between(view, forklift, person)
                    if found:
                        yield found

    def _between(self, view: View, forklift: Track, person: Track) -> Finding | None:
        assert forklift.place is not None
        assert person.place is not None
        assert forklift.velocity is not None
        velocity = person.velocity or (0.0, 0.0)
        when, apart = closest_approach(forklift.place, forklift.velocity, person.place, velocity, self.horizon)
        if apart >= self.distance:
            return None
        now = math.dist(forklift.place, person.place)
        reason = (
            f"a forklift at {forklift.speed:.1f} m/s and a person {now:.1f} m apart {view.where}: "
            f"{apart:.1f} m in {when:.1f} s if both go on"
        )
        facts = {"distance": round(now, 2), "closest": round(apart, 2), "seconds": round(when, 2)}
        facts |= {"speed": round(forklift.speed or 0.0, 2)}
        level = int(4 * (1 - apart / self.distance))
        pair = (forklift.identity, person.identity)
        return Finding(f"{pair[0]}+{pair[1]}", min(forklift.score, person.score), reason, pair, facts, level)


@register("line_crossing")
class Crossing(Rule):
    """Counts who crosses a line: each crossing is an event, with the count since the engine began."""

    type: Literal["line_crossing"]
    momentary = True
    lines: tuple[Name, ...] = Field(min_length=1)
    kinds: tuple[Kind, ...] = Field(default=("person",), min_length=1)
    direction: Literal["left_to_right", "right_to_left", "both"] = "both"
    evidence: bool = False
    verify: bool = False

    def find(self, view: View) -> Iterator[Finding]:
        for track in view.here(*self.kinds, min_score=self.min_score):
            for line in self.lines:
                crossed = track.lines.get(line)
                if crossed is None or not crossed.now or not track.seen:
                    continue
                direction = "left_to_right" if crossed.side > 0 else "right_to_left"
                if self.direction not in ("both", direction):
                    continue
                name = f"{line} {direction}"
                count = view.memory[name] = view.memory.get(name, 0) + 1
                facts = {"line": line, "direction": direction, "count": int(count)}
                reason = f"a {track.kind} crossed {line} from {direction.replace('_', ' ')}, number {int(count)}"
                yield Finding(f"{name} {track.identity}", track.score, reason, (track.identity,), facts)
