"""Tokenizers of checkpoints, and the tokens that end an answer."""

import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from stille.errors import CheckpointError
from stille.model.config import StilleConfig
from stille.model.convert.delta import is_delta, read_delta
from stille.model.gguf_file import GGUFFile
from stille.model.gguf_tokenizer import gguf_tokenizer
from stille.model.store import resolve

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")
GENERATION_FILE = "generation_config.json"
# Ends of a turn, counted where the chat template writes them; the last one ends documents and always counts.
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>")
DOCUMENT_END = "<|endoftext|>"


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or a GGUF file; a delta's is its base's.

    Args:
        path: as `store.resolve` returns it.

    Raises:
        CheckpointError: there is none, or it is not readable.
    """
    path = Path(path)
    if is_delta(path):
        delta = read_delta(path)
        with delta.naming():
            path = resolve(delta.base_source())
    if path.is_file():
        return gguf_tokenizer(GGUFFile(path).metadata, path)
    if not any((path / name).exists() for name in TOKENIZER_FILES):
        # transformers would make up an empty tokenizer of the family
        raise CheckpointError(f"{path} has no readable tokenizer: none of {', '.join(TOKENIZER_FILES)} is there.")
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise CheckpointError(
            f"{path} has no readable tokenizer ({error}). It should hold tokenizer.json and tokenizer_config.json."
        ) from error


def end_token_ids(path: str | Path, config: StilleConfig, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends an answer.

    They come from `generation_config.json`, the model's configuration, the tokenizer, and the ends of turn that its
    chat template writes: checkpoints name their chat's end token in any of these places.

    Returns:
        Ids without repetition, the most authoritative first.
    """
    found: list[int] = []

    def add(ids: Any) -> None:
        for token_id in ids if isinstance(ids, list) else [ids]:
            if isinstance(token_id, int) and 0 <= token_id < config.vocab_size and token_id not in found:
                found.append(token_id)

    file = Path(path) / GENERATION_FILE
    if file.exists():
        try:
            add(json.loads(file.read_text(encoding="utf-8")).get("eos_token_id"))
        except (ValueError, AttributeError) as error:
            raise CheckpointError(f"{file} is damaged ({error!r}).") from error
    add(config.eos_token_id)
    add(tokenizer.eos_token_id)
    special = {token.content: token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    template = str(tokenizer.chat_template or "")
    for token in TURN_ENDS:
        if token in special and token in template:
            add(special[token])
    if DOCUMENT_END in special:
        add(special[DOCUMENT_END])
    return found
