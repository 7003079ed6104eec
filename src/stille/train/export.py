"""A trained model as a folder that `load_model` and the engine read; a whole one also transformers."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from stille.errors import ConfigError
from stille.model.convert.delta import DeltaSource, put_in_place, read_delta, write_delta
from stille.model.convert.low_rank import low_rank_delta
from stille.model.decoder import StilleForCausalLM
from stille.model.load import fetch, fetch_base, folder_config, open_weights
from stille.train.loop import Result


def export(model: StilleForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write weights, configuration and tokenizer; the folder is there whole or not at all, an older one is replaced.

    Args:
        model: written in its own dtype; what balances gates stays in float32.
        tokenizer: of the model.
        folder: where to; its parent exists.

    Raises:
        ConfigError: the folder holds something that is no model.
    """
    if folder.exists() and not (folder / "config.json").exists():
        raise ConfigError(f"{folder} is there and is no model: the trained model cannot be written. Move it away.")
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        os.chmod(scratch, 0o755)
        put_in_place(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def export_delta(result: Result, start: str | Path, folder: Path, about: Mapping[str, Any] | None = None) -> None:
    """Write a run of low rank as a delta on the base of the delta that it began with; whole or not at all.

    What is loaded from it is the trained model: to the bit where it is loaded on the machine that trained it, up to the
    rounding of B A in float32 elsewhere. (If `start` had pairs of its own, up to that rounding everywhere. After a run
    with `quantize`, it is the model before its matrices are rounded.)

    Args:
        result: of a finished run with `rank`.
        start: the delta that was trained.
        folder: new, empty, or a delta, which is replaced.
        about: how it was made, for `delta.json`.

    Raises:
        ConfigError: the run trained all weights, or the folder holds something else.
        CheckpointError, ModelNotFoundError: `start` or its base have changed or are gone.
    """
    if result.pairs is None:
        raise ConfigError("all weights were trained, not pairs of low rank: export the whole model.")
    path = fetch(start, False)
    delta = read_delta(path)
    config = folder_config(path)
    source = DeltaSource(delta, config, *open_weights(fetch_base(delta, False)))
    tensors = low_rank_delta(result.model.state_dict(), result.pairs.tensors, result.pairs.whole, source)
    write_delta(folder, config, delta.base_source(), delta.digests, tensors, about)
