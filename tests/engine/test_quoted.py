"""Arguments that a model may only take from the conversation."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stille.engine import grammar as grammars
from stille.engine.grammar import GrammarCompiler
from stille.engine.quoted import MOST_WORDS, said_in, words
from stille.engine.tool_grammar import Function, call_grammar, described, instruction
from stille.errors import InvalidRequestError

EOS = 1
TEXT = {"type": "string", "x-quoted": True}


def function(*required: str, **properties: dict) -> Function:
    return Function("f", None, {"type": "object", "properties": properties, "required": list(required)})


@pytest.fixture(scope="module")
def compiler(tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, len(tokenizer), [EOS])


@pytest.fixture(scope="module")
def takes(compiler, tokenizer):
    """Whether a call of the function with these arguments, in this conversation, can be written, by masks."""

    def taken(f: Function, said: list[str], *given: dict) -> list[bool]:
        matcher = compiler.matcher(call_grammar([f], forced=True, parallel=False, said=said))
        return [follows(matcher.copy(), arguments) for arguments in given]

    def follows(matcher, arguments: dict) -> bool:
        call = json.dumps(arguments, ensure_ascii=False)
        text = f'<tool_call>\n{{"name": "f", "arguments": {call}}}\n</tool_call>'
        for token in [*tokenizer(text, add_special_tokens=False)["input_ids"], EOS]:
            mask_W = compiler.masks([matcher])[0]
            if not mask_W[token // 32] >> (token % 32) & 1:
                return False
            assert token == EOS or matcher.consume(token)
        return True

    return taken


WORDS = st.sampled_from(["a", "A", "an", "Anna", "bob", "q1.pdf", "Zoë", "R&D", "Ünal-Fox", "10:30"])
GAPS = st.sampled_from([" ", ", ", ' "', " (", "\n", "? ", "…", "/ "])


@st.composite
def sentences(draw) -> list[tuple[str, str]]:
    said = draw(st.lists(WORDS, min_size=1, max_size=9))
    return [("", said[0]), *((draw(GAPS), word) for word in said[1:])]


def text(run: list[tuple[str, str]]) -> str:
    return run[0][1] + "".join(gap + word for gap, word in run[1:])


@given(st.lists(sentences(), min_size=1, max_size=3), st.data())
def test_what_can_be_written_is_every_run_of_words_and_nothing_else(takes, conversation, data):
    said = [data.draw(GAPS) + text(each) + data.draw(GAPS) for each in conversation]
    each = data.draw(st.sampled_from(conversation))
    first = data.draw(st.integers(0, len(each) - 1))
    run = " ".join(text(each[first : data.draw(st.integers(first + 1, len(each)))]).split())
    other = data.draw(st.lists(WORDS, min_size=1, max_size=3).map(" ".join))
    whole = {
        " ".join(text(each[i:j]).split()).casefold()
        for each in conversation
        for i in range(len(each))
        for j in range(i + 1, len(each) + 1)
    }
    told = function("x", x=TEXT)
    spelt = [run, run.lower(), run[0].upper() + run[1:], other, f"{run} {other}"]
    cut = [run[:-1], run[1:], f" {run}", f"{run} "]
    taken = takes(told, said, *({"x": each} for each in [*spelt, *cut]))
    assert taken == [True, True, True, *(each.casefold() in whole for each in [*spelt[3:], *cut])]


def test_words_end_where_people_would_end_them():
    said = "Is Anna's brochure „R&D“ in C:\\docs\\visitor_list_2025.pdf, Zoë O’Neil-Fox?"
    found = [word for _, word in words(said)]
    assert found == [
        *("Is", "Anna", "'s", "brochure", "R&D", "in", "C", "docs", "visitor_list_2025.pdf", "Zoë", "O’Neil-Fox")
    ]
    assert [word for _, word in words("明日、花子と 3,5 min/10:30")] == [*"明日花子と", "3,5", "min", "10:30"]


def test_names_of_people_and_files_as_they_come(takes):
    said = ['Share Anna\'s visitor_list_2025.pdf with ZOË O’Neil, of "Fox & Söhne" (C:\\docs).', "明日は花子と"]
    yes = [
        *("Anna", "anna's", "visitor_list_2025.pdf", "zoë O’Neil", "Zoë o’neil", "Fox & Söhne", "fox & söhne"),
        *('of "Fox', "C:\\docs", "花子"),
    ]
    no = ["'s", "visitor_list", "visitor_list_2025.pd", "Fox Söhne", "Zoë Anna", "John", "", "花明", "C:docs"]
    taken = takes(function("x", x=TEXT), said, *({"x": each} for each in yes + no))
    assert taken == [True] * len(yes) + [False] * len(no)


def test_the_rest_of_a_call_is_as_without_quotes(takes):
    properties = {
        "a": {**TEXT, "default": ""},
        "n": {"type": "integer", "maximum": 9},
        "l": {"type": "array", "items": TEXT, "default": []},
        "o": {"anyOf": [TEXT, {"type": "null"}], "default": None},
        "p": {"$ref": "#/$defs/point"},
        'k"ü': {"enum": ["x", "y"]},
        "two": {"type": "array", "items": TEXT, "minItems": 1, "maxItems": 2},
    }
    point = {"type": "object", "properties": {"x": {"type": "integer", "maximum": 9}}, "additionalProperties": False}
    schema = {"type": "object", "properties": properties, "required": ["n", "p"], "$defs": {"point": point}}
    base = {"n": 3, "p": {"x": 1}}

    def call(**more) -> dict:
        return {key: {**base, **more}[key] for key in properties if key in {**base, **more}}

    both = [
        *(
            call(),
            call(a=""),
            call(a="Bo"),
            call(l=[]),
            call(l=["Bo", "Mia"]),
            call(o=None),
            call(o="Bo"),
            call(l=["Bo"], o=None),
        ),
        *(call(**{'k"ü': "y"}), call(two=["Bo"]), call(two=["Bo", "Mia"]), call(a="", l=[], o="Mia", **{'k"ü': "x"})),
    ]
    never = [
        *(call(n=10), {"n": 3}, {"p": {}, "n": 3}, {**base, "z": 1}, call(**{'k"ü': "z"}), call(two=[])),
        *(call(two=["Bo"] * 3), call(p={"y": 1}), call(a=None), call(o=1), call(l="Bo")),
    ]
    invented = [call(a="Jo"), call(l=["Bo", "Jo"]), call(o="Jo"), call(two=["Jo"]), call(l=[""]), call(l=["Bo Mia"])]
    told = Function("f", None, schema)
    calls = both + never + invented
    assert takes(told, ["Bo and Mia"], *calls) == [True] * len(both) + [False] * (len(never) + len(invented))
    for nothing in ([], ["", " ?! "]):  # no words
        assert takes(told, nothing, *calls) == [True] * len(both) + [False] * len(never) + [True] * len(invented)


def test_what_was_said_is_said_by_others():
    result = {"name": "Greta Ray", "more": [{"no": 7, "ok": True, "none": None}, "x@y.example"]}
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "Bill Greta"}]},
        {"role": "assistant", "content": "", "tool_calls": []},
        {"role": "tool", "content": json.dumps(result)},
        {"role": "tool", "content": "not { JSON"},
        {"role": "assistant", "content": "Done."},
        {"role": "user", "content": "Bill Greta"},
    ]
    said = ["Bill Greta", "Greta Ray", "7", "x@y.example", "not { JSON", "Bill Greta"]
    assert list(said_in(messages)) == said


def test_models_are_not_told():
    marked = function("x", x={**TEXT, "description": "of it"}, l={"type": "array", "items": TEXT})
    plain = function(
        "x", x={"type": "string", "description": "of it"}, l={"type": "array", "items": {"type": "string"}}
    )
    assert json.dumps(described(marked)) == json.dumps(described(plain))
    assert instruction([marked]) == instruction([plain])
    assert "x-quoted" in json.dumps(marked.parameters)


@pytest.mark.parametrize(
    "schema",
    [
        {**TEXT, "maxLength": 3},
        {"type": "integer", "x-quoted": True},
        {"type": "object", "properties": {"x": TEXT}},
        {"type": "array", "items": TEXT, "uniqueItems": True},
        {"type": "array", "items": TEXT, "maxItems": 0},
        {"anyOf": [TEXT, {"type": "object", "properties": {"x": TEXT}}]},
        {"anyOf": [TEXT, True]},
    ],
)
@pytest.mark.parametrize("said", [[], ["Bo"]])
def test_a_mark_that_cannot_be_held_to_is_an_error(schema, said):
    with pytest.raises(InvalidRequestError, match="function 'f' cannot be held to"):
        call_grammar([function("x", x=schema)], forced=True, parallel=True, said=said)
    for more in ({"additionalProperties": True}, {"required": [["x"]]}, {"required": 1}, {"minProperties": 1}):
        unlike = {"type": "object", "properties": {"x": TEXT}, "additionalProperties": False, **more}
        with pytest.raises(InvalidRequestError, match="cannot be held to"):
            call_grammar([Function("f", None, unlike)], forced=True, parallel=True, said=said)


def test_a_long_conversation_keeps_its_newest_words_and_can_be_walked_through(takes):
    numbered = [f"w{i}" for i in range(3 * MOST_WORDS)]
    blob = "x" * 5000
    said = [" ".join(numbered[:MOST_WORDS]), " ".join(numbered[MOST_WORDS:]), f"the end {blob} of it"]
    yes = ["the end", "of it", numbered[-1], " ".join(numbered[-20:]), numbered[4 - MOST_WORDS]]
    no = ["end of", "w17", blob, numbered[3 - MOST_WORDS]]
    assert takes(function("x", x=TEXT), said, *({"x": each} for each in yes + no)) == [True] * 5 + [False] * 4
    often = "a b c " * 700 + " ".join(f"a {word}" for word in numbered[:200])  # many ways on from one word
    yes = ["a", "c a b", "a w199", "b c a w0 a w1"]
    no = ["w0 w1", "b a", "a w200"]
    assert takes(function("x", x=TEXT), [often], *({"x": each} for each in yes + no)) == [True] * 4 + [False] * 3


def test_grammars_of_conversations_do_not_push_out_others(compiler, monkeypatch):
    monkeypatch.setattr(grammars, "KEPT_BRIEFLY", 2)
    told = function("x", x=TEXT)
    shared = call_grammar([told], forced=True, parallel=False)
    own = [call_grammar([told], forced=True, parallel=False, said=[f"word{i}"]) for i in range(4)]
    for each in (shared, *own):
        compiler.matcher(each)
    assert [compiler.knows(each) for each in (shared, *own)] == [True, False, False, True, True]
    assert all(one.source != other.source for one, other in pairwise(own))
