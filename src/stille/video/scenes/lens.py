"""From light to the picture that arrives: drops and dirt on the lens, focus, exposure, noise, compression.

Shapes: B clips, T frames, H, W picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from stille.video.scenes.config import SceneConfig
from stille.video.scenes.draw import Draw, constant, mix

_GRAIN = 512  # side of the noise that frames take a piece of


@dataclass(frozen=True, slots=True)
class Lens:
    """
    Attributes:
        gain_BT: exposure; cast_B3: white balance that is off.
        blur_B: 0..1/3, weight of neighbours; noise_B: sensor noise, standard deviation at mid grey.
        quality_B: factor of JPEG's quantisation tables; 0 for none.
        drop_BD3: drops on the lens, centre x, y and radius in parts of the picture's height; 0 for none.
        dirt_B: how much light is lost where dirt is; specks_BD3: as drops.
        contrast_B, black_B: what the camera's processing does.
        noise_GG3: a tile of noise that all clips share; shift_BT2: int64, which piece of it.
    """

    gain_BT: Tensor
    cast_B3: Tensor
    blur_B: Tensor
    noise_B: Tensor
    quality_B: Tensor
    drop_BD3: Tensor
    dirt_B: Tensor
    specks_BD3: Tensor
    contrast_B: Tensor
    black_B: Tensor
    noise_GG3: Tensor
    shift_BT2: Tensor


def build_lens(draw: Draw, config: SceneConfig, moment_BT: Tensor, dark_B: Tensor) -> Lens:
    """Lenses of these clips.

    Args:
        dark_B: 0..1, how little light there is: exposure and noise go up.
    """
    hard = config.difficulty
    span = moment_BT[:, -1:].float().clamp(min=1.0)
    step = draw.chance("exposure step", 1, p=0.25 * hard) * (moment_BT > draw.uniform("exposure when", 1) * span)
    gain = draw.uniform("exposure", 1, low=0.75, high=1.3) * (
        1 + step * draw.uniform("exposure by", 1, low=-0.5, high=0.9)
    )
    gain = gain * (1 + 0.9 * dark_B[:, None])
    cast = 1 + draw.uniform("cast", 3, low=-0.22, high=0.22) * hard
    blur = draw.uniform("blur", low=0.06, high=0.12) + draw.chance("blurred", p=0.3 * hard) * draw.uniform(
        "blur by", high=0.2
    )
    noise = (0.006 + hard * draw.uniform("noise", low=0.0, high=0.05)) * (1 + 1.5 * dark_B)
    quality = draw.uniform("quality", low=0.3, high=3.0) * draw.chance("compressed", p=0.25 + 0.65 * hard)
    drops = 10
    drop = draw.uniform("drop", drops, 3) * constant((1.9, 1.0, 0.07), draw.device)
    rain = draw.chance("rain", 1, 1, p=0.18 * hard)
    specks = draw.uniform("speck", drops, 3) * constant((1.9, 1.0, 0.13), draw.device)
    dirt = draw.uniform("dirt", low=0.1, high=0.6) * draw.chance("dirty", p=0.3 * hard)
    contrast = draw.uniform("contrast", low=0.85, high=1.2)
    return Lens(
        gain, cast, blur, noise, quality, drop * rain, dirt, specks, contrast, draw.uniform("black", high=0.06) * hard,
        noise_tile(draw.device), draw.integer("noise at", moment_BT.shape[1], 2, below=_GRAIN),
    )  # fmt: skip


@lru_cache(maxsize=4)
def noise_tile(device: torch.device) -> Tensor:
    """Noise [G, G, 3] of mean 0 and deviation 1: sums of uniform numbers, without transcendentals."""
    index = torch.arange(_GRAIN * _GRAIN * 3, device=device).reshape(_GRAIN, _GRAIN, 3)
    bits = mix(index)
    parts = torch.stack([((bits >> (16 * i)) & 0xFFFF).float() / 65536 for i in range(4)])
    return (parts.sum(0) - 2.0) * math.sqrt(3.0)


def _cosines(device: torch.device) -> tuple[Tensor, Tensor]:
    """The DCT of 8 values [8, 8], and quantisation steps [3, 8, 8] that rise with frequency, for 0..255."""
    k = torch.arange(8, dtype=torch.float32, device=device)
    scale = torch.where(k == 0, math.sqrt(0.125), 0.5)[:, None]
    rise = k[:, None] + k
    chroma = 20 + 16 * rise
    return torch.cos((2 * k + 1) * k[:, None] * math.pi / 16) * scale, torch.stack([12 + 7 * rise, chroma, chroma])


def compress(image: Tensor, quality_B: Tensor) -> Tensor:
    """Pictures [B, T, H, W, 3] of 0..255 as after quantising the DCT of 8x8 blocks in luma and chroma.

    Rows and columns beyond a multiple of 8 stay as they are, and so do clips whose quality is 0.
    """
    b, t, h, w, _ = image.shape
    h, w = h // 8 * 8, w // 8 * 8
    part = image[:, :, :h, :w] - 128
    r, g, bl = part.unbind(-1)
    luma = 0.299 * r + 0.587 * g + 0.114 * bl
    planes = torch.stack([luma, 0.564 * (bl - luma), 0.713 * (r - luma)], 2)
    basis, steps = _cosines(image.device)
    blocks = planes.reshape(b, t, 3, h // 8, 8, w // 8, 8).transpose(4, 5)
    step = (steps * quality_B[:, None, None, None]).clamp(min=1e-3)[:, None, :, None, None]
    # Products with one matrix on the right are one large product; those on the left would be many tiny ones.
    half = (blocks @ basis.T).transpose(-1, -2)
    coded = torch.round(half @ basis.T / step) * step  # turned over, as are the steps, which are the same then
    back = (coded @ basis).transpose(-1, -2) @ basis
    luma, blue, red = back.transpose(4, 5).reshape(b, t, 3, h, w).unbind(2)
    r, bl = luma + red / 0.713, luma + blue / 0.564
    green = (luma - 0.299 * r - 0.114 * bl) / 0.587
    coded = torch.stack([r, green, bl], -1) + 128
    out = image.clone()
    out[:, :, :h, :w] = torch.where((quality_B > 0)[:, None, None, None, None], coded, part + 128)
    return out


def through_lens(light: Tensor, lens: Lens) -> Tensor:
    """uint8 pictures [B, T, H, W, 3] of linear light."""
    b, t, h, w, _ = light.shape
    y, x = torch.meshgrid(torch.arange(h, device=light.device), torch.arange(w, device=light.device), indexing="ij")
    fx, fy = (x.float() + 0.5) / h, (y.float() + 0.5) / h

    # A drop shows its surroundings upside down and small: pixels are taken from the other side of its centre.
    take_x, take_y = fx.expand(b, h, w), fy.expand(b, h, w)
    for i in range(lens.drop_BD3.shape[1]):
        cx, cy, radius = (v[:, None, None] for v in lens.drop_BD3[:, i].unbind(-1))
        dx, dy = fx - cx, fy - cy
        inside = dx * dx + dy * dy < radius * radius
        take_x, take_y = torch.where(inside, cx - dx * 2.2, take_x), torch.where(inside, cy - dy * 2.2, take_y)
    column = (take_x * h).long().clamp(0, w - 1)
    row = (take_y * h).long().clamp(0, h - 1)
    at = (row * w + column).reshape(b, 1, -1, 1).expand(-1, t, -1, 3)
    image = light.flatten(2, 3).gather(2, at).reshape(light.shape)

    loss = torch.zeros(b, h, w, device=light.device)
    for i in range(lens.specks_BD3.shape[1]):
        cx, cy, radius = (v[:, None, None] for v in lens.specks_BD3[:, i].unbind(-1))
        near = 1 - ((fx - cx) ** 2 + (fy - cy) ** 2) / (radius * radius + 1e-6)
        loss = torch.maximum(loss, near.clamp(0, 1))
    loss = (loss * lens.dirt_B[:, None, None])[:, None, ..., None]
    image = image * (1 - loss) + 0.12 * loss

    side = lens.blur_B[:, None, None, None, None]
    for dim in (2, 3):
        before = torch.cat([image.narrow(dim, 0, 1), image.narrow(dim, 0, image.shape[dim] - 1)], dim)
        after = torch.cat([image.narrow(dim, 1, image.shape[dim] - 1), image.narrow(dim, image.shape[dim] - 1, 1)], dim)
        image = image * (1 - 2 * side) + (before + after) * side

    image = exposed(image, lens)
    rows = (y + lens.shift_BT2[..., 0, None, None]) % _GRAIN
    columns = (x + lens.shift_BT2[..., 1, None, None]) % _GRAIN
    noise = lens.noise_GG3[rows, columns]
    image = image + noise * lens.noise_B[:, None, None, None, None] * (0.3 + image).sqrt()
    return compress(toned(image, lens) * 255, lens.quality_B).round().clamp(0, 255).to(torch.uint8)


def exposed(light: Tensor, lens: Lens) -> Tensor:
    """Linear light [B, T, X, Y, 3] as the sensor takes it."""
    return (light * lens.gain_BT[:, :, None, None, None] * lens.cast_B3[:, None, None, None]).clamp(0, 1.5)


def toned(image: Tensor, lens: Lens) -> Tensor:
    """What the sensor took as the camera shows it, about 0..1."""
    image = image.clamp(0, 1) ** (1 / 2.2)
    black = lens.black_B[:, None, None, None, None]
    return ((image - 0.45) * lens.contrast_B[:, None, None, None, None] + 0.45) * (1 - black) + black
