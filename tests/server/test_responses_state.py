"""Responses that are kept: chains, the background, deletion, and what is left after a restart."""

import asyncio
import time
from pathlib import Path

import httpx
import openai
import pytest

from stille.errors import ConfigError
from stille.server import ServerSettings
from stille.server.response_store import FILE_NAME, ResponseStore

ENDLESS = {"extra_body": {"ignore_eos": True}, "max_output_tokens": 16_000}


def connect(server):
    return openai.OpenAI(base_url=f"{server.base}/v1", api_key="unused", max_retries=0, timeout=60)


@pytest.fixture
def client(idle):
    with connect(idle) as client:
        yield client


@pytest.fixture
def create(client, idle):
    def create(input="What is a harbour?", **arguments):
        arguments = {"temperature": 0, "max_output_tokens": 8, **arguments}
        return client.responses.create(model=idle.model, input=input, **arguments)

    return create


def until(client, response, *statuses):
    deadline = time.monotonic() + 30
    while response.status not in statuses:
        assert time.monotonic() < deadline, response.status
        time.sleep(0.05)
        response = client.responses.retrieve(response.id)
    return response


def test_what_was_answered_can_be_had_again(create, client):
    response = create(metadata={"topic": "sea"})
    assert client.responses.retrieve(response.id) == response


def test_a_chain_is_the_conversation(create):
    first = create("Hello", instructions="Be brief.")
    second = create("Where?", previous_response_id=first.id)
    third = create("When?", previous_response_id=second.id, instructions="Be long.")
    other = create("Who?", previous_response_id=first.id)
    said = [{"role": "user", "content": "Hello"}, *first.output, {"role": "user", "content": "Where?"}]
    for chained, items in (
        (second, said),
        (
            third,
            [{"role": "system", "content": "Be long."}, *said, *second.output, {"role": "user", "content": "When?"}],
        ),
        (other, [*said[:-1], {"role": "user", "content": "Who?"}]),
    ):
        whole = create(items)
        assert chained.output_text == whole.output_text
        assert chained.usage.input_tokens == whole.usage.input_tokens
    assert third.previous_response_id == second.id


def test_the_prefix_of_a_chain_is_in_the_cache(create):
    first = create("A long beginning, " * 20)
    assert create("And?", previous_response_id=first.id).usage.input_tokens_details.cached_tokens > 50


def test_input_items_are_paged(create, client, idle):
    texts = [f"number {i}" for i in range(5)]
    items = [
        {"role": "user", "content": texts[0]},
        {"role": "assistant", "content": texts[1], "id": "msg_mine"},
        *({"role": "user", "content": [{"type": "input_text", "text": text}]} for text in texts[2:]),
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "x"},
    ]
    response = create(items)
    page = client.responses.input_items.list(response.id, order="asc", limit=3)
    assert (len(page.data), page.has_more) == (3, True)
    assert page.data[1].id == "msg_mine"
    assert [item.content[0].type for item in page.data] == ["input_text", "output_text", "input_text"]
    ascending = list(client.responses.input_items.list(response.id, order="asc", limit=3))
    assert [item.content[0].text for item in ascending[:5]] == texts
    assert [item.type for item in ascending[5:]] == ["function_call", "function_call_output"]
    assert len({item.id for item in ascending}) == 7
    assert list(client.responses.input_items.list(response.id, limit=2)) == ascending[::-1]
    raw = httpx.get(f"{idle.base}/v1/responses/{response.id}/input_items").json()
    assert (raw["object"], raw["first_id"], raw["last_id"]) == ("list", ascending[-1].id, ascending[0].id)
    # Only what this request brought.
    (own,) = client.responses.input_items.list(create("And?", previous_response_id=response.id).id)
    assert own.content[0].text == "And?"


@pytest.mark.parametrize(("query", "param"), [("limit=0", "limit"), ("order=up", "order"), ("after=x", "after")])
def test_pages_that_there_are_not(create, idle, query, param):
    refused = httpx.get(f"{idle.base}/v1/responses/{create().id}/input_items?{query}")
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == param


def test_what_is_not_to_be_stored_is_not(create, client, idle):
    for stream in (False, True):
        response = create(store=False, stream=stream)
        response = list(response)[-1].response if stream else response
        assert response.store is False
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(response.id)
        with pytest.raises(openai.BadRequestError) as refused:
            create("And?", previous_response_id=response.id)
        assert (refused.value.code, refused.value.param) == ("previous_response_not_found", "previous_response_id")


