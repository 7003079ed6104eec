"""Outlines and colours of moving primitives, as polygons for the painter.

The outline of an ellipsoid is the circle in which, in unit coordinates, the cone from the camera touches the sphere.

Shapes: T frames, Q primitives.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stille.video.scenes.graph import Scenes
from stille.video.scenes.lens import Lens, exposed, toned
from stille.video.scenes.primitives import BOX, ROUND, SHADE, TUBE, Primitives
from stille.video.scenes.shade import Light, illuminate

_ROUND = 12  # points of a circle
_NEAR = 0.4  # metres
# Corners of a box by number (x is the high bit); faces -x, +x, -y, +y, -z, +z in order around.
_FACES = ((0, 1, 3, 2), (4, 5, 7, 6), (0, 1, 5, 4), (2, 3, 7, 6), (0, 2, 6, 4), (1, 3, 7, 5))


class Piece(NamedTuple):
    """A convex polygon in pixels [K, 2], with the depth of its primitive, colour and part."""

    shape: NDArray[np.float32]
    depth: float
    colour: NDArray[np.uint8]
    part: int


class Polygons:
    """All polygons of a clip.

    Args:
        prims: those that move; the other arguments are of them, [T, Q, ...].
        face_TQF42: pixels of boxes' faces; facing_TQF: which are seen. face_colour_TQF3: uint8.
        round_TQK2: pixels around whose hull is the outline of the others; round_colour_TQ3.
        depth_TQ: along the camera's axis; away_TQ: from the camera.
    """

    def __init__(
        self, prims: Primitives, face: Tensor, facing: Tensor, face_colour: Tensor, outline: Tensor,
        outline_colour: Tensor, depth: Tensor, away: Tensor,
    ):  # fmt: skip
        self._kinds = np.array(prims.kinds)
        self._parts = prims.part_P.tolist()
        self._face, self._facing, self._face_colour = face.numpy(), facing.numpy(), face_colour.numpy()
        self._outline, self._outline_colour = outline.numpy(), outline_colour.numpy()
        self._depth, self._away = depth.numpy(), away.numpy()
        self._on = (prims.on_BTP[0] & (depth > _NEAR)).numpy()
        self._strength = prims.colour_BTP3[0, :, :, 0].numpy()
        groups = np.array(prims.groups)
        self._groups = [(int(g), np.flatnonzero((groups == g) & (self._kinds != SHADE))) for g in np.unique(groups)]

    def shadows(self, t: int) -> Iterator[tuple[NDArray[np.float32], float]]:
        """Outlines of shadows, and how dark they are."""
        import cv2

        for q in np.flatnonzero((self._kinds == SHADE) & self._on[t]):
            yield cv2.convexHull(self._outline[t, q])[:, 0], float(self._strength[t, q])

    def objects(self, t: int) -> Iterator[tuple[int, list[Piece]]]:
        """Group and pieces of each, the farthest first."""
        there = [(g, index[self._on[t, index]]) for g, index in self._groups]
        there = [(g, index) for g, index in there if len(index)]
        for group, index in sorted(there, key=lambda one: -self._away[t, one[1]].mean()):
            # Later primitives of an object lie on earlier ones (bands on vests): a little nearer.
            order = index[np.argsort(-(self._away[t, index] - 0.004 * np.arange(len(index))), kind="stable")]
            pieces = [piece for q in order for piece in self._pieces(t, q)]
            if pieces:
                yield group, pieces

    def _pieces(self, t: int, q: int) -> Iterator[Piece]:
        import cv2

        depth, part = float(self._depth[t, q]), self._parts[q]
        if self._kinds[q] == BOX:
            for face in np.flatnonzero(self._facing[t, q]):
                yield Piece(self._face[t, q, face], depth, self._face_colour[t, q, face], part)
        else:
            hull = cv2.convexHull(self._outline[t, q])[:, 0]
            yield Piece(hull, depth, self._outline_colour[t, q], part)


def build_polygons(scenes: Scenes, moving: list[int], light: Light, lens: Lens) -> Polygons:
    """Polygons of these primitives of one clip; exposure as in its first frame, and no flicker."""
    prims = scenes.primitives.pick(moving, slice(None))
    camera = scenes.camera
    centre, axes = prims.centre_BTP3, prims.axes_BTP33
    t, q = centre.shape[1:3]
    eye = camera.origin_BT3[:, :, None]
    view = camera.to_camera(centre)
    depth, away = view[..., 2], view.norm(dim=-1)

    def pixels(points: Tensor) -> Tensor:
        local = camera.to_camera(points.reshape(1, t, -1, 3))
        return camera.to_pixels(local[..., :2] / local[..., 2:].clamp(min=0.1)).reshape(*points.shape[1:-1], 2)

    corner = torch.tensor([(x, y, z) for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)])
    corner_TQ82 = pixels(centre[..., None, :] + corner @ axes)
    face_TQF42 = corner_TQ82[:, :, torch.tensor(_FACES)]
    sides = torch.stack([sign * axes[..., i, :] for i in range(3) for sign in (-1, 1)], -2)
    facing = (centre[..., None, :] + sides - eye[..., None, :]).mul(sides).sum(-1) < 0

    def colours(normal: Tensor) -> Tensor:
        """uint8 [T, Q, X, 3] for normals [1, T, Q, X, 3] of the primitives."""
        x = normal.shape[3]
        normal = normal / normal.norm(dim=-1, keepdim=True).clamp(min=1e-9)

        def wide(value: Tensor) -> Tensor:
            return value[:, :, :, None].expand(*value.shape[:3], x, *value.shape[3:])

        rays = (centre - eye) / depth.clamp(min=0.1)[..., None]
        material = prims.material_P[None, None].expand(1, t, q)
        steady = replace(light, flicker_BT=torch.ones(1, t))
        lit = illuminate(wide(prims.colour_BTP3), wide(material), normal, wide(centre), wide(rays),
                         wide(depth), torch.zeros(1, t, q, x), steady)  # fmt: skip
        first = exposed(lit.reshape(1, 1, t * q, x, 3), replace(lens, gain_BT=lens.gain_BT[:, :1]))
        return (toned(first, lens) * 255).round().clamp(0, 255).to(torch.uint8).reshape(t, q, x, 3)

    toward = (eye - centre) / away[..., None]
    up = torch.tensor([0.0, 0.0, 0.6])
    outline = _outlines(prims, eye, centre, axes)
    return Polygons(
        prims, face_TQF42, facing[0], colours(sides), pixels(outline), colours((toward + up)[..., None, :])[:, :, 0],
        depth[0], away[0],
    )  # fmt: skip


def _outlines(prims: Primitives, eye: Tensor, centre: Tensor, axes: Tensor) -> Tensor:
    """Points [1, T, Q, 2 * _ROUND, 3] on the outlines of capsules, tubes and shadows."""
    angle = torch.arange(_ROUND) * (2 * torch.pi / _ROUND)
    c, s = angle.cos(), angle.sin()
    back, _ = prims.inverse()
    seen_from = ((eye - centre)[..., None, :] @ back)[..., 0, :]
    kind = torch.tensor(prims.kinds)[:, None, None]
    circle = torch.stack([c, s, torch.zeros_like(c)], -1)
    ends = []
    for end in (-1.0, 1.0):
        shift = torch.zeros_like(seen_from)
        shift[..., 2] = end * torch.where(kind[:, 0, 0] == TUBE, 1.0, prims.ratio_BTP)
        view = seen_from - shift
        far = view.norm(dim=-1, keepdim=True).clamp(min=1.001)
        n = view / far
        helper = torch.where(n[..., :1].abs() < 0.7, torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0]))
        u = torch.linalg.cross(n, helper)
        u = u / u.norm(dim=-1, keepdim=True)
        v = torch.linalg.cross(n, u)
        radius = (1 - 1 / far**2).sqrt()
        ring = u[..., None, :] * c[:, None] + v[..., None, :] * s[:, None]
        touch = (n / far)[..., None, :] + radius[..., None] * ring
        lying = torch.zeros_like(shift)
        lying[..., 1] = end * prims.ratio_BTP
        points = torch.where(kind == ROUND, touch + shift[..., None, :], circle + shift[..., None, :])
        ends.append(torch.where(kind == SHADE, circle + lying[..., None, :], points))
    return centre[..., None, :] + torch.cat(ends, -2) @ axes
