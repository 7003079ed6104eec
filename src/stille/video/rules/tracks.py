"""What is known of each identity on a camera: where it stands, for how long, how fast it goes, which zones it is in.

One bad box must not matter: places are medians over a short window, and who enters or leaves a zone, or passes to the
other side of a line, has done so after some frames in a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from stille.video.types import KINDS, NOBODY, Seen
from stille.video.zones import Floor, Point, distance_to_line, inside

Polygons = dict[str, tuple[Point, ...]]
Segments = dict[str, tuple[Point, Point]]

WINDOW = 5
"""Frames that medians are over."""
INERTIA = 3
"""Frames in a row after which a zone, or the side of a line, has changed."""
COAST_S = 1.0
"""For so long somebody who is not seen counts as being where they were."""
FORGET_S = 60.0
"""After so long unseen nothing is left of an identity but its number."""
MOST = 1000
"""Identities of a camera that are known at the same time: those not seen for longest go."""
SPEED_S = 1.0
"""Time over which speed is measured."""
STILL = 0.25
"""Who stays within so many box heights stands still."""
BAND = 0.01
"""Nearer to a line than this share of the picture nobody is on either side."""
DEEP = {"person": 0.0, "forklift": 0.15, "pallet": 0.15, "cart": 0.15}
"""The lower edge of a box is where a thing is nearest to the camera. The middle of where it stands lies this share of
the box's height above it, seen from where cameras hang."""
TOGETHER = 3
"""Frames in which a person in a forklift's outline has to move as it does to be its driver from then on."""
EDGE = 0.985
"""A box that reaches to here is cut by the picture's lower edge: where it ends says nothing."""


@dataclass
class Stay:
    """In a zone or not. `since` is the time of the first frame in it; `votes`: frames in a row that say otherwise."""

    inside: bool = False
    votes: int = 0
    since: float = 0.0


@dataclass
class Crossed:
    """Side of a line (-1 left, 1 right, 0 unknown), the place where that was settled, and whether it just changed."""

    side: int = 0
    votes: int = 0
    at: tuple[float, float] = (0.0, 0.0)
    now: bool = False


@dataclass
class Aboard:
    """How a person has been to a forklift: frames with their feet in its outline, frames in a row outside of it, and
    frames in which both moved, and in the same way. Who came from outside is `walked`."""

    inside: int = 0
    outside: int = 0
    together: int = 0
    walked: bool = False


@dataclass
class Track:
    """
    Attributes:
        kinds: how often it was seen as each of `KINDS`; kind: as which most often.
        first, last: time at which it was seen.
        foot, height, width: median over the window, 0..1 of the picture; foot is the middle of the lower edge.
        box: the last, in 0..1.
        attributes: log-odds, median over the window.
        place, velocity: on the floor, metres and m/s, None where they are not known.
        still: since when it stands still.
        aboard: of a person, by the identity of a forklift.
    """

    identity: int
    kinds: list[int]
    first: float
    last: float
    seen: bool = True
    kind: str = ""
    foot: tuple[float, float] = (0.0, 0.0)
    height: float = 0.0
    width: float = 0.0
    score: float = 0.0
    box: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    attributes: list[float] = field(default_factory=list)
    place: tuple[float, float] | None = None
    velocity: tuple[float, float] | None = None
    still: float = 0.0
    anchor: tuple[float, float] = (0.0, 0.0)
    window: list[list[float]] = field(default_factory=list)
    path: list[tuple[float, float, float]] = field(default_factory=list)
    stays: dict[str, Stay] = field(default_factory=dict)
    lines: dict[str, Crossed] = field(default_factory=dict)
    aboard: dict[int, Aboard] = field(default_factory=dict)

    @property
    def speed(self) -> float | None:
        return None if self.velocity is None else math.hypot(*self.velocity)


@dataclass(frozen=True, slots=True)
class Unsettled:
    """An object without an identity: there in this frame, and nothing else is known."""

    kind: str
    score: float
    foot: Point
    box: tuple[float, float, float, float]


