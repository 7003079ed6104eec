"""Whether anything moves in a camera's picture: perception may skip what shows nothing new."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stille.video.grey import halve, sample
from stille.video.types import Frame


@dataclass
class GateCounters:
    """Attributes:
    looked, skipped: frames.
    longest_skip_s: the longest time between two frames that were let through.
    """

    looked: int = 0
    skipped: int = 0
    longest_skip_s: float = 0.0


class MotionGate:
    """Block differences of a small grey picture against a running background, each held against its own noise.

    A cell of about 8 x 8 pixels (of 640 x 360) moves if it differs by more than `least` grey levels and by more than
    five times what it usually does; the picture moves if two cells close to each other do. What stays is part of the
    background after a minute. A change of the whole picture's brightness is none.

    Args:
        longest_skip_s: after so long a frame is let through whatever it shows.
        hold_s: frames are let through for so long after the last motion.
    """

    def __init__(self, longest_skip_s: float = 1.0, hold_s: float = 2.0, least: float = 6.0):
        self.longest_skip_s, self.hold_s, self.least = longest_skip_s, hold_s, least
        self.counters = GateCounters()
        self._background_HW: np.ndarray | None = None
        self._noise_HW = np.zeros(0, np.float32)
        self._time = self._moved = self._passed = 0.0

    def passes(self, frame: Frame) -> bool:
        """Whether perception has to see this frame. Takes every frame of one camera in turn."""
        counters = self.counters
        counters.looked += 1
        moving = self._look(halve(sample(frame.image_HW3)), frame.time)
        if moving:
            self._moved = frame.time
        since = frame.time - self._passed
        held = 0 <= frame.time - self._moved < self.hold_s
        if held or not 0 <= since < self.longest_skip_s:
            if counters.looked > 1 and since > 0:
                counters.longest_skip_s = max(counters.longest_skip_s, since)
            self._passed = frame.time
            return True
        counters.skipped += 1
        return False

    def _look(self, grey_HW: np.ndarray, time: float) -> bool:
        background_HW = self._background_HW
        if background_HW is None or background_HW.shape != grey_HW.shape:
            self._background_HW, self._noise_HW = grey_HW, np.full_like(grey_HW, 2.0)
            self._time = time
            return True
        passed = min(max(time - self._time, 0.0), 1.0)
        self._time = time
        change_HW = grey_HW - background_HW
        background_HW += min(1.0, passed / 5) * np.median(change_HW)  # daylight: all of it at once
        change_HW -= np.median(change_HW)
        size_HW = np.abs(change_HW)
        moving_HW = size_HW > np.maximum(self.least, 5 * self._noise_HW)
        rate_HW = np.where(moving_HW, passed / 60, passed / 5)
        background_HW += rate_HW * change_HW
        calm_HW = np.where(moving_HW, 0.0, passed / 10)
        self._noise_HW += calm_HW * (size_HW - self._noise_HW)
        np.maximum(self._noise_HW, 0.3, out=self._noise_HW)
        rows, columns = np.nonzero(moving_HW)
        if len(rows) < 2:
            return False
        if len(rows) > 50:
            return True
        near_NN = np.maximum(abs(rows[:, None] - rows), abs(columns[:, None] - columns)) <= 2
        return bool(near_NN.sum() > len(rows))
