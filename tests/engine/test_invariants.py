"""What never changes an answer: the engine's promises on a real decoder, each as a named test.

Depth 0 reads each step before the next is planned; depth 1 plans and launches the next one first.
"""

import pytest
import torch

from stille.engine.config import PAGE_SIZE
from stille.engine.sampling_params import SamplingParams

both_depths = pytest.mark.parametrize("depth", [0, 1])
GREEDY = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)


def prompts(count: int, length: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(count * 1000 + length)
    return torch.randint(0, 320, (count, length), generator=generator).tolist()


@pytest.fixture(scope="module")
def alone(tiny_model):
    """The reference: transformers' own greedy generation, one prompt, no batch."""

    def generate(ids: list[int], count: int = 40) -> list[int]:
        ids_1T = torch.tensor([ids])
        out = tiny_model.generate(
            ids_1T, attention_mask=torch.ones_like(ids_1T), max_new_tokens=count, do_sample=False, pad_token_id=0
        )
        return out[0, len(ids) :].tolist()

    return generate


# A greedy answer in fp32 depends on nothing but its prompt


@both_depths
def test_greedy_answer_alone_is_that_of_transformers(make_engine, alone, depth, answer):
    core = make_engine(async_depth=depth).core
    for ids in prompts(3, 70):
        assert answer(core, ids, GREEDY) == alone(ids)


@both_depths
def test_greedy_answer_is_the_same_in_a_batch(make_engine, alone, depth, run):
    core = make_engine(async_depth=depth, max_num_seqs=4).core
    work = {f"{i}": (ids[: 5 + 17 * i], GREEDY) for i, ids in enumerate(prompts(9, 150))}
    results = run(core, work)
    for name, (ids, _) in work.items():
        assert results[name].outputs[0].token_ids == alone(ids), name


@both_depths
def test_greedy_answer_is_the_same_with_a_prompt_in_chunks(make_engine, alone, depth, run):
    core = make_engine(async_depth=depth, max_num_seqs=4, max_num_batched_tokens=11).core
    work = {f"{i}": (ids, GREEDY) for i, ids in enumerate(prompts(4, 100))}
    results = run(core, work)
    assert core.stats().steps > 4 * 100 // 11
    for name, (ids, _) in work.items():
        assert results[name].outputs[0].token_ids == alone(ids), name


@both_depths
def test_greedy_answer_is_the_same_after_prefix_cache_hits(make_engine, alone, depth, run, answer):
    core = make_engine(async_depth=depth).core
    shared, *tails = prompts(4, 3 * PAGE_SIZE)
    answer(core, shared, GREEDY)
    for length, tail in zip((1, 40, 2 * PAGE_SIZE), tails, strict=True):
        ids = shared + tail[:length]
        result = run(core, {"hit": (ids, GREEDY)})["hit"]
        assert result.usage.cached_tokens >= 3 * PAGE_SIZE
        assert result.outputs[0].token_ids == alone(ids)
    # The whole prompt is cached, and its last token is computed all the same.
    again = run(core, {"hit": (shared, GREEDY)})["hit"]
    assert again.usage.cached_tokens == 2 * PAGE_SIZE
    assert again.outputs[0].token_ids == alone(shared)


@both_depths
def test_greedy_answer_is_the_same_after_preemption(make_engine, alone, depth, run):
    core = make_engine(async_depth=depth, kv_cache_tokens=7 * PAGE_SIZE, max_model_len=3 * PAGE_SIZE).core
    work = {f"{i}": (ids, SamplingParams(temperature=0, max_tokens=100)) for i, ids in enumerate(prompts(5, 60))}
    results = run(core, work)
    assert core.stats().preemptions > 0
    for name, (ids, _) in work.items():
        assert results[name].outputs[0].token_ids == alone(ids, 100), name


# Seeds


@both_depths
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"temperature": 2.0, "top_k": 30},
        {"temperature": 1.5, "top_p": 0.9, "min_p": 0.001},
        {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.2, "logit_bias": {3: 2.0}},
    ],
)
def test_a_seed_reproduces_alone_and_in_a_busy_batch(make_engine, depth, how, run, answer):
    ids, *others = prompts(6, 90)
    params = SamplingParams(seed=42, max_tokens=30, ignore_eos=True, **how)
    first = answer(make_engine().core, ids, params)
    busy = make_engine(async_depth=depth, kv_cache_tokens=9 * PAGE_SIZE, max_model_len=160, max_num_batched_tokens=50)
    work = {f"{i}": (other, SamplingParams(temperature=0.5 * i, max_tokens=35)) for i, other in enumerate(others)}
    work["seeded"] = (ids, params)
    results = run(busy.core, work)
    assert results["seeded"].outputs[0].token_ids == first
    assert answer(busy.core, ids, SamplingParams(seed=43, max_tokens=30, **how)) != first


@both_depths
def test_a_seeded_answer_goes_on_as_before_after_preemption(make_engine, depth, run, answer):
    core = make_engine(async_depth=depth, kv_cache_tokens=5 * PAGE_SIZE, max_model_len=3 * PAGE_SIZE).core
    params = [
        SamplingParams(seed=i, max_tokens=100, ignore_eos=True, presence_penalty=0.4, repetition_penalty=1.1)
        for i in range(4)
    ]
    work = {f"{i}": (ids, params[i]) for i, ids in enumerate(prompts(4, 60))}
    results = run(core, work)
    assert core.stats().preemptions > 0
    free = make_engine().core
    for name, (ids, each) in work.items():
        assert results[name].outputs[0].token_ids == answer(free, ids, each), name


def test_answer_i_of_n_is_the_answer_to_seed_plus_i(make_engine, run, answer):
    core = make_engine().core
    (ids,) = prompts(1, 3 * PAGE_SIZE + 5)
    together = run(core, {"n": (ids, SamplingParams(n=3, seed=7, max_tokens=12, ignore_eos=True))})["n"]
    for index, output in enumerate(together.outputs):
        single = SamplingParams(seed=7 + index, max_tokens=12, ignore_eos=True)
        assert output.token_ids == answer(core, ids, single)
    assert (together.usage.prompt_tokens, together.usage.completion_tokens) == (len(ids), 36)
