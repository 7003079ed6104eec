"""Conversations with tool calls: executed, valid, copied exactly, different, balanced, and kept apart by split."""

import json
import re
from collections import Counter
from datetime import date

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer import Typer
from typer.testing import CliRunner

from stille.errors import ConfigError
from stille.train.sft import Renderer, conversation
from stille.train.toolcalls import Statistics, all_tools, example, generate, pool, run
from stille.train.toolcalls.__main__ import main
from stille.train.toolcalls.dice import Dice, fill, is_held_out, omissible, outside, plain
from stille.train.toolcalls.generate import HELD_WORLDS
from stille.train.toolcalls.kinds import say_date, say_money, say_time
from stille.train.toolcalls.talk import sentence

SPLITS = ("train", "phrasings", "tools", "worlds")
TOOLS = {tool.key: tool for tool in all_tools()}


def calls_of(row: dict) -> list[tuple[str, dict]]:
    made = [call["function"] for m in row["messages"] for call in m.get("tool_calls", ())]
    return [(call["name"], json.loads(call["arguments"])) for call in made]


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return [row for split in SPLITS for _, row in generate(250, 5, split)]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 10**6), st.sampled_from([*SPLITS, "heldout"]))
def test_every_call_is_valid_and_its_result_is_that_of_executing_it(seed, number, split):
    row = example(seed, number, split)
    specs = {tool["function"]["name"]: tool["function"] for tool in row["tools"]}
    made = calls_of(row)
    assert len(specs) == len(row["tools"])
    assert 2 <= len(specs) <= 15
    for name, spec in specs.items():
        assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name)
        assert spec["description"]
        jsonschema_rs.validator_for({**spec["parameters"], "additionalProperties": False})
    for name, arguments in made:
        schema = {**specs[name]["parameters"], "additionalProperties": False}
        assert jsonschema_rs.is_valid(schema, arguments)
    results = [m["content"] for m in row["messages"] if m["role"] == "tool"]
    assert len(results) == len(made) == len(row["meta"]["calls"])
    worlds = {}
    for (_, shown), (key, arguments), result in zip(made, row["meta"]["calls"], results, strict=True):
        assert sorted(map(str, shown.values())) == sorted(map(str, arguments.values()))
        assert run(worlds, TOOLS[key], arguments, row["meta"]["seed"]) == json.loads(result)
    conversation(row)  # in OpenAI's form
    assert row["messages"][-1]["role"] == "assistant"
    assert all(m["content"] or m.get("tool_calls") for m in row["messages"])
    said = [m["content"] or "" for m in row["messages"] if m["role"] in ("user", "assistant")]
    assert not re.search("[\ue000\ue001{}|\\[\\]]", " ".join(said))


def test_text_is_copied_exactly_from_what_was_said_or_given(rows):
    for row in rows:
        said = ""
        for message in row["messages"]:
            for call in message.get("tool_calls", ()):
                spec = next(t["function"] for t in row["tools"] if t["function"]["name"] == call["function"]["name"])
                for name, value in json.loads(call["function"]["arguments"]).items():
                    schema = spec["parameters"]["properties"][name]
                    free = schema["type"] == "string" and not {"enum", "format"} & schema.keys()
                    if free and not re.fullmatch(r"\d\d:\d\d", value):
                        assert value in said, row["messages"]
                    for each in value if schema["type"] == "array" else ():
                        assert each in said
            said += str(message["content"])


def test_results_are_read_out(rows):
    """An answer to a call that failed tells the error; most others have something of the result in them."""
    good = told = 0
    for row in rows:
        for result, answer in zip(row["messages"], row["messages"][1:], strict=False):
            if result["role"] == "tool" and answer["role"] == "assistant" and answer["content"]:
                found = json.loads(result["content"])
                if "error" in found:
                    assert found["error"] in answer["content"]
                else:
                    good += 1
                    plain_ = [str(v).replace("_", " ") for v in found.values() if not isinstance(v, list | float)]
                    told += any(value in answer["content"] for value in plain_)
    assert good > 300
    assert told > 0.5 * good


@pytest.mark.slow
def test_the_same_seed_is_the_same_text_in_any_number_of_processes():
    one = [text for text, _ in generate(300, 3)]
    two = [text for text, _ in generate(300, 3, workers=2)]
    other = [text for text, _ in generate(250, 4)]
    assert one == two
    assert len(set(one)) == 300
    assert len(set(one) & set(other)) == 0


def test_splits_share_neither_tools_nor_worlds_nor_phrasings():
    assert {tool.world for tool in pool("worlds")} == HELD_WORLDS
    assert not HELD_WORLDS & {tool.world for tool in (*pool("train"), *pool("tools"))}
    assert not set(pool("train")) & set(pool("tools"))
    assert pool("phrasings") == pool("train")
    assert len(all_tools()) == sum(len(pool(split)) for split in ("train", "tools", "worlds")) >= 130
    assert len({tool.world for tool in all_tools()}) >= 15
    train = {tool.key for tool in pool("train")}
    for _, row in generate(200, 0, "train"):
        assert {key for key, _ in row["meta"]["calls"]} <= train
    found = Counter(row["meta"]["split"] for _, row in generate(90, 0, "heldout"))
    assert found == {"phrasings": 30, "tools": 30, "worlds": 30}
    for tool in pool("train"):
        sides = {is_held_out(ask) for ask in tool.asks}
        assert False in sides, f"no phrasing of {tool.key} is left to learn"


