"""Sparse attention in the CPU executor: its rule in plain torch, and what may not change a bit of an answer."""

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stille.engine.build import assemble
from stille.engine.config import EngineConfig
from stille.engine.cpu_executor import CpuExecutor
from stille.engine.executor import StepInput
from stille.engine.sampling_params import SamplingParams
from stille.errors import ConfigError
from stille.kernels import grids
from stille.kernels.cpu import KeyBudget, Target
from stille.kernels.hsa import HSAConfig
from stille.model import LoadedModel, StilleConfig, StilleForCausalLM

SPARSE = HSAConfig(budget=384, sinks=64, local=64)  # in leaves of 16 keys
FULL = HSAConfig(budget=1536)
PAGES = 24  # of a sequence in these tests, at most


@pytest.fixture(scope="module")
def model() -> StilleForCausalLM:
    torch.manual_seed(0)
    shape = StilleConfig(
        vocab_size=200, hidden_size=96, intermediate_size=160, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=5120, initializer_range=0.15,
    )  # fmt: skip
    return StilleForCausalLM(shape).eval()


def executor(model, hsa: HSAConfig | None, dtype: str = "int4", target: Target | None = None, **changes) -> CpuExecutor:
    fields = {"kv_cache_tokens": 64 * 160, "max_model_len": 1536, "threads": 1, **changes}
    if hsa is not None:
        fields = {**fields, "attention": "hsa", "hsa": hsa}
    return CpuExecutor(
        copy.deepcopy(model), EngineConfig(dtype=dtype, device="cpu", **fields).resolve(model.config), target
    )


@pytest.fixture(scope="module")
def shared(model):
    return executor(model, SPARSE, threads=2)


@pytest.fixture(scope="module")
def full(model):
    return executor(model, None, threads=2)


def forward(ex, parts: list[tuple[list[int], int, list[int]]]) -> torch.Tensor:
    """parts: (tokens computed now, first position, pages) of each sequence; logits of the last token of each."""
    lengths = np.array([len(ids) for ids, _, _ in parts], np.int32)
    table = np.zeros((len(parts), max(len(pages) for _, _, pages in parts)), np.int32)
    for row, (_, _, pages) in enumerate(parts):
        table[row, : len(pages)] = pages
    ids = np.array([i for ids, _, _ in parts for i in ids], np.int64)
    step = StepInput(
        slots=np.arange(len(parts), dtype=np.int32),
        starts=np.array([start for _, start, _ in parts], np.int32),
        lengths=lengths,
        token_ids=ids,
        page_table=table,
        sample=np.ones(len(parts), bool),
        num_decodes=int(np.cumprod(lengths == 1).sum()),
    )
    return ex.forward(step, torch.from_numpy(ids)).clone()


def tokens(count: int, seed: int = 0, vocab: int = 200) -> list[int]:
    return np.random.default_rng(seed).integers(0, vocab, count).tolist()


