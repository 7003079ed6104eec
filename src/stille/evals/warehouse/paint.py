"""Pictures of the warehouse: floor, walls and light once per hour by rays through the lens, then each frame's bodies as
filled faces from far to near, with the same fills of object numbers at half size for what is seen of whom.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import cv2
import numpy as np

from stille.evals.warehouse.geometry import NEAR, Camera
from stille.evals.warehouse.layout import BAY_M, LEVEL_M, Layout
from stille.evals.warehouse.meshes import Looks, Mesh, box, cone, join, looks, mannequin, person

STATIC = 0
"""Number of what is no object in the picture of numbers; objects are 1 + their place in the list."""
_SHIFT = 4


@dataclass(frozen=True)
class Light:
    """
    Attributes:
        lamps_L3: where lamps hang. warm_3: their colour. ambient: share of light from everywhere. gloss: of the floor.
        grey: colour is lost (infrared). sun_3: unit vector towards the light that shades bodies.
    """

    lamps_L3: np.ndarray
    warm_3: np.ndarray
    ambient: float
    gloss: float
    grey: bool
    sun_3: np.ndarray

    def at(self, place_N2: np.ndarray) -> np.ndarray:
        """Brightness on the floor."""
        away = ((place_N2[..., None, :] - self.lamps_L3[:, :2]) ** 2).sum(-1) + self.lamps_L3[:, 2] ** 2
        return self.ambient + (1 - self.ambient) * np.minimum((38.0 / away).sum(-1) * 0.62, 1.35)


def light(rng: np.random.Generator) -> Light:
    lamps = [(x, y, 7.0) for x in (-6.5, 0.0, 6.5) for y in (4.0, 10.0, 16.0) if rng.random() < 0.85] or [
        (0.0, 9.0, 7.0)
    ]
    sun = np.array([rng.uniform(-0.6, 0.6), rng.uniform(-0.9, -0.1), 1.0])
    return Light(
        np.array(lamps), 1 + rng.uniform(-0.09, 0.09, 3), float(rng.uniform(0.35, 0.6)),
        float(rng.choice([0.0, 0.1, 0.18])), bool(rng.random() < 0.12), sun / np.linalg.norm(sun),
    )  # fmt: skip


def _grain(rng: np.random.Generator, points_HW2: np.ndarray, metres: float) -> np.ndarray:
    """Smooth noise of a scale over the plane, about -1 to 1."""
    grid = rng.normal(0, 1, (64, 64)).astype(np.float32)
    at = np.nan_to_num(points_HW2 / metres).astype(np.float32)
    at = np.mod(at + 32, 62)
    return cv2.remap(grid, at[..., 0], at[..., 1], cv2.INTER_LINEAR)


def background(place: Layout, lit: Light, rng: np.random.Generator) -> np.ndarray:
    """The empty hall. float32 [H, W, 3]"""
    camera = place.camera
    ray_HW3, floor_HW2 = camera.rays(), camera.floor()
    x0, _, x1, y1 = place.room
    x_HW, y_HW = floor_HW2[..., 0], floor_HW2[..., 1]
    base = rng.choice(np.array([(146, 146, 142), (118, 122, 126), (152, 142, 128), (98, 112, 104)]))
    tone_HW = (
        1
        + 0.05 * _grain(rng, floor_HW2, 2.3)
        + 0.03 * _grain(rng, floor_HW2, 0.35)
        + 0.02 * _grain(rng, floor_HW2, 0.1)
    )
    joint_HW = np.minimum(np.abs((x_HW + 40) % 3.5 - 1.75), np.abs((y_HW + 40) % 4.0 - 2.0)) < 0.02
    picture = base * (tone_HW * np.where(joint_HW, 0.82, 1.0))[..., None]
    paints = {"lane": (226, 190, 50), "work": (70, 120, 190), "exit": (60, 160, 80), "queue": (190, 80, 70)}
    for name, paint in paints.items():
        (zx0, zy0), _, (zx1, zy1), _ = place.zones[name]
        edge_HW = np.minimum.reduce([x_HW - zx0, zx1 - x_HW, y_HW - zy0, zy1 - y_HW])
        worn_HW = _grain(rng, floor_HW2, 0.25) > -1.1
        line_HW = (np.abs(edge_HW) < 0.06) & worn_HW
        if name == "exit":
            line_HW |= (edge_HW > 0) & ((x_HW + y_HW + 40) % 0.7 < 0.22) & worn_HW
        picture[line_HW] = 0.3 * picture[line_HW] + 0.7 * np.array(paint)
    picture *= lit.at(np.nan_to_num(floor_HW2))[..., None]
    # Walls and ceiling: the nearest plane that the ray meets before the floor.
    at = np.array(camera.at)
    with np.errstate(divide="ignore", invalid="ignore"):
        reach_HWP = np.stack(
            [
                np.where(ray_HW3[..., 2] < 0, -at[2] / ray_HW3[..., 2], np.inf),
                np.where(ray_HW3[..., 1] > 0, (y1 - at[1]) / ray_HW3[..., 1], np.inf),
                np.where(ray_HW3[..., 0] < 0, (x0 - at[0]) / ray_HW3[..., 0], np.inf),
                np.where(ray_HW3[..., 0] > 0, (x1 - at[0]) / ray_HW3[..., 0], np.inf),
                np.where(ray_HW3[..., 2] > 0, (9.0 - at[2]) / ray_HW3[..., 2], np.inf),
            ],
            -1,
        )
    which_HW = reach_HWP.argmin(-1)
    hit_HW3 = at + ray_HW3 * np.nan_to_num(reach_HWP.min(-1), posinf=100.0)[..., None]
    wall = rng.choice(np.array([(170, 172, 168), (150, 160, 170), (176, 164, 146)]))
    z_HW = hit_HW3[..., 2]
    for number, axis in ((1, 0), (2, 1), (3, 1)):
        along_HW = hit_HW3[..., axis]
        rib_HW = np.where((along_HW + 40) % 0.5 < 0.06, 0.9, 1.0) * np.where(z_HW < 1.0, 0.72, 1.0)
        paint_HW3 = wall * (rib_HW * (0.55 + 0.07 * np.clip(7 - z_HW, 0, 6)))[..., None]
        if number == 1:
            door_HW = (np.abs((along_HW + 60.5) % 7.0 - 3.5) < 1.5) & (z_HW < 3.4)
            slat_HW = np.where(z_HW % 0.4 < 0.05, 0.8, 1.0)
            paint_HW3[door_HW] = (np.array((112, 122, 132)) * slat_HW[..., None])[door_HW]
        picture[which_HW == number] = paint_HW3[which_HW == number]
    beam_HW = np.where((hit_HW3[..., 1] + 40) % 3.0 < 0.4, 0.7, 1.0)
    picture[which_HW == 4] = (np.array((92, 94, 98)) * beam_HW[..., None])[which_HW == 4]
    if lit.gloss:
        lamp_HW = np.zeros(which_HW.shape)
        mirror = ray_HW3 * np.array([1, 1, -1])
        for lamp in lit.lamps_L3:
            to = lamp - np.concatenate([np.nan_to_num(floor_HW2), np.zeros((*which_HW.shape, 1))], -1)
            cosine = (to * mirror).sum(-1) / np.linalg.norm(to, axis=-1)
            lamp_HW += np.exp((cosine - 1) * 300)
        picture += (np.where(which_HW == 0, lamp_HW, 0) * lit.gloss * 420)[..., None]
    return (picture * lit.warm_3).astype(np.float32)


def furniture(place: Layout, decoys: Sequence[tuple[str, float, float, float]], rng: np.random.Generator) -> Mesh:
    """Rack, counter, and the things that only look like objects."""
    parts: list[Mesh] = []
    (rx0, ry0, _), (rx1, ry1, _) = place.rack
    post, beam = ((40, 74, 140), (226, 110, 40)) if rng.random() < 0.6 else ((110, 112, 116), (60, 90, 150))
    bays = round(((rx1 - rx0) if place.rack_along == 0 else (ry1 - ry0)) / BAY_M)
    for k in range(bays + 1):
        for side in (0, 1):
            for level in range(2):
                z = level * LEVEL_M
                if place.rack_along == 0:
                    x, y = rx0 + k * BAY_M, (ry0, ry1)[side]
                else:
                    x, y = (rx0, rx1)[side], ry0 + k * BAY_M
                parts.append(
                    box((x - 0.06, y - 0.06, z), (x + 0.06, y + 0.06, z + LEVEL_M + (0.3 if level else 0)), post)
                )
                if k < bays:
                    z = LEVEL_M * (level + 1)
                    if place.rack_along == 0:
                        parts.append(box((x + 0.06, y - 0.04, z - 0.06), (x + BAY_M - 0.06, y + 0.04, z + 0.08), beam))
                    else:
                        parts.append(box((x - 0.04, y + 0.06, z - 0.06), (x + 0.04, y + BAY_M - 0.06, z + 0.08), beam))
    low, high = place.counter
    for y in np.arange(low[1], high[1] - 0.5, 0.8):
        parts.append(box((low[0], y, 0), (high[0], y + 0.8, 1.0), (134, 112, 88)))
        parts.append(box((low[0] - 0.05, y, 1.0), (high[0] + 0.05, y + 0.8, 1.05), (84, 78, 72)))
    parts.append(box((low[0] + 0.2, high[1] - 1.0, 1.05), (low[0] + 0.25, high[1] - 0.55, 1.4), (24, 24, 28)))
    for name, x, y, heading in decoys:
        if name == "mannequin":
            parts.append(mannequin().moved(x, y, 0, heading))
        elif name == "cone":
            parts.append(cone().moved(x, y))
        elif name == "helmet":
            parts.append(_lone_helmet(looks(rng)).moved(x, y, 1.05))
        elif name == "poster":
            parts.append(_poster(looks(rng)).moved(x, place.room[3] - 0.1, 1.1))
    for _ in range(int(rng.integers(2, 5))):  # a stack by the far wall, of no interest
        x = float(rng.uniform(-9, 9))
        parts.append(
            box(
                (x, place.room[3] - 1.0, 0), (x + 0.9, place.room[3] - 0.2, float(rng.uniform(0.5, 1.6))), (120, 98, 74)
            )
        )
    return join(parts)


def _poster(look: Looks) -> Mesh:
    """A board with a person on it, flat."""
    figure = person(look, helmet=True, vest=True).moved(0, 0, 0.1, np.pi)
    flat = Mesh(figure.corner_V3 * np.array([1, 0.03, 1]) - np.array([0, 0.03, 0]), figure.face_F4, figure.colour_F3)
    return join([box((-0.6, 0.0, 0.0), (0.6, 0.04, 2.1), (232, 232, 226)), flat])


def _lone_helmet(look: Looks) -> Mesh:
    worn = person(look, helmet=True)
    high = worn.corner_V3[worn.face_F4].min(1)[:, 2] > worn.corner_V3[:, 2].max() - 0.15 * look.height / 1.75
    used, face = np.unique(worn.face_F4[high], return_inverse=True)
    corner = worn.corner_V3[used]
    return Mesh(corner - np.array([0, 0, corner[:, 2].min()]), face.reshape(-1, 4), worn.colour_F3[high])


@dataclass
class Faces:
    """Faces that look at the camera, in the picture: corners in pixels, colour with light, and how far they are."""

    pixel_F42: np.ndarray
    colour_F3: np.ndarray
    far_F: np.ndarray

    @cached_property
    def fills(self) -> tuple[list[np.ndarray], list[np.ndarray], list[list[float]]]:
        """What the fills take, once for all frames in which nothing changes: corners for the picture and for the half
        picture, and colours."""
        return list(fixed(self.pixel_F42)), list(fixed(self.pixel_F42, 0.5)), self.colour_F3.tolist()

    @cached_property
    def around_F4(self) -> np.ndarray:
        """x0, y0, x1, y1 of each face."""
        return np.concatenate([self.pixel_F42.min(1), self.pixel_F42.max(1)], 1)


@dataclass
class Shape:
    """One body in the picture: its faces, x0, y0, x1, y1 around all of it, and `extent` of it once it was asked for."""

    faces: Faces
    outline_4: np.ndarray
    area: float | None = None


def shapes(bodies: Sequence[Mesh], camera: Camera, lit: Light) -> list[Shape]:
    """How bodies look to the camera; those behind it have an empty outline."""
    if not bodies:
        return []
    mesh = join(bodies)
    pixel_V2, depth_V = camera.project(mesh.corner_V3)
    a_F3, b_F3, c_F3, d_F3 = (mesh.corner_V3[mesh.face_F4[:, k]] for k in range(4))
    p_F3, q_F3 = c_F3 - a_F3, d_F3 - b_F3
    normal_F3 = np.stack([p_F3[:, (k + 1) % 3] * q_F3[:, (k + 2) % 3] - p_F3[:, (k + 2) % 3] * q_F3[:, (k + 1) % 3]
                          for k in range(3)], -1)  # fmt: skip
    middle_F3 = (a_F3 + b_F3 + c_F3 + d_F3) / 4
    away_F3 = middle_F3 - np.array(camera.at)
    keep_F = np.flatnonzero(((normal_F3 * away_F3).sum(1) < 0) & (depth_V[mesh.face_F4].min(1) > NEAR))
    normal_F3, middle_F3, away_F3 = normal_F3[keep_F], middle_F3[keep_F], away_F3[keep_F]
    normal_F3 /= np.maximum(np.sqrt((normal_F3**2).sum(1, keepdims=True)), 1e-9)
    shade_F = 0.5 + 0.5 * np.maximum(normal_F3 @ lit.sun_3, 0) + 0.1 * normal_F3[:, 2]
    shade_F *= lit.at(middle_F3[:, :2])
    colour_F3 = np.clip(mesh.colour_F3[keep_F] * shade_F[:, None] * lit.warm_3, 0, 255)
    far_F = np.sqrt((away_F3**2).sum(1))
    pixel_F42 = pixel_V2[mesh.face_F4[keep_F]]
    corner = np.cumsum([0, *(len(m.corner_V3) for m in bodies)])
    face = np.searchsorted(keep_F, np.cumsum([0, *(len(m.face_F4) for m in bodies)]))
    ahead = (depth_V > NEAR)[:, None]
    low = np.minimum.reduceat(np.where(ahead, pixel_V2, np.inf), corner[:-1], axis=0)
    high = np.maximum.reduceat(np.where(ahead, pixel_V2, -np.inf), corner[:-1], axis=0)
    return [
        Shape(Faces(pixel_F42[m:n], colour_F3[m:n], far_F[m:n]), np.concatenate([low[k], high[k]]))
        for k, (m, n) in enumerate(pairwise(face))
    ]


def fixed(pixel: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """Pixels as the numbers with 4 binary places that the fills take."""
    return np.clip(np.round(pixel * scale * 2**_SHIFT - 2 ** (_SHIFT - 1)), -300000, 300000).astype(np.int32)


def draw(picture_HW3: np.ndarray | None, number_HW: np.ndarray, parts: Sequence[tuple[int, Faces]]) -> None:
    """Fill the faces of all, the far ones first, into the picture and their numbers into the half picture.

    Args:
        picture_HW3: None: the numbers alone.
    """
    around = np.concatenate([f.around_F4 for _, f in parts])
    far = np.concatenate([f.far_F for _, f in parts])
    full, half, colour, number = [], [], [], []
    for n, faces in parts:
        for held, more in zip((full, half, colour), faces.fills, strict=True):
            held += more
        number += [n] * len(faces.far_F)
    height, width = 2 * number_HW.shape[0], 2 * number_HW.shape[1]
    on = (around[:, 2] > 0) & (around[:, 3] > 0) & (around[:, 0] < width) & (around[:, 1] < height)
    order = np.argsort(-far, kind="stable")
    order = order[on[order]].tolist()
    fill, smooth, hard = cv2.fillConvexPoly, cv2.LINE_AA, cv2.LINE_8
    if picture_HW3 is not None:
        for i in order:
            fill(picture_HW3, full[i], colour[i], smooth, _SHIFT)
    for i in order:
        fill(number_HW, half[i], number[i], hard, _SHIFT)


def extent(shape: Faces) -> float:
    """Area of a body's outline in pixels of the half picture, as if nothing hid it and the picture went on."""
    if not len(shape.pixel_F42):
        return 0.0
    low, high = shape.pixel_F42.min((0, 1)), shape.pixel_F42.max((0, 1))
    scale = 0.5 * min(1.0, 320 / max(*(high - low).tolist(), 1.0))
    # An even shift keeps the fills on the same grid as those of the half picture.
    moved = fixed(shape.pixel_F42 - 2 * np.floor(low / 2) + 4, scale)
    size = np.ceil((high - low) * scale).astype(int) + 6
    mask = np.zeros((int(size[1]), int(size[0])), np.uint8)
    for corners in moved:
        cv2.fillConvexPoly(mask, corners, 1, cv2.LINE_8, _SHIFT)
    return float(cv2.countNonZero(mask)) * (0.5 / scale) ** 2


