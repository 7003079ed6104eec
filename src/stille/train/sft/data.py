"""Conversations as rows of tokens.

A row has T tokens and holds whole conversations, each a document of its own: positions start again and attention stays
inside. What is left of a row is filled with the beginning of its own text once more, a document that nothing is learned
from, so that gates count nothing but text. A token is learned, as a label, only where the assistant wrote it.
"""

import bisect
import hashlib
import itertools
import multiprocessing
import os
import pickle
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stille.errors import ConfigError
from stille.train.data import IGNORED, Batch, Batches, TokenStore, make_batch
from stille.train.sft.conversations import Conversation
from stille.train.sft.render import CALL, Rendered, Renderer

POOL = 2048  # conversations that are packed together
CHUNK = 256  # of them, rendered together by a process


@dataclass(frozen=True)
class Rows(TokenStore):
    """Packed conversations.

    Attributes:
        learned: uint8 [N], of each token: 0 not learned, else `render.TEXT` or `render.CALL`.
        length: T.
        conversations, answers, learned_tokens, text_tokens, dropped: how many; text without the filling; too long for
            a row.
    """

    learned: np.ndarray
    length: int
    conversations: int
    answers: int
    learned_tokens: int
    text_tokens: int
    dropped: int

    @property
    def rows(self) -> int:
        return self.sequences(self.length)


def pack(rendered: Iterable[Rendered], length: int, seed: int = 0) -> Rows:
    """Rows of conversations.

    Args:
        rendered: the conversations.
        length: T.
        seed: of which ones share a row.

    Raises:
        ConfigError: none fits into a row.
    """
    every = list(rendered)
    fitting = [each for each in every if len(each.ids) <= length]
    if not fitting:
        raise ConfigError(
            f"none of {len(every)} conversations fits into {length} tokens: give a larger length, or shorter ones."
        )
    order = np.random.default_rng(seed).permutation(len(fitting))
    rows = [
        row
        for at in range(0, len(order), POOL)
        for row in _best_fit([fitting[index] for index in order[at : at + POOL]], length)
    ]
    tokens = np.zeros(len(rows) * length + 1, np.uint32)
    learned = np.zeros(len(tokens), np.uint8)
    starts: list[int] = []
    for number, row in enumerate(rows):
        at = first = number * length
        for each in row:
            starts.append(at)
            tokens[at : at + len(each.ids)] = each.ids
            learned[at : at + len(each.ids)] = each.learned
            at += len(each.ids)
        if left := first + length - at:
            starts.append(at)
            tokens[at : at + left] = np.resize(tokens[first:at], left)
    starts.append(len(rows) * length)  # the last token, which only ends the last row
    digest = hashlib.sha256()
    bounds: Any = np.asarray(starts, dtype=np.int64)
    for part in (tokens, learned, bounds):
        digest.update(part.data)
    return Rows(
        tokens, bounds, digest.hexdigest()[:16], learned, length, len(fitting),
        sum(each.answers for each in fitting), int(np.count_nonzero(learned)), sum(len(each.ids) for each in fitting),
        len(every) - len(fitting),
    )  # fmt: skip


def _best_fit(rendered: list[Rendered], length: int) -> list[list[Rendered]]:
    """The longest first, each into the row that it leaves least room in."""
    rows: list[list[Rendered]] = []
    room: list[tuple[int, int]] = []  # of each row, ascending, and its number
    for each in sorted(rendered, key=lambda each: -len(each.ids)):
        place = bisect.bisect_left(room, (len(each.ids), -1))
        if place == len(room):
            rows.append([])
            left, number = length, len(rows) - 1
        else:
            left, number = room.pop(place)
        rows[number].append(each)
        bisect.insort(room, (left - len(each.ids), number))
    return rows


def render_all(conversations: Iterable[Conversation], renderer: Renderer, workers: int = 1) -> Iterator[Rendered]:
    """All documents of conversations, in order.

    Args:
        workers: processes; 1: this one.

    Raises:
        ConfigError: one cannot be rendered.
    """
    chunks = iter(lambda: list(itertools.islice(iterator, CHUNK)), [])
    iterator = iter(conversations)
    if workers <= 1:
        for chunk in chunks:
            yield from renderer.documents(chunk)
        return
    context = multiprocessing.get_context("spawn")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with tempfile.TemporaryDirectory() as folder:
        # By a file: what does not fit into a pipe is awaited by it, so that the processes would start one by one.
        file = Path(folder) / "renderer"
        file.write_bytes(pickle.dumps(renderer))
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(file,)) as pool:
            waiting: list[Any] = []
            for chunk in chunks:
                waiting.append(pool.submit(_render, chunk))
                if len(waiting) > 4 * workers:
                    yield from waiting.pop(0).result()
            for each in waiting:
                yield from each.result()


_renderer: list[Renderer] = []  # of a worker


def _start(file: Path) -> None:
    _renderer[:] = [pickle.loads(file.read_bytes())]


def _render(chunk: Sequence[Conversation]) -> list[Rendered]:
    return _renderer[0].documents(chunk)


def learned_batch(store: Rows, numbers: np.ndarray, length: int) -> Batch:
    """As `make_batch`, with labels for learned tokens alone."""
    batch = make_batch(store, numbers, length)
    next_BT = numbers[:, None] * length + np.arange(1, length + 1)
    unlearned = torch.from_numpy(store.learned[next_BT] == 0)
    return replace(batch, label_BT=batch.label_BT.masked_fill(unlearned, IGNORED))


class AnswerBatches(Batches):
    """The micro-batches of every step, as in `Batches`.

    Raises:
        ConfigError: micro-batches cannot be dealt to the processes evenly.
    """

    store: Rows

    def __init__(self, store: Rows, **layout: Any):
        super().__init__(store, **layout)
        ends = store.learned[1:].reshape(self.count, self.length)  # row r learns the tokens r*T + 1 .. r*T + T
        self._labels = np.count_nonzero(ends, axis=1)

    def labels(self, step: int) -> int:
        return int(self._labels[self.numbers(step)].sum())

    def step(self, step: int) -> list[Batch]:
        micro = self.numbers(step).reshape(-1, self.micro_batch)[self.rank :: self.ranks]
        return [learned_batch(self.store, numbers, self.length) for numbers in micro]


def turns(store: Rows, numbers: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The answers of rows, for judging whole ones.

    Returns:
        int64 [R, T], a number from 1 of the answer that each label belongs to, 0 for none, and bool [answers] whether
        it has calls.
    """
    kind_BT = store.learned[numbers[:, None] * length + np.arange(1, length + 1)]
    starts_BT = (kind_BT > 0) & (np.pad(kind_BT, ((0, 0), (1, 0)))[:, :-1] == 0)
    number_BT = np.cumsum(starts_BT).reshape(kind_BT.shape) * (kind_BT > 0)
    return number_BT, kind_BT[starts_BT] == CALL
