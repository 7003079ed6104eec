"""Rendered clips: `make_clips` with the ray-caster, on a CPU or a GPU."""

from __future__ import annotations

import logging
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
from stille.video.scenes.graph import Scenes, build_scenes, sliced
from stille.video.scenes.lens import Lens, build_lens, through_lens
from stille.video.scenes.outline import primitive_boxes
from stille.video.scenes.primitives import Primitives
from stille.video.scenes.shade import Light, build_light, shade
from stille.video.scenes.trace import Traced, trace
from stille.video.scenes.truth import make_clips_of, seen_pixels

logger = logging.getLogger(__name__)

AT_ONCE = 96
"""Pictures that a GPU shades together."""

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
        chunk: clips that are rendered at once, for memory; default 1 on a CPU, on a GPU the most that make `AT_ONCE`
            frames and divide the batch.
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
    # Scenes are small: on a GPU all are built at once, on a CPU one by one, so that a clip does not depend on others.
    parts = [
        build_scenes(seeds_C, frames, size, config) for seeds_C in seed_B.split(batch if device.type != "cpu" else 1)
    ]
    pieces = [render(scenes, method=method, chunk=chunk, compiled=compiled) for scenes in parts]
    return pieces[0] if len(pieces) == 1 else _joined(pieces)


def render(
    scenes: Scenes, *, method: Method | None = None, chunk: int | None = None, compiled: bool | None = None
) -> Clips:
    """Clips of scenes, on their device; for the arguments see `make_clips`."""
    batch, frames = scenes.time_BT.shape
    on_gpu = scenes.seed_B.device.type == "cuda"
    if chunk is None:  # a divisor, so that all are of one shape: another one would be compiled anew
        fits = (i for i in range(1, batch + 1) if batch % i == 0 and i * frames <= AT_ONCE)
        chunk = max(fits, default=1) if on_gpu else 1
    method = method or ("triton" if on_gpu else "torch")
    look = _compiled() if (on_gpu if compiled is None else compiled) else _look
    box_BTP4 = primitive_boxes(scenes.primitives, scenes.camera)
    light, lens = build_look(scenes)
    shown, seen, own = [], [], []
    for i in range(0, batch, chunk):
        part = slice(i, i + chunk)
        some = scenes.clips(part)
        traced = _traced(some, box_BTP4[part], method)
        seen.append(seen_pixels(traced.index_BTHW, some.primitives, some.config.places))
        own.append(traced.own_BTM)
        shown.append(look(some.primitives, some.camera, traced, sliced(light, part), sliced(lens, part)))
    return make_clips_of(scenes, torch.cat(shown), box_BTP4, torch.cat(seen), torch.cat(own))


def _joined(pieces: list[Clips]) -> Clips:
    return Clips(**{f.name: torch.cat([getattr(piece, f.name) for piece in pieces]) for f in fields(Clips)})


_Look = Callable[[Primitives, Camera, Traced, Light, Lens], Tensor]


def _traced(scenes: Scenes, box_BTP4: Tensor, method: Method) -> Traced:
    if method == "triton":
        from stille.video.scenes.trace_triton import trace_triton as cast
    else:
        cast = trace
    return cast(scenes.primitives, scenes.camera, box_BTP4, scenes.config.places)


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
    """Shading in few kernels; if it does not compile, it goes on as it is, with a warning."""
    fast: list[_Look] = [torch.compile(_look, dynamic=False)]

    def look(primitives: Primitives, camera: Camera, traced: Traced, light: Light, lens: Lens) -> Tensor:
        if fast:
            try:
                return fast[0](primitives, camera, traced, light, lens)
            except Exception:
                logger.warning("torch.compile of shading failed; going on without it", exc_info=True)
                fast.clear()
        return _look(primitives, camera, traced, light, lens)

    return look
