"""From the time in a stream to the time on the wall."""

from __future__ import annotations

import time
from dataclasses import dataclass

JUMP_S = 2.0
"""A step of a clock from which on it is a jump, not jitter."""

LEAK = 200e-6
"""How fast a camera's clock may fall behind ours, as a fraction: twice what cheap quartz does."""

_SETTLE_S = 10.0
_GAP_S = 3600.0


@dataclass
class LiveClock:
    """Stream time of a live source to wall time, however fast the camera's clock runs.

    A frame cannot arrive before it was taken, and delays only add: the smallest difference of arrival and stream time
    is the best one. It follows at once when it gets smaller, and grows by `LEAK`, so that it also follows a clock that
    runs slow. A step by `JUMP_S` or more, of the camera's clock or of the machine's, starts it anew.

    Attributes:
        lag: seconds by which the last frame came later than the fastest ones.
        jumps: steps so far.
    """

    lag: float = 0.0
    jumps: int = 0
    _offset: float | None = None  # monotonic time less stream time
    _stream: float = 0.0
    _arrival: float = 0.0
    _wall: float | None = None  # time.time() less time.monotonic()
    _last: float = float("-inf")
    _least: float = float("inf")  # lag since `_since`
    _since: float = 0.0

    def restart(self) -> None:
        """The next frame is of a new connection: its stream time has nothing to do with the last one's."""
        self._offset = None

    def map(self, stream: float | None, arrival: float, wall: float | None = None) -> tuple[float, str | None]:
        """Wall time of a frame, later than that of the frame before unless this machine's clock was put back.

        Args:
            stream: seconds; None if the frame has no timestamp: then it was taken when it arrived.
            arrival: `time.monotonic()`.
            wall: `time.time()` at that moment; default: now.

        Returns:
            the time, and what jumped, in words, if something did.
        """
        base = (wall if wall is not None else time.time()) - arrival
        jump = None
        if self._wall is not None and abs(base - self._wall) >= JUMP_S:
            jump = f"the clock of this machine was put {'forward' if base > self._wall else 'back'} by "
            jump += f"{abs(base - self._wall):.1f} s"
            self.jumps += 1
            self._last = float("-inf")
        self._wall = base
        if stream is None:
            stream = arrival - (self._offset or 0.0)
        jump = self._follow(stream, arrival) or jump
        moment = max(base + stream + (self._offset or 0.0), self._last + 1e-3)
        self._last = moment
        return moment, jump

    def _follow(self, stream: float, arrival: float) -> str | None:
        best = arrival - stream
        if self._offset is None:
            self._begin(stream, arrival)
            return None
        step, passed = stream - self._stream, arrival - self._arrival
        ahead = stream + self._offset - arrival
        self._stream, self._arrival = stream, arrival
        if ahead >= JUMP_S:
            return self._jump(f"timestamps went forward by {step:.1f} s within {passed:.1f} s", stream, arrival)
        if step <= -JUMP_S:
            return self._jump(f"timestamps went back by {-step:.1f} s", stream, arrival)
        self._offset = min(self._offset + LEAK * max(0.0, passed), best)
        self.lag = best - self._offset
        self._least = min(self._least, self.lag)
        if arrival - self._since >= _SETTLE_S:
            if self._least >= JUMP_S:  # never caught up: the camera's clock stood still meanwhile
                return self._jump(f"timestamps fell behind by {self._least:.1f} s", stream, arrival)
            self._least, self._since = float("inf"), arrival
        return None

    def _jump(self, what: str, stream: float, arrival: float) -> str:
        self.jumps += 1
        self._begin(stream, arrival)
        return what

    def _begin(self, stream: float, arrival: float) -> None:
        self._offset, self._stream, self._arrival, self.lag = arrival - stream, stream, arrival, 0.0
        self._least, self._since = float("inf"), arrival


@dataclass
class FileClock:
    """Stream time of a recording to wall time: it begins at `start` and never goes back.

    Attributes:
        start: wall time of the first frame.
        jumps: timestamps that went back by `JUMP_S`, or forward by an hour; there it goes on by one frame.
    """

    start: float
    jumps: int = 0
    _offset: float | None = None
    _last: float | None = None

    def restart(self) -> None:
        """The next frame is the first of another pass or file: it follows on the last one."""
        self._offset = None

    def map(self, stream: float | None, interval: float) -> tuple[float, str | None]:
        """Wall time of a frame, and what jumped, in words, if something did.

        Args:
            interval: seconds from frame to frame, for frames without timestamp and after jumps.
        """
        following = self.start if self._last is None else self._last + interval
        jump = None
        if stream is None:
            moment = following
        elif self._offset is None:
            moment, self._offset = following, following - stream
        else:
            moment = stream + self._offset
            step = moment - (self._last if self._last is not None else moment)
            if step <= -JUMP_S or step > _GAP_S:
                jump = f"timestamps went {'back' if step < 0 else 'forward'} by {abs(step):.1f} s"
                self.jumps += 1
                moment, self._offset = following, following - stream
            elif step <= 0 and self._last is not None:
                moment = self._last + 1e-3
        self._last = moment
        return moment, jump
