"""What synthetic scenes may contain and how they are sampled."""

from __future__ import annotations

from dataclasses import dataclass, fields

from stille.errors import ConfigError

LAYOUTS = 48
"""Arrangements of racks times places for the camera; each is varied further by the seed."""

_RANGES = {
    "rate": (0.1, 120.0),
    "gap": (0.0, 3600.0),
    "camera_height": (2.2, 20.0),
    "field_of_view": (20.0, 120.0),
    "layouts": (0, LAYOUTS),
}


@dataclass(frozen=True, slots=True)
class SceneConfig:
    """
    Attributes:
        persons, forklifts, carts, pallets: places for objects; how many are taken varies from clip to clip.
        difficulty: 0 plain pictures to 1 everything that may go wrong with light, weather, lens and compression.
        crowd: chance that all places for persons are taken and most walk in groups.
        incident: chance, per clip, of each of a fall and a near miss.
        rate: frames per second, drawn from this range, logarithmically.
        gap_chance, gap: chance that the second half of the frames begins later, and by how many seconds.
        irregular: share of frames that are dropped, and that are repeated, in a clip that has this trouble.
        outdoor: chance that it is no hall but open ground, with buildings, trees and cars.
        camera_height: metres.
        field_of_view: degrees across the picture.
        layouts: first, and one after the last, of those that are used: lets some be held out.

    Raises:
        ConfigError: a number outside of what makes sense.
    """

    persons: int = 12
    forklifts: int = 3
    carts: int = 3
    pallets: int = 20
    difficulty: float = 0.5
    crowd: float = 0.15
    incident: float = 0.3
    rate: tuple[float, float] = (3.0, 15.0)
    gap_chance: float = 0.25
    gap: tuple[float, float] = (4.0, 75.0)
    irregular: float = 0.06
    outdoor: float = 0.3
    camera_height: tuple[float, float] = (3.0, 8.0)
    field_of_view: tuple[float, float] = (50.0, 95.0)
    layouts: tuple[int, int] = (0, LAYOUTS)

    def __post_init__(self) -> None:
        for name in ("persons", "forklifts", "carts"):
            if not 1 <= getattr(self, name) <= 64:
                raise ConfigError(f"SceneConfig.{name} is {getattr(self, name)}; give 1 to 64 places")
        if not self.forklifts <= self.pallets <= 64 or self.pallets < 4:
            raise ConfigError(f"SceneConfig.pallets is {self.pallets}; give at least 4, one per forklift, at most 64")
        for name in ("difficulty", "crowd", "incident", "gap_chance", "irregular", "outdoor"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"SceneConfig.{name} is {getattr(self, name)}; expected 0 to 1")
        for name, (least, most) in _RANGES.items():
            low, high = getattr(self, name)
            if not least <= low <= high <= most or (name == "layouts" and low == high):
                raise ConfigError(f"SceneConfig.{name} is {(low, high)}; expected two rising numbers {least} to {most}")

    @property
    def places(self) -> int:
        """M: persons on foot first, then drivers, one for each forklift, then forklifts, carts, pallets."""
        return self.persons + 2 * self.forklifts + self.carts + self.pallets

    @property
    def kinds(self) -> tuple[int, ...]:
        """Number in `KINDS` of each place."""
        return (0,) * (self.persons + self.forklifts) + (1,) * self.forklifts + (3,) * self.carts + (2,) * self.pallets

    def replace(self, **changes: object) -> SceneConfig:
        """The same with other values."""
        return SceneConfig(**{f.name: changes.pop(f.name, getattr(self, f.name)) for f in fields(self)}, **changes)  # type: ignore[arg-type]
