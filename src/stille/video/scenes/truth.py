"""What is known of rendered clips, from the same geometry and the same pixels.

Shapes: B clips, T frames, M objects, P primitives, A attributes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stille.video.scenes.clips import Clips
from stille.video.scenes.draw import constant
from stille.video.scenes.graph import Scenes
from stille.video.scenes.outline import cut, group_boxes, slot_boxes
from stille.video.scenes.primitives import HEAD, PARTS, TORSO, Primitives
from stille.video.types import ATTRIBUTES

_SPARE = 1024
_KNOWN_PIXELS = 6  # of a head, say, before its helmet counts as visible


def seen_pixels(index_BTHW: Tensor, prims: Primitives, objects: int) -> Tensor:
    """Pixels of each part of each object, int64 [B, T, M, PARTS], from which primitive is seen where."""
    b, t = index_BTHW.shape[:2]
    bins = objects * PARTS
    code_P = torch.where(prims.group_P < objects, prims.group_P * PARTS + prims.part_P, bins)
    code = torch.cat([code_P.new_full((1,), bins), code_P])[index_BTHW.reshape(b, t, -1).long() + 1]
    # Most pixels are of nothing: in one bin they would wait for each other.
    spare = bins + torch.arange(code.shape[2], device=code.device) % _SPARE
    code = torch.where(code < bins, code, spare)
    counts = torch.zeros(b, t, bins + _SPARE, dtype=torch.int32, device=code.device)
    counts.scatter_add_(2, code, torch.ones_like(code, dtype=torch.int32))
    return counts[..., :bins].long().unflatten(2, (objects, PARTS))


def make_clips_of(scenes: Scenes, frame_BTHW3: Tensor, box_BTP4: Tensor, seen_BTMK: Tensor, own_BTM: Tensor) -> Clips:
    """Frames with their truth.

    Args:
        box_BTP4: from `primitive_boxes`.
        seen_BTMK: from `seen_pixels`.
        own_BTM: pixels that each object would fill alone.
    """
    config, prims, size = scenes.config, scenes.primitives, scenes.camera.size
    m = config.places
    b, t = seen_BTMK.shape[:2]
    device = seen_BTMK.device
    whole_BTM4 = group_boxes(box_BTP4, prims.group_P, prims.groups[-1] + 1)[:, :, :m]
    box_BTM4 = cut(whole_BTM4, size)
    scale = constant((size[0], size[1]) * 2, box_BTM4.device)
    extent = (box_BTM4 * scale)[..., 2:] - (box_BTM4 * scale)[..., :2]
    full = (whole_BTM4[..., 2:] - whole_BTM4[..., :2]).clamp(min=1e-3)
    inside = (extent / full).clamp(0, 1).prod(-1)

    seen_BTM = seen_BTMK.sum(-1)
    visible = inside * (seen_BTM / own_BTM.clamp(min=1)).clamp(max=1) * (own_BTM > 0)
    visible = torch.where(scenes.on_BM[:, None], visible, 0.0)

    story = scenes.story
    n, f, c = config.persons, config.forklifts, config.carts
    value = torch.full((b, t, m, len(ATTRIBUTES)), torch.nan, device=device)
    persons, drivers = slice(0, n), slice(n, n + f)
    trucks, carts = slice(n + f, n + 2 * f), slice(n + 2 * f, n + 2 * f + c)
    names = {name: i for i, name in enumerate(ATTRIBUTES)}
    head, torso = seen_BTMK[..., HEAD], seen_BTMK[..., TORSO]
    clear = visible > 0.3

    def fill(place: slice, name: str, truth: Tensor, known: Tensor) -> None:
        value[:, :, place, names[name]] = torch.where(known, truth.float(), torch.nan)

    fill(persons, "helmet", story.helmet_BTN, head[:, :, persons] >= _KNOWN_PIXELS)
    fill(persons, "vest", story.vest_BTN, torso[:, :, persons] >= _KNOWN_PIXELS)
    fill(drivers, "helmet", story.driver_helmet_BF[:, None], head[:, :, drivers] >= _KNOWN_PIXELS)
    fill(drivers, "vest", story.driver_vest_BF[:, None], torso[:, :, drivers] >= _KNOWN_PIXELS)
    for name in ("carrying", "lying"):
        fill(drivers, name, torch.zeros_like(clear[:, :, drivers]), clear[:, :, drivers])
    fill(persons, "carrying", story.carrying_BTN, clear[:, :, persons])
    fill(persons, "lying", story.fallen_BTN > 0.6, clear[:, :, persons])
    fill(trucks, "loaded", story.loaded_BTF, clear[:, :, trucks])
    fill(carts, "loaded", story.cart_loaded_BTC, clear[:, :, carts])

    kinds = constant(config.kinds, device).long().expand(b, -1)
    there = scenes.on_BM[:, None, :, None]
    slots = slot_boxes(scenes.layout, scenes.camera)
    empty = (slots == 0).all(-1)
    occupied = torch.where(empty[:, None], torch.nan, story.goods.occupied_BTS.float())
    return Clips(
        frame_BTHW3=frame_BTHW3,
        time_BT=scenes.time_BT,
        kind_BM=torch.where(scenes.on_BM, kinds, -1),
        box_BTM4=torch.where(there, box_BTM4, 0.0),
        visible_BTM=visible,
        attribute_BTMA=torch.where(there, value, torch.nan),
        place_BTM2=torch.where(there, scenes.place_BTM3[..., :2], torch.nan),
        slot_BS4=slots,
        occupied_BTS=occupied,
    )
