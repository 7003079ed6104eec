"""Sparse attention in the engine, in fp32 by its specification: what may not change an answer, and bad settings."""

from itertools import pairwise

import pytest
import torch

from stille.engine.config import PAGE_SIZE, EngineConfig
from stille.engine.hsa import PACKED_BUDGET, PromptRule
from stille.engine.sampling_params import SamplingParams
from stille.errors import ConfigError, UnsupportedError
from stille.kernels.hsa import HSAConfig
from stille.kernels.hsa.config import TILE
from stille.model import StilleConfig

GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
COVERING = HSAConfig(budget=576, dense_below=0)
SPARSE = HSAConfig(
    budget=256, sinks=64, local=0, tail=0, dense_below=0, span=256, candidates=384, candidates_from=1 << 20
)
CONFIGS = {
    "plain": {},
    "tail": {"tail": 100},
    "candidates": {"candidates_from": 256, "tail": 40},
    "dense": {"dense_below": 200, "tail": 128},
}


def prompts(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(len(lengths))
    return [torch.randint(0, 320, (n,), generator=generator).tolist() for n in lengths]


def variant(name: str) -> HSAConfig:
    from dataclasses import replace

    return replace(SPARSE, **CONFIGS[name])


@pytest.fixture
def sparse_core(make_engine):
    def make(config: HSAConfig = SPARSE, **settings):
        settings = {"max_num_batched_tokens": 1024, **settings}
        return make_engine(attention="hsa", hsa=config, **settings).core

    return make


def watch(core):
    """The steps that the core will compute."""
    steps, forward = [], core.runner.executor.forward

    def spy(step, ids_N):
        steps.append(step)
        return forward(step, ids_N)

    core.runner.executor.forward = spy
    return steps


# Answers


@pytest.mark.parametrize("depth", [0, 1])
def test_a_budget_for_everything_gives_the_answers_of_full_attention(make_engine, sparse_core, run, depth):
    work = {f"{i}": (ids, GREEDY) for i, ids in enumerate(prompts(1, 63, 129, 300, 450))}
    right = run(make_engine().core, work)
    got = run(sparse_core(COVERING, async_depth=depth, max_num_batched_tokens=136), work)
    assert {k: r.outputs[0].token_ids for k, r in got.items()} == {k: r.outputs[0].token_ids for k, r in right.items()}


def test_a_small_budget_is_another_attention(make_engine, sparse_core, answer):
    """Otherwise the tests below would compare full attention with itself."""
    (ids,) = prompts(450)
    assert answer(sparse_core(), ids, GREEDY) != answer(make_engine().core, ids, GREEDY)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_answer_is_the_same_with_its_prompt_in_chunks_and_in_a_batch(sparse_core, run, answer, name):
    config, whole = variant(name), sparse_core(variant(name))
    work = {f"{i}": (ids, GREEDY) for i, ids in enumerate(prompts(450, 385, 390, 129, 30))}
    step = PromptRule.of(config).step(512)
    core = sparse_core(config, async_depth=1, max_num_seqs=4, max_num_batched_tokens=4 + step)
    steps = watch(core)
    results = run(core, work)
    for key, (ids, params) in work.items():
        assert results[key].outputs[0].token_ids == answer(whole, ids, params), key
    chunks = [(s, row) for s in steps for row in range(s.num_decodes, s.num_seqs)]
    assert len(chunks) > len(work)
    assert any(s.num_decodes and s.num_decodes < s.num_seqs for s in steps), "no step mixed decode and prompts"
    for s, row in chunks:
        end = int(s.starts[row] + s.lengths[row])
        assert s.starts[row] % TILE == 0
        assert end % TILE == 0 or end == s.total(row)


@pytest.mark.parametrize("tail", [0, 100])
def test_an_answer_is_the_same_after_prefix_cache_hits(sparse_core, run, answer, tail):
    from dataclasses import replace

    config = replace(SPARSE, tail=tail)
    core, fresh = sparse_core(config), sparse_core(config, prefix_caching=False)
    shared, one, two = prompts(5 * PAGE_SIZE, 140, 64)
    answer(core, shared + one, GREEDY)
    steps = watch(core)
    # Five pages fit, but a tile has two. Of the last prompt a single token is left, which is no decoding for that.
    for ids, cached in ((shared + two, 256), (shared + one[:60], 256), (shared + one[:65], 384)):
        steps.clear()
        result = run(core, {"hit": (ids, GREEDY)})["hit"]
        assert result.usage.cached_tokens == cached
        assert (steps[0].lengths.tolist(), steps[0].num_decodes) == ([len(ids) - cached], 0)
        assert result.outputs[0].token_ids == answer(fresh, ids, GREEDY)


def test_sequences_that_gave_way_are_answered_in_full(sparse_core, run):
    core = sparse_core(kv_cache_tokens=9 * PAGE_SIZE, max_model_len=6 * PAGE_SIZE)
    work = {f"{i}": (ids, SamplingParams(temperature=0, max_tokens=100)) for i, ids in enumerate(prompts(*[180] * 4))}
    results = run(core, work)
    assert core.stats().preemptions > 0
    assert all(len(result.outputs[0].token_ids) == 100 for result in results.values())


def test_the_synchronous_api_takes_the_settings(tiny_checkpoint):
    from stille import LLM

    settings = {"dtype": "fp32", "device": "cpu", "max_model_len": 512}
    ids, params = prompts(300)[0], SamplingParams(temperature=0, max_tokens=4)
    ids = [token % 200 for token in ids]
    full = LLM(str(tiny_checkpoint), **settings).generate(ids, params)[0]
    sparse = LLM(str(tiny_checkpoint), attention="hsa", hsa=COVERING, **settings).generate(ids, params)[0]
    assert sparse.outputs[0].token_ids == full.outputs[0].token_ids


# The rule


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("total", [1, 128, 129, 1000])
def test_segments_cover_a_chunk_and_agree_however_a_prompt_is_cut(name, total):
    rule = PromptRule.of(variant(name))

    def of_position(segments):
        """For every tile: in full or not, candidates or not, row by row or not."""
        rows = {}
        for part in segments:
            for position in range(part.start, part.end):
                if part.config is None:
                    rows[position] = "full"
                else:
                    row_by_row = position // TILE * TILE >= part.start and (
                        position // TILE >= (part.end - part.config.tail) // TILE if part.config.tail else False
                    )
                    rows[position] = (part.config.uses_candidates(1 << 20), row_by_row)
        return rows

    whole = of_position(rule.segments(0, total, total))
    assert sorted(whole) == list(range(total))
    cuts = sorted({rule.floor(position) for position in range(total)} | {total})
    pieces = {}
    for start, end in pairwise(cuts):
        pieces.update(of_position(rule.segments(start, end, total)))
    assert pieces == whole


