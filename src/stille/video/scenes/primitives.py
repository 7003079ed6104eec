"""Solids that scenes are made of: boxes, capsules and ellipsoids, tubes, and shadows on the floor.

Each is a unit solid under an affine map, so that a ray is met in the solid's own coordinates at the same t:

    BOX    -1..1 in x, y, z
    ROUND  a capsule: radius 1 about the segment z = -ratio..ratio; an ellipsoid where ratio is 0
    TUBE   radius 1 about z, flat ends at z = -1 and 1
    SHADE  no solid: darkens the floor within a stadium, radius 1 about y = -ratio..ratio, z = 0; colour is its strength

Shapes: B clips, T frames (1 for what does not move), N like objects, P primitives.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stille.video.scenes.draw import constant

BOX, ROUND, TUBE, SHADE = range(4)

(
    PLAIN,
    SKIN,
    CLOTH,
    VEST,
    BAND,
    HELMET,
    METAL,
    HAZARD,
    WOOD,
    CARTON,
    FLOOR,
    WALL,
    LAMP,
    WRAP,
    RUBBER,
    MARK,
    GRASS,
    FACADE,
) = range(18)
"""Materials: how light and infrared light come back, and which pattern there is (see `shade`)."""

BODY, HEAD, TORSO = range(3)
PARTS = 3
"""Parts of a person that attributes are seen on."""

Vector = tuple[float | Tensor, float | Tensor, float | Tensor]


class Frame(NamedTuple):
    """A place with axes, [B, T, N, 3] each."""

    origin: Tensor
    x: Tensor
    y: Tensor
    z: Tensor

    def point(self, x: float | Tensor, y: float | Tensor, z: float | Tensor) -> Tensor:
        """Point of the hall; coordinates are numbers or [B, T, N]."""
        return self.origin + self.way(x, y, z)

    def way(self, x: float | Tensor, y: float | Tensor, z: float | Tensor) -> Tensor:
        """Vector of the hall."""
        return _times(self.x, x) + _times(self.y, y) + _times(self.z, z)

    @classmethod
    def standing(cls, place_BTN2: Tensor, heading_BTN2: Tensor, height: float | Tensor = 0.0) -> Frame:
        """Upright: x along the heading, z up."""
        zero = torch.zeros_like(place_BTN2[..., :1])
        origin = torch.cat([place_BTN2, zero + (height[..., None] if isinstance(height, Tensor) else height)], -1)
        x = torch.cat([heading_BTN2, zero], -1)
        y = torch.cat([-heading_BTN2[..., 1:], heading_BTN2[..., :1], zero], -1)
        return cls(origin, x, y, torch.cat([zero, zero, zero + 1], -1))


def turned(vector: Tensor, matrix: Tensor) -> Tensor:
    """Rows [.., 3] times matrices [.., 3, 3] that broadcast: elementwise, as GPUs are slow with tiny products."""
    x, y, z = vector.unsqueeze(-1).unbind(-2)
    one, two, three = matrix.unbind(-2)
    return x * one + y * two + z * three


def _times(vector: Tensor, scale: float | Tensor) -> Tensor:
    return vector * (scale[..., None] if isinstance(scale, Tensor) else scale)


@dataclass(frozen=True, slots=True)
class Primitives:
    """
    Attributes:
        centre_BTP3, axes_BTP33: the map from unit coordinates: centre + u @ axes (rows are scaled axes).
        ratio_BTP: see above. on_BTP: whether it is there.
        colour_BTP3, other_BTP3: linear RGB 0..1, and the second colour of its pattern.
        kinds, groups: P numbers each, known to the host: kind, and the object that it belongs to (rising).
        kind_P, material_P, part_P, group_P: int64, the same for the device.
    """

    centre_BTP3: Tensor
    axes_BTP33: Tensor
    ratio_BTP: Tensor
    on_BTP: Tensor
    colour_BTP3: Tensor
    other_BTP3: Tensor
    kinds: tuple[int, ...]
    groups: tuple[int, ...]
    kind_P: Tensor
    material_P: Tensor
    part_P: Tensor
    group_P: Tensor

    @property
    def count(self) -> int:
        """P."""
        return len(self.kinds)

    def pick(self, index: list[int], frames: slice) -> Primitives:
        """Some of the primitives, in some of the frames."""
        taken: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, tuple):
                taken[f.name] = tuple(value[i] for i in index)
            else:
                taken[f.name] = value[index] if value.dim() == 1 else value[:, frames, index]
        return Primitives(**taken)

    def inverse(self) -> tuple[Tensor, Tensor]:
        """Map to unit coordinates, (p - centre) @ back: back [B, T, P, 3, 3], and centre."""
        a, b, c = self.axes_BTP33.unbind(-2)
        back = torch.stack([torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], -1)
        volume = (a * back[..., 0]).sum(-1)
        return back / torch.where(volume.abs() < 1e-12, 1e-12, volume)[..., None, None], self.centre_BTP3


class Parts:
    """Collects the primitives of N like objects: every call adds one to each.

    Args:
        shape: B, T, N.
    """

    def __init__(self, shape: tuple[int, int, int], device: torch.device):
        self.shape = shape
        self.device = device
        self._moving: list[tuple[Tensor, ...]] = []
        self._fixed: list[tuple[int, int, int]] = []

    def add(
        self,
        kind: int,
        centre: Tensor,
        axes: tuple[Tensor, Tensor, Tensor],
        colour: Tensor | tuple[float, float, float],
        material: int = PLAIN,
        *,
        other: Tensor | tuple[float, float, float] | None = None,
        ratio: float | Tensor = 0.0,
        on: Tensor | None = None,
        part: int = BODY,
    ) -> None:
        """One primitive of each object. Tensors broadcast to [B, T, N], colours to [B, T, N, 3]."""

        def fill(value: float | Tensor, *tail: int) -> Tensor:
            value = value if isinstance(value, Tensor) else constant(value, self.device)
            return value.expand(*self.shape, *tail)

        def paint(value: Tensor | tuple[float, float, float]) -> Tensor:
            return fill(constant(value, self.device) if isinstance(value, tuple) else value, 3)

        there = torch.ones(self.shape, dtype=torch.bool, device=self.device) if on is None else on.expand(self.shape)
        axes_BTN33 = torch.stack([fill(a, 3) for a in axes], -2)
        self._moving.append(
            (fill(centre, 3), axes_BTN33, fill(ratio), there, paint(colour), paint(colour if other is None else other))
        )
        self._fixed.append((kind, material, part))

    def box(self, frame: Frame, centre: Vector, half: Vector, colour, material: int = PLAIN, **more) -> None:
        """A box along the axes of a frame; `half` are half of its sizes."""
        self.add(BOX, frame.point(*centre), _axes(frame, half), colour, material, **more)

    def ball(self, frame: Frame, centre: Vector, radii: Vector, colour, material: int = PLAIN, **more) -> None:
        """An ellipsoid along the axes of a frame."""
        self.add(ROUND, frame.point(*centre), _axes(frame, radii), colour, material, **more)

    def tube(self, frame: Frame, centre: Vector, radii: Vector, colour, material: int = PLAIN, **more) -> None:
        """A cylinder about the frame's z; the third radius is half of its length."""
        self.add(TUBE, frame.point(*centre), _axes(frame, radii), colour, material, **more)

    def wheel(self, frame: Frame, centre: Vector, radius: float, half_width: float, on: Tensor) -> None:
        """A black cylinder about the frame's y."""
        axes = (frame.x * radius, frame.z * radius, frame.y * half_width)
        self.add(TUBE, frame.point(*centre), axes, (0.02, 0.02, 0.022), RUBBER, on=on)

    def limb(self, frame: Frame, a: Tensor, b: Tensor, radius: float | Tensor, colour, material: int, **more) -> None:
        """A capsule between two points of the hall."""
        way = b - a
        length = way.norm(dim=-1, keepdim=True).clamp(min=1e-4)
        z = way / length
        x = torch.linalg.cross(frame.y, z)
        x = x / x.norm(dim=-1, keepdim=True).clamp(min=1e-4)
        y = torch.linalg.cross(z, x)
        radius = radius if isinstance(radius, Tensor) else constant(radius, self.device)
        axes = (_times(x, radius), _times(y, radius), _times(z, radius))
        self.add(ROUND, (a + b) / 2, axes, colour, material, ratio=length[..., 0] / 2 / radius, **more)

    def moving(self) -> list[Tensor]:
        """The first six fields of `Primitives`, object after object."""
        return [torch.stack(values, 3).flatten(2, 3) for values in zip(*self._moving, strict=True)]

    def fixed(self) -> list[tuple[int, int, int]]:
        """Kind, material and part of each primitive, object after object."""
        return self._fixed * self.shape[2]


