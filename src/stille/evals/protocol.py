"""The strict protocol: a model answers, under each setting, the very same samples, question and decode included."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from stille.errors import ConfigError
from stille.evals import ruler
from stille.evals.ruler import Sample

BATCH = 64
"""Samples answered between two writes to the file of answers."""


class Generate(Protocol):
    """A model under one setting, greedy: prompt tokens and most tokens of each answer -> the answers' texts."""

    def __call__(self, prompts: Sequence[list[int]], max_new_tokens: Sequence[int]) -> list[str]: ...


class Asked(Protocol):
    """What an answer belongs to."""

    def identity(self) -> list[Any]:
        """Everything that makes it another question, as JSON takes it."""
        ...


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said to a sample, and its score in 0..1."""

    task: str
    length: int
    index: int
    text: str
    score: float


class AnswerStore:
    """Answers in a JSONL file, so that a run that was cut off goes on where it stopped.

    A line belongs to one setting and one question by their hash: whatever changes either asks the model anew. Several
    runs, one after the other, may append to one file.

    Raises:
        ConfigError: the file exists and is something else.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self._known: dict[str, Answer] = {}
        self._settings: dict[str, list[Answer]] = {}
        try:
            content = self.path.read_bytes() if self.path.exists() else b""
            whole = content.rfind(b"\n") + 1  # what follows the last newline was cut off while it was written
            lines = content[:whole].decode("utf-8").split("\n")[:-1]
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.path} cannot be read as a file of answers: {error}") from error
        self._torn_at = whole if whole < len(content) else None
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                self._keep(row.pop("key"), row.pop("setting"), Answer(**row))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise ConfigError(
                    f"{self.path}, line {number}, is not an answer ({error!r}); choose another file"
                ) from None

    def _keep(self, key: str, setting: str, answer: Answer) -> None:
        if key not in self._known:
            self._settings.setdefault(setting, []).append(answer)
        self._known[key] = answer

    def by_setting(self) -> dict[str, list[Answer]]:
        """setting -> its answers, whichever samples they are to."""
        return {setting: list(answers) for setting, answers in self._settings.items()}

    def get(self, setting: str, sample: Asked) -> Answer | None:
        return self._known.get(_key(setting, sample))

    def add(self, setting: str, answers: Sequence[tuple[Asked, Answer]]) -> None:
        """Keep answers; they are on the disk when this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = []
        for sample, answer in answers:
            key = _key(setting, sample)
            self._keep(key, setting, answer)
            rows.append(json.dumps({"key": key, "setting": setting, **dataclasses.asdict(answer)}, ensure_ascii=False))
        if self._torn_at is not None:
            os.truncate(self.path, self._torn_at)
            self._torn_at = None
        with open(self.path, "a", encoding="utf-8") as file:
            file.write("\n".join(rows) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _key(setting: str, sample: Asked) -> str:
    content = json.dumps([setting, *sample.identity()])
    return hashlib.sha256(content.encode()).hexdigest()[:24]


def describe(**settings: Any) -> str:
    """Settings as one line of JSON, the same for the same settings: the `setting` of `run`."""
    return json.dumps(settings, sort_keys=True, default=str)


def deferred(make: Callable[[], Generate]) -> Generate:
    """A model that is built when it is first asked something: not at all if every answer is kept already."""
    made: list[Generate] = []

    def generate(prompts: Sequence[list[int]], max_new_tokens: Sequence[int]) -> list[str]:
        if not made:
            made.append(make())
        return made[0](prompts, max_new_tokens)

    return generate


def run(
    generate: Generate,
    samples: Sequence[Sample],
    *,
    setting: str = "",
    store: AnswerStore | None = None,
    batch: int = BATCH,
    on_answers: Callable[[int], None] | None = None,
) -> list[Answer]:
    """Answers of one model under one setting, in order of the samples.

    Args:
        generate: answers prompts; not called if every answer is in the store.
        setting: everything that the answers depend on beside the prompts (model, dtype, attention, budget), from
            `describe`; only its equality matters.
        store: where answers are kept and looked for.
        batch: samples per call of `generate`.
        on_answers: told how many more are answered.
    """
    answers: dict[int, Answer] = {}
    if store is not None:
        for position, sample in enumerate(samples):
            if (known := store.get(setting, sample)) is not None:
                answers[position] = known
    if on_answers is not None and answers:
        on_answers(len(answers))
    todo = [position for position in range(len(samples)) if position not in answers]
    for start in range(0, len(todo), batch):
        part = todo[start : start + batch]
        asked = [samples[position] for position in part]
        texts = generate([s.prompt_ids for s in asked], [s.max_new_tokens for s in asked])
        made = [
            (s, Answer(s.task, s.length, s.index, text, ruler.score(s, text)))
            for s, text in zip(asked, texts, strict=True)
        ]
        answers.update(zip(part, (answer for _, answer in made), strict=True))
        if store is not None:
            store.add(setting, made)
        if on_answers is not None:
            on_answers(len(made))
    return [answers[position] for position in range(len(samples))]


def evaluate(
    generate: Generate,
    tokenizer: Any,
    tasks: Sequence[str],
    lengths: Sequence[int],
    samples: int,
    seed: int = ruler.SEED,
    *,
    chat: bool = False,
) -> list[Answer]:
    """Make samples and have them answered: the short way for one setting.

    Args:
        generate: the model.
        tokenizer: its own, of transformers.
        tasks: names, or `all`; see `ruler.select_tasks`.
        lengths: most tokens of prompt and answer.
        samples: per task and length.

    Raises:
        ConfigError: an unknown task, or a length too short for one.
    """
    made = ruler.make_samples(tokenizer, ruler.select_tasks(tasks), lengths, samples, seed, chat=chat)
    return run(generate, made)
