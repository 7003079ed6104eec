"""What the traced pixels look like: patterns of materials, light, shadows, fog, night and infrared.

Everything is elementwise, so that `torch.compile` makes few kernels of it. Colours are linear light.

Shapes: B clips, T frames, H, W picture, P primitives.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stille.video.scenes.camera import Camera
from stille.video.scenes.config import SceneConfig
from stille.video.scenes.draw import Draw, constant
from stille.video.scenes.graph import light_angle
from stille.video.scenes.primitives import (
    BAND,
    BOX,
    CARTON,
    CLOTH,
    FACADE,
    FLOOR,
    GRASS,
    HAZARD,
    HELMET,
    LAMP,
    MARK,
    METAL,
    ROUND,
    SKIN,
    VEST,
    WALL,
    WOOD,
    WRAP,
    Primitives,
    turned,
)
from stille.video.scenes.trace import Traced


@dataclass(frozen=True, slots=True)
class Light:
    """Light and air of B clips, [B] or [B, 3] each.

    Attributes:
        toward_B3: unit vector to the main light. ambient_B: share of light that comes from everywhere.
        level_B: brightness of the hall. tint_B3: its colour.
        pools_B: how uneven the lamps are; pace_B: metres between them.
        infrared_B: bool, the camera lights the scene itself and sees no colours.
        fog_B: per metre; haze_B3: its colour.
        flicker_BT: factor.
        sky_B3: what is seen where nothing is.
    """

    toward_B3: Tensor
    ambient_B: Tensor
    level_B: Tensor
    tint_B3: Tensor
    pools_B: Tensor
    pace_B: Tensor
    infrared_B: Tensor
    fog_B: Tensor
    haze_B3: Tensor
    flicker_BT: Tensor
    sky_B3: Tensor


def build_light(draw: Draw, config: SceneConfig, moment_BT: Tensor) -> Light:
    """Light of these clips; more of them are dark, foggy, uneven or infrared as the difficulty rises."""
    hard = config.difficulty
    angle = light_angle(draw) + 3.1416  # shadows fall away from it
    high = draw.uniform("light height", low=0.7, high=1.4)
    toward = torch.stack([angle.cos() * high.cos(), angle.sin() * high.cos(), high.sin()], -1)
    infrared = draw.chance("infrared", p=0.25 * hard)
    night = draw.chance("night", p=0.35 * hard) & ~infrared
    level = torch.where(
        night, draw.uniform("night level", low=0.12, high=0.4), draw.uniform("level", low=0.8, high=1.5)
    )
    tint = 1 + (draw.uniform("tint", 3, low=-0.2, high=0.2) * (0.4 + hard))
    fog = draw.uniform("fog", low=0.005, high=0.06) * draw.chance("foggy", p=0.3 * hard)
    rate = draw.uniform("flicker rate", 1, low=1.5, high=40.0)
    depth = draw.uniform("flicker", 1, low=0.03, high=0.22) * draw.chance("flickers", 1, p=0.3 * hard)
    flicker = 1 + depth * torch.sin(6.2832 * (moment_BT.double() * rate)).float()
    outdoor = draw.chance("outdoor", p=config.outdoor)  # as in the layout
    pale = draw.uniform("sky", 1, low=0.25, high=1.1)
    sky = pale + (1 - pale).clamp(min=0) * constant((-0.1, 0.05, 0.5), draw.device) * draw.uniform("blue sky", 1)
    sky = torch.where(outdoor[:, None], sky, 0.06 * tint) * level[:, None].clamp(max=1.0)
    return Light(
        toward, draw.uniform("ambient", low=0.35, high=0.75), level, tint,
        draw.uniform("pools", low=0.0, high=0.6) * ~outdoor, draw.uniform("pool pace", low=3.5, high=7.0), infrared,
        fog, draw.uniform("haze", 1, low=0.3, high=0.8) * torch.ones_like(tint), flicker, sky,
    )  # fmt: skip


def _grain(x: Tensor, y: Tensor) -> Tensor:
    """0..1 from whole numbers: a cheap hash that devices agree on."""
    value = x.to(torch.int32) * 374761393 + y.to(torch.int32) * 668265263
    value = (value ^ ((value >> 13) & 0x7FFFF)) * 1274126177
    return ((value >> 8) & 0xFFFF).float() / 65536


def _smooth_grain(x: Tensor, y: Tensor) -> Tensor:
    """Value noise, one cell per unit."""
    cx, cy = x.floor(), y.floor()
    sx, sy = x - cx, y - cy
    sx, sy = sx * sx * (3 - 2 * sx), sy * sy * (3 - 2 * sy)
    low = _grain(cx, cy) + (_grain(cx + 1, cy) - _grain(cx, cy)) * sx
    up = _grain(cx, cy + 1) + (_grain(cx + 1, cy + 1) - _grain(cx, cy + 1)) * sx
    return low + (up - low) * sy


def shade(prims: Primitives, camera: Camera, traced: Traced, light: Light) -> Tensor:
    """Linear RGB [B, T, H, W, 3] of what was traced."""
    index = traced.index_BTHW.long().clamp(min=0)
    b, t, h, w = index.shape
    flat = index.reshape(b, t, -1)

    def of(value: Tensor) -> Tensor:
        """A field of the primitives for every pixel."""
        if value.dim() == 1:
            return value[index]
        tail = value.shape[3:]
        spread = flat.reshape(b, t, -1, *(1,) * len(tail)).expand(-1, -1, -1, *tail)
        return value.gather(2, spread).reshape(b, t, h, w, *tail)

    hit = traced.index_BTHW >= 0
    far = torch.where(hit, traced.depth_BTHW, 30.0)
    rays = turned(camera.rays()[:, None], camera.rotation_BT33[:, :, None, None])
    point = camera.origin_BT3[:, :, None, None] + rays * far[..., None]
    back, centre = prims.inverse()
    back, ratio = of(back), of(prims.ratio_BTP)
    unit = turned(point - of(centre), back)
    kind, material = of(prims.kind_P), of(prims.material_P)
    x, y, z = unit.unbind(-1)

    # Normals in unit coordinates, then in the hall.
    sized = unit.abs()
    face = (sized >= sized.amax(-1, keepdim=True)).float() * unit.sign()
    core = torch.maximum(torch.minimum(z, ratio), -ratio)
    smooth = torch.stack([x, y, z - core], -1)
    lid = torch.stack([torch.zeros_like(x), torch.zeros_like(x), z.sign()], -1)
    wall = torch.stack([x, y, torch.zeros_like(x)], -1)
    round_ = (kind == ROUND)[..., None]
    normal = torch.where((kind == BOX)[..., None], face, torch.where(round_, smooth,
                         torch.where((z.abs() > 0.999)[..., None], lid, wall)))  # fmt: skip
    normal = turned(normal, back.transpose(-1, -2))
    normal = normal / normal.norm(dim=-1, keepdim=True).clamp(min=1e-9)

    colour = _pattern(of(prims.colour_BTP3), of(prims.other_BTP3), material, unit, point, normal)
    ground = (point[..., 2].abs() < 0.02) & ((material == FLOOR) | (material == MARK) | (material == GRASS))
    lit = illuminate(colour, material, normal, point, rays, far, torch.where(ground, traced.dark_BTHW, 0.0), light)
    sky = light.sky_B3[:, None, None, None]
    clear = torch.exp(-far * light.fog_B[:, None, None, None])[..., None]
    haze = (light.haze_B3 * light.level_B.clamp(max=1.0)[:, None])[:, None, None, None]
    return torch.where(hit[..., None], lit, sky * clear + haze * (1 - clear))


def illuminate(
    colour: Tensor,
    material: Tensor,
    normal: Tensor,
    point: Tensor,
    rays: Tensor,
    far: Tensor,
    dark: Tensor,
    light: Light,
) -> Tensor:
    """Light that comes from surfaces [B, T, X, Y]: colours, normals, points and rays have a last dimension of 3.

    Args:
        rays: towards the surface, z of the camera is 1; far: metres along it; dark: share of shadow.
    """

    def each(value_B: Tensor) -> Tensor:
        return value_B.reshape(-1, 1, 1, 1)

    toward = light.toward_B3[:, None, None, None]
    facing = (normal * toward).sum(-1)
    half_way = toward - rays / rays.norm(dim=-1, keepdim=True)
    half_way = half_way / half_way.norm(dim=-1, keepdim=True)
    shine = (normal * half_way).sum(-1).clamp(min=0) ** 24
    gloss = 0.55 * (material == HELMET) + 0.12 * (material == METAL) + 0.3 * (material == WRAP)
    ambient, level = each(light.ambient_B), each(light.level_B)
    lamp = 6.2832 / each(light.pace_B)
    pools = 1 - each(light.pools_B) * 0.5 * (
        1 - torch.cos(point[..., 0] * lamp) * torch.cos(point[..., 1] * lamp * 0.8)
    )
    under = 0.8 + 0.2 * normal[..., 2]
    grounded = 0.75 + 0.25 * (point[..., 2] / 0.5).clamp(0, 1)  # less light close to the floor
    grounded = torch.where((material == FLOOR) | (material == MARK), 1.0, grounded)
    amount = (ambient * under * grounded + (1 - ambient) * facing.clamp(min=0)) * pools * (1 - dark)
    lit = colour * amount[..., None] * light.tint_B3[:, None, None, None] * level[..., None]
    lit = lit + (gloss * shine * pools * level)[..., None]
    glow = colour * ((material == LAMP) * 0.9 + (material == VEST) * 0.25)[..., None]
    lit = (lit + glow * (0.25 + 0.75 * level.clamp(max=1))[..., None]) * light.flicker_BT[..., None, None, None]

    # Infrared: a lamp beside the lens; skin and cloth are pale, bands throw the light back.
    grey = 0.4 * colour[..., 0] + 0.35 * colour[..., 1] + 0.25 * colour[..., 2]
    grey = torch.where(material == SKIN, 0.75, torch.where(material == CLOTH, 0.3 + 0.45 * grey, grey))
    grey = torch.where(material == VEST, 0.7, grey)
    head_on = (normal * -rays).sum(-1).clamp(min=0) / rays.norm(dim=-1)
    fall_off = 1.4 / (1 + (far / 9) ** 2)
    beam = grey * (0.25 + 0.75 * head_on) * fall_off * (1 - 0.3 * dark) + 2.0 * (material == BAND) * fall_off
    beam = beam + 0.8 * (material == LAMP)
    lit = torch.where(each(light.infrared_B)[..., None], beam[..., None], lit)

    clear = torch.exp(-far * each(light.fog_B))[..., None]
    haze = (light.haze_B3 * light.level_B.clamp(max=1.0)[:, None])[:, None, None, None]
    return lit * clear + haze * (1 - clear)


def _pattern(colour: Tensor, other: Tensor, material: Tensor, unit: Tensor, point: Tensor, normal: Tensor) -> Tensor:
    """Colour of each pixel before light."""
    x, y, z = unit.unbind(-1)
    px, py, pz = point.unbind(-1)
    upright = normal[..., 2].abs() < 0.5
    across = torch.where(normal[..., 0].abs() > normal[..., 1].abs(), py, px)  # along a wall

    stripes = ((across + pz) * 5.0).floor() % 2 > 0
    hazard = (material == HAZARD) & stripes
    planks = (material == WOOD) & (((y * 3.5).floor() - y * 3.5).abs() < 0.12)
    tape = (material == CARTON) & ((y.abs() < 0.05) | (upright & (z.abs() < 0.02) & (y.abs() > 0.1)))
    label = (material == CARTON) & upright & ((x - 0.5).abs() < 0.18) & ((z - 0.35).abs() < 0.25)
    skirting = (material == WALL) & (pz < 1.1)
    check = (material == CLOTH) & (((z * 4).floor() + (y * 3).floor()) % 2 > 0)
    wrinkle = (material == WRAP) & (_smooth_grain(across * 9, pz * 3) > 0.6)
    bricks = (material == FACADE) & upright & (((across * 0.45) % 1 < 0.62) & ((pz * 0.36 + 0.2) % 1 < 0.45))
    blades = (material == GRASS) & (_smooth_grain(px * 23.0, py * 23.0 + pz * 31.0) > 0.55)
    second = bricks | blades | hazard | planks | tape | skirting | check | wrinkle
    out = torch.where(second[..., None], other, colour)
    out = torch.where(label[..., None], 0.8, out)

    u, v = torch.where(upright, across, px), torch.where(upright, pz, py)
    fine, rough = _smooth_grain(u * 7.0, v * 7.0), _smooth_grain(u * 0.9 + 17.0, v * 0.9 + 17.0)
    ribs = torch.where((material == WALL) & upright, 0.06 * torch.sin(across * 21.0), 0.0)
    floor = (material == FLOOR) | (material == GRASS)
    joint = (material == FLOOR) & ((((px + 40) % 4.0) < 0.03) | (((py + 40) % 4.0) < 0.03))
    worn = (material == MARK) & (fine * 0.6 + rough * 0.5 > 0.72)
    strong = torch.where(floor | (material == WALL), 1.0, 0.45)
    factor = 1 + strong * (0.16 * (fine - 0.5) + 0.34 * (rough - 0.5)) + ribs - 0.35 * joint
    factor = torch.where(worn, factor * 0.6, factor)
    return out * factor[..., None]
