"""Checks, and evaluating cases with them."""

import asyncio
import itertools
import json
import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from stille.agents.checks import Called, CallsInOrder, EndState, NotCalled, Outcome, Output, Within
from stille.agents.evals import Case, Report, Result, evaluate, wilson
from stille.agents.types import Message, ToolCall, Usage
from stille.errors import ConfigError


def calls(*made: tuple[str, dict]) -> Outcome:
    return Outcome(calls=[ToolCall(id=str(i), name=name, arguments=args) for i, (name, args) in enumerate(made)])


class Answer(BaseModel):
    total: int


REFUND = ("refund", {"invoice": 7, "reason": "late", "notify": True})


@pytest.mark.parametrize(
    ("check", "outcome", "holds"),
    [
        (Called("refund"), calls(REFUND), True),
        (Called("refund"), calls(), False),
        (Called("refund", {"invoice": 7}), calls(REFUND), True),
        (Called("refund", {"invoice": 7}, exactly=True), calls(REFUND), False),
        (Called("refund", REFUND[1], exactly=True), calls(REFUND), True),
        (Called("refund", {"invoice": 8}), calls(REFUND), False),
        (Called("refund", {"notify": 1}), calls(REFUND), False),  # True is not 1
        (Called("refund", {"invoice": 7.0}), calls(REFUND), True),
        (Called("refund", {"missing": None}), calls(REFUND), False),
        (Called("refund", {"reason": re.compile("la.")}), calls(REFUND), False),  # all of the text
        (Called("refund", {"reason": re.compile("la.*")}), calls(REFUND), True),
        (Called("refund", {"invoice": lambda n: n > 6}), calls(REFUND), True),
        (Called("refund", {"invoice": str}), calls(REFUND), False),
        (Called("refund", {"tags": ["a", {"b": True}]}), calls(("refund", {"tags": ["a", {"b": True}]})), True),
        (Called("refund", {"tags": ["a", {"b": 1}]}), calls(("refund", {"tags": ["a", {"b": True}]})), False),
        (Called("refund", times=1), calls(REFUND, REFUND), False),
        (Called("refund", times=2), calls(REFUND, REFUND), True),
        (Called("refund", times=0), calls(), True),
        (NotCalled(), calls(), True),
        (NotCalled(), calls(REFUND), False),
        (NotCalled(["pay"]), calls(REFUND), True),
        (NotCalled(["pay", "refund"]), calls(REFUND), False),
        (CallsInOrder(["look", "refund"]), calls(("look", {}), ("other", {}), REFUND), True),
        (CallsInOrder(["refund", "look"]), calls(("look", {}), REFUND), False),
        (CallsInOrder([Called("look", {"id": 2}), "refund"]), calls(("look", {"id": 1}), REFUND), False),
        (CallsInOrder(["look", "look"]), calls(("look", {})), False),
        (Output("yes"), Outcome("yes"), True),
        (Output("yes"), Outcome("no"), False),
        (Output(1), Outcome(True), False),
        (Output(re.compile("b")), Outcome("abc"), True),
        (Output(re.compile("b")), Outcome(None), False),
        (Output(Answer), Outcome('{"total": 3}'), True),
        (Output(Answer), Outcome('{"total": "three"}'), False),
        (Output(list[int]), Outcome([1, 2]), True),
        (Output(list[int]), Outcome("[1, null]"), False),
        (Output(str), Outcome("text"), True),
        (Output(str), Outcome(3), False),
        (Output(lambda text: len(text) < 3), Outcome("abc"), False),
        (EndState(lambda world: world["paid"] == [7]), Outcome(environment={"paid": [7]}), True),
        (EndState(lambda world: world["paid"] == [7]), Outcome(environment={"paid": []}), False),
        (EndState(lambda world: "nothing was paid"), Outcome(environment={}), False),
        (Within(tokens=10), Outcome(usage=Usage(prompt_tokens=6, completion_tokens=4)), True),
        (Within(tokens=9), Outcome(usage=Usage(prompt_tokens=6, completion_tokens=4)), False),
        (Within(calls=1), calls(REFUND, REFUND), False),
        (Within(seconds=0.5), Outcome(seconds=0.6), False),
    ],
)
def test_a_check_says_what_is_wrong_or_nothing(check, outcome, holds):
    why = check(outcome)
    assert why is None if holds else isinstance(why, str) and len(why) > 10


