"""Samples for the probe model: tasks drafted, laid out in tokens to an exact length, made by worker processes.

A sample is one sequence of T tokens: opening, context, then questions with their answers. Only answers (and the end of
the text after the last one) are learnt. Shapes: B sequences, T tokens.
"""

import itertools
import multiprocessing as mp
import os
import queue
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from probe.corpus import World, build_world
from probe.draft import Draft, Kit
from probe.facts import documents
from probe.retrieval import retrieval
from probe.tracing import chains, common_words, ranks

# name: (share of the samples, how a draft is made)
TASKS: dict[str, tuple[float, Callable[[Kit], Draft]]] = {
    "prose-one": (0.08, lambda kit: retrieval(kit, "prose", kit.style.choice(["number", "number", "word"]), "one")),
    "prose-hex": (0.05, lambda kit: retrieval(kit, "prose", "hex", "one")),
    "prose-all": (0.08, lambda kit: retrieval(kit, "prose", kit.style.choice(["number", "number", "word"]), "all")),
    "prose-each": (0.07, lambda kit: retrieval(kit, "prose", kit.style.choice(["number", "number", "word"]), "each")),
    "noise-one": (0.05, lambda kit: retrieval(kit, "noise", kit.style.choice(["number", "word", "hex"]), "one")),
    "lines-one": (0.11, lambda kit: retrieval(kit, "lines", kit.style.choice(["number", "number", "word"]), "one")),
    "lines-hex": (0.11, lambda kit: retrieval(kit, "lines", "hex", kit.style.choice(["one", "one", "each"]))),
    "chains": (0.15, chains),
    "common": (0.11, common_words),
    "ranks": (0.08, ranks),
    "facts-1": (0.06, partial(documents, hops=1)),
    "facts-2": (0.05, partial(documents, hops=2)),
}
WITH_EXAMPLE = {"chains": 0.35, "common": 0.35, "ranks": 0.15, "lines-one": 0.1, "prose-one": 0.1}
END_WEIGHT = 0.3
SPACE_KEPT = 0.06  # share of the samples whose questions end in a space, so that answers begin without one


@dataclass(slots=True)
class Batch:
    """Sequences of one length.

    Attributes:
        ids: uint16 [B, T].
        answer: int16 [B, T], number (from 1) of the answer that the token belongs to; 0 outside.
        weight: float32 [B, T], how much predicting the token counts; 0 outside of answers and ends.
        tasks: of each sequence.
    """

    ids: np.ndarray
    answer: np.ndarray
    weight: np.ndarray
    tasks: list[str]


