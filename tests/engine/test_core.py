"""What a request may ask for, and what it gets."""

import pytest
import torch

from stille.engine.config import PAGE_SIZE
from stille.engine.sampling_params import SamplingParams
from stille.errors import InvalidRequestError, PromptTooLongError, QueueFullError

PROMPT = [40, 41, 42, 43, 44]


def greedy(**more) -> SamplingParams:
    return SamplingParams(**{"temperature": 0, "max_tokens": 24, **more})


@pytest.fixture(scope="module")
def free(make_engine, run):
    """The unhindered greedy answer that the tests below cut short."""
    return run(make_engine().core, {"free": (PROMPT, greedy())})["free"].outputs[0]


@pytest.fixture
def one(make_engine, run):
    """The single answer to PROMPT from a fresh engine."""

    def ask(params: SamplingParams, **settings):
        return run(make_engine(**settings).core, {"one": (PROMPT, params)})["one"].outputs[0]

    return ask


# How an answer ends


def test_max_tokens_ends_with_length(one, free, tokenizer):
    output = one(greedy(max_tokens=7))
    assert output.finish_reason == "length"
    assert output.token_ids == free.token_ids[:7]
    assert output.text == tokenizer.decode(output.token_ids, skip_special_tokens=True)


@pytest.mark.parametrize("depth", [0, 1])
def test_the_contexts_end_ends_with_length(one, depth):
    output = one(greedy(max_tokens=None, ignore_eos=True), max_model_len=40, async_depth=depth)
    assert output.finish_reason == "length"
    assert len(output.token_ids) == 40 - len(PROMPT)


@pytest.mark.parametrize("depth", [0, 1])
def test_end_of_sequence_ends_with_stop_unless_ignored(one, free, tokenizer, depth):
    end = free.token_ids[9]
    first = free.token_ids.index(end)
    output = one(greedy(), eos=(end,), async_depth=depth)
    assert (output.finish_reason, output.stop_reason) == ("stop", None)
    assert output.token_ids == free.token_ids[: first + 1]
    assert output.text == tokenizer.decode(free.token_ids[:first], skip_special_tokens=True)
    assert one(greedy(ignore_eos=True), eos=(end,)).token_ids == free.token_ids


def test_a_stop_token_ends_the_answer_and_is_named(one, free, tokenizer):
    stop = free.token_ids[5]
    first = free.token_ids.index(stop)
    output = one(greedy(stop_token_ids=[stop], ignore_eos=True))
    assert (output.finish_reason, output.stop_reason) == ("stop", stop)
    assert output.token_ids == free.token_ids[: first + 1]
    assert output.text == tokenizer.decode(free.token_ids[:first], skip_special_tokens=True)


@pytest.mark.parametrize("depth", [0, 1])
def test_a_stop_string_across_tokens_cuts_the_text_before_it(make_engine, run, one, depth):
    """Tokens are forced by logit bias, so that the text is known: 'The fox' over and over is not left to chance."""
    core = make_engine(async_depth=depth).core
    streamed = []
    free_text = one(greedy(logit_bias=dict.fromkeys((35, 36, 37), 100.0))).text
    stop = free_text[3:6]
    params = greedy(logit_bias=dict.fromkeys((35, 36, 37), 100.0), stop=[stop, "never there"])
    core.add("s", PROMPT, params)
    while core.has_work:
        streamed += core.step()
    text = "".join(d.text for d in streamed)
    assert text == free_text[: free_text.index(stop)]
    assert (streamed[-1].finish_reason, streamed[-1].stop_reason) == ("stop", stop)
    assert core.blocks.num_used == 0


def test_text_held_back_for_a_stop_string_is_given_out_at_the_end(one, free):
    ending = free.text[-1]
    output = one(greedy(stop=[ending + "\x00 never"]))
    assert output.text == free.text
    assert output.finish_reason == "length"


# Sampling options reach the sampler


def test_logit_bias_forces_and_bans(one, free):
    assert set(one(greedy(logit_bias={77: 100.0})).token_ids) == {77}
    assert free.token_ids[0] not in one(greedy(logit_bias={free.token_ids[0]: -100.0})).token_ids[:1]