def test_reasons_say_what_was_expected_and_what_happened():
    assert Called("pay", {"invoice": 7})(calls(REFUND)) == (
        "expected pay(invoice=7) to be called; the calls were refund(invoice=7, reason='late', notify=True)"
    )
    assert EndState(lambda world: "nothing was paid")(Outcome()) == "nothing was paid"
    spent = Outcome(usage=Usage(prompt_tokens=60, completion_tokens=40))
    assert Within(tokens=50, calls=3)(spent) == "spent 100 tokens of at most 50"


def test_calls_are_those_of_the_messages_unless_given():
    call = ToolCall(id="1", name="look", arguments={})
    outcome = Outcome(messages=[Message(role="user", content="?"), Message(role="assistant", calls=(call,))])
    assert Called("look", times=1)(outcome) is None


async def test_cases_run_together_and_all_reasons_are_told():
    at_once, most = 0, 0

    async def run(case: Case) -> Outcome:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        at_once -= 1
        if case.input == "break":
            raise RuntimeError("no model")
        return Outcome(case.input, usage=Usage(prompt_tokens=3, completion_tokens=2))

    cases = [
        Case("good", "a", [Output("a")], {"kind": "x"}),
        Case("bad", "a", [Output("b"), NotCalled(), Called("f")], {"kind": "x"}),
        Case("broken", "break", metadata={"kind": "y"}),
        Case("odd check", "a", [lambda outcome: outcome.output["no"]]),
    ]
    report = await evaluate(cases, run, concurrency=3)
    assert [(r.case, r.passed, len(r.reasons), r.error) for r in report.results] == [
        ("good", True, 0, False),
        ("bad", False, 2, False),
        ("broken", False, 1, True),
        ("odd check", False, 1, False),
    ]
    assert most == 3
    assert report.results[2].reasons == ("raised RuntimeError: no model",)
    assert report.results[0].tokens == 5
    assert {kind: (part.passed, len(part.results)) for kind, part in report.by("kind").items()} == {
        "x": (1, 2),
        "y": (0, 1),
        None: (0, 1),
    }


async def test_a_run_that_takes_too_long_is_an_error():
    async def run(case: Case) -> Outcome:
        await asyncio.Event().wait()
        return Outcome()

    (result,) = (await evaluate([Case("slow")], run, timeout=0.01)).results
    assert (result.error, result.reasons) == (True, ("took longer than 0.01 seconds",))


async def test_finished_runs_are_kept_and_errors_run_again(tmp_path):
    file, asked, broken = tmp_path / "finished.jsonl", [], True

    async def run(case: Case) -> Outcome:
        asked.append(case.name)
        if case.name == "b" and broken:
            raise OSError("gone")
        return Outcome(case.input)

    cases = [Case(name, name, [Output("a")]) for name in "abc"]
    first = await evaluate(cases, run, repeats=2, file=file, setting="m1")
    assert sorted(asked) == ["a", "a", "b", "b", "c", "c"]
    file.write_bytes(file.read_bytes() + b'{"key": "cut o')  # the process died while it wrote
    asked.clear()
    broken = False
    second = await evaluate(cases, run, repeats=2, file=file, setting="m1")
    assert asked == ["b", "b"]
    assert [r.passed for r in second.results] == [True, True, False, False, False, False]
    assert [r.error for r in first.results] == [False, False, True, True, False, False]
    asked.clear()
    third = await evaluate(cases, run, repeats=2, file=file, setting="m1")
    assert (asked, third) == ([], second)
    await evaluate([Case("a", "changed", [])], run, file=file, setting="m1")
    await evaluate(cases[:1], run, file=file, setting="m2")
    assert asked == ["a", "a"]  # another input and another setting are other runs


