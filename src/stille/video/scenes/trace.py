"""The ray-caster in torch: for every pixel the nearest primitive, and for every object the pixels it would fill alone.

It loops over primitives and looks at all frames of a chunk at once, within the part of the picture where the primitive
is in any of them. On GPUs the Triton kernel in `trace_triton` does the same.

Shapes: B clips, T frames, H, W picture, P primitives, M objects.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stille.video.scenes.camera import Camera
from stille.video.scenes.primitives import BOX, ROUND, SHADE, Primitives, turned

FAR = 1e6


@dataclass(frozen=True, slots=True)
class Traced:
    """
    Attributes:
        depth_BTHW: float32, metres along the camera's axis; `FAR` where nothing is.
        index_BTHW: int32, number of the primitive; -1 where nothing is.
        dark_BTHW: float32 0..1, how much shadow lies on the floor there.
        own_BTM: int32, pixels that an object fills if nothing is before it.
    """

    depth_BTHW: Tensor
    index_BTHW: Tensor
    dark_BTHW: Tensor
    own_BTM: Tensor


def meet(kind: int, o: Tensor, d: Tensor, ratio: Tensor) -> Tensor:
    """Where rays o + t d in unit coordinates [..., 3] enter a solid; `FAR` where they do not, or begin inside.

    Counted from the point next to the middle: from far away the squares of small solids' rays would cancel.
    """
    start = -(o * d).sum(-1) / (d * d).sum(-1)
    ox, oy, oz = (o + start[..., None] * d).unbind(-1)
    dx, dy, dz = d.unbind(-1)
    if kind == ROUND:
        a, b = dx * dx + dy * dy, ox * dx + oy * dy
        root = b * b - a.clamp(min=1e-12) * (ox * ox + oy * oy - 1)
        side = (-b - root.clamp(min=0).sqrt()) / a.clamp(min=1e-12)
        z = oz + side * dz
        end = torch.where(z < 0, -ratio, ratio)
        cz = oz - end
        full, half = a + dz * dz, b + cz * dz
        cap_root = half * half - full * (ox * ox + oy * oy + cz * cz - 1)
        cap = (-half - cap_root.clamp(min=0).sqrt()) / full
        t = torch.where(z.abs() <= ratio, side, torch.where(cap_root > 0, cap, FAR))
        return torch.where((root > 0) & (t < FAR) & (t + start > 0), t + start, FAR)
    near, far = _slab(oz, dz)
    if kind == BOX:
        for begin, end in (_slab(ox, dx), _slab(oy, dy)):
            near, far = torch.maximum(near, begin), torch.minimum(far, end)
    else:
        a, b = (dx * dx + dy * dy).clamp(min=1e-12), ox * dx + oy * dy
        root = b * b - a * (ox * ox + oy * oy - 1)
        wide = root.clamp(min=0).sqrt()
        near = torch.maximum(near, torch.where(root > 0, (-b - wide) / a, FAR))
        far = torch.minimum(far, (-b + wide) / a)
    return torch.where((near < far) & (near + start > 0), near + start, FAR)


def _slab(o: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    d = torch.where(d.abs() < 1e-9, 1e-9, d)
    one, two = (-1 - o) / d, (1 - o) / d
    return torch.minimum(one, two), torch.maximum(one, two)


def shade_strength(o: Tensor, d: Tensor, ratio: Tensor) -> tuple[Tensor, Tensor]:
    """Where rays meet the plane of a shadow, and 0..1 how dark it is there."""
    dz = torch.where(d[..., 2].abs() < 1e-9, 1e-9, d[..., 2])
    t = -o[..., 2] / dz
    x = o[..., 0] + t * d[..., 0]
    y = (o[..., 1] + t * d[..., 1]).abs() - ratio
    inside = 1 - (x * x + y.clamp(min=0) ** 2)
    return t, (inside * 2.5).clamp(0, 1)


def trace(primitives: Primitives, camera: Camera, box_BTP4: Tensor, objects: int) -> Traced:
    """See `Traced`; `objects` are the first groups, boxes are those of `outline.primitive_boxes`."""
    w, h = camera.size
    b, t = camera.origin_BT3.shape[:2]
    device = camera.origin_BT3.device
    rays = turned(camera.rays()[:, None], camera.rotation_BT33[:, :, None, None])  # [B, T, H, W, 3]
    back, centre = primitives.inverse()
    origin = turned(camera.origin_BT3[:, :, None] - centre, back)
    depth = torch.full((b, t, h, w), FAR, device=device)
    index = torch.full((b, t, h, w), -1, dtype=torch.int32, device=device)
    dark = torch.zeros(b, t, h, w, device=device)
    own = torch.zeros(b, t, objects, dtype=torch.int32, device=device)
    if device.type == "cpu":
        edges = torch.tensor([w, h, w, h])
        low = box_BTP4[..., :2].amin((0, 1)).floor().clamp(min=0) - 1
        high = box_BTP4[..., 2:].amax((0, 1)).ceil() + 1
        window = torch.cat([low, high], -1).clamp(min=0).minimum(edges.float()).int().tolist()
    else:  # no look at the boxes: the host must not wait
        window = [[0, 0, w, h]] * primitives.count
    kinds, groups = primitives.kinds, primitives.groups
    alone, alone_of = torch.zeros(b, t, h, w, dtype=torch.bool, device=device), -1
    for p, (x0, y0, x1, y1) in enumerate(window):
        if groups[p] != alone_of:
            if 0 <= alone_of < objects:
                own[:, :, alone_of] = alone.sum((2, 3), dtype=torch.int32)
                alone.zero_()
            alone_of = groups[p]
        if x1 <= x0 or y1 <= y0:
            continue
        part = (slice(None), slice(None), slice(y0, y1), slice(x0, x1))
        d = rays[part] @ back[:, :, p, None]
        o = origin[:, :, p, None, None]
        ratio = primitives.ratio_BTP[:, :, p, None, None]
        on = primitives.on_BTP[:, :, p, None, None]
        if kinds[p] == SHADE:
            at, strength = shade_strength(o, d, ratio)
            strength = strength * primitives.colour_BTP3[:, :, p, None, None, 0] * (on & (at > 0))
            dark[part] = torch.maximum(dark[part], strength)
            continue
        at = meet(kinds[p], o, d, ratio)
        at = torch.where(on, at, FAR)
        if alone_of < objects:
            alone[part] |= at < FAR
        nearer = at < depth[part]
        depth[part] = torch.where(nearer, at, depth[part])
        index[part] = torch.where(nearer, p, index[part])
    if 0 <= alone_of < objects:
        own[:, :, alone_of] = alone.sum((2, 3), dtype=torch.int32)
    return Traced(depth, index, dark, own)
