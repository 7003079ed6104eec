"""From pictures to three fused feature maps, at strides 8, 16 and 32."""

import torch
from torch import Tensor, nn, relu_
from torch.nn.functional import interpolate
from torch.nn.utils.fusion import fuse_conv_bn_eval

from stille.video.model.config import StilleCamConfig


class Conv(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, inside: int, outside: int, side: int = 3, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, side, stride, side // 2, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(outside)

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

    def fold(self) -> None:
        """Take all batch norms into their convolutions."""
        for module in self.modules():
            if isinstance(module, Conv):
                module.fold()
