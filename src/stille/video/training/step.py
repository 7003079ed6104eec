"""From clips to a loss that can be differentiated."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stille.video.model.boxes import iou
from stille.video.model.camera import resized
from stille.video.model.decoder import Found, Proposed, Recent
from stille.video.model.network import StilleCamNet
from stille.video.scenes.clips import Clips
from stille.video.training import losses
from stille.video.training.config import VideoTrainConfig
from stille.video.training.losses import Said, Truth
from stille.video.training.matching import costs, match
from stille.video.training.trajectories import damage, draw_gaps, identity_loss


@dataclass(slots=True)
class Loss:
    """`total` to be differentiated; `facts` [name: scalar] for the log, on the device."""

    total: Tensor
    facts: dict[str, Tensor]


def clip_loss(
    network: StilleCamNet, clips: Clips, config: VideoTrainConfig, random: torch.Generator, identities: bool
) -> Loss:
    """Of clips on the network's device, seen from their first frame on.

    Args:
        random: of the damage to trajectories, on the CPU.
        identities: whether they are learned.
    """
    weights = config.loss
    b, t = clips.visible_BTM.shape[:2]
    gaps = draw_gaps(b, t, config, random) if identities else None
    said, proposed, fine = look(network, clips, config.truncate, _forgetting(gaps, t, clips.time_BT.device))
    truth = Truth.of(clips, config.visible)
    with torch.no_grad():
        cost = costs(
            said.presence_LBTQ[-1], said.kind_LBTQG[-1], said.box_LBTQ4[-1],
            clips.kind_BM[:, None].expand_as(clips.visible_BTM), clips.box_BTM4, weights,
        )  # fmt: skip
        near = iou(said.box_LBTQ4[-1].unsqueeze(-2), clips.box_BTM4.unsqueeze(-3))
        query = match(cost, near, said.origin_BTQ, truth.present_BTM).to(cost.device)
    truth.present_BTM = truth.present_BTM & (query >= 0)  # in a crowd there may be fewer queries than objects
    parts = losses.object_losses(said, truth, query, weights)
    dense = network.decoder.propose
    parts["proposals"] = losses.proposal_losses(proposed, truth, dense.centre_N2, dense.stride_N2, weights)
    if clips.slot_BS4.shape[1]:
        boxes = clips.slot_BS4[:, None].expand(-1, t, -1, -1).flatten(0, 1)
        logit = network.slots(fine, boxes).view(b, t, -1)
        parts["slot"] = losses.slot_loss(logit, clips.occupied_BTS, weights)
    facts = dict(parts)
    if identities:
        # Only places that are ever filled: the work rises with the square of their number.
        present, most = truth.present_BTM, min(network.config.carried, truth.present_BTM.shape[2])
        some = (~present.any(1)).to(torch.int8).argsort(dim=1, stable=True)[:, :most]
        wide = some[:, None].expand(-1, t, -1)
        query, present = query.gather(2, wide), present.gather(2, wide)
        index = query.clamp(min=0)[..., None]
        token = said.token_BTQC.gather(2, index.expand(-1, -1, -1, said.token_BTQC.shape[3]))
        box = said.box_LBTQ4[-1].detach().gather(2, index.expand(-1, -1, -1, 4))
        how = damage(present, network.config.words, config, random, gaps)
        kind = clips.kind_BM.gather(1, some)
        judged = identity_loss(network.identity, token, box, present, kind, clips.time_BT, how)
        parts["identity"] = weights.identity * judged.loss
        facts |= {
            "identity": parts["identity"],
            "identity_known": judged.known_right / judged.known.clamp(min=1),
            "identity_new": judged.new_right / judged.new.clamp(min=1),
            "identity_back": judged.back_right / judged.back.clamp(min=1),
        }
    return Loss(torch.stack(list(parts.values())).sum(), {name: x.detach() for name, x in facts.items()})


def _forgetting(gaps: tuple[Tensor, Tensor] | None, frames: int, device: torch.device) -> Tensor | None:
    """Where a made-up gap ends, bool [B, T]: what was carried on over it would tell who is who."""
    if gaps is None:
        return None
    cut, gap = gaps
    return ((torch.arange(frames) == cut[:, None]) & (gap > 0)[:, None]).to(device, non_blocking=True)


def look(
    network: StilleCamNet, clips: Clips, truncate: int, forget_BT: Tensor | None = None
) -> tuple[Said, Proposed, Tensor]:
    """What the network says of all frames; the cells' part and the middle maps have B*T in front.

    Args:
        forget_BT: bool, before which frames the decoder forgets the past.
    """
    b, t = clips.frame_BTHW3.shape[:2]
    config = network.config
    frames = resized(clips.frame_BTHW3.flatten(0, 1), config.width, config.height)
    features = network.maps(frames)
    maps = list(zip(*(x.unflatten(0, (b, t)).unbind(1) for x in features), strict=True))
    recent = Recent.empty(config, b, frames.device, network.dtype)
    found: list[Found] = []
    proposed: list[Proposed] = []
    for step in range(t):
        if step and step % truncate == 0:
            recent = recent.detached()
        if step and forget_BT is not None:
            recent = recent.forgotten(forget_BT[:, step])
        each, cells, recent, _ = network.decoder(maps[step], recent, clips.time_BT[:, step])
        found.append(each)
        proposed.append(cells)
    joined = (
        torch.stack([getattr(p, name) for p in proposed], 1).flatten(0, 1)
        for name in ("presence_BN", "kind_BNG", "box_BN4")
    )
    return Said.joined(found), Proposed(*joined), features[1]
