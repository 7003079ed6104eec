"""The CPU executor: equal to the model's modules on the same quantised numbers, and a row's logits never depend on
what else is computed with it."""

import copy
import threading
import time
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
from stille.engine.torch_executor import TorchExecutor
from stille.errors import ConfigError, UnsupportedError
from stille.kernels import grids
from stille.kernels.cpu import Target
from stille.model import LoadedModel, StilleConfig, StilleForCausalLM

PAGES = 24  # of a sequence in these tests, at most


def make_model(seed: int = 0, **changes) -> StilleForCausalLM:
    torch.manual_seed(seed)
    settings_ = {
        "vocab_size": 200, "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 2,
        "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 2048,
        "initializer_range": 0.15, "tie_word_embeddings": True,
    }  # fmt: skip
    model = StilleForCausalLM(StilleConfig(**{**settings_, **changes})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:  # norms and biases start at constants, which would hide a mistake
                parameter.add_(0.2 * torch.randn_like(parameter))
            assert parameter.isfinite().all(), name
    return model


def executor(model: StilleForCausalLM, dtype: str = "int4", target: Target | None = None, **changes) -> CpuExecutor:
    fields = {"kv_cache_tokens": 64 * 64, "max_model_len": 1536, "threads": 1, **changes}
    config = EngineConfig(dtype=dtype, device="cpu", **fields).resolve(model.config)
    return CpuExecutor(copy.deepcopy(model), config, target)


def make_step(parts: list[tuple[list[int], int, list[int]]], sample: list[bool] | None = None) -> StepInput:
    """parts: (tokens computed now, first position, pages) of each sequence."""
    lengths = np.array([len(ids) for ids, _, _ in parts], np.int32)
    width = max(len(pages) for _, _, pages in parts)
    table = np.zeros((len(parts), width), np.int32)
    for row, (_, _, pages) in enumerate(parts):
        table[row, : len(pages)] = pages
    return StepInput(
        slots=np.arange(len(parts), dtype=np.int32),
        starts=np.array([start for _, start, _ in parts], np.int32),
        lengths=lengths,
        token_ids=np.array([i for ids, _, _ in parts for i in ids], np.int64),
        page_table=table,
        sample=np.array(sample if sample is not None else [True] * len(parts)),
        num_decodes=int((np.cumprod(lengths == 1)).sum()),
    )


def forward(ex, parts, sample=None) -> torch.Tensor:
    step = make_step(parts, sample)
    return ex.forward(step, torch.from_numpy(step.token_ids)).clone()


def tokens(count: int, seed: int = 0, vocab: int = 200) -> list[int]:
    return np.random.default_rng(seed).integers(0, vocab, count).tolist()


def whole(ex, ids: list[int], first_page: int = 1) -> torch.Tensor:
    """Logits of the last token, the prompt in one step."""
    pages = list(range(first_page, first_page + -(-len(ids) // 64)))
    return forward(ex, [(ids, 0, pages)])[0]


def on_quantised_numbers(model: StilleForCausalLM, bits: int) -> StilleForCausalLM:
    """The modules with the executor's arithmetic: weights on their grids, inputs of linears on the activation grid."""

    def quantise_input(module, inputs):
        x = inputs[0].unflatten(-1, (-1, 32))
        scale = x.abs().amax(-1, keepdim=True) / 127
        return ((x / scale.clamp_min(1e-30)).round() * scale).flatten(-2)

    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                ends = isinstance(module, nn.Embedding) or name == "lm_head"
                grid = grids.dequantize(grids.quantize(module.weight, 8 if ends else bits))
                if name != "lm_head" or not model.config.tie_word_embeddings:
                    module.weight.copy_(grid)
            if isinstance(module, nn.Linear):
                module.register_forward_pre_hook(quantise_input)
    return model


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    return ((got - want).norm() / want.norm()).item()


SHAPES = {
    "smollm2": {},
    "untied": {"tie_word_embeddings": False},
    "many heads": {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 48},
    "qwen2 biases": {"attention_bias": True, "num_attention_heads": 4, "num_key_value_heads": 1},
    "all biases": {"attention_bias": True, "attention_output_bias": True},
    "qwen3 head norms": {"qk_norm": True, "head_dim": 64},
    "head width 80": {"head_dim": 80, "num_attention_heads": 2, "num_key_value_heads": 2},
    "head width 96": {"head_dim": 96, "num_attention_heads": 2, "num_key_value_heads": 1},
    "head width 128, group of 7": {"head_dim": 128, "num_attention_heads": 7, "num_key_value_heads": 1},
    "ragged vocabulary": {"vocab_size": 203, "tie_word_embeddings": False},
}


# The arithmetic is that of the modules


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_logits_equal_the_modules_on_the_same_quantised_numbers(shape, bits):
    model = make_model(**shape)
    ours = executor(model, f"int{bits}", Target(kv="f32"))
    config = EngineConfig(dtype="fp32", device="cpu", kv_cache_tokens=4096, max_model_len=1536).resolve(model.config)
    theirs = TorchExecutor(on_quantised_numbers(model, bits), config)
    # Nearly always the numbers are the same to float accuracy. Where an activation lies on the edge between two steps
    # of its grid it may fall to the other side and disturb what follows, the likelier the longer the prompt.
    short = [(tokens(3, i), 0, [1 + i]) for i in range(12)]
    got, want = forward(ours, short), forward(theirs, short)
    assert got.dtype == torch.float32
    assert np.median([relative_error(a, b) for a, b in zip(got, want, strict=True)]) < 1e-5
    long, other = tokens(90, 1), tokens(30, 2)
    for ex in (ours, theirs):
        forward(ex, [(other[:-1], 0, [5])])
    mixed = [(other[-1:], 29, [5]), (long, 0, [1, 2])]
    for a, b in zip(forward(ours, mixed), forward(theirs, mixed), strict=True):
        assert relative_error(a, b) < 0.05


def test_real_text_on_the_real_model(default_model):
    """Against fp32 of the same file, over 256 positions of real text: the distributions hardly move."""
    ids = default_model.tokenizer(Path(__file__).read_text()).input_ids[:256]
    with torch.inference_mode():
        want = default_model.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    nll = lambda logp: -logp[:-1].gather(1, torch.tensor(ids[1:])[:, None]).mean().item()  # noqa: E731
    for dtype, most in (("int4", 0.02), ("int8", 0.02)):
        ex = executor(default_model.model, dtype, threads=2)
        rows = []
        for first in range(0, 256, 32):  # every position as a row of its own: decode steps of 32 rows
            parts = [([ids[p]], p, [1, 2, 3, 4]) for p in range(first, first + 32)]
            rows.append(forward(ex, parts))
        got = torch.cat(rows).log_softmax(-1)
        divergence = (want.exp() * (want - got)).sum(-1).mean().item()
        assert divergence < most, f"{dtype}: mean KL {divergence}"
        assert abs(nll(got) / nll(want) - 1) < 0.01
        # and the prompt in one piece gives the last row bit for bit
        assert torch.equal(forward(ex, [(ids, 0, [7, 8, 9, 10])])[0], rows[-1][-1])


# A row's logits depend on its own tokens only, bit for bit


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def shared(model):
    """One executor for the tests below; it keeps no state but its pages."""
    return executor(model, threads=2)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 9), longest=st.sampled_from([5, 70, 330]))
def test_logits_are_the_same_alone_in_chunks_and_in_any_batch(shared, seed, count, longest):
    rng = np.random.default_rng(seed)
    prompts = [tokens(int(rng.integers(1, longest + 1)), seed + i) for i in range(count)]
    alone = [whole(shared, ids) for ids in prompts]
    done, last = [0] * count, {}
    while len(last) < count:
        parts, who = [], []
        for i in rng.permutation(count):
            ids, start = prompts[i], done[i]
            now = min(len(ids) - start, int(rng.choice([0, 1, 1, 2, 17, 64, 200, 330])))
            if now:
                parts.append((ids[start : start + now], start, list(range(1 + 6 * i, 7 + 6 * i))))
                done[i] += now
                who.append(i)
        if not parts:
            continue
        out = forward(shared, parts, [done[i] == len(prompts[i]) for i in who])
        last.update({i: out[row] for row, i in enumerate(who) if done[i] == len(prompts[i])})
    for i in range(count):
        assert torch.equal(last[i], alone[i]), f"sequence {i} of {len(prompts[i])} tokens"


@pytest.mark.parametrize("rows", range(1, 17))
def test_a_batch_of_decodes_equals_each_alone(shared, rows):
    parts = []
    for i in range(rows):
        ids = tokens(20 + 3 * i, i)
        forward(shared, [(ids[:-1], 0, [1 + 2 * i, 2 + 2 * i])])
        parts.append((ids[-1:], len(ids) - 1, [1 + 2 * i, 2 + 2 * i]))
    together = forward(shared, parts)
    for i, part in enumerate(parts):
        assert torch.equal(forward(shared, [part])[0], together[i])


@pytest.mark.parametrize("length", [256, 257, 700, 1400])
def test_a_long_context_split_among_threads_equals_the_prompt_in_one_piece(shared, length):
    ids, pages = tokens(length, 7), list(range(1, 1 + PAGES))
    want = forward(shared, [(ids, 0, pages)])[0]
    forward(shared, [(ids[:-1], 0, pages)])
    assert torch.equal(forward(shared, [(ids[-1:], length - 1, pages)])[0], want)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_threads_do_not_change_a_bit_even_when_there_are_more_than_cores(model, shared, threads):
    ex, ids = executor(model, threads=threads), tokens(300, 3)
    assert torch.equal(whole(ex, ids), whole(shared, ids))


def test_pages_are_reused_whatever_they_held(model, shared):
    long, short = tokens(500, 4), tokens(70, 5)
    fresh = whole(executor(model), short)
    forward(shared, [(long, 0, list(range(1, 9)))])
    assert torch.equal(whole(shared, short, first_page=3), fresh)


def test_pages_may_lie_anywhere_and_be_shared(shared):
    ids = tokens(200, 6)
    want = whole(shared, ids)
    forward(shared, [(ids[:128], 0, [40, 3])])
    parts = [(ids[128:], 128, [40, 3, 20, 11]), (ids[128:], 128, [40, 3, 9, 5])]
    assert all(torch.equal(row, want) for row in forward(shared, parts))


# Threads, life cycle, refusals


def test_works_from_other_threads_and_two_executors_take_turns(model, shared):
    other = executor(make_model(1), threads=2)
    ids = tokens(150, 8)
    want = {id(ex): whole(ex, ids) for ex in (shared, other)}
    wrong = []

    def work(ex):
        wrong.extend(1 for _ in range(20) if not torch.equal(whole(ex, ids), want[id(ex)]))

    helpers = [threading.Thread(target=work, args=(ex,)) for ex in (shared, other)]
    for helper in helpers:
        helper.start()
    for helper in helpers:
        helper.join(60)
        assert not helper.is_alive()
    assert not wrong


def test_an_idle_executor_uses_no_cpu(shared):
    whole(shared, tokens(100))
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.1


def test_rows_not_sampled_need_no_logits_and_warmup_leaves_pages_alone(shared):
    ids = tokens(100, 9)
    want = whole(shared, ids)
    forward(shared, [(ids[:70], 0, [1, 2])], [False])
    shared.warmup()
    assert torch.equal(forward(shared, [(ids[70:], 70, [1, 2])])[0], want)


def test_the_float_weights_are_given_up(model):
    config = EngineConfig(dtype="int4", device="cpu", kv_cache_tokens=640, max_model_len=512).resolve(model.config)
    mine = copy.deepcopy(model)
    CpuExecutor(mine, config)
    assert sum(p.numel() for p in mine.parameters()) == 0


@pytest.mark.parametrize(
    ("changes", "names"),
    [({"hidden_size": 80}, "hidden size 80"), ({"head_dim": 24}, "head width 24"), ({"intermediate_size": 100}, "100")],
)
def test_a_model_without_kernels_is_refused_and_left_whole(changes, names):
    model = make_model(**changes)
    config = EngineConfig(dtype="int4", device="cpu", max_model_len=512).resolve(model.config)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(UnsupportedError, match=names):
        CpuExecutor(model, config)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_float_dtypes_and_impossible_steps_are_refused(model, shared):
    config = EngineConfig(dtype="fp32", device="cpu").resolve(model.config)
    with pytest.raises(UnsupportedError, match="fp32"):
        CpuExecutor(copy.deepcopy(model), config)
    with pytest.raises(ConfigError, match="page"):
        forward(shared, [([1], 64, [1])])
    with pytest.raises(ConfigError, match="page"):
        forward(shared, [([1], 0, [9999])])
    with pytest.raises(ConfigError, match="position"):
        forward(shared, [([1], 5000, list(range(1, 90)))])
    with pytest.raises(ConfigError, match="token"):
        forward(shared, [([200], 0, [1])])


# In the engine


def test_greedy_answers_in_the_engine_do_not_depend_on_the_batch(make_engine, tiny_model, tokenizer, run):
    def engine(**changes):
        loaded = LoadedModel(copy.deepcopy(tiny_model), tokenizer, Path(), "tiny", [])
        fields = {"dtype": "int4", "device": "cpu", "kv_cache_tokens": 2048, "max_num_seqs": 8, "seed": 0, **changes}
        return assemble(loaded, EngineConfig(**fields)).core

    greedy = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    work = {f"{i}": (tokens(20 + 30 * i, i, 320), greedy) for i in range(6)}
    alone = engine(max_num_seqs=1, prefix_caching=False)
    want = {name: run(alone, {name: job})[name].outputs[0].token_ids for name, job in work.items()}
    together = run(engine(max_num_batched_tokens=19), work)
    assert {name: result.outputs[0].token_ids for name, result in together.items()} == want
