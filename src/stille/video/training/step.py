"""From clips to a loss that can be differentiated."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
from stille.video.training.trajectories import Judged, Luck, damage, identity_loss


@dataclass(slots=True)
class Loss:
    """`total` to be differentiated; `facts` [name: scalar] for the log, on the device."""

    total: Tensor
    facts: dict[str, Tensor]


@dataclass(slots=True)
class Looked:
    """What was seen in clips, what is true of them, and what decides which query is to find which object.

    Attributes:
        pairing: arguments of `match`: costs, IoU, origins, presence.
    """

    said: Said
    proposed: Proposed
    fine: Tensor
    truth: Truth
    pairing: tuple[Tensor, Tensor, Tensor, Tensor]


def clip_loss(
    network: StilleCamNet, clips: Clips, config: VideoTrainConfig, random: torch.Generator, identities: bool
) -> Loss:
    """Of clips on the network's device, seen from their first frame on.

    Args:
        random: of the damage to trajectories, on the CPU.
        identities: whether they are learned.
    """
    luck = draw(network, clips, config, random) if identities else None
    looked = looked_at(network, clips, config, luck)
    query = match(*looked.pairing)
    return judged(network, clips, looked, query.to(clips.time_BT.device), config, luck)


def draw(network: StilleCamNet, clips: Clips, config: VideoTrainConfig, random: torch.Generator) -> Luck:
    """Luck of the clips' trajectories, on their device."""
    b, t, m = clips.visible_BTM.shape
    luck = Luck.draw(b, t, min(network.config.carried, m), network.config.words, config, random)
    return luck.on(clips.visible_BTM.device)


# The two halves of a step: what they launch does not depend on values, and neither of them waits for the device, so
# that each can be captured as a CUDA graph. Between them, queries are matched to objects.


def looked_at(network: StilleCamNet, clips: Clips, config: VideoTrainConfig, luck: Luck | None) -> Looked:
    """The first half: what the network says. `luck`: None if no identities are learned."""
    with _precision(config, clips.time_BT.device):
        forget = _forgetting(luck, clips.shape[1]) if luck is not None else None
        said, proposed, fine = look(network, clips, config.truncate, forget)
        truth, box = Truth.of(clips, config.visible), said.box_LBTQ4[-1]
        with torch.no_grad():
            cost = costs(
                said.presence_LBTQ[-1], said.kind_LBTQG[-1], box,
                clips.kind_BM[:, None].expand_as(clips.visible_BTM), clips.box_BTM4, config.loss,
            )  # fmt: skip
            near = iou(box.unsqueeze(-2), clips.box_BTM4.unsqueeze(-3))
    return Looked(said, proposed, fine, truth, (cost, near, said.origin_BTQ, truth.present_BTM))


def judged(
    network: StilleCamNet, clips: Clips, looked: Looked, query_BTM: Tensor, config: VideoTrainConfig, luck: Luck | None
) -> Loss:
    """The second half: what it costs, given the query of each present object (-1: it has none)."""
    weights, said, query = config.loss, looked.said, query_BTM
    b, t = clips.shape[:2]
    # In a crowd there may be fewer queries than objects.
    truth = replace(looked.truth, present_BTM=looked.truth.present_BTM & (query >= 0))
    with _precision(config, query.device):
        parts = losses.object_losses(said, truth, query, weights)
        dense = network.decoder.propose
        parts["proposals"] = losses.proposal_losses(looked.proposed, truth, dense.centre_N2, dense.stride_N2, weights)
        if clips.slot_BS4.shape[1]:
            boxes = clips.slot_BS4[:, None].expand(-1, t, -1, -1).flatten(0, 1)
            logit = network.slots(looked.fine, boxes).view(b, t, -1)
            parts["slot"] = losses.slot_loss(logit, clips.occupied_BTS, weights)
        facts = dict(parts)
        if luck is not None:
            found = _identities(network, clips, said, truth, query, config, luck)
            parts["identity"] = weights.identity * found.loss
            facts |= {
                "identity": parts["identity"],
                "identity_known": found.known_right / found.known.clamp(min=1),
                "identity_new": found.new_right / found.new.clamp(min=1),
                "identity_back": found.back_right / found.back.clamp(min=1),
            }
    return Loss(torch.stack(list(parts.values())).sum(), {name: x.detach() for name, x in facts.items()})


def _identities(
    network: StilleCamNet, clips: Clips, said: Said, truth: Truth, query: Tensor, config: VideoTrainConfig, luck: Luck
) -> Judged:
    """Only of places that are ever filled: the work rises with the square of their number."""
    present, most = truth.present_BTM, min(network.config.carried, truth.present_BTM.shape[2])
    some = (~present.any(1)).to(torch.int8).argsort(dim=1, stable=True)[:, :most]
    wide = some[:, None].expand(-1, present.shape[1], -1)
    query, present = query.gather(2, wide), present.gather(2, wide)
    index = query.clamp(min=0)[..., None]
    token = said.token_BTQC.gather(2, index.expand(-1, -1, -1, said.token_BTQC.shape[3]))
    box = said.box_LBTQ4[-1].detach().gather(2, index.expand(-1, -1, -1, 4))
    how = damage(present, network.config.words, config, luck)
    return identity_loss(network.identity, token, box, present, clips.kind_BM.gather(1, some), clips.time_BT, how)


def _precision(config: VideoTrainConfig, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=config.dtype == "bf16")


def _forgetting(luck: Luck, frames: int) -> Tensor:
    """Where a made-up gap ends, bool [B, T]: what was carried on over it would tell who is who."""
    frame = torch.arange(frames, device=luck.cut_B.device)
    return (frame == luck.cut_B[:, None]) & (luck.gap_B > 0)[:, None]


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
    if not config.history:
        none = Recent.empty(config, 1, frames.device, network.dtype)  # the decoder does not look at it
        each, cells, _, _ = network.decoder(features, none, clips.time_BT.flatten())
        return Said.side_by_side(each, (b, t)), cells, features[1]
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
