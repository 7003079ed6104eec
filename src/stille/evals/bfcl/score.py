"""What came of the leaderboard's questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stille.agents.evals import wilson
from stille.evals.bfcl.package import CATEGORIES, SKIPPED


@dataclass(frozen=True)
class Result:
    """Of one question.

    Attributes:
        error: what was wrong, by the package's name for it; empty: it was right. "no_call": the model wrote text;
            "not_asked": the prompt did not fit.
        turns: of each turn its steps, of each step its calls, {name: arguments}.
        prompt_tokens: of the longest prompt.
        tokens: that the model wrote.
    """

    category: str
    id: str
    error: str
    turns: list[list[list[Any]]]
    prompt_tokens: int
    tokens: int


def gold_calls(truth: Sequence[Mapping[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Calls that a right answer of a Python category stands for: of each parameter that has to be given, its first
    value. The checker takes nearly all of them; where the benchmark contradicts itself, it would take none."""
    return [{name: _given(parameters) for name, parameters in call.items()} for call in truth]


def _given(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _first(value) for key, value in parameters.items() if not (isinstance(value, list) and "" in value)}


def _first(values: Any) -> Any:
    """Of the values that are allowed; below the second level they are not listed but are the value."""
    value = values[0] if isinstance(values, list) and values else values
    if isinstance(value, list):
        return [_given(item) if isinstance(item, dict) else item for item in value]
    return _given(value) if isinstance(value, dict) else value


def to_json(about: Mapping[str, Any], results: Sequence[Result]) -> dict[str, Any]:
    """Scores of every category that was run, what was wrong how often, and what was left out."""
    categories = {}
    for category in CATEGORIES:
        given = [result for result in results if result.category == category]
        if not given:
            continue
        right = sum(not result.error for result in given)
        low, high = wilson(right, len(given))
        categories[category] = {
            "questions": len(given),
            "right": right,
            "accuracy": right / len(given),
            "low": low,
            "high": high,
            "errors": dict(Counter(result.error for result in given if result.error).most_common()),
        }
    return {**about, "categories": categories, "skipped": SKIPPED}


def to_markdown(about: Mapping[str, Any], results: Sequence[Result]) -> str:
    """As `to_json`, to read."""
    lines = ["# BFCL, offline categories", "", *(f"- {key}: {value}" for key, value in about.items()), ""]
    lines += ["| category | questions | right | accuracy (95 %) | most frequent errors |", "|---|---:|---:|---:|---|"]
    for category, row in to_json(about, results)["categories"].items():
        errors = ", ".join(f"{name} {count}" for name, count in list(row["errors"].items())[:3])
        share = f"{row['accuracy']:.1%} [{row['low']:.1%}, {row['high']:.1%}]"
        lines.append(f"| {category} | {row['questions']} | {row['right']} | {share} | {errors} |")
    lines += ["", *(f"- {name} is left out: it {why}" for name, why in SKIPPED.items())]
    return "\n".join(lines) + "\n"