def test_a_strong_repetition_penalty_forbids_repeating(one):
    output = one(greedy(repetition_penalty=100.0, ignore_eos=True))
    assert len(set(output.token_ids)) == len(output.token_ids)
    assert not set(output.token_ids) & set(PROMPT)


def test_top_k_one_is_greedy(one, free):
    assert one(SamplingParams(top_k=1, max_tokens=24)).token_ids == free.token_ids


def test_without_a_seed_answers_differ_and_the_engines_seed_repeats_them(make_engine, run):
    work = {"a": (PROMPT, SamplingParams(max_tokens=20)), "b": (PROMPT, SamplingParams(max_tokens=20))}
    first = run(make_engine(seed=5).core, work)
    again = run(make_engine(seed=5).core, work)
    assert first["a"].outputs[0].token_ids != first["b"].outputs[0].token_ids
    assert all(first[name].outputs == again[name].outputs for name in work)


def test_logprobs_are_the_models_own(one, tiny_model):
    output = one(SamplingParams(seed=1, temperature=3.0, top_k=50, max_tokens=6, logprobs=3, ignore_eos=True))
    ids = PROMPT + output.token_ids
    with torch.inference_mode():
        right = torch.log_softmax(tiny_model(torch.tensor([ids])).logits[0].float(), -1)
    assert len(output.logprobs) == 6
    for step, entry in enumerate(output.logprobs):
        row = right[len(PROMPT) - 1 + step]
        assert entry.token_id == output.token_ids[step]
        assert entry.logprob == pytest.approx(row[entry.token_id].item(), abs=1e-4)
        assert [t.logprob for t in entry.top] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)
        assert entry.bytes.decode("utf-8", "replace") == entry.text


def test_logprobs_zero_gives_the_chosen_token_only_and_others_in_the_batch_none(make_engine, run):
    work = {"with": (PROMPT, greedy(logprobs=0)), "more": (PROMPT, greedy(logprobs=2)), "without": (PROMPT, greedy())}
    results = run(make_engine().core, work)
    assert all(entry.top == () for entry in results["with"].outputs[0].logprobs)
    assert all(len(entry.top) == 2 for entry in results["more"].outputs[0].logprobs)
    assert results["without"].outputs[0].logprobs is None


# n, usage, prefix cache


def test_n_answers_share_the_prompts_pages(make_engine, run):
    core = make_engine(max_num_seqs=4).core
    ids = list(range(3 * PAGE_SIZE))
    result = run(core, {"n": (ids, SamplingParams(n=4, max_tokens=5, seed=3, ignore_eos=True))})["n"]
    assert len({tuple(output.token_ids) for output in result.outputs}) > 1
    assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (3 * PAGE_SIZE, 20)
    assert result.usage.cached_tokens == 0, "nothing was cached when the request came"
    assert core.stats().prefix_hit_tokens == 3 * 2 * PAGE_SIZE
    assert core.stats().step_tokens.sum < 3 * PAGE_SIZE * 2 + 20


def test_a_conversations_next_turn_finds_prompt_and_answer_cached(make_engine, run):
    core = make_engine().core
    first = run(core, {"1": (list(range(100)), greedy(max_tokens=60, ignore_eos=True))})["1"]
    history = list(range(100)) + first.outputs[0].token_ids
    second = run(core, {"2": (history + [9, 8, 7], greedy(max_tokens=2))})["2"]
    assert second.usage.cached_tokens == 2 * PAGE_SIZE


def test_prefix_caching_can_be_switched_off(make_engine, run):
    core = make_engine(prefix_caching=False).core
    for _ in range(2):
        result = run(core, {"1": (list(range(200)), greedy(max_tokens=2))})["1"]
        assert result.usage.cached_tokens == 0
    assert core.stats().pages_cached == 0


# What is refused


