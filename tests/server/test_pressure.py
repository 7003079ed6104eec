"""Clients that leave, queues that fill, engines that go away: nothing hangs and nothing leaks."""

import asyncio
import concurrent.futures
import contextlib
import json

import httpx
import openai
import pytest

CHAT = "/v1/chat/completions"
LONG = 12_000  # tokens: far more than any of these tests waits for


def body(served, **fields):
    start = {"model": served.model, "messages": [{"role": "user", "content": "Go on for ever."}]}
    return {**start, "max_tokens": LONG, "ignore_eos": True, "temperature": 0, **fields}


@contextlib.contextmanager
def endless(served, **fields):
    """A streamed answer that has begun and will not end by itself."""
    with (
        httpx.Client(base_url=served.base, timeout=60) as client,
        client.stream("POST", CHAT, json=body(served, stream=True, **fields)) as response,
    ):
        assert response.status_code == 200
        lines = response.iter_lines()
        for line in lines:
            if '"content":"' in line and '"content":""' not in line:
                break
        yield lines


@pytest.mark.parametrize("n", [1, 3])
def test_leaving_a_stream_aborts_it(idle, n):
    before = idle.metrics()["stille_generation_tokens_total"]
    with endless(idle, n=n):
        assert idle.metrics()["stille_sequences_running"] == n
    after = idle.wait_idle()
    assert after["stille_generation_tokens_total"] - before < n * LONG / 2


def test_leaving_before_a_whole_answer_aborts_it(idle):
    with httpx.Client(base_url=idle.base) as client, pytest.raises(httpx.ReadTimeout):
        client.post(CHAT, json=body(idle), timeout=0.5)
    assert idle.wait_idle()["stille_requests_total"] > 0


def test_leaving_several_prompts_aborts_all_of_them(idle):
    request = {"model": idle.model, "prompt": ["one", "two", "three"], "max_tokens": LONG, "ignore_eos": True}
    with httpx.Client(base_url=idle.base) as client, pytest.raises(httpx.ReadTimeout):
        client.post("/v1/completions", json=request, timeout=0.5)
    idle.wait_idle()


async def test_cancelling_the_asynchronous_client_aborts(idle):
    async with openai.AsyncOpenAI(base_url=f"{idle.base}/v1", api_key="unused", max_retries=0) as client:
        stream = await client.chat.completions.create(
            model=idle.model, messages=body(idle)["messages"], max_tokens=LONG, stream=True,
            extra_body={"ignore_eos": True},
        )  # fmt: skip
        seen = 0
        async for _ in stream:
            seen += 1
            if seen == 5:
                break
        await stream.close()
    await asyncio.to_thread(idle.wait_idle)


async def test_many_clients_half_of_which_leave(idle):
    """More clients than places: the stayers get whole, correct answers."""
    async with httpx.AsyncClient(base_url=idle.base, timeout=60) as client:

        async def stay(index):
            response = await client.post(CHAT, json=body(idle, max_tokens=30))
            return response.json()["choices"][0]["message"]["content"]

        async def leave(index):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.3 + index * 0.05):
                    await client.post(CHAT, json=body(idle, stream=index % 2 == 0))
                raise AssertionError("an endless answer ended")

        results = await asyncio.gather(*(stay(i) for i in range(10)), *(leave(i) for i in range(10)))
    assert len(set(results[:10])) == 1
    assert results[0]
    await asyncio.to_thread(idle.wait_idle)


@pytest.fixture(scope="module")
def narrow(start_server, tiny_checkpoint):
    """One place in the batch, one in the queue."""
    with start_server(tiny_checkpoint, max_num_seqs=1, max_queue=1) as server:
        yield server


def test_a_full_queue_is_a_429_with_retry_after(narrow):
    with concurrent.futures.ThreadPoolExecutor() as pool, endless(narrow):
        waiting = pool.submit(httpx.post, narrow.base + CHAT, json=body(narrow, max_tokens=3), timeout=60)
        narrow.wait_for(lambda m: m["stille_queue_requests"] == 1)
        for stream in (False, True):
            refused = httpx.post(narrow.base + CHAT, json=body(narrow, stream=stream))
            assert refused.status_code == 429
            assert refused.json()["error"]["code"] == "queue_full"
            assert int(refused.headers["retry-after"]) >= 1
        with pytest.raises(openai.RateLimitError):
            openai.OpenAI(base_url=f"{narrow.base}/v1", api_key="x", max_retries=0).completions.create(
                model=narrow.model, prompt="x"
            )
        assert httpx.get(narrow.base + "/ready").status_code == 200
        assert not waiting.done()
        # Leaving the stream lets the one that waits go ahead.
    assert waiting.result().json()["usage"]["completion_tokens"] == 3
    narrow.wait_idle()


def test_several_prompts_are_queued_all_or_none(narrow):
    with endless(narrow):
        refused = httpx.post(narrow.base + "/v1/completions", json={"model": narrow.model, "prompt": ["a", "b", "c"]})
        assert refused.status_code == 429
        narrow.wait_for(lambda m: m["stille_queue_requests"] == 0)
    narrow.wait_idle()


def test_a_waiting_client_that_leaves_frees_its_place_in_the_queue(narrow):
    with endless(narrow):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(narrow.base + CHAT, json=body(narrow), timeout=0.4)
        narrow.wait_for(lambda m: m["stille_queue_requests"] == 0)
    narrow.wait_idle()


def test_an_engine_that_is_closed_ends_streams_with_an_error_event(start_server, tiny_checkpoint):
    with start_server(tiny_checkpoint, max_num_seqs=2) as server:
        with endless(server) as lines:
            asyncio.run(server.engine.close())
            rest = [line for line in lines if line]
        last = json.loads(rest[-1].removeprefix("data: "))
        assert last["error"]["code"] == "service_unavailable"
        assert "data: [DONE]" not in rest
        refused = httpx.post(server.base + CHAT, json=body(server))
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert httpx.get(server.base + "/ready").status_code == 503