def test_cuts_are_ends_of_tiles_and_later_of_spans():
    rule = PromptRule.of(variant("candidates"))
    assert [rule.floor(p) for p in (0, 127, 128, 300, 511, 512, 513, 767, 768)] == [
        0, 0, 128, 256, 256, 512, 512, 512, 768,
    ]  # fmt: skip
    assert (rule.step(256), rule.step(257)) == (TILE, 256)


# Settings


def test_hsa_settings_are_completed():
    config = StilleConfig(num_hidden_layers=1, max_position_embeddings=1000)
    resolved = EngineConfig(device="cpu", dtype="fp32", attention="hsa").resolve(config)
    assert resolved.hsa == HSAConfig()
    assert resolved.resolve(config) == resolved
    packed = EngineConfig(device="cpu", dtype="int4", attention="hsa").resolve(config).hsa
    assert packed == HSAConfig(budget=PACKED_BUDGET)
    assert EngineConfig(device="cpu", dtype="fp32").resolve(config).hsa is None


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"max_num_batched_tokens": 130, "max_num_seqs": 3}, "at least 131"),
        ({"max_num_batched_tokens": 100}, "at least 129"),
    ],
)
def test_a_step_must_have_room_for_a_piece_of_a_prompt(settings, says):
    config = StilleConfig(num_hidden_layers=1, max_position_embeddings=1000)
    with pytest.raises(ConfigError, match=says):
        EngineConfig(device="cpu", attention="hsa", **settings).resolve(config)
    EngineConfig(device="cpu", **settings).resolve(config)


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ({"head_dim": 24}, "24 wide"),
        ({"head_dim": 16, "num_attention_heads": 130, "num_key_value_heads": 2}, "65 to one"),
    ],
)
def test_heads_that_the_kernels_do_not_take_are_named(shape, says):
    config = StilleConfig(num_hidden_layers=1, **shape)
    with pytest.raises(UnsupportedError, match=says):
        EngineConfig(device="cpu", attention="hsa").resolve(config)