@pytest.mark.parametrize(
    ("ids", "params", "error", "param"),
    [
        ([], {}, InvalidRequestError, "prompt"),
        ([320], {}, InvalidRequestError, "prompt"),
        ([-1], {}, InvalidRequestError, "prompt"),
        ([1] * 64, {"max_tokens": None}, PromptTooLongError, "prompt"),
        ([1] * 60, {"max_tokens": 5}, PromptTooLongError, "max_tokens"),
        ([1], {"logit_bias": {320: 1.0}}, InvalidRequestError, "logit_bias"),
        ([1], {"stop_token_ids": [999]}, InvalidRequestError, "stop_token_ids"),
    ],
)
def test_what_can_never_be_served_is_refused_at_once(make_engine, ids, params, error, param):
    core = make_engine(max_model_len=64).core
    with pytest.raises(error) as caught:
        core.add("bad", ids, greedy(**params))
    assert caught.value.param == param
    assert not core.has_work


def test_what_just_fits_is_served(make_engine, run):
    core = make_engine(max_model_len=64).core
    assert len(run(core, {"fits": ([1] * 60, greedy(max_tokens=4, ignore_eos=True))})["fits"].outputs[0].token_ids) == 4


def test_a_sequence_beyond_the_page_pool_is_refused(make_engine):
    core = make_engine(kv_cache_tokens=2 * PAGE_SIZE).core
    assert core.max_model_len == 2 * PAGE_SIZE
    with pytest.raises(PromptTooLongError, match="128"):
        core.add("long", [1] * 128, greedy(max_tokens=1))


def test_the_queue_is_bounded_and_says_when_to_come_back(make_engine):
    core = make_engine(max_num_seqs=1, max_queue=2).core
    core.add("0", PROMPT, greedy())
    core.step()
    core.add("1", PROMPT, greedy())
    core.add("2", PROMPT, greedy(n=3))
    with pytest.raises(QueueFullError, match="max_queue 2") as caught:
        core.add("3", PROMPT, greedy())
    assert 1 <= caught.value.retry_after_s <= 60
    core.abort("1")
    core.add("3", PROMPT, greedy())


def test_an_id_in_use_is_refused(make_engine):
    core = make_engine().core
    core.add("same", PROMPT, greedy())
    with pytest.raises(InvalidRequestError, match="same"):
        core.add("same", PROMPT, greedy())


# Abort and figures


@pytest.mark.parametrize("depth", [0, 1])
def test_abort_ends_all_answers_and_frees_everything(make_engine, depth):
    core = make_engine(async_depth=depth, max_num_seqs=2).core
    core.add("gone", PROMPT, greedy(n=3))
    core.add("stays", PROMPT, greedy())
    for _ in range(4):
        core.step()
    deltas = core.abort("gone")
    assert [(d.index, d.finish_reason) for d in deltas] == [(0, "abort"), (1, "abort"), (2, "abort")]
    assert deltas[-1].usage.prompt_tokens == len(PROMPT)
    assert core.abort("gone") == []
    rest = []
    while core.has_work:
        rest += core.step()
    assert {d.request_id for d in rest} == {"stays"}
    assert core.blocks.num_used == 0


def test_abort_all_leaves_nothing_behind(make_engine):
    core = make_engine(async_depth=1).core
    for i in range(12):
        core.add(str(i), PROMPT, greedy())
    for _ in range(3):
        core.step()
    assert len(core.abort_all()) >= 12
    assert not core.has_work
    assert core.blocks.num_used == 0


def test_figures_add_up(make_engine, run):
    core = make_engine(max_num_seqs=3).core
    results = run(core, {str(i): (PROMPT, greedy(n=2, max_tokens=5, ignore_eos=True)) for i in range(4)})
    stats = core.stats()
    assert all(result.usage.completion_tokens == 10 for result in results.values())
    assert (stats.requests, stats.finished["length"]) == (4, 8)
    assert (stats.prompt_tokens, stats.generation_tokens) == (4 * len(PROMPT), 40)
    assert stats.ttft.count == stats.e2e.count == 8
    assert stats.inter_token.count == 40 - 8
    assert stats.queue_time.count == 4
    assert stats.steps == stats.step_seqs.count == stats.step_tokens.count
    assert stats.step_seqs.sum == 40  # short prompts: every row of every step gives a token
    assert stats.pages == stats.pages_free + stats.pages_cached + stats.pages_used
    assert (stats.queue_depth, stats.waiting, stats.running) == (0, 0, 0)
