"""Events against incidents: what was found, what was false, and how sure the events were.

An event tells of an incident if it is of the same rule, place and object, and their times meet within `SLACK_S`. The
surest event of an incident finds it; further ones are false, as is what tells of nothing. An incident that is doubtful
need not be found and is no false event either.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

SLACK_S = 2.0
WINDOW_S = 10.0
PAIRS = frozenset({"near_miss"})
"""Rules about two objects, both of which have to be the right ones."""


@dataclass(frozen=True, slots=True)
class Happening:
    """An incident that was, or an event that was told of.

    Attributes:
        camera, rule, place: where; place is the name of a zone or a slot, or None.
        identities: of the objects, in the truth's numbers; empty where it is about none.
        began, ended: seconds.
        confidence: of an event. doubtful: of an incident.
    """

    camera: str
    rule: str
    place: str | None
    identities: frozenset[int]
    began: float
    ended: float
    confidence: float = 1.0
    doubtful: bool = False

    def tells_of(self, incident: Happening) -> bool:
        if (self.camera, self.rule, self.place) != (incident.camera, incident.rule, incident.place):
            return False
        if self.began > incident.ended + SLACK_S or self.ended < incident.began - SLACK_S:
            return False
        if not incident.identities:
            return True
        shared = self.identities & incident.identities
        return shared == incident.identities if self.rule in PAIRS else bool(shared)


@dataclass
class Tally:
    """Of one camera and rule.

    Attributes:
        found: for each incident the confidence of the event that found it, 0 if none did.
        false: confidence of each false event. again: how many of these tell of an incident that another event found.
        late: for each incident found, seconds from its beginning to the event's.
    """

    found: list[float] = field(default_factory=list)
    false: list[float] = field(default_factory=list)
    again: int = 0
    late: list[float] = field(default_factory=list)


def tally(incidents: Iterable[Happening], events: Iterable[Happening]) -> dict[tuple[str, str], Tally]:
    """By camera and rule."""
    sides: dict[tuple[str, str], tuple[list[Happening], list[Happening]]] = defaultdict(lambda: ([], []))
    for side, happenings in enumerate((incidents, events)):
        for one in happenings:
            sides[one.camera, one.rule][side].append(one)
    return {key: _tally(*both) for key, both in sides.items()}


def _tally(incidents: list[Happening], events: list[Happening]) -> Tally:
    result = Tally()
    free = sorted(events, key=lambda event: -event.confidence)
    told = set()
    for incident in sorted((i for i in incidents if not i.doubtful), key=lambda i: i.began):
        mine = next((e for e in free if id(e) not in told and e.tells_of(incident)), None)
        result.found.append(mine.confidence if mine else 0.0)
        if mine is not None:
            told.add(id(mine))
            result.late.append(mine.began - incident.began)
    for event in free:
        about = [i for i in incidents if event.tells_of(i)]
        if id(event) not in told and not any(i.doubtful for i in about):
            result.false.append(event.confidence)
            result.again += bool(about)
    return result


def threshold_at(tallies: Iterable[Tally], recall: float) -> tuple[float, float]:
    """The highest confidence from which on events find this share of incidents, and the share that they find; if all
    events find less, 0 and that share."""
    found = np.sort([confidence for one in tallies for confidence in one.found])[::-1]
    if not len(found):
        return 0.0, 0.0
    needed = int(np.ceil(recall * len(found) - 1e-9))
    if needed and found[needed - 1] > 0:
        limit = float(found[needed - 1])
        return limit, float(np.mean(found >= limit))
    return 0.0, float(np.mean(found > 0))


def false_events(tallies: Iterable[Tally], threshold: float) -> int:
    return sum(confidence >= threshold for one in tallies for confidence in one.false)


@dataclass(frozen=True, slots=True)
class EventScore:
    """At one confidence.

    Attributes:
        incidents, found, false, again: counted.
        recall, precision, f1: shares. prompt: share of found ones whose event began within `SLACK_S` of the incident.
    """

    incidents: int
    found: int
    false: int
    again: int
    recall: float
    precision: float
    f1: float
    prompt: float


def score_events(tallies: Sequence[Tally], threshold: float = 0.0) -> EventScore:
    found = sum(confidence > 0 and confidence >= threshold for one in tallies for confidence in one.found)
    incidents, false = sum(len(one.found) for one in tallies), false_events(tallies, threshold)
    late = [abs(seconds) <= SLACK_S for one in tallies for seconds in one.late]
    return EventScore(
        incidents, found, false, sum(one.again for one in tallies), found / max(incidents, 1),
        found / max(found + false, 1), 2 * found / max(incidents + found + false, 1), float(np.mean(late or [0.0])),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ratio:
    """
    Attributes:
        ours, theirs: false events per camera-hour. ratio: ours/theirs; low, high: 95 % interval of it.
        recall: at which both were compared. our_recall, their_recall: what they found there.
        our_threshold, their_threshold: confidences.
    """

    ours: float
    theirs: float
    ratio: float
    low: float
    high: float
    recall: float
    our_recall: float
    their_recall: float
    our_threshold: float
    their_threshold: float


def false_event_ratio(
    ours: Mapping[tuple[str, str], Tally],
    theirs: Mapping[tuple[str, str], Tally],
    cameras: Sequence[str],
    hours: float,
    recall: float = 0.9,
    rounds: int = 2000,
) -> Ratio:
    """False events of two sides where both find `recall` of the incidents, or as many as the weaker one finds.

    The interval is of a bootstrap over cameras, thresholds found anew in each round. A side without any false event
    counts as having half of one, so that there is a ratio.

    Args:
        hours: of all cameras together.
    """
    sides = [{c: [t for (camera, _), t in side.items() if camera == c] for c in cameras} for side in (ours, theirs)]

    def rates(chosen: list[str]) -> tuple[float, float, float, tuple[float, float], tuple[float, float]]:
        picked = [[t for c in chosen for t in side[c]] for side in sides]
        common = min(recall, *(threshold_at(side, 1.0)[1] for side in picked))
        (a, reached), (b, other) = (threshold_at(side, common) for side in picked)
        ours, theirs = (false_events(side, limit) for side, limit in zip(picked, (a, b), strict=True))
        return ours, theirs, common, (a, reached), (b, other)

    own, other, common, (a, reached), (b, matched) = rates(list(cameras))
    rng = np.random.default_rng(0)
    ratios = []
    for drawn in rng.integers(len(cameras), size=(rounds, len(cameras))).tolist():
        x, y, *_ = rates([cameras[int(i)] for i in drawn])
        ratios.append(max(x, 0.5) / max(y, 0.5))
    low, high = np.percentile(ratios, [2.5, 97.5]).tolist() if ratios else (0.0, float("inf"))
    ratio = max(own, 0.5) / max(other, 0.5)
    return Ratio(own / hours, other / hours, ratio, low, high, common, reached, matched, a, b)


@dataclass
class Windows:
    """Pieces of `WINDOW_S` of a camera, for one rule: how many had an incident and were told of, and so on."""

    hit: int = 0
    missed: int = 0
    false: int = 0
    quiet: int = 0

    def add(self, other: Windows) -> None:
        self.hit, self.missed = self.hit + other.hit, self.missed + other.missed
        self.false, self.quiet = self.false + other.false, self.quiet + other.quiet

    @property
    def accuracy(self) -> float | None:
        """Balanced: the mean of the shares of both kinds of windows that are right; None where one kind is missing."""
        if not self.hit + self.missed or not self.false + self.quiet:
            return None
        return (self.hit / (self.hit + self.missed) + self.quiet / (self.quiet + self.false)) / 2


def count_windows(
    incidents: Sequence[Happening], events: Sequence[Happening], begin: float, end: float, threshold: float = 0.0
) -> Windows:
    """Of one camera and one rule, between two moments.

    A window counts as one with an incident if one meets it. It is told of if an event does within `SLACK_S`; an event
    in a window that no incident comes within `SLACK_S` of is false. What is only doubtful counts in neither way.
    """
    starts_W = np.arange(begin, end - WINDOW_S + 1e-6, WINDOW_S)

    def met(happenings: Iterable[Happening], slack: float) -> np.ndarray:
        hit_W = np.zeros(len(starts_W), bool)
        for one in happenings:
            hit_W |= (starts_W - slack <= one.ended) & (starts_W + WINDOW_S + slack > one.began)
        return hit_W

    sure = [i for i in incidents if not i.doubtful]
    told = [e for e in events if e.confidence >= threshold]
    there_W, about_W, doubt_W = met(sure, 0.0), met(sure, SLACK_S), met(incidents, SLACK_S)
    near_W, in_W = met(told, SLACK_S), met(told, 0.0)
    return Windows(
        int((there_W & near_W).sum()), int((there_W & ~near_W).sum()), int((~doubt_W & in_W).sum()),
        int((~there_W & ~(doubt_W & ~about_W) & ~in_W).sum()),
    )  # fmt: skip