@dataclass
class Tracks:
    """All that are known on one camera, by identity in the order in which they came."""

    known: dict[int, Track] = field(default_factory=dict)

    def update(
        self,
        seen: Seen,
        zones: dict[str, tuple[Point, ...]],
        lines: dict[str, tuple[Point, Point]],
        floor: Floor | None,
    ) -> list[Unsettled]:
        """Take in one frame; those without identity are given back.

        Args:
            zones, lines: in 0..1 of the picture, by name.
        """
        time = seen.time
        scale = 1 / np.array([*seen.size, *seen.size], float)
        boxes = (np.asarray(seen.box_N4, float).reshape(-1, 4) * scale).tolist()
        scores, kinds = np.asarray(seen.score_N, float).tolist(), np.asarray(seen.kind_N).tolist()
        attributes = np.asarray(seen.attribute_NA, float).tolist()
        order = sorted(range(len(boxes)), key=lambda i: -scores[i])
        for track in self.known.values():
            track.seen = False
            for crossed in track.lines.values():
                crossed.now = False
        unsettled = []
        for i in order:
            identity, box = int(seen.identity_N[i]), boxes[i]
            if not all(map(math.isfinite, box)) or not 0 <= kinds[i] < len(KINDS):
                continue
            foot = ((box[0] + box[2]) / 2, box[3] - DEEP[KINDS[kinds[i]]] * (box[3] - box[1]))
            if identity == NOBODY:
                unsettled.append(Unsettled(KINDS[kinds[i]], scores[i], foot, tuple(box)))
                continue
            track = self.known.get(identity)
            if track is None:
                track = self.known[identity] = Track(identity, [0] * len(KINDS), time, time, still=time, seen=False)
            if track.seen:
                continue  # twice in one frame: the one with the higher score is it
            self._see(track, time, kinds[i], foot, box, scores[i], attributes[i], seen.size)
            _settle(track, time, zones, lines)
            if floor is not None:
                _walk(track, time, floor)
        _board(self.known.values())
        for identity in [i for i, track in self.known.items() if time - track.last > FORGET_S]:
            del self.known[identity]
        while len(self.known) > MOST:
            del self.known[min(self.known.values(), key=lambda track: track.last).identity]
        return unsettled

    @staticmethod
    def _see(
        track: Track, time: float, kind: int, foot: Point, box: list[float], score: float, attributes: list[float],
        size: tuple[int, int],
    ) -> None:  # fmt: skip
        if time - track.last > COAST_S:
            track.window.clear()
            track.path.clear()
            track.velocity = None
        track.seen, track.last = True, time
        track.kinds[kind] += 1
        track.kind = KINDS[track.kinds.index(max(track.kinds))]
        track.window.append([*foot, box[2] - box[0], box[3] - box[1], score, *attributes])
        del track.window[:-WINDOW]
        middle = len(track.window) // 2
        medians = [sorted(column)[middle] for column in zip(*track.window, strict=True)]
        x, y, track.width, track.height, track.score = medians[:5]
        track.foot, track.attributes, track.box = (x, y), medians[5:], (box[0], box[1], box[2], box[3])
        dx, dy = (x - track.anchor[0]) * size[0] / size[1], y - track.anchor[1]
        if math.hypot(dx, dy) > STILL * track.height:
            track.anchor, track.still = track.foot, time

    def present(self, time: float) -> list[Track]:
        """Those who are seen, or were a moment ago."""
        return [track for track in self.known.values() if time - track.last <= COAST_S]


def rides(person: Track, forklift: Track) -> bool:
    """Whether somebody is the driver: their feet are inside the forklift's outline, and they have moved as it does, or
    were never seen anywhere else. Who walked up to it and stands behind it is not."""
    known = person.aboard.get(forklift.identity)
    return known is not None and known.inside > 0 and (known.together >= TOGETHER or not known.walked)


