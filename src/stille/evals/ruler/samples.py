"""Samples of the tasks: made from a seed, scored, kept in a file."""

from __future__ import annotations

import dataclasses
import gzip
import json
import multiprocessing
import os
import random
import signal
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stille.errors import ConfigError
from stille.evals.ruler.fit import Encoder, fit
from stille.evals.ruler.tasks import TASKS

SEED = 42
VERSION = 1
"""Of the generators: a change that makes other samples from the same seed raises it."""

Plan = tuple[str, int, int]  # task, length, index
_worker: tuple[Encoder, int] | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One question.

    Attributes:
        task, length, index: which it is; `length` is the most tokens of prompt and answer together.
        prompt_ids: the prompt with the beginning of the answer.
        references: what the answer should contain.
        max_new_tokens: of the answer.
    """

    task: str
    length: int
    index: int
    prompt_ids: list[int]
    references: list[str]
    max_new_tokens: int

    def identity(self) -> list[Any]:
        """What an answer that was kept belongs to."""
        return [self.task, self.prompt_ids, self.references, self.max_new_tokens]


def make_sample(task: str, length: int, index: int, encode: Encoder, seed: int = SEED) -> Sample:
    """One sample; it depends on nothing but the arguments.

    Raises:
        ConfigError: the length is too short for the task.
    """
    parameters = TASKS[task]
    draft = parameters.maker.draft(random.Random(f"{VERSION}/{seed}/{task}/{length}/{index}"), length)
    try:
        prompt_ids = fit(draft, encode, length - parameters.tokens_out)
    except ConfigError as error:
        raise ConfigError(f"{task} at {length} tokens: {error}") from None
    return Sample(task, length, index, prompt_ids, draft.references, parameters.tokens_out)


def make_samples(
    tokenizer: Any,
    tasks: Sequence[str],
    lengths: Sequence[int],
    count: int,
    seed: int = SEED,
    *,
    chat: bool = False,
    workers: int = 1,
    on_sample: Callable[[Sample], None] | None = None,
) -> list[Sample]:
    """`count` samples of each task at each length, in that order of lengths, tasks and indices.

    Args:
        tokenizer: of transformers, of the model that will answer.
        chat: see `Encoder`.
        workers: processes that make them (forked; the tokenizer travels with them).
        on_sample: called with each as it is made.

    Raises:
        ConfigError: a length is too short for a task, or a number is out of range.
    """
    if count < 1:
        raise ConfigError(f"samples must be at least 1, got {count}")
    encode = Encoder(tokenizer, chat)
    plans = [(task, length, index) for length in lengths for task in tasks for index in range(count)]
    made: list[Sample] = []
    for sample in _make_all(plans, encode, seed, min(workers, len(plans))):
        made.append(sample)
        if on_sample is not None:
            on_sample(sample)
    return made


def _make_all(plans: Sequence[Plan], encode: Encoder, seed: int, workers: int) -> Iterable[Sample]:
    if workers <= 1:
        yield from (make_sample(*plan, encode, seed) for plan in plans)
        return
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Threads of torch do not survive a fork, and samples need none of them.
    with multiprocessing.get_context("fork").Pool(workers, _start_worker, (encode, seed)) as pool:
        yield from pool.imap(_work, plans, chunksize=2)


def _start_worker(encode: Encoder, seed: int) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _worker = encode, seed


def _work(plan: Plan) -> Sample:
    assert _worker is not None
    encode, seed = _worker
    return make_sample(*plan, encode, seed)


def score(sample: Sample, answer: str) -> float:
    """The share of references that the answer contains, whatever their case; for QA whether it contains any of them."""
    text = answer.lower()
    found = [reference.lower() in text for reference in sample.references]
    return float(any(found)) if TASKS[sample.task].any_reference else sum(found) / len(found)


def save_samples(path: str | os.PathLike[str], samples: Iterable[Sample], about: dict[str, Any]) -> None:
    """Write samples to a gzipped JSONL file, atomically.

    Args:
        about: what they were made from; `load_samples` gives it back.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with gzip.open(temporary, "wt", encoding="utf-8", compresslevel=6) as file:
        file.write(json.dumps({"ruler": VERSION, **about}) + "\n")
        for sample in samples:
            file.write(json.dumps(dataclasses.asdict(sample), separators=(",", ":")) + "\n")
    os.replace(temporary, path)


def load_samples(path: str | os.PathLike[str]) -> tuple[list[Sample], dict[str, Any]]:
    """Read what `save_samples` wrote.

    Raises:
        ConfigError: it is not such a file, is damaged, or was written by another version of the generators.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            about = json.loads(next(file))
            if about.pop("ruler") != VERSION:
                raise ConfigError(f"{path} holds samples of another version of the generators; make them again")
            return [Sample(**json.loads(line)) for line in file], about
    except (OSError, EOFError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise ConfigError(f"{path} holds no RULER samples ({error!r}); make them again") from error
