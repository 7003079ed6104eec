"""Conversations in small companies: executed, valid, nothing invented, and apart from what models are judged by."""

import itertools
import json
import re
from collections import Counter
from datetime import date, timedelta
from pathlib import Path

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stille.errors import ConfigError
from stille.evals.toolworld import TOOLS, Company, specs
from stille.train.sft import conversation as checked
from stille.train.toolcalls import example, generate
from stille.train.toolcalls.company import company_of, conversation, words
from stille.train.toolcalls.company.asks import ASKS
from stille.train.toolcalls.company.judged import JUDGED, checksum
from stille.train.toolcalls.company.say import in_words, ordinal_in_words, say_clock, say_day
from stille.train.toolcalls.dice import Dice, is_held_out
from stille.train.toolcalls.kinds import DAYS, ordinal

DATA = Path(__file__).parents[2] / "benchmarks" / "data" / "agents_tools"
PARAMETERS = {each["function"]["name"]: each["function"]["parameters"] for each in specs()}
VALID = {name: jsonschema_rs.validator_for(schema) for name, schema in PARAMETERS.items()}  # nothing further is valid
ORDER = {name: [*schema["properties"]] for name, schema in PARAMETERS.items()}
ROWS = 700


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return [conversation(11, number, "train") for number in range(ROWS)]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 10**6), st.sampled_from(["train", "phrasings", "heldout"]))
def test_every_call_is_valid_and_its_result_is_that_of_executing_it(seed, number, split):
    row = example(seed, number, split, company=1.0)
    assert row == example(seed, number, split, company=1.0)
    assert sorted(tool["function"]["name"] for tool in row["tools"]) == sorted(TOOLS)
    company, calls, results = company_of(row["meta"]), [], []
    for message in row["messages"]:
        for call in message.get("tool_calls", ()):
            name, arguments = call["function"]["name"], json.loads(call["function"]["arguments"])
            assert VALID[name].is_valid(arguments)
            assert [*arguments] == [each for each in ORDER[name] if each in arguments]
            calls.append((f"company.{name}", arguments))
            results.append(company.call(name, arguments))
    assert [json.loads(m["content"]) for m in row["messages"] if m["role"] == "tool"] == results
    assert [tuple(call) for call in row["meta"]["calls"]] == calls
    checked(row)  # in OpenAI's form
    assert row["messages"][0]["role"] == "system"
    assert row["messages"][-1]["role"] == "assistant"
    said = [m["content"] or "" for m in row["messages"] if m["role"] != "tool"]
    assert not re.search(r"[\ue000\ue001{}<>|\[\]]| on on | ,|None(?! of)", " ".join(said))


def test_nothing_is_invented(rows):
    """Whatever a call says was said or found before."""
    hints = {
        "minutes": r"hour|min|\dh\b",
        "priority": r"low|normal|high|top|urgent|important|critical|minor",
        "amount": r"\d|hundred|thousand|\b(" + "|".join(in_words(n) for n in range(20, 100)) + r")\b",
    }
    optional = Counter()
    for row in rows:
        heard = ""
        for message in row["messages"]:
            for call in message.get("tool_calls", ()):
                for name, value in json.loads(call["function"]["arguments"]).items():
                    for each in value if isinstance(value, list) else [value]:
                        if name in hints:
                            assert re.search(hints[name], heard), (name, each, heard)
                        elif name not in ("date", "time", "due_date", "status"):
                            assert each.casefold() in heard, (name, each, heard)
                    optional[f"{call['function']['name']}.{name}"] += 1
            if message["role"] != "system" or not heard:
                heard += f" {message['content'] or ''}".casefold()
    for name in ("create_event.minutes", "create_event.attendees", "create_ticket.priority", "create_ticket.assignee"):
        tool = name.split(".")[0]
        assert 0.15 < optional[name] / optional[f"{tool}.title"] < 0.85


def test_kinds_of_conversations_and_turns(rows):
    found = Counter(row["meta"]["scenario"] for row in rows)
    assert 0.45 < found["task"] / ROWS < 0.65
    assert all(found[name] > 20 for name in ("single", "several", "missing", "none"))
    turns = quiet = parallel = steps = 0
    for row in rows:
        roles = [(m["role"], len(m.get("tool_calls", ()))) for m in row["messages"]]
        for (role, _), (_, count) in itertools.pairwise(roles):
            turns += role == "user"
            quiet += role == "user" and count == 0
            parallel += role == "user" and count > 1
            steps += role == "tool" and count > 0
        users = sum(m["role"] == "user" for m in row["messages"])
        assert row["meta"]["scenario"] != "task" or 3 <= users <= 12
    assert 0.2 < quiet / turns < 0.4  # nothing to call, or something lacks
    assert parallel / turns > 0.06
    assert steps / turns > 0.03
    assert {tool.split(".")[1] for row in rows for tool, _ in row["meta"]["calls"]} == {*TOOLS}
    shown = [[tool["function"]["name"] for tool in row["tools"]] == [*TOOLS] for row in rows]
    assert 0.4 < sum(shown) / ROWS < 0.6
    assert all(sum(map(len, ways.values())) >= 30 for ways in ASKS.values())


