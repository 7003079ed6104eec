"""Prompts that a target answers to make text for its draft head: from files, in its chat format or to be continued."""

import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stille.engine.prompts import Prompts
from stille.errors import ConfigError, StilleError

PIECE = 1500  # characters of a .txt file that become a prompt's text
PREFIX = (16, 96)  # tokens of a text that are continued


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        key: hash of what it says.
        domain: of the tables of results.
        messages: a conversation to be answered; empty: `text` is continued.
        text: whose beginning is continued.
        held_out: its answers only judge.
    """

    key: int
    domain: str
    messages: tuple[dict[str, Any], ...]
    text: str
    held_out: bool


@dataclass(frozen=True)
class Encoded:
    """A prompt as tokens; `chat`: its answer begins behind it, so that nothing before is learned from."""

    ids: list[int]
    chat: bool


def read_prompts(files: Sequence[Path], held_out: float = 0.01) -> list[Prompt]:
    """Prompts of files, in the order given, each once.

    Args:
        files: .jsonl, each line with "messages" (a conversation that ends with the user's turn), "prompt" (the user's
            words) or "text" (its beginning is continued), and if wanted "domain" (a name) and "held_out" (true: only
            judges); or plain text, cut into pieces that are continued, whose domain is the file's name.
        held_out: share that only judges, by hash, among lines that do not say so themselves.

    Raises:
        ConfigError: a file cannot be read, a line is no prompt, or there is none.
    """
    found: dict[int, Prompt] = {}
    for file in files:
        try:
            content = file.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise ConfigError(f"the prompts {file} cannot be read: {error}.") from error
        rows = _lines(content, file) if file.suffix == ".jsonl" else ({"text": text} for text in _pieces(content))
        for place, row in enumerate(rows, 1):
            prompt = _prompt(row, f"{file}, prompt {place}", file.stem, held_out)
            found.setdefault(prompt.key, prompt)
    if not found:
        raise ConfigError(f"{', '.join(map(str, files)) or 'no file'}: there is no prompt; name files with prompts.")
    return list(found.values())


def encode(prompts: Prompts, prompt: Prompt) -> Encoded:
    """A prompt as tokens: a conversation in the chat format, or as many tokens of the text as its hash says.

    Raises:
        UnsupportedError: a conversation, and the model has no chat format.
        InvalidRequestError: the chat format refuses it.
    """
    if prompt.messages:
        return Encoded(prompts.render_chat(prompt.messages), True)
    size = random.Random(prompt.key).randint(*PREFIX)
    return Encoded(prompts.encode(prompt.text[: 12 * size], add_special_tokens=False)[:size], False)


def encode_all(prompts: Prompts, asked: Iterable[Prompt], most: int) -> list[tuple[Prompt, Encoded]]:
    """Those that have 2 to `most` tokens; one that the chat format refuses is left out."""
    found = []
    for prompt in asked:
        try:
            encoded = encode(prompts, prompt)
        except StilleError:
            if not getattr(prompts.tokenizer, "chat_template", None):
                raise
            continue
        if 2 <= len(encoded.ids) <= most:
            found.append((prompt, encoded))
    return found


def _lines(content: str, file: Path) -> Iterable[dict[str, Any]]:
    for number, line in enumerate(content.split("\n"), 1):  # not splitlines: JSON may hold other line ends as they are
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{file}, line {number}: no JSON ({error}).") from error
        if not isinstance(row, dict):
            raise ConfigError(f"{file}, line {number}: expected an object, got {type(row).__name__}.")
        yield row


def _pieces(content: str) -> Iterable[str]:
    """Runs of whole paragraphs of about `PIECE` characters."""
    piece = ""
    for paragraph in content.split("\n\n"):
        piece += paragraph + "\n\n"
        if len(piece) >= PIECE:
            yield piece
            piece = ""
    if piece.strip():
        yield piece


def _prompt(row: dict[str, Any], where: str, stem: str, held_out: float) -> Prompt:
    messages, text = row.get("messages"), row.get("text")
    if messages is None and isinstance(row.get("prompt"), str):
        messages = [{"role": "user", "content": row["prompt"]}]
    if messages is not None:
        fine = isinstance(messages, list) and all(
            isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
            for m in messages
        )
        if not fine or not messages or messages[-1]["role"] == "assistant":
            raise ConfigError(f'{where}: "messages" must be a list of role and content that ends with a user\'s turn.')
    elif not isinstance(text, str) or not text.strip():
        raise ConfigError(f'{where}: expected "messages", "prompt" or "text", got {sorted(row)}.')
    said = json.dumps(messages if messages is not None else text, sort_keys=True)
    key = int.from_bytes(hashlib.sha256(said.encode("utf-8", "surrogatepass")).digest()[:7], "big")
    marked = row.get("held_out")
    return Prompt(
        key,
        str(row.get("domain") or stem),
        tuple(messages or ()),
        "" if messages is not None else str(text),
        bool(marked) if marked is not None else key / 2**56 < held_out,
    )
