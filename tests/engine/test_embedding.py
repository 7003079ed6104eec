"""Embeddings are the mean of the last hidden states, on every executor, and generation does not notice them."""

import asyncio
import copy

import numpy as np
import pytest
import torch

from stille.engine.async_llm import AsyncLLM
from stille.engine.build import Engine
from stille.engine.config import EngineConfig
from stille.engine.core import EngineCore
from stille.engine.cpu_executor import CpuExecutor
from stille.engine.embedding import TURN_AT_LEAST, Embedder
from stille.engine.sampling_params import SamplingParams
from stille.engine.torch_executor import TorchExecutor
from stille.errors import (
    EngineClosedError,
    EngineFailedError,
    InvalidRequestError,
    PromptTooLongError,
    QueueFullError,
)
from stille.kernels import grids
from stille.model import StilleConfig, StilleForCausalLM

EXPERTS = {"num_experts": 8, "expert_size": 32, "shared_size": 32, "router_size": 32, "target_k": 3.0, "max_k": 8}
LONG = SamplingParams(max_tokens=300, temperature=0, ignore_eos=True)


def tokens(count, seed=0, vocab=300):
    return np.random.default_rng(seed).integers(3, vocab, count).tolist()


INPUTS = [tokens(n, n) for n in (1, 2, 63, 64, 65, 130, 300, 5)]


@torch.inference_mode()
def mean_pooled(model, ids):
    """As one does it with transformers."""
    out = model(input_ids=torch.tensor([ids], device=model.device), output_hidden_states=True)
    mean_C = out.hidden_states[-1][0].float().mean(dim=0)
    return (mean_C / mean_C.norm()).cpu().numpy()


def embed(core, inputs):
    """Of inputs that are one request."""
    embedder = Embedder(core)
    job = embedder.add(inputs)
    while embedder.has_work:
        embedder.turn()
        core.blocks.check()
        assert core.blocks.num_used == 0
    return job.future.result(timeout=0)


@pytest.mark.parametrize("batched", [32, 100, 2048])
def test_they_are_the_mean_of_the_hidden_states_that_transformers_gives(make_engine, tiny_model, batched):
    core = make_engine(max_num_batched_tokens=batched).core
    got = embed(core, INPUTS)
    assert got.shape == (len(INPUTS), 64)
    assert got.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)
    for vector, ids in zip(got, INPUTS, strict=True):
        np.testing.assert_allclose(vector, mean_pooled(tiny_model, ids), atol=2e-6)


def test_the_real_model(default_model):
    model = default_model.model
    config = EngineConfig(dtype="fp32", device="cpu", kv_cache_tokens=4096).resolve(model.config)
    core = EngineCore(TorchExecutor(model, config), default_model.tokenizer, config, [])
    texts = ["The cat sleeps on the sofa.", "A kitten naps on the couch.", "Interest rates rose by two per cent."]
    inputs = [default_model.tokenizer(text).input_ids for text in texts]
    got = embed(core, inputs)
    for vector, ids in zip(got, inputs, strict=True):
        np.testing.assert_allclose(vector, mean_pooled(model, ids), atol=1e-5)
    alike = got @ got.T
    assert alike[0, 1] > alike[0, 2]


