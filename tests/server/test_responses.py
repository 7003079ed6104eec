"""/v1/responses through the official client: answers, streams and what they add up to, input, and what is refused."""

import json
import re
from typing import Literal

import httpx
import jsonschema_rs
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from stille.server.schemas.responses import Response as ResponseObject
from stille.server.schemas.responses import ResponseEvent

EVENT = TypeAdapter(ResponseStreamEvent)


@pytest.fixture
def client(idle):
    with openai.OpenAI(base_url=f"{idle.base}/v1", api_key="unused", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
def create(client, idle):
    def create(input="What is a harbour?", **arguments):
        arguments = {"temperature": 0, "max_output_tokens": 12, **arguments}
        return client.responses.create(model=idle.model, input=input, **arguments)

    return create


@pytest.fixture
def post(idle):
    def post(path="", **body):
        body = {"model": idle.model, "input": "x", "max_output_tokens": 4, **body}
        return httpx.post(f"{idle.base}/v1/responses{path}", json=body, timeout=60)

    return post


def strict(data):
    """The official client takes anything; its models, asked to be strict, do not."""
    return Response.model_validate(data, strict=True)


def assembled(events):
    """The response that a stream's events add up to; checks their order and numbers, and that they agree."""
    assert [event.sequence_number for event in events] == list(range(len(events)))
    for event in events:
        EVENT.validate_python(event.model_dump(by_alias=True), strict=True)
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[0].response.status == "in_progress"
    output, text = [], ""
    for event in events[2:-1]:
        kind = event.type.removeprefix("response.")
        if kind == "output_item.added":
            assert event.output_index == len(output)
            assert event.item.status == "in_progress"
            output.append(event.item)
            text = ""
        elif kind == "content_part.added":
            assert (event.item_id, event.content_index, event.part.text) == (output[-1].id, 0, "")
        elif kind in ("output_text.delta", "function_call_arguments.delta"):
            assert (event.item_id, event.output_index) == (output[-1].id, len(output) - 1)
            text += event.delta
        elif kind == "output_text.done":
            assert event.text == text
        elif kind == "content_part.done":
            assert event.part.text == text
        elif kind == "function_call_arguments.done":
            assert event.arguments == text
        else:
            assert kind == "output_item.done"
            assert event.item.id == output[-1].id
            output[-1] = event.item
            assert text == (event.item.arguments if event.item.type == "function_call" else event.item.content[0].text)
    last = events[-1].response
    assert events[-1].type == f"response.{last.status}"
    assert last.output == output
    return last


def without_ids(response):
    """What two answers to one request have in common."""
    data = response.model_dump(exclude={"id", "created_at", "completed_at"})
    for item in data["output"]:
        item.pop("id")
        item.pop("call_id", None)
        for part in item.get("content", ()):  # equal but for the last digits
            part["logprobs"] = [
                (token["token"], round(token["logprob"], 3), [other["token"] for other in token["top_logprobs"]])
                for token in part["logprobs"]
            ]
    return data


def test_an_answer(create, client):
    response = create(instructions="Be brief.", metadata={"a": "b"}, user="u", max_output_tokens=5)
    raw = httpx.get(f"{client.base_url}responses/{response.id}").json()
    assert strict(raw).output_text == response.output_text != ""
    ResponseObject.model_validate(raw)
    assert response.id.startswith("resp_")
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    (message,) = response.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "incomplete")
    assert (response.instructions, response.metadata, response.user) == ("Be brief.", {"a": "b"}, "u")
    usage = response.usage
    assert usage.output_tokens == 5
    assert usage.total_tokens == usage.input_tokens + 5
    assert usage.output_tokens_details.reasoning_tokens == 0


def test_an_answer_that_ends_by_itself(create):
    response = create(extra_body={"stop": ["e", "a", "o", " "]}, max_output_tokens=100)
    assert (response.status, response.incomplete_details) == ("completed", None)
    assert response.completed_at >= response.created_at
    assert response.output[0].status == "completed"