def shadow_outlines(mesh: Mesh, camera: Camera, lit: Light) -> list[tuple[np.ndarray, int]]:
    """What a body takes from the floor of the light of its two nearest lamps: outlines in the half picture, and how
    much is left, 0..255."""
    found = []
    place = mesh.corner_V3.mean(0)
    near = np.argsort(((lit.lamps_L3[:, :2] - place[:2]) ** 2).sum(1))[:2]
    for rank, lamp in enumerate(lit.lamps_L3[near]):
        low = np.maximum(lamp[2] - mesh.corner_V3[:, 2:], 0.5)
        cast = mesh.corner_V3 + (mesh.corner_V3 - lamp) * (mesh.corner_V3[:, 2:] / low)
        cast[:, 2] = 0.0
        pixel, depth = camera.project(cast)
        if depth.min() >= NEAR:
            found.append((fixed(cv2.convexHull(pixel.astype(np.float32))[:, 0], 0.5), (150, 200)[rank]))
    return found


def shadows(shape: tuple[int, int], outlines: Sequence[tuple[np.ndarray, int]]) -> np.ndarray:
    """How much light is left on the floor, 0..255, behind all that stands between it and lamps. [H, W]"""
    left_HW = np.full((shape[0] // 2, shape[1] // 2), 255, np.uint8)
    for hull, left in outlines:
        cv2.fillConvexPoly(left_HW, hull, left, cv2.LINE_AA, _SHIFT)
    left_HW = cv2.GaussianBlur(left_HW, (5, 5), 1.4)
    return cv2.resize(left_HW, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR)


def mirror_outlines(mesh: Mesh, camera: Camera) -> list[tuple[np.ndarray, list[float]]]:
    """A body in a floor that shines: outlines of its lower and its upper part, and their colour."""
    found, colour = [], (mesh.colour_F3.mean(0) * 0.8).tolist()
    for low, high in ((0.0, 0.95), (0.8, 9.0)):
        part_N3 = mesh.corner_V3[(mesh.corner_V3[:, 2] >= low) & (mesh.corner_V3[:, 2] < high)]
        if len(part_N3) > 2:
            pixel, depth = camera.project(part_N3 * np.array([1, 1, -1]))
            if depth.min() > NEAR:
                found.append((fixed(cv2.convexHull(pixel.astype(np.float32))[:, 0]), colour))
    return found
