"""Guesses change how many steps an answer takes and nothing else."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stille.engine.build import assemble
from stille.engine.config import EngineConfig
from stille.engine.grammar import Grammar
from stille.engine.sampling_params import SamplingParams
from stille.engine.speculate import Costs, History, speculator
from stille.engine.speculate.history import LONGEST, PLACES, SHORTEST
from stille.engine.speculate.policy import Calibration, CostCurve, choose
from stille.errors import ConfigError, ModelNotFoundError, UnsupportedError
from stille.kernels.hsa import HSAConfig
from stille.model import LoadedModel, StilleConfig, StilleForCausalLM
from stille.model.draft import DraftConfig, DraftHead

EOS = 1
PROMPT = list(range(3, 90))
SHED = Grammar.json_schema(
    {
        "type": "object",
        "properties": {"tool_name": {"const": "look_into_the_shed"}, "count": {"type": "integer", "maximum": 99}},
        "required": ["tool_name", "count"],
        "additionalProperties": False,
    }
)
SHAPE = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,
}


class Fixed(CostCurve):
    """A curve that nothing moves."""

    def observe(self, rows, sequences, seconds):
        pass


FREE = Fixed((1, 1000), (1.0, 1.0))


@pytest.fixture(scope="module")
def build(tokenizer):
    """An engine whose checks seem to cost nothing, so that every guess is checked."""

    def make(model=None, **options):
        if model is None:
            torch.manual_seed(1)
            model = StilleForCausalLM(StilleConfig(**SHAPE)).eval()
        defaults = {"dtype": "fp32", "device": "cpu", "kv_cache_tokens": 4096, "max_num_seqs": 8, "seed": 0}
        loaded = LoadedModel(copy.deepcopy(model), tokenizer, Path(), "tiny", [EOS])
        core = assemble(loaded, EngineConfig(**{**defaults, **options})).core
        if core.speculator is not None:
            core.speculator.costs = Costs(FREE, FREE)
        return core

    return make


def requests(before: int = 0) -> dict[str, tuple[list[int], SamplingParams]]:
    """Of every kind, alike enough that past answers are of use and different enough that they mislead."""
    every = {"max_tokens": 40}
    context = np.random.default_rng(0).integers(3, 320, before).tolist()
    kinds = {
        "greedy": SamplingParams(temperature=0, **every),
        "drawn": SamplingParams(seed=3, n=2, temperature=0.4, **every),
        "narrow": SamplingParams(seed=4, temperature=0.7, top_k=5, top_p=0.8, min_p=0.05, **every),
        "penalties": SamplingParams(
            temperature=0, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.7, **every
        ),
        "bias": SamplingParams(temperature=0, logit_bias={7: 4.0, 9: -100}, logprobs=3, **every),
        "grammar": SamplingParams(seed=5, grammar=SHED, logprobs=2, max_tokens=60),
        "stop": SamplingParams(seed=6, temperature=0.5, stop=["e", "qu"], **every),
        "endless": SamplingParams(temperature=0, ignore_eos=True, **every),
    }
    return {name: (context + PROMPT[:60], params) for name, params in kinds.items()} | {
        "other": (context + PROMPT, SamplingParams(temperature=0, **every))
    }


def said(results) -> dict[str, list]:
    return {
        name: [result.usage.completion_tokens]
        + [(o.token_ids, o.text, o.finish_reason, o.stop_reason) for o in result.outputs]
        for name, result in results.items()
    }  # fmt: skip


def check_same(run, plain, guessing, rounds: int = 3, before: int = 0) -> None:
    expected = run(plain, requests(before))
    assert plain.speculator is None
    for turn in range(rounds):
        for output in (output for result in expected.values() for output in result.outputs):
            wrong = [t if place % 6 else (t + turn + 1) % 320 for place, t in enumerate(output.token_ids, 1)]
            guessing.speculator._past.extend(wrong)  # guesses that are right for a while
        got = run(guessing, requests(before))
        assert said(got) == said(expected)
        for name, result in got.items():
            for mine, theirs in zip(result.outputs, expected[name].outputs, strict=True):
                assert (mine.logprobs is None) == (theirs.logprobs is None)
                for a, b in zip(mine.logprobs or [], theirs.logprobs or [], strict=True):
                    assert a.token_id == b.token_id
                    assert a.logprob == pytest.approx(b.logprob, abs=1e-4)
                    assert [t.token_id for t in a.top] == [t.token_id for t in b.top]
    stats = guessing.speculator.stats
    assert stats.accepted > 50, "or nothing was tested"
    assert stats.drafted > stats.accepted, "or no wrong guess was tested"
    assert guessing.metrics.steps < rounds * plain.metrics.steps


@pytest.mark.parametrize(
    "options",
    [{}, {"async_depth": 1}, {"prefix_caching": False, "max_num_seqs": 3}, {"kv_cache_tokens": 320, "max_num_seqs": 4}],
    ids=["plain", "ahead", "no prefix cache", "preempted"],
)
def test_every_answer_is_the_same_with_guesses(build, run, options):
    check_same(run, build(max_draft_tokens=0, **options), build(**options))


@pytest.mark.parametrize("dtype", ["int4", "int8"])
@pytest.mark.parametrize("attention", ["full", "hsa"])
def test_on_the_kernels_for_cpus_too(build, run, dtype, attention):
    options = {"dtype": dtype, "threads": 2, "attention": attention}
    if attention == "hsa":
        options |= {"hsa": HSAConfig(budget=320, sinks=64, local=64, decode_leaf=16), "max_num_batched_tokens": 1024}
    before = 500 if attention == "hsa" else 0
    check_same(run, build(max_draft_tokens=0, **options), build(**options), before=before)


def test_with_sparse_attention(build, run):
    options = {
        "attention": "hsa",
        "hsa": HSAConfig(
            budget=256, sinks=64, local=0, tail=0, dense_below=0, span=256, candidates=384, decode_leaf=16
        ),
        "max_num_batched_tokens": 1024,
    }
    check_same(run, build(max_draft_tokens=0, **options), build(**options), before=400)


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_with_experts(build, run, dtype):
    torch.manual_seed(2)
    experts = {"num_experts": 4, "expert_size": 16, "shared_size": 64, "min_k": 1, "max_k": 4, "target_k": 2.0}
    model = StilleForCausalLM(StilleConfig(**SHAPE, ffn_kinds=["experts", "dense"], experts=experts)).eval()
    check_same(run, build(model, dtype=dtype, max_draft_tokens=0), build(model, dtype=dtype))


def test_an_answer_never_goes_beyond_its_limits(build, run):
    core = build(max_model_len=128)
    for _ in range(3):
        for most in (1, 2, 3, 17):
            answer = run(core, {"a": (PROMPT, SamplingParams(temperature=0, max_tokens=most, ignore_eos=True))})["a"]
            assert len(answer.outputs[0].token_ids) == most
        full = run(core, {"a": (PROMPT, SamplingParams(temperature=0, ignore_eos=True))})["a"]
        assert len(full.outputs[0].token_ids) == 128 - len(PROMPT)


def test_aborted_in_the_middle_of_guesses_nothing_is_left(build):
    core = build(async_depth=1)
    params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True, n=3)
    for steps in range(1, 12):
        core.add("a", PROMPT, params)
        for _ in range(steps):
            core.step()
        core.abort("a")
        while core.has_work:
            core.step()
        core.blocks.check()
        assert core.blocks.num_used == 0
        assert not core.speculator._own
    assert core.speculator.stats.accepted > 0


def test_steps_in_flight_are_waited_for_only_where_more_than_their_tokens_is_told(build):
    core = build(async_depth=1)
    core.add("a", list(range(10, 40)), SamplingParams(temperature=0, max_tokens=60, ignore_eos=True))
    core.step()
    (answer,), speculator = core.scheduler.decoding, core.speculator
    assert not speculator.promising([answer], 8)
    speculator._past.extend([37, 38, 39, 50])  # the step in flight brings what follows
    assert not speculator.promising([answer], 8)
    speculator._past.extend([35, 36, 37, 38, 39, 50, 51, 52, 53])
    assert speculator.promising([answer], 8)
    assert not speculator.promising([answer], 0)
    core.abort_all()


def test_what_a_grammar_leaves_no_choice_about_takes_fewer_steps(build, run):
    params = SamplingParams(temperature=0, grammar=SHED, max_tokens=60)
    plain, guessing = build(max_draft_tokens=0), build()
    answer = run(guessing, {"a": (PROMPT, params)})["a"].outputs[0]
    assert answer.token_ids == run(plain, {"a": (PROMPT, params)})["a"].outputs[0].token_ids
    assert guessing.metrics.steps <= plain.metrics.steps // 2


def test_guesses_that_do_not_pay_are_not_checked(build, run):
    core = build()
    dear = Costs(Fixed((1, 1000), (1.0, 1.0)), Fixed((1, 1000), (50.0, 50.0)))
    core.speculator.costs = dear
    for _ in range(2):
        run(core, {"a": (PROMPT, SamplingParams(temperature=0, max_tokens=40, ignore_eos=True))})
    assert core.speculator.stats.drafted == 0


def test_most_guesses_of_a_step_are_kept_to(build, run):
    core = build(max_draft_tokens=3, max_num_seqs=2)
    rows, forward = [], core.runner.executor.forward

    def spy(step, ids):
        rows.append(int((step.slots == step.slots[0]).sum()))
        return forward(step, ids)

    core.runner.executor.forward = spy
    for _ in range(2):
        run(core, {"a": (PROMPT, SamplingParams(temperature=0, max_tokens=40, ignore_eos=True))})
    assert max(rows) == 4


@pytest.mark.parametrize("most", [-1, 65, 1.5, True])
def test_bad_numbers_of_guesses_are_refused(most):
    with pytest.raises(ConfigError, match="max_draft_tokens"):
        EngineConfig(max_draft_tokens=most)


# History


@given(st.lists(st.integers(0, 3), max_size=120), st.integers(0, 20), st.integers(1, 9))
@settings(max_examples=200, deadline=None)
def test_history_follows_the_longest_agreement(text, cut, most):
    history = History()
    for start in range(0, len(text), 7):
        history.extend(text[start : start + 7])
    suffix = text[: max(0, len(text) - cut)]
    tokens, shares, length = history.follow(suffix, most)

    def agreement(place: int) -> int:
        count = 0
        while count < min(LONGEST, len(suffix), place) and text[place - 1 - count] == suffix[-1 - count]:
            count += 1
        return count

    places = [place for place in range(SHORTEST, len(text)) if agreement(place) >= SHORTEST][-PLACES:]
    best = max((agreement(place) for place in places), default=0)
    assert length == best
    assert len(tokens) == len(shares) <= most
    if not places:
        assert tokens == []
        return
    candidates = [place for place in places if agreement(place) == best]
    assert any(text[place : place + len(tokens)] == tokens for place in candidates)
    first = [text[place] for place in candidates]
    assert first.count(tokens[0]) == max(first.count(token) for token in first)
    assert shares[0] == pytest.approx(first.count(tokens[0]) / len(first))


def test_past_answers_are_forgotten_in_the_end(build, run, monkeypatch):
    monkeypatch.setattr(speculator, "PAST_TOKENS", 100)
    core = build(prefix_caching=False)
    params = SamplingParams(max_tokens=40, ignore_eos=True, seed=1)
    first = run(core, {"a": (PROMPT, params)})["a"].outputs[0].token_ids
    held = []
    for number in range(8):
        past, older = core.speculator._past, core.speculator._older
        held.append(any(history.follow(first[:8], 3)[0] == first[8:11] for history in (past, older)))
        assert len(past) + len(older) < 300
        run(core, {"a": (PROMPT, SamplingParams(max_tokens=40, ignore_eos=True, seed=2 + number))})
    assert held[0]
    assert not held[-1]


def test_guesses_never_take_a_prompts_place(build, run):
    """A step as small as its sequences would have no room for prompts while an answer is guessed."""
    core = build(max_num_seqs=8, max_num_batched_tokens=8, prefix_caching=False)
    params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
    run(core, {"a": (PROMPT, params)})  # known now: guesses of it fill every step
    core.add("a", PROMPT, params)
    while not core.scheduler.decoding:
        core.step()
    for _ in range(2):
        core.step()
    core.add("b", PROMPT[:20], SamplingParams(temperature=0, max_tokens=1, ignore_eos=True))
    ended = []
    while not ended:
        ended = [delta.request_id for delta in core.step() if delta.finish_reason]
    assert ended == ["b"]
    core.abort_all()


def test_a_head_without_guesses_is_a_contradiction():
    with pytest.raises(ConfigError, match="has no use"):
        EngineConfig(draft="somewhere", max_draft_tokens=0)


# Policy


@given(
    st.lists(st.lists(st.floats(0, 1), max_size=6), min_size=1, max_size=5),
    st.lists(st.floats(0.1, 5), min_size=8, max_size=8),
    st.integers(0, 40),
)
@settings(max_examples=200, deadline=None)
def test_the_choice_is_at_least_as_good_as_any_other_of_its_kind(chances, steps, most):
    sizes = [1, 2, 4, 8, 12, 16, 24, 40]
    seconds = [sum(steps[: i + 1]) for i in range(len(steps))]
    costs = Costs(CostCurve(sizes, seconds), CostCurve(sizes, [1.1 * s for s in seconds]))
    taken, gain = choose(len(chances), chances, costs, most)
    assert sum(taken) <= most
    assert all(n <= len(c) for n, c in zip(taken, chances, strict=True))

    def rate(counts) -> float:
        rows, expected = len(chances), float(len(chances))
        for count, each in zip(counts, chances, strict=True):
            alive = 1.0
            for chance in each[:count]:
                alive *= chance
                expected += alive
            rows += count
        curve = costs.checked if sum(counts) else costs.plain
        return expected / curve(rows, len(chances)) / (len(chances) / costs.plain(len(chances), len(chances)))

    assert gain == pytest.approx(rate(taken))
    for length in range(7):
        counts = [min(length, len(each)) for each in chances]
        if 0 < sum(counts) <= most and length == 1:
            best_one = max(range(len(chances)), key=lambda i: chances[i][0] if chances[i] else -1)
            assert gain >= rate([int(i == best_one) for i in range(len(chances))]) - 1e-9


def test_costs_follow_what_steps_take():
    curve = CostCurve((1, 2, 4), (1.0, 1.0, 2.0))
    assert curve(3, 1) == pytest.approx(1.5)
    assert curve(8, 1) == pytest.approx(4.0)
    for _ in range(200):
        curve.observe(3, 1, 3.0)
    assert curve(3, 1) == pytest.approx(3.0, rel=0.05)
    assert curve(4, 1) == pytest.approx(4.0, rel=0.05)  # the same shape
    assert curve(4, 4) == pytest.approx(2.0)  # other numbers of sequences are seen apart
    curve.observe(1, 4, 1e9)  # one disturbed step
    assert curve(1, 4) < 1.5


def test_calibration_moves_from_the_estimate_to_what_was_seen():
    calibration = Calibration()
    assert calibration.chance("a", 0.9) == pytest.approx(0.9)
    for number in range(3000):
        calibration.observe("a", number % 4 == 0)
    assert calibration.chance("a", 0.9) == pytest.approx(0.25, abs=0.03)
    assert calibration.chance("b", 0.5) == pytest.approx(0.5)


def test_costs_of_a_real_engine_are_measured(build):
    core = build()
    costs = Costs.measure(core.runner.executor, 9)
    assert costs.plain.rows == [1, 2, 3, 4, 5, 8, 9]
    assert all(0 < a <= b for a, b in zip(costs.plain.seconds, costs.plain.seconds[1:], strict=False))


# Draft heads


@pytest.fixture(scope="module")
def head_folder(tmp_path_factory):
    """An untrained head of the tiny model: its guesses are mostly wrong, and sometimes right."""
    torch.manual_seed(1)
    model = StilleForCausalLM(StilleConfig(**SHAPE)).eval()
    head = DraftHead(DraftConfig.of(model.config, draft_vocab=200, inner_size=48, steps=4), torch.arange(0, 200))
    head.attach(model, "tiny").initialize(model)
    folder = tmp_path_factory.mktemp("head") / "draft"
    head.save(folder)
    return folder


def test_a_draft_head_changes_no_answer(build, run, head_folder):
    guessing = build(draft=str(head_folder))
    guessing.speculator._past.extend = lambda tokens: None  # the head alone
    expected = run(build(max_draft_tokens=0), requests())
    for _ in range(2):
        assert said(run(guessing, requests())) == said(expected)
    assert guessing.speculator.stats.drafted > 100
    assert any(kind[0] == "head" for kind in guessing.speculator._calibration._seen)


def test_the_head_goes_on_from_where_the_answer_stands(build, run, head_folder, tokenizer):
    """Its guesses are those of the head over the states of a plain forward pass."""
    core = build(draft=str(head_folder), max_num_seqs=4)
    torch.manual_seed(1)
    model = StilleForCausalLM(StilleConfig(**SHAPE)).eval()
    head = DraftHead.load(head_folder, model)
    heard = []
    hear = core.speculator.hear
    core.speculator.hear = lambda answer, tokens, chances: (
        heard.append((list(answer.tokens), tokens, chances)), hear(answer, tokens, chances),
    )  # fmt: skip
    work = {f"{i}": (PROMPT[i : 30 + i], SamplingParams(temperature=0, max_tokens=20)) for i in range(3)}
    for _ in range(2):
        run(core, work)
    assert len(heard) > 10
    states = {}
    for layer in head.config.feature_layers:
        model.model.layers[layer].register_forward_hook(lambda m, i, o, at=layer: states.__setitem__(at, o))
    for known, tokens, chances in heard:
        with torch.inference_mode():
            model(torch.tensor([known[:-1]]))
            features = head.features([states[at][0, -1:] for at in head.config.feature_layers])
            x, token = head.begin(features), torch.tensor([known[-1]])
            for guess, chance in zip(tokens, chances, strict=True):
                x, logits = head.advance(x, token)
                best = logits.argmax(-1)
                token = head.draft_tokens_D[best]
                assert guess == int(token)
                assert chance == pytest.approx(float(logits.softmax(-1)[0, best]), rel=1e-3)


def test_a_head_that_is_not_there_or_not_of_use_is_named(build, head_folder):
    with pytest.raises(ModelNotFoundError):
        build(draft="/nowhere")
    with pytest.raises(UnsupportedError, match="fp32"):
        build(draft=str(head_folder), dtype="int4")
    assert build(draft="none").runner.executor.drafter is None
