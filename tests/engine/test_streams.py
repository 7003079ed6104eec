"""Pieces on their way to their readers: whole answers, slow readers, deliveries with a rest."""

import asyncio
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stille.engine.async_llm import AsyncLLM
from stille.engine.outputs import OutputDelta, RequestOutput, TokenLogprob, Usage
from stille.engine.sampling_params import SamplingParams
from stille.engine.streams import Outbox, RequestStream, joined
from stille.errors import EngineFailedError

SEVERAL = SamplingParams(max_tokens=20, n=3, seed=5, ignore_eos=True, logprobs=1)
LONG = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)


def added(pieces, n):
    result = RequestOutput.empty("r", None, [1], n)
    for piece in pieces:
        result.add(piece)
    return result


def said(pieces, n):
    """Of each answer what does not depend on rounding."""
    return [
        (each.text, each.token_ids, [entry.token_id for entry in each.logprobs or ()], each.finish_reason)
        for each in added(pieces, n).outputs
    ]


async def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        await asyncio.sleep(0.005)


@pytest.fixture
async def llm(make_engine):
    async with AsyncLLM.from_engine(make_engine(max_num_seqs=4, max_queue=20)) as llm:
        yield llm


@st.composite
def answers(draw):
    """Pieces of up to three answers, in turn as a request's come."""
    n = draw(st.integers(1, 3))
    left = {index: draw(st.integers(1, 5)) for index in range(n)}
    logprobs = draw(st.booleans())
    pieces = []
    while left:
        index = draw(st.sampled_from(sorted(left)))
        left[index] -= 1
        tokens = draw(st.lists(st.integers(0, 9), max_size=2))
        details = [TokenLogprob(token, -1.0, "t", b"t") for token in tokens] if logprobs else None
        piece = OutputDelta("r", index, draw(st.text(max_size=3)), tokens, details or None)
        if not left[index]:
            del left[index]
            piece.finish_reason, piece.stop_reason = "stop", draw(st.sampled_from([None, "x", 3]))
            piece.usage = None if left else Usage(1, 2, 0)
        pieces.append(piece)
    return n, pieces


@given(answers(), st.data())
@settings(max_examples=60)
def test_joined_pieces_add_up_to_the_same_answers(answers, data):
    n, pieces = answers
    whole, before = added(pieces, n), [repr(piece) for piece in pieces]
    cut = data.draw(st.integers(0, len(pieces)))
    parts = [joined(pieces[:cut]), joined(pieces[cut:])]
    assert added([piece for part in parts for piece in part], n) == whole
    assert all(len({piece.index for piece in part}) == len(part) for part in parts)
    assert [repr(piece) for piece in pieces] == before
    if cut < len(pieces):
        assert parts[1][-1].usage is not None  # what ends the stream is still its last piece


@pytest.mark.parametrize("depth", [0, 1])
async def test_a_whole_answer_is_what_its_pieces_are(make_engine, depth):
    async with AsyncLLM.from_engine(make_engine(async_depth=depth)) as llm:
        one_by_one = [piece async for piece in llm.generate([7] * 70, SEVERAL)]
        stream = llm.generate([7] * 70, SEVERAL, whole=True)
        pieces = [piece async for piece in stream]
        assert len(one_by_one) == 3 * 20
        assert sorted(piece.index for piece in pieces) == [0, 1, 2]
        assert said(pieces, 3) == said(one_by_one, 3)
        assert pieces[-1].usage == Usage(70, 60, cached_tokens=64)
        assert stream.cached_tokens == 64


@pytest.mark.parametrize("whole", [False, True])
async def test_a_slow_reader_takes_all_that_has_come_at_once(llm, whole):
    one_by_one = [piece async for piece in llm.generate("The fox", SEVERAL)]
    stream = llm.generate("The fox", SEVERAL, whole=whole)
    await until(lambda: llm.stats().finished["length"] == 6)
    await asyncio.sleep(0.05)
    pieces = await stream.take()
    assert len(pieces) == 3
    assert said(pieces, 3) == said(one_by_one, 3)
    assert await stream.take() == []


@pytest.mark.parametrize("leave", ["abort", "close", "drop", "loop"])
async def test_a_whole_answer_can_be_left(llm, leave):
    if leave == "loop":

        async def start():
            stream = llm.generate("The fox", LONG, whole=True)
            await until(lambda: llm.stats().generation_tokens > 0)
            return stream

        kept = await asyncio.to_thread(asyncio.run, start())
    else:
        kept = llm.generate("The fox", LONG, "mine", whole=True)
        await until(lambda: llm.stats().generation_tokens > 0)
        if leave == "abort":
            llm.abort("mine")
            (last,) = await kept.take()
            assert last.finish_reason == "abort"
            assert 0 < len(last.token_ids) == last.usage.completion_tokens < 400
        elif leave == "close":
            await kept.aclose()
            assert await kept.take() == []
        kept = None
    await until(lambda: llm.stats().finished["abort"] == 1)
    assert llm.stats().pages_used == 0
    del kept


async def test_readers_that_take_long_get_more_at_once_and_everything_in_order():
    """What comes while they work or rest afterwards makes one delivery."""
    loop = asyncio.get_running_loop()
    box, taken, deliveries = Outbox(loop), {}, 0

    async def read(stream):
        nonlocal deliveries
        while pieces := await stream.take():
            deliveries += 1
            taken.setdefault(stream.request_id, []).extend(token for piece in pieces for token in piece.token_ids)
            time.sleep(0.002)  # of the processor

    streams = [RequestStream(f"r{i}", [1], lambda _: None) for i in range(4)]

    def engine():
        for step in range(200):
            usage = Usage(1, 200, 0) if step == 199 else None
            assert box.send([(s, OutputDelta(s.request_id, 0, "", [step], usage=usage)) for s in streams])
            time.sleep(0.0005)

    await asyncio.gather(asyncio.to_thread(engine), *map(read, streams))
    assert taken == {f"r{i}": list(range(200)) for i in range(4)}
    assert deliveries < 4 * 100


async def test_an_error_comes_after_the_pieces_before_it():
    box = Outbox(asyncio.get_running_loop())
    stream = RequestStream("r", [1], lambda _: None)
    for number in range(5):
        box.send([(stream, OutputDelta("r", 0, "", [number]))])
    box.send([(stream, EngineFailedError("gone"))])
    assert [(await anext(stream)).token_ids for _ in range(5)] == [[0], [1], [2], [3], [4]]
    with pytest.raises(EngineFailedError, match="gone"):
        await anext(stream)


def test_a_closed_loop_is_told_to_the_sender():
    async def make():
        return Outbox(asyncio.get_running_loop()), RequestStream("r", [1], lambda _: None)

    box, stream = asyncio.run(make())
    assert box.send([(stream, OutputDelta("r", 0, "", [1]))]) is False
