"""What flows from camera to event: frames, what is seen in them, and events.

Shapes: H, W picture; N objects of a frame; A attributes; S slots of a camera. Boxes are x0, y0, x1, y1 in pixels of the
frame as it came from the source. Times are seconds since 1970 (UTC) of the moment that a frame shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

KINDS = ("person", "forklift", "pallet", "cart")
"""Classes of objects, by number."""

ATTRIBUTES = ("helmet", "vest", "carrying", "loaded", "lying")
"""Attributes, by number; `loaded` is of forklifts and carts, the others are of persons."""

NOBODY = -1
"""Identity of what has none."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture of a camera.

    Attributes:
        camera: its name.
        index: of the frame in its source, those that were dropped counted.
        time: that it shows.
        arrived: `time.monotonic()` when it had been decoded.
        image_HW3: uint8 RGB; for `StilleCam` also a tensor, on a GPU if it is there.
    """

    camera: str
    index: int
    time: float
    arrived: float
    image_HW3: np.ndarray = field(repr=False)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.image_HW3.shape[1], self.image_HW3.shape[0]


@dataclass(frozen=True, slots=True)
class Seen:
    """What is seen in one frame: N objects as arrays of equal length, and the rack slots that the camera watches.

    Attributes:
        camera, index, time: of the frame.
        size: width and height of the frame.
        box_N4: float32.
        kind_N: int64, numbers of `KINDS`.
        score_N: float32, probability that there is such an object.
        identity_N: int64, unique per camera and never used again; `NOBODY` where it is not settled yet.
        attribute_NA: float32 log-odds, gathered over the life of the identity; 0 where nothing is known.
        slots: by slot name, the probability that something stands in it.
    """

    camera: str
    index: int
    time: float
    size: tuple[int, int]
    box_N4: np.ndarray
    kind_N: np.ndarray
    score_N: np.ndarray
    identity_N: np.ndarray
    attribute_NA: np.ndarray
    slots: Mapping[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.box_N4)

    @classmethod
    def nothing(cls, camera: str, index: int, time: float, size: tuple[int, int]) -> Seen:
        """A frame without objects."""
        return cls(
            camera, index, time, size, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32),
            np.zeros(0, np.int64), np.zeros((0, len(ATTRIBUTES)), np.float32),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something about a camera itself: it went away, came back, froze, was covered, moved.

    Attributes:
        kind: "offline", "frozen", "black", "blurred", "moved", "clock", "size".
        since: when it began.
        over: whether it has ended at `time`.
        detail: in words.
    """

    camera: str
    kind: Literal["offline", "frozen", "black", "blurred", "moved", "clock", "size"]
    time: float
    since: float
    over: bool
    detail: str


class Event(BaseModel):
    """One incident, from when it began until it ended: sinks get it when it opens, when it changes, when it closes.

    Attributes:
        id: unique; the same in every change.
        state: "open", or "closed" with its last change.
        revision: 0 when it opens, then one more with each change.
        rule: id of the rule; kind: the rule's type.
        zone: where, if the rule has zones.
        began, changed: time of the first frame that it is about, and of the last; ended: None while it goes on.
        identities: of the objects that it is about.
        confidence: 0 to 1.
        reason: in words, with the figures that decided.
        withheld: the verifier holds it for a false alarm: kept, but not sent.
        facts: figures for machines (speed in m/s, seconds, distance, count).
        snapshot, clip: paths of the evidence, relative to the evidence folder, once there is some.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    state: Literal["open", "closed"]
    revision: int
    camera: str
    rule: str
    kind: str
    zone: str | None = None
    began: float
    changed: float
    ended: float | None = None
    identities: tuple[int, ...] = ()
    confidence: float
    reason: str
    withheld: bool = False
    facts: dict[str, float | int | str | bool] = {}
    snapshot: str | None = None
    clip: str | None = None
