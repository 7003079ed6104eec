"""Frames to look at: boxes, identities, attributes, zones and open alarms on pictures whose heads are hidden.

    seen, frame -> Annotator (waits half a second, for heads that are seen only then) -> films, viewers

Shapes: H, W picture; N objects.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from stille.video.evidence import NEAR_S, hidden
from stille.video.rules import Rules
from stille.video.types import ATTRIBUTES, KINDS, NOBODY, Event, Frame, Seen
from stille.video.zones import Point

COLOURS = ((70, 200, 90), (250, 150, 40), (80, 160, 250), (210, 110, 230))
"""Of `KINDS`."""
ALARM, ZONE = (235, 50, 45), (225, 215, 110)
KNOWN = 1.0
"""Log-odds beyond which an attribute is told."""
LINES = 4
"""Alarms that are told in words."""


def zones_of(rules: Rules, camera: str) -> dict[str, tuple[Point, ...]]:
    """Zones, slots and lines of a camera by name, in 0..1 of its picture; a line has two points."""
    areas = [*rules.zones, *rules.slots]
    found = {area.name: rules.scaled(camera, area.points) for area in areas if area.camera == camera}
    lines = {line.name: rules.scaled(camera, (line.start, line.end)) for line in rules.lines if line.camera == camera}
    return found | lines


def draw(
    frame: Frame,
    seen: Seen,
    zones: Mapping[str, Sequence[Point]] | None = None,
    alarms: Sequence[Event] = (),
    around: Iterable[Seen] = (),
) -> np.ndarray:
    """A copy of the picture, uint8 [H, W, 3] RGB, with what is seen in it and what is wrong; heads are hidden first.

    Args:
        seen: in this frame, whatever its time says.
        zones: by name, points in 0..1 of the picture (see `zones_of`).
        alarms: open events; those that are withheld or of other cameras are left out. Their objects and zones are red.
        around: what was seen shortly before and after: heads are hidden there, too, if it is within `NEAR_S`.
    """
    seen = replace(seen, time=frame.time)
    image_HW3 = hidden(frame, [seen, *around])
    pen = Pen(image_HW3)
    alarms = [one for one in alarms if one.camera == frame.camera and not one.withheld and one.state == "open"]
    alarmed = {one.zone for one in alarms} | {one.facts.get("slot") for one in alarms}
    for name, points in (zones or {}).items():
        pen.outline(name, points, ALARM if name in alarmed else ZONE, fill=name in alarmed)
    rules = {identity: one.rule for one in alarms for identity in one.identities}
    scale = np.array([*frame.size, *frame.size]) / np.array([*seen.size, *seen.size])
    order = np.argsort(seen.box_N4[:, 3]).tolist()  # nearest last
    wrong = [rules.get(int(identity)) if identity != NOBODY else None for identity in seen.identity_N]
    colours = [ALARM if rule else COLOURS[kind] for rule, kind in zip(wrong, seen.kind_N.tolist(), strict=True)]
    for i in order:
        pen.box(seen.box_N4[i] * scale, colours[i], bool(wrong[i]))
    for i in sorted(order, key=lambda i: wrong[i] is not None):  # what is wrong is read first
        words = [*([wrong[i].upper()] if wrong[i] else []), *label(seen, i)]  # type: ignore[union-attr]
        pen.label(seen.box_N4[i] * scale, " ".join(words), colours[i])
    for row, one in enumerate(alarms[:LINES]):
        more = f" (+{len(alarms) - LINES} more)" if row == LINES - 1 and len(alarms) > LINES else ""
        pen.headline(row, f"{one.rule}: {one.reason}{more}")
    return image_HW3


def label(seen: Seen, i: int) -> list[str]:
    """Kind, identity and known attributes of an object, in words."""
    kind, identity = KINDS[int(seen.kind_N[i])], int(seen.identity_N[i])
    words = [kind if identity == NOBODY else f"{kind} {identity}"]
    for name, odds in zip(ATTRIBUTES, seen.attribute_NA[i].tolist(), strict=True):
        if (name == "loaded") == (kind == "person"):
            continue
        if odds > KNOWN:
            words.append(name)
        elif odds < -KNOWN and name in ("helmet", "vest"):
            words.append(f"no {name}")
    return words


class Pen:
    """Draws on a picture, in place, with strokes that suit its size."""

    def __init__(self, image_HW3: np.ndarray):
        self.image, (self.height, self.width) = image_HW3, image_HW3.shape[:2]
        self.stroke = max(1, round(self.height / 400))
        self.size = max(0.35, self.height / 1000)

    def outline(self, name: str, points: Sequence[Point], colour: tuple[int, int, int], fill: bool) -> None:
        import cv2

        corners = np.round(np.array(points) * [self.width - 1, self.height - 1]).astype(np.int32)
        if fill and len(points) > 2:
            x, y, w, h = cv2.boundingRect(corners)
            part = self.image[max(y, 0) : y + h, max(x, 0) : x + w]
            over = part.copy()
            cv2.fillPoly(over, [corners - [max(x, 0), max(y, 0)]], colour)
            cv2.addWeighted(over, 0.25, part, 0.75, 0, part)
        cv2.polylines(self.image, [corners], len(points) > 2, colour, self.stroke, cv2.LINE_AA)
        if fill or len(points) == 2 or np.ptp(corners[:, 0]) > self._extent(name)[0]:
            x, y = corners[0].tolist()
            self._text(name, x + 2, y - 3, colour)

    def box(self, box: np.ndarray, colour: tuple[int, int, int], thick: bool) -> None:
        import cv2

        if not np.isfinite(box).all():
            return
        edge = np.array([self.width - 1, self.height - 1] * 2)
        x0, y0, x1, y1 = np.clip(box, 0, edge).round().astype(int).tolist()
        cv2.rectangle(self.image, (x0, y0), (x1, y1), colour, self.stroke + thick)

    def label(self, box: np.ndarray, words: str, colour: tuple[int, int, int]) -> None:
        """Above a box."""
        if np.isfinite(box).all():
            x, y = np.clip(box[:2], -1, [self.width, self.height]).astype(int).tolist()
            self._text(words, x, y - 3, colour)

    def headline(self, row: int, words: str) -> None:
        """A line at the bottom of the picture, on the alarms' colour; row 0 is the lowest."""
        import cv2

        high = round(34 * self.size)
        y = self.height - (row + 1) * high
        self.image[max(y, 0) : y + high] = (0.35 * self.image[max(y, 0) : y + high] + 0.65 * np.array(ALARM)).astype(
            np.uint8
        )
        words = ascii_of(words)
        while len(words) > 4 and self._extent(words)[0] > self.width - 12:
            words = words[:-4] + "..." if not words.endswith("...") else words[:-6] + "..."
        at = (6, y + round(0.72 * high))
        cv2.putText(self.image, words, at, cv2.FONT_HERSHEY_SIMPLEX, self.size, (255, 255, 255), 1, cv2.LINE_AA)

    def _extent(self, words: str) -> tuple[int, int]:
        import cv2

        (w, h), _ = cv2.getTextSize(ascii_of(words), cv2.FONT_HERSHEY_SIMPLEX, self.size, 1)
        return w, h

    def _text(self, words: str, x: int, y: int, colour: tuple[int, int, int]) -> None:
        import cv2

        font = cv2.FONT_HERSHEY_SIMPLEX
        words = ascii_of(words)
        w, h = self._extent(words)
        x, y = max(0, min(x, self.width - w - 1)), max(h + 1, min(y, self.height - 2))
        back = self.image[y - h - 1 : y + 3, x : x + w + 1]
        back[:] = back // 3
        cv2.putText(self.image, words, (x, y), font, self.size, colour, 1, cv2.LINE_AA)


