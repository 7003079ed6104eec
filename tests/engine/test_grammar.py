"""Answers that follow a grammar, whatever the model would rather say."""

import json
import re
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema_rs import Draft202012Validator

from stille.engine.grammar import MOST_BYTES, Grammar
from stille.engine.sampling_params import SamplingParams
from stille.errors import InvalidRequestError, UnsupportedError

PROMPT = [40, 41, 42, 43, 44]
EOS = 1
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["red", "green", None]}, "maxItems": 3},
        "at": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/place"}]},
    },
    "required": ["name", "age", "tags", "at"],
    "additionalProperties": False,
    "$defs": {
        "place": {
            "type": "object",
            "properties": {"x": {"type": "integer", "maximum": 9}},
            "required": ["x"],
            "additionalProperties": False,
        }
    },
}


def asked(grammar: Grammar, **more) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 300, "grammar": grammar, "seed": 3, **more})


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("temperature", [0, 1.0, 3.0])
def test_json_is_valid_for_its_schema(make_engine, run, depth, temperature):
    core = make_engine(eos=(EOS,), async_depth=depth).core
    params = asked(Grammar.json_schema(PERSON), n=6, temperature=temperature)
    finished = 0
    for answer in run(core, {"a": (PROMPT, params)})["a"].outputs:
        if answer.finish_reason == "length":  # an integer may go on for as long as it likes
            continue
        assert answer.finish_reason == "stop"
        Draft202012Validator(PERSON).validate(json.loads(answer.text))
        finished += 1
    assert finished >= (temperature > 0)


def test_steps_in_flight_change_nothing(make_engine, run):
    """With and without a step ahead, alone or beside others, with and without a grammar: the same answers."""
    grammar = Grammar.json_schema({"type": "array", "items": {"type": "boolean"}, "maxItems": 40})
    work = {
        "grammar": (PROMPT, asked(grammar, temperature=0.9)),
        "free": (PROMPT[:3], SamplingParams(max_tokens=60, temperature=0.8, seed=5)),
        "greedy": (PROMPT[1:], SamplingParams(max_tokens=60, temperature=0)),
    }
    ahead = run(make_engine(eos=(EOS,), async_depth=1).core, work)
    for name, (ids, params) in work.items():
        alone = run(make_engine(eos=(EOS,), async_depth=0).core, {name: (ids, params)})[name]
        assert ahead[name].outputs[0].token_ids == alone.outputs[0].token_ids
    assert set(json.loads(ahead["grammar"].outputs[0].text)) <= {True, False}


def test_preempted_answers_go_on_where_they_were(make_engine, run):
    grammar = Grammar.regex(r"(ab|cd ){70,90}")
    work = {f"r{i}": (PROMPT + [50 + i], asked(grammar, seed=i, max_tokens=200)) for i in range(6)}
    roomy = run(make_engine(eos=(EOS,), kv_cache_tokens=4096).core, work)
    core = make_engine(eos=(EOS,), kv_cache_tokens=320, max_model_len=256, prefix_caching=False).core
    tight = run(core, work)
    assert core.stats().preemptions > 0
    for name in work:
        assert tight[name].outputs[0].token_ids == roomy[name].outputs[0].token_ids
        assert re.fullmatch(r"(ab|cd ){70,90}", tight[name].outputs[0].text)


def test_nothing_else_outvotes_a_grammar(make_engine, run, tokenizer):
    """Bias towards what is not allowed, penalties on what is, a top-k of one."""
    digits = [tokenizer.convert_tokens_to_ids(str(i)) for i in range(10)]
    params = asked(
        Grammar.regex("[0-9]{12}"), temperature=1.0, top_k=1, repetition_penalty=5.0, presence_penalty=2.0,
        logit_bias={60: 100.0, EOS: 100.0, **dict.fromkeys(digits, -100.0)},
    )  # fmt: skip
    answer = run(make_engine(eos=(EOS,)).core, {"a": (PROMPT, params)})["a"].outputs[0]
    assert re.fullmatch("[0-9]{12}", answer.text)
    assert answer.finish_reason == "stop"


def test_log_probabilities_stay_the_models_own(make_engine, run):
    core = make_engine(eos=(EOS,)).core
    free = run(core, {"f": (PROMPT, SamplingParams(max_tokens=1, temperature=0, logprobs=3))})["f"].outputs[0]
    bound = run(core, {"b": (PROMPT, asked(Grammar.regex("xyz"), temperature=0, logprobs=3))})["b"].outputs[0]
    assert free.logprobs is not None
    assert bound.logprobs is not None
    assert [each.token_id for each in bound.logprobs[0].top] == [each.token_id for each in free.logprobs[0].top]
    assert bound.logprobs[0].logprob < free.logprobs[0].logprob
    assert bound.text == "xyz"


