"""Answers in a form that the request asks for: the tiny model writes noise, so only the grammar can make it right."""

import json
import re
import time

import httpx
import jsonschema_rs
import openai
import pytest

ASK = [{"role": "user", "content": "Answer in the form that I want."}]
WORD = {"type": "string", "maxLength": 8}
SCHEMAS = {
    "nested": {
        "type": "object",
        "properties": {
            "name": WORD,
            "size": {
                "type": "object",
                "properties": {"w": {"type": "integer", "minimum": 1, "maximum": 99}, "h": {"type": "boolean"}},
                "required": ["w", "h"],
                "additionalProperties": False,
            },
        },
        "required": ["name", "size"],
        "additionalProperties": False,
    },
    "array": {
        "type": "array",
        "items": {"type": "integer", "minimum": -5, "maximum": 1000},
        "minItems": 2,
        "maxItems": 4,
    },
    "enum": {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "green", None, 7]}, "kind": {"const": "fruit"}},
        "required": ["colour", "kind"],
        "additionalProperties": False,
    },
    "anyOf": {
        "anyOf": [
            {"type": "object", "properties": {"a": WORD}, "required": ["a"], "additionalProperties": False},
            {"type": "array", "items": {"type": "null"}, "minItems": 1, "maxItems": 2},
            {"type": "integer", "minimum": 10, "maximum": 20},
        ]
    },
    "reference": {
        "$defs": {"point": {"type": "array", "prefixItems": [{"enum": [0, 1]}, {"enum": [2, 3]}], "items": False}},
        "type": "object",
        "properties": {"from": {"$ref": "#/$defs/point"}, "to": {"$ref": "#/$defs/point"}},
        "required": ["from", "to"],
        "additionalProperties": False,
    },
}


@pytest.fixture
def client(idle):
    with openai.OpenAI(base_url=f"{idle.base}/v1", api_key="unused", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
def chat(client, idle):
    def create(form, **arguments):
        arguments = {"temperature": 1.0, "max_tokens": 400, "seed": 1, **arguments}
        return client.chat.completions.create(model=idle.model, messages=ASK, response_format=form, **arguments)

    return create


def by_schema(schema, **more):
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **more}}


@pytest.mark.parametrize("name", SCHEMAS)
def test_answers_are_valid_for_their_schema(chat, name):
    validator = jsonschema_rs.validator_for(SCHEMAS[name])
    texts = set()
    for seed in range(3):
        answer = chat(by_schema(SCHEMAS[name], strict=bool(seed % 2)), seed=10 * seed, n=3)
        for choice in answer.choices:
            assert choice.finish_reason == "stop"
            value = json.loads(choice.message.content)
            validator.validate(value)
            assert choice.message.content == json.dumps(value, ensure_ascii=False) or "\\" in choice.message.content
            texts.add(choice.message.content)
    assert len(texts) > 1 or name == "enum"


