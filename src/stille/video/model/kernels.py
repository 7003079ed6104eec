"""What the model computes on GPUs by kernels of its own, each beside the same in plain torch.

They are for looking, not for learning: none has a gradient. As operators of torch they are opaque to `torch.compile`.

B cameras, Q objects, h heads, D width of a head, C = h D, N leaves of an object, E tokens of a leaf, I = N E.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample

from stille.kernels.triton_support import has_triton
from stille.video.model.attention import BoxAttention

_TRITON = has_triton()


def usable(x: Tensor) -> bool:
    """Whether the kernels take it."""
    return _TRITON and x.is_cuda


@torch.library.custom_op("stille::sampled_boxes", mutates_args=())
def sampled_boxes(
    fine: Tensor, middle: Tensor, coarse: Tensor, box: Tensor, said: Tensor, heads: int, points: int
) -> Tensor:
    """[B, Q, C]: sums of bilinear samples of maps around boxes, as `sampled_plainly`; reads maps as they are.

    Args:
        fine, middle, coarse: [B, C, H, W], channels-last.
        box: float32 [B, Q, 4], centre and size.
        said: [B, Q, h 3 P 3]: offsets [h, 3, P, 2] in halves of the box, then logits of weights [h, 3, P].
    """
    from stille.video.model.triton_sight import sample_boxes

    maps = [x.contiguous(memory_format=torch.channels_last) for x in (fine, middle, coarse)]
    return sample_boxes(maps, box.contiguous(), said.contiguous(), heads, points)


@sampled_boxes.register_fake
def _(fine: Tensor, middle: Tensor, coarse: Tensor, box: Tensor, said: Tensor, heads: int, points: int) -> Tensor:
    return said.new_empty(box.shape[0], box.shape[1], fine.shape[1])


def sampled_plainly(maps: list[Tensor], box_BQ4: Tensor, said_BQX: Tensor, heads: int, points: int) -> Tensor:
    """`sampled_boxes` by torch's sampling, in float32."""
    b, q, _ = box_BQ4.shape
    shape = b, q, heads, len(maps), points
    offset, weight = said_BQX.float().split([2 * said_BQX.shape[2] // 3, said_BQX.shape[2] // 3], -1)
    offset, weight = offset.view(*shape, 2), weight.view(b, q, heads, -1).softmax(-1).view(shape)
    centre, size = (part[:, :, None, None, None] for part in box_BQ4.split(2, -1))
    place = (centre + offset * size / 2) * 2 - 1
    out = torch.zeros(b * heads, maps[0].shape[1] // heads, q, device=box_BQ4.device)
    for number, one in enumerate(maps):
        grid = place[:, :, :, number].transpose(1, 2).flatten(0, 1)
        seen = grid_sample(
            one.float().contiguous().unflatten(1, (heads, -1)).flatten(0, 1), grid, align_corners=False,
            padding_mode="border",
        )  # fmt: skip
        out = out + (seen * weight[:, :, :, number].transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)
    return out.unflatten(0, (b, heads)).flatten(1, 2).transpose(1, 2).to(said_BQX.dtype)


class BoxSampling(nn.Module):
    """`BoxAttention` with its parameters, by `sampled_boxes`."""

    def __init__(self, attention: BoxAttention):
        super().__init__()
        self.heads, self.points, self.out = attention.heads, attention.points, attention.out
        parts = attention.offset, attention.weight
        self.weight = nn.Parameter(torch.cat([part.weight for part in parts]), requires_grad=False)
        self.bias = nn.Parameter(torch.cat([part.bias for part in parts]), requires_grad=False)

    def forward(self, x_BQC: Tensor, box_BQ4: Tensor, maps: list[Tensor]) -> Tensor:
        """As `BoxAttention.forward`, but for maps of any dtype, channels-last."""
        said = torch.nn.functional.linear(x_BQC, self.weight, self.bias)
        fine, middle, coarse = maps
        return self.out(sampled_boxes(fine, middle, coarse, box_BQ4, said, self.heads, self.points))


class Tokens:
    """Remembered objects that each object reads alone.

    Args:
        kv_BQI2C: keys and values.
    """

    def __init__(self, kv_BQI2C: Tensor):
        self.kv = kv_BQI2C

    def logits(self, q_BhQD: Tensor) -> Tensor:
        """float32 [B, h, Q, I], products of queries and keys."""
        k = self.kv[:, :, :, 0].to(q_BhQD.dtype).unflatten(-1, (q_BhQD.shape[1], -1))
        return torch.einsum("bhqd,bqihd->bhqi", q_BhQD, k).float()

    def values(self, weight_BhQI: Tensor) -> Tensor:
        """[B, h, Q, D]"""
        v = self.kv[:, :, :, 1].unflatten(-1, (weight_BhQI.shape[1], -1))
        return torch.einsum("bhqi,bqihd->bhqd", weight_BhQI.to(v.dtype), v)


class Leaves:
    """The same, read from where they are in the long memory instead of being gathered first.

    Args:
        long_RLE2C, rows_B: memory, and the rows of it that are meant.
        leaf_BQN, count_BQN: leaves of each object, and how many tokens of each count; of the others logits are 0, and
            their values are not read.
    """

    def __init__(self, long_RLE2C: Tensor, rows_B: Tensor, leaf_BQN: Tensor, count_BQN: Tensor):
        self.held = long_RLE2C, rows_B, leaf_BQN, count_BQN

    def gathered(self) -> Tensor:
        """What `Tokens` takes."""
        long_RLE2C, rows_B, leaf_BQN, _ = self.held
        return long_RLE2C[rows_B[:, None, None], leaf_BQN].flatten(2, 3)

    def logits(self, q_BhQD: Tensor) -> Tensor:
        """As `Tokens.logits`."""
        return leaf_logits(q_BhQD, *self.held)

    def values(self, weight_BhQI: Tensor) -> Tensor:
        """As `Tokens.values`."""
        return leaf_values(weight_BhQI, *self.held).unflatten(-1, (weight_BhQI.shape[1], -1)).transpose(1, 2)


@torch.library.custom_op("stille::leaf_logits", mutates_args=())
def leaf_logits(q: Tensor, long: Tensor, rows: Tensor, leaf: Tensor, count: Tensor) -> Tensor:
    """float32 [B, h, Q, I]; see `Leaves`."""
    from stille.video.model import triton_sight

    return triton_sight.leaf_logits(q, long, rows.contiguous(), leaf.contiguous(), count.contiguous())


@leaf_logits.register_fake
def _(q: Tensor, long: Tensor, rows: Tensor, leaf: Tensor, count: Tensor) -> Tensor:
    return q.new_empty(*q.shape[:3], leaf.shape[2] * long.shape[2], dtype=torch.float32)


@torch.library.custom_op("stille::leaf_values", mutates_args=())
def leaf_values(weight: Tensor, long: Tensor, rows: Tensor, leaf: Tensor, count: Tensor) -> Tensor:
    """[B, Q, C]; see `Leaves`."""
    from stille.video.model import triton_sight

    return triton_sight.leaf_values(weight, long, rows.contiguous(), leaf.contiguous(), count.contiguous())


@leaf_values.register_fake
def _(weight: Tensor, long: Tensor, rows: Tensor, leaf: Tensor, count: Tensor) -> Tensor:
    return long.new_empty(weight.shape[0], weight.shape[2], long.shape[4])


def letterbox(picture_NHW3: Tensor, where_N: Tensor, out_BHW3: Tensor, fit: Any, grey: int) -> None:
    """Scale uint8 pictures as `fit` (a `pictures.Fit`) says, into those places of a batch, grey around them.

    As torch's antialiased bilinear scaling but for one grey level.
    """
    from stille.video.model import triton_sight

    triton_sight.letterbox(picture_NHW3, where_N, out_BHW3, fit, grey)