def whole(ex, ids: list[int], first_page: int = 1) -> torch.Tensor:
    return forward(ex, [(ids, 0, list(range(first_page, first_page + -(-len(ids) // 64))))])[0]


class Rule:
    """The rule of kernels/cpu/sparse.py over one sequence from its beginning."""

    def __init__(self, leaf: int, budget: int, always: int):
        self.leaf, self.keep, self.sinks, self.local = leaf, budget // leaf, always // leaf, always // leaf
        self.left = 0  # leaves that rows left out

    def attend(self, layer, q_NHD, k_NKD, v_NKD, scale):
        n, heads, kv_heads = *q_NHD.shape[:2], k_NKD.shape[1]
        group, full = heads // kv_heads, n // self.leaf
        leaves = k_NKD[: full * self.leaf].unflatten(0, (full, self.leaf))
        mean = leaves.mean(1)
        high, low = (leaves.amax(1) + mean) / 2, (leaves.amin(1) + mean) / 2
        high, low = (x.repeat_interleave(group, 1) for x in (high, low))
        q = q_NHD * scale
        scores = torch.einsum("nhd,fhd->nhf", q.clamp(min=0), high) + torch.einsum("nhd,fhd->nhf", q.clamp(max=0), low)
        own, leaf = torch.arange(n)[:, None] // self.leaf, torch.arange(full)[None]
        past = leaf < own
        share = scores.masked_fill(~past[:, None], -1e30).softmax(-1).unflatten(1, (kv_heads, group)).sum(2)
        free = past & (leaf >= self.sinks) & (leaf < own - self.local)
        order = share.masked_fill(~free[:, None], -1).argsort(dim=-1, descending=True, stable=True)
        need = self.keep - (own + 1 - free.sum(-1, keepdim=True))
        chosen = ~free[:, None] | (order.argsort(-1) < need[:, None])
        chosen |= (own + 1 <= self.keep)[:, None]
        self.left += int((~chosen).sum())
        reads = torch.ones(n, kv_heads, n, dtype=torch.bool)  # the last, partial leaf is nobody's choice
        reads[:, :, : full * self.leaf] = chosen.repeat_interleave(self.leaf, -1)
        reads &= torch.ones(n, n, dtype=torch.bool).tril()[:, None]
        k, v = (x.repeat_interleave(group, 1) for x in (k_NKD, v_NKD))
        weights = torch.einsum("nhd,mhd->nhm", q, k)
        weights = weights.masked_fill(~reads.repeat_interleave(group, 1), -torch.inf).softmax(-1)
        return torch.einsum("nhm,mhd->nhd", weights, v)


def on_quantised_numbers(model: StilleForCausalLM) -> StilleForCausalLM:
    """The modules with the executor's arithmetic: weights on 8-bit grids, inputs of linears on the activation grid."""

    def quantise_input(module, inputs):
        x = inputs[0].unflatten(-1, (-1, 32))
        scale = x.abs().amax(-1, keepdim=True) / 127
        return ((x / scale.clamp_min(1e-30)).round() * scale).flatten(-2)

    model = copy.deepcopy(model)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                module.weight.copy_(grids.dequantize(grids.quantize(module.weight, 8)))
            if isinstance(module, nn.Linear):
                module.register_forward_pre_hook(quantise_input)
    return model


@pytest.mark.parametrize("leaf", [16, 32, 64])
@torch.inference_mode()
def test_logits_follow_the_rule(model, leaf):
    """One layer: in a deeper one, an activation on the edge of its grid decides about leaves, and all after differs."""
    shallow = copy.deepcopy(model)
    shallow.model.layers = shallow.model.layers[:1]
    shallow.config.num_hidden_layers = 1
    ours = executor(shallow, dataclasses.replace(SPARSE, decode_leaf=leaf), "int8", Target(kv="f32"))
    plain = on_quantised_numbers(shallow)
    errors, distances, rule = [], [], Rule(leaf, 384, 64)
    for i, length in enumerate((300, 384, 385, 448, 449, 520, 577, 650, 704, 900)):
        ids = tokens(length, i)
        hidden = plain.forward_tokens(torch.tensor(ids), torch.arange(length), rule)
        want = plain.compute_logits(hidden[-1:])[0]
        everything = plain.forward_tokens(torch.tensor(ids), torch.arange(length), Rule(leaf, 6400, 64))
        dense = plain.compute_logits(everything[-1:])[0]
        errors.append(float((whole(ours, ids) - want).norm() / want.norm()))
        distances.append(float((dense - want).norm() / want.norm()))
    assert rule.left > 0
    assert np.median(errors) < 1e-5, errors
    assert np.median(distances[4:]) > 1e-2, "full attention would be told from it"


def test_a_budget_for_everything_is_full_attention_bit_for_bit(model, full):
    ex = executor(model, FULL, threads=2)
    ids = tokens(1400, 1)
    assert torch.equal(whole(ex, ids), whole(full, ids))
    pages = list(range(30, 54))
    for one in (ex, full):
        forward(one, [(ids[:700], 0, pages), (ids[:63], 0, [60])])
    steps = [(ids[700:701], 700, pages), (ids[63:200], 63, [60, 61, 62, 63])]
    assert torch.equal(forward(ex, steps), forward(full, steps))


def test_within_the_budget_it_is_full_attention_bit_for_bit_and_beyond_it_is_not(shared, full):
    ids = tokens(500, 2)
    for length in (1, 64, 300, 384):
        assert torch.equal(whole(shared, ids[:length]), whole(full, ids[:length]))
    assert not torch.equal(whole(shared, ids), whole(full, ids))


@pytest.fixture(scope="module")
def by_leaf(model, shared):
    coarser = (dataclasses.replace(SPARSE, decode_leaf=leaf) for leaf in (32, 64))
    return {16: shared, **{hsa.decode_leaf: executor(model, hsa, threads=2) for hsa in coarser}}


@settings(max_examples=24, deadline=None)
@given(
    leaf=st.sampled_from([16, 32, 64]),
    seed=st.integers(0, 2**31),
    count=st.integers(1, 5),
    longest=st.sampled_from([450, 1100]),
)
def test_logits_are_the_same_alone_in_chunks_and_in_any_batch(by_leaf, leaf, seed, count, longest):
    shared = by_leaf[leaf]
    rng = np.random.default_rng(seed)
    prompts = [tokens(int(rng.integers(1, longest + 1)), seed + i) for i in range(count)]
    alone = [whole(shared, ids) for ids in prompts]
    done, last = [0] * count, {}
    while len(last) < count:
        parts, who = [], []
        for i in rng.permutation(count):
            ids, start = prompts[i], done[i]
            now = min(len(ids) - start, int(rng.choice([0, 1, 1, 17, 64, 200, 330])))
            if now:
                parts.append((ids[start : start + now], start, list(range(1 + 24 * i, 25 + 24 * i))))
                done[i] += now
                who.append(i)
        if not parts:
            continue
        out = forward(shared, parts)
        last.update({i: out[row] for row, i in enumerate(who) if done[i] == len(prompts[i])})
    for i in range(count):
        assert torch.equal(last[i], alone[i]), f"sequence {i} of {len(prompts[i])} tokens"


@pytest.mark.parametrize("length", [385, 513, 700, 1400])
def test_decoding_a_long_context_equals_the_prompt_in_one_piece(shared, length):
    ids, pages = tokens(length, 7), list(range(1, 1 + PAGES))
    want = forward(shared, [(ids, 0, pages)])[0]
    forward(shared, [(ids[:-1], 0, pages)])
    assert torch.equal(forward(shared, [(ids[-1:], length - 1, pages)])[0], want)


def test_more_leaves_than_a_word_has_bits(model):
    """And memory that grows with the first long sequence; pages of a sequence lie anywhere."""
    ex = executor(model, SPARSE, max_model_len=5120, threads=2)
    want_short, ids = whole(ex, tokens(500, 3)), tokens(4500, 4)
    pages = np.random.default_rng(0).permutation(np.arange(1, 161))[:71].tolist()
    want = forward(ex, [(ids, 0, pages)])[0]
    assert not torch.equal(want, whole(executor(model, None, max_model_len=5120, threads=2), ids))
    for start in range(0, 4499, 900):
        forward(ex, [(ids[start : min(start + 900, 4499)], start, pages[::-1])])
    assert torch.equal(forward(ex, [(ids[-1:], 4499, pages[::-1])])[0], want)
    assert torch.equal(whole(ex, tokens(500, 3)), want_short)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_do_not_change_a_bit(model, shared, threads):
    ids = tokens(900, 5)
    assert torch.equal(whole(executor(model, SPARSE, threads=threads), ids), whole(shared, ids))


def test_pages_are_reused_whatever_they_held(model, shared):
    long, short = tokens(1200, 6), tokens(600, 7)
    fresh = whole(executor(model, SPARSE), short)
    forward(shared, [(long, 0, list(range(1, 20)))])
    assert torch.equal(whole(shared, short, first_page=4), fresh)


@pytest.mark.parametrize(("sizes", "says"), [((64, 3, 2, 1), "at least 256 keys"), ((48, 9, 1, 1), "leaf is 48")])
def test_impossible_budgets_are_refused(sizes, says):
    with pytest.raises(ConfigError, match=says):
        KeyBudget(*sizes)


# In the engine


def test_greedy_answers_in_the_engine_do_not_depend_on_batch_chunks_or_cached_prefixes(
    make_engine, tiny_model, tokenizer, run
):
    hsa = HSAConfig(budget=256, sinks=64, local=0)  # of contexts up to 512

    def engine(**changes):
        loaded = LoadedModel(copy.deepcopy(tiny_model), tokenizer, Path(), "tiny", [])
        fields = {"dtype": "int4", "device": "cpu", "kv_cache_tokens": 4096, "max_num_seqs": 6, "seed": 0, **changes}
        return assemble(loaded, EngineConfig(**fields)).core

    greedy = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    beginning = tokens(300, 0, 320)
    work = {f"{i}": (beginning[: 60 * i] + tokens(150, i, 320), greedy) for i in range(6)}
    alone = engine(attention="hsa", hsa=hsa, max_num_seqs=1, prefix_caching=False)
    want = {name: run(alone, {name: job})[name].outputs[0].token_ids for name, job in work.items()}
    core = engine(attention="hsa", hsa=hsa, max_num_batched_tokens=140)
    for _ in range(2):  # the second time from cached prefixes
        assert {name: result.outputs[0].token_ids for name, result in run(core, work).items()} == want
    plain = run(engine(), work)
    assert {name: result.outputs[0].token_ids for name, result in plain.items()} != want
