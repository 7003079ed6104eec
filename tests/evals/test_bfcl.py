"""BFCL's questions and checkers. The package is not among our dependencies: STILLE_BFCL names the folder of an unpacked
wheel (pip download --no-deps bfcl-eval==2026.3.23), unless it is installed."""

import importlib.util
import json
import os
from pathlib import Path

import pytest

from stille.errors import ConfigError
from stille.evals import bfcl
from stille.evals.bfcl.package import AST, CATEGORIES, MULTI_TURN, RELEVANCE
from stille.evals.protocol import AnswerStore
from stille.evals.tool_calls import Asked, Said

FOLDER = os.environ.get("STILLE_BFCL")
needs_package = pytest.mark.skipif(
    not FOLDER and importlib.util.find_spec("bfcl_eval") is None, reason="bfcl-eval is not there; see the docstring"
)


@pytest.fixture(scope="module")
def package() -> bfcl.Package:
    return bfcl.Package(Path(FOLDER) if FOLDER else None)


def gold(question: bfcl.Question) -> list[Said]:
    """What a model that knows the answer says, one after the other."""
    if question.category in MULTI_TURN:
        raise AssertionError("its answers are Python, not JSON")
    if question.category in RELEVANCE:
        made = [("anything", {})] if question.category == "live_relevance" else []
    else:
        made = [pair for call in bfcl.gold_calls(question.truth) for pair in call.items()]
    return [Said(calls=tuple(made))]


def asking(answers: list[Said]):
    given = iter(answers)

    def ask(asked: list[Asked]) -> list[Said]:
        assert all(each.functions for each in asked)
        return [next(given) for _ in asked]

    return ask


@needs_package
def test_right_answers_pass_the_checker_but_for_where_the_benchmark_contradicts_itself(package):
    right, runs = 0, 0
    for category in ("simple_python", "multiple", "parallel", "parallel_multiple"):
        questions = bfcl.select_questions(package, category)
        answers = [said for question in questions for said in gold(question)]
        results = bfcl.answer(package, questions, asking(answers), batch=1)
        right += sum(not result.error for result in results)
        runs += len(results)
    assert (runs, right) == (1000, 995)


@needs_package
def test_wrong_answers_do_not_pass(package):
    for category in AST:
        for question in bfcl.select_questions(package, category, 10):
            (said,) = gold(question)
            spoilt = [
                Said(),
                Said(calls=said.calls[:-1]),
                Said(calls=(*said.calls, said.calls[0])),
                Said(calls=(("other", said.calls[0][1]), *said.calls[1:])),
                Said(calls=((said.calls[0][0], {**said.calls[0][1], "no_such_parameter": 1}), *said.calls[1:])),
                Said(error="too long"),
            ]
            for answer in spoilt:
                (result,) = bfcl.answer(package, [question], asking([answer]), batch=1)
                assert result.error, (question.id, answer)


@needs_package
def test_calls_that_fit_no_question_pass_where_there_should_be_none_and_the_other_way_round(package):
    some, none, cut = Said(calls=(("f", {}),)), Said("no"), Said(cut=True)
    for category, passes in (("irrelevance", [none]), ("live_irrelevance", [none]), ("live_relevance", [some])):
        (question,) = bfcl.select_questions(package, category, 1)
        for said in (some, none, cut):
            (result,) = bfcl.answer(package, [question], asking([said]), batch=1)
            assert (not result.error) == (said in passes)


@needs_package
@pytest.mark.parametrize("category", MULTI_TURN)
def test_conversations_are_executed_and_their_state_is_checked(package, category):
    """Answers are given as the calls that Python's own parser reads from the truth, step by step."""
    import ast

    def calls(question: bfcl.Question, turn: int) -> tuple:
        told = {f["name"]: list(f["parameters"]["properties"]) for f in question.raw["told"]}
        told |= {
            f["name"]: list(f["parameters"]["properties"])
            for fs in question.raw.get("missed_function", {}).values()
            for f in fs
        }
        made = []
        for text in question.truth[turn]:
            node = ast.parse(text, mode="eval").body
            given = dict(zip(told[node.func.id], map(ast.literal_eval, node.args), strict=False))
            made.append((node.func.id, given | {k.arg: ast.literal_eval(k.value) for k in node.keywords}))
        return tuple(made)

    questions = bfcl.select_questions(package, category, 5, seed=1)
    for question in questions:

        def answers(spoil: int | None, question: bfcl.Question = question):
            for turn in range(len(question.truth)):
                made = calls(question, turn)
                if made and turn != spoil:
                    yield Said(calls=made)
                yield Said("Done.")

        (result,) = bfcl.answer(package, [question], asking(answers(None)), batch=1)
        assert result.error == "", question.id
        first = next(i for i, truth in enumerate(question.truth) if truth)
        (result,) = bfcl.answer(package, [question], asking(answers(first)), batch=1)
        assert result.error == "multi_turn:empty_turn_model_response"
    endless = [Said(calls=((questions[0].raw["told"][0]["name"], {"'); import os; ('": 1}),))] * 30
    (result,) = bfcl.answer(package, questions[:1], asking(endless), batch=1)
    assert result.error == "multi_turn:force_terminated"
    assert not any(key.startswith("stille_") for key in vars(package.execution))