def _board(tracks: Iterable[Track]) -> None:
    """Take in who is in whose outline in this frame."""
    tracks = list(tracks)
    names = {track.identity for track in tracks}
    forklifts = [track for track in tracks if track.kind == "forklift" and track.seen]
    for person in tracks:
        if person.kind != "person" or not person.seen:
            continue
        for forklift in forklifts:
            known = person.aboard.get(forklift.identity)
            walked = known is not None and known.walked and known.together < TOGETHER
            if not _within(person.foot, forklift.box, 0.05 if walked else -0.03):
                if known is None:
                    known = person.aboard[forklift.identity] = Aboard(walked=True)
                known.outside += 1
                if known.outside >= INERTIA:
                    person.aboard[forklift.identity] = Aboard(outside=INERTIA, walked=True)
                continue
            if known is None:
                known = person.aboard[forklift.identity] = Aboard()
            known.inside, known.outside = known.inside + 1, 0
            if person.velocity is not None and forklift.velocity is not None:
                speed = math.hypot(*forklift.velocity)
                alike = math.dist(person.velocity, forklift.velocity) <= 0.5 * speed
                known.together += speed >= 0.5 and alike
        person.aboard = {i: known for i, known in person.aboard.items() if i in names}


def _within(foot: Point, box: tuple[float, float, float, float], above: float) -> bool:
    """Inside a forklift's outline, this share of its height above its lower edge if that is in the picture."""
    x0, y0, x1, y1 = box
    aside = 0.03 * (x1 - x0)
    low = 1.01 if y1 >= EDGE else y1 - above * (y1 - y0)
    return x0 - aside <= foot[0] <= x1 + aside and y0 <= foot[1] <= low


def _settle(track: Track, time: float, zones: Polygons, lines: Segments) -> None:
    """Zones and sides of lines, with inertia."""
    for name, polygon in zones.items():
        stay = track.stays.get(name) or track.stays.setdefault(name, Stay())
        if inside(track.foot, polygon) == stay.inside:
            stay.votes = 0
            continue
        if stay.votes == 0 and not stay.inside:
            stay.since = time
        stay.votes += 1
        if stay.votes >= INERTIA:
            stay.inside, stay.votes = not stay.inside, 0
    for name, (a, b) in lines.items():
        crossed = track.lines.get(name) or track.lines.setdefault(name, Crossed())
        distance = distance_to_line(track.foot, a, b)
        side = 0 if abs(distance) < BAND else 1 if distance > 0 else -1
        if side in (0, crossed.side):
            crossed.votes = 0
            if side:
                crossed.at = track.foot
            continue
        crossed.votes += 1
        if crossed.votes >= INERTIA:
            crossed.now = crossed.side != 0 and _passes(crossed.at, track.foot, a, b)
            crossed.side, crossed.votes, crossed.at = side, 0, track.foot


def _passes(p: Point, q: Point, a: Point, b: Point) -> bool:
    """Whether the way from p to q goes through the line between its ends."""
    dp, dq = distance_to_line(p, a, b), distance_to_line(q, a, b)
    share = dp / (dp - dq)
    x, y = p[0] + share * (q[0] - p[0]), p[1] + share * (q[1] - p[1])
    dx, dy = b[0] - a[0], b[1] - a[1]
    return 0 <= ((x - a[0]) * dx + (y - a[1]) * dy) / (dx * dx + dy * dy) <= 1


def _walk(track: Track, time: float, floor: Floor) -> None:
    """Place and velocity: the median of the slopes between pairs of points (Theil and Sen)."""
    track.place = floor.at(track.foot)
    if track.place is None:
        track.velocity = None
        return
    # At most ten points in the span, however many frames there are.
    if track.path and time - track.path[-1][0] < 0.095 * SPEED_S:
        return
    track.path.append((time, *track.place))
    while time - track.path[0][0] > SPEED_S:
        track.path.pop(0)
    if time - track.path[0][0] < SPEED_S / 3:
        return
    slopes = [((u[1] - t[1]) / (u[0] - t[0]), (u[2] - t[2]) / (u[0] - t[0])) for t, u in combinations(track.path, 2)]
    if len(slopes) < 3:
        return
    middle = len(slopes) // 2
    track.velocity = (sorted(s[0] for s in slopes)[middle], sorted(s[1] for s in slopes)[middle])
