"""Stories about memory: persons who leave the picture for 60 to 90 seconds and come back, while others stay."""

from __future__ import annotations

from dataclasses import dataclass

from stille.evals.warehouse.layout import Size, layout
from stille.evals.warehouse.story import Story
from stille.evals.warehouse.tracks import Track
from stille.evals.warehouse.yard import Yard

SECONDS = 170.0
STAYING, LEAVING = 9, 3
GAP_S = (60.0, 90.0)


@dataclass(frozen=True, slots=True)
class Gap:
    """Who is out of the picture: the last moment before it and the first one after it, by way of the door."""

    identity: int
    left: float
    back: float


def gaps(seed: int, size: Size = (640, 352)) -> tuple[Story, tuple[Gap, ...]]:
    """The story of a seed, `SECONDS` long: `STAYING` persons work, `LEAVING` others are away once, one after the
    other."""
    place = layout(seed, size)
    yard = Yard(seed + (1 << 32), place)
    rng, found = yard.rng, []
    for _ in range(STAYING):
        track = _somebody(yard)
        while track.time < SECONDS:
            _stroll(yard, track)
    for k in range(LEAVING):
        track = _somebody(yard)
        while track.time < 14 + 8 * k:
            _stroll(yard, track)
        door = place.doors[int(rng.integers(len(place.doors)))]
        track.walk(door, yard.pace())
        left, away = track.time, yard.seconds(*GAP_S)
        track.set("there", 0)
        track.until(left + away).set("there", 1)
        found.append(Gap(track.identity, left, track.time))
        while track.time < SECONDS:
            _stroll(yard, track)
    begins = 1704067200.0 + 36000
    return Story(seed, place, tuple(yard.tracks), begins, SECONDS + 600, ()), tuple(found)


def _somebody(yard: Yard) -> Track:
    """Who is there from the beginning, dressed at random."""
    track = yard.somebody(0.0, helmet=yard.rng.random() < 0.75, vest=yard.rng.random() < 0.75)
    track.key[0] = (0.0, *_spot(yard), yard.angle())
    return track


def _stroll(yard: Yard, track: Track) -> None:
    track.walk(_spot(yard), yard.pace()).wait(yard.seconds(2, 10), yard.angle())


def _spot(yard: Yard) -> tuple[float, float]:
    kind = int(yard.rng.integers(4))
    return yard.place.meeting_near(yard.rng) if kind == 3 else yard.somewhere(("work", "walk", "queue")[kind], 0.4)
