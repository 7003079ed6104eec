"""What happens in a hall: who walks and drives where, what is carried, loaded, dropped, put on and taken off.

All is a closed form of time, see `stille.video.scenes.paths`. Shapes: B clips, T moments, N persons, F forklifts, C
carts, P pallets, S slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stille.video.scenes.config import SceneConfig
from stille.video.scenes.draw import Draw
from stille.video.scenes.goods import Goods, Job, follow_goods, plan_goods
from stille.video.scenes.layout import Layout
from stille.video.scenes.paths import Moving, Path, follow, timed

_VISITS = 7  # places that a person goes to, one after the other


@dataclass(frozen=True, slots=True)
class Story:
    """
    Attributes:
        persons, forklifts: where they are; the forklifts' height of forks is `lift_BTN`.
        person_on_BN, forklift_on_BF, cart_on_BC: whether the place for one is taken.
        fallen_BTN: 0 upright to 1 lying; crouch_BTN: 0 to 1.
        carrying_BTN, helmet_BTN, vest_BTN: bool; pushing_BN: whether a cart is pushed.
        helmet_in_hand_BTN: it was taken off, or is about to be put on.
        loaded_BTF: bool, a pallet is on the forks.
        cart_BTC2, cart_heading_BTC2, cart_loaded_BTC: carts.
        goods: pallets and slots.
        driver_on_BF, driver_helmet_BF, driver_vest_BF: bool, who sits on the forklifts.
    """

    persons: Moving
    forklifts: Moving
    person_on_BN: Tensor
    forklift_on_BF: Tensor
    cart_on_BC: Tensor
    fallen_BTN: Tensor
    crouch_BTN: Tensor
    carrying_BTN: Tensor
    helmet_BTN: Tensor
    vest_BTN: Tensor
    pushing_BN: Tensor
    helmet_in_hand_BTN: Tensor
    loaded_BTF: Tensor
    cart_BTC2: Tensor
    cart_heading_BTC2: Tensor
    cart_loaded_BTC: Tensor
    goods: Goods
    driver_on_BF: Tensor
    driver_helmet_BF: Tensor
    driver_vest_BF: Tensor


def build_story(draw: Draw, config: SceneConfig, layout: Layout, moment_BT: Tensor) -> Story:
    """What happens at these moments (seconds, float32)."""
    n, c = config.persons, config.carts
    span_B1 = moment_BT[:, -1:].clamp(min=1.0)
    job = plan_goods(draw, config, layout, span_B1)
    forklifts = follow(job.path, moment_BT)
    goods = follow_goods(job, layout, forklifts, moment_BT)

    crowd_B1 = draw.chance("crowd", 1, p=config.crowd)
    count_B1 = (draw.uniform("persons", 1) ** 1.3 * (n + 1)).floor()
    person_on_BN = (torch.arange(n, device=draw.device) < count_B1) | crowd_B1
    path, falls_BN, fall_BN, stop_BNV = _walks(draw, config, layout, span_B1, crowd_B1, job, moment_BT)
    persons = follow(path, moment_BT)

    now = moment_BT[:, :, None]
    fallen = torch.sigmoid((now - fall_BN[:, None] - 0.4) * 8)
    rise = torch.sigmoid((now - fall_BN[:, None] - draw.uniform("lies", n, low=10.0, high=45.0)[:, None]) * 4)
    fallen_BTN = fallen * (1 - rise) * falls_BN[:, None]

    # Loads are taken at one stop and put down at a later one; -1 stands for before the first stop.
    visit = torch.arange(_VISITS, device=draw.device)
    take = draw.integer("take", n, below=_VISITS) - 1
    put = take + 1 + draw.integer("put", n, below=3)

    def stop_time(which_BN: Tensor) -> Tensor:
        time = stop_BNV.gather(2, which_BN.clamp(0, _VISITS - 1)[..., None])[..., 0] + 0.6
        return torch.where(which_BN < 0, -1e6, torch.where(which_BN >= len(visit), 1e6, time))

    take_BN, put_BN = stop_time(take), stop_time(put)
    pushing_BN = torch.zeros_like(person_on_BN)
    pushers = min(c, max(n - 2, 0))
    pushing_BN[:, 2 : 2 + pushers] = draw.chance("pushes", pushers, p=0.5)
    pushing_BN &= person_on_BN
    porter_BN = draw.chance("porter", n, p=0.4) & ~pushing_BN & ~falls_BN
    carrying_BTN = porter_BN[:, None] & (now >= take_BN[:, None]) & (now < put_BN[:, None])
    stoop = torch.exp(-(((now - take_BN[:, None]) / 0.6) ** 2)) + torch.exp(-(((now - put_BN[:, None]) / 0.6) ** 2))
    crouch_BTN = (stoop * porter_BN[:, None]).clamp(max=1)

    # A helmet is rarely put on or taken off; it is in the hand before, or after.
    fewer_B1 = torch.where(layout.outdoor_B[:, None], 0.25, 1.0)  # on open ground most are no workers
    helmets_B1, vests_B1 = (draw.uniform(name, 1, low=0.1, high=0.95) * fewer_B1 for name in ("helmets", "vests"))
    worn_BN = draw.chance("helmet", n, p=helmets_B1)
    changes_BN = draw.chance("helmet changes", n, p=0.06)
    change_BN = draw.uniform("helmet when", n) * span_B1
    changed_BTN = changes_BN[:, None] & (now > change_BN[:, None])
    helmet_BTN = worn_BN[:, None] ^ changed_BTN
    in_hand_BTN = ~helmet_BTN & changes_BN[:, None] & ~carrying_BTN
    vest_BN = draw.chance("vest", n, p=vests_B1)

    cart, heading = _carts(draw, config, layout, persons, pushing_BN, pushers)
    always = torch.ones_like(now, dtype=torch.bool)
    f = config.forklifts
    driver_on_BF = job.on_BF & (draw.chance("driven", f, p=0.8) | (job.pallet_BF >= 0))
    cart_on_BC = draw.chance("cart", c, p=0.55)
    cart_on_BC[:, :pushers] |= pushing_BN[:, 2 : 2 + pushers]
    return Story(
        persons, forklifts, person_on_BN, job.on_BF, cart_on_BC, fallen_BTN, crouch_BTN, carrying_BTN, helmet_BTN,
        vest_BN[:, None] & always, pushing_BN, in_hand_BTN, goods.loaded_BTF, cart, heading,
        draw.chance("cart loaded", c, p=0.5)[:, None] & always, goods, driver_on_BF,
        draw.chance("driver helmet", f, p=0.6), draw.chance("driver vest", f, p=0.6),
    )  # fmt: skip


def _walks(
    draw: Draw, config: SceneConfig, layout: Layout, span_B1: Tensor, crowd_B1: Tensor, job: Job, moment_BT: Tensor
) -> tuple[Path, Tensor, Tensor, Tensor]:
    """Ways of the persons; who falls, and when; when each of their stops begins."""
    n = config.persons
    stop_BNV2, outside_BNV = _destinations(draw, layout, n)
    lane = draw.uniform("person lane", n, low=-1.0, high=1.0)[..., None]
    narrow = outside_BNV.any(-1, keepdim=True)
    lane = lane * torch.where(narrow, 1.0, layout.spine_B[:, None, None] - 0.6)

    # Between two stops: out to the spine, along it, in again.
    lane = lane.expand(-1, -1, _VISITS - 1)
    leave = torch.stack([stop_BNV2[:, :, :-1, 0], lane], -1)
    enter = torch.stack([stop_BNV2[:, :, 1:, 0], lane], -1)
    door_x = layout.half_x_B[:, None, None] - 1.0
    inside = torch.stack([enter[..., 0].clamp(-door_x, door_x), lane * 0.4], -1)
    enter = torch.where(outside_BNV[:, :, 1:, None], inside, enter)
    legs = torch.stack([leave, enter, stop_BNV2[:, :, 1:]], 3).flatten(2, 3)
    node = torch.cat([stop_BNV2[:, :, :1], legs], 2)

    hurry = draw.uniform("hurry", n, _VISITS)
    wait = torch.where(hurry < 0.35, 0.3 + hurry * 5, 2 + (hurry - 0.35) ** 2 * 45)
    wait = torch.where(outside_BNV, 4 + draw.uniform("away", n, _VISITS) ** 1.5 * 80, wait)
    faller = min(1, n - 1)
    falls_BN = torch.zeros(len(wait), n, dtype=torch.bool, device=draw.device)
    falls_BN[:, faller] = draw.chance("falls", p=config.incident)
    falls_BN &= ~outside_BNV[:, :, 2]
    wait[:, :, 2] = torch.where(falls_BN, 60.0, wait[:, :, 2])
    nodes_wait = torch.zeros(*node.shape[:3], device=draw.device)
    nodes_wait[:, :, ::3] = wait

    # A near miss: across the spine, close before the nose of a forklift.
    near_B = draw.chance("near miss", p=config.incident).reshape(-1) & job.on_BF[:, 0]
    when_B1 = draw.uniform("near miss when", 1) * span_B1
    truck = follow(job.path, when_B1)
    at, ahead = truck.place_BTN2[:, 0, 0], truck.heading_BTN2[:, 0, 0]
    meet = at + ahead * draw.uniform("near miss distance", 1, low=1.6, high=3.2)
    side = draw.sign("near miss side", 1) * (layout.spine_B[:, None] - 0.6)
    crossing = torch.stack([torch.cat([meet[:, :1], -side], 1), meet, torch.cat([meet[:, :1], side], 1)], 1)
    near_B &= at[:, 1].abs() < layout.spine_B - 0.8
    node[:, 0, :3] = torch.where(near_B[:, None, None], crossing, node[:, 0, :3])
    nodes_wait[:, 0, 0] = torch.where(near_B, 1.0, nodes_wait[:, 0, 0])

    speed = draw.uniform("walk", n, low=0.8, high=1.75)[..., None].expand(-1, -1, node.shape[2])
    glance = draw.uniform("glance", n, node.shape[2], low=-3.1416, high=3.1416)
    standing = torch.stack([glance.cos(), glance.sin()], -1)
    standing = torch.where((nodes_wait > 2)[..., None], standing, torch.nan)
    path = timed(node, nodes_wait, speed, standing_BNK2=standing)

    start_BN = -draw.uniform("phase", n) * path.arrive_BNK[:, :, -1] * 0.7
    fall_in_path = path.arrive_BNK[:, :, 6] + 0.5
    lined_up = draw.uniform("fall when", n, low=-0.1, high=0.8) * span_B1 - fall_in_path
    start_BN = torch.where(falls_BN & draw.chance("fall seen", n, p=0.8), lined_up, start_BN)
    start_BN[:, 0] = torch.where(near_B, when_B1[:, 0] - path.arrive_BNK[:, 0, 1], start_BN[:, 0])
    path = path.shifted(start_BN)

    # Groups: from the sixth on, some go with one of the others.
    index = torch.arange(n, device=draw.device)
    leads = (2 + draw.integer("leader", n, below=3)).clamp(max=n - 1)
    grouped = draw.chance("grouped", n, p=torch.where(crowd_B1, 0.75, 0.25)) & (index >= 5)
    leads = torch.where(grouped, leads, index)
    row = (index // 3).float()
    aside = torch.stack(
        [draw.uniform("aside", n, low=-1.1, high=1.1), draw.uniform("aside y", n, low=0.5, high=0.9)], -1
    )
    aside = aside * draw.sign("aside sign", n)[..., None] * grouped[..., None]
    later = (draw.uniform("later", n, low=0.1, high=0.7) * row) * grouped
    path = path.of(leads, later, aside)
    return path, falls_BN, path.arrive_BNK[:, :, 6] + 0.5, path.arrive_BNK[:, :, ::3]


def _destinations(draw: Draw, layout: Layout, n: int) -> tuple[Tensor, Tensor]:
    """Where persons stop [B, N, V, 2], and whether that is outside of the hall [B, N, V]."""
    shape = (n, _VISITS)
    half = layout.half_x_B[:, None, None]
    spine = layout.spine_B[:, None, None]
    u, v = draw.uniform("stop u", *shape), draw.uniform("stop v", *shape)
    pick = draw.integer("stop aisle", n * _VISITS, below=layout.aisle_BA.shape[1])
    jitter = draw.uniform("stop jitter", *shape, low=-0.5, high=0.5)
    aisle = layout.aisle_BA.gather(1, pick).reshape(-1, *shape) + jitter
    low_aisle = layout.low_aisle_BA.gather(1, pick).reshape(-1, *shape) + jitter
    anywhere = (u * 2 - 1) * (half - 1)
    along, staging = layout.along_B[:, None, None], layout.staging_B[:, None, None]
    deep = spine + v * (layout.top_B[:, None, None] - 0.8 - spine)
    top = torch.stack([torch.where(along, anywhere, aisle), torch.where(along, v * (spine - 0.5), deep)], -1)
    low_y = torch.where(staging, -spine - v * (-layout.bottom_B[:, None, None] - 2.6 - spine).clamp(min=0), -deep)
    low_y = torch.where(along, -v * (spine - 0.5), low_y)
    low = torch.stack([torch.where(along | staging, anywhere, low_aisle), low_y], -1)
    main = torch.stack([anywhere, (v * 2 - 1) * (spine - 0.6)], -1)
    side, turn = draw.sign("stop door", *shape), draw.sign("stop turn", *shape)
    away = torch.stack([side * (half + 4), turn * 4 + 0 * half], -1)
    kind = draw.uniform("stop kind", *shape)[..., None]
    inner = torch.where(kind < 0.3, top, torch.where(kind < 0.55, low, main))
    return torch.where(kind > 0.9, away, inner), kind[..., 0] > 0.9


def _carts(
    draw: Draw, config: SceneConfig, layout: Layout, persons: Moving, pushing_BN: Tensor, pushers: int
) -> tuple[Tensor, Tensor]:
    """Places and headings [B, T, C, 2] of carts: before those who push them, else left at the side."""
    c, t = config.carts, persons.place_BTN2.shape[1]
    x = draw.uniform("cart x", c, low=-0.8, high=0.8) * layout.half_x_B[:, None]
    y = draw.sign("cart side", c) * (layout.spine_B[:, None] - draw.uniform("cart y", c, low=0.5, high=0.9))
    turn = draw.uniform("cart turn", c, low=-3.14, high=3.14)
    place = torch.stack([x, y], -1)[:, None].repeat(1, t, 1, 1)
    heading = torch.stack([turn.cos(), turn.sin()], -1)[:, None].repeat(1, t, 1, 1)
    if pushers:
        who = slice(2, 2 + pushers)
        pushed = pushing_BN[:, None, who, None]
        ahead = persons.heading_BTN2[:, :, who]
        place[:, :, :pushers] = torch.where(pushed, persons.place_BTN2[:, :, who] + ahead, place[:, :, :pushers])
        heading[:, :, :pushers] = torch.where(pushed, ahead, heading[:, :, :pushers])
    return place, heading