async def test_bad_input_is_refused(tmp_path):
    async def run(case: Case) -> Outcome:
        raise AssertionError("must not run")

    other = tmp_path / "other.jsonl"
    other.write_text('{"some": "thing"}\n')
    for cases, options, message in (
        ([], {}, "no cases"),
        ([Case("a"), Case("a")], {}, "same name"),
        ([Case("a")], {"repeats": 0}, "at least 1"),
        ([Case("a")], {"concurrency": 0}, "at least 1"),
        ([Case("a", object())], {"file": tmp_path / "f"}, "no JSON"),
        ([Case("a", metadata={"x": object()})], {"file": tmp_path / "f"}, "no JSON"),
        ([Case("a")], {"file": other}, "choose another"),
    ):
        with pytest.raises(ConfigError, match=message):
            await evaluate(cases, run, **options)


def report_of(*runs: str) -> Report:
    return Report(
        [Result(f"c{i}", n, () if one == "1" else ("no",)) for i, r in enumerate(runs) for n, one in enumerate(r)]
    )


def test_pass_hat_is_the_share_of_k_runs_that_all_pass():
    report = report_of("1110", "1111", "0000")
    assert report.pass_hat(1) == pytest.approx(7 / 12)
    assert report.pass_hat(2) == pytest.approx((3 / 6 + 1 + 0) / 3)
    assert report.pass_hat(4) == pytest.approx(1 / 3)
    for k in (0, 5):
        with pytest.raises(ConfigError, match="pass"):
            report.pass_hat(k)


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=5), min_size=1, max_size=4), st.integers(1, 3))
def test_pass_hat_is_what_counting_all_choices_gives(runs, k):
    report = report_of(*("".join("01"[each] for each in run) for run in runs))
    shares = [sum(map(all, itertools.combinations(run, k))) / math.comb(len(run), k) for run in runs]
    assert report.pass_hat(k) == pytest.approx(sum(shares) / len(shares))


def test_wilson_is_the_known_interval():
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(20, 20)[1] == 1.0
    with pytest.raises(ConfigError):
        wilson(3, 2)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_mirrors(numbers):
    passed, runs = numbers
    low, high = wilson(passed, runs)
    assert 0 <= low <= passed / runs + 1e-12
    assert passed / runs - 1e-12 <= high <= 1
    assert wilson(runs - passed, runs) == pytest.approx((1 - high, 1 - low))


def test_a_report_is_json_a_table_and_junit():
    results = [
        Result("one", 0, (), seconds=0.5, tokens=10, calls=2, metadata={"kind": "a"}),
        Result("one", 1, ("expected | more", "and this"), seconds=1.5, tokens=30, calls=4),
        Result("two", 0, ("raised ValueError: x",), error=True),
        Result("two", 1, ()),
    ]
    report = Report(results)
    found = json.loads(json.dumps(report.to_json()))
    assert (found["runs"], found["passed"], found["pass_rate"]) == (4, 2, 0.5)
    assert found["pass_hat"] == {"1": 0.5, "2": 0.0}
    assert found["results"][1]["reasons"] == ["expected | more", "and this"]
    table = report.to_markdown()
    assert "| one | 1/2 | 1.00 | 20 | 3.0 | expected \\| more |" in table
    root = ElementTree.fromstring(report.to_junit("clerk").encode())
    (suite,) = root
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("4", "1", "1")
    assert [case.get("name") for case in suite] == ["one", "one (repeat 1)", "two", "two (repeat 1)"]
    (failure,) = suite[1]
    assert (failure.tag, failure.text) == ("failure", "expected | more\nand this")
    assert suite[2][0].tag == "error"


@given(st.text(), st.text(min_size=1))
def test_junit_is_xml_whatever_the_texts_are(name, why):
    report = Report([Result(name, 0, (why,))])
    try:
        text = report.to_junit().encode()
    except UnicodeEncodeError:
        pytest.fail("a lone surrogate got through")
    (case,) = ElementTree.fromstring(text)[0]
    assert case[0].tag == "failure"