class Maker:
    """Makes samples of any task and length.

    Args:
        tokenizer: the model's, from transformers.
        world: material of the tasks.
    """

    def __init__(self, tokenizer: Any, world: World):
        self.world, self.tokenizer = world, tokenizer
        self._backend = tokenizer.backend_tokenizer
        self.end = tokenizer.eos_token_id
        self._pad = tokenizer.convert_tokens_to_ids("<|endoftext|>")
        self._kept: dict[str, list[int]] = {}

    def encode(self, pieces: list[str]) -> list[list[int]]:
        """Tokens of each piece. Pieces that come back (prose, noise) are remembered."""
        fresh = [piece for piece in dict.fromkeys(pieces) if piece not in self._kept]
        encoded = self._backend.encode_batch(fresh, add_special_tokens=False) if fresh else []
        new = {piece: item.ids for piece, item in zip(fresh, encoded, strict=True)}
        ids = [new[piece] if piece in new else self._kept[piece] for piece in pieces]
        if len(self._kept) < 60_000:
            self._kept.update((piece, found) for piece, found in new.items() if piece[:1] == " " and len(piece) > 24)
        return ids

    def sizes(self, pieces: list[str]) -> list[int]:
        return [len(ids) for ids in self.encode(pieces)]

    def sample(self, seed: int, task: str, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One sequence.

        Args:
            seed: the same seed, task and length give the same sequence.
            task: a key of `TASKS`.
            length: T.

        Returns:
            ids, answer, weight of shape [T], as in `Batch`.
        """
        rng = random.Random(zlib.crc32(f"{seed} {task} {length}".encode()))
        style_seed = rng.random()
        chat = rng.random() < 0.12
        keep_space = rng.random() < SPACE_KEPT
        gap, between = rng.choice(["\n", "\n\n", " ", "\n\n"]), rng.choice([".", "", "", "\n"])
        parts: list[tuple[list[int], int]] = []  # tokens, number of the answer
        if rng.random() < WITH_EXAMPLE.get(task, 0.0) and length >= 1024:
            parts += self._lay_out(task, rng, style_seed, rng.randint(200, length // 5), gap, between, keep_space, 1)
            parts.append((self.encode(["\n\n"])[0], 0))
        before = sum(len(ids) for ids, _ in parts)
        first = 1 + max((number for _, number in parts), default=0)
        frame = self.encode(["<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"]) if chat else [[], []]
        room = length - before - len(frame[0]) - len(frame[1]) - 2
        body = self._lay_out(task, rng, style_seed, room, gap, between, keep_space, first, frame[1])
        parts = [(frame[0], 0), *parts, *body]

        ids = np.fromiter(itertools.chain.from_iterable(p for p, _ in parts), np.int64)
        answer = np.repeat([number for _, number in parts], [len(p) for p, _ in parts])
        if len(ids) >= length:
            raise RuntimeError(f"{task} came to {len(ids)} tokens, more than {length}")
        weight = np.zeros(length, np.float32)
        sizes = np.bincount(answer)
        for number in range(1, len(sizes)):
            # long answers and many of them count for more, but not in proportion
            weight[: len(ids)][answer == number] = (sizes[number] * (len(sizes) - 1)) ** -0.5
        weight[len(ids)] = END_WEIGHT
        padded = np.full(length, self._pad, np.uint16)
        padded[: len(ids)], padded[len(ids)] = ids, self.end
        numbers = np.zeros(length, np.int16)
        numbers[: len(ids)] = answer
        return padded, numbers, weight

    def _lay_out(
        self,
        task: str,
        rng: random.Random,
        style_seed: float,
        room: int,
        gap: str,
        between: str,
        keep_space: bool,
        first: int,
        turn: Sequence[int] = (),
    ) -> list[tuple[list[int], int]]:
        """The task in at most `room` tokens, filled up with its filler; `turn` goes in before the first answer."""
        reserve = 0.8 if room < 1024 else 0.88
        for _ in range(8):
            kit = Kit(self.world, rng, random.Random(style_seed), int(room * reserve) - 60, self.sizes)
            draft = TASKS[task][1](kit)
            questions: list[tuple[list[int], int]] = []
            for i, ask in enumerate(draft.asks):
                opener = (gap if i == 0 else "\n") + ask.question
                space = "" if turn and i == 0 else " "
                kept = " " if keep_space and space else ""
                texts = [opener + kept, ("" if kept else space) + ask.answer]
                if i + 1 < len(draft.asks) and between.strip():
                    texts.append(between)
                question, answer, *closing = self.encode(texts)
                more = [(list(turn), 0)] if turn and i == 0 else []
                questions += [(question, 0), *more, (answer, first + i), *((ids, 0) for ids in closing)]
            opening = self.encode([draft.opening])[0] if draft.opening else []
            needles = self.encode(draft.needles)
            used = len(opening) + sum(map(len, needles)) + sum(len(ids) for ids, _ in questions)
            if used <= room:
                break
            reserve *= 0.8
        else:
            raise RuntimeError(f"{task} does not fit into {room} tokens")
        filler = self._fill(draft, room - used)
        places = sorted(rng.sample(range(len(filler) + len(needles)), len(needles)))
        context: list[list[int]] = []
        hay, straw = iter(needles), iter(filler)
        taken = set(places)
        for place in range(len(filler) + len(needles)):
            context.append(next(hay) if place in taken else next(straw))
        return [(opening, 0), (list(itertools.chain.from_iterable(context)), 0), *questions]

    def _fill(self, draft: Draft, room: int) -> list[list[int]]:
        pieces: list[list[int]] = []
        if draft.filler is None:
            return pieces
        total = 0
        while True:
            fresh = self.encode(draft.filler(max(8, (room - total) // 24)))
            for ids in fresh:
                if total + len(ids) > room:
                    return pieces
                pieces.append(ids)
                total += len(ids)

    def batch(self, seed: int, lengths: Sequence[int], tasks: Sequence[str]) -> Batch:
        """Sequences of the given tasks; all `lengths` are equal."""
        made = [self.sample(seed * 1000 + i, task, n) for i, (task, n) in enumerate(zip(tasks, lengths, strict=True))]
        ids, answer, weight = (np.stack(parts) for parts in zip(*made, strict=True))
        return Batch(ids, answer, weight, list(tasks))


def make_maker(model_file: Path, exclude: Path | None) -> Maker:
    """A maker from the model's file; words of the text file `exclude` are not used."""
    from stille.model.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(model_file)
    words = exclude.read_text(encoding="utf-8").replace("-", " ").split() if exclude else []
    return Maker(tokenizer, build_world(tokenizer.get_vocab(), words))


def draw_tasks(rng: random.Random, count: int) -> list[str]:
    return rng.choices(list(TASKS), [share for share, _ in TASKS.values()], k=count)


def _work(
    index: int, seed: int, model_file: Path, exclude: Path | None, tokens: int, plan: Any, held_out: Any, out: Any
) -> None:
    """A worker: its share of the held-out batches, then training batches of the lengths that the plan asks for."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    out.cancel_join_thread()
    maker = make_maker(model_file, exclude)
    for number, length, tasks in held_out:
        out.put((number, maker.batch(-1 - number, [length] * len(tasks), tasks)))
    rng = random.Random(seed * 7919 + index)
    for count in itertools.count():
        lengths, shares = plan_now(plan)
        length = rng.choices(lengths, shares)[0]
        tasks = draw_tasks(rng, tokens // length)
        number = (seed * 100_003 + index) * 1_000_000 + count
        out.put((None, maker.batch(number, [length] * len(tasks), tasks)))


def plan_now(plan: Any) -> tuple[list[int], list[float]]:
    """The lengths to make now and their shares, from the shared array (length, share, length, share, ...)."""
    values = list(plan)
    return [int(n) for n in values[::2]], [max(share, 1e-9) for share in values[1::2]]


class Workers:
    """Processes that keep a queue of batches filled; `close` ends them at once.

    Args:
        workers: number of processes.
        seed: of the training samples.
        model_file, exclude: as for `make_maker`.
        tokens: of a batch; B is tokens / T.
        lengths: the lengths that may be asked for.
        held_out: for each length, the number of samples of each task that are set aside for testing.
    """

    def __init__(
        self,
        workers: int,
        seed: int,
        model_file: Path,
        exclude: Path | None,
        tokens: int,
        lengths: Sequence[int],
        held_out: dict[int, int],
    ):
        context = mp.get_context("spawn")  # nothing of the parent's threads or its accelerator comes along
        self._plan = context.Array("d", [x for n in lengths for x in (n, 0.0)])
        self._lengths = list(lengths)
        self.set_plan({min(lengths): 1.0})
        self._queue: Any = context.Queue(maxsize=max(4, 2 * workers))
        jobs: list[tuple[int, int, list[str]]] = []
        for length, count in held_out.items():
            names = [name for name in TASKS for _ in range(count)]
            size = max(1, tokens // length)
            names += names[: -len(names) % size]  # batches have one size, so the last one is filled up
            for start in range(0, len(names), size):
                jobs.append((len(jobs), length, names[start : start + size]))
        self._awaited = {number: length for number, length, _ in jobs}
        self.held_out: dict[int, list[Batch]] = {length: [] for length in held_out}
        self._processes = [
            context.Process(
                target=_work,
                args=(i, seed, model_file, exclude, tokens, self._plan, jobs[i::workers], self._queue),
                daemon=True,
            )
            for i in range(workers)
        ]
        for process in self._processes:
            process.start()

    def set_plan(self, shares: dict[int, float]) -> None:
        """Which lengths the batches made from now on have, with their shares."""
        for i, length in enumerate(self._lengths):
            self._plan[2 * i + 1] = shares.get(length, 0.0)

    def __iter__(self) -> Iterator[Batch]:
        """Training batches, for ever. Held-out batches that come by are put aside."""
        while True:
            try:
                number, batch = self._queue.get(timeout=120)
            except queue.Empty:
                dead = [process.exitcode for process in self._processes if not process.is_alive()]
                raise RuntimeError(f"no batch for two minutes; ended workers: {dead}") from None
            if number is None:
                yield batch
            else:
                self.held_out[self._awaited.pop(number)].append(batch)

    @property
    def held_out_ready(self) -> bool:
        return not self._awaited

    def close(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join(timeout=5)
