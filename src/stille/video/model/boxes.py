"""Boxes: x0, y0, x1, y1 ("corners") or centre and size ("centred"), in 0..1 of the picture, on the last axis."""

import math

import torch
from torch import Tensor


def to_corners(box: Tensor) -> Tensor:
    """From centre and size."""
    centre, size = box.split(2, -1)
    return torch.cat([centre - size / 2, centre + size / 2], -1)


def to_centred(box: Tensor) -> Tensor:
    """From corners."""
    low, high = box.split(2, -1)
    return torch.cat([(low + high) / 2, high - low], -1)


def area(box: Tensor) -> Tensor:
    """Of corners; 0 where they are out of order."""
    return _product(box[..., 2:] - box[..., :2])


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of corners that broadcast against each other."""
    return _overlap(a, b)[0]


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised intersection over union (H. Rezatofighi et al., CVPR 2019), -1 to 1."""
    shared, union = _overlap(a, b)
    low, high = torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])
    hull = _product(high - low)
    return shared - (hull - union) / hull.clamp(min=1e-9)


def _overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    shared = _product(high - low)
    union = area(a) + area(b) - shared
    return shared / union.clamp(min=1e-9), union


def _product(size: Tensor) -> Tensor:
    """Of sizes that may be negative. The gradient of `prod` would ask the device how many factors are 0, and wait."""
    wide, tall = size.clamp(min=0).unbind(-1)
    return wide * tall


def inverse_sigmoid(x: Tensor) -> Tensor:
    """Finite for 0 and 1."""
    return torch.logit(x, eps=1e-4)


def waves(box: Tensor, dim: int) -> Tensor:
    """Sines and cosines of the four numbers of boxes, [.., dim]; wavelengths from 2 pictures to 2 / 2^7 of one."""
    count = dim // 8
    frequency = math.pi * 2.0 ** torch.linspace(0, 7, count, device=box.device)
    angle = (box.float().unsqueeze(-1) * frequency).flatten(-2)
    return torch.cat([angle.sin(), angle.cos()], -1)