def test_tools_arguments_and_scenarios_are_balanced():
    found = Statistics()
    for _ in generate(2000, 1, statistics=found):
        pass
    counts = [found.tools[tool.key] for tool in pool("train")]
    assert min(counts) > 6
    assert max(counts) < 8 * min(counts)
    assert 0.3 < found.scenarios["single"] / 2000 < 0.6
    for name in ("parallel", "chain", "follow_up", "missing_argument", "missing_tool", "no_call"):
        assert found.scenarios[name] > 40
    assert 0.01 < found.failed / sum(counts) < 0.15
    for tool in pool("train"):
        for param in tool.params:
            share = found.arguments[f"{tool.key}.{param.name}"] / found.tools[tool.key]
            assert share == 1 if param.required else 0.05 < share < 0.95
    table = found.table()
    assert "2,000 conversations" in table
    assert "calls of a tool" in table


def test_each_scenario_is_what_it_is_called(rows):
    by = {}
    for row in rows:
        by.setdefault(row["meta"]["scenario"], []).append(row)
    turns = {
        name: [[len(m.get("tool_calls", ())) for m in row["messages"] if m["role"] == "assistant"] for row in found]
        for name, found in by.items()
    }
    assert all(turn == [1, 0] for turn in turns["single"])
    assert all(turn[0] >= 1 and turn[1] == 0 and len(turn) == 2 for turn in turns["parallel"])
    assert sum(turn[0] >= 2 for turn in turns["parallel"]) > 0.95 * len(turns["parallel"])
    assert {tuple(turn) for turn in turns["chain"]} == {(1, 1, 0), (1, 0)}
    assert {tuple(turn) for turn in turns["follow_up"]} == {(1, 0, 1, 0), (1, 0)}
    assert all(turn == [0, 1, 0] for turn in turns["missing_argument"])
    assert all(turn == [0] for turn in turns["missing_tool"] + turns["no_call"])
    for row in by["chain"]:
        if len(row["meta"]["calls"]) == 2:
            first = next(m["content"] for m in row["messages"] if m["role"] == "tool")
            assert set(json.loads(first).values()) & {str(v) for v in row["meta"]["calls"][1][1].values()}
    for row in by["missing_tool"]:
        names = {name for tool in row["tools"] for name in (tool["function"]["name"],)}
        assert len(names) >= 2
        assert row["meta"]["about"] not in {key for key, _ in row["meta"]["calls"]}


@settings(deadline=None)
@given(st.integers(0, 2**32))
def test_templates(seed):
    dice = Dice(seed)
    template = "(send|wire) {a} to {b}[ from {c}][ on {d}]"
    assert omissible(template) == {"c", "d"}
    short, long = ({n: n * 3 for n in names} for names in ("ab", "abcd"))
    assert re.fullmatch("(send|wire) aaa to bbb", plain(fill(template, short, dice)))
    assert re.fullmatch("(send|wire) aaa to bbb( from ccc on ddd| on ddd from ccc)", plain(fill(template, long, dice)))
    text = fill(template, {"a": "A b C", "b": "Xylophone Kid"}, dice)
    assert plain(outside(text, str.upper)).endswith("A b C TO Xylophone Kid")
    assert "Xylophone Kid" in plain(sentence([text], dice))


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 300), st.integers(0, 1439), st.integers(1, 10**6))
def test_dates_times_and_money_can_be_understood(seed, ahead, minute, cents):
    dice = Dice(seed)
    day = date.fromordinal(dice.today.toordinal() + ahead)
    words = say_date(dice, day.isoformat())
    if dice.told:
        relative = r"today|tomorrow|the day after tomorrow|in a week|next \w+day|in \w+ days"
    else:
        relative = "$^"
        assert str(day.year) in words
    assert re.fullmatch(relative, words) or str(day.day) in words
    clock = f"{minute // 60:02d}:{minute % 60:02d}"
    said = say_time(dice, clock)
    assert re.search(r"\d|\b(one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve)\b", said)
    assert say_time(Dice(seed), "15:00") != say_time(Dice(seed), "03:00")
    amount = cents / 100
    assert float(re.sub(r"[^\d.]", "", say_money(dice, amount))) == pytest.approx(amount)


def test_what_cannot_be_made_is_told():
    with pytest.raises(ConfigError, match="at least 1"):
        next(generate(0))
    with pytest.raises(ConfigError, match="split 'test'"):
        next(generate(1, split="test"))  # pyright: ignore


def test_the_command_writes_a_file_and_a_table(tmp_path):
    app = Typer()
    app.command()(main)
    command = ["--out", str(tmp_path / "a.jsonl"), "--examples", "50", "--seed", "7"]
    run_ = CliRunner().invoke(app, [*command, "--split", "heldout"])
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    assert lines == [text for text, _ in generate(50, 7, "heldout")]
    assert "50 conversations" in run_.stdout
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]
    bad = CliRunner().invoke(app, [*command, "--split", "x"])
    assert bad.exit_code == 2
    assert "split 'x'" in bad.output.replace("\n", " ")


def test_it_can_be_learned_from(tiny_checkpoint, rows):
    from stille.model import load_model

    loaded = load_model(tiny_checkpoint, progress=False)
    made = Renderer(loaded.tokenizer, loaded.eos_token_ids).documents([conversation(row) for row in rows[:40]])
    assert len(made) == 40
    assert all(0 < (each.learned > 0).mean() < 0.5 for each in made)
