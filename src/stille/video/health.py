"""Whether a camera still shows what it should: frozen, covered, out of focus, moved.

All by statistics of a small grey picture, held against a reference of the same view that follows slowly:

    frozen   no sample has changed by more than one level: a live picture always has noise, or keyframes that differ
    black    hardly any contrast is left between parts of the picture, whatever its brightness: dark, covered, fogged
    blurred  parts of the picture are as in the reference, but its fine detail is gone
    moved    the same view, but shifted (phase correlation); or for long, and at rest, quite another view

A view that has been another one for long becomes the reference: then "moved" ends.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from stille.video.alarms import Alarms
from stille.video.grey import coarsen, halve, sample
from stille.video.types import Frame, Trouble

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HealthLimits:
    """From when on something is a trouble. Seconds are of the frames' time.

    Attributes:
        frozen_s, black_s, blurred_s, moved_s: that the sign has to be there before the trouble begins.
        clear_s: that it has to be gone before the trouble ends.
        every_s: between two looks.
        contrast: standard deviation over coarse parts of the picture, in grey levels, below which there is nothing.
        sharpness: part of the reference's fine detail below which the picture is blurred.
        shift: of the view, as part of the picture's width, from which on the camera has moved.
        another_s: that another view has to rest before the camera counts as turned away.
        adopt_s: after which another view becomes the reference.
    """

    frozen_s: float = 20.0
    black_s: float = 5.0
    blurred_s: float = 15.0
    moved_s: float = 5.0
    clear_s: float = 3.0
    every_s: float = 0.2
    contrast: float = 2.5
    sharpness: float = 0.45
    shift: float = 0.025
    another_s: float = 30.0
    adopt_s: float = 600.0


class Health:
    """Watches the pictures of one camera."""

    def __init__(self, camera: str, limits: HealthLimits | None = None):
        self.limits = limits = limits if limits is not None else HealthLimits()
        self._alarms = Alarms(
            camera,
            {
                "frozen": (limits.frozen_s, 0.0),  # one picture that differs is proof
                "black": (limits.black_s, limits.clear_s),
                "blurred": (limits.blurred_s, limits.clear_s),
                "moved": (limits.moved_s, limits.clear_s),
            },
        )
        self._frozen_HW: np.ndarray | None = None
        self._view: _View | None = None
        self._time = float("-inf")
        self._size: tuple[int, int] | None = None

    def look(self, frame: Frame) -> list[Trouble]:
        """Troubles that begin or end with this frame. Takes the frames of one camera in turn."""
        passed = frame.time - self._time
        if 0 <= passed < self.limits.every_s and frame.size == self._size:
            return []
        self._time = frame.time
        if frame.size != self._size:  # nothing can be compared
            self._size, self._frozen_HW, self._view = frame.size, None, None
        sample_HW = sample(frame.image_HW3)
        grey_HW = halve(sample_HW)
        found = [
            self._alarms.update("frozen", self._is_frozen(sample_HW), frame.time, "the picture has stopped changing"),
            *self._judge(frame, grey_HW, min(max(passed, 0.0), 1.0)),
        ]
        return [trouble for trouble in found if trouble is not None]

    def _is_frozen(self, sample_HW: np.ndarray) -> bool:
        last_HW = self._frozen_HW
        if last_HW is not None and np.abs(sample_HW.astype(np.int16) - last_HW).max() <= 1:
            return True
        self._frozen_HW = sample_HW.astype(np.int16)
        return False

    def _judge(self, frame: Frame, grey_HW: np.ndarray, passed: float) -> list[Trouble | None]:
        limits, alarms = self.limits, self._alarms
        contrast = float(coarsen(grey_HW, 5).std())
        black = contrast < limits.contrast
        detail = f"hardly any contrast ({contrast:.1f} levels at brightness {grey_HW.mean():.0f})"
        found = [alarms.update("black", black, frame.time, detail)]
        if black:
            return found
        if self._view is None:
            self._view = _View(grey_HW)
            return found
        view = self._view
        view.add(grey_HW, passed)
        sharp = _sharpness(frame.image_HW3)
        likeness = view.likeness()
        blurred = likeness > 0.7 and sharp < limits.sharpness * view.sharp
        detail = f"fine detail is down to {sharp / max(view.sharp, 1e-6):.0%}"
        found.append(alarms.update("blurred", blurred, frame.time, detail))
        what = view.find_move(likeness, frame.time, limits)
        found.append(alarms.update("moved", what is not None, frame.time, what or ""))
        if what is not None and view.moved_for(frame.time) > limits.adopt_s:
            log.info("camera %s: its new view is taken as the reference", frame.camera)
            self._view = _View(view.recent_HW)
        elif not (alarms.is_on("moved") or alarms.is_on("blurred") or view.is_other):
            view.learn(sharp, passed)
        return found


class _View:
    """What a camera shows: now (seconds), and as it should be (minutes).

    Attributes:
        recent_HW: mean of the last seconds.
        sharp: `_sharpness` of the reference.
        is_other: hardly an edge is where the reference has one.
    """

    def __init__(self, grey_HW: np.ndarray):
        self.recent_HW = grey_HW.copy()
        self.sharp = 0.0
        self._reference_HW = grey_HW.copy()
        self._learned = self._restless = 0.0
        self._rows = np.hanning(grey_HW.shape[0]).astype(np.float32)[:, None]
        self._columns = np.hanning(grey_HW.shape[1]).astype(np.float32)
        self._shift: tuple[int, int] = (0, 0)
        self._since: float | None = None
        self._other_since: float | None = None
        self.is_other = False

    def add(self, grey_HW: np.ndarray, passed: float) -> None:
        change_HW = grey_HW - self.recent_HW
        self._restless = float(np.mean(np.abs(coarsen(change_HW, 5)) > 6))
        self.recent_HW += min(1.0, passed / 1.5) * change_HW

    def learn(self, sharp: float, passed: float) -> None:
        """Brings the reference nearer to what is shown; quickly at first."""
        self._learned += passed
        rate = passed / min(max(self._learned, 1.0), 120.0)
        self._reference_HW += rate * (self.recent_HW - self._reference_HW)
        self.sharp += (rate if self.sharp else 1.0) * (sharp - self.sharp)

    def likeness(self) -> float:
        """Correlation of what is shown with the reference, -1 to 1."""
        return _correlate(self.recent_HW, self._reference_HW)

    def find_move(self, likeness: float, time: float, limits: HealthLimits) -> str | None:
        """What has happened to the view, in words; None if it is the reference's."""
        if self._learned < 3.0:
            return None
        least = max(2, round(limits.shift * self.recent_HW.shape[1]))
        down, across, strength = self._correlate_phases()
        same = max(abs(down - self._shift[0]), abs(across - self._shift[1])) <= 1
        self._shift = down, across
        shifted = strength > 0.12 and max(abs(down), abs(across)) >= least and same
        edges = _correlate(_edges(self.recent_HW), _edges(self._reference_HW))
        self.is_other = edges < 0.3
        other = edges < 0.2 and likeness < 0.6 and self._restless < 0.2
        if not other or self._other_since is None or time < self._other_since:
            self._other_since = time if other else None
        turned = self._other_since is not None and time - self._other_since >= limits.another_s
        if not shifted and not turned:
            self._since = None
            return None
        self._since = time if self._since is None or time < self._since else self._since
        if not shifted:
            return "it shows quite another view"
        height, width = self.recent_HW.shape
        return (
            f"the view has moved by {abs(across) / width:.0%} of its width and {abs(down) / height:.0%} of its height"
        )

    def moved_for(self, time: float) -> float:
        return 0.0 if self._since is None else time - self._since

    def _correlate_phases(self) -> tuple[int, int, float]:
        """Rows and columns by which the view has moved, and how sure that is: 1 for an exact shift, 0 for none.

        Phase correlation: Kuglin and Hines, 1975.
        """
        now_HW = (self.recent_HW - self.recent_HW.mean()) * self._rows * self._columns
        then_HW = (self._reference_HW - self._reference_HW.mean()) * self._rows * self._columns
        product_HW = np.fft.rfft2(now_HW) * np.conj(np.fft.rfft2(then_HW))
        product_HW /= np.abs(product_HW) + 1e-6
        peaks_HW = np.fft.irfft2(product_HW, now_HW.shape)
        height, width = peaks_HW.shape
        down, across = divmod(int(peaks_HW.argmax()), width)
        strength = float(peaks_HW[down, across])
        return (down + height // 2) % height - height // 2, (across + width // 2) % width - width // 2, strength


def _correlate(a_HW: np.ndarray, b_HW: np.ndarray) -> float:
    a_HW, b_HW = a_HW - a_HW.mean(), b_HW - b_HW.mean()
    return float((a_HW * b_HW).sum() / (np.sqrt((a_HW * a_HW).sum() * (b_HW * b_HW).sum()) + 1e-6))


def _edges(grey_HW: np.ndarray) -> np.ndarray:
    """Size of the gradient."""
    return np.abs(np.diff(grey_HW, axis=0))[:, :-1] + np.abs(np.diff(grey_HW, axis=1))[:-1]


def _sharpness(image_HW3: np.ndarray) -> float:
    """How steep edges are: steps from pixel to pixel above noise, over contrast across 32 pixels."""
    rows_HW = image_HW3[:: max(1, image_HW3.shape[0] // 24), :, 1].astype(np.int16)
    steps = np.abs(rows_HW[:, 1:] - rows_HW[:, :-1]).ravel()
    middle, steep = len(steps) // 2, int(0.995 * len(steps))
    ordered = np.partition(steps, (middle, steep))
    above_noise = max(0.0, float(ordered[steep]) - 3.3 * float(ordered[middle]))  # 3.4 for normal noise
    return above_noise / (float(np.abs(rows_HW[:, 32:] - rows_HW[:, :-32]).mean()) + 1.0)