def test_deleted_is_gone_and_ends_its_chain(create, client, idle):
    first = create("Hello")
    second = create("Where?", previous_response_id=first.id)
    deleted = httpx.delete(f"{idle.base}/v1/responses/{first.id}")
    assert deleted.json() == {"id": first.id, "object": "response", "deleted": True}
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.delete(first.id)
    assert client.responses.retrieve(second.id) == second
    with pytest.raises(openai.BadRequestError, match=first.id):
        create("When?", previous_response_id=second.id)


@pytest.mark.parametrize(
    ("method", "path"), [("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")]
)
def test_unknown_ids_are_not_found(idle, method, path):
    answer = httpx.request(method, f"{idle.base}/v1/responses/resp_nothing{path}")
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "response_not_found")
    assert "resp_nothing" in error["message"]


def test_paths_that_are_no_ids(idle):
    assert httpx.post(f"{idle.base}/v1/responses/compact", json={"model": "x"}).status_code == 404
    for query, param in (("stream=true", "stream"), ("stream=false&starting_after=3", "starting_after")):
        refused = httpx.get(f"{idle.base}/v1/responses/resp_x?{query}")
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
    assert httpx.get(f"{idle.base}/v1/responses/resp_x?stream=false").status_code == 404
    wrong = httpx.put(f"{idle.base}/v1/responses/resp_x")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "DELETE, GET")


def test_in_the_background(create, client):
    response = create(background=True)
    assert (response.status, response.output, response.background) == ("queued", [], True)
    done = until(client, response, "completed", "incomplete")
    assert done.output_text == create().output_text != ""
    assert done.usage.output_tokens > 0
    assert client.responses.cancel(done.id) == done, "what has ended stays as it is"
    assert create("And?", previous_response_id=done.id).output_text


def test_a_background_response_is_cancelled(create, client, idle):
    response = create(background=True, **ENDLESS)
    running = until(client, response, "in_progress")
    idle.wait_for(lambda m: m["stille_sequences_running"] > 0)
    with pytest.raises(openai.BadRequestError, match="not complete"):
        create("And?", previous_response_id=response.id)
    cancelled = client.responses.cancel(running.id)
    assert cancelled.status == "cancelled"
    idle.wait_idle()
    assert client.responses.retrieve(response.id) == cancelled
    assert client.responses.cancel(response.id) == cancelled
    with pytest.raises(openai.BadRequestError, match="cancelled"):
        create("And?", previous_response_id=response.id)
    assert not idle.state.responses.live
    assert not idle.state.responses.tasks


def test_cancelled_before_it_began(create, client, idle):
    for _ in range(5):
        response = create(background=True, **ENDLESS)
        assert client.responses.cancel(response.id).status == "cancelled"
    idle.wait_idle()


def test_deleting_ends_the_background_too(create, client, idle):
    response = create(background=True, **ENDLESS)
    client.responses.delete(response.id)
    idle.wait_idle()
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)


def test_only_the_background_can_be_cancelled(create, client):
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(create().id)


def test_a_followed_background_goes_on_when_its_client_leaves(create, client, idle):
    arguments = {"background": True, "stream": True, "max_output_tokens": 200, "extra_body": {"ignore_eos": True}}
    kinds = [event.type for event in create(**{**arguments, "max_output_tokens": 4})]
    assert kinds[:3] == ["response.created", "response.queued", "response.in_progress"]
    assert kinds[-1] == "response.incomplete"
    with create(**arguments) as stream:
        response = next(iter(stream)).response
    done = until(client, response, "incomplete")
    assert done.usage.output_tokens == 200


def test_a_stream_can_be_looked_at_while_it_runs(create, client, idle):
    with create(stream=True, **ENDLESS) as stream:
        events = iter(stream)
        response = next(events).response
        while next(events).type != "response.output_text.delta":
            pass
        seen = client.responses.retrieve(response.id)
        assert seen.status == "in_progress"
        assert seen.output[0].status == "in_progress"
        (item,) = client.responses.input_items.list(response.id)
        assert item.content[0].text == "What is a harbour?"
    idle.wait_idle()


