"""Bodies as meshes of four-cornered faces: lofts through rings of ellipses, and boxes.

Faces turn their corners counter-clockwise to the outside. Own coordinates of a body: x to its right, y ahead, z up,
metres, the floor below its middle is 0. Shapes: V corners, F faces.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Colour = tuple[int, int, int]

_BOX = np.array([[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]])


@dataclass(frozen=True)
class Mesh:
    """
    Attributes:
        corner_V3: float. face_F4: numbers of corners. colour_F3: float, 0..255.
    """

    corner_V3: np.ndarray
    face_F4: np.ndarray
    colour_F3: np.ndarray

    def moved(self, x: float, y: float, z: float = 0.0, heading: float = 0.0, tilt: float = 0.0) -> Mesh:
        """Tilted forward about its x axis, turned (0 looks along y, positive to the right), then shifted."""
        st, ct, sh, ch = math.sin(tilt), math.cos(tilt), math.sin(heading), math.cos(heading)
        tilt_33 = np.array([[1, 0, 0], [0, ct, st], [0, -st, ct]])
        turn_33 = np.array([[ch, sh, 0], [-sh, ch, 0], [0, 0, 1]])
        return Mesh(self.corner_V3 @ (turn_33 @ tilt_33).T + np.array([x, y, z]), self.face_F4, self.colour_F3)


def join(meshes: Sequence[Mesh]) -> Mesh:
    """One mesh of several."""
    offset = np.cumsum([0, *(len(m.corner_V3) for m in meshes[:-1])])
    return Mesh(
        np.concatenate([m.corner_V3 for m in meshes]),
        np.concatenate([m.face_F4 + o for m, o in zip(meshes, offset, strict=True)]),
        np.concatenate([m.colour_F3 for m in meshes]),
    )


def box(low: Sequence[float], high: Sequence[float], colour: Colour) -> Mesh:
    corners = np.array([[x, y, z] for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (low[2], high[2])])
    return Mesh(corners.astype(float), _BOX, np.tile(np.array(colour, float), (6, 1)))


def loft(rings: Sequence[Sequence[float]], colours: Sequence[Colour], sides: int = 8) -> Mesh:
    """A skin over ellipses: rings of (x, y, z, half width in x, half width in y), upwards; one colour between two."""
    angle_S = np.arange(sides) * 2 * np.pi / sides
    ring_R5 = np.array(rings, float)
    circle_S3 = np.stack([np.cos(angle_S), np.sin(angle_S), 0 * angle_S], -1)
    half_R3 = np.concatenate([ring_R5[:, 3:], np.zeros((len(ring_R5), 1))], 1)
    corners = (ring_R5[:, None, :3] + circle_S3 * half_R3[:, None]).reshape(-1, 3)
    faces, paint = [], []
    for r in range(len(rings) - 1):
        for s in range(sides):
            a, b = r * sides + s, r * sides + (s + 1) % sides
            faces.append((a, b, b + sides, a + sides))
            paint.append(colours[r])
    top = (len(rings) - 1) * sides
    for s in range(1, sides - 1, 2):
        faces.append((top, top + s, top + s + 1, top + min(s + 2, sides - 1)))
        paint.append(colours[-1])
        faces.append((0, min(s + 2, sides - 1), s + 1, s))
        paint.append(colours[0])
    return Mesh(corners, np.array(faces), np.array(paint, float))


def limb(a: Sequence[float], b: Sequence[float], thick: float, colour: Colour, end: Colour | None = None) -> Mesh:
    """A tube of six sides from a to b; its first quarter, at a, in the colour `end`."""
    p, q = np.array(a, float), np.array(b, float)
    along = (q - p) / max(float(np.linalg.norm(q - p)), 1e-6)
    mesh = loft([(0, 0, c, thick * (0.8 + 0.3 * c), thick * (0.8 + 0.3 * c)) for c in (0.0, 0.25, 1.0)],
                [end or colour, colour], 6)  # fmt: skip
    side = np.cross((0.0, 1.0, 0.0) if abs(along[1]) < 0.9 else (0.0, 0.0, 1.0), along)
    side /= np.linalg.norm(side)
    flat_V3 = mesh.corner_V3
    corner_V3 = p + flat_V3[:, :1] * side + flat_V3[:, 1:2] * np.cross(along, side) + flat_V3[:, 2:] * (q - p)
    return Mesh(corner_V3, mesh.face_F4, mesh.colour_F3)


@dataclass(frozen=True)
class Looks:
    """How a person looks, by which they stay the same from frame to frame."""

    height: float
    girth: float
    skin: Colour
    hair: Colour
    shirt: Colour
    trousers: Colour
    shoes: Colour
    helmet: Colour
    vest: Colour


def looks(rng: np.random.Generator) -> Looks:
    def pick(*options: Colour) -> Colour:
        return options[int(rng.integers(len(options)))]

    return Looks(
        float(rng.uniform(1.58, 1.94)),
        float(rng.uniform(0.88, 1.2)),
        pick((224, 178, 148), (198, 146, 112), (141, 92, 64), (96, 62, 44), (236, 196, 170)),
        pick((40, 30, 24), (92, 62, 38), (28, 28, 30), (150, 118, 72), (130, 128, 126)),
        pick((58, 74, 112), (110, 42, 44), (70, 72, 74), (190, 188, 180), (40, 84, 66), (92, 98, 128), (30, 32, 40)),
        pick((38, 46, 72), (64, 62, 58), (96, 84, 64), (34, 34, 38), (70, 86, 108)),
        pick((30, 28, 26), (72, 52, 36), (120, 120, 118)),
        pick((240, 200, 40), (245, 245, 240), (230, 100, 40), (50, 110, 200), (200, 44, 44)),
        pick((215, 240, 50), (250, 120, 30), (190, 245, 70)),
    )


def person(
    look: Looks,
    phase: float = 0.0,
    stride: float = 0.0,
    helmet: bool = False,
    vest: bool = False,
    carrying: bool = False,
    helmet_in_hand: bool = False,
    crouch: float = 0.0,
    seated: bool = False,
    pushing: bool = False,
) -> Mesh:
    """A person.

    Args:
        pushing: hands ahead, on a handle.
        phase: of the step, radians; stride: 0 stands, 1 walks.
        crouch: 0 upright, 1 squats.
    """
    h, g = look.height / 1.75, look.girth
    swing = 0.28 * stride * math.sin(phase)
    hip = (0.92 - 0.5 * crouch) * h
    if seated:
        hip = 0.45 * h
    parts = []
    for side, ahead in ((-1, swing), (1, -swing)):
        x, foot = 0.1 * side * g * h, [0.0, ahead * h, 0.06]
        knee = [0.0, (0.08 * stride + ahead * 0.5 + 0.42 * crouch) * h, hip * 0.52 + 0.08 * crouch]
        if seated:
            knee, foot = [0.0, 0.42 * h, hip], [0.0, 0.45 * h, 0.02]
        foot[0] = knee[0] = x
        parts.append(limb(foot, knee, 0.065 * h * g, look.trousers, look.shoes))
        parts.append(limb(knee, (x, 0.0, hip + 0.02), 0.085 * h * g, look.trousers))
        parts.append(
            box((x - 0.05, foot[1] - 0.08, foot[2] - 0.06), (x + 0.05, foot[1] + 0.19, 0.03 + foot[2]), look.shoes)
        )
    lean = 0.22 * crouch
    body = look.vest if vest else look.shirt
    stripe: Colour = (232, 234, 230) if vest else body
    shoulder = hip + 0.54 * h
    rings = [
        (0, 0, hip - 0.04, 0.155 * g * h, 0.11 * g * h),
        (0, 0.02 * lean, hip + 0.12 * h, 0.16 * g * h, 0.115 * g * h),
        (0, 0.25 * lean, hip + 0.17 * h, 0.165 * g * h, 0.115 * g * h),
        (0, 0.5 * lean, hip + 0.30 * h, 0.175 * g * h, 0.12 * g * h),
        (0, 0.6 * lean, hip + 0.35 * h, 0.18 * g * h, 0.12 * g * h),
        (0, 0.9 * lean, hip + 0.50 * h, 0.195 * g * h, 0.115 * g * h),
        (0, lean, hip + 0.56 * h, 0.10 * g * h, 0.08 * h),
    ]
    parts.append(loft(rings, [body, stripe, body, stripe, body, body]))
    for side, ahead in ((-1, -swing), (1, swing)):
        x = 0.215 * side * g * h
        top = (x, lean, shoulder - 0.05 * h)
        if carrying or pushing:
            elbow, hand = (x * 1.1, lean + 0.05, hip + 0.22 * h), (x * 0.9, lean + 0.36 * h, hip + 0.18 * h)
        elif seated:
            elbow, hand = (x * 1.1, 0.1, hip + 0.25 * h), (x * 0.6, 0.38, hip + 0.3 * h)
        else:
            elbow = (x * 1.12, lean + 0.4 * ahead * h, shoulder - 0.33 * h)
            hand = (x * 1.1, lean + (ahead + 0.08) * h + 0.12 * crouch, shoulder - 0.6 * h)
        parts.append(limb(elbow, top, 0.052 * h * g, look.shirt))
        parts.append(limb(hand, elbow, 0.045 * h, look.shirt, look.skin))
        if helmet_in_hand and side == 1:
            parts.append(_helmet(look.helmet, hand[0] + 0.04, hand[1] + 0.02, hand[2] - 0.12, h))
    if carrying:
        z, y = hip + 0.12 * h, lean + 0.2 * h
        parts.append(box((-0.24, y, z), (0.24, y + 0.34, z + 0.3), (176, 134, 88)))
        parts.append(box((-0.03, y - 0.004, z), (0.03, y + 0.344, z + 0.304), (214, 196, 150)))
    chin = shoulder + 0.05 * h
    crown = look.helmet if helmet else look.hair
    head = [
        (0, lean, chin - 0.06 * h, 0.055 * h, 0.055 * h),
        (0, lean + 0.01, chin + 0.01 * h, 0.06 * h, 0.075 * h),
        (0, lean + 0.01, chin + 0.10 * h, 0.078 * h, 0.095 * h),
        (0, lean, chin + 0.15 * h, 0.078 * h, 0.095 * h),
        (0, lean - 0.01, chin + 0.20 * h, 0.05 * h, 0.06 * h),
    ]
    parts.append(loft(head, [look.skin, look.skin, crown if not helmet else look.skin, crown]))
    if helmet:
        parts.append(_helmet(look.helmet, 0, lean, chin + 0.11 * h, h))
    return join(parts)


def _helmet(colour: Colour, x: float, y: float, z: float, h: float) -> Mesh:
    rim: Colour = tuple(int(c * 0.8) for c in colour)  # type: ignore[assignment]
    rings = [
        (x, y + 0.025, z, 0.125 * h, 0.165 * h),
        (x, y + 0.01, z + 0.025, 0.112 * h, 0.135 * h),
        (x, y, z + 0.09 * h, 0.098 * h, 0.115 * h),
        (x, y, z + 0.135 * h, 0.05 * h, 0.06 * h),
    ]
    return loft(rings, [rim, colour, colour])


def forklift(colour: Colour, lift: float, load: Mesh | None) -> Mesh:
    """A counterbalance forklift without its driver; `lift` is the height of the fork, `load` what stands on it."""
    dark, steel, seat = (38, 38, 40), (120, 122, 126), (60, 56, 54)
    parts = [
        box((-0.55, -1.15, 0.28), (0.55, 0.75, 0.62), colour),
        box((-0.55, -1.2, 0.35), (0.55, -0.62, 1.08), colour),
        box((-0.5, -1.26, 0.4), (0.5, -1.18, 0.95), dark),
        box((-0.4, 0.45, 0.6), (0.4, 0.75, 1.15), dark),
        box((-0.28, -0.55, 0.62), (0.28, -0.1, 0.78), seat),
        box((-0.5, -0.8, 2.06), (0.5, 0.62, 2.14), dark),
        box((-0.12, 0.3, 1.0), (0.12, 0.42, 1.12), (20, 20, 20)),
        box((-0.07, -0.6, 2.14), (0.07, -0.46, 2.26), (250, 170, 30)),
    ]
    for x in (-0.5, 0.44):
        parts.append(box((x, -0.8, 1.05), (x + 0.06, -0.72, 2.08), dark))
        parts.append(box((x, 0.56, 0.62), (x + 0.06, 0.64, 2.08), dark))
        for y, r in ((-0.8, 0.25), (0.45, 0.3)):
            parts.append(box((x * 1.16 - 0.05, y - r, 0.02), (x * 1.16 + 0.13, y + r, 2 * r - 0.02), (26, 26, 28)))
            parts.append(
                box((x * 1.2 - 0.05, y - 0.4 * r, 0.6 * r), (x * 1.2 + 0.16, y + 0.4 * r, 1.4 * r), (200, 200, 196))
            )
    top = max(2.1, lift + 1.0)
    for x in (-0.36, 0.28):
        parts.append(box((x, 0.82, 0.1), (x + 0.08, 0.94, top), steel))
        parts.append(box((x - 0.04, 1.02, lift + 0.02), (x + 0.1, 2.05, lift + 0.07), (70, 70, 74)))
    parts.append(box((-0.42, 0.94, lift + 0.02), (0.42, 1.0, lift + 0.5), (64, 64, 68)))
    if load is not None:
        parts.append(load.moved(0, 1.55, lift + 0.07))
    return join(parts)


def pallet(rng: np.random.Generator, loaded: bool = True) -> Mesh:
    """A slatted pallet, 1.2 m by 0.8 m, with an irregular load, wrapped or not."""
    wood: Colour = tuple(int(v) for v in np.array((178, 140, 92)) + rng.integers(-22, 16))  # type: ignore[assignment]
    low: Colour = tuple(int(c * 0.62) for c in wood)  # type: ignore[assignment]
    parts = [box((x, -0.4, 0.0), (x + 0.12, 0.4, 0.1), low) for x in (-0.6, -0.06, 0.48)]
    parts += [box((-0.6, y, 0.1), (0.6, y + 0.11, 0.14), wood) for y in (-0.4, -0.225, -0.055, 0.115, 0.29)]
    if loaded:
        style = int(rng.integers(3))
        if style == 0:  # wrapped in film, bulging
            grey = (150, 164, 176) if rng.random() < 0.6 else (60, 62, 70)
            top = float(rng.uniform(0.7, 1.25))
            rings = [(0, 0, 0.14, 0.72, 0.5)]
            rings += [
                (*rng.uniform(-0.03, 0.03, 2), 0.14 + top * k / 4, *(np.array((0.7, 0.5)) * rng.uniform(0.9, 1.03)))
                for k in range(1, 5)
            ]
            shade: list[Colour] = [tuple(int(c * s) for c in grey) for s in (0.9, 1.1, 0.95, 1.12)]  # type: ignore[misc]
            parts.append(_square_loft(rings, shade))
        elif style == 1:  # cartons in layers
            base = np.array((176, 136, 92)) + rng.integers(-25, 20)
            for layer in range(int(rng.integers(2, 5))):
                z = 0.14 + 0.27 * layer
                for x in (-0.58, -0.19, 0.2):
                    for y in (-0.38, 0.0):
                        if layer and rng.random() < 0.14:
                            continue
                        tone: Colour = tuple(int(v) for v in base + rng.integers(-14, 15))  # type: ignore[assignment]
                        parts.append(box((x, y, z), (x + 0.37, y + 0.36, z + 0.26), tone))
        else:  # drums
            tone = ((38, 84, 150), (60, 110, 70), (150, 40, 40), (190, 192, 196))[int(rng.integers(4))]
            rim: Colour = tuple(int(c * 0.6) for c in tone)  # type: ignore[assignment]
            for x in (-0.32, 0.3):
                for y in (-0.2, 0.2):
                    r, x0 = 0.2, x + float(rng.uniform(-0.03, 0.03))
                    rings = [(x0, y, z, r, r) for z in (0.14, 0.42, 0.46, 0.76, 0.8)]
                    parts.append(loft(rings, [tone, rim, tone, rim]))
    return join(parts)


def _square_loft(rings: Sequence[Sequence[float]], colours: Sequence[Colour]) -> Mesh:
    """A loft of 8 sides whose rings are pushed out to rounded rectangles."""
    mesh = loft(rings, colours, 8)
    middle_V3 = np.repeat(np.array(rings)[:, :3], 8, 0)
    out_V3 = mesh.corner_V3 - middle_V3
    out_V3[1::2, :2] *= 1.22
    out_V3[::2, :2] *= 0.84
    return Mesh(middle_V3 + out_V3, mesh.face_F4, mesh.colour_F3)


def cart(colour: Colour, loaded: bool) -> Mesh:
    """A hand cart with a handle at its back, cartons on it if it is loaded."""
    parts = [box((-0.4, -0.6, 0.22), (0.4, 0.6, 0.29), colour)]
    parts += [box((x, y, 0.0), (x + 0.07, y + 0.18, 0.2), (30, 30, 32)) for x in (-0.36, 0.29) for y in (-0.55, 0.37)]
    parts += [box((x, -0.62, 0.25), (x + 0.05, -0.57, 1.0), (150, 152, 156)) for x in (-0.38, 0.33)]
    parts.append(box((-0.38, -0.63, 0.96), (0.38, -0.57, 1.02), (40, 40, 44)))
    if loaded:
        parts.append(box((-0.34, -0.45, 0.29), (0.1, 0.05, 0.68), (182, 142, 96)))
        parts.append(box((-0.3, 0.08, 0.29), (0.34, 0.52, 0.58), (166, 124, 82)))
        parts.append(box((0.12, -0.4, 0.29), (0.36, 0.0, 0.5), (120, 140, 170)))
    return join(parts)


def carton() -> Mesh:
    return box((-0.24, -0.17, 0.0), (0.24, 0.17, 0.3), (176, 134, 88))


def cone() -> Mesh:
    rings = [(0, 0, z, r, r) for z, r in ((0.0, 0.2), (0.05, 0.17), (0.25, 0.12), (0.42, 0.08), (0.7, 0.03))]
    return loft(rings, [(40, 40, 40), (235, 90, 30), (240, 240, 236), (235, 90, 30)])


def mannequin() -> Mesh:
    """A bare torso with a head on a stand: no person, though it wears a vest."""
    stand = (90, 92, 96)
    body = [
        (0, 0, 0.9, 0.15, 0.1), (0, 0, 1.05, 0.14, 0.1), (0, 0, 1.3, 0.18, 0.12), (0, 0, 1.42, 0.17, 0.1),
        (0, 0, 1.48, 0.06, 0.06), (0, 0, 1.52, 0.06, 0.06), (0, 0, 1.6, 0.08, 0.1), (0, 0, 1.72, 0.05, 0.06),
    ]  # fmt: skip
    white, vest = (226, 222, 214), (215, 240, 50)
    return join([
        loft([(0, 0, 0.0, 0.26, 0.26), (0, 0, 0.04, 0.26, 0.26)], [stand]),
        box((-0.03, -0.03, 0.04), (0.03, 0.03, 0.9), stand),
        loft(body, [vest, vest, vest, white, white, white, white]),
    ])  # fmt: skip
