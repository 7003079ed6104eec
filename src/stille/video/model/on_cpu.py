"""The same network on CPUs with less moving of numbers: feature maps stay channels-last, box attention reads rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag, pad, scaled_dot_product_attention

from stille.video.model.attention import BoxAttention, MemoryAttention, split
from stille.video.model.network import StilleCamNet


class Map(Tensor):
    """A feature map, channels-last, that is left so: the decoder's copies for the layout of GPUs are not made."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if func is Tensor.contiguous:
                return args[0]
            out = func(*args, **kwargs)
        return out.as_subclass(cls) if func in (Tensor.float, Tensor.flatten) else out


class Rows:
    """Cells of all maps of a frame as [B N heads, C / heads], made once for all layers."""

    def __init__(self) -> None:
        self.maps: list[Tensor] = []
        self.row_XD = torch.zeros(0)

    def of(self, maps: list[Tensor], heads: int) -> Tensor:
        if self.maps is not maps:
            self.maps = maps
            plain = [x.as_subclass(Tensor).flatten(2).transpose(1, 2) for x in maps]
            self.row_XD = torch.cat(plain, 1).reshape(-1, plain[0].shape[2] // heads)
        return self.row_XD


class RowAttention(nn.Module):
    """`BoxAttention` with its parameters: bilinear sampling as a weighted sum of rows.

    All points of a query and head are one bag: what `grid_sample` gathers number by number, and what is weighted and
    summed after it, is one pass over whole rows here. Y: heads x maps x points.
    """

    def __init__(self, attention: BoxAttention, rows: Rows):
        super().__init__()
        self.heads, self.maps, self.points, self.rows = attention.heads, attention.maps, attention.points, rows
        self.offset, self.weight, self.out = attention.offset, attention.weight, attention.out
        self._shapes: list[Any] = []
        self._constants: tuple[Tensor, ...] = ()

    def forward(self, x_BQC: Tensor, box_BQ4: Tensor, maps: list[Tensor]) -> Tensor:
        """As `BoxAttention.forward`."""
        b, q, _ = x_BQC.shape
        wide_Y, high_Y, low_Y, right_Y, below_Y = self._layout([x.shape[2:] for x in maps])
        offset = self.offset(x_BQC).float().view(b, q, -1, 2)
        weight = self.weight(x_BQC).float().view(b, q, self.heads, -1).softmax(-1).view(b, q, -1)
        (x, y), (width, height) = box_BQ4[..., :2].split(1, -1), (box_BQ4[..., 2:] / 2).split(1, -1)
        x = torch.minimum(((x + offset[..., 0] * width) * wide_Y - 0.5).clamp_(min=0), wide_Y - 1)
        y = torch.minimum(((y + offset[..., 1] * height) * high_Y - 0.5).clamp_(min=0), high_Y - 1)
        left, top = x.floor(), y.floor()
        x, y = x - left, y - top
        cells = sum(one.shape[2] * one.shape[3] for one in maps)
        row = (top * wide_Y + left).long() * self.heads + low_Y
        row += torch.arange(b)[:, None, None] * (cells * self.heads)
        # beyond the last column or row there is nothing, with a weight of 0
        right, below = torch.where(x > 0, right_Y, 0), torch.where(y > 0, below_Y, 0)
        lower = row + below
        of_right, of_left = weight * x, weight * (1 - x)
        corners = row, row + right, lower, lower + right
        shares = of_left * (1 - y), of_right * (1 - y), of_left * y, of_right * y
        row, share = (torch.stack([x.view(b * q * self.heads, -1) for x in four], 1) for four in (corners, shares))
        out = embedding_bag(
            row.flatten(1), self.rows.of(maps, self.heads), per_sample_weights=share.flatten(1), mode="sum"
        )
        return self.out(out.view(b, q, -1).to(x_BQC.dtype))

    def _layout(self, shapes: list[Any]) -> tuple[Tensor, ...]:
        """Of each head, map and point: width and height of the map, its first row, and steps to the right and down."""
        if shapes != self._shapes:
            self._shapes = shapes
            high, wide = torch.tensor(shapes).unbind(1)
            cells = high * wide
            head = torch.arange(self.heads)[:, None, None]
            columns = wide, high, (cells.cumsum(0) - cells) * self.heads, torch.full_like(wide, self.heads)
            spread = [(x[None, :, None] + 0 * head).expand(-1, -1, self.points) for x in (*columns, wide * self.heads)]
            spread[2] = spread[2] + head
            self._constants = tuple(x.flatten().float() if i < 2 else x.flatten() for i, x in enumerate(spread))
        return self._constants


class SharedMemory:
    """Keys and values of a frame by heads, [B, h, 1 + J, D], made once for all layers; the first place is free."""

    def __init__(self) -> None:
        self.kv: Tensor | None = None
        self.bias: Tensor | None = None
        self.k, self.v, self.biases = torch.zeros(0), torch.zeros(0), torch.zeros(0)

    def of(self, kv_BJ2C: Tensor, bias_BhJ: Tensor, heads: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        if self.kv is not kv_BJ2C or self.bias is not bias_BhJ:
            self.kv, self.bias = kv_BJ2C, bias_BhJ
            both = pad(kv_BJ2C.to(dtype), (0, 0, 0, 0, 1, 0))
            self.k, self.v = (split(x, heads).contiguous() for x in both.unbind(2))
            self.biases = pad(bias_BhJ, (1, 0))[:, :, None].to(dtype)
        return self.k, self.v, self.biases


class SharedAttention(nn.Module):
    """`MemoryAttention` with its parameters, which does not lay out the same memory in each layer again."""

    def __init__(self, attention: MemoryAttention, memory: SharedMemory):
        super().__init__()
        self.heads, self.memory = attention.heads, memory
        self.q, self.out, self.nothing = attention.q, attention.out, attention.nothing

    def forward(self, x_BQC: Tensor, kv_BJ2C: Tensor, bias_BhJ: Tensor) -> Tensor:
        """As `MemoryAttention.forward`."""
        q = split(self.q(x_BQC), self.heads)
        k, v, bias = self.memory.of(kv_BJ2C, bias_BhJ, self.heads, q.dtype)
        k[:, :, 0], v[:, :, 0] = self.nothing.view(2, self.heads, -1)
        out = scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.out(out.transpose(1, 2).flatten(2))


def adapt(network: StilleCamNet) -> None:
    """Put these parts into a network; what it computes stays the same but for rounding."""
    rows, memory = Rows(), SharedMemory()
    for module in list(network.decoder.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, BoxAttention):
                setattr(module, name, RowAttention(child, rows))
            elif isinstance(child, MemoryAttention):
                setattr(module, name, SharedAttention(child, memory))
