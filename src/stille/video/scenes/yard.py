"""Open ground in place of a hall: lawns, paths, buildings, trees, poles and parked cars."""

from __future__ import annotations

import torch
from torch import Tensor

from stille.video.scenes.draw import Draw, constant
from stille.video.scenes.layout import Layout
from stille.video.scenes.primitives import (
    CLOTH,
    FACADE,
    FLOOR,
    GRASS,
    MARK,
    METAL,
    PLAIN,
    RUBBER,
    TUBE,
    Frame,
    Parts,
)

_WALLS = ((0.35, 0.17, 0.11), (0.45, 0.3, 0.2), (0.6, 0.58, 0.55), (0.3, 0.3, 0.32), (0.5, 0.45, 0.35))
_PATHS = ((0.2, 0.2, 0.2), (0.35, 0.34, 0.33), (0.45, 0.38, 0.3), (0.12, 0.12, 0.13), (0.5, 0.5, 0.48))
_BROWN = (0.13, 0.09, 0.06)


def add_yard(parts: Parts, draw: Draw, layout: Layout) -> None:
    """About 70 primitives."""
    outdoor = layout.outdoor_B[:, None, None]

    def number(name: str, low: float = 0.0, high: float = 1.0) -> Tensor:
        return draw.uniform(f"yard {name}", 1, 1, low=low, high=high)

    def chance(name: str, p: float) -> Tensor:
        return outdoor & draw.chance(f"yard {name}", 1, 1, p=p)

    def colour(name: str, low: float, high: float) -> Tensor:
        return draw.uniform(f"yard {name}", 3, low=low, high=high)[:, None, None]

    def frame(name: str, least: float, most: float) -> Frame:
        """Somewhere between two distances from the middle, turned somehow."""
        way, turn = number(f"{name} way", -3.1416, 3.1416), number(f"{name} turn", -3.1416, 3.1416)
        far = least + (most - least) * number(f"{name} far")
        place = torch.stack([far * way.cos(), far * way.sin()], -1)
        return Frame.standing(place, torch.stack([turn.cos(), turn.sin()], -1))

    green = colour("green", 0.03, 0.1) + constant((0.03, 0.12, 0.0), draw.device) * number("lush")[..., None]
    for i in range(3):  # lawns, then ways across them: 1 mm higher each
        at = frame(f"lawn {i}", 0.0, 22.0)
        size = (number(f"lawn w {i}", 5, 25), number(f"lawn d {i}", 4, 16), 0.0004)
        parts.box(at, (0, 0, 0.0004), size, green, GRASS, other=green * 0.6, on=chance(f"lawn {i}", 0.7))
    for i in range(2):
        paint = draw.choice(f"yard path {i}", of=_PATHS)[:, None, None]
        size = (60.0, number(f"path w {i}", 0.6, 4.0), 0.0008)
        parts.box(frame(f"path {i}", 0.0, 10.0), (0, 0, 0.0008), size, paint, FLOOR, other=paint * 0.8,
                  on=chance(f"path {i}", 0.6))  # fmt: skip
    for i in range(3):
        parts.box(frame(f"line {i}", 0.0, 12.0), (0, 0, 0.001), (number(f"line l {i}", 1, 25), 0.06, 0.001),
                  (0.75, 0.73, 0.65), MARK, on=chance(f"line {i}", 0.5))  # fmt: skip

    for i in range(4):
        at = frame(f"house {i}", 26.0, 48.0)
        wall, glass = draw.choice(f"yard wall {i}", of=_WALLS)[:, None, None], colour(f"glass {i}", 0.02, 0.35)
        high = number(f"house h {i}", 1.6, 6.0)
        size = (number(f"house w {i}", 4, 14), number(f"house d {i}", 4, 12), high)
        parts.box(at, (0, 0, high), size, wall * number(f"house s {i}", 0.6, 1.1)[..., None], FACADE, other=glass,
                  on=chance(f"house {i}", 0.75))  # fmt: skip
    for i in range(2):  # hedges and low walls
        size = (number(f"hedge w {i}", 1.5, 9), number(f"hedge d {i}", 0.15, 0.6), number(f"hedge h {i}", 0.2, 0.7))
        leafy = draw.chance(f"yard leafy {i}", 1, 1, p=0.5)[..., None]
        parts.box(frame(f"hedge {i}", 8.0, 20.0), (0, 0, size[2]), size, torch.where(leafy, green * 0.8, 0.35), GRASS,
                  other=torch.where(leafy, green * 0.4, 0.25), on=chance(f"hedge {i}", 0.5))  # fmt: skip

    for i in range(4):
        at, there = frame(f"tree {i}", 7.0, 32.0), chance(f"tree {i}", 0.6)
        high, wide = number(f"tree h {i}", 1.0, 3.5), number(f"tree w {i}", 0.5, 2.2)
        leaf = green * number(f"tree s {i}", 0.5, 1.3)[..., None]
        parts.tube(at, (0, 0, high / 2), (0.13, 0.13, high / 2), _BROWN, PLAIN, on=there)
        for x, z in ((-0.4, 0.3), (0.4, 0.5), (0.0, 1.0)):
            parts.ball(at, (x * wide, x * wide * 0.6, high + z * wide), (wide, wide, wide * 0.8), leaf, CLOTH,
                       other=leaf * 0.5, on=there)  # fmt: skip
    for i in range(5):  # lamp posts, signs, bollards: what stands before those who walk
        at, there, thick = frame(f"pole {i}", 1.5, 14.0), chance(f"pole {i}", 0.5), number(f"pole t {i}", 0.025, 0.09)
        high = number(f"pole h {i}", 0.4, 2.6)
        paint = colour(f"pole {i}", 0.05, 0.7)
        parts.tube(at, (0, 0, high), (thick, thick, high), paint, METAL, on=there)
        plate = (number(f"plate w {i}", 0.1, 0.5), 0.015, number(f"plate h {i}", 0.1, 0.35))
        parts.box(at, (0, 0.06, high * 1.7), plate, colour(f"plate {i}", 0.02, 0.9), PLAIN,
                  on=there & chance(f"plate {i}", 0.4))  # fmt: skip

    for i in range(3):
        at, there = frame(f"car {i}", 11.0, 24.0), chance(f"car {i}", 0.45)
        paint, tall = colour(f"car {i}", 0.02, 0.85), number(f"car h {i}", 0.22, 0.5)
        parts.box(at, (0, 0, 0.6), (2.1, 0.85, 0.32), paint, METAL, on=there)
        parts.ball(at, (0, 0, 0.75), (2.25, 0.8, 0.3), paint, METAL, on=there)
        parts.box(at, (-0.3, 0, 0.92 + tall), (1.3, 0.75, tall), paint, METAL, on=there)
        parts.box(at, (-0.3, 0, 0.98 + tall), (1.15, 0.77, tall * 0.6), (0.03, 0.04, 0.05), PLAIN, on=there)
        for x in (-1.3, 1.3):
            for y in (-0.8, 0.8):
                axes = (at.x * 0.32, at.z * 0.32, at.y * 0.12)
                parts.add(TUBE, at.point(x, y, 0.32), axes, (0.02, 0.02, 0.022), RUBBER, on=there)


def without_hall(parts: Parts, layout: Layout) -> None:
    """Where there is open ground nothing of the hall stays but its ground, and lines on it."""
    for i, (value, (_, material, _)) in enumerate(zip(parts._moving, parts._fixed, strict=True)):
        if material not in (FLOOR, MARK):
            centre, axes, ratio, on, *rest = value
            parts._moving[i] = (centre, axes, ratio, on & ~layout.outdoor_B[:, None, None], *rest)
