"""What the decoders are made of. B batch, Q queries, J keys, C width, h heads, P points."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, grid_sample, scaled_dot_product_attention

BUCKETS = 16
SHORTEST = 1 / 32  # seconds


class MLP(nn.Module):
    """Two linear maps around a GELU."""

    def __init__(self, inside: int, hidden: int, outside: int):
        super().__init__()
        self.up, self.down = nn.Linear(inside, hidden), nn.Linear(hidden, outside)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(gelu(self.up(x)))


class AgeBias(nn.Module):
    """A learned number per head for how long ago something was, linear between ages of 2^n / 32 seconds."""

    def __init__(self, heads: int):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(BUCKETS, heads))

    def forward(self, age: Tensor) -> Tensor:
        """float32 [.., heads] for ages in seconds; negative ones count as 0."""
        place = torch.log2(1 + age.clamp(min=0) / SHORTEST).float().clamp(max=BUCKETS - 1.001)
        steps = torch.arange(BUCKETS, device=place.device, dtype=torch.float32)
        near = (1 - (place.unsqueeze(-1) - steps).abs()).clamp(min=0)
        with torch.autocast(place.device.type, enabled=False):
            return near @ self.table.float()  # not table[index]: its gradient sorts all ages, and adds one by one


class SelfAttention(nn.Module):
    """Of objects to each other; position counts in queries and keys only."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qk, self.v, self.out = nn.Linear(dim, 2 * dim), nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x_BQC: Tensor, position_BQC: Tensor, mask: Tensor | None = None) -> Tensor:
        """`mask`: bool [B, 1, Q or 1, Q], True where a key may be read; each row needs one."""
        q, k = self.qk(x_BQC + position_BQC).chunk(2, -1)
        q, k, v = (split(x, self.heads) for x in (q, k, self.v(x_BQC)))
        return self.out(scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))


class MemoryAttention(nn.Module):
    """To keys and values that were made when they were remembered; a learned pair is there when nothing else is."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.nothing = nn.Parameter(torch.zeros(2, dim))

    def forward(self, x_BQC: Tensor, kv_BJ2C: Tensor, bias_BhJ: Tensor) -> Tensor:
        """`bias_BhJ`: float32, -inf where a key does not count."""
        nothing = self.nothing.to(kv_BJ2C.dtype).expand(len(kv_BJ2C), 1, -1, -1)
        k, v = (split(x, self.heads) for x in torch.cat([nothing, kv_BJ2C], 1).unbind(2))
        q = split(self.q(x_BQC), self.heads)
        bias = torch.cat([bias_BhJ.new_zeros(*bias_BhJ.shape[:2], 1), bias_BhJ], 2)[:, :, None].to(q.dtype)
        out = scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype), attn_mask=bias)
        return self.out(out.transpose(1, 2).flatten(2))


class BoxAttention(nn.Module):
    """Samples feature maps around a box, where and with which weight the query says.

    Deformable attention (X. Zhu et al., ICLR 2021) on maps that are their own values; offsets are in halves of the box.
    """

    def __init__(self, dim: int, heads: int, maps: int, points: int):
        super().__init__()
        self.heads, self.maps, self.points = heads, maps, points
        self.offset = nn.Linear(dim, heads * maps * points * 2)
        self.weight = nn.Linear(dim, heads * maps * points)
        self.out = nn.Linear(dim, dim)
        nn.init.zeros_(self.offset.weight)
        angle = torch.arange(heads) * (2 * math.pi / heads)
        ray = torch.stack([angle.cos(), angle.sin()], -1)[:, None, None]
        reach = (torch.arange(points) + 1)[None, None, :, None] / points
        with torch.no_grad():
            self.offset.bias.copy_((ray * reach).expand(-1, maps, -1, -1).flatten())
        nn.init.zeros_(self.weight.weight)
        nn.init.zeros_(self.weight.bias)

    def forward(self, x_BQC: Tensor, box_BQ4: Tensor, maps: list[Tensor]) -> Tensor:
        """`box_BQ4`: float32, centre and size; `maps`: float32 [B, C, H, W] each."""
        b, q, _ = x_BQC.shape
        shape = b, q, self.heads, self.maps, self.points
        offset = self.offset(x_BQC).float().view(*shape, 2)
        weight = self.weight(x_BQC).float().view(b, q, self.heads, -1).softmax(-1).view(shape)
        centre, size = (part[:, :, None, None, None] for part in box_BQ4.split(2, -1))
        place = (centre + offset * size / 2) * 2 - 1  # -1 and 1 are the picture's edges
        out = 0.0
        for number, features in enumerate(maps):
            grid = place[:, :, :, number].transpose(1, 2).flatten(0, 1)
            heads = features.unflatten(1, (self.heads, -1)).flatten(0, 1)
            seen = grid_sample(heads, grid, align_corners=False, padding_mode="border")  # [B h, C/h, Q, P]
            out = out + (seen * weight[:, :, :, number].transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)
        joined = torch.as_tensor(out).unflatten(0, (b, self.heads)).flatten(1, 2).transpose(1, 2)
        return self.out(joined.to(x_BQC.dtype))


def split(x: Tensor, heads: int) -> Tensor:
    """[B, N, C] as [B, h, N, C/h]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)
