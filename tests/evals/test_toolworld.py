"""The simulated company, and the sentences about it that models are judged by."""

import copy
import inspect
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stille.engine.quoted import words
from stille.engine.tool_grammar import described
from stille.evals.tool_calls import Asked, Said, converse
from stille.evals.toolworld import TOOLS, Company

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import agents_tools as bench

TURNS, TASKS = bench.read("turns"), bench.read("tasks")


def oracle(specs: list[dict], spoil=lambda name, arguments: (name, arguments)):
    """A model that calls what is expected for the last thing that a user said."""
    known = {turn["say"]: bench.expected(turn) for turn in specs}

    def ask(asked: list[Asked]) -> list[Said]:
        said = []
        for each in asked:
            last = each.messages[-1]
            calls = known[last["content"]] if last["role"] == "user" else []
            said.append(Said("", tuple(spoil(name, bench._first(arguments)) for name, arguments in calls)))
        return said

    return ask


def test_there_are_as_many_sentences_as_promised_and_each_is_there_once():
    says = [turn["say"] for turn in TURNS]
    assert len(TURNS) >= 120
    assert len(set(says)) == len(says)
    assert len(TASKS) >= 40
    assert all(len(task["turns"]) == 5 for task in TASKS)
    assert sum("lacks" in turn for turn in TURNS) >= 15
    assert sum("lacks" not in turn and not turn["calls"] for turn in TURNS) >= 15
    counts = {name: sum(name in call for turn in TURNS for call in turn.get("calls", ())) for name in TOOLS}
    assert min(counts.values()) >= 6, counts


def test_every_expected_call_works_and_is_valid_for_its_tool():
    from stille.agents.tools import tool

    tools = {name: tool(method) for name, method in Company().tools().items()}
    assert tuple(tools) == TOOLS
    for each in tools.values():
        assert each.description
        assert all(property_["description"] for property_ in each.parameters["properties"].values())
    for turn in [*TURNS, *(turn for task in TASKS for turn in task["turns"])]:
        for name, arguments in bench.expected(turn):
            for way in bench._ways(arguments):
                tools[name].checked({**arguments, **way})
                assert name != "find_files" or Company().call(name, way), turn["say"]
    for turn in TURNS:
        bench.gold({"turns": [turn]})  # raises if a call cannot be made
    for task in TASKS:
        bench.gold(task)


def test_marks_of_what_is_quoted_are_not_shown_and_leave_what_is_expected_possible():
    """The values that are expected can be quoted from a turn; in a task they may come from what was looked up."""
    plain, marked = bench.functions(), bench.functions(True)
    assert [described(each) for each in marked] == [described(each) for each in plain]
    assert [each.parameters for each in marked] != [each.parameters for each in plain]
    schemas = {each.name: each.parameters["properties"] for each in marked}
    for turn in TURNS:
        said = " ".join(word for _, word in words(turn["say"].casefold()))
        for name, arguments in bench.expected(turn):
            for key, value in bench._first(arguments).items():
                if "x-quoted" in json.dumps(schemas[name][key]):
                    for each in value if isinstance(value, list) else [value]:
                        quoted = " ".join(word for _, word in words(each.casefold()))
                        assert f" {quoted} " in f" {said} ", (turn["say"], each)


def test_what_is_missing_is_a_required_parameter():
    names = {name for m in Company().tools().values() for name in inspect.signature(m).parameters}
    specs = [turn for task in TASKS for turn in task["turns"]] + TURNS
    assert all(turn["lacks"] in names for turn in specs if "lacks" in turn)


def test_an_oracle_gets_everything_and_one_that_never_calls_only_what_needs_no_call():
    scored = converse(map(bench.play_turn, TURNS), oracle(TURNS), batch=16)
    assert all(each.right for each in scored)
    for task in TASKS:
        (one,) = converse([bench.play_task(task)], oracle(task["turns"]), batch=1)
        assert one.right, (task["name"], one.problem)
        assert one.turns_right == 5

    def silent(asked: list[Asked]) -> list[Said]:
        return [Said("I would rather not.") for _ in asked]

    scored = converse(map(bench.play_turn, TURNS), silent, batch=16)
    assert sum(each.right for each in scored) == sum(not turn.get("calls") for turn in TURNS)
    assert not any(each.right for each in converse(map(bench.play_task, TASKS), silent, batch=16))