def ascii_of(words: str) -> str:
    """OpenCV's fonts have no other letters."""
    return words.encode("ascii", "replace").decode()


@dataclass(eq=False)
class Moment:
    """A frame that is to be shown, with all that is known around it. Drawn once, by whoever asks first."""

    frame: Frame
    seen: Seen
    zones: Mapping[str, Sequence[Point]]
    alarms: Sequence[Event]
    around: Sequence[Seen] = ()
    _image: np.ndarray | None = field(default=None, repr=False)
    _drawing: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def image(self) -> np.ndarray:
        """uint8 [H, W, 3], not to be changed. Any thread."""
        with self._drawing:
            if self._image is None:
                self._image = draw(self.frame, self.seen, self.zones, self.alarms, self.around)
            return self._image


class Output(Protocol):
    """Where moments go. Neither method may wait for a viewer."""

    def wants(self, camera: str) -> bool:
        """Whether anybody looks at this camera: without, its pictures are not even kept."""
        ...

    def show(self, moment: Moment) -> None:
        """In the order of each camera's time."""
        ...


@dataclass
class _Line:
    """One camera: what was seen in the last second, and moments that wait to be half a second old."""

    rules: Rules
    zones: Mapping[str, Sequence[Point]]
    seen: deque[Seen] = field(default_factory=deque)
    waiting: deque[Moment] = field(default_factory=deque)
    taken: float = float("-inf")


