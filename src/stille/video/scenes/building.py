"""What stands still: floor and markings, walls with doors, racks, and things that may be taken for others."""

from __future__ import annotations

import torch
from torch import Tensor

from stille.video.scenes.draw import Draw, constant
from stille.video.scenes.layout import BAY_WIDTH, BAYS, RACK_DEPTH, RACKS, Layout
from stille.video.scenes.persons import Pose, add_persons
from stille.video.scenes.primitives import (
    CARTON,
    FLOOR,
    HAZARD,
    HELMET,
    LAMP,
    MARK,
    METAL,
    PLAIN,
    SHADE,
    WALL,
    Frame,
    Parts,
    press,
)
from stille.video.scenes.story import Story

DOOR_HALF, DOOR_HIGH = 1.5, 2.9
_RACK_PAINTS = ((0.02, 0.1, 0.4), (0.03, 0.25, 0.12), (0.45, 0.45, 0.45), (0.12, 0.12, 0.14))
_BEAM_PAINTS = ((0.85, 0.3, 0.02), (0.8, 0.55, 0.03), (0.6, 0.6, 0.6), (0.6, 0.06, 0.03))


def _hall(layout: Layout) -> Frame:
    zero = torch.zeros(len(layout.half_x_B), 1, 1, 2, device=layout.half_x_B.device)
    east = zero.clone()
    east[..., 0] = 1
    return Frame.standing(zero, east)