def test_a_restart_keeps_what_was_stored(start_server, tiny_checkpoint, tmp_path):
    settings = ServerSettings(served_model_names=("tiny",), data_dir=tmp_path / "data")
    with start_server(tiny_checkpoint, settings, kv_cache_tokens=32768) as server, connect(server) as client:
        ask = {"model": server.model, "temperature": 0, "max_output_tokens": 8}
        first = client.responses.create(input="Hello", **ask)
        second = client.responses.create(input="Where?", previous_response_id=first.id, **ask)
        third = client.responses.create(input="When?", previous_response_id=second.id, **ask)
        endless = client.responses.create(input="x", model=server.model, background=True, **ENDLESS)
        until(client, endless, "in_progress")
    assert (tmp_path / "data" / FILE_NAME).exists()
    with start_server(tiny_checkpoint, settings, kv_cache_tokens=32768) as server, connect(server) as client:
        assert client.responses.retrieve(second.id) == second
        again = client.responses.create(input="When?", previous_response_id=second.id, **ask)
        assert again.output_text == third.output_text
        assert again.usage.input_tokens == third.usage.input_tokens
        ended = client.responses.retrieve(endless.id)
        assert (ended.status, ended.error.code) == ("failed", "server_error")


def test_a_folder_that_cannot_be_used_is_refused_at_once(tiny_checkpoint, tmp_path, start_server):
    (tmp_path / "file").write_text("x")
    (tmp_path / FILE_NAME).write_bytes(b"not a database, " * 100)
    for folder in (tmp_path / "file", tmp_path):
        with pytest.raises(ConfigError, match="data directory"):
            ResponseStore(folder, max_count=5, max_bytes=10_000, max_age_s=60)


def kept(name, previous=None, status="completed", text="x"):
    return {"id": name, "previous_response_id": previous, "status": status, "output": [text]}


async def names(store, *candidates):
    return {name for name in candidates if await store.get(name)}


@pytest.fixture(params=["memory", "file"])
def folder(request, tmp_path) -> Path | None:
    return tmp_path if request.param == "file" else None


async def test_the_oldest_make_room_by_number(folder):
    store = ResponseStore(folder, max_count=3, max_bytes=10_000, max_age_s=60)
    for name in "abcde":
        await store.put(kept(name), [])
    assert await names(store, *"abcde") == set("cde")
    await store.put(kept("c", text="newer"), [])
    await store.put(kept("f"), [])
    assert await names(store, *"cdef") == set("cef")
    assert (await store.get("c")).response["output"] == ["newer"]
    store.close()


async def test_the_oldest_make_room_by_size(folder):
    store = ResponseStore(folder, max_count=100, max_bytes=10_000, max_age_s=60)
    for name in "abcd":
        await store.put(kept(name, text="x" * 4000), [])
    assert await names(store, *"abcd") == set("cd")
    await store.put(kept("e", text="x" * 20_000), [])
    assert await names(store, *"cde") == {"e"}
    store.close()


async def test_a_conversation_that_goes_on_stays_whole(folder):
    store = ResponseStore(folder, max_count=4, max_bytes=10_000, max_age_s=60)
    await store.put(kept("a"), [{"id": "1"}])
    await store.put(kept("b", "a"), [])
    for other in ("v", "w", "x", "y"):
        chain, missing = await store.chain("b")
        assert ([part.response["id"] for part in chain], missing) == (["a", "b"], None)
        assert chain[0].items == [{"id": "1"}]
        await store.put(kept(other), [])
    assert await names(store, *"abvwxy") == set("abxy")
    await store.delete("a")
    assert (await store.chain("b"))[1] == "a"
    assert await store.chain("nothing") == ([], "nothing")
    store.close()


async def test_what_nobody_uses_is_gone_in_time(folder):
    store = ResponseStore(folder, max_count=4, max_bytes=10_000, max_age_s=0.3)
    await store.put(kept("a"), [])
    await store.put(kept("b", "a"), [])
    assert await names(store, "a", "b") == {"a", "b"}
    await asyncio.sleep(0.4)
    assert await names(store, "a", "b") == set()
    assert await store.chain("b") == ([], "b")
    store.close()


async def test_many_at_once(folder):
    store = ResponseStore(folder, max_count=20, max_bytes=100_000, max_age_s=60)
    await asyncio.gather(*(store.put(kept(f"r{i}"), [{"id": str(i)}]) for i in range(60)))
    found = [i for i in range(60) if await store.get(f"r{i}")]
    assert len(found) == 20
    for i in found:
        assert (await store.get(f"r{i}")).items == [{"id": str(i)}]
    store.close()
