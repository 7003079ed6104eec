"""A trained network as a folder: config.json, model.safetensors, and README.md, the model card."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from stille.errors import CheckpointError
from stille.video.model.config import StilleCamConfig
from stille.video.model.network import StilleCamNet
from stille.video.types import ATTRIBUTES, KINDS

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
KIND = "stillecam"


def save(network: StilleCamNet, folder: Path, card: str, dtype: torch.dtype = torch.float32) -> None:
    """Write a network, its batch norms not folded yet; each file is there whole or not at all.

    Args:
        card: text of README.md.
        dtype: of the stored weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": KIND, "kinds": KINDS, "attributes": ATTRIBUTES, **network.config.to_dict()}
    tensors = {
        name: x.detach().cpu().to(dtype if x.is_floating_point() else x.dtype).contiguous()
        for name, x in network.state_dict().items()
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
    network = StilleCamNet(StilleCamConfig.from_dict({**values, **changes}))
    try:
        network.load_state_dict({n: x.float() if x.is_floating_point() else x for n, x in tensors.items()})
    except RuntimeError as error:
        raise CheckpointError(f"{folder / WEIGHTS} does not fit {CONFIG}: {error}") from error
    return network
