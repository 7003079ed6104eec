"""What a clip costs: objects by all layers and by the cells, attributes, slots.

B clips, T frames, L layers, Q queries, N cells, M objects, G kinds, A attributes, S slots. Each part is a mean over the
objects that are there (or over what is known), so that clips of any size weigh the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from stille.video.model import boxes
from stille.video.model.decoder import Found, Proposed
from stille.video.scenes.clips import Clips
from stille.video.training.config import LossWeights

CORE = 1.0  # strides around an object's centre in which cells are to see it
SMALLEST = 0.02  # of the picture's height; less is neither asked for nor forbidden
SMALL, LARGE = 2.5, 10.0  # strides that the longer side of an object has in a map that it belongs to
IGNORED = 0.5  # IoU with something barely visible from which a query may say what it likes


@dataclass(slots=True)
class Truth:
    """What is to be found: objects that are visible enough; others that are visible at all are neither asked for nor
    forbidden."""

    present_BTM: Tensor
    ignored_BTM: Tensor
    kind_BM: Tensor
    box_BTM4: Tensor
    attribute_BTMA: Tensor

    @classmethod
    def of(cls, clips: Clips, visible: float) -> Truth:
        there = (clips.kind_BM >= 0)[:, None] & (clips.visible_BTM > 0) & (boxes.area(clips.box_BTM4) > 0)
        tall = clips.box_BTM4[..., 3] - clips.box_BTM4[..., 1] >= SMALLEST
        present = there & (clips.visible_BTM >= visible) & tall
        return cls(present, there & ~present, clips.kind_BM, clips.box_BTM4, clips.attribute_BTMA)


def focal(logit: Tensor, target: Tensor, alpha: float, gamma: float) -> Tensor:
    """Focal loss (T.-Y. Lin et al., ICCV 2017) of each element; `alpha` is what positives weigh."""
    p = logit.sigmoid()
    wrong = torch.where(target > 0, 1 - p, p)
    weight = torch.where(target > 0, alpha, 1 - alpha)
    return weight * wrong**gamma * binary_cross_entropy_with_logits(logit, target, reduction="none")


@dataclass(slots=True)
class Said:
    """`Found` of all frames of clips; see there."""

    presence_LBTQ: Tensor
    kind_LBTQG: Tensor
    box_LBTQ4: Tensor
    attribute_BTQA: Tensor
    token_BTQC: Tensor
    origin_BTQ: Tensor

    @classmethod
    def joined(cls, frames: list[Found]) -> Said:
        def stacked(name: str, axis: int) -> Tensor:
            return torch.stack([getattr(found, name) for found in frames], axis)

        return cls(
            *(stacked(name, 2) for name in ("presence_LBQ", "kind_LBQG", "box_LBQ4")),
            *(stacked(name, 1) for name in ("attribute_BQA", "token_BQC", "origin_BQ")),
        )

    @classmethod
    def side_by_side(cls, found: Found, shape: tuple[int, int]) -> Said:
        """Of frames that were looked at together, B x T of them."""
        of_layers = (getattr(found, name).unflatten(1, shape) for name in ("presence_LBQ", "kind_LBQG", "box_LBQ4"))
        return cls(
            *of_layers,
            *(getattr(found, name).unflatten(0, shape) for name in ("attribute_BQA", "token_BQC", "origin_BQ")),
        )


def object_losses(found: Said, truth: Truth, query_BTM: Tensor, weights: LossWeights) -> dict[str, Tensor]:
    """Parts of the loss, weighted."""
    present, presence = truth.present_BTM, found.presence_LBTQ
    count = present.sum().clamp(min=1)
    layers = len(presence)
    index = query_BTM.clamp(min=0)
    hot = torch.zeros_like(presence[0]).scatter_add(2, index, present.float())
    blurred = boxes.iou(found.box_LBTQ4[-1].detach().unsqueeze(-2), truth.box_BTM4.unsqueeze(-3))
    free = ((blurred > IGNORED) & truth.ignored_BTM[:, :, None]).any(-1) & (hot == 0)
    counted = ~free.expand(layers, *free.shape)
    lost = (focal(presence, hot.expand_as(presence), 0.5, 1.0) * counted).sum() / count
    parts = {"presence": weights.presence * lost}

    def of_objects(x_LBTQ: Tensor) -> Tensor:
        wide = index[None, ..., None].expand(len(x_LBTQ), *index.shape, x_LBTQ.shape[-1])
        return x_LBTQ.gather(3, wide)

    # What is not there counts nothing, rather than being left out: picking by a mask would wait for the device.
    parts |= _boxes(of_objects(found.box_LBTQ4), truth.box_BTM4[None], present[None], count, weights)
    kind = truth.kind_BM[:, None].clamp(min=0).expand(layers, *present.shape)
    parts["kind"] = weights.kind * _kinds(of_objects(found.kind_LBTQG), kind, present, count)
    known = truth.attribute_BTMA
    sure = ~known.isnan() & present[..., None]
    said = binary_cross_entropy_with_logits(
        of_objects(found.attribute_BTQA[None])[0], known.nan_to_num(), reduction="none"
    )
    parts["attribute"] = weights.attribute * (said * sure).sum() / sure.sum().clamp(min=1)
    return parts


def proposal_losses(said: Proposed, truth: Truth, centre_N2: Tensor, stride_N2: Tensor, weights: LossWeights) -> Tensor:
    """Cells near an object's centre are to see it, the smallest if there are several; `said` has B*T in front.

    Objects belong to the maps in whose strides they are neither small nor large, some of them to two.
    """
    box, present = truth.box_BTM4.flatten(0, 1), truth.present_BTM.flatten(0, 1)
    kind = truth.kind_BM[:, None].expand_as(truth.present_BTM).flatten(0, 1)
    centred = boxes.to_centred(box)
    stride = stride_N2
    off = ((centre_N2[:, None] - centred[:, None, :, :2]) / stride[:, None]).abs().amax(-1)  # [BT, N, M]
    side = (centred[:, None, :, 2:] / stride[:, None]).amax(-1)  # in strides of the cell's map
    finest, coarsest = ((stride[:, 0] == end)[:, None] for end in (stride[:, 0].amin(), stride[:, 0].amax()))
    fits = ((side < LARGE) | coarsest) & ((side > SMALL) | finest)
    inside = (off < CORE) & fits & present[:, None]
    size = boxes.area(box)[:, None].masked_fill(~inside, torch.inf)
    smallest, owner = size.min(-1)
    hot = smallest < torch.inf
    shadow = (off < CORE) & truth.ignored_BTM.flatten(0, 1)[:, None]
    counted = hot | ~shadow.any(-1)
    count = hot.sum().clamp(min=1)
    loss = weights.presence * (focal(said.presence_BN, hot.float(), 0.25, 2.0) * counted).sum() / count
    want = box.gather(1, owner[..., None].expand(-1, -1, 4))
    loss = loss + sum(_boxes(said.box_BN4, want, hot, count, weights).values())
    kinds = kind.clamp(min=0).gather(1, owner)
    return weights.proposals * (loss + weights.kind * _kinds(said.kind_BNG, kinds, hot, count))


def slot_loss(logit_BTS: Tensor, occupied_BTS: Tensor, weights: LossWeights) -> Tensor:
    """Of the slots that there are."""
    sure = ~occupied_BTS.isnan()
    each = binary_cross_entropy_with_logits(logit_BTS, occupied_BTS.nan_to_num(), reduction="none")
    return weights.slot * (each * sure).sum() / sure.sum().clamp(min=1)


def _boxes(box: Tensor, want: Tensor, there: Tensor, count: Tensor, weights: LossWeights) -> dict[str, Tensor]:
    distance = ((boxes.to_centred(box) - boxes.to_centred(want)).abs() * there[..., None]).sum()
    overlap = ((1 - boxes.giou(box, want)) * there).sum()
    return {"distance": weights.distance * distance / count, "overlap": weights.overlap * overlap / count}


def _kinds(logit: Tensor, kind: Tensor, there: Tensor, count: Tensor) -> Tensor:
    each = cross_entropy(logit.flatten(0, -2), kind.flatten(), reduction="none").view(kind.shape)
    return (each * there).sum() / count
