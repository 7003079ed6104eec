"""Chat completions through the official client, on a real server and engine."""

import json

import openai
import pytest

HELLO = [{"role": "user", "content": "Hello, who are you?"}]
GREEDY = {"temperature": 0, "max_tokens": 12, "extra_body": {"ignore_eos": True}}


@pytest.fixture
def client(idle):
    with openai.OpenAI(base_url=f"{idle.base}/v1", api_key="unused", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
def chat(client, idle):
    def create(messages=HELLO, **arguments):
        return client.chat.completions.create(model=idle.model, messages=messages, **{**GREEDY, **arguments})

    return create


def joined(stream, index=0):
    return "".join(choice.delta.content or "" for chunk in stream for choice in chunk.choices if choice.index == index)


def test_an_answer_has_what_clients_read(chat, idle):
    answer = chat()
    (choice,) = answer.choices
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == idle.model
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason == "length"
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12
    assert answer.usage.prompt_tokens == len(
        idle.engine.render_chat([{"role": "user", "content": "Hello, who are you?"}])
    )


def test_streamed_and_whole_answers_are_equal(chat):
    whole = chat(max_tokens=40).choices[0].message.content
    assert joined(chat(max_tokens=40, stream=True)) == whole


def test_a_stream_has_openais_form(chat, idle):
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    first, *middle, finish, usage = chunks
    assert first.choices[0].delta.role == "assistant"
    assert first.choices[0].delta.content == ""
    assert all(chunk.choices[0].finish_reason is None for chunk in [first, *middle])
    assert all(chunk.usage is None for chunk in [first, *middle, finish])
    assert finish.choices[0].finish_reason == "length"
    assert finish.choices[0].delta.model_dump(exclude_unset=True) == {}
    assert usage.choices == []
    assert usage.usage.completion_tokens == 12
    assert usage.usage.prompt_tokens_details.cached_tokens >= 0
    assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}) == 1
    assert first.object == "chat.completion.chunk"


def test_every_chunk_has_the_counts_so_far_if_asked(chat):
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, last = list(chat(stream=True, stream_options=options, n=2))
    written = [chunk.usage.completion_tokens for chunk in chunks]
    assert written == sorted(written)
    assert 1 <= written[0] < written[-1] == last.usage.completion_tokens == 24
    assert {chunk.usage.prompt_tokens for chunk in chunks} == {last.usage.prompt_tokens}
    assert all(
        chunk.usage.total_tokens == chunk.usage.prompt_tokens + n for chunk, n in zip(chunks, written, strict=True)
    )
    *chunks, last = list(chat(stream=True, stream_options={"continuous_usage_stats": True}))
    assert last.usage is None
    assert last.choices


def test_the_wire_format_ends_with_done(client, idle):
    body = {"model": idle.model, "messages": HELLO, "max_tokens": 3, "stream": True, "ignore_eos": True}
    response = client._client.post(f"{idle.base}/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-request-id"]
    events = response.text.strip().split("\n\n")
    assert all(event.startswith("data: ") for event in events)
    assert events[-1] == "data: [DONE]"
    assert all("usage" not in json.loads(event[6:]) for event in events[:-1])


async def test_the_asynchronous_client(idle):
    async with openai.AsyncOpenAI(base_url=f"{idle.base}/v1", api_key="unused", max_retries=0) as client:
        arguments = {"model": idle.model, "messages": HELLO, **GREEDY}
        whole = await client.chat.completions.create(**arguments)
        text = ""
        async for chunk in await client.chat.completions.create(**arguments, stream=True):
            text += chunk.choices[0].delta.content or ""
    assert text == whole.choices[0].message.content


def test_many_choices(chat):
    answer = chat(n=4, temperature=1.0, seed=7)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage.completion_tokens == 4 * 12
    streamed = list(chat(n=4, temperature=1.0, seed=7, stream=True))
    for choice in answer.choices:
        assert joined(streamed, choice.index) == choice.message.content
    assert len({choice.message.content for choice in answer.choices}) > 1


def test_a_seed_reproduces_and_another_differs(chat):
    texts = [chat(temperature=1.5, seed=seed, max_tokens=24).choices[0].message.content for seed in (5, 5, 6)]
    assert texts[0] == texts[1] != texts[2]


def test_extreme_parameters_leave_the_engine_running(chat):
    for extreme in (
        {"temperature": 5e-324},
        {"temperature": 1e-40, "top_p": 0.5},
        {"temperature": 2, "top_p": 5e-324},
        {"temperature": 1e-9, "extra_body": {"repetition_penalty": 0.01, "min_p": 1, "ignore_eos": True}},
        {"temperature": 1, "seed": 2**80},
        {"temperature": 1, "presence_penalty": -2, "frequency_penalty": 2, "logit_bias": {"5": -100}},
    ):
        assert chat(**extreme, max_tokens=4).usage.completion_tokens == 4