def test_an_answer_without_text_is_an_empty_message(create, idle):
    (end,) = idle.engine.tokenizer.encode("<|im_end|>")
    for stream in (False, True):
        answer = create(extra_body={"logit_bias": {str(end): 100}}, stream=stream)
        response = assembled(list(answer)) if stream else answer
        assert (response.status, response.output_text, response.usage.output_tokens) == ("completed", "", 1)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"extra_body": {"stop": ["e", "a", "o", " "]}, "max_output_tokens": 100},
        {"temperature": 1.0, "extra_body": {"seed": 3}},
        {"include": ["message.output_text.logprobs"], "top_logprobs": 2},
        {"text": {"format": {"type": "json_object"}}},
    ],
    ids=["cut", "ended", "seed", "logprobs", "json"],
)
def test_streamed_and_whole_are_equal(create, client, arguments):
    create(**arguments)  # so that both find the same prefix in the cache
    whole = create(**arguments)
    streamed = assembled(list(create(stream=True, **arguments)))
    assert without_ids(streamed) == without_ids(whole)
    assert streamed.usage == whole.usage
    assert streamed == client.responses.retrieve(streamed.id)


def test_the_helper_of_the_official_client_understands_the_stream(client, idle):
    form = {"format": {"type": "json_schema", "name": "word", "schema": {"enum": ["ship", "harbour"]}}}
    arguments = {"model": idle.model, "input": "Hello", "max_output_tokens": 30, "text": form}
    with client.responses.stream(**arguments) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert stream.get_final_response().output_text == text != ""


def test_events_are_named_as_their_data_is(post):
    response = post(stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = response.text.strip().split("\n\n")
    assert len(blocks) > 6
    for block in (blocks[0], blocks[-1]):
        ResponseObject.model_validate(json.loads(block.split("data: ")[1])["response"])
    for block in blocks:
        name, data = block.split("\n")
        read = ResponseEvent.model_validate_json(data.removeprefix("data: "))
        assert read.type == name.removeprefix("event: ")
    assert "[DONE]" not in response.text


def test_it_says_what_chat_says(create, client, idle):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Where?"},
    ]
    chat = client.chat.completions.create(model=idle.model, messages=messages, max_tokens=12, temperature=0)
    as_items = [{"type": "message", **message} for message in messages[1:]]
    as_parts = [
        {"role": m["role"], "content": [{"type": f"{kind}_text", "text": m["content"]}]}
        for m, kind in zip(messages[1:], ("input", "output", "input"), strict=True)
    ]
    for response in (
        create(messages),
        create(as_items, instructions="Be brief."),
        create(
            [as_parts[0], {"type": "reasoning", "id": "rs_1", "summary": []}, *as_parts[1:]], instructions="Be brief."
        ),
    ):
        assert response.output_text == chat.choices[0].message.content
        assert response.usage.input_tokens == chat.usage.prompt_tokens
        assert response.usage.output_tokens == chat.usage.completion_tokens


def test_the_prefix_cache_is_accounted(create):
    text = "A long beginning, " * 20
    create(text)
    usage = create(text).usage
    assert 0 < usage.input_tokens_details.cached_tokens < usage.input_tokens


def test_input_is_counted_without_an_answer(create, client, idle):
    counted = client.responses.input_tokens.count(model=idle.model, input="Hello", instructions="Be brief.")
    assert counted.object == "response.input_tokens"
    assert counted.input_tokens == create("Hello", instructions="Be brief.").usage.input_tokens


def test_answers_follow_their_schema(create):
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "green"]}, "count": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["colour", "count"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "name": "answer", "schema": schema, "strict": True}
    for temperature in (0, 1.5):
        response = create(text={"format": form}, temperature=temperature, max_output_tokens=100)
        assert response.status == "completed"
        jsonschema_rs.validator_for(schema).validate(json.loads(response.output_text))
    assert strict(response.model_dump(by_alias=True)).text.format.schema_ == schema


def test_the_official_client_parses_into_models(client, idle):
    class Fruit(BaseModel):
        colour: Literal["red", "green"]
        sweet: bool

    response = client.responses.parse(model=idle.model, input="A fruit", text_format=Fruit, max_output_tokens=100)
    assert isinstance(response.output_parsed, Fruit)


