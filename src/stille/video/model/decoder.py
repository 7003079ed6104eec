"""From feature maps to objects: proposals, layers of queries, heads; and what a camera remembers of recent frames.

B cameras, Q queries, K carried ones, C width, L layers, N cells of the feature maps, F remembered frames, A attributes,
G kinds, S slots.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, grid_sample, max_pool2d

from stille.video.model import boxes
from stille.video.model.attention import MLP, AgeBias, BoxAttention, MemoryAttention, SelfAttention
from stille.video.model.config import STRIDES, StilleCamConfig
from stille.video.types import ATTRIBUTES, KINDS

RARE = -math.log(99)  # presence at the beginning: one cell in a hundred
NEVER = -math.inf
SAME, HELD = 0.65, 0.5  # IoU with a better proposal, and with a carried object, from which a proposal comes last
SLOT_GRID, SLOT_WIDTH = 5, 64


@dataclass(slots=True)
class Recent:
    """What the decoder remembers of a camera's last frames.

    Attributes:
        token_BKC, box_BK4, score_BK, index_BK: the best objects of the frame before: centre and size, presence (0 where
            there is none), and which query they were.
        pooled_BFP2C, pooled_time_BF: keys and values of pictures, the oldest first; times are -inf where there is none.
        object_BFK2C, object_score_BFK, object_time_BF: those of objects.
    """

    token_BKC: Tensor
    box_BK4: Tensor
    score_BK: Tensor
    index_BK: Tensor
    pooled_BFP2C: Tensor
    pooled_time_BF: Tensor
    object_BFK2C: Tensor
    object_score_BFK: Tensor
    object_time_BF: Tensor

    @classmethod
    def empty(cls, config: StilleCamConfig, batch: int, device: torch.device, dtype: torch.dtype) -> Recent:
        """Of cameras that have seen nothing."""
        k, c, f, g = config.carried, config.dim, config.pooled_frames, config.object_frames

        def zeros(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.zeros(batch, *shape, device=device, dtype=dtype)

        return cls(
            zeros(k, c), zeros(k, 4, dtype=torch.float32), zeros(k, dtype=torch.float32), zeros(k, dtype=torch.int64),
            zeros(f, config.pooled_side**2, 2, c), zeros(f, dtype=torch.float64) + NEVER,
            zeros(g, k, 2, c), zeros(g, k, dtype=torch.float32), zeros(g, dtype=torch.float64) + NEVER,
        )  # fmt: skip

    def detached(self) -> Recent:
        """The same without its past in autograd."""
        return Recent(*(x.detach() for x in vars_of(self)))

    def forgotten(self, which_B: Tensor) -> Recent:
        """Nothing where `which_B` is true."""
        one, two = which_B[:, None], which_B[:, None, None]
        return replace(
            self, score_BK=self.score_BK.masked_fill(one, 0.0),
            pooled_time_BF=self.pooled_time_BF.masked_fill(one, NEVER),
            object_score_BFK=self.object_score_BFK.masked_fill(two, 0.0),
            object_time_BF=self.object_time_BF.masked_fill(one, NEVER),
        )  # fmt: skip


def vars_of(recent: Recent) -> list[Tensor]:
    """Its tensors, in order."""
    return [getattr(recent, field.name) for field in fields(recent)]


@dataclass(slots=True)
class Proposed:
    """What every cell of the maps says: presence logits, kind logits, boxes (corners), [B, N ..]."""

    presence_BN: Tensor
    kind_BNG: Tensor
    box_BN4: Tensor


@dataclass(slots=True)
class Found:
    """What the queries say. Logits and boxes are float32; boxes are corners.

    Attributes:
        presence_LBQ, kind_LBQG, box_LBQ4: of every layer, the last one counts.
        attribute_BQA: logits.
        token_BQC: what stands for the objects in memory.
        origin_BQ: which query of the frame before each one is carried on from; -1: it is new.
    """

    presence_LBQ: Tensor
    kind_LBQG: Tensor
    box_LBQ4: Tensor
    attribute_BQA: Tensor
    token_BQC: Tensor
    origin_BQ: Tensor


class Proposals(nn.Module):
    """A presence, a kind and a box from every cell.

    Boxes are how far their centre is from the cell's, in strides, and the logarithm of their size, as in YOLOX: a cell
    beside a narrow object can tell its box too.
    """

    def __init__(self, config: StilleCamConfig):
        super().__init__()
        self.head = MLP(config.dim, config.dim, 1 + len(KINDS) + 4)
        nn.init.constant_(self.head.down.bias[:1], RARE)
        nn.init.constant_(self.head.down.bias[-4:-2], 0.0)
        nn.init.constant_(self.head.down.bias[-2:], 0.7)  # two strides
        self.register_buffer("centre_N2", torch.cat([_centres(config, s) for s in STRIDES]), persistent=False)
        strides = [
            torch.tensor([stride / config.width, stride / config.height]).expand(len(_centres(config, stride)), 2)
            for stride in STRIDES
        ]
        self.register_buffer("stride_N2", torch.cat(strides), persistent=False)
        self.centre_N2: Tensor
        self.stride_N2: Tensor

    def forward(self, cell_BNC: Tensor) -> Proposed:
        said = self.head(cell_BNC)[..., : 1 + len(KINDS) + 4]  # on a GPU there are some more
        presence, kind, shift, size = said.float().split([1, len(KINDS), 2, 2], -1)
        centre, half = self.centre_N2 + shift * self.stride_N2, size.clamp(-4, 4).exp() * self.stride_N2 / 2
        return Proposed(presence.squeeze(-1), kind, torch.cat([centre - half, centre + half], -1))

    def best(
        self, said: Proposed, shapes: list[tuple[int, int]], count: int, held_BK4: Tensor, held_BK: Tensor
    ) -> Tensor:
        """[B, count] cells: peaks of presence among their neighbours, the best first.

        Those whose box is nearly that of a better one, or that of an object that is carried on, come last: queries
        for the same object are slow to learn which of them is to speak.

        Args:
            held_BK4, held_BK: boxes (corners) that are carried on, and whether they are.
        """
        peaks = []
        for logit, (high, wide) in zip(said.presence_BN.split([h * w for h, w in shapes], 1), shapes, strict=True):
            image = logit.detach().view(-1, 1, high, wide)
            peak = image == max_pool2d(image, 3, 1, 1)
            peaks.append((image - 40 * ~peak).flatten(1))
        logit, cell = torch.cat(peaks, 1).topk(min(2 * count, said.presence_BN.shape[1]), 1)
        box = said.box_BN4.detach().gather(1, cell[..., None].expand(-1, -1, 4))
        better = torch.ones(len(cell[0]), len(cell[0]), dtype=torch.bool, device=cell.device).triu(1)
        double = ((boxes.iou(box[:, :, None], box[:, None]) > SAME) & better).any(1)
        taken = ((boxes.iou(box[:, :, None], held_BK4[:, None]) > HELD) & held_BK[:, None]).any(2)
        order = (logit - 80 * (double | taken)).topk(count, 1).indices
        return cell.gather(1, order)


class Layer(nn.Module):
    """Objects look at each other, at the picture around their boxes, at memory; then think, and correct their boxes."""

    def __init__(self, config: StilleCamConfig):
        super().__init__()
        c, h = config.dim, config.heads
        self.norms = nn.ModuleList(nn.LayerNorm(c) for _ in range(5))
        self.objects, self.memory = SelfAttention(c, h), MemoryAttention(c, h)
        self.picture = BoxAttention(c, h, len(STRIDES), config.points)
        self.think, self.correct = MLP(c, config.ffn, c), MLP(c, c, 4)
        nn.init.zeros_(self.correct.down.weight)
        nn.init.zeros_(self.correct.down.bias)

    def forward(
        self, x: Tensor, position: Tensor, box_BQ4: Tensor, maps: list[Tensor], kv_BJ2C: Tensor, bias_BhJ: Tensor
    ) -> tuple[Tensor, Tensor]:
        x = x + self.objects(self.norms[0](x), position)
        x = x + self.picture(self.norms[1](x) + position, box_BQ4, maps)
        x = x + self.memory(self.norms[2](x) + position, kv_BJ2C, bias_BhJ)
        x = x + self.think(self.norms[3](x))
        box = torch.sigmoid(boxes.inverse_sigmoid(box_BQ4) + self.correct(self.norms[4](x)).float())
        return x, box


class Decoder(nn.Module):
    """Objects of a frame, from its maps and what is remembered."""

    def __init__(self, config: StilleCamConfig):
        super().__init__()
        self.config, c = config, config.dim
        self.alone = replace(config, pooled_frames=0, object_frames=0)
        self.copies = True  # of maps, in float32 and channel by channel, as `grid_sample` reads them
        self.propose = Proposals(config)
        self.fresh, self.carry = nn.Linear(c, c), nn.Linear(c, c)
        self.position = MLP(c, c, c)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(c)
        self.presence, self.kind = nn.Linear(c, 1), nn.Linear(c, len(KINDS))
        self.attribute = MLP(c, c, len(ATTRIBUTES))
        nn.init.zeros_(self.presence.bias)
        self.trust = nn.Parameter(torch.ones(()))  # in what cells, or the frame before, say of presence
        self.remember_picture, self.remember_object = nn.Linear(c, 2 * c), nn.Linear(c, 2 * c)
        self.picture_age, self.object_age = AgeBias(config.heads), AgeBias(config.heads)
        side = (torch.arange(config.pooled_side) + 0.5) / config.pooled_side
        y, x = torch.meshgrid(side, side, indexing="ij")
        size = torch.full_like(x, 1 / config.pooled_side)
        self.register_buffer("patch_P4", torch.stack([x, y, size, size], -1).flatten(0, 1), persistent=False)
        self.patch_P4: Tensor

    def encode(self, box_centred: Tensor) -> Tensor:
        """Positions, in the dtype of the weights."""
        return self.position(boxes.waves(box_centred, self.config.dim).to(self.carry.weight.dtype))

    def forward(
        self, features: Sequence[Tensor], recent: Recent, time_B: Tensor
    ) -> tuple[Found, Proposed, Recent, Tensor]:
        """Objects, what the cells proposed, what is remembered from now on, and the queries that it took [B, K]."""
        config, given = self.config, recent
        if not config.history:
            recent = Recent.empty(self.alone, len(time_B), time_B.device, features[0].dtype)
        maps = [x.float().contiguous() for x in features] if self.copies else list(features)
        cells, coarse = torch.cat([x.flatten(2).transpose(1, 2) for x in features], 1), features[-1]
        said = self.propose(cells)
        held = recent.score_BK >= config.carry
        shapes: Any = [tuple(m.shape[2:]) for m in maps]
        best = self.propose.best(said, shapes, config.queries, boxes.to_corners(recent.box_BK4), held)
        x = self.fresh(cells.gather(1, best[..., None].expand(-1, -1, cells.shape[2])))
        at = boxes.to_centred(said.box_BN4.detach().clamp(0, 1).gather(1, best[..., None].expand(-1, -1, 4)))
        new = config.queries - config.carried
        held = held[..., None]
        x = torch.cat([x[:, :new], torch.where(held, self.carry(recent.token_BKC), x[:, new:])], 1)
        box = torch.cat([at[:, :new], torch.where(held, recent.box_BK4, at[:, new:])], 1)
        likely = said.presence_BN.detach().gather(1, best)
        before = torch.logit(recent.score_BK, eps=1e-3)
        likely = torch.cat([likely[:, :new], torch.where(held[..., 0], before, likely[:, new:])], 1).clamp(-6, 6)
        nowhere = torch.full_like(recent.index_BK[:, :1], -1)
        origin = torch.cat([nowhere.expand(-1, new), torch.where(held[..., 0], recent.index_BK, nowhere)], 1)

        kv, bias = self._memory(recent, time_B)
        said_by_layer = []
        for layer in self.layers:
            box = box.detach()
            x, box = layer(x, self.encode(box), box, maps, kv, bias)
            token = self.norm(x)
            said_by_layer.append(
                (self.presence(token).squeeze(-1).float() + self.trust * likely, self.kind(token).float(), box)
            )
        presence, kind, box = (torch.stack(parts) for parts in zip(*said_by_layer, strict=True))
        found = Found(presence, kind, boxes.to_corners(box), self.attribute(token).float(), token, origin)
        kept = presence[-1].detach().topk(config.carried, 1).indices
        if config.history:
            given = self._remember(recent, coarse, token, box[-1], presence[-1], kept, time_B)
        return found, said, given, kept

    def _memory(self, recent: Recent, time_B: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, J, 2, C], and their bias [B, h, J]."""
        pooled = self.picture_age(time_B[:, None] - recent.pooled_time_BF)
        pooled = pooled.masked_fill((recent.pooled_time_BF == NEVER)[..., None], NEVER)
        pooled = pooled.repeat_interleave(recent.pooled_BFP2C.shape[2], 1)
        score = recent.object_score_BFK.unsqueeze(-1)
        objects = self.object_age(time_B[:, None] - recent.object_time_BF)[:, :, None] + score.clamp(min=1e-3).log()
        objects = objects.masked_fill(score == 0, NEVER).flatten(1, 2)
        kv = torch.cat([recent.pooled_BFP2C.flatten(1, 2), recent.object_BFK2C.flatten(1, 2)], 1)
        return kv, torch.cat([pooled, objects], 1).transpose(1, 2)

    def _remember(
        self, recent: Recent, coarse: Tensor, token: Tensor, box: Tensor, presence: Tensor, kept: Tensor, time_B: Tensor
    ) -> Recent:
        token = token.gather(1, kept[..., None].expand(-1, -1, token.shape[2]))
        box = box.detach().gather(1, kept[..., None].expand(-1, -1, 4))
        score = presence.detach().sigmoid().gather(1, kept)
        picture = adaptive_avg_pool2d(coarse, self.config.pooled_side).flatten(2).transpose(1, 2)
        picture = self.remember_picture(picture + self.encode(self.patch_P4))
        objects = self.remember_object(token + self.encode(box))
        now = time_B[:, None].double()
        return Recent(
            token, box, score, kept,
            torch.cat([recent.pooled_BFP2C[:, 1:], picture.unflatten(-1, (2, -1))[:, None]], 1),
            torch.cat([recent.pooled_time_BF[:, 1:], now], 1),
            torch.cat([recent.object_BFK2C[:, 1:], objects.unflatten(-1, (2, -1))[:, None]], 1),
            torch.cat([recent.object_score_BFK[:, 1:], score[:, None]], 1),
            torch.cat([recent.object_time_BF[:, 1:], now], 1),
        )  # fmt: skip


