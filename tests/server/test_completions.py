"""Text completions through the official client."""

import openai
import pytest

GREEDY = {"temperature": 0, "max_tokens": 10, "extra_body": {"ignore_eos": True}}


@pytest.fixture
def complete(idle):
    with openai.OpenAI(base_url=f"{idle.base}/v1", api_key="unused", max_retries=0, timeout=60) as client:
        yield lambda prompt, **more: client.completions.create(model=idle.model, prompt=prompt, **{**GREEDY, **more})


def test_an_answer_has_what_clients_read(complete, idle):
    answer = complete("the quick brown")
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.prompt_tokens == len(idle.engine.tokenizer.encode("the quick brown"))
    assert answer.usage.completion_tokens == 10


def test_text_and_its_token_ids_give_the_same(complete, idle):
    ids = idle.engine.tokenizer.encode("the quick brown")
    assert complete("the quick brown").choices[0].text == complete(ids).choices[0].text


def test_several_prompts_in_every_form(complete, idle):
    texts = ["the quick brown", "the old grey stones of", "naïve 東京"]
    alone = [complete(text).choices[0].text for text in texts]
    together = complete(texts)
    assert [choice.index for choice in together.choices] == [0, 1, 2]
    assert [choice.text for choice in together.choices] == alone
    assert together.usage.completion_tokens == 30
    ids = [idle.engine.tokenizer.encode(text) for text in texts]
    assert [choice.text for choice in complete(ids).choices] == alone


def test_several_prompts_with_several_choices_streamed(complete):
    prompts, n = ["the quick", "old grey stones"], 3
    sampled = {"n": n, "temperature": 1.2, "seed": 3}
    whole = complete(prompts, **sampled)
    assert [choice.index for choice in whole.choices] == list(range(6))
    texts = [""] * 6
    reasons = {}
    for chunk in complete(prompts, stream=True, **sampled):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    assert texts == [choice.text for choice in whole.choices]
    assert reasons == dict.fromkeys(range(6), "length")


def test_the_stream_ends_with_usage(complete):
    *_, last = complete("the quick", stream=True, stream_options={"include_usage": True})
    assert last.choices == []
    assert last.usage.completion_tokens == 10


def test_every_chunk_has_the_counts_so_far_if_asked(complete):
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, last = complete(["the quick", "a"], stream=True, stream_options=options)
    assert chunks[-1].usage == last.usage
    assert 1 <= chunks[0].usage.completion_tokens < chunks[-1].usage.completion_tokens == 20


def test_sixteen_tokens_are_the_default(complete):
    assert complete("the quick", max_tokens=openai.omit).usage.completion_tokens == 16


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(complete, stream):
    answer = complete("the quick", logprobs=2, stream=stream)
    pieces = (
        [chunk.choices[0].logprobs for chunk in answer if chunk.choices] if stream else [answer.choices[0].logprobs]
    )
    tokens = [token for piece in pieces if piece for token in piece.tokens]
    values = [value for piece in pieces if piece for value in piece.token_logprobs]
    offsets = [offset for piece in pieces if piece for offset in piece.text_offset]
    tops = [top for piece in pieces if piece for top in piece.top_logprobs]
    assert len(tokens) == len(values) == len(tops) == 10
    assert all(value <= 0 for value in values)
    assert all(1 <= len(top) <= 2 for top in tops)  # two tokens may read the same
    assert offsets == [sum(map(len, tokens[:i])) for i in range(10)]


def test_zero_logprobs_gives_the_chosen_tokens_only(complete):
    logprobs = complete("the quick", logprobs=0).choices[0].logprobs
    assert len(logprobs.token_logprobs) == 10
    assert logprobs.top_logprobs is None
