"""From pictures to three fused feature maps, at strides 8, 16 and 32.

There are two shapes: `Backbone`, which learns from nothing, and `CocoBackbone`, which begins with what NanoDet-g knows
of COCO. The larger part of each, `in_bytes`, is convolutions with ReLU, so that it can compute in 8 bits.
"""

import torch
from torch import Tensor, nn, relu_
from torch.nn.functional import interpolate, max_pool2d, pad
from torch.nn.utils.fusion import fuse_conv_bn_eval

from stille.video.model.config import StilleCamConfig


class Conv(nn.Module):
    """Convolution, batch norm unless there is to be none, ReLU."""

    def __init__(self, inside: int, outside: int, side: int = 3, stride: int = 1, norm: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, side, stride, side // 2, bias=not norm)
        self.norm: nn.Module = nn.BatchNorm2d(outside) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return relu_(self.norm(self.conv(x)))

    def fold(self) -> None:
        """Take the batch norm into the convolution; the same function in evaluation mode."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv = fuse_conv_bn_eval(self.conv, self.norm)
            self.norm = nn.Identity()


class Stage(nn.Module):
    """Half of the channels go through residual blocks of two convolutions, the outputs of all are mixed.

    The split is that of cross-stage partial networks (C.-Y. Wang et al., CVPRW 2020): it halves the work at high
    resolution.
    """

    def __init__(self, width: int, depth: int):
        super().__init__()
        half = width // 2
        self.inside = Conv(width, width, 1)
        self.blocks = nn.ModuleList(nn.Sequential(Conv(half, half), Conv(half, half)) for _ in range(depth))
        self.outside = Conv(width + half * depth, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.inside(x).chunk(2, 1))
        for block in self.blocks:
            parts.append(parts[-1] + block(parts[-1]))
        return self.outside(torch.cat(parts, 1))


class Backbone(nn.Module):
    """Features of pictures: p8 [B, dim, H/8, W/8], p16 and p32. The first is made of few channels: it is large."""

    def __init__(self, config: StilleCamConfig):
        super().__init__()
        first, *widths = config.widths
        self.stem = Conv(3, first, 3, 2)
        self.stages = nn.ModuleList()
        before = first
        for width, depth in zip(widths, config.depths, strict=True):
            self.stages.append(nn.Sequential(Conv(before, width, 3, 2), Stage(width, depth)))
            before = width
        dim = config.dim
        slim = dim // 4
        self.side8, self.from16 = Conv(widths[1], slim, 1), Conv(dim, slim, 1)
        self.fuse8 = nn.Sequential(Conv(slim, slim), Conv(slim, dim, 1))
        self.side16, self.side32 = Conv(widths[2], dim, 1), Conv(widths[3], dim, 1)
        self.fuse16 = Stage(dim, 1)
        self.down = Conv(dim, dim, 3, 2)
        self.fuse32 = Stage(dim, 1)

    def forward(self, picture_B3HW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.stem(picture_B3HW)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        coarse = self.side32(maps[3])
        middle = self.fuse16(self.side16(maps[2]) + interpolate(coarse, scale_factor=2.0, mode="nearest"))
        fine = self.fuse8(self.side8(maps[1]) + interpolate(self.from16(middle), scale_factor=2.0, mode="nearest"))
        return fine, middle, self.fuse32(coarse + self.down(middle))

    @property
    def in_bytes(self) -> nn.Module:
        """The part that can compute in 8 bits: all of it."""
        return self

    def joined(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What is left to do after `in_bytes`."""
        return maps

    def fold(self) -> None:
        """Take all batch norms into their convolutions."""
        for module in self.modules():
            if isinstance(module, Conv):
                module.fold()


class Part(nn.Module):
    """Of NanoDet-g's body: blocks of two convolutions, of which each hands on what both say; twice `width` channels."""

    def __init__(self, inside: int, width: int, depth: int, stride: int):
        super().__init__()
        half = width // 2
        self.first = Conv(inside, width, 3, stride, norm=False)
        self.blocks = nn.ModuleList(
            nn.Sequential(Conv(width, half, norm=False), Conv(half, half, norm=False)) for _ in range(depth)
        )
        self.last = Conv(width, width, norm=False)

    def forward(self, x: Tensor) -> Tensor:
        x = first = self.first(x)
        one: nn.Module
        two: nn.Module
        for one, two in self.blocks:  # pyright: ignore[reportGeneralTypeIssues]
            y = one(x)
            x = torch.cat([two(y), y], 1)
        return torch.cat([self.last(x), first], 1)


class Body(nn.Module):
    """From pictures to maps of 128, 256 and 512 channels (with the base's widths) at strides 8, 16 and 32."""

    def __init__(self, config: StilleCamConfig):
        super().__init__()
        first, *widths = config.widths
        self.stem = Conv(3, first, 3, 2, norm=False)
        self.parts = nn.ModuleList()
        before = first
        for i, (width, depth) in enumerate(zip(widths, config.depths, strict=True)):
            self.parts.append(Part(before, width, depth, 2 if i else 1))
            before = 2 * width

    def forward(self, picture_B3HW: Tensor) -> tuple[Tensor, ...]:
        x, maps = peaks(self.stem(picture_B3HW)), []
        for part in self.parts:
            x = part(x)
            maps.append(x)
        return tuple(maps[1:])


class CocoBackbone(nn.Module):
    """NanoDet-g's body, its fused maps, and what its heads make of them, side by side: p8 [B, dim, H/8, W/8], p16, p32.

    The detector (RangiLyu/nanodet, Apache-2.0) fuses by sums (PAN, S. Liu et al., CVPR 2018) of half of `dim` channels;
    with LeakyReLU, which bytes do not suit, ReLU here.
    """

    def __init__(self, config: StilleCamConfig):
        super().__init__()
        half = config.dim // 2
        self.body = Body(config)
        self.sides = nn.ModuleList(nn.Conv2d(2 * width, half, 1) for width in config.widths[2:])
        self.heads = nn.ModuleList(Conv(half, half, norm=False) for _ in range(3))

    def forward(self, picture_B3HW: Tensor) -> tuple[Tensor, ...]:
        return self.joined(self.body(picture_B3HW))

    @property
    def in_bytes(self) -> nn.Module:
        """The part that can compute in 8 bits."""
        return self.body

    def joined(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What is left to do after `in_bytes`."""
        fine, middle, coarse = (side(x) for side, x in zip(self.sides, maps, strict=True))
        middle = middle + scaled(coarse, 2.0)
        fine = fine + scaled(middle, 2.0)
        middle = middle + scaled(fine, 0.5)
        coarse = coarse + scaled(middle, 0.5)
        fused = fine, middle, coarse
        return tuple(torch.cat([x, head(x)], 1) for head, x in zip(self.heads, fused, strict=True))

    def fold(self) -> None:
        """There are no batch norms."""


def scaled(x: Tensor, factor: float) -> Tensor:
    return interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


def peaks(x: Tensor) -> Tensor:
    """The largest of 3 x 3 numbers that are not negative, at every second place."""
    if x.dtype != torch.uint8:
        return max_pool2d(x, 3, 2, 1)
    x = pad(x, (1, 0, 1, 0))  # torch has no pooling of bytes that lie channels-last
    wide = torch.maximum(torch.maximum(x[..., 0:-1:2], x[..., 1::2]), pad(x, (0, 1))[..., 2::2])
    return torch.maximum(torch.maximum(wide[..., 0:-1:2, :], wide[..., 1::2, :]), pad(wide, (0, 0, 0, 1))[..., 2::2, :])
