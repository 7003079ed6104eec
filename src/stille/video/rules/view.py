"""What a rule looks at, and what it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from stille.video.rules.schema import Rules, Zone
from stille.video.rules.tracks import Track, Unsettled
from stille.video.types import Trouble
from stille.video.zones import Point, inside


@dataclass(frozen=True, slots=True)
class Finding:
    """That a rule's condition holds in this frame.

    Attributes:
        key: tells incidents of a rule in a zone apart: findings with the same key are of the same.
        confidence: 0 to 1.
        level: how bad; an update is sent when it changes.
        since: when it began, if that is not when it was first found.
    """

    key: str
    confidence: float
    reason: str
    identities: tuple[int, ...] = ()
    facts: Mapping[str, float | int | str | bool] = field(default_factory=dict)
    level: int = 0
    since: float | None = None


@dataclass(slots=True)
class View:
    """One camera at one moment, for one rule and one of its zones.

    Attributes:
        zone: None for a rule without zones: everywhere.
        tracks: those present; unsettled: objects of this frame that have no identity.
        slots: probability that something is in a slot.
        places: polygons in 0..1 by name of zone or slot.
        troubles: those of the camera that go on, or ended at this moment.
        ongoing: keys of the rule's open events here.
        memory: of the rule on this camera, kept between frames: JSON values.
    """

    rules: Rules
    camera: str
    time: float
    zone: Zone | None
    tracks: list[Track]
    unsettled: list[Unsettled]
    slots: Mapping[str, float]
    places: Mapping[str, tuple[Point, ...]]
    troubles: Mapping[str, Trouble]
    ongoing: frozenset[str]
    memory: dict[str, float]

    def here(self, *kinds: str, min_score: float) -> list[Track]:
        """Tracks of these kinds in the zone."""
        return [
            track
            for track in self.tracks
            if track.kind in kinds and track.score >= min_score and (self.zone is None or self.stay(track) is not None)
        ]

    def stay(self, track: Track) -> float | None:
        """For how many seconds it has been in the zone; None if it is not in it."""
        if self.zone is None:
            return self.time - track.first
        stay = track.stays.get(self.zone.name)
        return self.time - stay.since if stay and stay.inside else None

    def loose(self, *kinds: str, min_score: float) -> list[Unsettled]:
        """Objects without identity in the zone."""
        found = [one for one in self.unsettled if one.kind in kinds and one.score >= min_score]
        if self.zone is None:
            return found
        polygon = self.places[self.zone.name]
        return [one for one in found if inside(one.foot, polygon)]

    @property
    def where(self) -> str:
        return f"in {self.zone.name}" if self.zone else f"before camera {self.camera}"
