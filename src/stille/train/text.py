"""Documents from files, and the byte tokenizer: what training reads before there are tokens."""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from stille.errors import ConfigError
from stille.model.convert.text import line_texts

logger = logging.getLogger(__name__)

SUFFIXES = (".txt", ".md", ".rst", ".py", ".jsonl")
"""Files that a folder is searched for."""
END = "<|endoftext|>"


def list_files(paths: Iterable[str | Path]) -> list[Path]:
    """Files to read: those given, and in folders all with one of `SUFFIXES`, sorted.

    Raises:
        ConfigError: a path leads nowhere, or there is no file.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found += sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
        elif path.is_file():
            found.append(path)
        else:
            raise ConfigError(f"there is no text {path}: give files or folders.")
    if not found:
        raise ConfigError(f"no text was found: folders are searched for {', '.join(SUFFIXES)}.")
    return found


def read_documents(files: Iterable[Path]) -> Iterator[str]:
    """One document for each file, and for each line of a .jsonl file its field "text". Empty ones are left out.

    Raises:
        ConfigError: a line of a .jsonl file has no text.
    """
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            logger.warning("%s is not UTF-8; left out.", file)
            continue
        if file.suffix != ".jsonl":
            if text.strip():
                yield text
            continue
        yield from line_texts(text, file)


def byte_tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer whose tokens 0 to 255 are the bytes of UTF-8, and 256 the end of a document."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    # GPT-2's letters for bytes: printable ones stand for themselves, the others follow from 256 on.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(rest)}
    core = Tokenizer(models.BPE({letter: byte for byte, letter in letters.items()} | {END: 256}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, pad_token=END)


def is_byte_tokenizer(tokenizer: PreTrainedTokenizerBase) -> bool:
    return len(tokenizer) == 257 and tokenizer.eos_token == END


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[np.ndarray]:
    """Token ids of documents, each followed by the end token if the tokenizer has one: int64 arrays."""
    if is_byte_tokenizer(tokenizer):  # the same ids, without a search for merges that are not there
        rows: Any = [np.frombuffer(text.encode("utf-8"), dtype=np.uint8) for text in texts]
    else:
        rows = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return [np.concatenate([np.asarray(row, dtype=np.int64), np.asarray(end, dtype=np.int64)]) for row in rows]
