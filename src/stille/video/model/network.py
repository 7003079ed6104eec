"""The perception network: backbone, decoder, identity decoder, slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stille.video.model.backbone import Backbone, CocoBackbone
from stille.video.model.config import StilleCamConfig
from stille.video.model.decoder import Decoder, Found, Proposed, Recent, SlotHead
from stille.video.model.identity import IdentityDecoder

MEAN, SPREAD = 114.0, 64.0  # of pixels


@dataclass(slots=True)
class Objects:
    """The carried objects of a frame, K of them: tokens, boxes (corners), logits."""

    token_BKC: Tensor
    box_BK4: Tensor
    presence_BK: Tensor
    kind_BKG: Tensor
    attribute_BKA: Tensor


class StilleCamNet(nn.Module):
    """Weights do not depend on the long memory's kind or size."""

    def __init__(self, config: StilleCamConfig):
        super().__init__()
        self.config = config
        self.backbone = CocoBackbone(config) if config.backbone == "coco" else Backbone(config)
        self.backbone.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.decoder = Decoder(config)
        self.identity = IdentityDecoder(config)
        self.slots = SlotHead(config)

    @property
    def dtype(self) -> torch.dtype:
        return self.slots.reduce.weight.dtype

    @property
    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def maps(self, frame_NHW3: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of uint8 pictures of the model's size."""
        picture = (frame_NHW3.permute(0, 3, 1, 2).to(self.dtype) - MEAN) / SPREAD
        return self.backbone(picture)

    def look(self, maps: Sequence[Tensor], recent: Recent, time_B: Tensor) -> tuple[Found, Proposed, Recent, Objects]:
        """One frame of each camera."""
        found, said, recent, kept = self.decoder(maps, recent, time_B)
        last = found.token_BQC, found.box_LBQ4[-1], found.presence_LBQ[-1], found.kind_LBQG[-1], found.attribute_BQA
        return found, said, recent, Objects(*(_taken(x, kept) for x in last))


def _taken(x_BQ: Tensor, index_BK: Tensor) -> Tensor:
    """Some of the queries' values, [B, K ..]."""
    wide = index_BK.view(*index_BK.shape, *[1] * (x_BQ.ndim - 2))
    return x_BQ.gather(1, wide.expand(-1, -1, *x_BQ.shape[2:]))


def flops_per_frame(config: StilleCamConfig) -> dict[str, float]:
    """Floating point operations of one frame of one camera, by part: products alone, counted by torch."""
    from torch.utils.flop_counter import FlopCounterMode

    from stille.video.model.camera import StilleCam

    network = StilleCamNet(config)
    cam = StilleCam(network, dtype=torch.float32)
    with FlopCounterMode(display=False) as counter:
        cam.warm()
    found = counter.get_flop_counts()
    modules = {"backbone": network.backbone, "decoder": network.decoder}
    parts = {part: float(sum(found.get(type(one).__name__, {}).values())) for part, one in modules.items()}
    total = float(counter.get_total_flops())
    return {**parts, "identity": total - sum(parts.values()), "total": total}