class SlotHead(nn.Module):
    """Whether something stands in a rack slot: a grid of samples of the fine map inside its box."""

    def __init__(self, config: StilleCamConfig):
        super().__init__()
        self.reduce = nn.Linear(config.dim, SLOT_WIDTH)
        self.judge = MLP(SLOT_WIDTH * SLOT_GRID**2, config.dim, 1)
        side = (torch.arange(SLOT_GRID) + 0.5) / SLOT_GRID
        y, x = torch.meshgrid(side, side, indexing="ij")
        self.register_buffer("grid_P2", torch.stack([x, y], -1).flatten(0, 1), persistent=False)
        self.grid_P2: Tensor

    def forward(self, fine: Tensor, slot_BS4: Tensor) -> Tensor:
        """Logits, float32 [B, S], for boxes by their corners."""
        low, high = slot_BS4[:, :, None].split(2, -1)
        place = (low + (high - low) * self.grid_P2) * 2 - 1  # [B, S, P, 2]
        seen = grid_sample(fine.float(), place, align_corners=False, padding_mode="border").permute(0, 2, 3, 1)
        return self.judge(self.reduce(seen.to(fine.dtype)).flatten(2)).squeeze(-1).float()


def _centres(config: StilleCamConfig, stride: int) -> Tensor:
    """[cells, 2], row by row."""
    y = (torch.arange(config.height // stride) + 0.5) * stride / config.height
    x = (torch.arange(config.width // stride) + 0.5) * stride / config.width
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).flatten(0, 1)
