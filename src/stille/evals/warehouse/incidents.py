"""Which incidents an hour has, measured on its tracks: every rule's condition is evaluated ten times a second on the
true places and states, and has to last as long as the rules file says.

Each condition has a strict and a lenient form. What holds only in the lenient one (a forklift just below the limit, a
person on the lane's edge) is `doubtful`: an event about it is neither right nor false.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stille.evals.warehouse.geometry import Polygon, inside_N, rectangle
from stille.evals.warehouse.layout import Size
from stille.evals.warehouse.story import Story, story
from stille.evals.warehouse.yard import CART, FORKLIFT, HOUR, PALLET, PERSON, SPEED_LIMIT

RATE = 10
DWELL = {
    "no_helmet": 1.0, "no_vest": 1.0, "person_in_lane": 0.6, "near_miss": 0.3, "speeding": 0.6, "blocked": 20.0,
    "lying": 3.0, "intrusion": 1.0, "pallet_missing": 20.0, "pallet_extra": 20.0, "pallet_misplaced": 20.0,
    "queue": 5.0,
}  # fmt: skip
"""What the rules file says, by rule type. What lasts for less than half as long again, and half a second, is doubtful:
to see that something came and that it went takes a rule some frames."""
QUIET = {name: 5.0 if name in ("blocked", "queue", "pallet_missing", "pallet_extra") else 3.0 for name in DWELL}
"""Seconds without it after which it is over."""
NEAR_M, HORIZON_S, MOVING = 1.3, 1.0, 0.5
QUEUE = 4
"""More persons than this are too many."""
ABOUT_M = 0.5
"""Width of what is doubtful around a zone."""
ABOUT_FORKLIFT_M = 1.2
"""The same for near misses: a forklift's middle, and where its box meets the floor, are so far apart."""


@dataclass(frozen=True, slots=True)
class Incident:
    """
    Attributes:
        kind: type of the rule. zone: where, or the name of the slot; None where the rule has no zone.
        identities: of whom it is about; empty for slots and queues.
        began, ended: seconds since the hour's beginning; ended is the last moment that it held.
        doubtful: neither to be found nor wrong to find.
    """

    kind: str
    zone: str | None
    identities: tuple[int, ...]
    began: float
    ended: float
    doubtful: bool = False


def incidents(seed: int, size: Size = (640, 352)) -> list[Incident]:
    """Of the hour of a seed, in the order in which they begin."""
    return incidents_of(story(seed, size))


def incidents_of(told: Story) -> list[Incident]:
    """The same for a story that is at hand."""
    time_N = np.arange(0, HOUR, 1 / RATE)
    found: list[Incident] = []
    for kind, zone, who, strict_N, lenient_N in _conditions(told, time_N):
        sure = list(_runs(strict_N, 1.5 * DWELL[kind] + 0.5, QUIET[kind]))
        found += [Incident(kind, zone, who, a, b) for a, b in sure]
        reach = QUIET[kind]
        for a, b in _runs(lenient_N | strict_N, 0.7 * DWELL[kind], QUIET[kind]):
            if not any(a <= end + reach and begin <= b + reach for begin, end in sure):
                found.append(Incident(kind, zone, who, a, b, doubtful=True))
    return sorted(found, key=lambda one: (one.began, one.kind, one.identities))


def _runs(holds_N: np.ndarray, dwell: float, quiet: float) -> Iterator[tuple[float, float]]:
    """First and last moment of each stretch, gaps shorter than `quiet` bridged, that lasts for `dwell`."""
    at = np.flatnonzero(holds_N)
    if not len(at):
        return
    cuts = np.flatnonzero(np.diff(at) > quiet * RATE) + 1
    for part in np.split(at, cuts):
        longest = max(len(run) for run in np.split(part, np.flatnonzero(np.diff(part) > 1) + 1))
        if longest >= dwell * RATE:
            yield float(part[0]) / RATE, float(part[-1]) / RATE


