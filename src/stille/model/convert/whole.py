"""Converted models as whole checkpoints."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stille.model.convert.delta import check_target, put_in_place
from stille.model.decoder import StilleForCausalLM


class StateSource:
    """Tensors in memory as a checkpoint (a `TensorSource`)."""

    def __init__(self, label: str, state: Mapping[str, Tensor]):
        self.label, self._state = label, state

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(value.shape) for name, value in self._state.items()}

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        return self._state[name].detach().to(dtype, copy=True)


def write_whole(folder: Path, model: StilleForCausalLM, tokenizer: Any, extra: Mapping[str, bytes]) -> None:
    """A folder with configuration, safetensors and tokenizer; it is there whole or not at all.

    Args:
        folder: must not exist, be empty, or hold a delta, which is replaced.
        extra: other files, by name.

    Raises:
        ConfigError: the folder holds something else.
    """
    check_target(folder)
    temporary = folder.parent / f".{folder.name}.{os.getpid()}.part"
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        for name, content in extra.items():
            (temporary / name).write_bytes(content)
        put_in_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
