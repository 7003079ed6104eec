"""The newest picture of each camera, heads hidden, and what is seen in it: made when somebody asks.

Without viewers a frame costs nothing but a reference. What viewers get is half a second old: a head is hidden if a
person is seen there within half a second before *or after*, as in evidence.
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stille.video.evidence import NEAR_S, Recent, hidden
from stille.video.types import ATTRIBUTES, KINDS, NOBODY, Event, Frame, Seen

SURE = 1.0
"""Log-odds from which an attribute is written beside a box."""
SAID = {("helmet", False): "no helmet", ("vest", False): "no vest"}
"""Attributes whose absence is worth a word."""


@dataclass(frozen=True)
class Picture:
    """
    Attributes:
        number: grows with each new picture of the camera.
        jpeg: heads hidden.
        overlay: as JSON: "time", "size", "objects" ({"box" in 0..1, "kind", "identity", "score", "says", "alarm"}),
            "alarms" ({"id", "rule", "kind", "zone", "reason"}).
    """

    number: int
    jpeg: bytes = field(repr=False)
    overlay: dict[str, Any]


@dataclass
class _Screen:
    recent: Recent = field(default_factory=Recent)  # the same frames that the desk keeps
    number: int = 0
    made: Picture | None = None
    of: tuple[int, float] | None = None  # the frame that `made` shows
    when: float = 0.0
    making: threading.Lock = field(default_factory=threading.Lock)


class Wall:
    """
    Args:
        fps: pictures of a camera that are made in a second, however many look.
        quality: of JPEG.

    Attributes:
        alarms: open events, by camera; to be set as they change.
        made: pictures made so far; seconds: what that took.
    """

    def __init__(self, fps: float = 5.0, quality: int = 75):
        self.fps, self.quality = fps, quality
        self.alarms: Mapping[str, Sequence[Event]] = {}
        self.made, self.seconds = 0, 0.0
        self._screens: dict[str, _Screen] = {}
        self._lock = threading.Lock()

    def see(self, seen: Seen, frame: Frame) -> None:
        """For `Pipeline(on_seen=[...])`."""
        with self._lock:
            screen = self._screens.get(seen.camera) or self._screens.setdefault(seen.camera, _Screen())
            screen.recent.add(frame, seen)

    def forget(self, camera: str) -> None:
        with self._lock:
            self._screens.pop(camera, None)

    def cameras(self) -> list[str]:
        with self._lock:
            return list(self._screens)

    def picture(self, camera: str) -> Picture | None:
        """The newest; None before there is one. Takes some milliseconds of the caller's thread if it is a new one."""
        with self._lock:
            screen = self._screens.get(camera)
        if screen is None:
            return None
        with screen.making:  # of several viewers one makes it
            now = time.monotonic()
            if screen.made is not None and now - screen.when < 1 / self.fps:
                return screen.made
            with self._lock:
                chosen = _chosen(screen.recent)
                seen = list(screen.recent.seen)
            if chosen is None:
                return screen.made
            key = (chosen.index, chosen.time)
            alarms = self.alarms.get(camera, ())
            shown = min(seen, key=lambda one: abs(one.time - chosen.time))
            overlay = _overlay(shown, alarms)
            if screen.made is None or key != screen.of:
                jpeg = _jpeg(hidden(chosen, seen), self.quality)
                self.made, self.seconds = self.made + 1, self.seconds + time.monotonic() - now
            elif overlay != screen.made.overlay:
                jpeg = screen.made.jpeg
            else:
                screen.when = now
                return screen.made
            screen.number += 1
            screen.made, screen.of, screen.when = Picture(screen.number, jpeg, overlay), key, now
            return screen.made


def _chosen(recent: Recent) -> Frame | None:
    """The newest frame of which is known what was seen half a second later, or that nothing came for a second."""
    now, last = time.monotonic(), recent.seen[-1].time if recent.seen else 0.0
    old = [one for one in recent.frames if last - one.time >= NEAR_S or now - one.arrived >= 2 * NEAR_S]
    return old[-1] if old else None


def _overlay(seen: Seen, alarms: Sequence[Event]) -> dict[str, Any]:
    wrong: dict[int, list[str]] = {}
    for event in alarms:
        for identity in event.identities:
            wrong.setdefault(identity, []).append(event.rule)
    box_N4 = np.clip(np.nan_to_num(seen.box_N4) / np.array([*seen.size, *seen.size]), 0, 1).round(4)
    objects = []
    for i, box in enumerate(box_N4.tolist()):
        identity, kind = int(seen.identity_N[i]), KINDS[int(seen.kind_N[i])]
        objects.append(
            {
                "box": box,
                "kind": kind,
                "identity": None if identity == NOBODY else identity,
                "score": round(float(seen.score_N[i]), 2),
                "says": says(kind, seen.attribute_NA[i]),
                "alarm": wrong.get(identity, []) if identity != NOBODY else [],
            }
        )
    told = [{"id": e.id, "rule": e.rule, "kind": e.kind, "zone": e.zone, "reason": e.reason} for e in alarms]
    return {"time": seen.time, "size": list(seen.size), "objects": objects, "alarms": told}


def says(kind: str, odds_A: np.ndarray) -> list[str]:
    """Attributes in words, those that are sure."""
    found = []
    for name, odds in zip(ATTRIBUTES, odds_A.tolist(), strict=True):
        if (name == "loaded") == (kind == "person"):
            continue
        if kind not in ("person", "forklift", "cart"):
            continue
        if odds >= SURE:
            found.append(name)
        elif odds <= -SURE and (name, False) in SAID:
            found.append(SAID[name, False])
    return found


def _jpeg(image_HW3: np.ndarray, quality: int) -> bytes:
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(image_HW3).save(data, "JPEG", quality=quality)
    return data.getvalue()
