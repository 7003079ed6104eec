"""The ray-caster of `trace` as one Triton kernel, for GPUs.

A program makes a tile of one frame. It goes over the objects whose box meets the tile, then over their primitives
whose boxes do, and keeps the nearest hit in registers; nothing but the result is written.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stille.video.scenes.camera import Camera
from stille.video.scenes.outline import group_boxes
from stille.video.scenes.primitives import BOX, ROUND, SHADE, Primitives, turned
from stille.video.scenes.trace import FAR, Traced

_FIELDS = 16  # of a primitive: origin 3, map 9, ratio, strength, two unused
_TILE_W, _TILE_H = 16, 16
_BOX, _ROUND, _SHADE = tl.constexpr(BOX), tl.constexpr(ROUND), tl.constexpr(SHADE)
_FAR = tl.constexpr(FAR)


@triton.jit
def _slab(o, d):
    d = tl.where(tl.abs(d) < 1e-9, 1e-9, d)
    one = (-1 - o) / d
    two = (1 - o) / d
    return tl.minimum(one, two), tl.maximum(one, two)


@triton.jit
def _meet_round(ox, oy, oz, dx, dy, dz, ratio):
    a = dx * dx + dy * dy
    b = ox * dx + oy * dy
    thick = tl.maximum(a, 1e-12)
    root = b * b - thick * (ox * ox + oy * oy - 1)
    side = (-b - tl.sqrt(tl.maximum(root, 0.0))) / thick
    z = oz + side * dz
    cz = oz - tl.where(z < 0, -ratio, ratio)
    full = a + dz * dz
    half = b + cz * dz
    cap_root = half * half - full * (ox * ox + oy * oy + cz * cz - 1)
    cap = (-half - tl.sqrt(tl.maximum(cap_root, 0.0))) / full
    t = tl.where(tl.abs(z) <= ratio, side, tl.where(cap_root > 0, cap, _FAR))
    return tl.where(root > 0, t, _FAR)


@triton.jit
def _meet_straight(ox, oy, oz, dx, dy, dz, is_box):
    near, far = _slab(oz, dz)
    if is_box:
        near_x, far_x = _slab(ox, dx)
        near_y, far_y = _slab(oy, dy)
        near = tl.maximum(near, tl.maximum(near_x, near_y))
        far = tl.minimum(far, tl.minimum(far_x, far_y))
    else:
        a = tl.maximum(dx * dx + dy * dy, 1e-12)
        b = ox * dx + oy * dy
        root = b * b - a * (ox * ox + oy * oy - 1)
        wide = tl.sqrt(tl.maximum(root, 0.0))
        near = tl.maximum(near, tl.where(root > 0, (-b - wide) / a, _FAR))
        far = tl.minimum(far, (-b + wide) / a)
    return tl.where(near < far, near, _FAR)


@triton.jit
def _trace(
    solid_ptr, box_ptr, group_box_ptr, view_ptr, kind_ptr, first_ptr, depth_ptr, index_ptr, dark_ptr, own_ptr,
    width, height, count, groups, objects,
    TILE_W: tl.constexpr, TILE_H: tl.constexpr, FIELDS: tl.constexpr,
):  # fmt: skip
    frame = tl.program_id(2).to(tl.int64)
    x0 = tl.program_id(0) * TILE_W
    y0 = tl.program_id(1) * TILE_H
    lane = tl.arange(0, TILE_W * TILE_H)
    column = x0 + lane % TILE_W
    row = y0 + lane // TILE_W
    inside = (column < width) & (row < height)

    view = view_ptr + frame * 12
    focal = tl.load(view + 9)
    x = (column.to(tl.float32) + 0.5 - width * 0.5) / (focal * tl.load(view + 11))
    y = (row.to(tl.float32) + 0.5 - height * 0.5) / focal
    stretch = 1 + tl.load(view + 10) * (x * x + y * y)
    x = x * stretch
    y = y * stretch
    wx = x * tl.load(view + 0) + y * tl.load(view + 3) + tl.load(view + 6)
    wy = x * tl.load(view + 1) + y * tl.load(view + 4) + tl.load(view + 7)
    wz = x * tl.load(view + 2) + y * tl.load(view + 5) + tl.load(view + 8)

    depth = tl.full([TILE_W * TILE_H], _FAR, tl.float32)
    index = tl.full([TILE_W * TILE_H], -1, tl.int32)
    dark = tl.zeros([TILE_W * TILE_H], tl.float32)
    # Boxes are widened by a pixel, against rounding at their edges.
    right = x0 + TILE_W + 1
    bottom = y0 + TILE_H + 1
    for group in range(groups):
        edge = group_box_ptr + (frame * groups + group) * 4
        meets = (tl.load(edge) < right) & (tl.load(edge + 2) > x0 - 1)
        if meets & (tl.load(edge + 1) < bottom) & (tl.load(edge + 3) > y0 - 1):
            alone = tl.zeros([TILE_W * TILE_H], tl.int32)
            for p in range(tl.load(first_ptr + group), tl.load(first_ptr + group + 1)):
                edge = box_ptr + (frame * count + p) * 4
                meets = (tl.load(edge) < right) & (tl.load(edge + 2) > x0 - 1)
                if meets & (tl.load(edge + 1) < bottom) & (tl.load(edge + 3) > y0 - 1):
                    solid = solid_ptr + (frame * count + p) * FIELDS
                    dx = wx * tl.load(solid + 3) + wy * tl.load(solid + 6) + wz * tl.load(solid + 9)
                    dy = wx * tl.load(solid + 4) + wy * tl.load(solid + 7) + wz * tl.load(solid + 10)
                    dz = wx * tl.load(solid + 5) + wy * tl.load(solid + 8) + wz * tl.load(solid + 11)
                    ox = tl.load(solid + 0)
                    oy = tl.load(solid + 1)
                    oz = tl.load(solid + 2)
                    ratio = tl.load(solid + 12)
                    kind = tl.load(kind_ptr + p)
                    if kind == _SHADE:
                        down = tl.where(tl.abs(dz) < 1e-9, 1e-9, dz)
                        t = -oz / down
                        u = ox + t * dx
                        v = tl.maximum(tl.abs(oy + t * dy) - ratio, 0.0)
                        strength = tl.minimum(tl.maximum((1 - u * u - v * v) * 2.5, 0.0), 1.0)
                        dark = tl.maximum(dark, tl.where(t > 0, strength * tl.load(solid + 13), 0.0))
                    else:
                        start = -(ox * dx + oy * dy + oz * dz) / (dx * dx + dy * dy + dz * dz)
                        ax = ox + start * dx
                        ay = oy + start * dy
                        az = oz + start * dz
                        if kind == _ROUND:
                            t = _meet_round(ax, ay, az, dx, dy, dz, ratio)
                        else:
                            t = _meet_straight(ax, ay, az, dx, dy, dz, kind == _BOX)
                        hit = (t < _FAR) & (t + start > 0) & inside
                        t = t + start
                        alone = tl.where(hit, 1, alone)
                        nearer = hit & (t < depth)
                        depth = tl.where(nearer, t, depth)
                        index = tl.where(nearer, p, index)
            if group < objects:
                tl.atomic_add(own_ptr + frame * objects + group, tl.sum(alone, 0))
    out = (frame * height + row) * width + column
    tl.store(depth_ptr + out, depth, mask=inside)
    tl.store(index_ptr + out, index, mask=inside)
    tl.store(dark_ptr + out, dark, mask=inside)


def trace_triton(primitives: Primitives, camera: Camera, box_BTP4: Tensor, objects: int) -> Traced:
    """As `trace.trace`."""
    w, h = camera.size
    b, t = camera.origin_BT3.shape[:2]
    device, n, p = camera.origin_BT3.device, b * t, primitives.count
    back, centre = primitives.inverse()
    origin = turned(camera.origin_BT3[:, :, None] - centre, back)
    strength = primitives.colour_BTP3[..., :1]
    fields = [origin, back.flatten(-2), primitives.ratio_BTP[..., None], strength, torch.zeros_like(origin[..., :2])]
    solid = torch.cat(fields, -1).reshape(n, p, _FIELDS).contiguous()
    groups = primitives.groups[-1] + 1
    group_box = group_boxes(box_BTP4, primitives.group_P, groups).reshape(n, groups, 4).contiguous()
    first = torch.searchsorted(primitives.group_P, torch.arange(groups + 1, device=device)).to(torch.int32)

    def each(value_B: Tensor) -> Tensor:
        return value_B[:, None, None].expand(b, t, 1)

    lens = each(camera.focal_B), each(camera.bend_B), each(camera.wide_B)
    view = torch.cat([camera.rotation_BT33.flatten(-2), *lens], -1)
    depth = torch.empty(b, t, h, w, device=device)
    index = torch.empty(b, t, h, w, dtype=torch.int32, device=device)
    dark = torch.empty(b, t, h, w, device=device)
    own = torch.zeros(b, t, objects, dtype=torch.int32, device=device)
    grid = (triton.cdiv(w, _TILE_W), triton.cdiv(h, _TILE_H), n)
    _trace[grid](
        solid, box_BTP4.reshape(n, p, 4).contiguous(), group_box, view.reshape(n, 12).contiguous(),
        primitives.kind_P.to(torch.int32), first, depth, index, dark, own, w, h, p, groups, objects,
        TILE_W=_TILE_W, TILE_H=_TILE_H, FIELDS=_FIELDS, num_warps=4,  # type: ignore[call-arg]
    )  # fmt: skip
    return Traced(depth, index, dark, own)
