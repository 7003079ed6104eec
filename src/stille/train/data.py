"""Tokens on disk, and the batch of every step.

All documents lie one after the other in a memory-mapped file; sequence i is its tokens i*T .. i*T + T. No token is
padding, so gates count nothing but text. A sequence that holds several documents keeps them apart: positions start
again, attention stays within a document, and the last token of one does not predict the first of the next. A document
that a sequence cuts goes on in another one, without what came before.

The batch of a step follows from seed and step alone: resuming needs no state, and nothing is read twice in an epoch.
A step's sequences are cut into micro-batches, which are dealt to the processes in turn; so N processes together compute
the same micro-batches as one.

Shapes: B sequences of a micro-batch, T tokens of a sequence.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from stille.errors import ConfigError
from stille.train.text import encode, is_byte_tokenizer, list_files, read_documents

IGNORED = -100
"""Label of a token that predicts nothing."""
META = "meta.json"


@dataclass(frozen=True)
class TokenStore:
    """Tokens of many documents.

    Attributes:
        tokens: [N] unsigned integers, memory-mapped.
        starts: int64, where each document begins.
        digest: of both, so that a resumed run knows its data.
    """

    tokens: np.ndarray
    starts: np.ndarray
    digest: str

    @classmethod
    def from_documents(cls, documents: list[np.ndarray], dtype: type = np.uint32) -> "TokenStore":
        """In memory; what tests and small experiments need."""
        tokens = np.concatenate(documents).astype(dtype)
        starts = np.cumsum([0, *(len(row) for row in documents[:-1])])
        return cls(tokens, starts, _digest(tokens, starts))

    def sequences(self, length: int) -> int:
        """How many of a length there are; the last token of each needs one to predict."""
        return max(0, (len(self.tokens) - 1) // length)


def prepare(
    paths: list[str] | list[Path], tokenizer: PreTrainedTokenizerBase, cache: Path, *, held_out: float = 0.02
) -> tuple[TokenStore, TokenStore]:
    """Tokenise files once: stores for training and for evaluation, from the cache if nothing changed.

    Args:
        paths: files and folders, see `text.list_files`.
        tokenizer: of the model.
        cache: folder for the results.
        held_out: share of the documents kept for evaluation, chosen by what they say, so that equal documents stay
            together.

    Raises:
        ConfigError: no text, or too little of it to hold some out.
    """
    files = list_files(paths)
    if not 0 < held_out < 1:
        raise ConfigError(f"held_out={held_out}, expected a share between 0 and 1.")
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    name = "bytes" if is_byte_tokenizer(tokenizer) else repr(tokenizer) if backend is None else backend.to_str()
    stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = hashlib.sha256(json.dumps([1, stats, name, tokenizer.eos_token_id, held_out]).encode()).hexdigest()[:16]
    folder = cache / key
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=cache, prefix=".making-"))
        try:
            _tokenise(files, tokenizer, scratch, held_out)
            os.replace(scratch, folder)
        except OSError:
            if not folder.exists():  # another process may have been faster with the same result
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return open_store(folder / "train"), open_store(folder / "held-out")


def store_of(files: list[Path], tokenizer: PreTrainedTokenizerBase, folder: Path) -> TokenStore:
    """All documents of files as one store, kept in a folder; if that is there, it is opened.

    Raises:
        ConfigError: no document, or the folder is damaged.
    """
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".making-"))
        try:
            writer = _Writer(scratch / "store", np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32)
            documents = read_documents(files)
            while texts := list(islice(documents, 64)):
                for ids in encode(tokenizer, texts):
                    writer.add(ids)
            if not writer.starts:
                raise ConfigError(f"there is no document in {', '.join(map(str, files))}.")
            writer.close()
            os.replace(scratch / "store", folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return open_store(folder)


def open_store(folder: Path) -> TokenStore:
    """A store that `prepare` wrote.

    Raises:
        ConfigError: it is damaged.
    """
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        tokens = np.memmap(folder / "tokens.bin", dtype=meta["dtype"], mode="r")
        starts = np.load(folder / "starts.npy")
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"the tokens in {folder} are damaged ({error}); delete the folder, they are made again."
        ) from error
    if (len(tokens), len(starts)) != (meta["tokens"], meta["documents"]):
        raise ConfigError(f"the tokens in {folder} are incomplete; delete the folder, they are made again.")
    return TokenStore(tokens, starts, meta["digest"])


def _tokenise(files: list[Path], tokenizer: PreTrainedTokenizerBase, folder: Path, held_out: float) -> None:
    dtype = np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32
    writers = {part: _Writer(folder / part, dtype) for part in ("train", "held-out")}
    documents = read_documents(files)
    while texts := list(islice(documents, 64)):
        for text, ids in zip(texts, encode(tokenizer, texts), strict=True):
            chance = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
            writers["held-out" if chance < held_out else "train"].add(ids)
    for part, writer in writers.items():
        writer.close()
        if not writer.starts:
            raise ConfigError(
                f"no document was left for {part}, with {held_out:.0%} of them held out: give more documents (files, "
                "or lines of .jsonl), or another share."
            )


class _Writer:
    def __init__(self, folder: Path, dtype: type):
        folder.mkdir()
        self.folder, self.dtype = folder, np.dtype(dtype)
        self.file = (folder / "tokens.bin").open("wb")
        self.starts: list[int] = []
        self.count = 0

    def add(self, ids: np.ndarray) -> None:
        self.starts.append(self.count)
        self.count += len(ids)
        self.file.write(ids.astype(self.dtype).tobytes())

    def close(self) -> None:
        self.file.close()
        starts = np.asarray(self.starts, dtype=np.int64)
        np.save(self.folder / "starts.npy", starts)
        tokens = np.fromfile(self.folder / "tokens.bin", dtype=self.dtype)
        meta = {"dtype": self.dtype.name, "tokens": self.count, "documents": len(starts)}
        (self.folder / META).write_text(json.dumps({**meta, "digest": _digest(tokens, starts)}), encoding="utf-8")


def _digest(tokens: np.ndarray, starts: np.ndarray) -> str:
    found = hashlib.sha256()
    for part in (tokens, starts):
        flat: Any = np.ascontiguousarray(part)
        found.update(flat)
    return found.hexdigest()[:16]


@dataclass(frozen=True)
class Batch:
    """A micro-batch.

    Attributes:
        ids_BT: int64 tokens.
        label_BT: int64, the token to predict, or `IGNORED`.
        position_BT: int64, position in the document, or in the part of it that the sequence holds.
        bounds: int32, where a document begins in the flat tokens, and their number at the end.
        whole: every sequence is of one document: plain causal attention is right.
    """

    ids_BT: Tensor
    label_BT: Tensor
    position_BT: Tensor
    bounds: Tensor
    whole: bool

    def to(self, device: torch.device) -> "Batch":
        if device.type != "cuda":
            return self
        parts = (self.ids_BT, self.label_BT, self.position_BT, self.bounds)
        return Batch(*(x.pin_memory().to(device, non_blocking=True) for x in parts), whole=self.whole)

    def mask(self) -> Tensor | None:
        """bool [B, 1, T, T], who attends to whom; None: plain causal attention."""
        if self.whole:
            return None
        place_T = torch.arange(self.ids_BT.shape[1], device=self.ids_BT.device)
        start_BT = place_T - self.position_BT  # where a token's document begins: the same within one
        same_BTT = start_BT[:, :, None] == start_BT[:, None, :]
        return (same_BTT & (place_T[:, None] >= place_T)).unsqueeze(1)


class Batches:
    """The micro-batches of every step.

    Args:
        store: the tokens.
        length: T.
        batch: sequences of a step, over all processes.
        micro_batch: B.
        seed: of the order; each epoch has its own.
        rank, ranks: which part of a step is this process's.

    Raises:
        ConfigError: less text than one sequence, or micro-batches that cannot be dealt to the processes evenly.
    """

    def __init__(
        self,
        store: TokenStore,
        *,
        length: int,
        batch: int,
        micro_batch: int,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ):
        self.store, self.length, self.batch, self.micro_batch = store, length, batch, micro_batch
        self.seed, self.rank, self.ranks = seed, rank, ranks
        self.count = store.sequences(length)
        if not self.count:
            raise ConfigError(
                f"the text has {len(store.tokens)} tokens, less than one sequence of {length} and its end."
            )
        if batch % micro_batch or batch // micro_batch % ranks:
            raise ConfigError(
                f"a batch of {batch} sequences in micro-batches of {micro_batch} cannot be dealt to {ranks} processes "
                "evenly: batch must be a multiple of micro_batch times the number of processes."
            )
        self._epoch, self._order = -1, np.zeros(0, dtype=np.int64)

    def numbers(self, step: int) -> np.ndarray:
        """Numbers of the step's sequences, over all processes: int64 [batch]."""
        places = range(step * self.batch, (step + 1) * self.batch)
        return np.asarray([self._shuffled(place // self.count)[place % self.count] for place in places])

    def _shuffled(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.count)
        return self._order

    def labels(self, step: int) -> int:
        """How many tokens of the step predict one, over all processes."""
        first = self.numbers(step) * self.length
        starts = np.searchsorted(self.store.starts, [first, first + self.length], side="right")
        return int(self.batch * self.length - (starts[1] - starts[0]).sum())

    def step(self, step: int) -> list[Batch]:
        """This process's micro-batches of a step, on the CPU."""
        micro = self.numbers(step).reshape(-1, self.micro_batch)[self.rank :: self.ranks]
        return [make_batch(self.store, numbers, self.length) for numbers in micro]


def make_batch(store: TokenStore, numbers: np.ndarray, length: int) -> Batch:
    """Sequences by their numbers."""
    place_BT = numbers[:, None] * length + np.arange(length + 1)
    window = torch.from_numpy(store.tokens[place_BT].astype(np.int64))
    document_BT = np.searchsorted(store.starts, place_BT, side="right")
    start_BT = np.maximum(store.starts[document_BT - 1], place_BT[:, :1])
    ends = torch.from_numpy(document_BT[:, 1:] != document_BT[:, :-1])
    position_BT = (place_BT - start_BT)[:, :-1]
    return Batch(
        window[:, :-1].contiguous(),
        window[:, 1:].masked_fill(ends, IGNORED),
        torch.from_numpy(position_BT).contiguous(),
        torch.from_numpy(np.append(np.flatnonzero(position_BT == 0), position_BT.size).astype(np.int32)),
        whole=bool((document_BT[:, -2] == document_BT[:, 0]).all()),
    )


def in_order(store: TokenStore, length: int, micro_batch: int, most: int) -> Iterator[Batch]:
    """Up to `most` sequences spread evenly over the store, the same ones every time: for evaluation."""
    count = store.sequences(length)
    numbers = np.unique(np.linspace(0, count - 1, min(most, count)).astype(np.int64)) if count and most else []
    for begin in range(0, len(numbers), micro_batch):
        yield make_batch(store, np.asarray(numbers[begin : begin + micro_batch]), length)
