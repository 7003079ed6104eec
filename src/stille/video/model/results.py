"""Numbers of a batch, on their way from the device to those who asked.

B frames, K objects, A attributes, S slots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stille.video.model.network import Objects
from stille.video.model.pictures import to_picture
from stille.video.model.words import Settled
from stille.video.types import Frame, Seen

Slots = Mapping[str, tuple[list[str], Tensor]]
"""By camera: names, and boxes [S, 4] on the CPU."""


def numbers(objects: Objects, settled: Settled, inside_B14: Tensor) -> Tensor:
    """float64, which holds identities and all else exactly, [B, K, 7 + A]: boxes, presence, kinds, identities,
    attributes."""
    box = to_picture(objects.box_BK4, inside_B14).clamp(0, 1)
    parts = objects.presence_BK.sigmoid(), objects.kind_BKG.argmax(-1), settled.identity_BK
    return torch.cat(
        [x.double() for x in (box, torch.stack([x.double() for x in parts], -1), settled.attribute_BKA)], -1
    )


def fetched(parts: Sequence[Tensor]) -> list[np.ndarray[Any, Any]]:
    """On the CPU, after waiting once."""
    if not parts[0].is_cuda:
        return [x.numpy() for x in parts]
    held = [torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True) for x in parts]
    done = torch.cuda.Event(blocking=True)  # a thread that waits leaves its core to those that decode
    done.record(torch.cuda.current_stream(parts[0].device))
    done.synchronize()
    return [x.numpy() for x in held]


def slot_boxes(slots: Slots, cameras: Sequence[str]) -> Tensor | None:
    """float32 [B, S, 4] on the CPU, zeros where a camera has fewer; None: none has any."""
    most = max((len(slots[name][0]) for name in cameras if name in slots), default=0)
    if most == 0:
        return None
    padded = torch.zeros(len(cameras), most, 4)
    for row, name in zip(padded, cameras, strict=True):
        if name in slots:
            row[: len(slots[name][0])] = slots[name][1]
    return padded


def seen(
    frames: Sequence[Frame], number_BKX: np.ndarray[Any, Any], slot_BS: np.ndarray[Any, Any] | None, slots: Slots,
    shown: float,
) -> list[Seen]:  # fmt: skip
    """Of `numbers`, and of probabilities of slots."""
    box, score = number_BKX[..., :4].astype(np.float32), number_BKX[..., 4].astype(np.float32)
    on = (score >= shown) & (box[..., 2:] > box[..., :2]).all(-1)  # not in the border alone
    size = np.array([frame.size * 2 for frame in frames], np.float32)
    box, score = (box * size[:, None])[on], score[on]
    kind, identity = (number_BKX[..., i].astype(np.int64)[on] for i in (5, 6))
    attribute = number_BKX[..., 7:].astype(np.float32)[on]
    ends = on.sum(1).cumsum().tolist()
    found = []
    for row, (frame, begin, end) in enumerate(zip(frames, [0, *ends[:-1]], ends, strict=True)):
        names = slots[frame.camera][0] if frame.camera in slots else []
        full = dict(zip(names, slot_BS[row, : len(names)].tolist(), strict=True)) if slot_BS is not None else {}
        found.append(Seen(
            frame.camera, frame.index, frame.time, frame.size, box[begin:end], kind[begin:end], score[begin:end],
            identity[begin:end], attribute[begin:end], full,
        ))  # fmt: skip
    return found