def said_in_the_benchmark() -> set[str]:
    lines = [json.loads(line) for file in sorted(DATA.glob("*.jsonl")) for line in file.read_text().splitlines()]
    return {turn["say"] for line in lines for turn in line.get("turns", [line])}


def test_nothing_of_the_benchmark_is_in_it():
    """Counts only: whoever writes phrasings shall not read the benchmark's in a message of this test."""
    judged = {checksum(each) for each in said_in_the_benchmark()}
    said: list[int] = []
    for number in itertools.count():
        row = conversation(5, number, "train")
        said += [checksum(m["content"]) for m in row["messages"] if m["role"] == "user"]
        if len(said) >= 3000:
            break
    theirs, mine = (
        Company().state,
        [company_of(conversation(5, number, "train")["meta"]).state for number in range(150)],
    )
    people = [name for name in theirs.contacts if name.split()[0] in words.FIRST and name.split()[-1] in words.LAST]
    ours = tuple(f"{place} {trade}" for place in words.PLACES for trade in (*words.TRADES, *words.HOUSES))
    companies = [each["company"] for each in theirs.contacts.values() if each["company"].startswith(ours)]
    titles = {each["title"].casefold() for each in [*theirs.events.values(), *theirs.tickets.values()]}
    things = [each for state in mine for each in [*state.events.values(), *state.tickets.values()]]
    counts = {
        "sentences": len({*said} & judged),
        "people": len(people),
        "companies": len(companies),
        "titles": len(titles & {each["title"].casefold() for each in things}),
        "files": len(theirs.files.keys() & {name for state in mine for name in state.files}),
    }
    assert counts == dict.fromkeys(counts, 0)
    assert len(judged) > 250
    assert (judged == JUDGED) is True, "the benchmark's sentences have changed: renew their sums in company/judged.py"


def test_shares_splits_and_what_cannot_be_made():
    mixed = [row for _, row in generate(60, 3, company=0.5)]
    assert 15 < sum(row["meta"]["about"] == "company" for row in mixed) < 45
    assert mixed == [row for _, row in generate(60, 3, company=0.5)]
    assert not any(row["meta"]["about"] == "company" for _, row in generate(60, 3))
    for split, held in (("train", False), ("phrasings", True)):
        made = [*generate(20, 3, split, company=1.0)]  # pyright: ignore[reportArgumentType]
        houses = {company_of(row["meta"]).house.rpartition(" ") for _, row in made}
        assert {is_held_out(word) for place, _, trade in houses for word in (place, trade)} == {held}
    with pytest.raises(ConfigError, match=r"company=1\.5"):
        next(generate(1, company=1.5))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 2000), st.integers(-6, 70), st.integers(8 * 60, 18 * 60))
def test_days_and_times_in_words_mean_what_they_say(seed, first, ahead, minute):
    dice, today = Dice(seed), date(2024, 1, 1) + timedelta(days=first)
    day = today + timedelta(days=ahead)
    text, on = say_day(dice, day, today)
    relative = {
        "today": 0,
        "tomorrow": 1,
        "yesterday": -1,
        "the day after tomorrow": 2,
        "in a week": 7,
        "in two weeks": 14,
    }
    weekday = next((name for name in DAYS if name in text), None)
    if text in relative:
        assert (relative[text], on) == (ahead, False)
    elif "last day of" in text:
        assert (day + timedelta(days=1)).day == 1
    elif text.startswith("in "):
        assert text.split()[1] in (str(ahead), in_words(ahead))
    else:
        numbers = {str(day.day), f"{day.day:02d}", ordinal(day.day), ordinal_in_words(day.day)}
        assert (weekday and not re.search(r"\d", text)) or numbers & {*re.split(r"[ .,]|-(?=\d)", text)}
    if weekday:
        assert DAYS[day.weekday()] == weekday
        monday = today - timedelta(days=today.weekday())
        if text.startswith("this "):
            assert 0 < ahead < 7
            assert (day - monday).days < 7
        elif text.startswith("next ") or text.endswith("next week"):
            assert 7 <= (day - monday).days < 14
        elif text == weekday:
            assert 0 < ahead < 7
    clock = f"{minute // 60:02d}:{minute % 60:02d}"
    said = say_clock(dice, clock)
    others = {say_clock(Dice(seed), f"{hour:02d}:{minute % 60:02d}") for hour in range(8, 19) if hour != minute // 60}
    assert said not in others or minute // 60 in (8, 18)


def test_numbers_in_words():
    assert len({in_words(number) for number in range(10_000)}) == 10_000
    assert in_words(1248) == "one thousand two hundred and forty-eight"
    assert [ordinal_in_words(n) for n in (1, 5, 12, 20, 21, 30)] == [
        "first", "fifth", "twelfth", "twentieth", "twenty-first", "thirtieth",
    ]  # fmt: skip