def test_forms_that_only_this_server_has(create):
    form = {"type": "regex", "regex": "[a-f]{3}-[0-9]"}
    response = create(extra_body={"text": {"format": form}}, temperature=1)
    assert re.fullmatch(form["regex"], response.output_text)
    assert response.text.format.model_extra["regex"] == form["regex"]


def test_log_probabilities(create):
    response = create(top_logprobs=3)
    tokens = response.output[0].content[0].logprobs
    assert len(tokens) == response.usage.output_tokens
    assert (
        b"".join(bytes(token.bytes) for token in tokens).decode(errors="replace").startswith(response.output_text[:5])
    )
    assert all(len(token.top_logprobs) == 3 for token in tokens)
    assert create(include=["message.output_text.logprobs"]).output[0].content[0].logprobs[0].top_logprobs == []
    assert create().output[0].content[0].logprobs == []


def test_a_grammar_that_becomes_too_complex_fails_the_response(idle, create, client):
    schema = {"$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}, "minItems": 1}}, "$ref": "#/$defs/a"}
    arguments = {"text": {"format": {"type": "json_schema", "name": "a", "schema": schema}}, "max_output_tokens": 400}
    with pytest.raises(openai.BadRequestError) as whole:
        create(**arguments)
    assert (whole.value.code, whole.value.param) == ("grammar_too_complex", "text.format")
    *_, error, failed = create(stream=True, **arguments)
    EVENT.validate_python(error.model_dump(), strict=True)
    assert (error.type, error.code, error.param) == ("error", "grammar_too_complex", "text.format")
    assert failed.type == "response.failed"
    assert failed.sequence_number == error.sequence_number + 1
    assert failed.response.error.code == "invalid_prompt"
    assert "too complex" in failed.response.error.message
    assert client.responses.retrieve(failed.response.id) == failed.response
    idle.wait_idle()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_request(idle, stream):
    body = {"model": idle.model, "input": "x", "stream": stream, "max_output_tokens": 16000, "ignore_eos": True}
    with httpx.Client(base_url=idle.base, timeout=60 if stream else 0.5) as client:
        if stream:
            with client.stream("POST", "/v1/responses", json=body) as response:
                lines = response.iter_lines()  # kept: it closes the response when it is collected
                assert next(lines) == "event: response.created"
                idle.wait_for(lambda m: m["stille_sequences_running"] > 0)
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post("/v1/responses", json=body)
    idle.wait_idle()
    assert not idle.state.responses.live


TALK = [f"{i} is a number among others." for i in range(60)]


def test_what_does_not_fit_is_refused_or_shortened(start_server, tiny_checkpoint):
    with start_server(tiny_checkpoint, max_model_len=512, kv_cache_tokens=2048) as server:
        client = openai.OpenAI(base_url=f"{server.base}/v1", api_key="x", max_retries=0)
        with client:
            talk = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate([*TALK, "And?"])]
            ask = {"model": server.model, "instructions": "Be brief.", "temperature": 0, "max_output_tokens": 16}
            with pytest.raises(openai.BadRequestError) as refused:
                client.responses.create(input=talk, **ask)
            assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "input")
            shortened = client.responses.create(input=talk, truncation="auto", **ask)
            assert 350 < shortened.usage.input_tokens <= 512 - 16
            count = shortened.usage.input_tokens
            # It is the answer to the longest end of the conversation that fits, at the borders of turns.
            ends = [
                client.responses.input_tokens.count(model=server.model, input=talk[i:], instructions="Be brief.")
                for i in range(0, len(talk), 2)
            ]
            fitting = [end.input_tokens for end in ends if end.input_tokens <= 512 - 16]
            assert count == max(fitting)
            start = 2 * [end.input_tokens for end in ends].index(count)
            assert client.responses.create(input=talk[start:], **ask).output_text == shortened.output_text
            with pytest.raises(openai.BadRequestError) as refused:
                client.responses.create(input="word " * 600, truncation="auto", **ask)
            assert refused.value.code == "context_length_exceeded"


IMAGE = [{"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,AA=="}]}]