def test_streamed_and_whole_are_equal(chat):
    form = by_schema(SCHEMAS["nested"])
    whole = chat(form, temperature=0).choices[0]
    chunks = list(chat(form, temperature=0, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.message.content
    assert chunks[-1].choices[0].finish_reason == whole.finish_reason == "stop"


def test_a_json_object(chat, idle):
    for seed in range(3):
        answer = chat({"type": "json_object"}, seed=seed, logit_bias=dict.fromkeys(closing(idle), 20))
        text = answer.choices[0].message.content
        assert answer.choices[0].finish_reason == "stop", text
        assert isinstance(json.loads(text), dict)


def closing(idle):
    """Tokens that end strings and objects, which noise takes long to come to."""
    return [str(idle.engine.tokenizer.convert_tokens_to_ids(text)) for text in ('"', "}")]


def test_an_answer_cut_by_its_limit_is_the_beginning_of_one(chat):
    answer = chat(by_schema(SCHEMAS["nested"]), max_tokens=6).choices[0]
    assert answer.finish_reason == "length"
    assert answer.message.content.startswith('{"')


def test_a_regular_expression(chat, client, idle):
    form = {"type": "regex", "regex": r"[0-9]{3}-[a-f]{2,5}(,|!)"}
    for seed in range(3):
        answer = chat(form, seed=seed).choices[0]
        assert answer.finish_reason == "stop"
        assert re.fullmatch(form["regex"], answer.message.content)


def test_a_grammar(chat):
    form = {"type": "lark", "lark": 'start: term ("+" term){1,3}\nterm: NUMBER | "(" NUMBER ")"\nNUMBER: /[1-9][0-9]?/'}
    for seed in range(3):
        answer = chat(form, seed=seed).choices[0]
        assert answer.finish_reason == "stop"
        assert re.fullmatch(r"(\d+|\(\d+\))(\+(\d+|\(\d+\))){1,3}", answer.message.content)


def test_text_completions_take_the_same_forms(client, idle):
    form = by_schema(SCHEMAS["array"])
    arguments = {"model": idle.model, "prompt": ["one", "two"], "max_tokens": 60, "seed": 1}
    answer = client.completions.create(**arguments, extra_body={"response_format": form})
    for choice in answer.choices:
        jsonschema_rs.validator_for(SCHEMAS["array"]).validate(json.loads(choice.text))
    free = client.completions.create(**arguments, extra_body={"response_format": {"type": "text"}})
    assert free.choices[0].finish_reason == "length"


def test_log_probabilities_list_every_token(chat):
    answer = chat(by_schema(SCHEMAS["enum"]), logprobs=True)
    text = b"".join(bytes(token.bytes) for token in answer.choices[0].logprobs.content).decode()
    assert re.sub(r"<\|\w+\|>$", "", text) == answer.choices[0].message.content
    assert len(answer.choices[0].logprobs.content) == answer.usage.completion_tokens


WRONG = {
    "unknown-type": ({"type": "banana"}, "banana"),
    "unknown-keyword": ({"type": "string", "if": {"minLength": 2}, "then": False}, ""),
    "remote": ({"$ref": "https://example.com/schema.json"}, "example.com"),
    "missing-definition": ({"$ref": "#/$defs/nothing"}, "nothing"),
    "never-valid": ({"type": "integer", "minimum": 5, "maximum": 4}, ""),
    "no-schema": ({"properties": 7}, ""),
    "large": ({"enum": ["x" * 1000 + str(i) for i in range(400)]}, "bytes"),
    "look-behind": ({"type": "string", "pattern": "(?<=a)b"}, ""),
    "surrogate": ({"const": "\ud800"}, ""),
}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("name", WRONG)
def test_a_schema_that_cannot_be_used_is_refused_at_once(idle, path, name):
    schema, mentions = WRONG[name]
    start = {"messages": ASK} if "chat" in path else {"prompt": "x"}
    body = {"model": idle.model, "max_tokens": 4, "response_format": by_schema(schema), **start}
    begun = time.monotonic()
    response = httpx.post(idle.base + path, content=json.dumps(body), headers=JSON, timeout=60)
    assert time.monotonic() - begun < 5
    refused(response, "invalid_request", "response_format", mentions)


JSON = {"Content-Type": "application/json"}


def refused(response, code, param, mentions=""):
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["code"], error["param"]) == (code, param), error
    assert mentions in error["message"]
    assert len(error["message"]) < 1000


@pytest.mark.parametrize(
    ("form", "code", "param"),
    [
        ({"type": "regex", "regex": "(a"}, "invalid_request", "response_format"),
        ({"type": "regex", "regex": "a(?=b)"}, "invalid_request", "response_format"),
        ({"type": "lark", "lark": "begin: nothing"}, "invalid_request", "response_format"),
        ({"type": "lark", "lark": "start: start"}, "invalid_request", "response_format"),
        ({"type": "regex"}, "missing_required_parameter", "response_format.regex"),
        ({"type": "lark", "lark": 5}, "invalid_type", "response_format.lark"),
        ({"type": "json_schema"}, "missing_required_parameter", "response_format.json_schema"),
        (
            {"type": "json_schema", "json_schema": {"name": "x"}},
            "missing_required_parameter",
            "response_format.json_schema.schema",
        ),
        (by_schema(True), "invalid_type", "response_format.json_schema.schema"),
        (
            {"type": "json_schema", "json_schema": {"name": "two words", "schema": {}}},
            "invalid_value",
            "response_format.json_schema.name",
        ),
        ({"type": "json_object", "schema": {}}, "unknown_parameter", "response_format.schema"),
        ({"schema": {}}, "missing_required_parameter", "response_format.type"),
        ({"type": "yaml"}, "unsupported_parameter", "response_format.type"),
    ],
    ids=str,
)
def test_every_other_error_is_named(idle, form, code, param):
    body = {"model": idle.model, "messages": ASK, "max_tokens": 4, "response_format": form}
    refused(httpx.post(f"{idle.base}/v1/chat/completions", json=body, timeout=60), code, param)


def test_a_grammar_goes_with_no_answer_that_ignores_its_end(idle):
    body = {"model": idle.model, "messages": ASK, "response_format": {"type": "json_object"}, "ignore_eos": True}
    refused(httpx.post(f"{idle.base}/v1/chat/completions", json=body, timeout=60), "invalid_request", "ignore_eos")


def test_a_grammar_that_becomes_too_complex_ends_in_an_error(idle, chat, client):
    schema = {"$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}, "minItems": 1}}, "$ref": "#/$defs/a"}
    with pytest.raises(openai.BadRequestError) as whole:
        chat(by_schema(schema))
    assert (whole.value.code, whole.value.param) == ("grammar_too_complex", "response_format")
    with pytest.raises(openai.APIError, match="too complex"):
        list(chat(by_schema(schema), stream=True))
    with pytest.raises(openai.BadRequestError):
        chat(by_schema(schema), n=3)
    idle.wait_idle()
    assert chat({"type": "regex", "regex": "[a-z]{3}"}).choices[0].finish_reason == "stop"
