"""The same engine on a CUDA device: nothing waits for it, and answers are those of the CPU."""

import json

import numpy as np
import pytest
import torch

from stille.engine.config import PAGE_SIZE
from stille.engine.grammar import Grammar
from stille.engine.sampling_params import SamplingParams
from stille.engine.sampling_state import SamplingState
from stille.model import StilleForCausalLM

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
ALL = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.2, "logprobs": 3}


@pytest.fixture(scope="module")
def make_cuda_engine(tiny_model, tokenizer):
    from pathlib import Path

    from stille.engine.build import assemble
    from stille.engine.config import EngineConfig
    from stille.model import LoadedModel

    def make(eos: tuple[int, ...] = (), **settings):
        model = StilleForCausalLM(tiny_model.config)
        model.load_state_dict(tiny_model.state_dict())
        loaded = LoadedModel(model.eval().cuda(), tokenizer, Path(), "tiny", list(eos))
        defaults = {"dtype": "fp32", "device": "cuda", "kv_cache_tokens": 4096, "max_num_seqs": 8, "seed": 0}
        return assemble(loaded, EngineConfig(**{**defaults, **settings}))

    return make


def work(params: SamplingParams) -> dict[str, tuple[list[int], SamplingParams]]:
    generator = torch.Generator().manual_seed(4)
    return {f"{i}": (torch.randint(0, 320, (20 + 30 * i,), generator=generator).tolist(), params) for i in range(8)}


@pytest.mark.parametrize("depth", [0, 1])
def test_greedy_answers_are_those_of_the_cpu(make_engine, make_cuda_engine, run, depth):
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    right = run(make_engine().core, work(params))
    engine = make_cuda_engine(async_depth=depth, max_num_seqs=4, max_num_batched_tokens=50, kv_cache_tokens=1024)
    results = run(engine.core, work(params))
    assert {k: r.outputs[0].token_ids for k, r in results.items()} == {
        k: r.outputs[0].token_ids for k, r in right.items()
    }


@pytest.mark.parametrize("depth", [0, 1])
def test_answers_that_follow_a_grammar_are_those_of_the_cpu(make_engine, make_cuda_engine, run, depth):
    """Beside others that follow none, so that only some rows of a step are restricted."""
    numbers = Grammar.json_schema({"type": "array", "items": {"type": "integer", "maximum": 999}, "maxItems": 9})
    jobs = {
        f"{i}": (ids, SamplingParams(max_tokens=60, temperature=t, seed=i, grammar=numbers if i % 3 else None))
        for i, ((ids, _), t) in enumerate(zip(work(SamplingParams()).values(), 4 * [0, 0.7], strict=True))
    }
    right = run(make_engine(eos=(1,)).core, jobs)
    results = run(make_cuda_engine(eos=(1,), async_depth=depth).core, jobs)
    for name, result in results.items():
        assert result.outputs[0].token_ids == right[name].outputs[0].token_ids
        if jobs[name][1].grammar is not None and result.outputs[0].finish_reason == "stop":
            assert all(isinstance(number, int) for number in json.loads(result.outputs[0].text))


@pytest.mark.parametrize("params", [{}, {"top_k": 20}, {"top_p": 0.8}, {"min_p": 0.1}, ALL])
def test_draws_are_those_of_the_cpu(params):
    logits = torch.randn(32, 5000, generator=torch.Generator().manual_seed(2)) * 3
    tokens = []
    for device in (torch.device("cpu"), torch.device("cuda")):
        state = SamplingState(32, 5000, device)
        for slot in range(32):
            state.assign(slot, SamplingParams(**params), slot * 77, [1, 2, 3], [4, 5])
        rows = state.rows_of(np.arange(32, dtype=np.int32), np.ones(32, bool))
        drawn = [state.sample(logits.to(device), rows)[0].tolist() for _ in range(20)]
        tokens.append(np.array(drawn))
    assert (tokens[0] == tokens[1]).mean() > 0.995  # sums round differently


@pytest.mark.parametrize("params", [{"temperature": 0}, {"temperature": 1.0}, ALL])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_launching_a_step_never_waits_for_the_device(make_cuda_engine, params, dtype):
    engine = make_cuda_engine(max_num_seqs=8, dtype=dtype)
    core = engine.core
    assert core.runner.executor.async_depth == 1
    generator = torch.Generator().manual_seed(4)

    def launch_all(count: int) -> None:
        for _ in range(count):
            plan = core.scheduler.schedule()
            if plan is not None:
                core._launch(plan)

    def add(name: str) -> None:
        ids = torch.randint(0, 320, (2 * PAGE_SIZE - 3,), generator=generator).tolist()
        core.add(name, ids, SamplingParams(**params, max_tokens=200, ignore_eos=True))

    for i in range(3):
        add(f"warm {i}")
    launch_all(8)
    core.abort_all()
    for i in range(3):
        add(str(i))
    try:
        torch.cuda.set_sync_debug_mode("error")
        launch_all(2)
        add("late")
        launch_all(8)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(core._launched) == 10
    core.abort_all()
    assert core.blocks.num_used == 0
