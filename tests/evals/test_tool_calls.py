"""Asking a real model for calls, and leading conversations."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stille import LLM
from stille.engine.tool_grammar import Function
from stille.evals.tool_calls import Asked, Player, Said, ToolCaller, converse, read_calls

WEATHER = Function(
    "weather",
    "Tells the weather.",
    {
        "type": "object",
        "properties": {"town": {"type": "string", "enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "maximum": 9}},
        "required": ["town"],
    },
)
PING = Function("ping")


@pytest.fixture(scope="module")
def llm(tiny_checkpoint):
    return LLM(str(tiny_checkpoint), device="cpu", dtype="fp32", max_model_len=2048, max_num_seqs=4)


def user(text: str, *functions: Function) -> Asked:
    return Asked([{"role": "user", "content": text}], functions)


def test_required_answers_are_valid_calls_even_of_an_untrained_model(llm):
    ask = ToolCaller(llm, choice="required", parallel=False, max_tokens=200)
    said = ask([user("Oslo?", WEATHER), user("ping", PING), user("either", PING, WEATHER)])
    for each, names in zip(said, ({"weather"}, {"ping"}, {"ping", "weather"}), strict=True):
        assert each.error == ""
        assert each.text == ""
        ((name, arguments),) = each.calls
        assert name in names
        if name == "ping":
            assert arguments == {}
        else:
            assert arguments["town"] in ("Oslo", "Rome")
            assert arguments.keys() <= {"town", "days"}
        assert 0 < each.tokens <= 200 < each.prompt_tokens


def test_what_cannot_be_asked_is_an_error_of_its_own_conversation(llm):
    ask = ToolCaller(llm, choice="required", parallel=False, max_tokens=200)
    broken = Function("broken", None, {"type": "object", "properties": {"x": {"$ref": "#/$defs/none"}}})
    long, bad, good = ask([user("word " * 3000, PING), user("x", broken), user("ping", PING)])
    assert "leaves" in long.error
    assert not long.calls
    assert "grammar" in bad.error
    assert good.calls == (("ping", {}),)


def test_quoted_arguments_are_words_of_the_conversation(llm):
    plain = {"type": "object", "properties": {"to": {"type": "string"}}, "required": ["to"]}
    town = Function("go", None, {**plain, "properties": {"to": {"type": "string", "x-quoted": True}}})
    unmarked = Function("go", None, plain)
    said = "To Oslo or Rome?"
    quoted, free = ToolCaller(llm, choice="required", parallel=False)([user(said, town), user(said, unmarked)])
    ((_, arguments),) = quoted.calls
    assert arguments["to"].lower() in "to oslo or rome"
    assert quoted.prompt_tokens == free.prompt_tokens
    assert free != quoted


def test_a_said_message_goes_on_in_the_conversation(llm):
    said = Said("I look.", (("weather", {"town": "Rome"}),))
    messages = [{"role": "user", "content": "Rome?"}, said.message()]
    messages.append({"role": "tool", "tool_call_id": "call_0", "name": "weather", "content": "sunny"})
    (answer,) = ToolCaller(llm, max_tokens=8)([Asked(messages, [WEATHER])])
    assert answer.error == ""
    assert answer.tokens == 8


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text(max_size=8), lambda s: st.lists(s, max_size=3)
)
ARGUMENTS = st.dictionaries(st.text(max_size=5), JSON, max_size=3)
TEXT = st.text(alphabet="abc <>_\n{}").filter(lambda text: "<tool_call>" not in text and not text.endswith("\n"))


@given(TEXT, st.lists(st.tuples(st.sampled_from(["f", "g.h"]), ARGUMENTS), min_size=1, max_size=3), st.data())
def test_calls_are_read_back_and_a_cut_one_is_left_out(text, calls, data):
    written = [
        f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments)}}}\n</tool_call>'
        for name, arguments in calls
    ]
    whole = "\n".join([*([text] if text else []), *written])
    assert read_calls(whole, free_text=True) == Said(text, tuple(calls))
    mark = len("}\n</tool_call>")
    cut = data.draw(st.integers(1, len(written[-1]) - len("<tool_call>")))
    rest = Said(text, tuple(calls if cut <= mark else calls[:-1]), cut=True)
    assert read_calls(whole[:-cut], free_text=True) == rest


def test_conversations_end_in_their_own_time_and_results_keep_their_order():
    rounds: list[int] = []

    def ask(asked: list[Asked]) -> list[Said]:
        rounds.append(len(asked))
        return [Said(each.messages[0]["content"] + "!") for each in asked]

    def player(number: int) -> Player[str]:
        text = str(number)
        for _ in range(number):
            said = yield Asked([{"content": text}], [])
            text = said.text
        return text

    ended: list[tuple[int, str]] = []
    results = converse(map(player, [3, 0, 1, 2]), ask, batch=2, on_end=lambda *each: ended.append(each))
    assert results == ["3!!!", "0", "1!", "2!!"]
    assert sorted(ended) == list(enumerate(results))
    assert max(rounds) == 2
    assert sum(rounds) == 6
    assert converse([], ask, batch=2) == []
