"""Troubles of one camera, each of which begins and ends once although its signal flickers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from stille.video.types import Trouble

TroubleKind = Literal["offline", "frozen", "black", "blurred", "moved", "clock", "size"]


@dataclass
class _State:
    since: float | None = None  # the signal came on
    quiet: float | None = None  # it went off, while the trouble is open
    open: bool = False
    detail: str = ""


class Alarms:
    """Hysteresis: a trouble begins once its signal has been on for so long, and ends once it has been off for so long.

    Args:
        limits: by kind, the seconds that it has to be on and off.
    """

    def __init__(self, camera: str, limits: Mapping[TroubleKind, tuple[float, float]]):
        self.camera = camera
        self._limits = dict(limits)
        self._states = {kind: _State() for kind in limits}

    def update(self, kind: TroubleKind, on: bool, time: float, detail: str = "") -> Trouble | None:
        """A trouble that begins or ends at `time`, or None. `detail` is kept from the last signal that was on."""
        state = self._states[kind]
        if not on and state.since is None:
            return None
        after, clear = self._limits[kind]
        if on:
            state.quiet, state.detail = None, detail
            if state.since is None or time < state.since:  # the clock may have been put back
                state.since = time
            if not state.open and time - state.since >= after:
                state.open = True
                return Trouble(self.camera, kind, time, state.since, False, detail)
            return None
        if not state.open:
            state.since = None
            return None
        if state.quiet is None or time < state.quiet:
            state.quiet = time
        if time - state.quiet < clear:
            return None
        over = Trouble(self.camera, kind, time, state.since if state.since is not None else time, True, state.detail)
        self._states[kind] = _State()
        return over

    def is_open(self, kind: TroubleKind) -> bool:
        """Whether the trouble has begun and not ended."""
        return self._states[kind].open

    def is_on(self, kind: TroubleKind) -> bool:
        """Whether its signal is on or has gone off just now, open or not yet."""
        return self._states[kind].since is not None
