"""What every frame of a camera passes before it may wait for perception: is the picture well, does anything move?"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from stille.video.gate import GateCounters, MotionGate
from stille.video.health import Health, HealthLimits
from stille.video.types import Frame, Trouble

log = logging.getLogger(__name__)

GateMode = Literal["off", "on", "shadow"]


@dataclass(frozen=True)
class CheckSettings:
    """
    Attributes:
        gate: "on" spares perception frames in which nothing moves; "shadow" only counts what that would lose.
        make_gate: makes each camera's gate.
        health: whether pictures are checked, by `limits`.
    """

    gate: GateMode = "off"
    make_gate: Callable[[], MotionGate] = MotionGate
    health: bool = True
    limits: HealthLimits | None = None


@dataclass
class CheckCounts:
    """
    Attributes:
        gated: frames that perception was spared.
        dropped: frames that nobody took in time, where that is not counted elsewhere.
        errors: times that a check failed.
        gate: what the motion gate counted; None without one.
    """

    gated: int = 0
    dropped: int = 0
    errors: int = 0
    gate: GateCounters | None = field(default=None)


class Checks:
    """Of one camera; its thread uses it.

    Args:
        tell: is told of troubles with the picture.
    """

    def __init__(self, camera: str, settings: CheckSettings, tell: Callable[[Trouble], None]):
        self._camera, self._tell = camera, tell
        self._mode = settings.gate
        self._gate = settings.make_gate() if settings.gate != "off" else None
        self._health = Health(camera, settings.limits) if settings.health else None
        self.counts = CheckCounts(gate=self._gate.counters if self._gate is not None else None)

    def look(self, frame: Frame) -> bool | None:
        """Whether something moves in it; None: perception is to be spared it."""
        if self._health is not None:
            try:
                for trouble in self._health.look(frame):
                    self._tell(trouble)
            except Exception:
                self.counts.errors += 1
                log.error(
                    "camera %s: its health cannot be judged", self._camera, exc_info=self.counts.errors <= 3
                )  # fmt: skip
        moves = self._gate is None or self._gate.passes(frame)
        if not moves and self._mode == "on":
            self.counts.gated += 1
            return None
        return moves
