"""Documents of a text in batches: rows of about equal length, padded on the right, positions as in use.

A batch follows from the seed, the epoch and its place; so a run that goes on needs no more than where it stands.
Shapes: B rows, T tokens of a row, M positions that are learned from.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from stille.errors import ConfigError
from stille.train.draft.text import COLUMNS, read_note

POOL = 8192  # documents that are sorted by length together


@dataclass(frozen=True)
class DraftText:
    """Text of a folder, or a part of it.

    Attributes:
        tokens: [N] unsigned integers, documents one after the other.
        begin, length, start, prompt, domain, greedy, held_out: int64 of each document: where it begins, its tokens, the
            first position that is learned from (relative), tokens of its prompt, number in `domains`, 0 or 1, 0 or 1.
        domains: their names.
        vocab: size of the tokenizer that made it.
        digest: of all of it.
    """

    tokens: np.ndarray
    begin: np.ndarray
    length: np.ndarray
    start: np.ndarray
    prompt: np.ndarray
    domain: np.ndarray
    greedy: np.ndarray
    held_out: np.ndarray
    domains: list[str]
    vocab: int
    digest: str

    def select(self, chosen: np.ndarray) -> "DraftText":
        """Some documents: bool, or numbers; tokens stay where they are."""
        columns = {name: getattr(self, name)[chosen] for name in ("begin", *COLUMNS)}
        return DraftText(self.tokens, **columns, domains=self.domains, vocab=self.vocab, digest=self.digest)

    @property
    def positions(self) -> int:
        """How many can be learned from: those before the last two tokens of a document."""
        return int((self.length - 2 - self.start).clip(min=0).sum())


def open_text(folder: Path) -> DraftText:
    """All shards of a folder.

    Raises:
        ConfigError: there is no text, or a shard is damaged.
    """
    note = read_note(folder)
    files = sorted(folder.glob("shard-*.npz"))
    if not files:
        raise ConfigError(f"{folder} holds no shard of text; make some by `stille train draft --prompts FILES`.")
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("tokens", *COLUMNS)}
    for file in files:
        try:
            with np.load(file) as arrays:
                for name, found in parts.items():
                    found.append(arrays[name])
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            raise ConfigError(f"{file} is damaged ({error!r}); delete it, it is made again.") from error
    tokens = np.concatenate(parts.pop("tokens"))
    columns = {name: np.concatenate(found).astype(np.int64) for name, found in parts.items()}
    if int(columns["length"].sum()) != len(tokens):
        raise ConfigError(f"the shards in {folder} are damaged: documents and tokens do not fit. Delete the folder.")
    begin = np.cumsum(columns["length"]) - columns["length"]
    digest = hashlib.sha256(np.ascontiguousarray(tokens).tobytes())
    for name in COLUMNS:
        digest.update(columns[name].tobytes())
    return DraftText(tokens, begin, **columns, domains=note["domains"], vocab=note["vocab"], digest=digest.hexdigest())


def frequent_tokens(text: DraftText, count: int, vocab_size: int) -> np.ndarray:
    """int64 [count], ascending: the tokens that are drafted, by how often they are to be guessed in the text.

    Of prompts of chats nothing is guessed, so they do not count.
    """
    counts = np.zeros(vocab_size, np.int64)
    for at in range(len(text.length)):
        first, last = text.begin[at] + text.start[at] + 1, text.begin[at] + text.length[at]
        np.add.at(counts, text.tokens[first:last], 1)
    order = np.lexsort((np.arange(vocab_size), -counts))
    return np.sort(order[:count])


@dataclass(frozen=True)
class DraftBatch:
    """Rows for the target, and positions to draft from.

    Attributes:
        ids_BT: int64, the last token of each document left out, 0 behind its end.
        next_BT: int64, the token that follows each.
        row_M: int64, flat places (b * T + t) of positions.
        steps_M: int64, draft steps that the document leaves room for, 1 at least.
        document_M: int64, whose position it is: a number within the text that the batch is from.
        want_R: int64, flat places whose distributions drafts from the positions are compared with, ascending.
        found_P: int64 [B * T], number of each place in `want_R`; 0 for others.
    """

    ids_BT: Tensor
    next_BT: Tensor
    row_M: Tensor
    steps_M: Tensor
    document_M: Tensor
    want_R: Tensor
    found_P: Tensor

    def to(self, device: torch.device) -> "DraftBatch":
        if device.type != "cuda":
            return self
        parts = (getattr(self, field.name) for field in fields(self))
        return DraftBatch(*(x.pin_memory().to(device, non_blocking=True) for x in parts))


def make_batch(
    text: DraftText, documents: np.ndarray, steps: int, most: int | None = None, seed: Sequence[int] = ()
) -> DraftBatch:
    """A batch of documents.

    Args:
        text: theirs.
        documents: int64 numbers.
        steps: of a draft.
        most: positions, drawn at random from all that there are; None: all, in order.
        seed: of the drawing, integers.
    """
    length = text.length[documents]
    width = int(length.max()) - 1
    place_BT = np.arange(width)
    inside_BT = place_BT < (length - 1)[:, None]
    at_BT = np.where(inside_BT, text.begin[documents][:, None] + place_BT, text.begin[documents][:, None])
    ids_BT = np.where(inside_BT, text.tokens[at_BT], 0).astype(np.int64)
    next_BT = np.where(inside_BT, text.tokens[at_BT + 1], 0).astype(np.int64)
    # A draft from p guesses the token after p + 1 first: rows p + 1 .. length - 2 are left for steps.
    room_BT = (length - 2)[:, None] - place_BT
    row_M = np.flatnonzero((room_BT >= 1) & (place_BT >= text.start[documents][:, None]))
    if most is not None and len(row_M) > most:
        row_M = np.sort(np.random.default_rng(list(seed)).choice(row_M, most, replace=False))
    steps_M = np.minimum(room_BT.reshape(-1)[row_M], steps)
    wanted_P = np.zeros(ids_BT.size, bool)
    for step in range(steps):
        wanted_P[row_M[steps_M > step] + step + 1] = True
    found_P = np.where(wanted_P, np.cumsum(wanted_P) - 1, 0)
    parts = (ids_BT, next_BT, row_M, steps_M, documents[row_M // width], np.flatnonzero(wanted_P), found_P)
    return DraftBatch(*(torch.from_numpy(np.ascontiguousarray(part)) for part in parts))


def plan_epoch(text: DraftText, batch_tokens: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The documents of every batch of an epoch: each document once, those of a batch of about the same length.

    Args:
        batch_tokens: most tokens of a batch, padding included; a longer document is a batch of its own.
    """
    dice = np.random.default_rng([seed, epoch])
    order = dice.permutation(len(text.length))
    batches: list[np.ndarray] = []
    for at in range(0, len(order), POOL):
        pool = order[at : at + POOL]
        batches += by_length(text, pool, batch_tokens)
    return [batches[number] for number in dice.permutation(len(batches))]


def by_length(text: DraftText, documents: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Documents sorted by length, the longest first, and cut into batches."""
    documents = documents[np.argsort(-text.length[documents], kind="stable")]
    found, at = [], 0
    while at < len(documents):
        rows = max(1, batch_tokens // max(1, int(text.length[documents[at]]) - 1))
        found.append(documents[at : at + rows])
        at += rows
    return found
