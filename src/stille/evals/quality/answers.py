"""A model under one setting answers questions and texts; what it said is kept as it comes."""

from __future__ import annotations

import contextlib
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stille.errors import ConfigError
from stille.evals.protocol import Answer, AnswerStore
from stille.evals.quality.items import Item
from stille.evals.quality.score import encode, likelihoods
from stille.evals.quality.tasks import task_of
from stille.evals.quality.text import Window, check_vocabularies, score_windows

if TYPE_CHECKING:
    from stille.model import StilleForCausalLM

VERSION = 1
"""Of prompts and scoring: a change of what a kept answer would be raises it."""

Asked = Item | Window


@dataclass
class Subject:
    """A model under one setting.

    Attributes:
        model: in evaluation mode.
        tokenizer: its own.
        budget: mean number of experts; None: the model's own, or it has none.
        base: what its predictions are held against on texts, if anything.
    """

    model: StilleForCausalLM
    tokenizer: Any
    budget: float | None = None
    base: StilleForCausalLM | None = None

    def answer(self, asked: Sequence[Asked]) -> list[Answer]:
        """Items and windows, in their order."""
        from stille.model import expert_budget

        items = [one for one in asked if isinstance(one, Item)]
        windows = [one for one in asked if isinstance(one, Window)]
        with expert_budget(self.model, self.budget) if self.budget is not None else contextlib.nullcontext():
            answers = {id(one): answer for one, answer in zip(items, self._items(items), strict=True)}
            answers |= {id(one): answer for one, answer in zip(windows, self._windows(windows), strict=True)}
        return [answers[id(one)] for one in asked]

    def _items(self, items: list[Item]) -> list[Answer]:
        requests = encode(self.tokenizer, [pair for item in items for pair in item.pairs])
        results = iter(likelihoods(self.model, requests))
        answers = []
        for item in items:
            found = [next(results) for _ in item.pairs]
            said = {"ll": [one.log_probability for one in found], "greedy": [one.greedy for one in found]}
            answers.append(Answer(item.task, 0, item.index, json.dumps(said), item_score(item, said)))
        return answers

    def _windows(self, windows: list[Window]) -> list[Answer]:
        if windows and self.base is not None:
            check_vocabularies(self.model, self.base)
        by_length: dict[int, list[Window]] = defaultdict(list)
        for window in windows:
            by_length[len(window.ids)].append(window)
        made = {}
        for some in by_length.values():
            for window, score in zip(some, score_windows(self.model, some, self.base), strict=True):
                made[id(window)] = Answer(window.task, 0, window.index, json.dumps(score._asdict()), 0.0)
        return [made[id(window)] for window in windows]


def item_score(item: Item, said: dict[str, Any], metric: str | None = None) -> float:
    """1 or 0: whether what a model said to an item is right, by the task's metric or another."""
    values = said["ll"]
    if len(values) == 1:
        return float(said["greedy"][0])
    if (metric or task_of(item.task).metric) == "acc_norm":
        # lengths of the choices themselves, without the blank before them
        values = [value / max(1, len(c.removeprefix(" "))) for value, (_, c) in zip(values, item.pairs, strict=True)]
    return float(max(range(len(values)), key=values.__getitem__) == item.gold)


def run(
    answer: Callable[[Sequence[Asked]], list[Answer]],
    asked: Sequence[Asked],
    *,
    setting: str = "",
    store: AnswerStore | None = None,
    batch: int = 512,
    on_answers: Callable[[int], None] | None = None,
) -> list[Answer]:
    """Answers under one setting, in order of what is asked.

    Args:
        answer: `Subject.answer`, or a function that makes the subject when it is first called; not called if every
            answer is in the store.
        setting: everything that the answers depend on beside what is asked, from `protocol.describe`.
        store: where answers are kept and looked for.
        batch: items and windows between two writes.
        on_answers: told how many more are answered.
    """
    known = {} if store is None else {i: store.get(setting, one) for i, one in enumerate(asked)}
    answers = {i: found for i, found in known.items() if found is not None}
    if on_answers is not None and answers:
        on_answers(len(answers))
    todo = [i for i in range(len(asked)) if i not in answers]
    for start in range(0, len(todo), batch):
        part = todo[start : start + batch]
        made = answer([asked[i] for i in part])
        answers.update(zip(part, made, strict=True))
        if store is not None:
            store.add(setting, [(asked[i], one) for i, one in zip(part, made, strict=True)])
        if on_answers is not None:
            on_answers(len(part))
    return [answers[i] for i in range(len(asked))]


@dataclass(frozen=True, slots=True)
class TextResult:
    """A model on one text.

    Attributes:
        tokens: predicted.
        perplexity: exp of the mean loss.
        kl: mean KL(base || model) of a token, in nats; None without a base.
    """

    tokens: int
    perplexity: float
    kl: float | None


def metrics(asked: Sequence[Asked], answers: Sequence[Answer]) -> dict[str, dict[str, float]]:
    """task -> metric -> value: acc, acc_norm (choices), perplexity (LAMBADA: of a word), samples."""
    found: dict[str, list[tuple[Item, dict[str, Any]]]] = {}
    for one, answer in _paired(asked, answers):
        if isinstance(one, Item):
            found.setdefault(one.task, []).append((one, json.loads(answer.text)))
    table = {}
    for task, rows in found.items():
        values = {"samples": float(len(rows)), "acc": _mean(item_score(item, said, "acc") for item, said in rows)}
        if all(len(item.pairs) == 1 for item, _ in rows):
            values["perplexity"] = math.exp(-_mean(said["ll"][0] for _, said in rows))
        else:
            values["acc_norm"] = _mean(item_score(item, said, "acc_norm") for item, said in rows)
        table[task] = values
    return table


def texts(asked: Sequence[Asked], answers: Sequence[Answer]) -> dict[str, TextResult]:
    """Name of a text -> what a model makes of it."""
    found: dict[str, list[dict[str, Any]]] = {}
    for one, answer in _paired(asked, answers):
        if isinstance(one, Window):
            found.setdefault(one.task.removeprefix("text:"), []).append(json.loads(answer.text))
    table = {}
    for name, rows in found.items():
        tokens = sum(row["tokens"] for row in rows)
        kls = [row["kl"] for row in rows if row["kl"] is not None]
        kl = sum(kls) / tokens if len(kls) == len(rows) else None
        table[name] = TextResult(tokens, math.exp(sum(row["loss"] for row in rows) / tokens), kl)
    return table


def _paired(asked: Sequence[Asked], answers: Sequence[Answer]) -> list[tuple[Asked, Answer]]:
    if [(one.task, one.index) for one in asked] != [(answer.task, answer.index) for answer in answers]:
        raise ConfigError("these are no answers to what was asked.")
    return list(zip(asked, answers, strict=True))


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)