def grown(zone: Polygon, by: float) -> Polygon:
    """A rectangle with its sides moved outwards."""
    (x0, y0), _, (x1, y1), _ = zone
    return rectangle(x0 - by, y0 - by, x1 + by, y1 + by)


Condition = tuple[str, str | None, tuple[int, ...], np.ndarray, np.ndarray]


def _conditions(told: Story, time_N: np.ndarray) -> Iterator[Condition]:
    zones, camera = told.layout.zones, told.layout.camera
    state, there, place, wide, seen = {}, {}, {}, {}, {}
    for track in told.tracks:
        i = track.identity
        there[i] = track.get("there", time_N) > 0
        at_K = np.flatnonzero(there[i])
        place[i], seen[i] = np.full((len(time_N), 2), np.nan), np.zeros(len(time_N), bool)
        place[i][at_K] = track.at(time_N[at_K])[:, :2]
        pixel, depth = camera.project(np.concatenate([place[i][at_K], np.zeros((len(at_K), 1))], 1))
        seen[i][at_K] = (depth > 0.5) & ((pixel >= 0) & (pixel <= np.array(camera.size))).all(1)

    def within(i: int, zone: str) -> np.ndarray:
        holds_N, at_K = np.zeros(len(time_N), bool), np.flatnonzero(seen[i])
        holds_N[at_K] = inside_N(place[i][at_K], zones[zone])
        return holds_N

    def firmly(i: int, zone: str) -> np.ndarray:
        """Of things: the edge towards the camera is in the zone as well, where their box meets the floor."""
        to_N2 = np.array(camera.at[:2]) - place[i]
        edge_N2 = place[i] + 0.5 * to_N2 / np.linalg.norm(to_N2, axis=1, keepdims=True)
        return within(i, zone) & inside_N(edge_N2, zones[zone])

    def about(i: int, zone: str) -> np.ndarray:
        holds_N, at_K = np.zeros(len(time_N), bool), np.flatnonzero(there[i])
        holds_N[at_K] = inside_N(place[i][at_K], grown(zones[zone], ABOUT_M))
        return holds_N

    night_N = time_N >= told.closing
    queued_N, nearly_N = np.zeros(len(time_N)), np.zeros(len(time_N))
    blocking, kinds = [], {t.identity: t.kind for t in told.tracks}
    for track in told.tracks:
        i = track.identity
        if track.kind == PERSON:
            state[i] = {name: track.get(name, time_N) > 0 for name in ("helmet", "vest", "lying", "driver")}
            afoot_N = ~state[i]["driver"]
            for kind, worn in (("no_helmet", "helmet"), ("no_vest", "vest")):
                bare_N = ~state[i][worn] & afoot_N
                yield kind, "work", (i,), bare_N & within(i, "work"), bare_N & about(i, "work")
            yield "person_in_lane", "lane", (i,), afoot_N & within(i, "lane"), afoot_N & about(i, "lane")
            yield "lying", None, (i,), state[i]["lying"] & seen[i], state[i]["lying"] & there[i]
            yield "intrusion", "hall", (i,), night_N & within(i, "hall"), night_N & about(i, "hall")
            queued_N += within(i, "queue")
            nearly_N += about(i, "queue")
        elif track.kind == FORKLIFT:
            speed_N = np.hypot(*track.velocity(time_N).T)
            wide[i] = speed_N
            fast_N = speed_N > SPEED_LIMIT * 1.1
            yield (
                "speeding",
                "lane",
                (i,),
                fast_N & within(i, "lane"),
                (speed_N > SPEED_LIMIT * 0.85) & about(i, "lane"),
            )
        elif track.kind == PALLET:
            stands_N = (track.get("on", time_N) == 0) & (track.get("slot", time_N) == 0)
            yield (
                "pallet_misplaced", "walk", (i,), stands_N & firmly(i, "walk"), stands_N & about(i, "walk"),
            )  # fmt: skip
        if track.kind in (PALLET, CART):
            still_N = np.hypot(*track.velocity(time_N).T) < 0.05
            free_N = (track.get("on", time_N) == 0) & (track.get("slot", time_N) == 0) & still_N
            blocking.append((i, free_N & firmly(i, "exit"), free_N & about(i, "exit")))
    yield "queue", "queue", (), queued_N > QUEUE, (queued_N >= QUEUE) | (nearly_N > QUEUE)
    strict_N = np.any([s for _, s, _ in blocking], axis=0) if blocking else np.zeros(len(time_N), bool)
    lenient_N = np.any([w for _, _, w in blocking], axis=0) if blocking else strict_N
    for begin, end in _runs(strict_N, DWELL["blocked"], QUIET["blocked"]):
        span_N = (time_N >= begin) & (time_N <= end)
        yield "blocked", "exit", tuple(i for i, s, _ in blocking if (s & span_N).any()), strict_N & span_N, span_N
    for begin, end in _runs(lenient_N & ~strict_N, DWELL["blocked"], QUIET["blocked"]):
        span_N = (time_N >= begin) & (time_N <= end)
        if not (strict_N & span_N).any():
            yield "blocked", "exit", tuple(i for i, _, w in blocking if (w & span_N).any()), ~span_N & False, span_N
    yield from _near(told, time_N, kinds, place, there, seen, wide, state)
    yield from _slots(told, time_N)