@pytest.mark.parametrize(
    ("fields", "code", "param", "names"),
    [
        ({"input": []}, ..., "input", "one item"),
        ({"input": 5}, ..., "input", "one item"),
        ({"input": [{"role": "critic", "content": "x"}]}, "invalid_value", "input[0].role", "developer"),
        ({"input": [{"role": "user"}]}, "missing_required_parameter", "input[0].content", ""),
        ({"input": IMAGE}, "unsupported_parameter", "input[0].content[0].type", "input_text"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "unsupported_parameter", "input[0]", "function_call"),
        ({"input": [{"type": "web_search_call", "id": "x"}]}, "unsupported_parameter", "input[0]", "function_call"),
        ({"input": [{"role": "user", "content": "x", "name": "Ann"}]}, "unknown_parameter", "input[0].name", ""),
        ({"instructions": [{"role": "user", "content": "x"}]}, "unsupported_parameter", "instructions", "input"),
        ({"max_output_tokens": 0}, "invalid_value", "max_output_tokens", ""),
        ({"max_tokens": 5}, "unknown_parameter", "max_tokens", "max_output_tokens"),
        ({"messages": []}, "unknown_parameter", "messages", "input"),
        ({"response_format": {"type": "text"}}, "unknown_parameter", "response_format", "text.format"),
        ({"conversation": "conv_1"}, "unsupported_parameter", "conversation", "previous_response_id"),
        ({"prompt": {"id": "pmpt_1"}}, "unsupported_parameter", "prompt", "instructions"),
        ({"max_tool_calls": 3}, "unsupported_parameter", "max_tool_calls", "parallel_tool_calls"),
        ({"n": 2}, "unsupported_parameter", "n", "several requests"),
        ({"include": ["file_search_call.results"]}, "unsupported_parameter", "include[0]", "logprobs"),
        ({"reasoning": {"effort": "high"}}, "unsupported_parameter", "reasoning.effort", "reason"),
        ({"reasoning": {"summary": "detailed"}}, "unsupported_parameter", "reasoning.summary", "leave it out"),
        ({"service_tier": "flex"}, "unsupported_parameter", "service_tier", "default"),
        ({"text": {"verbosity": "low"}}, "unsupported_parameter", "text.verbosity", "instructions"),
        ({"text": {"format": {"type": "yaml"}}}, "unsupported_parameter", "text.format.type", "json_schema"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, ..., "text.format.schema", ""),
        (
            {"text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "banana"}}}},
            "invalid_request",
            "text.format",
            "banana",
        ),
        ({"tools": [{"type": "web_search"}]}, "unsupported_parameter", "tools[0].type", "'name'"),
        (
            {"stream": False, "stream_options": {"include_obfuscation": False}},
            "incompatible_parameters",
            "stream_options",
            "stream",
        ),
        ({"background": True, "store": False}, "incompatible_parameters", "background", "store"),
        ({"truncation": "middle"}, "invalid_value", "truncation", "auto"),
        ({"top_logprobs": 21}, "invalid_value", "top_logprobs", ""),
        ({"metadata": {"a": 1}}, "invalid_type", "metadata.a", ""),
        ({"previous_response_id": "resp_1"}, "previous_response_not_found", "previous_response_id", "input"),
        ({"temperature": 3}, "invalid_value", "temperature", ""),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused_and_named(post, fields, code, param, names):
    for stream in (False, True):
        response = post(**{"stream": stream, **fields})
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert error["param"] == param, error
        assert code in (..., error["code"]), error
        assert names in error["message"]
        assert error["type"] == "invalid_request_error"


def test_another_model_is_not_found(post):
    assert post(model="gpt-5").status_code == 404


def test_neutral_values_are_accepted(post):
    response = post(
        store=False,
        background=False,
        truncation="disabled",
        include=["reasoning.encrypted_content"],
        reasoning={"effort": "none", "summary": "auto"},
        text={"verbosity": "medium"},
        service_tier="auto",
        tools=[],
        conversation=None,
        prompt=None,
        max_tool_calls=None,
        safety_identifier="s",
        prompt_cache_key="k",
        top_k=5,
    )
    assert response.status_code == 200, response.text
    strict(response.json())
