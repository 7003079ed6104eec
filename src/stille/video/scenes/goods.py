"""Forklifts and pallets: who fetches what from where, and which slots are occupied.

A forklift comes in, stops before its source, raises the forks, drives in, takes the pallet, and does the same the
other way round at the destination. Sources and destinations are rack slots and places on the floor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stille.video.scenes.config import SceneConfig
from stille.video.scenes.draw import Draw
from stille.video.scenes.layout import FLOOR_PLACES, REACH, SLOTS, Layout
from stille.video.scenes.paths import Moving, Path, timed

_LOW, _LIFTED = 0.14, 0.1  # height of forks while driving; by how much a pallet is lifted off


@dataclass(frozen=True, slots=True)
class Job:
    """
    Attributes:
        path: of the forklifts; on_BF: whether there is one.
        pallet_BF: which pallet each moves, -1 for none; taken_BF, put_BF: when.
        on_BP: whether there is such a pallet; home_BP3, along_BP2: where it stands at first, and its long side.
        target_BF3, target_along_BF2: where the moved ones end up.
    """

    path: Path
    on_BF: Tensor
    pallet_BF: Tensor
    taken_BF: Tensor
    put_BF: Tensor
    on_BP: Tensor
    home_BP3: Tensor
    along_BP2: Tensor
    target_BF3: Tensor
    target_along_BF2: Tensor


@dataclass(frozen=True, slots=True)
class Goods:
    """
    Attributes:
        place_BTP3: ground of the pallet; along_BTP2: unit vector of its long side; on_BP.
        occupied_BTS: bool; loaded_BTF: bool.
    """

    place_BTP3: Tensor
    along_BTP2: Tensor
    on_BP: Tensor
    occupied_BTS: Tensor
    loaded_BTF: Tensor


def _across(vector: Tensor) -> Tensor:
    return torch.stack([-vector[..., 1], vector[..., 0]], -1)


def _rows(value: Tensor, index: Tensor) -> Tensor:
    return value.gather(1, index[..., None].expand(-1, -1, value.shape[-1]))


def plan_goods(draw: Draw, config: SceneConfig, layout: Layout, span_B1: Tensor) -> Job:
    """What the forklifts of these clips do. Half of them do it while the clip runs (seconds 0 to `span_B1`)."""
    f, p = config.forklifts, config.pallets
    floor = min(FLOOR_PLACES, p // 3)
    racked = p - floor
    index_F = torch.arange(f, device=draw.device)

    full_BS = draw.chance("full", SLOTS, p=draw.uniform("fill", 1, low=0.3, high=1.0)) & layout.slot_on_BS
    full_BS &= full_BS.cumsum(1) <= racked
    count_B1 = full_BS.sum(1, keepdim=True)
    free_BS = layout.slot_on_BS & ~full_BS
    frees_B1 = free_BS.sum(1, keepdim=True)
    full_first_BS = (~full_BS).to(torch.int8).argsort(dim=1, stable=True)
    free_first_BS = (~free_BS).to(torch.int8).argsort(dim=1, stable=True)

    mode_BF = draw.integer("mode", f, below=3)  # 0 from a slot to the floor, 1 from the floor to a slot, 2 drives by
    possible = (torch.where(mode_BF == 0, count_B1, frees_B1) >= f) & (index_F < floor)
    mode_BF = torch.where(possible, mode_BF, 2)
    offset_BF = draw.integer("which", 1, below=1 << 20) + index_F * (count_B1 // f).clamp(min=1)
    fetched_BF = offset_BF % count_B1.clamp(min=1)
    offset_BF = draw.integer("where", 1, below=1 << 20) + index_F * (frees_B1 // f).clamp(min=1)
    free_BF = free_first_BS.gather(1, offset_BF % frees_B1.clamp(min=1))
    slot_BF = torch.where(mode_BF == 1, free_BF, full_first_BS.gather(1, fetched_BF))
    spot_BF = index_F.clamp(max=FLOOR_PLACES - 1).expand_as(mode_BF)

    # Pallets: those in slots, then those on the floor. Forklift f's place on the floor is place f.
    home_slot = full_first_BS[:, :racked]
    spots = torch.arange(floor, device=draw.device).expand(len(home_slot), -1)
    ground = torch.full_like(layout.floor_BG2[..., :1], 0.0)
    floor_BG3 = torch.cat([layout.floor_BG2, ground], -1)
    home_BP3 = torch.cat([_rows(layout.slot_BS3, home_slot), _rows(floor_BG3, spots)], 1)
    out_BP2 = torch.cat([_rows(layout.slot_out_BS2, home_slot), _rows(layout.floor_out_BG2, spots)], 1)
    left_BG = draw.chance("left", floor, p=0.4)
    busy = min(f, floor)
    left_BG[:, :busy] = torch.where(mode_BF[:, :busy] == 2, left_BG[:, :busy], mode_BF[:, :busy] == 1)
    on_BP = torch.cat([torch.arange(racked, device=draw.device) < count_B1, left_BG], 1)
    on_BF = torch.arange(f, device=draw.device) < draw.integer("forklifts", 1, below=f + 1)
    on_BF &= ~layout.outdoor_B[:, None] | draw.chance("outdoor forklifts", 1, p=0.3)
    pallet_BF = torch.where(mode_BF == 0, fetched_BF, racked + spot_BF)
    pallet_BF = torch.where((mode_BF == 2) | ~on_BF, -1, pallet_BF)

    # Either end of the way as (ground, out of it, room before it).
    slot = (
        _rows(layout.slot_BS3, slot_BF),
        _rows(layout.slot_out_BS2, slot_BF),
        layout.slot_room_BS.gather(1, slot_BF),
    )
    spot = (_rows(floor_BG3, spot_BF), _rows(layout.floor_out_BG2, spot_BF), torch.full_like(slot[2], 3.4))
    loads = mode_BF == 1
    source = [
        torch.where(loads.reshape(loads.shape + (1,) * (a.dim() - 2)), b, a) for a, b in zip(slot, spot, strict=True)
    ]
    target = [
        torch.where(loads.reshape(loads.shape + (1,) * (a.dim() - 2)), a, b) for a, b in zip(slot, spot, strict=True)
    ]
    path = _drive(draw, layout, f, source, target)

    total_BF = path.arrive_BNK[:, :, -1]
    taken_BF, put_BF = path.leave_BNK[:, :, 4] - 0.7, path.arrive_BNK[:, :, 9] + 1.2
    event_BF = torch.where(draw.chance("taking", f, p=0.5), taken_BF, put_BF)
    event_BF = torch.where(draw.chance("on the way", f, p=0.3), (taken_BF + put_BF) / 2, event_BF)
    seen_BF = draw.uniform("seen when", f) * span_B1 - event_BF
    start_BF = torch.where(draw.chance("seen", f, p=0.6), seen_BF, -draw.uniform("began", f) * total_BF * 0.9)
    return Job(
        path.shifted(start_BF), on_BF, pallet_BF, taken_BF + start_BF, put_BF + start_BF, on_BP, home_BP3,
        _across(out_BP2), target[0], _across(target[1]),
    )  # fmt: skip


def _drive(draw: Draw, layout: Layout, f: int, source: list[Tensor], target: list[Tensor]) -> Path:
    """14 nodes: in, along the spine, to the source, back, along, to the target, back, along, out."""
    half = layout.half_x_B[:, None]
    lane = draw.uniform("lane", f, low=-1.1, high=1.1)
    come, leave = draw.sign("come", f), draw.sign("go", f)
    outside = draw.chance("from outside", f, p=0.5)
    come_x = torch.where(outside, come * (half + 5), come * (half - 2.5) * draw.uniform("come x", f))

    def spots(end: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        ground, out, room = end
        before = ground[..., :2] + out * room[..., None]
        close = ground[..., :2] + out * REACH
        return before, close, -out

    def on_lane(x: Tensor) -> Tensor:
        return torch.stack([x, lane], -1)

    s_before, s_close, s_face = spots(source)
    t_before, t_close, t_face = spots(target)
    nodes = [
        on_lane(come_x), on_lane(come_x.clamp(-half + 1.5, half - 1.5)), on_lane(s_before[..., 0]),
        s_before, s_close, s_before, on_lane(s_before[..., 0]), on_lane(t_before[..., 0]),
        t_before, t_close, t_before, on_lane(t_before[..., 0]), on_lane(leave * (half - 1.5)),
        on_lane(leave * (half + 5)),
    ]  # fmt: skip
    node = torch.stack(nodes, 2)
    k = node.shape[2]
    wait = torch.zeros(*node.shape[:3], device=node.device)
    wait[:, :, 0] = draw.uniform("first wait", f, low=0.0, high=6.0)
    for at, seconds in ((3, 2.5), (4, 2.2), (5, 2.0), (8, 2.5), (9, 2.4), (10, 1.8)):
        wait[:, :, at] = seconds * draw.uniform(f"wait {at}", f, low=0.9, high=1.5)
    speed = draw.uniform("drive", f, low=1.6, high=4.2)[..., None].repeat(1, 1, k)
    backwards = torch.zeros_like(wait, dtype=torch.bool)
    standing = torch.full_like(node, torch.nan)
    for before, face in ((3, s_face), (8, t_face)):
        standing[:, :, before : before + 3] = face[:, :, None]
        backwards[:, :, before + 2] = True
        speed[:, :, before + 1 : before + 3] = 0.7
        speed[:, :, before].clamp_(max=2.0)
        speed[:, :, before + 3].clamp_(max=2.0)
    lift = torch.full_like(node, _LOW)
    rise, drop = source[0][..., 2], target[0][..., 2]
    lift[:, :, 3, 1] = lift[:, :, 4, 0] = rise
    lift[:, :, 4, 1] = lift[:, :, 5, 0] = rise + _LIFTED
    lift[:, :, 8, 1] = lift[:, :, 9, 0] = drop + _LIFTED
    lift[:, :, 9, 1] = lift[:, :, 10, 0] = drop
    return timed(node, wait, speed, backwards_BNK=backwards, standing_BNK2=standing, lift_BNK2=lift)


def follow_goods(job: Job, layout: Layout, forklifts: Moving, moment_BT: Tensor) -> Goods:
    """Pallets and slots at these moments; a slot is occupied while a pallet stands in it."""
    b, t = moment_BT.shape
    p = job.on_BP.shape[1]
    index_P = torch.arange(p, device=moment_BT.device)
    place = job.home_BP3[:, None].expand(b, t, p, 3)
    along = job.along_BP2[:, None].expand(b, t, p, 2)
    loaded = []
    for f in range(job.pallet_BF.shape[1]):
        mine = (job.pallet_BF[:, f, None] == index_P)[:, None, :, None]
        now = moment_BT[:, :, None, None]
        taken, put = (time[:, f, None, None, None] for time in (job.taken_BF, job.put_BF))
        heading = forklifts.heading_BTN2[:, :, f]
        forks = forklifts.place_BTN2[:, :, f] + heading * REACH
        riding = torch.cat([forks, forklifts.lift_BTN[:, :, f, None]], -1)[:, :, None]
        after = job.target_BF3[:, None, None, f]
        moved = torch.where(now < put, riding, after)
        turned = torch.where(now < put, _across(heading)[:, :, None], job.target_along_BF2[:, None, None, f])
        place = torch.where(mine & (now >= taken), moved, place)
        along = torch.where(mine & (now >= taken), turned, along)
        loaded.append((job.pallet_BF[:, f, None] >= 0) & ((now >= taken) & (now < put))[..., 0, 0])
    apart = (place[:, :, :, None] - layout.slot_BS3[:, None, None]).abs()
    inside = (apart[..., :2].amax(-1) < 0.5) & (apart[..., 2] < 0.35) & job.on_BP[:, None, :, None]
    return Goods(place, along, job.on_BP, inside.any(2) & layout.slot_on_BS[:, None], torch.stack(loaded, 2))
