"""Halls: where racks, slots, aisles, doors and floor places are.

Metres; x along the main aisle (the spine), y across it, z up; the spine is centred on y = 0 and has a door at each end.
Racks stand like a comb on one or both sides of it, or along the walls. Where there are no racks below it there is a
staging area with dock doors in the wall.

Shapes: B clips; R racks; S = R * BAYS * LEVELS slots; G floor places for pallets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stille.video.scenes.config import SceneConfig
from stille.video.scenes.draw import Draw, constant

RACKS, BAYS, LEVELS, FLOOR_PLACES = 4, 4, 2, 6
SLOTS = RACKS * BAYS * LEVELS
BAY_WIDTH, RACK_DEPTH = 1.45, 1.1
REACH = 1.7  # from a forklift's centre to that of the pallet on its forks

# Racks above the spine, racks below it, whether they stand along the walls instead of like a comb.
_ARRANGEMENTS = ((2, 0, 0), (3, 0, 0), (4, 0, 0), (1, 1, 0), (2, 1, 0), (2, 2, 0), (2, 1, 1), (2, 2, 1))
MOUNTS = 6  # spine's left end, its right end, wall opposite the racks, its two corners, end of an aisle


@dataclass(frozen=True, slots=True)
class Layout:
    """
    Attributes:
        arrangement_B, mount_B: which of the 8 times 6.
        half_x_B: from the middle to the walls at the spine's ends; spine_B: half the spine's width.
        top_B, bottom_B: y of the upper and the lower wall (negative).
        staging_B: whether there is a staging area below the spine.
        along_B: whether racks stand along the walls.
        rack_BR2: centres; rack_on_BR; rack_axis_BR2: unit vector along it; level_B: height of the upper level.
        slot_BS3: centre of the slot's ground; slot_on_BS; slot_out_BS2: unit vector to where it is served from;
            slot_room_BS: metres from slot to the middle of that aisle.
        aisle_BA: x of aisles above the spine; aisle_on_BA.
        low_aisle_BA: x of those below it, or of anything in the staging area.
        floor_BG2, floor_out_BG2: places on the floor.
        outdoor_B: whether it is open ground: no walls, few racks.
    """

    arrangement_B: Tensor
    mount_B: Tensor
    half_x_B: Tensor
    spine_B: Tensor
    top_B: Tensor
    bottom_B: Tensor
    staging_B: Tensor
    along_B: Tensor
    rack_BR2: Tensor
    rack_on_BR: Tensor
    rack_axis_BR2: Tensor
    level_B: Tensor
    slot_BS3: Tensor
    slot_on_BS: Tensor
    slot_out_BS2: Tensor
    slot_room_BS: Tensor
    aisle_BA: Tensor
    low_aisle_BA: Tensor
    floor_BG2: Tensor
    floor_out_BG2: Tensor
    outdoor_B: Tensor


def _spread(count_B: Tensor, half_B: Tensor, places: int) -> tuple[Tensor, Tensor]:
    """x of `count` racks spread over the hall, and of the count + 1 aisles between them; surplus ones repeat."""
    index_N = torch.arange(places, device=half_B.device)
    step_B1 = (2 * half_B / (count_B + 1))[:, None]
    rack = -half_B[:, None] + (index_N + 1) * step_B1
    aisle = -half_B[:, None] + (torch.minimum(index_N[None], count_B[:, None]) + 0.5) * step_B1
    return rack, aisle


def build_layout(draw: Draw, config: SceneConfig) -> Layout:
    """Halls for the clips of `draw`."""
    low, high = config.layouts
    layout_B = low + draw.integer("layout", below=high - low)
    table = constant(_ARRANGEMENTS, draw.device).long()
    arrangement_B = layout_B // MOUNTS
    upper_B, lower_B, along_B = table[arrangement_B].unbind(1)
    along_B = along_B.bool()
    staging_B = (lower_B == 0) & ~along_B
    half_B = draw.uniform("half", low=9.0, high=12.5)
    spine_B = draw.uniform("spine", low=2.7, high=3.5)
    length = BAYS * BAY_WIDTH
    depth_B = torch.where(along_B, 1.5, length + draw.uniform("behind", low=0.7, high=1.6))
    top_B = spine_B + depth_B
    bottom_B = -torch.where(staging_B, spine_B + draw.uniform("staging", low=2.5, high=5.0), top_B)

    # Racks 0.. upper-1 above, then those below.
    index_R = torch.arange(RACKS, device=draw.device)
    above_BR = index_R < upper_B[:, None]
    rank_BR = torch.where(above_BR, index_R, index_R - upper_B[:, None]).clamp(min=0)
    up_x, up_aisle = _spread(upper_B, half_B, RACKS + 1)
    low_x, low_aisle = _spread(lower_B, half_B, RACKS + 1)
    comb_x = torch.where(above_BR, up_x.gather(1, rank_BR), low_x.gather(1, rank_BR))
    shift_B1 = draw.uniform("along", 1, low=0.6, high=1.8)
    wall_x = (rank_BR * 2 - 1) * (length / 2 + shift_B1)
    side_BR = torch.where(above_BR, 1.0, -1.0)
    comb_y = side_BR * (spine_B[:, None] + length / 2)
    wall_y = side_BR * (top_B[:, None] - 0.15 - RACK_DEPTH / 2)
    along_B1 = along_B[:, None]
    rack_BR2 = torch.stack([torch.where(along_B1, wall_x, comb_x), torch.where(along_B1, wall_y, comb_y)], -1)
    axis_BR2 = torch.stack([along_B1.expand_as(comb_x), ~along_B1.expand_as(comb_x)], -1).float()
    outdoor_B = draw.chance("outdoor", p=config.outdoor)
    racked_B = ~outdoor_B | draw.chance("outdoor racks", p=0.15)
    rack_on_BR = (index_R < (upper_B + lower_B)[:, None]) & racked_B[:, None]

    # Slots: bay along the rack, then level.
    level_B = draw.uniform("level", low=1.7, high=2.1)
    bay = (torch.arange(BAYS, device=draw.device) - (BAYS - 1) / 2) * BAY_WIDTH
    ground_BRV2 = rack_BR2[:, :, None] + axis_BR2[:, :, None] * bay[:, None]
    ground = ground_BRV2[:, :, :, None].expand(-1, -1, -1, LEVELS, -1)
    height = torch.stack([torch.full_like(level_B, 0.12), level_B], 1)[:, None, None, :, None]
    slot_BS3 = torch.cat([ground, height.expand(*ground.shape[:-1], 1)], -1).reshape(-1, SLOTS, 3)
    face_BR = draw.sign("face", RACKS)
    out_comb = torch.stack([face_BR, torch.zeros_like(face_BR)], -1)
    out_wall = torch.stack([torch.zeros_like(face_BR), -side_BR], -1)
    out_BR2 = torch.where(along_B1[..., None], out_wall, out_comb)
    room_comb = half_B[:, None] / (torch.where(above_BR, upper_B[:, None], lower_B[:, None]) + 1)
    room_BR = torch.where(along_B1, 3.2, room_comb.clamp(min=REACH + 0.1))

    def each(per_rack: Tensor) -> Tensor:
        return per_rack.repeat_interleave(BAYS * LEVELS, dim=1)

    # Floor places: along the lower wall of a staging area, else beside the doors.
    index_G = torch.arange(FLOOR_PLACES, device=draw.device)
    jitter = draw.uniform("floor", FLOOR_PLACES, 2, low=-0.25, high=0.25)
    wall_G = torch.stack([(index_G - (FLOOR_PLACES - 1) / 2) * (half_B[:, None] * 0.28),
                          (bottom_B[:, None] + 1.0).expand(-1, FLOOR_PLACES)], -1)  # fmt: skip
    side_G = (index_G % 2 * 2 - 1).float()
    up_G = constant((1.0, 1.0, -1.0, -1.0, 1.0, -1.0), draw.device)
    inward = constant((0.0, 0.0, 0.0, 0.0, 2.2, 2.2), draw.device)
    door_G = torch.stack([side_G * (half_B[:, None] - 1.0 - inward), up_G * (spine_B[:, None] - 0.7)], -1)
    stage_B11 = staging_B[:, None, None]
    floor_BG2 = torch.where(stage_B11, wall_G, door_G) + jitter
    toward = torch.stack([-side_G, torch.zeros_like(side_G)], -1).expand_as(floor_BG2)
    upward = constant((0.0, 1.0), draw.device).expand_as(floor_BG2)
    return Layout(
        arrangement_B, layout_B % MOUNTS, half_B, spine_B, top_B, bottom_B, staging_B, along_B,
        rack_BR2, rack_on_BR, axis_BR2, level_B, slot_BS3, each(rack_on_BR), each(out_BR2), each(room_BR),
        up_aisle, low_aisle, floor_BG2, torch.where(stage_B11, upward, toward), outdoor_B,
    )  # fmt: skip
