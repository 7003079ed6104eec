"""A trained model as a folder that `load_model`, the engine and transformers read."""

import os
import shutil
import tempfile
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from stille.errors import ConfigError
from stille.model.convert.delta import put_in_place
from stille.model.decoder import StilleForCausalLM


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