def test_lark_and_recursion(make_engine, run):
    grammar = Grammar.lark('start: sum\nsum: NUMBER | "(" sum "+" sum ")"\nNUMBER: /[1-9]/\n')
    for seed in range(5):
        answer = run(make_engine(eos=(EOS,)).core, {"a": (PROMPT, asked(grammar, seed=seed, max_tokens=200))})["a"]
        text = answer.outputs[0].text
        if answer.outputs[0].finish_reason == "stop":
            assert isinstance(eval(text), int)  # of digits, brackets and plus signs alone
        assert re.fullmatch(r"[1-9()+]*", text)


def test_stop_strings_cut(make_engine, run):
    params = asked(Grammar.regex("a{20}b{20}"), stop=["bbb"])
    answer = run(make_engine(eos=(EOS,)).core, {"a": (PROMPT, params)})["a"].outputs[0]
    assert (answer.text, answer.stop_reason) == ("a" * 20, "bbb")


simple = st.sampled_from([
    {"type": "boolean"}, {"type": "null"}, {"enum": ["a", 1, None]}, {"const": [1, {"k": "v"}]},
    {"type": "string", "maxLength": 3}, {"type": "integer", "minimum": -7, "maximum": 40},
    {"type": "string", "pattern": "^[a-f]{2,4}$"}, {"type": "string", "format": "date"},
])  # fmt: skip
schemas = st.recursive(
    simple,
    lambda inner: (
        st.builds(lambda items: {"type": "array", "items": items, "minItems": 1, "maxItems": 2}, inner)
        | st.builds(lambda a, b: {"anyOf": [a, b]}, inner, inner)
        | st.builds(
            lambda fields: {
                "type": "object", "properties": fields, "required": sorted(fields), "additionalProperties": False,
            },
            st.dictionaries(st.sampled_from(["id", "é", 'a"b', "x y"]), inner, max_size=3),
        )
    ),
    max_leaves=5,
)  # fmt: skip


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=schemas, seed=st.integers(0, 2**32))
def test_any_schema_gives_valid_json_or_the_beginning_of_it(make_engine, run, schema, seed):
    params = asked(Grammar.json_schema(schema), seed=seed, temperature=1.5, max_tokens=400)
    answer = run(make_engine(eos=(EOS,)).core, {"a": (PROMPT, params)})["a"].outputs[0]
    assert answer.finish_reason == "stop", "every one of these schemas has only short instances"
    Draft202012Validator(schema).validate(json.loads(answer.text))


