"""Forklifts, carts and pallets with loads."""

from __future__ import annotations

import torch
from torch import Tensor

from stille.video.scenes.draw import Draw, constant
from stille.video.scenes.persons import FLUORESCENT, HELMETS
from stille.video.scenes.primitives import (
    BAND,
    CARTON,
    CLOTH,
    HEAD,
    HELMET,
    LAMP,
    METAL,
    PLAIN,
    SKIN,
    TORSO,
    VEST,
    WOOD,
    WRAP,
    Frame,
    Parts,
)
from stille.video.scenes.story import Story

_PAINTS = ((0.9, 0.35, 0.02), (0.9, 0.65, 0.03), (0.65, 0.05, 0.03), (0.05, 0.3, 0.12), (0.05, 0.15, 0.5),
           (0.75, 0.75, 0.7), (0.95, 0.85, 0.1))  # fmt: skip
_LOADS = ((0.42, 0.28, 0.15), (0.55, 0.42, 0.27), (0.35, 0.24, 0.14), (0.7, 0.72, 0.75), (0.08, 0.2, 0.45),
          (0.75, 0.7, 0.6), (0.15, 0.35, 0.2))  # fmt: skip
_DARK = (0.03, 0.03, 0.035)


def add_forklifts(parts: Parts, draw: Draw, story: Story, moment_BT: Tensor) -> None:
    """20 primitives each; x is forwards, the forks end at 2.3 m."""
    f = parts.shape[2]
    truck = story.forklifts
    frame = Frame.standing(truck.place_BTN2, truck.heading_BTN2)
    on = story.forklift_on_BF[:, None]
    lift = truck.lift_BTN
    shade = draw.uniform("truck shade", f, 1, low=0.7)
    paint = (draw.choice("truck", f, of=_PAINTS) * shade)[:, None]
    roof = draw.uniform("truck roof", f, low=1.95, high=2.2)[:, None]
    reach = draw.chance("truck slim", f, p=0.3)[:, None]  # a reach truck: narrow, upright
    wide = torch.where(reach, 0.46, 0.55)
    parts.box(frame, (-0.05, 0, 0.5), (0.82, wide, 0.26), paint, METAL, on=on)
    parts.box(frame, (-0.72, 0, 0.72), (0.28, wide * 0.96, 0.42), paint, METAL, on=on)
    parts.ball(frame, (-0.95, 0, 0.72), (0.18, wide * 0.93, 0.4), _DARK, METAL, on=on)
    parts.box(frame, (0.55, 0, 0.85), (0.16, wide * 0.8, 0.2), paint * 0.8, METAL, on=on)
    for x, y in ((-0.8, -0.9), (-0.8, 0.9), (0.6, -0.9), (0.6, 0.9)):
        parts.box(frame, (x, wide * y, (roof + 0.9) / 2), (0.035, 0.035, (roof - 0.9) / 2), _DARK, METAL, on=on)
    parts.box(frame, (-0.1, 0, roof), (0.78, wide * 0.95, 0.035), _DARK, METAL, on=on)
    for y in (-0.28, 0.28):
        high = torch.maximum(roof, lift + 1.0)
        parts.box(frame, (0.95, y, high / 2), (0.06, 0.045, high / 2), (0.06, 0.06, 0.065), METAL, on=on)
    parts.box(frame, (1.04, 0, lift + 0.35), (0.035, 0.42, 0.3), _DARK, METAL, on=on)
    for y in (-0.24, 0.24):
        parts.box(frame, (1.68, y, lift), (0.6, 0.055, 0.025), (0.1, 0.1, 0.11), METAL, on=on)
    for x, radius in ((-0.65, 0.25), (0.5, 0.29)):
        for y in (-1.0, 1.0):
            parts.wheel(frame, (x, wide * y, radius), radius, 0.1, on)
    parts.tube(frame, (0.24, 0, 1.16), (0.15, 0.15, 0.012), _DARK, PLAIN, on=on)
    lit = (moment_BT * 1.3 % 1 < 0.5)[..., None]
    beacon = torch.where(lit[..., None], 1.0, 0.35) * constant((1.0, 0.45, 0.02), parts.device)
    parts.tube(frame, (-0.7, 0, roof + 0.09), (0.06, 0.06, 0.07), beacon, LAMP, on=on)


