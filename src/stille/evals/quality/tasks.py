"""The tasks, and where their data come from: files that the user has."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stille.errors import ConfigError
from stille.evals.quality.items import Item, Row, Style, lambada_pairs, pairs_of, read_question, winogrande_pairs

SEED = 42
Metric = Literal["acc", "acc_norm"]
Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: as in lm-evaluation-harness, but for MMLU, of which only the STEM subjects can be had here.
        metric: what counts: "acc", the likeliest choice is right (with one choice: every token of it is the likeliest);
            "acc_norm", the same with likelihoods divided by the choices' lengths in characters.
        style: see `pairs_of`.
        source: a repository on GitHub that has the data, for messages.
        form: fields of a row, for messages.
        other: names of files beside `<name>.jsonl`.
        special: makes pairs and the right one out of a row, where `read_question` does not.
    """

    name: str
    metric: Metric
    style: Style
    source: str
    form: str
    other: tuple[str, ...] = ()
    special: Callable[[Row], tuple[Pairs, int]] | None = None

    def pairs(self, row: Row) -> tuple[Pairs, int]:
        if self.special is not None:
            return self.special(row)
        question = read_question(row)
        return pairs_of(question, self.style), question.gold


PLAIN = '{"question" or "context": text, "choices": [texts], "answer": number from 0, letter or text}'
ADAPTERS = "AGI-Edgerunners/LLM-Adapters (dataset/*/test.json)"
_ARC = f'{{"question": {{"stem", "choices": [{{"text", "label"}}]}}, "answerKey"}}, {PLAIN}'
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "lambada", "acc", "continue", "cybertronai/bflm", '{"text": passage}, or a passage in each line of a .txt',
            ("lambada_test.jsonl", "lambada.txt"), lambada_pairs,
        ),
        Task(
            "hellaswag", "acc_norm", "continue", "rowanz/hellaswag or klosax/hellaswag_text_data",
            '{"activity_label", "ctx_a", "ctx_b", "endings", "label"}, or six lines for each question in a .txt',
            ("hellaswag_val.jsonl", "hellaswag.txt", "hellaswag_val_full.txt"),
        ),
        Task("arc_easy", "acc", "answer", ADAPTERS, _ARC, ("ARC-Easy-Test.jsonl", "ARC-Easy/test.json")),
        Task("arc_challenge", "acc_norm", "answer", ADAPTERS, _ARC,
             ("ARC-Challenge-Test.jsonl", "ARC-Challenge/test.json")),
        Task("openbookqa", "acc_norm", "continue", ADAPTERS, _ARC, ("openbookqa/test.json",)),
        Task("piqa", "acc", "answer", ADAPTERS, f'{{"goal", "sol1", "sol2", "label"}}, {PLAIN}', ("piqa/test.json",)),
        Task(
            "winogrande", "acc", "continue", ADAPTERS, '{"sentence" with _, "option1", "option2", "answer"}',
            ("winogrande/test.json",), winogrande_pairs,
        ),
        Task("mmlu_stem", "acc", "letters", "QwenLM/Qwen2.5-Math (evaluation/data)", PLAIN, ("mmlu_stem/test.jsonl",)),
    )
}  # fmt: skip


def task_of(name: str) -> Task:
    """A known task, or one of the user's: `<name>.jsonl` in the plain form, scored by "acc_norm".

    Raises:
        ConfigError: no name of a file.
    """
    if name in TASKS:
        return TASKS[name]
    if not name or not all(c.isalnum() or c in "_-." for c in name) or name.startswith("."):
        raise ConfigError(f"task {name!r}: expected {', '.join(TASKS)}, or the name of a file NAME.jsonl of your own.")
    return Task(name, "acc_norm", "as given", "your own", PLAIN)


def find_file(task: Task, folder: Path) -> Path | None:
    """The task's data, if they are there."""
    names = (f"{task.name}.jsonl", *task.other)
    return next((folder / name for name in names if (folder / name).is_file()), None)


