"""Clips of plain rectangles that move, as small truth for the perception model: each object has a colour of its own."""

import torch
from torch import Tensor

from stille.video.model import StilleCamConfig, StilleCamNet
from stille.video.scenes.clips import Clips

COLOURS = torch.tensor([[230, 40, 40], [40, 220, 60], [60, 80, 240], [230, 220, 50], [220, 60, 220], [50, 220, 220]])


def painted(
    seed: int, clips: int, frames: int, *, size: tuple[int, int] = (160, 96), objects: int = 3, fps: float = 5.0
) -> Clips:
    """The same for the same arguments. Even kinds wear a helmet; the one slot is full where object 0 is of kind 0."""
    random = torch.Generator().manual_seed(seed)
    width, height = size

    def rand(*shape: int) -> Tensor:
        return torch.rand(clips, *shape, generator=random)

    extent = 0.16 + 0.12 * rand(objects, 2)
    start, speed = 0.2 + 0.6 * rand(objects, 2), (rand(objects, 2) - 0.5) * 0.06
    time = torch.arange(frames) / fps
    centre = (start[:, None] + speed[:, None] * torch.arange(frames)[None, :, None, None]).clamp(0.15, 0.85)
    box = torch.cat([centre - extent[:, None] / 2, centre + extent[:, None] / 2], -1)
    kind = torch.randint(0, 4, (clips, objects), generator=random)
    colour = COLOURS[rand(len(COLOURS)).argsort(1)[:, :objects]]
    image = 90 + 30 * torch.rand(clips, 1, height, width, 1, generator=random).expand(-1, frames, -1, -1, 3)
    y, x = (torch.arange(height) + 0.5)[:, None] / height, (torch.arange(width) + 0.5)[None] / width
    owner = torch.full((clips, frames, height, width), -1)
    for m in range(objects):
        x0, y0, x1, y1 = (part[:, :, None, None] for part in box[:, :, m].unbind(-1))
        inside = (x >= x0) & (x < x1) & (y >= y0) & (y < y1)
        stripes = (torch.arange(height)[:, None] // (2 + 2 * kind[:, m, None, None])) % 2  # tells the kind
        paint = colour[:, m][:, None, None, None] * (0.5 + 0.5 * stripes[:, None, :, :, None])
        image = torch.where(inside[..., None], paint, image)
        owner = torch.where(inside, m, owner)
    seen = torch.stack([(owner == m).sum((2, 3)) for m in range(objects)], -1)
    visible = (seen / (extent.prod(-1) * width * height)[:, None]).clamp(0, 1)
    attribute = torch.full((clips, frames, objects, 5), torch.nan)
    attribute[..., 0] = (kind % 2 == 0).float()[:, None]
    attribute[..., 0] = torch.where((kind == 0)[:, None], attribute[..., 0], torch.nan)
    slot = torch.zeros(clips, 2, 4)
    slot[:, 0] = torch.tensor([0.0, 0.0, 0.2, 0.3])
    occupied = torch.full((clips, frames, 2), torch.nan)
    full = kind[:, 0] == 0
    occupied[..., 0] = full.float()[:, None]
    image[:, :, : int(0.3 * height), : int(0.2 * width)] += (full * 100.0)[:, None, None, None, None]
    return Clips(
        image.clamp(0, 255).to(torch.uint8), time.double().expand(clips, -1), kind, box.float(), visible.float(),
        attribute, torch.full((clips, frames, objects, 2), torch.nan), slot, occupied,
    )  # fmt: skip


def awake(config: StilleCamConfig, seed: int = 0) -> StilleCamNet:
    """An untrained network in evaluation mode whose batch norms know pictures and whose queries differ."""
    torch.manual_seed(seed)
    net = StilleCamNet(config)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        net.maps(painted(seed, 2, 2, size=(config.width, config.height)).frame_BTHW3.flatten(0, 1))
        torch.nn.init.normal_(net.decoder.presence.weight, std=0.1)
        torch.nn.init.constant_(net.decoder.presence.bias, -1.5)
        torch.nn.init.zeros_(net.decoder.trust)  # the cells know nothing yet
    return net.eval()
