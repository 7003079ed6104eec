"""Results as JSON for programs and Markdown for people."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from stille.evals.protocol import Answer
from stille.evals.settings import Setting
from stille.evals.statistics import Comparison


def to_json(
    about: Mapping[str, Any], answers: Mapping[str, Sequence[Answer]], comparisons: Mapping[str, Sequence[Comparison]]
) -> dict[str, Any]:
    """Everything but the texts of the answers.

    Args:
        about: settings of the run.
        answers: setting -> answers.
        comparisons: setting -> its comparisons with full attention.
    """
    return {
        **about,
        "scores": {name: mean_scores(given) for name, given in answers.items()},
        "comparisons": {
            name: [dataclasses.asdict(comparison) for comparison in given] for name, given in comparisons.items()
        },
    }


def mean_scores(answers: Sequence[Answer]) -> dict[str, dict[str, float]]:
    """length -> task -> mean score in 0..1, in the order in which they come."""
    found: dict[str, dict[str, list[float]]] = {}
    for answer in answers:
        found.setdefault(str(answer.length), {}).setdefault(answer.task, []).append(answer.score)
    return {
        length: {task: sum(scores) / len(scores) for task, scores in tasks.items()} for length, tasks in found.items()
    }


def to_markdown(
    about: Mapping[str, Any],
    answers: Mapping[str, Sequence[Answer]],
    comparisons: Mapping[str, Sequence[Comparison]],
    settings: Sequence[Setting] = (),
) -> str:
    """One table per length: tasks down, settings across, in percent; below it what each setting retains and reads."""
    reads = {setting.name: setting.reads for setting in settings}
    lines = ["# RULER", ""]
    lines += [f"- {name}: {value}" for name, value in about.items()]
    scores = {name: mean_scores(given) for name, given in answers.items()}
    lengths = sorted({length for tables in scores.values() for length in tables}, key=int)
    for length in lengths:
        names = [name for name in scores if length in scores[name]]
        tasks = list(dict.fromkeys(task for name in names for task in scores[name][length]))
        lines += ["", f"## {int(length):,} tokens", "", f"| task | {' | '.join(names)} |"]
        lines.append("| --- |" + " ---: |" * len(names))
        for task in tasks:
            cells = [f"{100 * scores[name][length][task]:.1f}" for name in names]
            lines.append(f"| {task} | {' | '.join(cells)} |")
        means = [sum(scores[name][length].values()) / len(scores[name][length]) for name in names]
        lines.append(f"| mean | {' | '.join(f'{100 * mean:.1f}' for mean in means)} |")
        lines.append("")
        for name, given in comparisons.items():
            for one in given:
                if str(one.length) == length:
                    lines.append(f"- {describe(name, one)}")
                    lines += [f"  ({reads[name](one.length)})"] if name in reads else []
    return "\n".join(lines) + "\n"


def describe(name: str, one: Comparison) -> str:
    """One comparison as a sentence or two."""
    left_out = [task.task for task in one.tasks if not task.counted]
    if one.retention is None:
        return f"{name}: no retention, as full attention solves none of the tasks well enough"
    kept = one.retention
    text = (
        f"{name}: retention {100 * kept.value:.2f} % (95 % interval {100 * kept.low:.2f} to {100 * kept.high:.2f}), "
        f"{len(one.tasks) - len(left_out)} tasks, {sum(t.samples for t in one.tasks if t.counted)} samples"
    )
    worst = min((task for task in one.tasks if task.counted), key=lambda task: task.retention or 0.0)
    text += f"; lowest {worst.task} {100 * (worst.retention or 0.0):.1f} %"
    return text + (f"; not counted: {', '.join(left_out)}" if left_out else "")
