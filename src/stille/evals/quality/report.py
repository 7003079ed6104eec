"""Results of `stille eval quality` as JSON for programs and Markdown for people."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from stille.evals.protocol import Answer
from stille.evals.quality.answers import Asked, TextResult, metrics, texts
from stille.evals.quality.retention import Retention
from stille.evals.quality.tasks import task_of


def to_json(
    about: Mapping[str, Any],
    asked: Sequence[Asked],
    answers: Mapping[str, Sequence[Answer]],
    retentions: Mapping[str, Retention],
) -> dict[str, Any]:
    """Everything but the single answers.

    Args:
        about: settings of the run.
        answers: setting -> answers, the base's among them.
        retentions: setting -> what it retains of the base.
    """
    return {
        **about,
        "tasks": {name: metrics(asked, given) for name, given in answers.items()},
        "texts": {
            name: {text: dataclasses.asdict(result) for text, result in texts(asked, given).items()}
            for name, given in answers.items()
        },
        "retention": {name: dataclasses.asdict(found) for name, found in retentions.items()},
    }


def to_markdown(
    about: Mapping[str, Any],
    asked: Sequence[Asked],
    answers: Mapping[str, Sequence[Answer]],
    retentions: Mapping[str, Retention],
) -> str:
    """Tasks down and settings across, in percent; below it what is retained; then texts."""
    lines = ["# Quality", "", *(f"- {name}: {value}" for name, value in about.items())]
    found = {name: metrics(asked, given) for name, given in answers.items()}
    tasks = list(next(iter(found.values())))
    if tasks:
        lines += ["", f"| task | samples | metric | {' | '.join(found)} |"]
        lines.append("| --- | ---: | --- |" + " ---: |" * len(found))
        for task in tasks:
            lines += _task_rows(task, [table[task] for table in found.values()])
        lines.append("")
        lines += [f"- {describe(name, one)}" for name, one in retentions.items()]
    read = {name: texts(asked, given) for name, given in answers.items()}
    named = list(next(iter(read.values())))
    if named:
        lines += ["", f"| text | tokens | {' | '.join(read)} |", "| --- | ---: |" + " ---: |" * len(read)]
        for text in named:
            cells = [_text_cell(table[text]) for table in read.values()]
            lines.append(f"| {text} | {next(iter(read.values()))[text].tokens:,} | {' | '.join(cells)} |")
        lines += ["", "Perplexity, and after it the mean KL divergence from the base in nats."]
    return "\n".join(lines) + "\n"


def _task_rows(task: str, tables: list[dict[str, float]]) -> list[str]:
    """The metric that counts first, in bold where there is another."""
    first = task_of(task).metric if task_of(task).metric in tables[0] else "acc"
    others = [name for name in ("acc", "acc_norm", "perplexity") if name in tables[0] and name != first]
    rows = []
    for name in (first, *others):
        cells = [f"{table[name]:.2f}" if name == "perplexity" else f"{100 * table[name]:.1f}" for table in tables]
        label = f"**{name}**" if name == first and others else name
        rows.append(f"| {task} | {int(tables[0]['samples']):,} | {label} | {' | '.join(cells)} |")
    return rows


def _text_cell(result: TextResult) -> str:
    return f"{result.perplexity:.3f}" + (f", {result.kl:.4f}" if result.kl is not None else "")


def describe(name: str, one: Retention) -> str:
    """What a setting retains, as a sentence or two."""
    left_out = [task.task for task in one.tasks if not task.counted]
    if one.retention is None:
        return f"{name}: no retention, as the base is at chance in every task"
    kept, counted = one.retention, [task for task in one.tasks if task.counted]
    worst = min(counted, key=lambda task: task.retention.value if task.retention else 0.0)
    text = (
        f"{name}: retention {100 * kept.value:.2f} % (95 % interval {100 * kept.low:.2f} to {100 * kept.high:.2f}), "
        f"{len(counted)} tasks, {sum(task.samples for task in counted):,} questions"
    )
    if one.above_chance is not None:
        text += f"; {100 * one.above_chance:.1f} % of what lies above chance"
    if worst.retention is not None:
        text += f"; lowest {worst.task} {100 * worst.retention.value:.1f} %"
    return text + (f"; not counted, as the base is at chance: {', '.join(left_out)}" if left_out else "")
