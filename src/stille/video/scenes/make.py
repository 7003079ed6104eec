"""Rendered clips: `make_clips` with the ray-caster, on a CPU or a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from stille.errors import ConfigError
from stille.video.scenes.camera import Camera
from stille.video.scenes.clips import Clips
from stille.video.scenes.config import SceneConfig
from stille.video.scenes.draw import Draw, clip_seeds
from stille.video.scenes.graph import Scenes, build_scenes
from stille.video.scenes.lens import Lens, build_lens, through_lens
from stille.video.scenes.outline import primitive_boxes
from stille.video.scenes.primitives import Primitives
from stille.video.scenes.shade import Light, build_light, shade
from stille.video.scenes.trace import Traced, trace
from stille.video.scenes.truth import make_clips_of, seen_pixels

Method = Literal["torch", "triton"]


def make_clips(
    batch: int,
    frames: int,
    size: tuple[int, int] = (640, 352),
    seed: int | Tensor = 0,
    *,
    config: SceneConfig | None = None,
    device: torch.device | str = "cpu",
    method: Method | None = None,
    chunk: int | None = None,
    compiled: bool | None = None,
) -> Clips:
    """Clips of synthetic warehouses with their truth.

    A clip depends on its seed, `frames`, `size` and `config` alone. On a CPU it is the same, bit for bit, in every
    batch.

    Args:
        size: width and height.
        seed: of the batch (clip i has seed i of `clip_seeds`), or an int64 tensor [B] with one for each clip.
        method: which ray-caster; default Triton's on GPUs.
        chunk: clips that are rendered at once, for memory; default 1 on a CPU, on a GPU as many as make 64 frames.
        compiled: whether shading goes through `torch.compile`; default on GPUs.

    Raises:
        ConfigError: batch, frames or size are not positive, or there are not `batch` seeds.
    """
    if batch < 1 or frames < 1 or min(size) < 8:
        raise ConfigError(
            f"make_clips got {batch} clips of {frames} frames of {size[0]}x{size[1]}; give at least 1 of 1 of 8x8"
        )
    device = torch.device(device)
    seed_B = clip_seeds(seed, batch, device) if isinstance(seed, int) else seed.to(device)
    if seed_B.shape != (batch,):
        raise ConfigError(
            f"make_clips got seeds of shape {tuple(seed_B.shape)}; expected ({batch},), one for each clip"
        )
    config = config or SceneConfig()
    on_gpu = device.type == "cuda"
    chunk = chunk or (max(1, 64 // frames) if on_gpu else 1)
    method = method or ("triton" if on_gpu else "torch")
    look = _compiled() if (on_gpu if compiled is None else compiled) else _look
    pieces = []
    for seeds_C in seed_B.split(chunk if device.type == "cpu" else batch):  # scenes are small: on a GPU all at once
        scenes = build_scenes(seeds_C, frames, size, config)
        pieces += [_render(scenes.clips(slice(i, i + chunk)), method, look) for i in range(0, len(seeds_C), chunk)]
    return Clips(**{f.name: torch.cat([getattr(piece, f.name) for piece in pieces]) for f in fields(Clips)})


_Look = Callable[[Primitives, Camera, Traced, Light, Lens], Tensor]


def _render(scenes: Scenes, method: Method, look: _Look) -> Clips:
    box_BTP4 = primitive_boxes(scenes.primitives, scenes.camera)
    if method == "triton":
        from stille.video.scenes.trace_triton import trace_triton

        traced = trace_triton(scenes.primitives, scenes.camera, box_BTP4, scenes.config.places)
    else:
        traced = trace(scenes.primitives, scenes.camera, box_BTP4, scenes.config.places)
    seen_BTMK = seen_pixels(traced.index_BTHW, scenes.primitives, scenes.config.places)
    frames = look(scenes.primitives, scenes.camera, traced, *build_look(scenes))
    return make_clips_of(scenes, frames, box_BTP4, seen_BTMK, traced.own_BTM)


def _look(primitives: Primitives, camera: Camera, traced: Traced, light: Light, lens: Lens) -> Tensor:
    """uint8 [B, T, H, W, 3] of what was traced."""
    return through_lens(shade(primitives, camera, traced, light), lens)


def build_look(scenes: Scenes) -> tuple[Light, Lens]:
    """Light and lens of these clips."""
    draw = Draw(scenes.seed_B)
    light = build_light(draw, scenes.config, scenes.moment_BT)
    dark_B = torch.where(light.infrared_B, 0.6, (1 - light.level_B).clamp(min=0))
    return light, build_lens(draw, scenes.config, scenes.moment_BT, dark_B)


@lru_cache(maxsize=1)
def _compiled() -> _Look:
    return torch.compile(_look, dynamic=False)
