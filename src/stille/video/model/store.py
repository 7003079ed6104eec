"""A trained network as a folder: config.json, model.safetensors, and README.md, the model card."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from stille.errors import CheckpointError
from stille.video.model.config import StilleCamConfig
from stille.video.model.network import StilleCamNet
from stille.video.types import ATTRIBUTES, KINDS

SCALE = ".scale"  # after the name of a tensor of 8 bits
SMALL = 4096  # numbers; tensors with fewer are not worth 8 bits
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
KIND = "stillecam"
BACKBONE = "backbone."


def save(network: StilleCamNet, folder: Path, card: str, dtype: torch.dtype = torch.float32, part: str = "") -> None:
    """Write a network, its batch norms not folded yet; each file is there whole or not at all.

    Args:
        card: text of README.md.
        dtype: of the stored weights. int8: matrices and kernels in 8 bits with a scale per output channel, the rest,
            some hundredths, in float32; half as large as bfloat16.
        part: what the names of its weights begin with, if no others are to be there; for `begin`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": KIND, "kinds": KINDS, "attributes": ATTRIBUTES, **network.config.to_dict()}
    tensors = {
        name: stored
        for whole, x in network.state_dict().items()
        if whole.startswith(part)
        for name, stored in _stored(whole, x.detach().cpu(), dtype).items()
    }
    for name, write in (
        (WEIGHTS, lambda path: save_file(tensors, path, {"format": "pt"})),
        (CARD, lambda path: path.write_text(card, encoding="utf-8")),
        (CONFIG, lambda path: path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")),
    ):
        scratch = folder / f"{name}.tmp"
        write(scratch)
        os.replace(scratch, folder / name)


def load(folder: Path, **changes: Any) -> StilleCamNet:
    """Read a network, in float32.

    Args:
        changes: fields of the configuration that differ from the stored ones (`long_memory`, thresholds).

    Raises:
        CheckpointError: not such a folder, or its weights do not fit its configuration.
    """
    values, tensors = _read(folder)
    network = StilleCamNet(StilleCamConfig.from_dict({**values, **changes}))
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{folder / WEIGHTS} does not fit {CONFIG}: {error}") from error
    return network


def config_of(folder: Path) -> StilleCamConfig:
    """Of what `save` wrote.

    Raises:
        CheckpointError: not such a folder.
    """
    return StilleCamConfig.from_dict(_read(folder)[0])


def begin(network: StilleCamNet, folder: Path) -> None:
    """Give a network the weights of a folder: all of them, but for a backbone of another shape; or a backbone's, if
    those are all that is there.

    Raises:
        CheckpointError: not such a folder, or of other sizes.
    """
    values, tensors = _read(folder)
    into: Any = network
    if all(name.startswith(BACKBONE) for name in tensors):
        into, tensors = network.backbone, {name.removeprefix(BACKBONE): x for name, x in tensors.items()}
    elif values.get("backbone", "plain") != network.config.backbone:
        tensors = {name: x for name, x in tensors.items() if not name.startswith(BACKBONE)}
        tensors |= {BACKBONE + name: x for name, x in network.backbone.state_dict().items()}
    try:
        into.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{folder} does not fit the network that is to begin with it: {error}") from error


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration, and tensors in float32."""
    try:
        values = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} is no folder of a StilleCam: {error.filename} is missing.") from error
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{folder} is damaged: {error}") from error
    if not isinstance(values, dict) or values.pop("model_type", None) != KIND:
        raise CheckpointError(f"{folder / CONFIG} is not of a StilleCam: expected model_type {KIND!r}.")
    known = tuple(values.pop("kinds", ())), tuple(values.pop("attributes", ()))
    if known != (KINDS, ATTRIBUTES):
        raise CheckpointError(f"{folder} knows kinds and attributes {known}; this version needs {(KINDS, ATTRIBUTES)}.")
    return values, _restored(tensors)


def _stored(name: str, x: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    if not x.is_floating_point():
        return {name: x.contiguous()}
    if dtype != torch.int8:
        return {name: x.to(dtype).contiguous()}
    if x.ndim < 2 or x.numel() < SMALL:
        return {name: x.float().contiguous()}
    x = x.float()
    scale = x.abs().amax(tuple(range(1, x.ndim)), keepdim=True).clamp(min=1e-12) / 127
    return {name: (x / scale).round().to(torch.int8).contiguous(), name + SCALE: scale}


def _restored(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """In float32, of any dtype that `save` writes."""
    found = {}
    for name, x in tensors.items():
        if name + SCALE in tensors:
            found[name] = x.float() * tensors[name + SCALE]
        elif not name.endswith(SCALE):
            found[name] = x.float() if x.is_floating_point() else x
    return found
