"""Which query is to find which object: in training only.

A query that is carried on keeps the object that it had, as in MOTR (F. Zeng et al., ECCV 2022), as long as it stays
near it; the others get the objects that are left over by the cheapest assignment, as in DETR (N. Carion et al., 2020).

B clips, T frames, Q queries, M objects, L layers.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from stille.video.model import boxes
from stille.video.training.config import LossWeights

NEAR = 0.1
"""Least IoU of a carried query's box with its object's."""


def costs(presence_Q: Tensor, kind_QG: Tensor, box_Q4: Tensor, kind_M: Tensor, box_M4: Tensor, weights: LossWeights):
    """[.., Q, M], of finding each object with each query; boxes are corners."""
    positive = -torch.nn.functional.logsigmoid(presence_Q) * (1 - presence_Q.sigmoid()) ** 2
    negative = torch.nn.functional.softplus(presence_Q) * presence_Q.sigmoid() ** 2
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
def match(cost_BTQM: Tensor, iou_BTQM: Tensor, origin_BTQ: Tensor, present_BTM: Tensor) -> Tensor:
    """int64 [B, T, M] on the CPU: the query of each present object; -1 for the others."""
    cost, near, origin, present = (x.cpu().numpy() for x in (cost_BTQM.float(), iou_BTQM, origin_BTQ, present_BTM))
    clips, frames, queries, objects = cost.shape
    found = np.full((clips, frames, objects), -1, np.int64)
    for clip in range(clips):
        held = np.full(queries, -1)  # the object that a query has
        for frame in range(frames):
            source = origin[clip, frame]
            held = np.where(source >= 0, held[source.clip(0)], -1)
            here = present[clip, frame]
            for query in np.flatnonzero(held >= 0):
                thing = held[query]
                if here[thing] and near[clip, frame, query, thing] >= NEAR and found[clip, frame, thing] < 0:
                    found[clip, frame, thing] = query
                elif here[thing]:
                    held[query] = -1  # it lost it; an object that is hidden is waited for
            left = np.flatnonzero(here & (found[clip, frame] < 0))
            free = np.flatnonzero(held < 0)
            rows, columns = linear_sum_assignment(cost[clip, frame][np.ix_(free, left)])
            found[clip, frame, left[columns]] = free[rows]
            held[free[rows]] = left[columns]
    return torch.from_numpy(found)
