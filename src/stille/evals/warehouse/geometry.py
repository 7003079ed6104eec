"""Cameras of the warehouse, and geometry of its floor.

World: metres, x to the right, y away from the wall that the cameras hang on, z up. Shapes: N points, H, W picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

Point = tuple[float, float]
Polygon = tuple[Point, ...]

NEAR = 0.15
"""Metres before the lens at which things are cut off."""
WIDEST = 1.35
"""Radians off the axis beyond which the lens polynomial is not used."""


@dataclass(frozen=True)
class Camera:
    """A perspective camera behind a lens that maps the angle theta off its axis to the radius
    `focal * (theta + bend * theta^3)` (the polynomial of Kannala and Brandt, 2006, with one coefficient). `bend` 0 is
    an equidistant fisheye, 1/3 nearly no distortion.

    Attributes:
        at: metres. yaw: radians, 0 looks along y, positive to the right; pitch: radians below the horizon.
        roll: radians. focal: in picture widths.
        size: W, H in pixels.
    """

    at: tuple[float, float, float]
    yaw: float
    pitch: float
    roll: float
    focal: float
    bend: float
    size: tuple[int, int]

    @cached_property
    def axes(self) -> np.ndarray:
        """Rows: right, down and forward in the world."""
        sy, cy, sp, cp = math.sin(self.yaw), math.cos(self.yaw), math.sin(self.pitch), math.cos(self.pitch)
        forward = np.array([sy * cp, cy * cp, -sp])
        right = np.array([cy, -sy, 0.0])
        down = np.cross(forward, right)
        sr, cr = math.sin(self.roll), math.cos(self.roll)
        return np.stack([cr * right + sr * down, cr * down - sr * right, forward])

    def project(self, point_N3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixels, and distance along the axis (what is below `NEAR` is not in the picture)."""
        local_N3 = (np.asarray(point_N3, float) - np.array(self.at)) @ self.axes.T
        side_N = np.hypot(local_N3[:, 0], local_N3[:, 1])
        theta_N = np.minimum(np.arctan2(side_N, local_N3[:, 2]), WIDEST)
        width, height = self.size
        radius_N = self.focal * width * (theta_N + self.bend * theta_N**3)
        scale_N = radius_N / np.maximum(side_N, 1e-9)
        return local_N3[:, :2] * scale_N[:, None] + np.array([width / 2, height / 2]), local_N3[:, 2]

    def rays(self, scale: int = 1) -> np.ndarray:
        """Unit directions of the pixels of a picture that is `scale` times smaller. [H, W, 3]"""
        width, height = self.size[0] // scale, self.size[1] // scale
        x_HW, y_HW = np.meshgrid((np.arange(width) + 0.5) * scale, (np.arange(height) + 0.5) * scale)
        x_HW, y_HW = x_HW - self.size[0] / 2, y_HW - self.size[1] / 2
        radius_HW = np.hypot(x_HW, y_HW)
        theta_K = np.linspace(0, WIDEST, 2000)
        theta_HW = np.interp(radius_HW, self.focal * self.size[0] * (theta_K + self.bend * theta_K**3), theta_K)
        sine_HW = np.sin(theta_HW) / np.maximum(radius_HW, 1e-9)
        return np.stack([x_HW * sine_HW, y_HW * sine_HW, np.cos(theta_HW)], -1) @ self.axes

    def floor(self, scale: int = 1) -> np.ndarray:
        """Where on the floor each pixel looks, nan above the horizon. [H, W, 2]"""
        ray_HW3 = self.rays(scale)
        with np.errstate(divide="ignore", invalid="ignore"):
            length_HW = np.where(ray_HW3[..., 2] < -1e-3, -self.at[2] / ray_HW3[..., 2], np.nan)
        return ray_HW3[..., :2] * length_HW[..., None] + np.array(self.at[:2])

    def sees(self, point: Point, height: float = 0.0, margin: float = 0.0) -> bool:
        """Whether a point is in the picture, `margin` (share of it) from the edge."""
        pixel, depth = self.project(np.array([[*point, height]]))
        x, y = pixel[0] / np.array(self.size)
        return bool(depth[0] > NEAR and margin <= x <= 1 - margin and margin <= y <= 1 - margin)


def inside(point: Point, polygon: Sequence[Point]) -> bool:
    """Whether a point is in a polygon (even-odd rule)."""
    return bool(inside_N(np.array([point]), polygon)[0])


def inside_N(point_N2: np.ndarray, polygon: Sequence[Point]) -> np.ndarray:
    """The same for many points; nan is outside."""
    x_N, y_N = point_N2[..., 0], point_N2[..., 1]
    odd_N = np.zeros(x_N.shape, bool)
    for (x1, y1), (x2, y2) in zip(polygon, [*polygon[1:], polygon[0]], strict=True):
        if y1 != y2:
            odd_N ^= ((y1 > y_N) != (y2 > y_N)) & (x_N < (x2 - x1) * (y_N - y1) / (y2 - y1) + x1)
    return odd_N


def rectangle(x0: float, y0: float, x1: float, y1: float) -> Polygon:
    return ((x0, y0), (x1, y0), (x1, y1), (x0, y1))


def seen_polygon(camera: Camera, polygon: Sequence[Point]) -> Polygon:
    """Outline in the picture, 0..1, of what is seen of a polygon on the floor; empty where that is nothing."""
    scale = 2
    mask_HW = inside_N(camera.floor(scale), polygon).astype(np.uint8)
    found, _ = cv2.findContours(mask_HW, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not found:
        return ()
    outline = cv2.approxPolyDP(max(found, key=cv2.contourArea), 1.0, True)[:, 0]
    if len(outline) < 3:
        return ()
    width, height = mask_HW.shape[1], mask_HW.shape[0]
    return tuple((round((x + 0.5) / width, 4), round((y + 0.5) / height, 4)) for x, y in outline.tolist())


def box_corners(low: Sequence[float], high: Sequence[float]) -> np.ndarray:
    """The 8 corners of an upright box."""
    return np.array([[x, y, z] for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (low[2], high[2])], float)