def small_model(**changes):
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024, "initializer_range": 0.15,
    }  # fmt: skip
    model = StilleForCausalLM(StilleConfig(**{**sizes, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def on_grids(model, bits):
    """The model with its weights as they come back from quantisation."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Embedding) and name != "lm_head":
                own = 8 if isinstance(module, torch.nn.Embedding) else bits
                module.weight.copy_(grids.dequantize(grids.quantize(module.weight, own)))
    return model


@pytest.mark.parametrize("bits", [4, 8])
def test_the_packed_weights(bits, tokenizer):
    model = small_model()
    config = EngineConfig(dtype=f"int{bits}", device="cpu", kv_cache_tokens=4096, threads=1).resolve(model.config)
    core = EngineCore(CpuExecutor(copy.deepcopy(model), config), tokenizer, config, [])
    expected = on_grids(model, bits)
    inputs = [*INPUTS, tokens(700, 9)]  # of more than one pass
    together = embed(core, inputs)
    for vector, ids in zip(together, inputs, strict=True):
        assert vector @ mean_pooled(expected, ids) > 0.999  # activations have 8 bits
        np.testing.assert_allclose(embed(core, [ids])[0], vector, atol=1e-6)


def test_a_model_with_experts(tokenizer):
    model = small_model(ffn_kinds=["dense", "experts"], experts=EXPERTS)
    fp32 = EngineConfig(dtype="fp32", device="cpu", kv_cache_tokens=4096).resolve(model.config)
    int8 = EngineConfig(dtype="int8", device="cpu", kv_cache_tokens=4096, threads=1).resolve(model.config)
    exact = embed(EngineCore(TorchExecutor(model, fp32), tokenizer, fp32, []), INPUTS)
    packed = embed(EngineCore(CpuExecutor(copy.deepcopy(model), int8), tokenizer, int8, []), INPUTS)
    for vector, ids in zip(exact, INPUTS, strict=True):
        np.testing.assert_allclose(vector, mean_pooled(model, ids), atol=2e-6)
    assert (exact * packed).sum(axis=1).min() > 0.98


@pytest.mark.parametrize(
    "changes", [{}, {"ffn_kinds": ["dense", "experts"], "experts": EXPERTS}], ids=["fused", "modules"]
)
def test_the_cuda_executor(changes, tokenizer):
    pytest.importorskip("triton")
    from stille.engine.cuda_executor import CudaExecutor

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = small_model(**changes).to(device)
    inputs = INPUTS[:5]
    expected = [mean_pooled(model, ids) for ids in inputs]
    config = EngineConfig(dtype="fp32", device=device, kv_cache_tokens=1600, max_num_seqs=2, max_num_batched_tokens=128)
    config = config.resolve(model.config)
    core = EngineCore(CudaExecutor(model, config), tokenizer, config, [])
    np.testing.assert_allclose(embed(core, inputs), expected, atol=1e-5)


async def test_generation_goes_on_between_them_and_stays_the_same(make_engine):
    prompt = tokens(40)
    alone = make_engine(max_num_batched_tokens=64)
    async with AsyncLLM.from_engine(alone) as llm:
        expected = [token async for delta in llm.generate(prompt, LONG) for token in delta.token_ids]
    engine = make_engine(max_num_batched_tokens=64)
    async with AsyncLLM.from_engine(engine) as llm:
        stream = llm.generate(prompt, LONG)
        first = await anext(stream)
        inputs = [tokens(60, seed) for seed in range(40)]
        job = asyncio.ensure_future(llm.embed(inputs))
        seen, got = 0, list(first.token_ids)
        async for delta in stream:
            got += delta.token_ids
            seen += not job.done()
        vectors = await job
        assert got == expected
        assert seen > 20  # tokens came while embeddings were computed
        np.testing.assert_allclose(vectors, embed(alone.core, inputs), atol=2e-6)
        assert engine.core.blocks.num_used == 0


async def test_a_small_request_does_not_wait_for_a_large_one(make_engine):
    async with AsyncLLM.from_engine(make_engine(max_num_batched_tokens=64)) as llm:
        large = asyncio.ensure_future(llm.embed([tokens(60, seed) for seed in range(200)]))
        await asyncio.sleep(0.01)
        small = await llm.embed([tokens(5)])
        assert not large.done()
        assert small.shape == (1, 64)
        await large


async def test_embeddings_wait_for_pages_that_sequences_hold(make_engine):
    """A cache that one sequence fills: the input is computed once it has ended."""
    engine = make_engine(kv_cache_tokens=512, max_model_len=512, max_num_seqs=1)
    async with AsyncLLM.from_engine(engine) as llm:
        stream = llm.generate(tokens(100), SamplingParams(max_tokens=400, temperature=0, ignore_eos=True))
        await anext(stream)
        ids = tokens(460, 1)
        job = asyncio.ensure_future(llm.embed([ids]))
        count = 0
        async for _ in stream:
            count += 1
            assert not job.done()
        assert count > 300
        assert (await job).shape == (1, 64)


async def test_a_cancelled_call_computes_no_more(make_engine):
    engine = make_engine(max_num_batched_tokens=64)
    async with AsyncLLM.from_engine(engine) as llm:
        job = asyncio.ensure_future(llm.embed([tokens(60, seed) for seed in range(500)]))
        await asyncio.sleep(0.01)
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        assert (await llm.embed([tokens(5)])).shape == (1, 64)
        assert engine.core.blocks.num_used == 0


async def test_what_cannot_be_embedded(make_engine):
    async with AsyncLLM.from_engine(make_engine(max_queue=2)) as llm:
        assert llm.embedding_size == 64
        assert llm.embedding_limit == 512 < TURN_AT_LEAST
        for wrong, match in (([], "no input"), ([[]], "empty"), ([[320]], "vocabulary"), ([[-1]], "vocabulary")):
            with pytest.raises(InvalidRequestError, match=match):
                await llm.embed(wrong)
        with pytest.raises(PromptTooLongError, match="513 tokens"):
            await llm.embed([[5] * 513])
        assert (await llm.embed([[5] * 512])).shape == (1, 64)
        jobs = [asyncio.ensure_future(llm.embed([tokens(500, seed)] * 20)) for seed in range(8)]
        results = await asyncio.gather(*jobs, return_exceptions=True)
        assert any(isinstance(result, QueueFullError) for result in results)
        assert any(isinstance(result, np.ndarray) for result in results)


async def test_closing_ends_what_waits(make_engine):
    llm = AsyncLLM.from_engine(make_engine(max_num_batched_tokens=64))
    with pytest.raises(EngineClosedError):
        await llm.embed([[5]])
    await llm.start()
    job = asyncio.ensure_future(llm.embed([tokens(60, seed) for seed in range(500)]))
    await asyncio.sleep(0.01)
    await llm.close()
    with pytest.raises(EngineClosedError):
        await job


class Breaking(TorchExecutor):
    def embed(self, step, ids_N):
        raise RuntimeError("the device has gone")


async def test_a_device_that_fails(make_engine):
    engine = make_engine()
    executor = Breaking(engine.core.runner.executor.model, engine.core.config)
    core = EngineCore(executor, engine.tokenizer, engine.core.config)
    async with AsyncLLM.from_engine(Engine(core, engine.tokenizer, "breaking")) as llm:
        results = await asyncio.gather(*(llm.embed([[5]]) for _ in range(3)), return_exceptions=True)
        assert all(isinstance(result, EngineFailedError) for result in results)
        assert llm.health == "failed"
