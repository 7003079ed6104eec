"""The parser of tool calls, fed in every way."""

import itertools
import json
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stille.engine.tool_calls import Arguments, CallStart, Content, ToolCallParser
from stille.server.answers import ChatAnswer

ARGUMENTS = ['{"a": 1}', "{}", '{"s": "}\\" <tool_call> {\\\\"}', '{"a": {"b": [1, {"c": "]"}]}}', '{"é": "東\\u0041"}']


def call(name="f", arguments='{"a": 1}'):
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def merged(events):
    """Neighbours of one kind as one."""
    whole = []
    for event in events:
        last = whole[-1] if whole else None
        if isinstance(event, Content) and isinstance(last, Content):
            whole[-1] = Content(last.text + event.text)
        elif isinstance(event, Arguments) and isinstance(last, Arguments) and last.index == event.index:
            whole[-1] = Arguments(event.index, last.text + event.text)
        else:
            whole.append(event)
    return whole


def parsed(pieces, free_text=True):
    parser = ToolCallParser(free_text)
    events = [event for piece in pieces for event in parser.feed(piece)]
    assert not any(isinstance(event, Content | Arguments) and not event.text for event in events)
    return merged(events + parser.finish()), parser.complete


well_formed = st.builds(
    lambda text, calls: (text + "\n" if text and calls else text) + "\n".join(call(*one) for one in calls),
    st.text(max_size=20),
    st.lists(st.tuples(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), st.sampled_from(ARGUMENTS)), max_size=3),
)
marks = st.sampled_from(
    [
        "<tool_call>",
        "\n",
        '\n{"name": "',
        "f",
        '", "arguments": ',
        "{",
        "}",
        '"',
        "\\",
        "\n</tool_call>",
        "<",
        "x",
        call(),
    ]
)
anything = well_formed | st.lists(marks, max_size=12).map("".join)


@given(anything, st.lists(st.integers(0, 400), max_size=30), st.booleans())
@example("a\n" + call() + "\n" + call(), list(range(400)), True)
@example("<tool_call>\n<tool_call>" + call(), list(range(400)), True)
def test_every_split_gives_the_same_events(text, cuts, free_text):
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[a:b] for a, b in itertools.pairwise(places)]
    assert parsed(pieces, free_text) == parsed([text], free_text) == parsed(list(text), free_text)


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_calls_are_found_whole(arguments):
    events, complete = parsed(["Let me see.\n" + call("look", arguments) + "\n" + call("f2", "{}")])
    assert complete
    assert events == [
        Content("Let me see."),
        CallStart(0, "look"),
        Arguments(0, arguments),
        CallStart(1, "f2"),
        Arguments(1, "{}"),
    ]


@pytest.mark.parametrize("text", ["", "Hi.", "a < b", "ends in <tool_c", "two\n\n", "</tool_call>", "\n"])
def test_text_without_calls_is_content(text):
    assert parsed(list(text)) == ([Content(text)] if text else [], True)


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call> {"name": "f", "arguments": {}}\n</tool_call>',
        'x\n<tool_call>\n{"name": "f", "parameters": {}}',
        '<tool_call>\n{"name": "f", "arguments": [1]}',
        "<tool_call><tool_call>",
    ],
)
def test_what_is_no_call_after_all_is_given_back(text):
    assert parsed([text]) == ([Content(text)], True)


def test_what_follows_a_call_and_does_not_belong_there_is_content():
    start = [CallStart(0, "f"), Arguments(0, '{"a": 1}')]
    assert parsed([call() + " done"])[0] == [*start, Content(" done")]
    assert parsed([call()[:-1] + "!"])[0] == [*start, Content("}\n</tool_call!")]


@pytest.mark.parametrize("free_text", [True, False])
def test_a_cut_anywhere_delivers_what_has_come(free_text):
    text = ("Well.\n" if free_text else "") + call("look", ARGUMENTS[2]) + "\n" + call("f2")
    whole, _ = parsed([text], free_text)
    for cut in range(len(text)):
        events, complete = parsed([text[:cut]], free_text)
        for some, all_ in zip(events, whole, strict=False):
            if isinstance(all_, Content):
                assert all_.text.startswith(some.text) or re.fullmatch(r"Well\.\n(<tool_cal?l?|<[tol_ca]*)?", some.text)
            elif isinstance(all_, Arguments):
                assert all_.text.startswith(some.text)
            else:
                assert some == all_
        assert len(events) <= len(whole)
        if not free_text:
            assert not any(isinstance(event, Content) for event in events)
        assert complete or "<tool_call>" in text[:cut]


def test_an_answer_is_a_message_and_deltas_that_add_up_to_it():
    answer = ChatAnswer(ToolCallParser())
    deltas = []
    text = "See:\n" + call("look", ARGUMENTS[3])
    for position, char in enumerate(text):
        news, reason = answer.feed(char, "stop" if position == len(text) - 1 else None)
        deltas += news
    assert reason == "tool_calls"
    message = answer.message()
    (made,) = message["tool_calls"]
    assert message["content"] == "See:" == "".join(delta.get("content", "") for delta in deltas)
    assert json.loads(made["function"]["arguments"]) == {"a": {"b": [1, {"c": "]"}]}}
    first, *more = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert first == {"index": 0, "id": made["id"], "type": "function", "function": {"name": "look", "arguments": ""}}
    assert "".join(part["function"]["arguments"] for part in more) == made["function"]["arguments"]


@pytest.mark.parametrize(("reason", "expected"), [("stop", "stop"), ("length", "length")])
def test_a_cut_call_is_not_reported_as_complete(reason, expected):
    answer = ChatAnswer(ToolCallParser(free_text=False))
    assert answer.feed(call()[:-20], reason)[1] == expected
    assert answer.message()["tool_calls"][0]["function"]["name"] == "f"
    assert answer.message()["content"] is None