def add_hall(parts: Parts, draw: Draw, layout: Layout, above: float) -> None:
    """Floor, walls, doors, docks, columns, markings, lamps; the ceiling is higher than `above`."""
    frame = _hall(layout)

    def one(value: Tensor) -> Tensor:
        return value[:, None, None]

    half, spine, top, bottom = (one(v) for v in (layout.half_x_B, layout.spine_B, layout.top_B, layout.bottom_B))
    grey = one(draw.uniform("floor grey", 1, low=0.12, high=0.5)) * one(draw.uniform("floor tint", 3, low=0.88))
    wide = torch.where(one(layout.outdoor_B), 200.0, 40.0)
    parts.box(frame, (0, 0, -0.1), (wide, wide, 0.1), grey, FLOOR, other=grey * 0.7)
    wall = one(draw.uniform("wall", 1, low=0.15, high=0.75)) * one(draw.uniform("wall tint", 3, low=0.82))
    base = one(draw.uniform("skirting", 3, low=0.03, high=0.6))
    high = one(draw.uniform("hall height", low=above + 0.6, high=above + 3))
    middle, reach = (top + bottom) / 2, (top - bottom) / 2
    parts.box(frame, (0, top + 0.1, high / 2), (half + 0.1, 0.1, high / 2), wall, WALL, other=base)
    parts.box(frame, (0, bottom - 0.1, high / 2), (half + 0.1, 0.1, high / 2), wall, WALL, other=base)
    light = one(draw.uniform("outside", 1, low=0.1, high=1.1)) * one(draw.uniform("outside tint", 3, low=0.85))
    for side in (-1, 1):
        x = side * (half + 0.1)
        for low, up in ((bottom, -DOOR_HALF), (DOOR_HALF, top)):
            centre, size = (low + up) / 2, (up - low) / 2
            parts.box(frame, (x, centre, high / 2), (0.1, size, high / 2), wall, WALL, other=base)
        lintel = (high - DOOR_HIGH) / 2
        parts.box(frame, (x, 0, DOOR_HIGH + lintel), (0.1, DOOR_HALF, lintel), wall, WALL, other=wall)
        parts.box(frame, (side * (half + 7), 0, 3), (0.1, 12, 3), light, PLAIN)
        for y in (-1, 1):
            parts.box(frame, (x, y * DOOR_HALF, DOOR_HIGH / 2), (0.14, 0.08, DOOR_HIGH / 2), (0.8, 0.6, 0.02), HAZARD,
                      other=(0.02, 0.02, 0.02))  # fmt: skip
        parts.box(frame, (x - side * 0.12, 0, DOOR_HIGH + 0.35), (0.03, 0.3, 0.14), (0.02, 0.6, 0.15), LAMP)
    shutter = one(draw.uniform("dock", 3, low=0.2, high=0.85))
    for i in range(4):
        where, on = half * (-0.66 + 0.44 * i), one(layout.staging_B)
        parts.box(frame, (where, bottom + 0.02, 1.5), (1.2, 0.04, 1.5), shutter, WALL, other=shutter * 0.7, on=on)
        parts.box(frame, (where, bottom + 0.05, 3.08), (1.3, 0.06, 0.08), (0.8, 0.6, 0.02), HAZARD,
                  other=(0.02, 0.02, 0.02), on=on)  # fmt: skip
    # Boards, windows and boxes on the walls.
    for i in range(4):
        paint = one(draw.uniform(f"board {i}", 3, low=0.02, high=0.9))
        where = half * one(draw.uniform(f"board x {i}", low=-0.9, high=0.9))
        size = (
            one(draw.uniform(f"board w {i}", low=0.2, high=0.8)),
            0.03,
            one(draw.uniform(f"board h {i}", low=0.15, high=0.5)),
        )
        on = one(draw.chance(f"board on {i}", p=0.7))
        parts.box(frame, (where, top - 0.02, one(draw.uniform(f"board z {i}", low=1.2, high=3.5))), size, paint, on=on)
    bright = one(draw.uniform("window", 1, low=0.3, high=1.2).expand(-1, 3))
    for i in range(3):
        parts.box(frame, (half * (-0.6 + 0.6 * i), top - 0.01, high * 0.72), (1.1, 0.03, 0.5), bright, LAMP,
                  on=one(draw.chance("windows", p=0.4)))  # fmt: skip
    for i in range(2):
        where = half * one(draw.uniform(f"column {i}", low=-0.8, high=0.8))
        parts.box(frame, (where, -spine - 0.3, high / 2), (0.16, 0.16, high / 2), wall * 0.8, PLAIN,
                  on=one(draw.chance("columns", p=0.35)))  # fmt: skip
        parts.box(frame, (where, -spine - 0.3, 0.6), (0.18, 0.18, 0.6), (0.8, 0.6, 0.02), HAZARD,
                  other=(0.02, 0.02, 0.02), on=one(draw.chance("columns", p=0.35)))  # fmt: skip

    # Markings are thin: 2 mm, or 3 mm where they cross others.
    paint = one(draw.choice("marks", of=((0.8, 0.6, 0.05), (0.85, 0.85, 0.8), (0.75, 0.15, 0.05), (0.1, 0.4, 0.7))))
    lines = one(draw.chance("lines", p=0.8))
    for side in (-1, 1):
        parts.box(frame, (0, side * (spine - 0.25), 0.001), (half, 0.05, 0.001), paint, MARK, on=lines)
    walkway = one(draw.chance("walkway", p=0.5))
    lane = one(draw.uniform("walkway y", low=-0.5, high=0.5)) * spine
    green = one(draw.choice("walkway paint", of=((0.05, 0.3, 0.1), (0.1, 0.2, 0.45), (0.45, 0.4, 0.3))))
    parts.box(frame, (0, lane, 0.0005), (half, 0.5, 0.0005), green, MARK, on=walkway)
    stripe = one(draw.uniform("crossing", low=-0.6, high=0.6)) * half
    for i in range(6):
        where = (i - 2.5) / 2.8 * (spine - 0.5)
        parts.box(frame, (stripe, where, 0.0015), (0.9, 0.16, 0.0015), (0.85, 0.85, 0.82), MARK,
                  on=one(draw.chance("crossed", p=0.4)))  # fmt: skip
    for i in range(3):
        centre = half * one(draw.uniform(f"zone {i}", low=-0.75, high=0.75))
        y = bottom + 1.1
        for dx, dy, w, d in ((-1, 0, 0.04, 0.9), (1, 0, 0.04, 0.9), (0, -0.9, 1.04, 0.04), (0, 0.9, 1.04, 0.04)):
            parts.box(frame, (centre + dx, y + dy, 0.0015), (w, d, 0.0015), paint, MARK, on=one(layout.staging_B))
    reach = reach + 0 * middle
    for i in range(4):
        x, y = half * (-0.75 + 0.5 * i), middle + reach * 0.2 * (-1) ** i
        parts.box(frame, (x, y, high - 0.1), (0.7, 0.12, 0.04), (1.0, 1.0, 0.95), LAMP)


