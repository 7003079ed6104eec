"""Geometry of a camera's picture and of the floor that it sees.

Points of the picture are x, y in 0..1 of its width and height, y downwards; points of the floor are metres.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Point = tuple[float, float]


def polygon_problem(points: Sequence[Point]) -> str | None:
    """What keeps these points from being a polygon, in words; None if nothing does."""
    if len(points) < 3:
        return f"a polygon needs at least 3 points, got {len(points)}"
    if len(set(points)) < len(points):
        return "a point occurs twice (the polygon closes by itself)"
    size = max(abs(v) for p in points for v in p) or 1.0
    edges = list(zip(points, [*points[1:], points[0]], strict=True))
    for i, (a, b) in enumerate(edges):
        for j in range(i + 1, len(edges)):
            c, d = edges[j]
            adjacent = j == i + 1 or (i == 0 and j == len(edges) - 1)
            if not adjacent and crosses(a, b, c, d):
                return f"the edge after point {i + 1} crosses the one after point {j + 1}"
    if abs(area(points)) < 1e-6 * size**2:
        return "the points lie on one line"
    return None


def area(points: Sequence[Point]) -> float:
    """Signed, by the shoelace formula."""
    return sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(points, [*points[1:], points[0]], strict=True)) / 2


def inside(point: Point, polygon: Sequence[Point]) -> bool:
    """Whether a ray from the point leaves the polygon an odd number of times."""
    x, y = point
    odd = False
    x1, y1 = polygon[-1]
    for x2, y2 in polygon:
        if (y2 > y) != (y1 > y) and x < (x1 - x2) * (y - y2) / (y1 - y2) + x2:
            odd = not odd
        x1, y1 = x2, y2
    return odd


def distance_to_line(point: Point, a: Point, b: Point) -> float:
    """Signed distance to the line through a and b; positive on the right when one looks from a to b in the picture."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    return (dx * (point[1] - a[1]) - dy * (point[0] - a[0])) / math.hypot(dx, dy)


def crosses(p: Point, q: Point, a: Point, b: Point) -> bool:
    """Whether the way from p to q meets the segment from a to b."""

    def turn(u: Point, v: Point, w: Point) -> float:
        return (v[0] - u[0]) * (w[1] - u[1]) - (v[1] - u[1]) * (w[0] - u[0])

    d1, d2, d3, d4 = turn(a, b, p), turn(a, b, q), turn(p, q, a), turn(p, q, b)
    if d1 == d2 == d3 == d4 == 0:  # on one line
        along = 0 if a[0] != b[0] else 1
        low, high = sorted((a[along], b[along]))
        return max(min(p[along], q[along]), low) <= min(max(p[along], q[along]), high)
    return d1 * d2 <= 0 and d3 * d4 <= 0


class Floor:
    """Where on the floor a point of the picture is: a homography through given points (normalised direct linear
    transform, Hartley and Zisserman, Multiple View Geometry, algorithm 4.2).

    Args:
        picture, metres: at least four pairs, no three of them on a line.

    Raises:
        ValueError: the points determine no homography, contradict each other or are in different order.
    """

    def __init__(self, picture: Sequence[Point], metres: Sequence[Point]):
        if len(picture) != len(metres):
            raise ValueError(f"{len(picture)} points of the picture for {len(metres)} of the floor, expected pairs")
        if len(picture) < 4:
            raise ValueError(f"{len(picture)} points, expected at least four")
        image, floor = np.array(picture, float), np.array(metres, float)
        to_image, to_floor = _normaliser(image), _normaliser(floor)
        rows = []
        for (x, y, _), (u, v, _) in zip(_apply(to_image, image), _apply(to_floor, floor), strict=True):
            rows.append([-x, -y, -1, 0, 0, 0, u * x, u * y, u])
            rows.append([0, 0, 0, -x, -y, -1, v * x, v * y, v])
        _, singular, vectors = np.linalg.svd(np.array(rows))
        if singular[7] < 1e-6 * singular[0] or np.linalg.cond(vectors[-1].reshape(3, 3)) > 1e6:
            raise ValueError("three of the points lie on a line, expected points that span an area of the floor")
        matrix = np.linalg.inv(to_floor) @ vectors[-1].reshape(3, 3) @ to_image
        there = _apply(matrix, image)
        if not (np.all(there[:, 2] > 0) or np.all(there[:, 2] < 0)):
            raise ValueError("the floor folds: list picture points and metres in the same order round the area")
        error = np.abs(there[:, :2] / there[:, 2:] - floor).max()
        if error > 0.1 * np.ptp(floor, axis=0).max():
            raise ValueError(f"the points contradict each other: one is {error:.1f} m off; measure them again")
        # Positive in front of the horizon, so that the sign tells what is beyond it.
        self._matrix: list[list[float]] = (matrix * np.sign(there[0, 2]) / np.abs(matrix).max()).tolist()

    def at(self, point: Point) -> Point | None:
        """Metres; None at and above the horizon."""
        (a, b, c), (d, e, f), (g, h, i) = self._matrix
        x, y = point
        w = g * x + h * y + i
        if w <= 1e-9:
            return None
        return (a * x + b * y + c) / w, (d * x + e * y + f) / w


def closest_approach(p: Point, v: Point, q: Point, w: Point, horizon: float) -> tuple[float, float]:
    """When two that go straight on are closest within so many seconds, and how far apart they are then.

    Args:
        p, v: place and velocity of the one; q, w: of the other.
    """
    dx, dy, vx, vy = q[0] - p[0], q[1] - p[1], w[0] - v[0], w[1] - v[1]
    square = vx * vx + vy * vy
    when = 0.0 if square < 1e-12 else min(max(-(dx * vx + dy * vy) / square, 0.0), horizon)
    return when, math.hypot(dx + when * vx, dy + when * vy)


def _normaliser(points: np.ndarray) -> np.ndarray:
    """Moves the points' mean to 0 and their mean distance from it to sqrt(2)."""
    mean = points.mean(0)
    spread = np.linalg.norm(points - mean, axis=1).mean()
    if spread < 1e-12:
        raise ValueError("all points are the same")
    scale = math.sqrt(2) / spread
    return np.array([[scale, 0, -scale * mean[0]], [0, scale, -scale * mean[1]], [0, 0, 1]])


def _apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return np.c_[points, np.ones(len(points))] @ matrix.T
