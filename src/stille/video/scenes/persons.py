"""Persons as capsules and ellipsoids: walking, stooping, carrying, pushing, falling; helmets, vests and what looks like
them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stille.video.scenes.draw import Draw
from stille.video.scenes.primitives import (
    BAND,
    CARTON,
    CLOTH,
    HEAD,
    HELMET,
    PLAIN,
    ROUND,
    SKIN,
    TORSO,
    VEST,
    Frame,
    Parts,
)

FLUORESCENT = ((0.75, 1.0, 0.05), (1.0, 0.32, 0.02), (0.95, 0.95, 0.05), (1.0, 0.12, 0.08), (0.35, 1.0, 0.15))
HELMETS = ((0.95, 0.75, 0.05), (0.92, 0.92, 0.92), (0.05, 0.2, 0.75), (0.85, 0.08, 0.06), (0.95, 0.4, 0.03),
            (0.08, 0.5, 0.15))  # fmt: skip
_SKINS = ((0.75, 0.5, 0.38), (0.62, 0.38, 0.27), (0.42, 0.24, 0.15), (0.22, 0.12, 0.08), (0.85, 0.62, 0.5))
_HAIR = ((0.02, 0.02, 0.02), (0.12, 0.07, 0.03), (0.35, 0.24, 0.1), (0.4, 0.4, 0.4), (0.2, 0.1, 0.05))
_TROUSERS = ((0.02, 0.03, 0.08), (0.05, 0.05, 0.06), (0.2, 0.18, 0.14), (0.06, 0.1, 0.2), (0.25, 0.25, 0.27),
             (0.9, 0.4, 0.04))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pose:
    """How N persons stand, [B, T, N] each.

    Attributes:
        place, heading: [B, T, N, 2].
        walked, speed: metres and m/s, for the legs.
        fallen, crouch: 0 to 1.
        on, helmet, vest, carrying, pushing, helmet_in_hand: bool.
    """

    place: Tensor
    heading: Tensor
    walked: Tensor
    speed: Tensor
    fallen: Tensor
    crouch: Tensor
    on: Tensor
    helmet: Tensor
    vest: Tensor
    carrying: Tensor
    pushing: Tensor
    helmet_in_hand: Tensor

    @classmethod
    def still(cls, place: Tensor, heading: Tensor, on: Tensor, helmet: Tensor, vest: Tensor) -> Pose:
        """Standing, as mannequins do."""
        zero, no = torch.zeros(place.shape[:-1], device=place.device), torch.zeros_like(on)
        return cls(place, heading, zero, zero, zero, zero, on, helmet, vest, no, no, no)


def _tip(frame: Frame, fallen: Tensor, toward: Tensor) -> Frame:
    """A frame tipped over: z goes to the floor in the direction `toward` (radians from its x)."""
    angle = (fallen * 1.5)[..., None]
    side = frame.y * toward.cos()[..., None] - frame.x * toward.sin()[..., None]  # turning about it tips z over

    def turn(v: Tensor) -> Tensor:
        along = (side * v).sum(-1, keepdim=True) * side
        return v * angle.cos() + torch.linalg.cross(side, v) * angle.sin() + along * (1 - angle.cos())

    raised = frame.origin + frame.z * (0.13 * fallen)[..., None]
    return Frame(raised, turn(frame.x), turn(frame.y), turn(frame.z))


def _joint(a: Tensor, b: Tensor, bend: Tensor, length: Tensor) -> Tensor:
    """Knee or elbow between two points: limbs of `length` [B, 1, N] each, bent towards `bend`."""
    way = b - a
    half = way.norm(dim=-1, keepdim=True) / 2
    aside = bend - way * (bend * way).sum(-1, keepdim=True) / (4 * half * half).clamp(min=1e-6)
    aside = aside / aside.norm(dim=-1, keepdim=True).clamp(min=1e-4)
    return (a + b) / 2 + aside * (length[..., None] ** 2 - half**2).clamp(min=0).sqrt()


def add_persons(parts: Parts, draw: Draw, pose: Pose, name: str = "person") -> None:
    """30 primitives for each person; who is the same in all frames looks the same."""
    n = parts.shape[2]

    def each(what: str, low: float, high: float) -> Tensor:
        return draw.uniform(f"{name} {what}", n, low=low, high=high)[:, None]

    def colour(what: str, table: tuple[tuple[float, float, float], ...]) -> Tensor:
        return (draw.choice(f"{name} {what}", n, of=table) * draw.uniform(f"{name} {what} shade", n, 1, low=0.75))[
            :, None
        ]

    s, wide = each("height", 1.56, 1.94), each("width", 0.88, 1.16)
    skin, hair = colour("skin", _SKINS), colour("hair", _HAIR)
    trousers, helmet, vest = colour("trousers", _TROUSERS), colour("helmet", HELMETS), colour("vest", FLUORESCENT)
    free = draw.uniform(f"{name} shirt", n, 3, low=0.02, high=0.8)[:, None] ** 1.5
    grey = draw.uniform(f"{name} grey", n, 1, low=0.02, high=0.4) * draw.uniform(f"{name} tinge", n, 3, low=0.75)
    free = torch.where(draw.chance(f"{name} plain", n, p=0.4)[:, None, :, None], grey[:, None], free)
    like_vest = draw.chance(f"{name} like vest", n, p=0.2)[:, None, :, None]  # bright clothes that are no vest
    shirt = torch.where(like_vest, colour("bright", FLUORESCENT) * 0.85, free)
    pattern = draw.chance(f"{name} pattern", n, p=0.3)[:, None, :, None]
    second = torch.where(pattern, draw.uniform(f"{name} second", n, 3, low=0.02, high=0.7)[:, None], shirt)
    long_sleeves = draw.chance(f"{name} sleeves", n, p=0.65)[:, None, :, None]
    sleeve = torch.where(long_sleeves, shirt, skin)
    cap = draw.chance(f"{name} cap", n, p=0.4)[:, None]
    on = pose.on
    hat = on & pose.helmet
    worn = on & pose.vest
    bare = on & ~pose.helmet
    top = torch.where(cap[..., None], draw.uniform(f"{name} cap colour", n, 3, low=0.02, high=0.9)[:, None], hair)

    upright = Frame.standing(pose.place, pose.heading)
    body = _tip(upright, pose.fallen, each("falls to", -3.14, 3.14))
    busy = pose.carrying | pose.pushing
    up = (1 - pose.fallen) * (1 - pose.crouch)
    swing = (pose.speed.clamp(0, 1.6) * 0.23) * up
    phase = pose.walked / 1.35 * 6.2832 + each("phase", 0.0, 6.28)
    hip_z = s * (0.52 - 0.2 * pose.crouch) + 0.012 * (2 * phase).cos() * (swing > 0.05)
    lean = 0.04 * pose.speed.clamp(0, 2) + 0.38 * pose.crouch
    shoulder_z = hip_z + s * 0.29 * (1 - 0.35 * pose.crouch)
    hip, chest = body.point(-0.1 * pose.crouch, 0, hip_z), body.point(lean, 0, shoulder_z)

    spine = chest - hip
    length = spine.norm(dim=-1, keepdim=True).clamp(min=1e-3)
    z = spine / length
    x = torch.linalg.cross(body.y, z)
    trunk = Frame((hip + chest) / 2, x / x.norm(dim=-1, keepdim=True).clamp(min=1e-4), body.y, z)
    half = length[..., 0] / 2
    thick, broad = 0.115 * wide, 0.175 * wide

    for side in (-1.0, 1.0):
        own = phase + (1.5708 if side > 0 else -1.5708)
        foot = body.point(swing * own.sin() * 1.15, side * 0.095, 0.075 + 0.22 * swing * own.cos().clamp(min=0) + 0 * s)
        top_leg = body.point(-0.1 * pose.crouch, side * 0.085, hip_z)
        knee = _joint(top_leg, foot, body.x, s * 0.248)
        parts.limb(body, top_leg, knee, 0.083 * wide, trousers, CLOTH, on=on)
        parts.limb(body, knee, foot, 0.062 * wide, trousers, CLOTH, on=on)
        shoe = Frame(foot, body.x, body.y, body.z)
        parts.ball(shoe, (0.05, 0, -0.02), (0.14, 0.055, 0.055), (0.03, 0.03, 0.03), on=on)
        hang = body.point(lean * 0.6 - swing * own.sin() * 0.9, side * 0.26 * wide, hip_z - 0.03 * s)
        hold = body.point(0.40 + lean * 0.5, side * 0.17, torch.where(pose.pushing, 1.0, shoulder_z - 0.25))
        hand = torch.where(busy[..., None], hold, hang)
        hand = torch.where(
            (pose.crouch > 0.3)[..., None], body.point(0.45, side * 0.15, 0.55 - 0.2 * pose.crouch), hand
        )
        shoulder = trunk.point(0, side * (broad + 0.02), half * 0.9)
        elbow = _joint(shoulder, hand, side * body.y * 0.4 - body.x, s * 0.155)
        parts.limb(body, shoulder, elbow, 0.055 * wide, shirt, CLOTH, on=on)
        parts.limb(body, elbow, hand, 0.045 * wide, sleeve, CLOTH, on=on)
        parts.ball(Frame(hand, body.x, body.y, body.z), (0, 0, 0), (0.055, 0.045, 0.06), skin, SKIN, on=on)
        if side > 0:
            carried = Frame(hand, body.x, body.y, body.z)
            parts.ball(carried, (0.02, 0.06, -0.06), (0.14, 0.12, 0.1), helmet, HELMET, on=on & pose.helmet_in_hand)

    parts.ball(body, (-0.08 * pose.crouch, 0, hip_z), (thick * 1.05, broad * 0.97, 0.12), trousers, CLOTH, on=on)

    # Coats and skirts, rucksacks, bags.
    coat, skirt = draw.chance(f"{name} coat", n, p=0.2)[:, None], draw.chance(f"{name} skirt", n, p=0.12)[:, None]
    parts.ball(body, (-0.1 * pose.crouch, 0, hip_z - 0.1 * s), (thick * 1.25, broad * 1.08, 0.16 * s),
               torch.where(coat[..., None], shirt, trousers), CLOTH, on=on & (coat | skirt))  # fmt: skip
    sack = draw.uniform(f"{name} rucksack", n, 3, low=0.02, high=0.7)[:, None]
    parts.ball(trunk, (-thick - 0.06, 0, half * 0.25), (0.1, 0.14, 0.19), sack, PLAIN,
               on=on & draw.chance(f"{name} has rucksack", n, p=0.15)[:, None])  # fmt: skip
    swung = body.point(0.05, -0.27 * wide, hip_z - 0.16 * s)
    parts.box(Frame(swung, body.x, body.y, body.z), (0, 0, 0), (0.14, 0.05, 0.11), sack * 0.8, PLAIN,
              on=on & ~busy & draw.chance(f"{name} bag", n, p=0.12)[:, None])  # fmt: skip

    def shell(scale: float, shorter: float, paint: Tensor, material: int, where: Tensor, other: Tensor) -> None:
        axes = (trunk.x * (thick * scale)[..., None], trunk.y * (broad * scale)[..., None], trunk.z * 0.11 * scale)
        ratio = (half * shorter / (0.11 * scale)).clamp(min=0.01)
        parts.add(ROUND, trunk.origin, axes, paint, material, other=other, ratio=ratio, on=where, part=TORSO)

    shell(1.0, 0.85, shirt, CLOTH, on, second)
    shell(1.1, 0.82, vest, VEST, worn, vest)
    plain_band = on & draw.chance(f"{name} plain band", n, p=0.08)[:, None] & ~worn  # a stripe makes no vest
    silver = torch.full_like(vest, 0.8)
    for height, where in ((-0.45, worn), (0.1, worn | plain_band)):
        parts.tube(
            trunk, (0, 0, half * height), (thick * 1.13, broad * 1.13, 0.032), silver, BAND, on=where, part=TORSO
        )
    for side in (-0.55, 0.55):
        parts.box(
            trunk, (0, broad * side, half * 0.3), (thick * 1.06, 0.022, half * 0.72), silver, BAND, on=worn, part=TORSO
        )

    face = chest + body.z * (s * 0.135)[..., None] + body.x * (0.03 + 0.05 * pose.crouch)[..., None]
    head = Frame(face, body.x, body.y, body.z)
    parts.limb(body, chest, face, 0.055, skin, SKIN, on=on)
    parts.ball(head, (0, 0, 0), (0.098, 0.078, 0.118), skin, SKIN, on=on, part=HEAD)
    parts.ball(head, (-0.018, 0, 0.03), (0.1, 0.088, 0.105), top, PLAIN, on=bare, part=HEAD)
    parts.tube(head, (0.11, 0, 0.055), (0.065, 0.07, 0.008), top, PLAIN, on=bare & cap, part=HEAD)
    parts.ball(head, (-0.005, 0, 0.055), (0.138, 0.115, 0.112), helmet, HELMET, on=hat, part=HEAD)
    parts.tube(head, (0.035, 0, 0.045), (0.165, 0.128, 0.012), helmet * 0.85, HELMET, on=hat, part=HEAD)

    size = draw.uniform(f"{name} box", n, 3, low=0.14, high=0.26)[:, None]
    load = body.point(0.42 + lean * 0.5, 0, shoulder_z - 0.22 - 0.35 * pose.crouch)
    carton = draw.choice(
        f"{name} carton", n, of=((0.45, 0.3, 0.16), (0.6, 0.45, 0.28), (0.1, 0.15, 0.4), (0.7, 0.7, 0.7))
    )
    parts.box(
        Frame(load, body.x, body.y, body.z), (0, 0, 0), (size[..., 0], size[..., 1] + 0.04, size[..., 2]),
        carton[:, None], CARTON, other=carton[:, None] * 0.7, on=on & pose.carrying,
    )  # fmt: skip