def test_one_wrong_argument_fails_its_turn_and_its_task():
    def spoil(name, arguments):
        first = next(iter(arguments), None)
        return (
            (name, {**arguments, first: "EV-99" if isinstance(arguments[first], str) else 1})
            if first
            else (name, {"status": "paid"})
        )

    scored = converse(map(bench.play_turn, TURNS), oracle(TURNS, spoil), batch=16)
    assert not any(each.right for each, turn in zip(scored, TURNS, strict=True) if turn.get("calls"))
    for task in TASKS:
        (one,) = converse([bench.play_task(task)], oracle(task["turns"], spoil), batch=1)
        assert not one.right


def test_further_reads_do_not_spoil_a_task_but_further_writes_do():
    task = TASKS[0]
    known = {turn["say"]: [(n, bench._first(a)) for n, a in bench.expected(turn)] for turn in task["turns"]}

    def asking(more):
        def ask(asked: list[Asked]) -> list[Said]:
            last = [each.messages[-1] for each in asked]
            return [Said("", (more, *known[m["content"]]) if m["role"] == "user" else ()) for m in last]

        return ask

    (reads,) = converse([bench.play_task(task)], asking(("list_invoices", {})), batch=1)
    (writes,) = converse([bench.play_task(task)], asking(("create_ticket", {"title": "x"})), batch=1)
    assert (reads.right, writes.right) == (True, False)
    assert writes.problem == "the end state is another"
    turn = next(turn for turn in TURNS if turn.get("calls"))
    known[turn["say"]] = bench.expected(turn)
    (extra,) = converse([bench.play_turn(turn)], asking(("list_invoices", {})), batch=1)
    assert not extra.right


def test_calls_that_mean_the_same_are_equal():
    company = Company()
    same = company.canonical(
        "create_event", {"title": "a  B.", "date": "x", "time": "y", "attendees": ["Dana", "marta"]}
    )
    assert same == company.canonical(
        "create_event",
        {"title": "A b", "date": "x", "time": "y", "minutes": 60, "attendees": ["Marta Oyelaran", "dana whitfield"]},
    )
    assert company.canonical("list_invoices", {}) == company.canonical(
        "list_invoices", {"status": "any", "customer": ""}
    )
    assert company.canonical("find_contact", {"name": "Dan"}) != company.canonical("find_contact", {"name": "Dana"})


CALLS = st.one_of(
    st.tuples(st.just("cancel_event"), st.fixed_dictionaries({"event_id": st.sampled_from(["EV-1", "ev-9", "EV-10"])})),
    st.tuples(
        st.just("create_event"),
        st.fixed_dictionaries(
            {
                "title": st.sampled_from(["a", ""]),
                "date": st.sampled_from(["2027-03-03", "2027-02-30", "3 March"]),
                "time": st.sampled_from(["09:00", "9 am"]),
                "attendees": st.lists(st.sampled_from(["Dana", "nobody"]), max_size=2),
            }
        ),
    ),
    st.tuples(st.just("mark_invoice_paid"), st.fixed_dictionaries({"invoice_id": st.sampled_from(["INV-101", "7"])})),
    st.tuples(
        st.just("create_invoice"),
        st.fixed_dictionaries(
            {"customer": st.just("Menon Garage"), "amount": st.integers(-1, 2), "due_date": st.just("2027-03-03")}
        ),
    ),
    st.tuples(
        st.sampled_from(["update_ticket", "reset", "_person"]),
        st.fixed_dictionaries({"ticket_id": st.just("T-21"), "status": st.just("closed")}),
    ),
)


@given(st.lists(CALLS, max_size=12))
def test_the_same_calls_give_the_same_and_a_refused_one_changes_nothing(calls):
    one, two = Company(), Company()
    fresh = copy.deepcopy(one.snapshot())
    given_ids: set[str] = set()
    for name, arguments in calls:
        before = copy.deepcopy(one.snapshot())
        result = one.call(name, arguments)
        assert result == two.call(name, arguments)
        json.dumps(result)
        if "error" in result:
            assert one.snapshot() == before
        elif name == "create_event":
            assert result["event_id"] not in given_ids
            given_ids.add(result["event_id"])
    assert one.snapshot() == two.snapshot()
    one.reset()
    assert one.snapshot() == fresh


@pytest.mark.parametrize("name", ["reset", "snapshot", "_person", "nothing"])
def test_only_tools_can_be_called(name):
    assert "error" in Company().call(name, {})
