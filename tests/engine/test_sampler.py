"""Sampling against plain definitions, token by token."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stille.engine import sampler
from stille.engine.sampler import RandomRows, invert_cdf, nucleus_by_sorting, nucleus_threshold, uniform
from stille.engine.sampling_params import SamplingParams
from stille.engine.sampling_state import SamplingState

V = 40


def splitmix(x: int) -> int:
    mask = 2**64 - 1
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


@given(seed=st.integers(-(2**63), 2**63 - 1), index=st.integers(0, 2**20))
def test_uniform_is_the_hash_that_it_claims_to_be(seed, index):
    mask, golden = 2**64 - 1, 0x9E3779B97F4A7C15
    right = splitmix(splitmix((seed + golden) & mask) ^ (index * golden & mask)) >> 40
    got = uniform(np.array([seed]), np.array([index]))
    assert got.item() == right / 2**24
    assert got.dtype == np.float32


def test_uniform_is_uniform_over_seeds_and_over_indices():
    numbers, zeros = np.arange(20000), np.zeros(20000, np.int64)
    for seeds, indices in ((numbers, zeros), (zeros, numbers)):
        counts, _ = np.histogram(uniform(seeds, indices), 50, (0, 1))
        chi2 = ((counts - 400) ** 2 / 400).sum()
        assert chi2 < 95  # 49 degrees of freedom: exceeded once in 10,000


def rows(**given_) -> RandomRows:
    """One drawn row per entry of the lists given."""
    size = len(next(iter(given_.values())))
    top_k = torch.tensor(given_.get("top_k", [V] * size))
    limited = top_k[top_k < V]
    return RandomRows(
        rows=None,
        temperature=torch.tensor(given_.get("temperature", [1.0] * size)),
        top_k=top_k if len(limited) else None,
        max_top_k=int(limited.max()) if len(limited) else 0,
        top_p=torch.tensor(given_["top_p"]) if "top_p" in given_ else None,
        min_p=torch.tensor(given_["min_p"]) if "min_p" in given_ else None,
    )


def plain_distribution(logits, temperature=1.0, top_k=V, top_p=1.0, min_p=0.0) -> np.ndarray:
    """What SamplingParams promises, in float64 with sorting and loops."""
    x = np.asarray(logits, np.float64) / temperature
    if top_k < len(x):
        x = np.where(x >= np.sort(x)[-top_k], x, -np.inf)
    p = np.exp(x - x.max())
    p /= p.sum()
    keep = p >= min_p * p.max()
    if top_p < 1:
        total = 0.0
        for value in np.sort(p)[::-1]:
            total += value
            if total >= top_p:
                break
        keep &= p >= value
    p = np.where(keep, p, 0)
    return p / p.sum()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    temperature=st.sampled_from([0.1, 0.7, 1.0, 3.0]),
    top_k=st.sampled_from([1, 2, 7, V - 1, V]),
    top_p=st.sampled_from([1e-6, 0.3, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
)
def test_draws_follow_the_plain_distribution(seed, temperature, top_k, top_p, min_p):
    logits = torch.randn(V, generator=torch.Generator().manual_seed(seed)) * 3
    right = plain_distribution(logits, temperature, top_k, top_p, min_p)
    size = 400
    params = rows(temperature=[temperature] * size, top_k=[top_k] * size, top_p=[top_p] * size, min_p=[min_p] * size)
    # Evenly spaced numbers instead of random ones: each token is drawn in proportion, up to one.
    tokens = sampler.draw(logits.expand(size, V), params, (torch.arange(size) + 0.5) / size)
    counts = np.bincount(tokens.numpy(), minlength=V)
    assert np.abs(counts - right * size).max() <= 1.5


def test_rows_with_different_parameters_do_not_touch_each_other():
    logits = torch.randn(4, V, generator=torch.Generator().manual_seed(0))
    spread = torch.tensor([0.3, 0.3, 0.3, 0.3])
    mixed = sampler.draw(
        logits,
        rows(temperature=[0.5, 1.0, 2.0, 1.0], top_k=[3, V, 5, V], top_p=[1.0, 0.5, 0.9, 1.0], min_p=[0, 0, 0.1, 0]),
        spread,
    )
    for row, single in enumerate(
        (
            {"temperature": [0.5], "top_k": [3]},
            {"temperature": [1.0], "top_p": [0.5]},
            {"temperature": [2.0], "top_k": [5], "top_p": [0.9], "min_p": [0.1]},
            {"temperature": [1.0]},
        )
    ):
        assert sampler.draw(logits[row : row + 1], rows(**single), spread[:1]).item() == mixed[row].item()


def test_ties_at_the_edge_are_all_kept():
    logits = torch.log(torch.tensor([[0.4, 0.2, 0.2, 0.1, 0.1]]))
    for cut in ({"top_k": [2]}, {"top_p": [0.5]}):
        drawn = {
            sampler.draw(logits, rows(temperature=[1.0], **cut), torch.tensor([u])).item()
            for u in np.linspace(0, 0.999, 50).astype(np.float32)
        }
        assert drawn == {0, 1, 2}


@given(st.data())
def test_a_token_without_probability_is_never_drawn(data):
    width = data.draw(st.integers(1, 600))
    probs = torch.zeros(1, width)
    alive = data.draw(st.lists(st.integers(0, width - 1), min_size=1, max_size=5))
    for token in alive:
        probs[0, token] = data.draw(st.floats(2**-100, 1.0, width=32))
    for u in (0.0, data.draw(st.floats(0, 1, exclude_max=True, width=32)), 1 - 2**-24):
        assert invert_cdf(probs, torch.tensor([u])).item() in alive


def test_both_ways_to_the_nucleus_agree():
    """The one for CPUs looks at the likely tokens only, the one for accelerators sorts them all."""
    probs = torch.softmax(torch.randn(6, 500, generator=torch.Generator().manual_seed(3)) * 4, -1)
    top_p = torch.tensor([0.1, 0.5, 0.9, 0.99, 0.9999, 1.0])
    sorting = torch.where(top_p < 1, nucleus_by_sorting(probs, top_p), 0.0)
    assert torch.equal(nucleus_threshold(probs, top_p), sorting)


def test_penalties_follow_their_definitions():
    logits = torch.tensor([[1.0, -1.0, 2.0, -2.0, 0.5]])
    counts = torch.tensor([[0, 2, 1, 0, 0]], dtype=torch.int32)
    in_prompt = torch.tensor([[True, False, False, False, False]])
    one = torch.ones(1)
    out = sampler.penalize(logits, counts, in_prompt, 2 * one, 0.5 * one, 0.25 * one)
    # Repetition: tokens 0, 1, 2. Presence and frequency: 1 (twice) and 2 (once), not 0, which only the prompt has.
    assert torch.allclose(out, torch.tensor([[0.5, -2.0 - 0.5 - 0.5, 1.0 - 0.25 - 0.5, -2.0, 0.5]]))


def test_log_probabilities_are_those_of_softmax():
    logits = torch.randn(3, V, generator=torch.Generator().manual_seed(5))
    tokens = torch.tensor([1, 2, 3])
    chosen, values, ids = sampler.log_probabilities(logits, tokens, 4)
    right = torch.log_softmax(logits, -1)
    assert torch.equal(chosen, right[torch.arange(3), tokens])
    assert torch.equal(values, right.gather(1, ids))
    assert (values[:, :-1] >= values[:, 1:]).all()
    assert torch.equal(values[:, 0], right.amax(-1))


# State by slot


def state(size: int = 4) -> SamplingState:
    return SamplingState(size, V, torch.device("cpu"))


def sample(state_: SamplingState, logits: torch.Tensor, slots: list[int]) -> list[int]:
    described = state_.rows_of(np.array(slots, np.int32), np.ones(len(slots), bool))
    return state_.sample(logits, described)[0].tolist()


def test_no_count_tables_until_a_request_needs_them():
    one = state(100)
    one.assign(3, SamplingParams(), 0, [1, 2])
    assert one._counts.numel() == 0
    one.assign(4, SamplingParams(presence_penalty=1.0), 0, [1, 2])
    one.assign(5, SamplingParams(frequency_penalty=1.0), 0, [1, 2])
    assert len(one._counts) == 2
    for _ in range(5):
        one.assign(5, SamplingParams(frequency_penalty=1.0), 0, [1, 2])
    assert len(one._counts) == 2, "a slot that is handed on gives its table row back"


def test_counts_grow_with_the_answer_and_start_from_what_it_has():
    logits = torch.zeros(1, V)
    logits[0, :3] = torch.tensor([3.0, 2.5, 2.0])
    one = state()
    params = SamplingParams(temperature=0, presence_penalty=0.75)
    one.assign(1, params, 0, [0, 1, 2])
    fresh = [sample(one, logits, [1])[0] for _ in range(4)]
    assert fresh == [0, 1, 0, 0]  # 3 / 2.25 / 2.25 / ...: token 1 leads once, then 0 again
    one.assign(2, params, 0, [0, 1, 2], fresh[:2])
    assert [sample(one, logits, [2])[0] for _ in range(2)] == fresh[2:]


def test_greedy_and_drawn_rows_share_a_batch():
    generator = torch.Generator().manual_seed(9)
    logits = torch.randn(3, V, generator=generator)
    one = state()
    one.assign(0, SamplingParams(temperature=0), 1, [1])
    one.assign(1, SamplingParams(temperature=1.0), 2, [1])
    one.assign(2, SamplingParams(temperature=0, logit_bias={7: 100.0}), 3, [1])
    tokens = sample(one, logits, [2, 1, 0])
    assert tokens[0] == 7
    assert tokens[2] == logits[2].argmax().item()
    alone = state()
    alone.assign(3, SamplingParams(temperature=1.0), 2, [1])
    assert sample(alone, logits[1:2], [3]) == tokens[1:2]
    assert one.last_token[[2, 1, 0]].tolist() == tokens


def test_a_bias_of_minus_100_bans_and_leaves_the_executors_logits_alone():
    logits = torch.zeros(1, V)
    logits[0, 5] = 10.0
    one = state()
    one.assign(0, SamplingParams(temperature=0, logit_bias={5: -100.0}), 0, [1])
    assert sample(one, logits, [0]) != [5]
    assert logits[0, 5] == 10.0


def test_rows_that_are_not_sampled_keep_their_state():
    one = state()
    for slot in range(3):
        one.assign(slot, SamplingParams(seed=1), 1, [1])
    described = one.rows_of(np.array([0, 1, 2], np.int32), np.array([True, False, True]))
    tokens, _ = one.sample(torch.randn(3, V), described)
    assert len(tokens) == 2
    assert one.next_index.tolist()[:3] == [1, 0, 1]
    assert one.last_token[1] == 0
    assert one.rows_of(np.array([0], np.int32), np.array([False])) is None


@pytest.mark.parametrize("vocab", [1, 2, 255, 257, 1000])
def test_any_vocabulary_size(vocab):
    one = SamplingState(1, vocab, torch.device("cpu"))
    one.assign(0, SamplingParams(top_p=0.9, top_k=500, logprobs=20), 5, [0])
    described = one.rows_of(np.array([0], np.int32), np.array([True]))
    tokens, logprobs = one.sample(torch.randn(1, vocab), described)
    assert 0 <= tokens.item() < vocab
    assert logprobs[2].shape == (1, min(20, vocab))
    assert math.isfinite(logprobs[0].item())


@pytest.mark.parametrize("params", [{"temperature": 1e-30}, {"temperature": 100.0}, {"repetition_penalty": 0.01}])
def test_extreme_values_give_tokens_that_exist(params):
    logits = torch.randn(1, V, generator=torch.Generator().manual_seed(6)) * 30
    one = state()
    one.assign(0, SamplingParams(**params), 5, list(range(V)))
    (token,) = sample(one, logits, [0])
    assert 0 <= token < V
    if params.get("temperature") == 1e-30:
        assert token == logits.argmax().item()
