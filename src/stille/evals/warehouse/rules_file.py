"""The rules of a warehouse as the text of a rules file (YAML), so that what an event is means the same to the rules
engine as to `incidents`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stille.evals.warehouse.geometry import Camera, Point, seen_polygon
from stille.evals.warehouse.incidents import DWELL, HORIZON_S, MOVING, NEAR_M, QUEUE, QUIET
from stille.evals.warehouse.layout import Layout, Size, layout
from stille.evals.warehouse.yard import SPEED_LIMIT

CAMERA = "b"
"""Name of the one camera."""


def rules_yaml(seed: int, size: Size = (640, 352)) -> str:
    """The rules file of a seed. Zones are outlines in 0..1 of the picture; after hours is 22:00 to 06:00 UTC."""
    place = layout(seed, size)
    picture, metres = floor_points(place)
    lines = ["version: 1", "timezone: UTC", "cameras:", f"  - name: {CAMERA}", f"    size: [{size[0]}, {size[1]}]"]
    lines += ["    floor:", f"      picture: {_points(picture)}", f"      metres: {_points(metres)}", "zones:"]
    for name, polygon in place.zones.items():
        lines.append(f"  - {{name: {name}, camera: {CAMERA}, points: {_points(seen_polygon(place.camera, polygon))}}}")
    lines.append("slots:")
    for slot in place.slots:
        x0, y0, x1, y1 = slot.box(place.camera)
        holds = "pallet" if slot.holds else "nothing"
        corners = _points([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
        lines.append(f"  - {{name: {slot.name}, camera: {CAMERA}, holds: {holds}, points: {corners}}}")
    lines.append("rules:")
    own = {
        "no_helmet": "zones: [work]",
        "no_vest": "zones: [work]",
        "person_in_lane": "zones: [lane]",
        "near_miss": f"cameras: [{CAMERA}], distance: {NEAR_M}, horizon: {HORIZON_S}, moving: {MOVING}",
        "speeding": f"zones: [lane], limit: {SPEED_LIMIT}",
        "blocked": "zones: [exit], kinds: [pallet, cart]",
        "lying": f"cameras: [{CAMERA}]",
        "intrusion": 'zones: [hall], schedule: {hours: ["06:00-22:00"], outside: true}',
        "pallet_missing": f"cameras: [{CAMERA}]",
        "pallet_extra": f"cameras: [{CAMERA}]",
        "pallet_misplaced": "zones: [walk]",
        "queue": f"zones: [queue], persons: {QUEUE}",
    }
    for kind, fields in own.items():
        lines.append(f"  - {{id: {kind}, type: {kind}, dwell: {DWELL[kind]}, quiet: {QUIET[kind]}, {fields}}}")
    return "\n".join(lines) + "\n"


def floor_points(place: Layout) -> tuple[list[Point], list[Point]]:
    """Four places of the floor that the camera sees, in 0..1 of the picture and in metres. Where the lens bends, a
    homography through them is off by some decimetres elsewhere, as it is for those who set up a real camera."""
    camera = place.camera
    spread = [(-3.0, 6.5), (3.0, 6.5), (5.0, 13.5), (-5.0, 13.5)]
    corners = [_towards_middle(camera, point) for point in spread]
    pixel, _ = camera.project(np.array([[*corner, 0.0] for corner in corners]))
    return [(float(x), float(y)) for x, y in pixel / np.array(camera.size)], corners


def _towards_middle(camera: Camera, point: Point) -> Point:
    """The point, or as far from the hall's middle as the picture goes."""
    for share in np.linspace(1, 0.2, 9).tolist():
        x, y = share * point[0], 10 + share * (point[1] - 10)
        if camera.sees((x, y), 0.0, 0.02):
            return round(x, 3), round(y, 3)
    return point


def _points(points: Sequence[Point]) -> str:
    return "[" + ", ".join(f"[{x:.4f}, {y:.4f}]" for x, y in points) + "]"
