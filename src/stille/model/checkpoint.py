"""From named tensors, wherever they lie, to a model: checked by name and shape, then read one at a time.

The model is built without storage and every parameter is put in place as it is read, so loading peaks at about the
size of the finished weights.
"""

import json
import logging
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from stille.errors import CheckpointError
from stille.model.config import StilleConfig
from stille.model.decoder import StilleForCausalLM

logger = logging.getLogger(__name__)

EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
INDEX_FILE, SINGLE_FILE = "model.safetensors.index.json", "model.safetensors"
# Rotary frequencies that old checkpoints carry; they follow from the configuration.
IGNORED = re.compile(r"(^|\.)rotary_emb\.inv_freq$")
Progress = Callable[[int, int], None]
"""Called with (done, total), in bytes or tensors."""


class TensorSource(Protocol):
    """Named tensors of a checkpoint, under the decoder's parameter names."""

    label: str
    """Where they come from, for messages."""

    def shapes(self) -> dict[str, tuple[int, ...]]: ...

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        """A tensor of its own (no view of a file) in the dtype."""
        ...


class SafetensorsFolder:
    """The safetensors of a folder: `model.safetensors`, or shards listed by `model.safetensors.index.json`.

    Raises:
        CheckpointError: no weights, a shard missing, or a file truncated.
    """

    def __init__(self, folder: Path):
        self.label = str(folder)
        if (index := folder / INDEX_FILE).exists():
            try:
                names = set(json.loads(index.read_text())["weight_map"].values())
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                raise CheckpointError(f"{index} is damaged ({error!r}); fetch it again.") from error
            files = [folder / name for name in sorted(names)]
            if absent := [file.name for file in files if not file.exists()]:
                raise CheckpointError(f"{index} lists shards that are missing: {listing(absent)}.")
        elif (folder / SINGLE_FILE).exists():
            files = [folder / SINGLE_FILE]
        else:
            found = sorted(file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".gguf"))
            raise CheckpointError(
                f"{folder} holds neither {SINGLE_FILE} nor {INDEX_FILE}"
                + (f" (found {listing(found)}). Give a .gguf file by its path; convert others" if found else ". Add it")
                + " to safetensors."
            )
        self._files: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for file in files:
            with _open(file) as tensors:
                for name in tensors.keys():  # noqa: SIM118 - no mapping, it cannot be iterated
                    self._files[name] = file
                    self._shapes[name] = tuple(tensors.get_slice(name).get_shape())
        self._opened: tuple[Path, object] | None = None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self._shapes

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        file = self._files[name]
        if self._opened is None or self._opened[0] != file:  # one shard is mapped at a time
            self._opened = (file, _open(file))
        tensor: Tensor = self._opened[1].get_tensor(name)  # pyright: ignore[reportAttributeAccessIssue]
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise CheckpointError(
                f"tensor {name!r} in {file} is {tensor.dtype}: quantised checkpoints are read from GGUF only."
            )
        return tensor.to(dtype, copy=True)

    def raw(self, name: str) -> Any:
        """The bytes of a tensor as they are stored, a buffer; may be called from several threads."""
        with _open(self._files[name]) as tensors:
            return tensors.get_tensor(name).contiguous().reshape(-1).view(torch.uint8).numpy()


def _open(file: Path):
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is truncated or damaged ({error}); fetch it again.") from error


def listing(names: Iterable[str], limit: int = 12) -> str:
    """Names for a message: all of them, or the first few and a count."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def build_model(
    config: StilleConfig,
    source: TensorSource,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> StilleForCausalLM:
    """Make the model that the configuration describes and fill it from a source.

    Args:
        config: not kept; the model gets its own.
        source: the checkpoint's tensors.
        dtype, device: of every parameter; buffers keep their own dtype.
        progress: told the number of tensors read and their total.

    Returns:
        The model in evaluation mode.

    Raises:
        CheckpointError: tensors are missing, extra or misshapen (all of them are named), or the file is damaged.
        ConfigError: the configuration names a kind that is not registered.
    """
    config = StilleConfig.from_dict(config.to_dict())
    shapes = {name: shape for name, shape in source.shapes().items() if not IGNORED.search(name)}
    head: Tensor | None = None
    if config.tie_word_embeddings and HEAD in shapes and EMBEDDINGS in shapes:
        # Some checkpoints store the tied head anyway; one that differs was trained untied.
        head = source.read(HEAD, dtype)
        if torch.equal(head, source.read(EMBEDDINGS, dtype)):
            del shapes[HEAD]
        else:
            logger.warning("%s: lm_head differs from the embeddings it is said to share; kept apart.", source.label)
            config.tie_word_embeddings = False
    with torch.device("meta"):
        model = StilleForCausalLM(config)
    names = {name: tuple(parameter.shape) for name, parameter in model.named_parameters(remove_duplicate=False)}
    buffers = set(model.state_dict()) - set(names)
    names |= {name: tuple(model.get_buffer(name).shape) for name in sorted(buffers)}
    if config.tie_word_embeddings:
        del names[HEAD]
    _check(source.label, names, shapes)
    for done, name in enumerate(names):
        if progress is not None:
            progress(done, len(names))
        if name in buffers:
            kind = model.get_buffer(name).dtype  # state of the model, kept in its own precision
            model.get_submodule(name.rpartition(".")[0]).register_buffer(
                name.rpartition(".")[2], source.read(name, kind).to(device)
            )
            continue
        value = head if name == HEAD and head is not None else source.read(name, dtype)
        _put(model, name, value.to(device))
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    if progress is not None:
        progress(len(names), len(names))
    return model.eval()


def _check(label: str, wanted: dict[str, tuple[int, ...]], given: dict[str, tuple[int, ...]]) -> None:
    missing = [name for name in wanted if name not in given]
    extra = [name for name in given if name not in wanted]
    misshapen = [
        f"{name} is {list(given[name])}, expected {list(shape)}"
        for name, shape in wanted.items()
        if name in given and given[name] != shape
    ]
    problems = [("missing", missing), ("not part of the architecture", extra), ("misshapen", misshapen)]
    if found := [f"{what}: {listing(names)}" for what, names in problems if names]:
        raise CheckpointError(f"the tensors of {label} do not fit its configuration. " + "; ".join(found) + ".")


def _put(model: nn.Module, name: str, value: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(path), leaf, nn.Parameter(value))
