"""Text that a conversion looks at: files, or what Python's own standard library says, and tokens of it."""

import ast
import json
import random
import sysconfig
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stille.errors import ConfigError

HELD_OUT = 8  # one of so many documents only judges
PIECE = 4  # characters of a document taken at a time, per token of a sequence
TOGETHER = 64  # pieces tokenised at once


def read_documents(files: Sequence[Path] = ()) -> list[str]:
    """Texts of files, in the order given; of none, those of the standard library.

    A .jsonl file has a document in each line, its field "text".

    Raises:
        ConfigError: a file that cannot be read, or holds nothing, or a line without a text.
    """
    if not files:
        return library_documents()
    documents = []
    for file in files:
        try:
            content = file.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise ConfigError(f"the text {file} cannot be read: {error}.") from error
        documents += list(line_texts(content, file)) if file.suffix == ".jsonl" else [content]
    if not any(text.strip() for text in documents):
        raise ConfigError(f"{', '.join(map(str, files))}: no text in it; name files with text.")
    return documents


def line_texts(content: str, file: Path) -> Iterator[str]:
    """The field "text" of each line of a .jsonl file.

    Raises:
        ConfigError: a line has none.
    """
    for number, line in enumerate(content.split("\n"), 1):  # not splitlines: JSON may hold other line ends as they are
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f'{file}, line {number}: expected a JSON object with a "text" ({error!r}).') from error
        if not isinstance(text, str):
            raise ConfigError(f'{file}, line {number}: "text" is {type(text).__name__}, expected a string.')
        yield text


def library_documents() -> list[str]:
    """Sources of the standard library's modules, and of each its docstrings, which are prose.

    They depend on the version of Python.
    """
    documents = []
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        content = file.read_text(encoding="utf-8", errors="replace")
        documents += [text for text in (f"# {file.name}\n{content}", docstrings(file.stem, content)) if text.strip()]
    return documents


def docstrings(name: str, source: str) -> str:
    """What a module says of itself in words."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    try:
        nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    except SyntaxError:
        return ""
    said = [(getattr(node, "name", name), ast.get_docstring(node)) for node in nodes]
    return "\n\n".join(f"{title}\n{words}" for title, words in said if words)


def split_documents(documents: Sequence[str]) -> tuple[list[str], list[str]]:
    """(to calibrate with, held out): one document in eight, or the last eighth of each where there are fewer."""
    if len(documents) >= HELD_OUT:
        judged = documents[HELD_OUT - 1 :: HELD_OUT]
        return [text for i, text in enumerate(documents) if i % HELD_OUT != HELD_OUT - 1], list(judged)
    ends = [len(text) - len(text) // HELD_OUT for text in documents]
    pairs = list(zip(documents, ends, strict=True))
    return [text[:end] for text, end in pairs], [text[end:] for text, end in pairs]


def take_tokens(
    tokenizer: Any, documents: Iterable[str], count: int, length: int, seed: int, role: str, *, most: int | None = None
) -> Tensor:
    """int64 [count // length, length]: pieces of the documents in random order, one after another.

    Args:
        most: so many tokens if the documents have them, `count` being the least; None: `count`.

    Raises:
        ConfigError: the documents have fewer tokens.
    """
    step = PIECE * length
    pieces = [text[at : at + step] for text in documents for at in range(0, len(text), step)]
    random.Random(seed).shuffle(pieces)
    wanted, ids = max(count, most or 0) // length * length, array("q")
    end = tokenizer.eos_token_id
    for at in range(0, len(pieces), TOGETHER):
        for found in tokenizer(pieces[at : at + TOGETHER]).input_ids:
            ids.extend(found)
            if end is not None:
                ids.append(end)
        if len(ids) >= wanted:
            break
    if len(ids) < count // length * length:
        raise ConfigError(
            f"the text gives {len(ids):,} {role} tokens, {count // length * length:,} are wanted: give more text or "
            "ask for less."
        )
    kept = min(wanted, len(ids) // length * length)
    return torch.tensor(ids[:kept], dtype=torch.long).view(-1, length)