def test_stop_strings_end_the_answer_and_are_not_in_it(chat):
    whole = chat(max_tokens=40).choices[0].message.content
    stop = whole[len(whole) // 2 :][:2]
    for form in (stop, [stop, "never-ever-there"]):
        answer = chat(max_tokens=40, stop=form).choices[0]
        assert answer.finish_reason == "stop"
        assert answer.message.content == whole[: whole.index(stop)]
        assert joined(chat(max_tokens=40, stop=form, stream=True)) == answer.message.content


def test_stop_token_ids(chat, idle):
    token = idle.engine.tokenizer.encode("q")[0]
    more = {"ignore_eos": True, "stop_token_ids": [token]}
    answer = chat(logit_bias={str(token): 100}, extra_body=more)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content == ""
    assert answer.usage.completion_tokens == 1


def test_logprobs_with_alternatives(chat):
    answer = chat(logprobs=True, top_logprobs=3)
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == answer.usage.completion_tokens
    for token in tokens:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob == pytest.approx(token.logprob, abs=1e-5)  # greedy takes the likeliest
    text = b"".join(bytes(token.bytes) for token in tokens).decode("utf-8", "replace")
    assert text == answer.choices[0].message.content
    streamed = [
        token
        for chunk in chat(logprobs=True, top_logprobs=3, stream=True)
        if chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content
    ]
    assert [t.token for t in streamed] == [t.token for t in tokens]
    assert [t.logprob for t in streamed] == pytest.approx([t.logprob for t in tokens], abs=1e-4)


def test_logit_bias_forces_a_token(chat, idle):
    token = idle.engine.tokenizer.encode("q")[0]
    answer = chat(logit_bias={str(token): 100})
    assert answer.choices[0].message.content == "q" * 12


def test_a_second_turn_finds_its_prefix_in_the_cache(chat, idle):
    messages = [{"role": "user", "content": "Tell me about the quiet harbour. " * 12}]
    first = chat(messages, max_tokens=4)
    # What the client got back goes straight into the next request, as applications do it.
    messages += [first.choices[0].message, {"role": "user", "content": "Go on."}]
    second = chat(messages, max_tokens=4)
    assert second.usage.prompt_tokens_details.cached_tokens >= 64
    assert second.usage.prompt_tokens_details.cached_tokens % 64 == 0


def test_a_dumped_message_is_accepted(chat):
    message = chat(max_tokens=2).choices[0].message.model_dump()
    assert {"refusal", "tool_calls", "function_call", "audio"} <= set(message)
    assert chat([*HELLO, message, *HELLO], max_tokens=2).choices


def test_developer_messages_count_as_system_messages(chat):
    answers = [
        chat([{"role": role, "content": "Be brief."}, *HELLO]).choices[0].message.content
        for role in ("system", "developer")
    ]
    assert answers[0] == answers[1]


def test_text_parts_are_joined(chat):
    parts = [{"type": "text", "text": "Hello,"}, {"type": "text", "text": "who are you?"}]
    as_parts = chat([{"role": "user", "content": parts}])
    as_text = chat([{"role": "user", "content": "Hello,\nwho are you?"}])
    assert as_parts.choices[0].message.content == as_text.choices[0].message.content


def test_neutral_values_of_unsupported_parameters_are_accepted(chat):
    answer = chat(
        n=1,
        tools=[],
        tool_choice="none",
        response_format={"type": "text"},
        modalities=["text"],
        store=False,
        service_tier="auto",
        reasoning_effort="none",
        verbosity="medium",
        metadata={"origin": "test"},
        user="someone",
        safety_identifier="someone",
        prompt_cache_key="key",
        parallel_tool_calls=True,
        logit_bias={},
        stop=None,
        max_tokens=2,
    )
    assert answer.choices


def test_the_smaller_of_both_limits_counts(chat):
    assert chat(max_tokens=9, max_completion_tokens=3).usage.completion_tokens == 3


def test_a_limit_beyond_the_context_is_cut_to_it(start_server, tiny_checkpoint):
    with (
        start_server(tiny_checkpoint, max_model_len=128, max_num_seqs=1) as server,
        openai.OpenAI(base_url=f"{server.base}/v1", api_key="unused") as client,
    ):
        answer = client.chat.completions.create(
            model=server.model, messages=HELLO, max_tokens=100_000, extra_body={"ignore_eos": True}
        )
        assert answer.usage.total_tokens == 128
        assert answer.choices[0].finish_reason == "length"