@needs_package
def test_every_question_has_functions_that_a_grammar_can_hold_answers_to(package, default_model_path):
    import llguidance.hf

    from stille.engine.tool_grammar import call_grammar
    from stille.evals.bfcl.run import _functions
    from stille.model import load_tokenizer

    tokenizer = llguidance.hf.from_tokenizer(load_tokenizer(default_model_path))
    without = 0
    for category in ("simple_java", "simple_javascript", "parallel_multiple", "live_simple", "live_relevance"):
        for question in bfcl.select_questions(package, category):
            functions = _functions(package, question.raw["told"])
            without += not functions
            if functions:
                source = call_grammar(functions, forced=True, parallel=True).source
                assert not llguidance.LLMatcher.validate_grammar(source, tokenizer), question.id
    assert without == 0


@needs_package
def test_results_are_kept_and_nothing_is_asked_twice(package, tmp_path):
    store = AnswerStore(tmp_path / "answers.jsonl")
    questions = bfcl.select_questions(package, "simple_python", 4)
    answers = [said for question in questions for said in gold(question)]
    first = bfcl.answer(package, questions, asking(answers), batch=2, setting="a", store=store)
    again = AnswerStore(store.path)
    assert bfcl.answer(package, questions, asking([]), batch=2, setting="a", store=again) == first
    told = []
    bfcl.answer(package, questions, asking([Said()] * 4), batch=2, setting="b", store=again, on_result=told.append)
    assert [result.error for result in told] == ["no_call"] * 4
    report = bfcl.to_json({"model": "m"}, [*first, *told])
    row = report["categories"]["simple_python"]
    assert (row["questions"], row["right"], row["errors"]) == (8, 4, {"no_call": 4})
    assert set(report["skipped"]) & set(CATEGORIES) == set()
    assert "| simple_python | 8 | 4 | 50.0% [21.5%, 78.5%] | no_call 4 |" in bfcl.to_markdown({}, [*first, *told])


@needs_package
def test_the_command_asks_a_model_reports_and_goes_on_from_what_is_kept(package, tiny_checkpoint, tmp_path):
    import typer
    from typer.testing import CliRunner

    from stille.cli.eval_bfcl import bfcl_command

    app = typer.Typer()
    app.command()(bfcl_command)
    arguments = ["-m", str(tiny_checkpoint), "--categories", "simple_python,irrelevance", "--limit", "1"]
    arguments += ["--answers", str(tmp_path / "kept.jsonl"), "--json", str(tmp_path / "out.json"), "--max-tokens", "16"]
    arguments += ["--device", "cpu", "--dtype", "fp32", *(["--data", FOLDER] if FOLDER else [])]
    first = CliRunner().invoke(app, [*arguments, "--markdown", str(tmp_path / "out.md")])
    assert first.exit_code == 0, first.output
    assert "| irrelevance | 1 |" in (tmp_path / "out.md").read_text()
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["categories"]["simple_python"]["questions"] == 1
    kept = (tmp_path / "kept.jsonl").read_text()
    assert kept.count("\n") == 2
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 0
    assert (tmp_path / "kept.jsonl").read_text() == kept
    for wrong in (["--choice", "maybe"], ["--categories", "web_search"]):
        assert CliRunner().invoke(app, [*arguments, *wrong]).exit_code != 0


def test_categories_are_chosen_by_name_or_beginning():
    assert bfcl.select_categories(["all"]) == CATEGORIES
    assert bfcl.select_categories(["parallel", "simple"]) == ["parallel", *AST[:3]]
    assert bfcl.select_categories(["multi_turn"]) == MULTI_TURN
    for name, why in (("web_search", "searches the web"), ("typo", "There are")):
        with pytest.raises(ConfigError, match=why):
            bfcl.select_categories([name])


def test_a_folder_without_the_package_is_refused(tmp_path, monkeypatch):
    import sys

    monkeypatch.delitem(sys.modules, "bfcl_eval.utils", raising=False)
    with pytest.raises(ConfigError, match="unpacked bfcl-eval wheel"):
        bfcl.Package(tmp_path)
