"""The scene graph of clips: everything as primitives, objects first, in the order of their places."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stille.video.scenes.building import add_decoys, add_figures, add_hall, add_racks, person_pose
from stille.video.scenes.camera import Camera, build_camera
from stille.video.scenes.config import SceneConfig
from stille.video.scenes.draw import Draw, constant
from stille.video.scenes.layout import RACKS, Layout, build_layout
from stille.video.scenes.persons import Pose, add_persons
from stille.video.scenes.primitives import SHADE, Frame, Parts, Primitives, join
from stille.video.scenes.sampling import sample_times
from stille.video.scenes.story import Story, build_story
from stille.video.scenes.vehicles import add_carts, add_drivers, add_forklifts, add_pallets
from stille.video.scenes.yard import add_yard, without_hall


@dataclass(frozen=True, slots=True)
class Scenes:
    """B clips of T frames as geometry. Groups 0..M-1 of the primitives are the objects.

    Attributes:
        time_BT: of the clock, moment_BT: what is shown; seconds, float64.
        place_BTM3: where objects stand, metres; on_BM: whether there is one.
    """

    config: SceneConfig
    seed_B: Tensor
    time_BT: Tensor
    moment_BT: Tensor
    layout: Layout
    story: Story
    camera: Camera
    primitives: Primitives
    place_BTM3: Tensor
    on_BM: Tensor

    def clips(self, part: slice) -> Scenes:
        """Some of the clips."""
        scenes: Scenes = sliced(self, part)
        return scenes


def mapped(value: Any, turn: Callable[[Any], Any]) -> Any:
    """A dataclass, and those in it, with its tensors (or arrays) turned into something else."""
    values = {f.name: getattr(value, f.name) for f in fields(value)}
    for name, inner in values.items():
        if isinstance(inner, (Tensor, np.ndarray)):
            values[name] = turn(inner)
        elif is_dataclass(inner) and not isinstance(inner, SceneConfig):
            values[name] = mapped(inner, turn)
    return type(value)(**values)


def sliced(value: Any, part: slice) -> Any:
    """A dataclass whose fields named `..._B...` are cut in the first dimension, and so in the dataclasses in it."""
    cut = {}
    for f in fields(value):
        inner = getattr(value, f.name)
        if isinstance(inner, Tensor):
            cut[f.name] = inner[part] if f.name.rpartition("_")[2].startswith("B") else inner
        elif is_dataclass(inner) and not isinstance(inner, SceneConfig):
            cut[f.name] = sliced(inner, part)
    return type(value)(**{f.name: cut.get(f.name, getattr(value, f.name)) for f in fields(value)})


def build_scenes(seed_B: Tensor, frames: int, size: tuple[int, int], config: SceneConfig) -> Scenes:
    """The scenes of these seeds (see `clip_seeds`), at `frames` moments, seen by cameras of `size` width, height."""
    draw = Draw(seed_B)
    time_BT, moment_BT = sample_times(draw, config, frames)
    now_BT = moment_BT.to(torch.float32)
    layout = build_layout(draw, config)
    story = build_story(draw, config, layout, now_BT)
    camera = build_camera(draw, config, layout, size, now_BT)
    b = len(seed_B)

    def parts(n: int, t: int = frames) -> Parts:
        return Parts((b, t, n), seed_B.device)

    persons, forklifts, carts = parts(config.persons), parts(config.forklifts), parts(config.carts)
    drivers, pallets = parts(config.forklifts), parts(config.pallets)
    shadows = parts(config.persons + config.forklifts + config.carts)
    add_persons(persons, draw, Pose(*person_pose(story)))
    add_drivers(drivers, draw, story)
    add_forklifts(forklifts, draw, story, now_BT)
    add_carts(carts, draw, story)
    add_pallets(pallets, draw, story)
    _add_shadows(shadows, draw, story)
    hall, racks, decoys, yard = parts(1, 1), parts(RACKS, 1), parts(1, 1), parts(1, 1)
    add_yard(yard, draw, layout)
    add_hall(hall, draw, layout, config.camera_height[1])
    without_hall(hall, layout)
    add_racks(racks, draw, layout)
    add_decoys(decoys, draw, layout)
    figures = add_figures(draw, layout, story)
    primitives = join([persons, drivers, forklifts, carts, pallets, hall, racks, decoys, yard, *figures, shadows])

    def grounded(place_BTN2: Tensor) -> Tensor:
        return torch.cat([place_BTN2, torch.zeros_like(place_BTN2[..., :1])], -1)

    trucks = story.forklifts.place_BTN2
    places = [grounded(p) for p in (story.persons.place_BTN2, trucks, trucks, story.cart_BTC2)]
    place_BTM3 = torch.cat([*places, story.goods.place_BTP3], 2)
    on = story.person_on_BN, story.driver_on_BF, story.forklift_on_BF, story.cart_on_BC, story.goods.on_BP
    on_BM = torch.cat(on, 1)
    return Scenes(config, seed_B, time_BT, moment_BT, layout, story, camera, primitives, place_BTM3, on_BM)


def _add_shadows(parts: Parts, draw: Draw, story: Story) -> None:
    """Two for each person, forklift and cart: close under it, and away from the light."""
    place = torch.cat([story.persons.place_BTN2, story.forklifts.place_BTN2, story.cart_BTC2], 2)
    heading = torch.cat([story.persons.heading_BTN2, story.forklifts.heading_BTN2, story.cart_heading_BTC2], 2)
    n = [x.shape[1] for x in (story.person_on_BN, story.forklift_on_BF, story.cart_on_BC)]
    device = place.device

    def per_kind(*values: float) -> Tensor:
        return constant(tuple(v for v, times in zip(values, n, strict=True) for _ in range(times)), device)

    on = torch.cat([story.person_on_BN, story.forklift_on_BF, story.cart_on_BC], 1)[:, None]
    frame = Frame.standing(place, heading, 0.003)
    radius, long = per_kind(0.34, 0.75, 0.45), per_kind(0.0, 0.7, 0.3)
    strength = constant((1.0, 0.0, 0.0), device)
    parts.add(SHADE, frame.origin, (frame.y * radius[..., None], frame.x * radius[..., None], frame.z), 0.6 * strength,
              ratio=long / radius, on=on)  # fmt: skip
    angle = light_angle(draw)[:, None, None].expand(*place.shape[:3])
    far = Frame.standing(place, torch.stack([angle.cos(), angle.sin()], -1), 0.0035)
    reach = per_kind(1.6, 2.0, 0.9) * draw.uniform("shadow length", 1, 1, low=0.2, high=1.3)
    radius = per_kind(0.24, 0.65, 0.35)
    parts.add(SHADE, far.point(reach / 2, 0, 0), (far.y * radius[..., None], far.x * radius[..., None], far.z),
              draw.uniform("shadow", 1, 1, 1, low=0.1, high=0.55) * strength, ratio=reach / 2 / radius,
              on=on & draw.chance("shadows", 1, 1, p=0.7))  # fmt: skip


def light_angle(draw: Draw) -> Tensor:
    """Direction [B] on the floor in which shadows fall, radians."""
    return draw.uniform("light angle", low=-3.1416, high=3.1416)
