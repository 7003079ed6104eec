"""Puts the leaderboard's questions to a model."""

from __future__ import annotations

import itertools
import json
import random
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from stille.engine.tool_grammar import Function
from stille.errors import ConfigError
from stille.evals.bfcl.package import CATEGORIES, MULTI_TURN, RELEVANCE, SKIPPED, Package
from stille.evals.bfcl.score import Result
from stille.evals.protocol import Answer, AnswerStore
from stille.evals.tool_calls import Asked, Player, Said, converse


@dataclass(frozen=True)
class Question:
    """One of a category. `raw` is the package's entry, `truth` its right answer, empty where the answer is no call."""

    category: str
    raw: dict[str, Any]
    truth: list[Any]

    @property
    def id(self) -> str:
        return self.raw["id"]

    def identity(self) -> list[Any]:
        return ["bfcl", self.category, self.raw]


def select_categories(names: Sequence[str]) -> list[str]:
    """Categories by name, beginning of a name, or `all`.

    Raises:
        ConfigError: there is none of that name.
    """
    chosen: list[str] = []
    for name in names:
        found = [c for c in CATEGORIES if name == "all" or c == name] or [c for c in CATEGORIES if c.startswith(name)]
        if not found:
            why = next((f"; it {why}" for part, why in SKIPPED.items() if part.startswith(name)), "")
            raise ConfigError(f"BFCL has no category {name!r} that runs here{why}. There are: {', '.join(CATEGORIES)}")
        chosen += found
    return list(dict.fromkeys(chosen))


def select_questions(package: Package, category: str, limit: int | None = None, seed: int = 0) -> list[Question]:
    """All questions of a category, or so many of them drawn at random."""
    entries, truth = package.questions(category), package.truth(category)
    if limit is not None and limit < len(entries):
        entries = [entries[i] for i in sorted(random.Random(f"{seed} {category}").sample(range(len(entries)), limit))]
    return [Question(category, entry, truth.get(entry["id"], [])) for entry in entries]


def answer(
    package: Package,
    questions: Sequence[Question],
    ask: Callable[[Sequence[Asked]], list[Said]],
    *,
    batch: int,
    setting: str = "",
    store: AnswerStore | None = None,
    on_result: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """Results in order of the questions.

    Args:
        ask: the model; not called if every result is in the store.
        batch: conversations at a time.
        setting: everything that answers depend on beside the questions; only its equality matters.
        store: where results are kept and looked for.
    """
    results: dict[int, Result] = {}
    for position, question in enumerate(questions):
        if store is not None and (known := store.get(setting, question)) is not None:
            results[position] = Result(**json.loads(known.text))
            on_result(results[position])
    todo = [position for position in range(len(questions)) if position not in results]

    def keep(number: int, result: Result) -> None:
        results[todo[number]] = result
        if store is not None:
            text = json.dumps(asdict(result), ensure_ascii=False)
            made = Answer(result.category, 0, todo[number], text, float(not result.error))
            store.add(setting, [(questions[todo[number]], made)])
        on_result(result)

    converse((play(package, questions[position]) for position in todo), ask, batch=batch, on_end=keep)
    return [results[position] for position in range(len(questions))]


def play(package: Package, question: Question) -> Player[Result]:
    """The conversation about a question, and the result of checking it."""
    if question.category in MULTI_TURN:
        return _turns(package, question)
    return _single(package, question)


def _single(package: Package, question: Question) -> Player[Result]:
    said = yield Asked(question.raw["question"][0], _functions(package, question.raw["told"]))
    calls = [{name: arguments} for name, arguments in said.calls]
    if said.error:
        error = "not_asked"
    elif question.category == "live_relevance":
        error = "" if calls else "relevance:no_call"
    elif question.category in RELEVANCE:  # a call that was begun is one: the package's own runner would let it pass
        error = "irrelevance:call" if calls or said.cut else ""
    elif not calls:
        error = "no_call"
    else:
        error = package.check_ast(question.raw, question.category, calls, question.truth)
    return Result(question.category, question.id, error, [[calls]], said.prompt_tokens, said.tokens)


def _turns(package: Package, question: Question) -> Player[Result]:
    raw = question.raw
    name = f"stille_{uuid.uuid4().hex}"
    described, held_back = list(raw["told"]), raw.get("missed_function", {})
    messages: list[dict[str, Any]] = []
    turns: list[list[list[Any]]] = []
    tokens, longest, error = 0, 0, ""
    for number, asked in enumerate(raw["question"]):
        if str(number) in held_back:
            described += held_back[str(number)]
            told = package.prompts.DEFAULT_USER_PROMPT_FOR_ADDITIONAL_FUNCTION_FC
            asked = [{"role": "user", "content": told}]
        messages += asked
        turns.append([])
        for step in itertools.count():
            said: Said = yield Asked(list(messages), _functions(package, described))
            tokens, longest = tokens + said.tokens, max(longest, said.prompt_tokens)
            if said.error:
                error = "not_asked"
                break
            messages.append(said.message())
            if not said.calls:
                break
            turns[-1].append([{called: arguments} for called, arguments in said.calls])
            results = package.execute(raw, _as_python(turns[-1][-1]), name)
            messages += [
                {"role": "tool", "tool_call_id": f"call_{i}", "name": called, "content": result}
                for i, ((called, _), result) in enumerate(zip(said.calls, results, strict=True))
            ]
            if step == package.prompts.MAXIMUM_STEP_LIMIT:
                error = "multi_turn:force_terminated"
                break
        if error:
            break
    if not error:
        written = [[_as_python(step) for step in steps] for steps in turns]
        error = package.check_turns(raw, question.category, written, question.truth, name)
    package.forget(name)
    return Result(question.category, question.id, error, turns, longest, tokens)


def _functions(package: Package, described: Sequence[dict[str, Any]]) -> list[Function]:
    return [Function(f["name"], f["description"], package.schema(f["parameters"])) for f in described]


def _as_python(calls: Sequence[dict[str, dict[str, Any]]]) -> list[str]:
    """Arguments as one literal: no value, and no name of one, is ever read as code."""
    return [f"{name}(**{arguments!r})" for call in calls for name, arguments in call.items()]
