"""A second look at an event: the perception itself, shown the objects of the event again, larger and mirrored.

Shapes: H, W picture; N objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from stille.video.events import Consistency, Verdict, Verifier, overlap
from stille.video.evidence import Case
from stille.video.types import ATTRIBUTES, Event, Frame, Seen

TUBE_S = 3.0
"""Seconds before the event opened that are looked at."""


class Sees(Protocol):
    """A perception, as a pipeline takes it, that can also forget."""

    def see(self, frames: Sequence[Frame]) -> list[Seen]: ...

    def forget(self, camera: str) -> None: ...


@dataclass(frozen=True, slots=True)
class View:
    """
    Attributes:
        zoom: how much larger than in the camera's picture; less where the object would not fit in with room around.
        mirrored: left and right are changed over.
    """

    zoom: float
    mirrored: bool


VIEWS = (View(1.5, False), View(2.5, True))


def tube(case: Case, identity: int, seconds: float = TUBE_S) -> list[tuple[Frame, np.ndarray, int]]:
    """Pictures of the last seconds of a case in which an object is: frame, box [4] in its pixels, kind; oldest first.
    What a verifier that was trained on short clips takes."""
    seen = {one.time: one for one in case.seen}
    found = []
    for frame in case.frames:
        one = seen.get(frame.time)
        if one is None or not case.until - seconds <= frame.time <= case.until:
            continue
        for i in np.flatnonzero(one.identity_N == identity)[:1]:
            scale = np.array([*frame.size, *frame.size]) / np.array([*one.size, *one.size])
            found.append((frame, one.box_N4[i] * scale, int(one.kind_N[i])))
    return found


class SecondLook:
    """Withholds events whose objects are not what they were held for when the perception sees them larger.

    For each identity of the event, up to `looks` pictures of its last 3 seconds are cut out around it, enlarged to the
    picture's size once for each view, and seen as cameras of their own, which are forgotten afterwards. A look bears
    the event out when there is an object of this kind in this place, and for rules about an attribute if that is on
    the event's side. An event is withheld if less than `share` of an identity's looks do. Events without identities,
    or without pictures of them, pass.

    It costs `looks` times `len(views)` frames of perception for each identity and event, at once.

    Args:
        perception: the pipeline's; called in the thread that calls `judge`, which must be the pipeline's then.
        place: intersection over union from which on a box is in the same place.
    """

    def __init__(
        self, perception: Sees, views: Sequence[View] = VIEWS, looks: int = 6, share: float = 0.5, place: float = 0.4
    ):
        if not views or looks < 1:
            raise ValueError(f"{len(views)} views and {looks} looks, expected at least one of each")
        self.perception, self.views, self.looks, self.share, self.place = perception, tuple(views), looks, share, place

    def judge(self, case: Case) -> Verdict:
        shares = []
        for identity in case.event.identities:
            taken = tube(case, identity)
            if taken:
                spread = np.unique(np.linspace(0, len(taken) - 1, self.looks).round().astype(int))
                taken = [taken[i] for i in spread]
                looks = list(self._look(case.event, taken))
                shares.append((sum(looks) / len(looks), len(looks)))
        if not shares:
            return Verdict(False, "no pictures for a second look")
        worst, count = min(shares)
        text = f"second look: {worst:.0%} of {count} looks bear it out"
        return Verdict(worst < self.share, f"{text}, {self.share:.0%} are needed" if worst < self.share else text)

    def _look(self, event: Event, taken: Sequence[tuple[Frame, np.ndarray, int]]) -> Iterator[bool]:
        attribute, side = Consistency.sides.get(event.kind, (None, 1))
        names = [f"\0look {number}" for number in range(len(self.views))]
        try:
            for frame, box, kind in taken:
                shown = [closer(frame, box, view, name) for view, name in zip(self.views, names, strict=True)]
                for (_, there), seen in zip(shown, self.perception.see([one for one, _ in shown]), strict=True):
                    found = [
                        i for i in np.flatnonzero(seen.kind_N == kind) if overlap(seen.box_N4[i], there) >= self.place
                    ]
                    if attribute is not None and found:
                        best = max(found, key=lambda i: overlap(seen.box_N4[i], there))
                        yield bool(side * seen.attribute_NA[best, ATTRIBUTES.index(attribute)] > 0)
                    else:
                        yield bool(found)
        finally:
            for name in names:
                self.perception.forget(name)


def closer(frame: Frame, box: np.ndarray, view: View, name: str) -> tuple[Frame, np.ndarray]:
    """The part of a picture around a box, enlarged to the picture's size, as a frame of camera `name`; and the box
    in it."""
    import cv2

    width, height = frame.size
    x0, y0, x1, y1 = np.clip(np.nan_to_num(box), 0, [width, height, width, height]).astype(float)
    share = max((x1 - x0) / width, (y1 - y0) / height, 1e-6)
    zoom = max(1.0, min(view.zoom, 0.7 / share))
    wide, high = width / zoom, height / zoom
    left = min(max((x0 + x1 - wide) / 2, 0.0), width - wide)
    top = min(max((y0 + y1 - high) / 2, 0.0), height - high)
    a, b = int(round(left)), int(round(top))
    c, d = min(width, a + max(1, round(wide))), min(height, b + max(1, round(high)))
    image = cv2.resize(frame.image_HW3[b:d, a:c], (width, height), interpolation=cv2.INTER_LINEAR)
    scale = np.array([width / (c - a), height / (d - b)] * 2)
    there = (np.array([x0, y0, x1, y1]) - np.array([a, b, a, b])) * scale
    if view.mirrored:
        image = np.ascontiguousarray(image[:, ::-1])
        there = np.array([width - there[2], there[1], width - there[0], there[3]])
    return Frame(name, frame.index, frame.time, frame.arrived, image), there.astype(np.float32)


class All:
    """Several verifiers in order: the first that withholds decides, and those after it are not asked."""

    def __init__(self, verifiers: Iterable[Verifier]):
        self.verifiers = list(verifiers)

    def judge(self, case: Case) -> Verdict:
        words = []
        for verifier in self.verifiers:
            verdict = verifier.judge(case)
            words.append(verdict.why)
            if verdict.withhold:
                return Verdict(True, verdict.why)
        return Verdict(False, "; ".join(words))