def add_racks(parts: Parts, draw: Draw, layout: Layout) -> None:
    """27 primitives for each of R racks; x is along it."""
    axis = layout.rack_axis_BR2[:, None]
    frame = Frame.standing(layout.rack_BR2[:, None], axis)
    on = layout.rack_on_BR[:, None]
    level = layout.level_B[:, None, None].expand(-1, 1, RACKS)
    post = draw.choice("rack", of=_RACK_PAINTS)[:, None, None]
    beam = draw.choice("beam", of=_BEAM_PAINTS)[:, None, None]
    high = level + draw.uniform("rack top", low=0.9, high=1.6)[:, None, None]
    long, deep = BAYS * BAY_WIDTH / 2, RACK_DEPTH / 2
    for y in (-deep, deep):
        for i in range(BAYS + 1):
            parts.box(frame, (-long + i * BAY_WIDTH, y, high / 2), (0.045, 0.04, high / 2), post, METAL, on=on)
        for z in (level - 0.07, high - 0.05):
            parts.box(frame, (0, y, z), (long, 0.03, 0.055), beam, METAL, on=on)
    parts.box(frame, (0, 0, level - 0.02), (long, deep * 0.97, 0.012), (0.35, 0.34, 0.32), METAL, on=on)
    parts.box(frame, (0, 0, 0.06), (long, deep * 0.97, 0.05), (0.25, 0.25, 0.25), METAL, on=on)
    topped = on & draw.chance("rack shelf", RACKS, p=0.6)[:, None]
    parts.box(frame, (0, 0, high), (long, deep, 0.015), (0.4, 0.4, 0.38), METAL, on=topped)
    for i in range(5):  # loose boxes on top: no pallets
        size = draw.uniform(f"loose {i}", RACKS, 3, low=0.12, high=0.3)[:, None]
        x = draw.uniform(f"loose x {i}", RACKS, low=-long + 0.4, high=long - 0.4)[:, None]
        paint = draw.choice(f"loose c {i}", RACKS, of=((0.45, 0.3, 0.16), (0.6, 0.46, 0.3), (0.2, 0.25, 0.4)))[:, None]
        there = topped & draw.chance(f"loose on {i}", RACKS, p=0.6)[:, None]
        z = high + 0.015 + size[..., 2]
        parts.box(
            frame, (x, 0, z), (size[..., 0], size[..., 1], size[..., 2]), paint, CARTON, other=paint * 0.6, on=there
        )
    for x in (-long - 0.1, long + 0.1):
        parts.box(frame, (x, 0, 0.25), (0.04, deep, 0.25), (0.85, 0.65, 0.02), HAZARD, other=(0.02, 0.02, 0.02), on=on)
    parts.add(SHADE, frame.point(0, 0, 0.003), (frame.y * 0.8, frame.x * 0.8, frame.z), (0.55, 0.0, 0.0), on=on,
              ratio=long / 0.8)  # fmt: skip


def add_decoys(parts: Parts, draw: Draw, layout: Layout) -> None:
    """Cones, barrels, helmets on a shelf, a jacket on a hook; 20 primitives."""
    hall = _hall(layout)
    half, spine, top = (v[:, None, None] for v in (layout.half_x_B, layout.spine_B, layout.top_B))

    def spot(name: str) -> tuple[Tensor, Tensor]:
        x = draw.uniform(f"{name} x", 1, 1, low=-0.85, high=0.85) * half
        side = draw.sign(f"{name} side", 1, 1)
        return x, side * (spine - draw.uniform(f"{name} y", 1, 1, low=0.1, high=0.9))

    for i in range(3):
        x, y = spot(f"cone {i}")
        on = draw.chance(f"cone {i}", 1, 1, p=0.5)
        size = draw.uniform(f"cone size {i}", 1, 1, low=0.8, high=1.3)
        orange = (0.95, 0.25, 0.03)
        parts.box(hall, (x, y, 0.02), (0.19 * size, 0.19 * size, 0.02), orange, on=on)
        for radius, z, paint in ((0.13, 0.12, orange), (0.095, 0.31, (0.9, 0.9, 0.9)), (0.06, 0.5, orange)):
            parts.tube(hall, (x, y, z * size), (radius * size, radius * size, 0.1 * size), paint, on=on)
    for i in range(2):
        x, y = spot(f"barrel {i}")
        paint = draw.uniform(f"barrel colour {i}", 1, 1, 3, low=0.02, high=0.8)
        parts.tube(hall, (x, y, 0.45), (0.29, 0.29, 0.45), paint, on=draw.chance(f"barrel {i}", 1, 1, p=0.4))
    # A shelf on the wall with helmets, a jacket with bands below it.
    x = draw.uniform("shelf", 1, 1, low=-0.8, high=0.8) * half
    on = draw.chance("shelf on", 1, 1, p=0.5)
    parts.box(hall, (x, top - 0.2, 1.7), (0.6, 0.18, 0.02), (0.5, 0.4, 0.25), on=on)
    for i in range(3):
        paint = draw.choice(f"shelf helmet {i}", 1, 1, of=((0.95, 0.75, 0.05), (0.9, 0.9, 0.9), (0.05, 0.2, 0.75)))
        parts.ball(hall, (x - 0.4 + 0.4 * i, top - 0.2, 1.76), (0.13, 0.11, 0.12), paint, HELMET, on=on)
    parts.box(hall, (x, top - 0.05, 1.2), (0.24, 0.05, 0.34), (0.75, 1.0, 0.05), on=on)
    parts.box(hall, (x, top - 0.05, 1.1), (0.25, 0.06, 0.03), (0.8, 0.8, 0.8), on=on)