def select_tasks(names: Iterable[str], folder: Path) -> list[Task]:
    """Tasks in the order of `TASKS`, then the user's own; `all` stands for the known ones whose data are there.

    Raises:
        ConfigError: data are missing, or there are none at all; the message says what is expected and where it is.
    """
    wanted = list(dict.fromkeys(names))
    chosen = {name: task_of(name) for name in wanted if name != "all"}
    for task in chosen.values():
        if find_file(task, folder) is None:
            raise ConfigError(f"{folder} has no data for {task.name}: {expected(task)}")
    if "all" in wanted:
        chosen |= {task.name: task for task in TASKS.values() if find_file(task, folder) is not None}
        if not chosen:
            raise ConfigError(
                f"{folder} has data for none of {', '.join(TASKS)}. For example, {expected(TASKS['lambada'])}"
            )
    return [TASKS[name] for name in TASKS if name in chosen] + [t for name, t in chosen.items() if name not in TASKS]


def expected(task: Task) -> str:
    """What a task's data look like and where they are, as a sentence."""
    names = " or ".join((f"{task.name}.jsonl", *task.other))
    return f"expected {names}, a line {task.form}; repository: {task.source}."


def load_items(task: Task, folder: Path, limit: int | None = None, seed: int = SEED) -> list[Item]:
    """A task's questions, in the order of the file.

    Args:
        limit: at most so many, drawn at random; fewer are always among more.
        seed: of that choice.

    Raises:
        ConfigError: the file is missing, cannot be read, or has a line of another form; the message names it.
    """
    file = find_file(task, folder)
    if file is None:
        raise ConfigError(f"{folder} has no data for {task.name}: {expected(task)}")
    rows = list(_rows(task, file))
    if not rows:
        raise ConfigError(f"{file} is empty: {expected(task)}")
    chosen = list(range(len(rows)))
    if limit is not None and limit < len(rows):
        random.Random(f"{seed}/{task.name}").shuffle(chosen)
        chosen = sorted(chosen[:limit])
    items = []
    for index in chosen:
        place, row = rows[index]
        try:
            pairs, gold = task.pairs(row)
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise ConfigError(f"{file}, {place}, is no {task.name} ({error!r}): {expected(task)}") from error
        items.append(Item(task.name, index, pairs, gold))
    return items


def _rows(task: Task, file: Path) -> Iterator[tuple[str, Row]]:
    """(place in the file, what stands there)."""
    try:
        content = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    lines = content.split("\n")
    if file.suffix == ".txt" and task.name == "hellaswag":
        yield from _six_lines(file, lines)
        return
    if file.suffix == ".json":
        lines = _objects(task, file, content)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if file.suffix == ".txt":
            yield f"line {number}", {"text": line}
            continue
        try:
            row: Any = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{file}, line {number}, is not JSON ({error}): {expected(task)}") from error
        if not isinstance(row, dict):
            raise ConfigError(f"{file}, line {number}, is no JSON object: {expected(task)}")
        yield f"line {number}", row


def _objects(task: Task, file: Path, content: str) -> list[str]:
    """The objects of a JSON list, each as a line."""
    try:
        rows = json.loads(content)
    except ValueError as error:
        raise ConfigError(f"{file} is not JSON ({error}): {expected(task)}") from error
    if not isinstance(rows, list):
        raise ConfigError(f"{file} is no JSON list: {expected(task)}")
    return [json.dumps(row) for row in rows]


def _six_lines(file: Path, lines: list[str]) -> Iterator[tuple[str, Row]]:
    """llama.cpp's form of HellaSwag: context with its activity, number of the right ending, four endings."""
    while lines and not lines[-1].strip():
        lines.pop()
    if len(lines) % 6:
        raise ConfigError(f"{file} has {len(lines):,} lines: {expected(TASKS['hellaswag'])}")
    for start in range(0, len(lines), 6):
        context, label, *endings = lines[start : start + 6]
        yield f"line {start + 1}", {"context": context, "choices": endings, "answer": label}