def _near(told: Story, time_N, kinds, place, there, seen, wide, state) -> Iterator[Condition]:
    """Closest approach of forklifts that move and persons on foot, if both go on for `HORIZON_S`."""
    for f in (i for i, kind in kinds.items() if kind == FORKLIFT):
        moving_N = wide[f] > MOVING
        if not moving_N.any():
            continue
        velocity_N2 = told.tracks[f].velocity(time_N)
        for p in (i for i, kind in kinds.items() if kind == PERSON):
            at_K = np.flatnonzero(moving_N & there[p] & there[f] & ~state[p]["driver"])
            if not len(at_K):
                continue
            apart_K2 = place[p][at_K] - place[f][at_K]
            change_K2 = told.tracks[p].velocity(time_N[at_K]) - velocity_N2[at_K]
            square_K = np.maximum((change_K2**2).sum(1), 1e-9)
            when_K = np.clip(-(apart_K2 * change_K2).sum(1) / square_K, 0, HORIZON_S)
            least_K = np.hypot(*(apart_K2 + when_K[:, None] * change_K2).T)
            strict_N, lenient_N = np.zeros(len(time_N), bool), np.zeros(len(time_N), bool)
            strict_N[at_K] = (least_K < NEAR_M) & seen[p][at_K] & seen[f][at_K]
            lenient_N[at_K] = least_K < NEAR_M + ABOUT_FORKLIFT_M
            yield "near_miss", None, (f, p), strict_N, lenient_N


def _slots(told: Story, time_N: np.ndarray) -> Iterator[Condition]:
    taken_SN = occupied(told, time_N)
    for slot, taken_N in zip(told.layout.slots, taken_SN, strict=True):
        kind = "pallet_missing" if slot.holds else "pallet_extra"
        wrong_N = ~taken_N if slot.holds else taken_N
        yield kind, slot.name, (), wrong_N, wrong_N


def occupied(told: Story, time_N: np.ndarray) -> np.ndarray:
    """Whether something stands in each slot. [S, N]"""
    taken_SN = np.zeros((len(told.layout.slots), len(time_N)), bool)
    for track in told.tracks:
        if track.kind == PALLET and "slot" in track.state:
            there_N = track.get("there", time_N) > 0
            slot_N = track.get("slot", time_N).astype(int)
            for number in set(slot_N.tolist()) - {0}:
                taken_SN[number - 1] |= there_N & (slot_N == number)
    return taken_SN
