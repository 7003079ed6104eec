"""Where primitives fall in the picture: exact outlines under the lens, boxes of objects and slots.

The outline of an ellipsoid or a disc is a conic: the projection of its dual quadric (Hartley and Zisserman, Multiple
View Geometry, 8.3). Where it touches its upright box are four points; a capsule's are those of its two end ellipsoids,
a tube's those of its two discs, a box's its corners. Only then does the lens bend them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stille.video.scenes.camera import NEAR, Camera
from stille.video.scenes.draw import constant
from stille.video.scenes.layout import BAY_WIDTH, LEVELS, RACK_DEPTH, Layout
from stille.video.scenes.primitives import BOX, ROUND, SHADE, TUBE, Primitives, turned

_CORNERS = tuple((x, y, z) for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0))


def touch_points(primitives: Primitives, camera: Camera) -> Tensor:
    """[B, T, P, 8, 2] in pixels: points of each outline between which its box lies. Nothing is behind the camera."""
    turn = camera.rotation_BT33.transpose(-1, -2)
    centre = camera.to_camera(primitives.centre_BTP3)
    axes = turned(primitives.axes_BTP33, turn[:, :, None, None])
    return camera.to_pixels(_flat(centre, axes, primitives).flatten(2, 3)).unflatten(2, (-1, 8))


def _flat(centre: Tensor, axes: Tensor, primitives: Primitives) -> Tensor:
    kind = primitives.kind_P
    corner = constant(_CORNERS, centre.device)
    flat_shade = torch.stack([torch.ones_like(primitives.ratio_BTP), 1 + primitives.ratio_BTP,
                              torch.zeros_like(primitives.ratio_BTP)], -1)  # fmt: skip
    scale = torch.where((kind == SHADE)[:, None], flat_shade, 1.0)
    corners = centre[..., None, :] + turned(corner, (axes * scale[..., None])[..., None, :, :])
    corners = corners[..., :2] / corners[..., 2:].clamp(min=NEAR)

    tube = (kind == TUBE)[:, None]
    along = axes[..., 2, :] * torch.where(tube, 1.0, primitives.ratio_BTP[..., None])
    thick = torch.where(tube, 0.0, 1.0)
    rounds = []
    for end in (-1.0, 1.0):
        middle = centre + end * along
        flat = torch.stack([axes[..., 0, :], axes[..., 1, :], axes[..., 2, :] * thick], -2)
        conic = (flat[..., :, None] * flat[..., None, :]).sum(-3) - middle[..., :, None] * middle[..., None, :]
        last = conic[..., 2, 2].clamp(max=-1e-6)
        for i in (0, 1):
            mid = conic[..., i, 2] / last
            apart = (mid * mid - conic[..., i, i] / last).clamp(min=0).sqrt()
            for sign in (-1.0, 1.0):
                line = mid + sign * apart
                point = conic[..., i] - line[..., None] * conic[..., 2]
                z = point[..., 2]
                z = torch.where(z.abs() < 1e-9, -1e-9, z)
                touch = point[..., :2] / z[..., None]
                rounds.append(torch.where((middle[..., 2] > NEAR)[..., None], touch, middle[..., :2] / NEAR))
    return torch.where(((kind == BOX) | (kind == SHADE))[:, None, None], corners, torch.stack(rounds, -2))


def primitive_boxes(primitives: Primitives, camera: Camera) -> Tensor:
    """Boxes [B, T, P, 4] in pixels, beyond the edges too; left > right where it is not there or behind the camera.

    Those that are partly behind the camera, as floors are, get one wide enough for any picture.
    """
    point = touch_points(primitives, camera)
    box = torch.cat([point.amin(-2), point.amax(-2)], -1)
    depth = camera.rotation_BT33[:, :, 2]
    mid = camera.to_camera(primitives.centre_BTP3)[..., 2]
    lean = (primitives.axes_BTP33 * depth[:, :, None, None]).sum(-1).abs()
    longer = torch.ones_like(lean)
    longer[..., 2] = torch.where(primitives.kind_P == ROUND, 1 + primitives.ratio_BTP, 1.0)
    longer[..., 1] = torch.where(primitives.kind_P == SHADE, 1 + primitives.ratio_BTP, 1.0)
    extent = (lean * longer).sum(-1)
    everywhere = constant((-1e4, -1e4, 1e4, 1e4), box.device)
    nowhere = constant((1e6, 1e6, -1e6, -1e6), box.device)
    box = torch.where((mid - extent < NEAR)[..., None], everywhere, box)
    there = primitives.on_BTP & (mid + extent > NEAR)
    return torch.where(there[..., None], box, nowhere)


def group_boxes(box_BTP4: Tensor, group_P: Tensor, groups: int) -> Tensor:
    """Boxes [B, T, G, 4] around the primitives of each group, as `primitive_boxes`."""
    b, t, _, _ = box_BTP4.shape
    index = group_P[:, None].expand(b, t, -1, 2)
    low = torch.full((b, t, groups, 2), 1e6, device=box_BTP4.device)
    high = -low
    low = low.scatter_reduce(2, index, box_BTP4[..., :2], "amin")
    return torch.cat([low, high.scatter_reduce(2, index, box_BTP4[..., 2:], "amax")], -1)


def slot_boxes(layout: Layout, camera: Camera) -> Tensor:
    """Boxes [B, S, 4] in 0..1 of the space of each slot in the first frame; 0 where none, or outside."""
    along = layout.slot_out_BS2.flip(-1) * constant((-1.0, 1.0), layout.slot_BS3.device)
    zero = torch.zeros_like(along[..., :1])
    out = torch.cat([layout.slot_out_BS2, zero], -1) * RACK_DEPTH / 2
    side = torch.cat([along, zero], -1) * BAY_WIDTH * 0.46
    up = torch.zeros_like(out)
    up[..., 2] = 0.55 if LEVELS > 1 else 0.6
    middle = layout.slot_BS3 + up
    corner = constant(_CORNERS, middle.device)
    points = middle[:, :, None] + corner @ torch.stack([out, side, up], -2)
    pixel = camera.at(slice(0, 1)).project(points.flatten(1, 2)[:, None])[:, 0].unflatten(1, (-1, 8))
    box = torch.cat([pixel.amin(-2), pixel.amax(-2)], -1)
    return cut(box, camera.size) * layout.slot_on_BS[..., None]


def cut(box: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes in pixels cut at the picture's edges, in 0..1 of it; 0 where nothing is left, or one is nan."""
    scale = constant((size[0], size[1]) * 2, box.device)
    inside = torch.maximum(torch.minimum(box / scale, torch.ones_like(box)), torch.zeros_like(box))
    left = (inside[..., 2:] - inside[..., :2]).amin(-1) > 0
    return torch.where((left & ~box.isnan().any(-1))[..., None], inside, 0.0)