class Annotator:
    """Give its `see` to a pipeline behind the desk's. It draws nothing itself, and keeps nothing that nobody wants.

    Args:
        rules: tells whose zones are shown; they may change (`lambda: desk.rules`).
        alarms: tells the open events of all cameras (`lambda: desk.engine.open_events()`).
        fps: of what is shown, at most, per camera.
    """

    def __init__(
        self, rules: Callable[[], Rules], alarms: Callable[[], Iterable[Event]], outputs: Sequence[Output],
        fps: float = 10.0,
    ):  # fmt: skip
        self.rules, self.alarms, self.outputs, self.fps = rules, alarms, list(outputs), fps
        self._lines: dict[str, _Line] = {}

    def see(self, seen: Seen, frame: Frame) -> None:
        """Take in a frame and what is seen in it."""
        line = self._lines.get(frame.camera)
        rules = self.rules()
        if line is None:
            line = self._lines[frame.camera] = _Line(rules, zones_of(rules, frame.camera))
        if line.rules is not rules:
            line.rules, line.zones = rules, zones_of(rules, frame.camera)
        if line.seen and not 0 < seen.time - line.seen[-1].time <= 1.0:  # the clock was set, or a gap
            self._show(line, len(line.waiting))
            line.seen.clear()
            line.taken = float("-inf")
        line.seen.append(seen)
        while seen.time - line.seen[0].time > 2 * NEAR_S + 0.1:
            line.seen.popleft()
        if frame.time - line.taken >= 0.9 / self.fps and any(out.wants(frame.camera) for out in self.outputs):
            line.taken = frame.time
            alarms = [one for one in self.alarms() if one.camera == frame.camera]
            line.waiting.append(Moment(frame, seen, line.zones, alarms))
        self._show(line, sum(seen.time - one.frame.time > NEAR_S for one in line.waiting))

    def end(self, camera: str | None = None) -> None:
        """Show what waits of a camera that is no more; None: of all."""
        for name in [camera] if camera is not None else list(self._lines):
            line = self._lines.pop(name, None)
            if line is not None:
                self._show(line, len(line.waiting))

    def _show(self, line: _Line, count: int) -> None:
        for _ in range(count):
            moment = line.waiting.popleft()
            moment.around = tuple(one for one in line.seen if abs(one.time - moment.frame.time) <= NEAR_S)
            for out in self.outputs:
                if out.wants(moment.frame.camera):
                    out.show(moment)
