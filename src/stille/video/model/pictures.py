"""Pictures of any size as the network takes them: scaled with their aspect kept, grey where nothing is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from stille.video.model import kernels

GREY = 114  # the mean that the network takes off: as zero as what convolutions pad with
ALIKE = 1 / 32
"""Aspects that differ by no more than this count as the same. Sides of the network's pictures are multiples of 32,
which those of usual cameras are not: so small a difference is not worth a border."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Where a camera's picture lies in the network's, in pixels of that: the rest is border."""

    left: int
    top: int
    wide: int
    high: int
    whole: tuple[int, int]

    @property
    def inside(self) -> tuple[float, float, float, float]:
        """x0, y0, width, height in 0..1 of the network's picture."""
        width, height = self.whole
        return self.left / width, self.top / height, self.wide / width, self.high / height


@lru_cache(maxsize=1024)
def fitted(size: tuple[int, int], whole: tuple[int, int]) -> Fit:
    """A picture of `size` (width, height) in the middle of a network's of size `whole`."""
    scale = whole[0] / size[0], whole[1] / size[1]
    least = min(scale)
    if max(scale) <= (1 + ALIKE) * least:
        return Fit(0, 0, *whole, whole)
    wide, high = (min(most, max(1, round(side * least))) for side, most in zip(size, whole, strict=True))
    return Fit((whole[0] - wide) // 2, (whole[1] - high) // 2, wide, high, whole)


def to_picture(box_N4: Tensor, inside: Sequence[float] | Tensor) -> Tensor:
    """Boxes by their corners, from 0..1 of the network's picture to 0..1 of what lies `inside` (see `Fit`)."""
    corner, size = torch.as_tensor(inside, dtype=torch.float32, device=box_N4.device).split(2, -1)
    return torch.cat([(part - corner) / size for part in box_N4.split(2, -1)], -1)


def to_network(box_N4: Tensor, inside: Sequence[float] | Tensor) -> Tensor:
    """The way back of `to_picture`."""
    corner, size = torch.as_tensor(inside, dtype=torch.float32, device=box_N4.device).split(2, -1)
    return torch.cat([part * size + corner for part in box_N4.split(2, -1)], -1)


def uploaded(image: Any, device: torch.device) -> Tensor:
    """A picture, an array or a tensor wherever it is, on the device.

    To a GPU through pinned memory, without waiting: torch keeps the memory that it pinned until the copy is done, and
    who pinned it himself (`pin_for_cuda`) must leave it alone until `StilleCam.see` returns, which waits for all.
    """
    return _ready(image, device).to(device, non_blocking=True)


def _ready(image: Any, device: torch.device) -> Tensor:
    """A tensor that the device can copy from by itself."""
    if not isinstance(image, Tensor):
        image = torch.from_numpy(np.require(image, requirements=("C", "W")))
    return image if device.type != "cuda" or image.is_cuda or image.is_pinned() else image.pin_memory()


def letterboxed(
    images: Sequence[Any], fits: Sequence[Fit], device: torch.device, into_NHW3: Tensor | None = None
) -> Tensor:
    """uint8 [N, height, width, 3] on the device, of uint8 [H, W, 3] arrays and tensors; see `uploaded`.

    On a GPU pictures of one size are scaled by one call.

    Args:
        into_NHW3: where they are written to, on the device.
    """
    width, height = fits[0].whole
    if into_NHW3 is not None or kernels.usable(torch.empty(0, device=device)):
        shape = len(images), height, width, 3
        out = torch.empty(shape, dtype=torch.uint8, device=device) if into_NHW3 is None else into_NHW3
        if kernels.usable(out):
            _by_kernel(images, fits, out)
        else:
            out.copy_(letterboxed(images, fits, device))
        return out
    parts: dict[Any, list[int]] = {}
    for i, image in enumerate(images):
        parts.setdefault(tuple(image.shape) if device.type == "cuda" else i, []).append(i)
    out = torch.empty(len(images), height, width, 3, dtype=torch.uint8, device=device)
    for at in parts.values():
        fit = fits[at[0]]
        up = [uploaded(images[i], device) for i in at]
        picture = resized(torch.stack(up) if len(up) > 1 else up[0][None], fit.wide, fit.high)
        if len(parts) == 1 and (fit.wide, fit.high) == fit.whole:
            return picture
        for i, one_HW3 in zip(at, picture, strict=True):
            if (fit.wide, fit.high) != fit.whole:
                out[i] = GREY
            out[i, fit.top : fit.top + fit.high, fit.left : fit.left + fit.wide] = one_HW3
    return out


def _by_kernel(images: Sequence[Any], fits: Sequence[Fit], out_NHW3: Tensor) -> None:
    """Straight into its place what fits as it is, the rest by one kernel for each size."""
    device, whole = out_NHW3.device, tuple(out_NHW3.shape[1:])
    parts: dict[Any, list[int]] = {}
    for i, image in enumerate(images):
        parts.setdefault(tuple(image.shape), []).append(i)
    for i in parts.pop(whole, []):
        out_NHW3[i].copy_(_ready(images[i], device), non_blocking=True)
    places = torch.tensor([i for at in parts.values() for i in at], dtype=torch.int64)
    where = uploaded(places, device) if parts else places
    for (high, wide, _), at in parts.items():
        raw = torch.empty(len(at), high, wide, 3, dtype=torch.uint8, device=device)
        for one, i in zip(raw, at, strict=True):
            one.copy_(_ready(images[i], device), non_blocking=True)
        here, where = where.split([len(at), len(where) - len(at)])
        kernels.letterbox(raw, here, out_NHW3, fits[at[0]], GREY)


def resized(frame_NHW3: Tensor, width: int, height: int) -> Tensor:
    """uint8 pictures of another size, antialiased; the aspect is not kept."""
    if frame_NHW3.shape[1:3] == (height, width):
        return frame_NHW3
    picture = frame_NHW3.permute(0, 3, 1, 2)
    on_gpu = picture.is_cuda
    out = interpolate(picture.float() if on_gpu else picture, (height, width), mode="bilinear", antialias=True)
    if on_gpu:
        out = out.round_().clamp_(0, 255).to(torch.uint8)
    return out.permute(0, 2, 3, 1).contiguous()