class TestMistakes:
    @pytest.mark.parametrize(
        "make",
        [
            lambda: Grammar.regex("("),
            lambda: Grammar.lark("start: nothing"),
            lambda: Grammar.json_schema({"type": "unicorn"}),
            lambda: Grammar.json_schema({"$ref": "#/$defs/nowhere"}),
            lambda: Grammar.json_schema({"$ref": "https://example.org/schema.json"}),
            lambda: Grammar.json_schema({"type": "string", "pattern": "(?=a)b"}),
            lambda: Grammar.json_schema(False),
            lambda: Grammar.json_schema({"$ref": "#"}),
            lambda: Grammar.json_schema({"allOf": [{"type": "string"}, {"type": "null"}]}),
            lambda: Grammar.json_schema(
                {"allOf": [{"anyOf": [{"properties": {f"a{i}": {"const": j}}} for j in range(8)]} for i in range(8)]}
            ),
        ],
    )
    def test_what_cannot_be_compiled_names_the_parameter(self, make_engine, make):
        core = make_engine(eos=(EOS,)).core
        with pytest.raises(InvalidRequestError, match=r"the (grammar|JSON schema) cannot be (used|read): ") as caught:
            core.add("a", PROMPT, asked(make()))
        assert caught.value.param == "grammar"
        assert not core.has_work

    @pytest.mark.parametrize(
        "what", ["x", {}, {"regex": 1}, {"json_schema": "{}"}, {"ebnf": "x"}, {"regex": "a", "lark": ""}]
    )
    def test_descriptions(self, what):
        with pytest.raises(InvalidRequestError, match=r'response_format must be {"json_schema"'):
            Grammar.of(what, "response_format")

    def test_without_the_library_the_error_says_what_to_install(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "llguidance.hf", None)
        for make in (Grammar.json_object, lambda: Grammar.regex("a"), lambda: Grammar.lark("start: /a/")):
            with pytest.raises(UnsupportedError, match=r"pip install 'stille\[serve\]'"):
                make()

    def test_sizes_and_kinds(self):
        with pytest.raises(InvalidRequestError, match="at most"):
            Grammar.regex("a" * (MOST_BYTES + 1))
        with pytest.raises(InvalidRequestError, match="cannot be read"):
            Grammar.json_schema({"const": {1, 2}})  # pyright: ignore[reportArgumentType]
        with pytest.raises(InvalidRequestError, match="grammar must be a Grammar, got str"):
            SamplingParams(grammar="[a-z]")  # pyright: ignore[reportArgumentType]
        with pytest.raises(InvalidRequestError, match="ignore_eos"):
            SamplingParams(grammar=Grammar.json_object(), ignore_eos=True)

    def test_a_deep_schema_is_refused(self, make_engine):
        schema: dict = {"type": "null"}
        for _ in range(3000):
            schema = {"type": "array", "items": schema}
        with pytest.raises(InvalidRequestError):
            make_engine(eos=(EOS,)).core.add("a", PROMPT, asked(Grammar.json_schema(schema)))

    @pytest.mark.parametrize("levels", [1500, 6000])
    def test_rules_nested_thousands_of_levels_deep_do_not_overflow_a_stack(self, make_engine, levels):
        core = make_engine(eos=(EOS,)).core
        rules = "".join(f'r{i}: "(" r{i + 1} ")"\n' for i in range(levels))
        matcher = core.grammars.matcher(Grammar.lark(f'start: r0\n{rules}r{levels}: "a"\n'))
        for _ in range(50):
            matchers = [matcher.copy() for _ in range(5)]
            (token, *_), _ = np.nonzero(_bits(core.grammars.masks(matchers))[:1].T)
            assert all(each.consume(int(token)) for each in (*matchers, matcher))

    def test_a_model_without_an_end_cannot_follow_one(self, make_engine):
        with pytest.raises(UnsupportedError, match="no end-of-sequence token"):
            make_engine(eos=()).core.add("a", PROMPT, asked(Grammar.json_object()))

    def test_too_complex_on_the_way_is_an_error_of_that_answer_alone(self, make_engine, run):
        core = make_engine(eos=(EOS,)).core
        grammar = Grammar.regex("(a|b)*c")
        made = core.grammars.matcher(grammar)
        made.inner.consume_token(EOS)  # not allowed here: an error that stays
        core.grammars._kept[grammar.source] = made
        results = run(core, {"bad": (PROMPT, asked(grammar)), "good": (PROMPT, SamplingParams(max_tokens=9, seed=1))})
        assert results["bad"].outputs[0].finish_reason == "error"
        assert results["good"].outputs[0].finish_reason == "length"


def test_descriptions_are_the_methods():
    assert Grammar.of({"regex": "a+"}) == Grammar.regex("a+")
    assert Grammar.of({"lark": "start: /a/"}) == Grammar.lark("start: /a/")
    assert Grammar.of({"json_schema": {"type": "object"}}) == Grammar.json_object()


@pytest.mark.parametrize("count", [1, 40])
def test_masks_are_bits_of_the_vocabulary(make_engine, tokenizer, count):
    core = make_engine(eos=(EOS,)).core
    mask_MW = core.grammars.masks([core.grammars.matcher(Grammar.regex("[xy]")) for _ in range(count)])
    assert mask_MW.shape == (count, 10)
    for allowed_V in _bits(mask_MW):
        assert {tokenizer.decode([i]) for i in np.flatnonzero(allowed_V)} == {"x", "y"}


@pytest.mark.parametrize(
    ("schema", "text", "allowed"),
    [
        ({"properties": {"a": {"type": "integer"}}}, r'{"\u0061": "x"}', False),  # the listed key, written otherwise
        ({"patternProperties": {"^a": {"type": "integer"}}}, r'{"\u0061": "x"}', False),
        ({"properties": {"a": {"type": "integer"}}}, r'{"\ud8cd": 1}', False),  # half a character
        ({"properties": {"a": {"type": "integer"}}}, r'{"b\n": "\"x\\"}', True),
        ({"properties": {"a": {"const": "b\x01"}}}, r'{"a": "b\u0001"}', True),  # cannot be written otherwise
    ],
)
def test_escapes_hide_nothing_from_a_schema(make_engine, tokenizer, schema, text, allowed):
    core = make_engine(eos=(EOS,)).core
    matcher = core.grammars.matcher(Grammar.json_schema({"type": "object", **schema}))
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert (matcher.valid(ids) == len(ids)) is allowed


def _bits(mask_MW: np.ndarray) -> np.ndarray:
    return np.unpackbits(mask_MW.view(np.uint8), axis=1, bitorder="little")
