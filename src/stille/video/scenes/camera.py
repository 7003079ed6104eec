"""Cameras: pose, lens, and where things of the hall fall in the picture.

Coordinates of a camera: x right, y down, z forward. A point of the picture at distance r from the middle (in focal
lengths) looks along the direction at distance r (1 + q r^2): barrel distortion for q > 0, exact for rays; the other way
round is solved by Newton's method.

Shapes: B clips, T frames.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stille.video.scenes.config import SceneConfig
from stille.video.scenes.draw import Draw, constant
from stille.video.scenes.layout import Layout

NEAR = 0.15  # metres before the camera that are not seen


@dataclass(frozen=True, slots=True)
class Camera:
    """
    Attributes:
        size: width, height in pixels.
        origin_BT3: metres; rotation_BT33: rows are the camera's axes in the hall.
        focal_B: in pixels, down the picture; bend_B: q above.
        wide_B: how much wider pictures are shown than they were taken, as when 4:3 is squeezed into 16:9.
    """

    size: tuple[int, int]
    origin_BT3: Tensor
    rotation_BT33: Tensor
    focal_B: Tensor
    bend_B: Tensor
    wide_B: Tensor

    def at(self, frames: slice) -> Camera:
        """In some of the frames."""
        return replace(self, origin_BT3=self.origin_BT3[:, frames], rotation_BT33=self.rotation_BT33[:, frames])

    def rays(self) -> Tensor:
        """Directions [B, H, W, 3] in camera coordinates through the middles of pixels; z is 1."""
        w, h = self.size
        x = torch.arange(w, device=self.focal_B.device) + 0.5 - w / 2
        y = torch.arange(h, device=self.focal_B.device) + 0.5 - h / 2
        across, down = (self.focal_B * self.wide_B)[:, None, None], self.focal_B[:, None, None]
        x, y = x[None, :].expand(h, w) / across, y[:, None].expand(h, w) / down
        stretch = 1 + self.bend_B[:, None, None] * (x * x + y * y)
        return torch.stack([x * stretch, y * stretch, torch.ones_like(x)], -1)

    def to_camera(self, point_BTX3: Tensor) -> Tensor:
        """Camera coordinates of points of the hall [B, T, X, 3]."""
        return (point_BTX3 - self.origin_BT3[:, :, None]) @ self.rotation_BT33.transpose(-1, -2)

    def to_pixels(self, flat_BTX2: Tensor) -> Tensor:
        """Pixels of directions (x/z, y/z) [B, T, X, 2]."""
        q = self.bend_B[:, None, None].clamp(min=1e-6)
        far = flat_BTX2.norm(dim=-1)
        near = torch.minimum(far, (far / q) ** (1 / 3))  # an upper bound: Newton comes down to the root
        for _ in range(7):
            near = near - (near * (1 + q * near * near) - far) / (1 + 3 * q * near * near)
        middle = constant((self.size[0] / 2, self.size[1] / 2), far.device)
        scale = self.focal_B[:, None, None] * near / far.clamp(min=1e-9)
        scale = torch.where(far < 1e-6, self.focal_B[:, None, None], scale)
        return flat_BTX2 * torch.stack([scale * self.wide_B[:, None, None], scale], -1) + middle

    def project(self, point_BTX3: Tensor) -> Tensor:
        """Pixels of points of the hall [B, T, X, 2]; nan for those behind the camera."""
        x, y, z = self.to_camera(point_BTX3).unbind(-1)
        pixel = self.to_pixels(torch.stack([x, y], -1) / z.clamp(min=NEAR)[..., None])
        return torch.where((z > NEAR)[..., None], pixel, torch.nan)

    def floor_homography(self) -> Tensor:
        """[B, T, 3, 3] from (x, y, 1) on the floor to directions; `to_pixels` of the quotient gives the picture."""
        columns = torch.stack([self.rotation_BT33[..., 0], self.rotation_BT33[..., 1]], -1)
        shift = -(self.rotation_BT33 @ self.origin_BT3[..., None])
        return torch.cat([columns, shift], -1)


def _look(origin: Tensor, target: Tensor, roll: Tensor) -> Tensor:
    """Rotation [.., 3, 3] of a camera that looks from a point to another, turned by `roll` radians."""
    forward = target - origin
    forward = forward / forward.norm(dim=-1, keepdim=True)
    up = torch.zeros_like(forward)
    up[..., 2] = 1
    right = torch.linalg.cross(forward, up)
    right = right / right.norm(dim=-1, keepdim=True)
    down = torch.linalg.cross(forward, right)
    c, s = roll.cos()[..., None], roll.sin()[..., None]
    return torch.stack([c * right + s * down, c * down - s * right, forward], -2)


def build_camera(draw: Draw, config: SceneConfig, layout: Layout, size: tuple[int, int], moment_BT: Tensor) -> Camera:
    """Cameras of these clips; some shake, a few are knocked to another direction."""
    low, high = config.camera_height
    height = draw.uniform("height", low=low, high=high)
    half, spine = layout.half_x_B, layout.spine_B
    u, v, w = (draw.uniform(name, low=-1.0, high=1.0) for name in ("mount u", "mount v", "mount w"))
    opposite = layout.bottom_B + 0.35
    aisle = layout.aisle_BA.gather(1, draw.integer("mount aisle", 1, below=layout.aisle_BA.shape[1]))[:, 0]
    zero = torch.zeros_like(half)
    # For each mount where the camera is, and what it looks at.
    places = [
        (-half + 0.4, u * (spine - 0.5), v * half * 0.5, w * 2),
        (half - 0.4, u * (spine - 0.5), v * half * 0.5, w * 2),
        (u * half * 0.6, opposite, u * half * 0.4 + v * 3, zero + w),
        (-half + 0.5, opposite, v * half * 0.3, zero + w),
        (half - 0.5, opposite, v * half * 0.3, zero + w),
        (aisle, layout.top_B - 0.4, aisle + v * 2, -spine * 0.5 + w),
    ]
    table = torch.stack([torch.stack(place, -1) for place in places], 1)
    x, y, look_x, look_y = table.gather(1, layout.mount_B[:, None, None].expand(-1, 1, 4))[:, 0].unbind(-1)
    # Open ground is seen from beside it, from anywhere around.
    way, back = draw.uniform("yard way", low=-3.1416, high=3.1416), draw.uniform("yard back", low=9.0, high=27.0)
    out, hall = layout.outdoor_B, ~layout.outdoor_B
    x, y = x * hall + back * way.cos() * out, y * hall + back * way.sin() * out
    look_x, look_y = look_x * hall + u * 4 * out, look_y * hall + v * 4 * out
    origin = torch.stack([x, y, height], -1)
    target = torch.stack([look_x, look_y, draw.uniform("look z", low=0.2, high=1.6)], -1)

    shake = draw.chance("shakes", p=0.3 * config.difficulty).float() * draw.uniform("shake", low=0.002, high=0.012)
    time = moment_BT.to(torch.float32)[..., None]
    pace, phase = (draw.uniform(name, 1, 3, low=a, high=b) for name, a, b in (("pace", 3.0, 17.0), ("phase", 0.0, 6.3)))
    sway = shake[:, None, None] * torch.sin(time * pace + phase)
    distance = (target - origin).norm(dim=-1)[:, None, None]
    knocked = draw.chance("knocked", 1, p=0.06 * config.difficulty) & (
        moment_BT > draw.uniform("knock", 1) * moment_BT[:, -1:]
    )
    knock = draw.uniform("knock by", 1, 3, low=-0.2, high=0.2) * knocked[..., None]
    targets = target[:, None] + (sway + knock) * distance
    roll = draw.uniform("roll", 1, low=-0.06, high=0.06) + sway[..., 0]
    origins = origin[:, None].expand_as(targets)
    view = torch.deg2rad(draw.uniform("view", low=config.field_of_view[0], high=config.field_of_view[1]))
    bend = draw.uniform("bend", low=0.0, high=0.3) * draw.chance("bent", p=0.7)
    edge = torch.tan(view / 2)  # solve r (1 + q r^2) = edge, so that the view is as wide as asked for
    r = torch.minimum(edge, (edge / bend.clamp(min=1e-6)) ** (1 / 3))
    for _ in range(7):
        r = r - (r * (1 + bend * r * r) - edge) / (1 + 3 * bend * r * r)
    wide = draw.uniform("wide", low=0.96, high=1.06)
    kind = draw.uniform("wide kind")
    wide = torch.where(
        kind < 0.3, wide * 1.36, torch.where(kind < 0.45, draw.uniform("wide by", low=0.8, high=1.45), wide)
    )
    return Camera(size, origins, _look(origins, targets, roll), size[0] / 2 / r / wide, bend, wide)
