"""`load_model`: from a name, folder or file to a model with its tokenizer.

>>> from stille.model.load import load_model
>>> loaded = load_model("stille-135m")
>>> loaded.tokenizer("Hello").input_ids
[19556]
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import AutoConfig, PreTrainedTokenizerBase

from stille.errors import CheckpointError
from stille.model.checkpoint import SafetensorsFolder, build_model
from stille.model.config import StilleConfig
from stille.model.convert.delta import Delta, DeltaSource, RawSource, is_delta, read_delta
from stille.model.decoder import StilleForCausalLM
from stille.model.gguf_model import open_gguf
from stille.model.store import resolve
from stille.model.tokenizer import end_token_ids, load_tokenizer

__all__ = ["LoadedModel", "load_config", "load_model", "load_tokenizer"]

CONFIG_FILE = "config.json"


@dataclass
class LoadedModel:
    """A model that is ready to run.

    Attributes:
        model: in evaluation mode.
        tokenizer: its tokenizer, chat template included where the checkpoint has one.
        path: the folder or file it was loaded from.
        name: what it was asked for by.
        eos_token_ids: every token that ends an answer, the chat turn's end included; the first is the main one.
    """

    model: StilleForCausalLM
    tokenizer: PreTrainedTokenizerBase
    path: Path
    name: str
    eos_token_ids: list[int] = field(default_factory=list)

    @property
    def config(self) -> StilleConfig:
        return self.model.config


def load_model(
    source: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> LoadedModel:
    """Load a model and its tokenizer.

    Args:
        source: "stille-135m", a Hugging Face repository id ("org/name", or "org/name/file.gguf"), a folder (Hugging
            Face or saved by Stille), a .gguf file, or the folder of a delta, whose base is found by itself.
        dtype: of the weights.
        device: of the weights.
        progress: show bars for the download and the loading (on a terminal).

    Raises:
        ModelNotFoundError: the source leads nowhere, or cannot be downloaded.
        CheckpointError: unknown architecture, tensors that do not fit, damaged files.
        ConfigError: the configuration is contradictory or asks for something unsupported.
    """
    path = fetch(source, progress)
    origin = path  # of the tokenizer
    if is_delta(path):
        delta = read_delta(path)
        origin = fetch_base(delta, progress)
        config = folder_config(path)
        tensors = DeltaSource(delta, config, *open_weights(origin))
    else:
        config, tensors = open_weights(path)
    with _Bar("loading weights", "tensor", progress) as update:
        model = build_model(config, tensors, dtype, device, update)
    tokenizer = load_tokenizer(origin)
    ends = end_token_ids(origin, model.config, tokenizer)
    if model.generation_config is not None:
        model.generation_config.eos_token_id = ends or None
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    return LoadedModel(model, tokenizer, path, str(source), ends)


def load_config(source: str | Path, *, progress: bool = True) -> StilleConfig:
    """The configuration of a model without its weights; source and errors as in `load_model`."""
    path = fetch(source, progress)
    return folder_config(path) if path.is_dir() else open_gguf(path)[0]


def open_weights(path: Path) -> tuple[StilleConfig, RawSource]:
    """Configuration and tensors of what `store.resolve` returns, as long as it is no delta.

    Raises:
        CheckpointError: as `load_model`.
    """
    if path.is_dir():
        return folder_config(path), SafetensorsFolder(path)
    config, tensors, _ = open_gguf(path)
    return config, tensors


def fetch_base(delta: Delta, progress: bool) -> Path:
    """The base of a delta on this machine.

    Raises:
        ModelNotFoundError: it is not there; the message names both.
        CheckpointError: it is a delta itself.
    """
    with delta.naming():
        path = fetch(delta.base_source(), progress)
    if is_delta(path):
        raise CheckpointError(f"the base of the delta {delta.folder} is {path}, a delta itself; it has to be whole.")
    return path


def fetch(source: str | Path, progress: bool) -> Path:
    """`store.resolve` with a progress bar on a terminal."""
    with _Bar(f"fetching {source}", "B", progress) as update:
        return resolve(source, progress=update)


def folder_config(folder: Path) -> StilleConfig:
    """The configuration of a Hugging Face or Stille folder.

    Raises:
        CheckpointError: no readable `config.json`, or an architecture that the decoder does not run.
        ConfigError: a combination that the decoder does not run.
    """
    file = folder / CONFIG_FILE
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        model_type = raw["model_type"]
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} has no {CONFIG_FILE}, so it is not a model folder.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} is damaged or names no model_type ({error!r}).") from error
    if model_type == StilleConfig.model_type:
        return StilleConfig.from_dict(raw)
    if model_type not in FAMILIES:
        known = ", ".join([StilleConfig.model_type, *FAMILIES])
        raise CheckpointError(f"{folder} has architecture {model_type!r}; readable are {known}.")
    if raw.get("quantization_config"):
        method = raw["quantization_config"].get("quant_method", "unknown")
        raise CheckpointError(f"{folder} is quantised ({method}); use its original weights, or a GGUF file.")
    # transformers' own class of the family fills in what the file leaves to defaults.
    theirs = AutoConfig.from_pretrained(folder, local_files_only=True)
    return _translate(theirs, **FAMILIES[model_type](theirs))


# What a family's configuration says in its own words.
FAMILIES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "llama": lambda c: {"attention_bias": c.attention_bias, "attention_output_bias": c.attention_bias},
    "mistral": lambda c: {},
    "qwen2": lambda c: {"attention_bias": True},
    "qwen3": lambda c: {"attention_bias": c.attention_bias, "attention_output_bias": c.attention_bias, "qk_norm": True},
}


def _translate(theirs: Any, **flags: Any) -> StilleConfig:
    if getattr(theirs, "mlp_bias", False):
        raise CheckpointError("mlp_bias=true: an FFN with biases is not supported.")
    same = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
        "max_position_embeddings rms_norm_eps rope_parameters tie_word_embeddings hidden_act attention_dropout "
        "initializer_range pad_token_id bos_token_id eos_token_id"
    )
    # A window counts only where some layer uses it; Mistral has no list of layers: all of them do.
    layers = getattr(theirs, "layer_types", None)
    windowed = layers is None or any(kind != "full_attention" for kind in layers)
    values: dict[str, Any] = {name: getattr(theirs, name) for name in same.split()}
    values["head_dim"] = getattr(theirs, "head_dim", None)
    values["sliding_window"] = getattr(theirs, "sliding_window", None) if windowed else None
    return StilleConfig(**values, **flags)


class _Bar:
    """A progress bar as a context manager; its value is the callback `(done, total)`."""

    def __init__(self, title: str, unit: str, shown: bool):
        self.title, self.unit, self.shown = title, unit, shown
        self.bar: Any = None

    def __enter__(self) -> Callable[[int, int], None]:
        return self.update

    def update(self, done: int, total: int) -> None:
        if self.bar is None:
            # disable=None: no bar where the output is not a terminal
            options: dict[str, Any] = {"unit": self.unit, "unit_scale": self.unit == "B", "leave": False}
            self.bar = tqdm(total=total, desc=self.title, disable=None if self.shown else True, **options)
        self.bar.total = total
        self.bar.update(done - self.bar.n)

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