def add_drivers(parts: Parts, draw: Draw, story: Story) -> None:
    """Persons that sit on forklifts; 16 primitives each."""
    f = parts.shape[2]
    frame = Frame.standing(story.forklifts.place_BTN2, story.forklifts.heading_BTN2)
    on, helmet = story.driver_on_BF[:, None], story.driver_helmet_BF[:, None]
    vest = story.driver_vest_BF[:, None]
    shirt, trousers = (
        draw.uniform(f"driver {what}", f, 3, low=0.02, high=0.7)[:, None] ** 1.5 for what in ("", "legs")
    )
    skin = draw.choice("driver skin", f, of=((0.7, 0.48, 0.36), (0.3, 0.17, 0.1), (0.55, 0.36, 0.26)))[:, None]
    hat = draw.choice("driver hat", f, of=HELMETS)[:, None]
    hair = draw.choice("driver hair", f, of=((0.03, 0.03, 0.03), (0.2, 0.12, 0.06), (0.4, 0.4, 0.4)))[:, None]
    bright = draw.choice("driver bright", f, of=FLUORESCENT)[:, None]

    def limb(
        a: tuple[float, float, float], b: tuple[float, float, float], radius: float, colour: Tensor, **more
    ) -> None:
        parts.limb(frame, frame.point(*a), frame.point(*b), radius, colour, CLOTH, on=on, **more)

    limb((-0.34, 0, 0.98), (-0.28, 0, 1.36), 0.155, shirt, part=TORSO)
    parts.limb(frame, frame.point(-0.335, 0, 1.0), frame.point(-0.285, 0, 1.32), 0.172, bright, VEST, on=on & vest,
               part=TORSO)  # fmt: skip
    for z in (1.08, 1.24):
        parts.tube(frame, (-0.31, 0, z), (0.178, 0.178, 0.03), (0.8, 0.8, 0.8), BAND, on=on & vest, part=TORSO)
    for y in (-0.19, 0.19):
        limb((-0.28, y, 1.42), (-0.12, y * 1.25, 1.15), 0.055, shirt)
        limb((-0.12, y * 1.25, 1.15), (0.2, y * 0.6, 1.2), 0.045, shirt)
        limb((-0.34, y * 0.55, 0.9), (0.08, y * 0.7, 0.92), 0.085, trousers)
        limb((0.08, y * 0.7, 0.92), (0.22, y * 0.7, 0.5), 0.065, trousers)
    parts.ball(frame, (-0.25, 0, 1.65), (0.1, 0.085, 0.13), skin, SKIN, on=on, part=HEAD)
    parts.ball(frame, (-0.265, 0, 1.69), (0.105, 0.092, 0.11), hair, PLAIN, on=on & ~helmet, part=HEAD)
    parts.ball(frame, (-0.26, 0, 1.72), (0.135, 0.115, 0.11), hat, HELMET, on=on & helmet, part=HEAD)
    parts.tube(frame, (-0.22, 0, 1.71), (0.16, 0.125, 0.012), hat * 0.85, HELMET, on=on & helmet, part=HEAD)


def add_carts(parts: Parts, draw: Draw, story: Story) -> None:
    """9 primitives each: a platform on wheels with a handle at the back."""
    c = parts.shape[2]
    frame = Frame.standing(story.cart_BTC2, story.cart_heading_BTC2)
    on = story.cart_on_BC[:, None]
    paint = draw.uniform("cart colour", c, 3, low=0.05, high=0.7)[:, None]
    parts.box(frame, (0.1, 0, 0.25), (0.5, 0.33, 0.04), paint, METAL, on=on)
    for x in (-0.28, 0.48):
        for y in (-0.27, 0.27):
            parts.wheel(frame, (x, y, 0.1), 0.1, 0.03, on)
    for y in (-0.28, 0.28):
        parts.box(frame, (-0.4, y, 0.62), (0.02, 0.02, 0.36), (0.5, 0.5, 0.52), METAL, on=on)
    parts.box(frame, (-0.4, 0, 0.98), (0.025, 0.3, 0.025), (0.5, 0.5, 0.52), METAL, on=on)
    loaded = on & story.cart_loaded_BTC
    load = draw.choice("cart load", c, of=_LOADS)[:, None]
    size = draw.uniform("cart load size", c, low=0.16, high=0.36)[:, None]
    parts.box(frame, (0.12, 0, 0.29 + size), (0.4, 0.27, size), load, CARTON, other=load * 0.6, on=loaded)


def add_pallets(parts: Parts, draw: Draw, story: Story) -> None:
    """8 primitives each: deck, three bearers, and boxes, a wrapped stack, or drums. Its long side is y."""
    p = parts.shape[2]
    goods = story.goods
    across = torch.stack([goods.along_BTP2[..., 1], -goods.along_BTP2[..., 0]], -1)
    frame = Frame.standing(goods.place_BTP3[..., :2], across, goods.place_BTP3[..., 2])
    on = goods.on_BP[:, None]
    wood = (draw.choice("wood", p, of=((0.42, 0.3, 0.17), (0.55, 0.42, 0.26), (0.3, 0.22, 0.14), (0.05, 0.15, 0.5)))
            * draw.uniform("wood shade", p, 1, low=0.7))[:, None]  # fmt: skip
    parts.box(frame, (0, 0, 0.125), (0.4, 0.58, 0.02), wood, WOOD, other=wood * 0.5, on=on)
    for y in (-0.5, 0.0, 0.5):
        parts.box(frame, (0, y, 0.05), (0.4, 0.07, 0.055), wood * 0.8, WOOD, other=wood * 0.5, on=on)
    kind = draw.uniform("load kind", p)[:, None]
    stack = on & (kind > 0.1) & (kind < 0.8)
    load = (draw.choice("load", p, of=_LOADS) * draw.uniform("load shade", p, 1, low=0.7))[:, None]
    half = draw.uniform("load height", p, low=0.18, high=0.52)[:, None]
    parts.box(
        frame, (0, 0, 0.145 + half), (0.38, 0.55, half), load, CARTON, other=load * 0.55, on=stack & (kind < 0.55)
    )
    parts.box(
        frame, (0, 0, 0.145 + half), (0.39, 0.54, half), load, WRAP, other=load * 0.4 + 0.4, on=stack & (kind > 0.55)
    )
    drum = on & (kind > 0.8)
    for y in (-0.28, 0.28):
        parts.tube(frame, (0, y, 0.58), (0.27, 0.27, 0.43), load, PLAIN, other=load * 0.5, on=drum)