def _axes(frame: Frame, half: Vector) -> tuple[Tensor, Tensor, Tensor]:
    return _times(frame.x, half[0]), _times(frame.y, half[1]), _times(frame.z, half[2])


def join(collected: list[Parts]) -> Primitives:
    """All in one, groups numbered in this order; what does not move is repeated over the frames."""
    frames = max(parts.shape[1] for parts in collected)
    values = zip(*(parts.moving() for parts in collected), strict=True)
    moving = [torch.cat([v.expand(v.shape[0], frames, *v.shape[2:]) for v in field], 2) for field in values]
    fixed = tuple(row for parts in collected for row in parts.fixed())
    sizes = [len(parts.fixed()) // parts.shape[2] for parts in collected for _ in range(parts.shape[2])]
    groups = tuple(group for group, size in enumerate(sizes) for _ in range(size))
    device = collected[0].device
    kinds, materials, parts_of = zip(*fixed, strict=True)
    centre, axes, ratio, on, colour, other = moving
    kind_P, material_P, part_P, group_P = (constant(v, device).long() for v in (kinds, materials, parts_of, groups))
    return Primitives(centre, axes, ratio, on, colour, other, kinds, groups, kind_P, material_P, part_P, group_P)


def press(parts: Parts, onto: Tensor, normal: Tensor, thickness: float = 0.06) -> None:
    """Press everything flat onto a plane: a person becomes a picture of one.

    Args:
        onto: a point of the plane, normal: its unit normal; [B, 1, N, 3].
    """

    def flat(vector: Tensor, around: Tensor | None) -> Tensor:
        relative = vector if around is None else vector - around
        away = (relative * normal).sum(-1, keepdim=True)
        return vector - away * normal * (1 - thickness)

    for i, (centre, axes, *rest) in enumerate(parts._moving):
        rows = [flat(axes[..., row, :], None) for row in range(3)]
        parts._moving[i] = (flat(centre, onto), torch.stack(rows, -2), *rest)
