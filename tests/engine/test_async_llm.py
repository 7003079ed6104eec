"""The streaming API: many consumers, one engine thread."""

import asyncio
import gc
import random
import threading
import time

import pytest

from stille.engine.async_llm import AsyncLLM
from stille.engine.build import Engine
from stille.engine.core import EngineCore
from stille.engine.outputs import RequestOutput
from stille.engine.sampling_params import SamplingParams
from stille.engine.torch_executor import TorchExecutor
from stille.errors import (
    EngineClosedError,
    EngineFailedError,
    InvalidRequestError,
    ModelNotFoundError,
    PromptTooLongError,
    QueueFullError,
)

GREEDY = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
LONG = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)


async def collect(stream, n: int = 1) -> RequestOutput:
    result = RequestOutput.empty(stream.request_id, None, stream.prompt_ids, n)
    async for delta in stream:
        result.add(delta)
    return result


async def until(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        await asyncio.sleep(0.005)


def idle(llm: AsyncLLM) -> bool:
    stats = llm.stats()
    return (stats.queue_depth, stats.running, stats.waiting, stats.pages_used) == (0, 0, 0, 0)


@pytest.fixture
async def llm(make_engine):
    async with AsyncLLM.from_engine(make_engine(max_num_seqs=4, max_queue=20)) as llm:
        yield llm


@pytest.mark.parametrize("depth", [0, 1])
async def test_streams_run_side_by_side_and_give_what_each_gives_alone(make_engine, run, depth):
    prompts = [[i + 1] * (10 + 7 * i) for i in range(10)]
    alone = make_engine().core
    async with AsyncLLM.from_engine(make_engine(max_num_seqs=4, async_depth=depth)) as llm:
        results = await asyncio.gather(*(collect(llm.generate(ids, GREEDY)) for ids in prompts))
        assert idle(llm)
    for ids, result in zip(prompts, results, strict=True):
        assert result.outputs == run(alone, {"x": (ids, GREEDY)})["x"].outputs
        assert result.usage.prompt_tokens == len(ids)


async def test_tokens_come_one_by_one_and_usage_last(llm):
    deltas = [delta async for delta in llm.generate("The fox", SamplingParams(max_tokens=5, n=2, ignore_eos=True))]
    assert [len(d.token_ids) for d in deltas] == [1] * 10
    assert sorted(d.index for d in deltas) == [0] * 5 + [1] * 5
    assert [d.usage is not None for d in deltas] == [False] * 9 + [True]
    assert deltas[-1].usage.completion_tokens == 10


async def test_abort_by_id_gives_a_last_piece(llm):
    stream = llm.generate("The fox", LONG, "mine")
    first = await anext(stream)
    assert first.finish_reason is None
    llm.abort("mine")
    rest = [delta async for delta in stream]
    assert rest[-1].finish_reason == "abort"
    assert rest[-1].usage.completion_tokens < 400
    llm.abort("mine")
    llm.abort("never was")
    await until(lambda: idle(llm))


async def leave_by_closing(stream):
    await stream.aclose()
    assert [delta async for delta in stream] == []


async def leave_by_context(stream):
    async with stream:
        pass


async def leave_by_dropping(stream):
    pass


async def leave_by_cancelling(stream):
    async def wait():
        while True:
            await anext(stream)

    task = asyncio.create_task(wait())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("leave", [leave_by_closing, leave_by_context, leave_by_dropping, leave_by_cancelling])
async def test_a_consumer_that_leaves_takes_its_request_along(llm, leave):
    stream = llm.generate("The fox", LONG)
    await anext(stream)
    await leave(stream)
    del stream
    gc.collect()
    await until(lambda: idle(llm))
    assert llm.stats().finished["abort"] == 1


async def test_a_request_runs_while_nobody_reads_yet(llm):
    stream = llm.generate("The fox", GREEDY)
    await until(lambda: llm.stats().finished["length"] == 1)
    assert len((await collect(stream)).outputs[0].token_ids) == 16


async def test_what_cannot_be_served_is_refused_by_the_call_itself(llm):
    with pytest.raises(PromptTooLongError):
        llm.generate([1] * 600)
    with pytest.raises(InvalidRequestError):
        llm.generate("")
    with pytest.raises(InvalidRequestError):
        llm.generate({"not": "a prompt"})
    stream = llm.generate("The fox", LONG, "same")
    with pytest.raises(InvalidRequestError, match="same"):
        llm.generate("The fox", LONG, "same")
    await stream.aclose()


async def test_a_full_queue_refuses_and_recovers(make_engine):
    async with AsyncLLM.from_engine(make_engine(max_num_seqs=1, max_queue=3)) as llm:
        streams = [llm.generate("The fox", LONG)]
        await until(lambda: llm.stats().running == 1)
        streams += [llm.generate("The fox", LONG) for _ in range(3)]
        with pytest.raises(QueueFullError) as caught:
            llm.generate("The fox", LONG)
        assert caught.value.retry_after_s >= 1
        for stream in streams:
            await stream.aclose()
        await until(lambda: idle(llm))
        assert (await collect(llm.generate("The fox", GREEDY))).finished


async def test_consumers_in_other_threads_and_loops(llm):
    results = []

    def consumer(number: int) -> None:
        async def ask():
            return await collect(llm.generate([number] * 5, GREEDY))

        results.append(asyncio.run(ask()))

    threads = [threading.Thread(target=consumer, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    mine = await collect(llm.generate([0] * 5, GREEDY))
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert len(results) == 4
    assert mine.outputs in [result.outputs for result in results]


async def test_a_loop_that_is_gone_loses_its_requests_only(llm):
    def start_and_leave() -> None:
        async def start():
            stream = llm.generate("The fox", LONG)
            await anext(stream)
            return stream

        kept.append(asyncio.run(start()))

    kept = []
    await asyncio.to_thread(start_and_leave)
    assert (await collect(llm.generate("The fox", GREEDY))).finished
    await until(lambda: idle(llm))


@pytest.mark.parametrize("depth", [0, 1])
async def test_random_comings_and_goings_leave_nothing_behind(make_engine, depth):
    rng = random.Random(depth)
    engine = make_engine(max_num_seqs=4, max_queue=8, kv_cache_tokens=640, async_depth=depth)
    async with AsyncLLM.from_engine(engine) as llm:
        refused = 0

        async def client(number: int) -> None:
            nonlocal refused
            for _ in range(6):
                params = SamplingParams(max_tokens=rng.randint(1, 60), n=rng.randint(1, 2), ignore_eos=True)
                try:
                    stream = llm.generate([rng.randrange(3)] * rng.randint(1, 200), params)
                except QueueFullError:
                    refused += 1
                    await asyncio.sleep(0.01)
                    continue
                patience = rng.choice([1, 3, 1000])
                async with stream:
                    async for _ in stream:
                        patience -= 1
                        if patience == 0:
                            break

        await asyncio.gather(*(client(i) for i in range(16)))
        await until(lambda: idle(llm))
        stats = llm.stats()
        assert llm.health == "ready"
        assert stats.requests + refused == 16 * 6
        assert stats.queue_depth == 0
        assert llm._streams == {}
        engine.core.blocks.check()


# Life cycle


async def test_drain_finishes_what_runs_and_takes_nothing_new(llm):
    stream = llm.generate("The fox", GREEDY)
    drained = asyncio.create_task(llm.drain(timeout=20))
    await asyncio.sleep(0)
    assert llm.health == "draining"
    with pytest.raises(EngineClosedError, match="draining"):
        llm.generate("The fox")
    assert (await collect(stream)).outputs[0].finish_reason == "length"
    assert await drained


async def test_drain_gives_up_after_its_timeout_and_close_ends_the_rest(make_engine):
    llm = AsyncLLM.from_engine(make_engine())
    await llm.start()
    stream = llm.generate("The fox", LONG)
    assert await llm.drain(timeout=0.01) is False
    await llm.close()
    assert (await collect(stream)).outputs[0].finish_reason in ("abort", "length")
    assert llm.health == "closed"
    with pytest.raises(EngineClosedError):
        llm.generate("The fox")
    with pytest.raises(EngineClosedError):
        await llm.start()
    await llm.close()


async def test_before_start_nothing_is_served(make_engine):
    llm = AsyncLLM.from_engine(make_engine())
    with pytest.raises(EngineClosedError, match="new"):
        llm.generate("The fox")
    with pytest.raises(EngineClosedError):
        llm.stats()


async def test_start_reports_what_is_wrong(tmp_path):
    llm = AsyncLLM(model=str(tmp_path / "nothing-here"))
    with pytest.raises(ModelNotFoundError):
        await llm.start()
    assert llm.health == "failed"
    with pytest.raises(EngineFailedError):
        llm.generate("The fox")
    await llm.close()


class Breaking(TorchExecutor):
    """A device that fails in its fifth step."""

    steps = 0

    def forward(self, step, ids_N):
        self.steps += 1
        if self.steps == 5:
            raise RuntimeError("the device has gone")
        return super().forward(step, ids_N)


async def test_an_error_in_the_engines_loop_fails_every_request_and_is_shown(make_engine):
    engine = make_engine(max_num_seqs=2)
    executor = Breaking(engine.core.runner.executor.model, engine.core.config)
    core = EngineCore(executor, engine.tokenizer, engine.core.config)
    async with AsyncLLM.from_engine(Engine(core, engine.tokenizer, "breaking")) as llm:
        streams = [llm.generate("The fox", LONG) for _ in range(5)]
        results = await asyncio.gather(*map(collect, streams), return_exceptions=True)
        assert all(isinstance(result, EngineFailedError) for result in results)
        assert "the device has gone" in str(results[0])
        assert llm.health == "failed"
        assert isinstance(llm.failure, RuntimeError)
        with pytest.raises(EngineFailedError, match="the device has gone"):
            llm.generate("The fox")
        assert await llm.drain(1) is True
