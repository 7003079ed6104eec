"""Which query is to find which object: in training only.

A query that is carried on keeps the object that it had, as in MOTR (F. Zeng et al., ECCV 2022), as long as it stays
near it; the others get the objects that are left over by the cheapest assignment, as in DETR (N. Carion et al., 2020).

B clips, T frames, Q queries, M objects, L layers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from stille.video.model import boxes
from stille.video.training.config import LossWeights

NEAR = 0.25
"""Least IoU of a carried query's box with its object's."""


def costs(presence_Q: Tensor, kind_QG: Tensor, box_Q4: Tensor, kind_M: Tensor, box_M4: Tensor, weights: LossWeights):
    """[.., Q, M], of finding each object with each query; boxes are corners."""
    # As focal losses with an alpha of 0.25, so that a sure query does not get an object that it is far from.
    positive = -0.25 * torch.nn.functional.logsigmoid(presence_Q) * (1 - presence_Q.sigmoid()) ** 2
    negative = 0.75 * torch.nn.functional.softplus(presence_Q) * presence_Q.sigmoid() ** 2
    likely = kind_QG.log_softmax(-1).gather(
        -1, kind_M.clamp(min=0).unsqueeze(-2).expand(*kind_QG.shape[:-1], kind_M.shape[-1])
    )
    a, b = box_Q4.unsqueeze(-2), box_M4.unsqueeze(-3)
    distance = (boxes.to_centred(a) - boxes.to_centred(b)).abs().sum(-1)
    return (
        weights.presence * (positive - negative).unsqueeze(-1)
        - weights.kind * likely
        + weights.distance * distance
        - weights.overlap * boxes.giou(a, b)
    )


@torch.no_grad()
def match(
    cost_BTQM: Tensor, iou_BTQM: Tensor, origin_BTQ: Tensor, present_BTM: Tensor,
    meanwhile: Callable[[], object] | None = None,
) -> Tensor:  # fmt: skip
    """int64 [B, T, M] on the CPU: the query of each present object; -1 for the others.

    All clips go together from frame to frame; one by one are only those in which an object has no query yet.

    Args:
        meanwhile: called while the device is still at work on the costs.
    """
    # One transfer: 24 bits of a float32 hold any query and flag exactly.
    parts = cost_BTQM, iou_BTQM, origin_BTQ[..., None], present_BTM[..., None, :].expand(-1, -1, 1, -1)
    clips, frames, queries, objects = cost_BTQM.shape
    sent = torch.cat([x.float().reshape(clips, frames, -1) for x in parts], -1).to("cpu", non_blocking=True)
    if cost_BTQM.is_cuda:
        there = torch.cuda.Event()
        there.record()
        if meanwhile is not None:
            meanwhile()
        there.synchronize()
    elif meanwhile is not None:
        meanwhile()
    flat = sent.numpy()
    cost, near, origin, present = np.split(flat, np.cumsum([queries * objects, queries * objects, queries]), -1)
    cost, near = (x.reshape(clips, frames, queries, objects) for x in (cost, near))
    cost = np.nan_to_num(cost, nan=1e6, posinf=1e6, neginf=-1e6)
    origin, present = origin.astype(np.int64), present > 0
    found = np.full((clips, frames, objects), -1, np.int64)
    held = np.full((clips, queries), -1)  # the object that a query has
    clip = np.arange(clips)[:, None]
    for t in range(frames):
        source = origin[:, t]
        held = np.where(source >= 0, held[clip, source.clip(0)], -1)
        thing = held.clip(0)
        here = (held >= 0) & present[:, t][clip, thing]
        keeps = here & (near[:, t][clip, np.arange(queries), thing] >= NEAR)
        held[here & ~keeps] = -1  # it lost it; an object that is hidden is waited for
        which, query = np.nonzero(keeps)
        found[which, t, held[which, query]] = query
        left = present[:, t] & (found[:, t] < 0)
        for i in np.flatnonzero(left.any(1)):
            free, missing = np.flatnonzero(held[i] < 0), np.flatnonzero(left[i])
            rows, columns = linear_sum_assignment(cost[i, t][np.ix_(free, missing)])
            found[i, t, missing[columns]] = free[rows]
            held[i, free[rows]] = missing[columns]
    return torch.from_numpy(found)