def add_figures(draw: Draw, layout: Layout, story: Story) -> list[Parts]:
    """Mannequins, a poster with a person on it, and a glossy panel in which the first person is reflected."""
    b = len(layout.half_x_B)
    device = draw.device
    half, spine, top = layout.half_x_B[:, None], layout.spine_B[:, None], layout.top_B[:, None]
    parts = []

    side = draw.sign("mannequin side", 1)
    place = torch.stack([draw.uniform("mannequin x", 1, low=-0.85, high=0.85) * half, side * (spine - 0.2)], -1)
    still = Parts((b, 1, 1), device)
    on = draw.chance("mannequin", 1, p=0.15)
    turned = torch.stack([torch.zeros_like(side), -side], -1)
    pose = Pose.still(place[:, None], turned[:, None], on[:, None], draw.chance("m helmet", 1, 1, p=0.5),
                      draw.chance("m vest", 1, 1, p=0.5))  # fmt: skip
    add_persons(still, draw, pose, "mannequin")
    parts.append(still)

    up = constant((0.0, -1.0), device).expand(b, 1, 1, 2)
    x = draw.uniform("poster x", 1, low=-0.85, high=0.85) * half
    place = torch.stack([x, top - 0.1], -1)[:, None]
    on = draw.chance("poster", 1, 1, p=0.2) & ~layout.outdoor_B[:, None, None]
    poster = Parts((b, 1, 1), device)
    add_persons(poster, draw, Pose.still(place, up, on, draw.chance("p helmet", 1, 1, p=0.5), on), "poster")
    normal = torch.cat([up, torch.zeros_like(up[..., :1])], -1)
    wall = torch.cat([place, torch.zeros_like(place[..., :1])], -1)
    press(poster, wall, normal)
    board = Frame.standing(place, up)
    parts.append(poster)

    t = story.persons.place_BTN2.shape[1]
    pane_x = draw.uniform("pane", 1, low=-0.7, high=0.7) * half
    pane = torch.stack([pane_x, top - 0.06], -1)[:, None]
    has_pane = draw.chance("has pane", 1, 1, p=0.2) & layout.staging_B[:, None, None]
    first = Pose(*(v[:, :, :1] for v in person_pose(story)))
    shown = first.on & has_pane & ((first.place[..., 0] - pane[..., 0]).abs() < 1.2)
    image = Parts((b, t, 1), device)
    values = {name: getattr(first, name) for name in Pose.__slots__} | {"on": shown}  # type: ignore[attr-defined]
    add_persons(image, draw, Pose(**values), "reflection")
    press(image, torch.cat([pane, torch.zeros_like(pane[..., :1])], -1), normal)
    parts.append(image)

    boards = Parts((b, 1, 1), device)
    boards.box(board, (-0.06, 0, 1.0), (0.03, 0.6, 1.1), (0.75, 0.78, 0.8), on=on)
    panel = Frame.standing(pane, up)
    boards.box(panel, (-0.04, 0, 1.3), (0.02, 1.6, 1.3), (0.16, 0.2, 0.22), METAL, on=has_pane)
    parts.append(boards)
    return parts


def person_pose(story: Story) -> tuple[Tensor, ...]:
    """Fields of `Pose` for all persons of a story."""
    walk = story.persons
    each = torch.ones_like(walk.speed_BTN, dtype=torch.bool)
    return (
        walk.place_BTN2, walk.heading_BTN2, walk.walked_BTN, walk.speed_BTN, story.fallen_BTN, story.crouch_BTN,
        story.person_on_BN[:, None] & each, story.helmet_BTN, story.vest_BTN, story.carrying_BTN,
        story.pushing_BN[:, None] & each, story.helmet_in_hand_BTN,
    )  # fmt: skip
