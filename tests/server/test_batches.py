"""Batches through the official client: what they answer, what they refuse, how they end, and who goes first."""

import json
import random
import socket
import sqlite3
import threading
import time
from contextlib import contextmanager

import httpx
import openai
import pytest

from stille.errors import ConfigError
from stille.server import ServerSettings
from stille.server.batches import validation
from stille.server.batches.database import FILE_NAME
from tests.processes import warm

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
FINAL = {"completed", "failed", "expired", "cancelled"}
LONG = 12_000  # tokens: many seconds, even of the tiny model


def chat_line(custom_id, **body):
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "seed": 1, **body}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}


def text_line(custom_id, **body):
    body = {"model": "tiny", "prompt": "the quick", "max_tokens": 4, "seed": 1, "ignore_eos": True, **body}
    return {"custom_id": custom_id, "method": "POST", "url": TEXT, "body": body}


def jsonl(lines):
    return "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines).encode()


class Batches:
    """The official client, and what the tests do with it."""

    def __init__(self, base, api_key="unused"):
        self.base = base
        self.api = openai.OpenAI(base_url=f"{base}/v1", api_key=api_key, max_retries=0, timeout=60)

    def create(self, lines, endpoint=CHAT, **more):
        data = lines if isinstance(lines, bytes) else jsonl(lines)
        file = self.api.files.create(file=("requests.jsonl", data), purpose="batch")
        return self.api.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **more)

    def until(self, batch, condition=lambda batch: batch.status in FINAL, seconds=150):
        deadline = time.monotonic() + seconds
        while not condition(batch := self.api.batches.retrieve(batch.id)):
            assert time.monotonic() < deadline, batch
            time.sleep(0.02)
        return batch

    def lines(self, file_id):
        """{custom_id: line} of a file; each may be there once."""
        if file_id is None:
            return {}
        lines = [json.loads(line) for line in self.api.files.content(file_id).text.splitlines()]
        assert len({line["custom_id"] for line in lines}) == len(lines)
        return {line["custom_id"]: line for line in lines}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def kept(start_server, tiny_checkpoint, data):
    settings = ServerSettings(served_model_names=("tiny", "alias"), data_dir=data)
    with start_server(tiny_checkpoint, settings, max_num_seqs=4, kv_cache_tokens=4 * 16384) as server:
        yield server


@pytest.fixture
def batches(kept):
    yield Batches(kept.base)
    kept.wait_idle()


def test_a_line_is_answered_as_the_route_answers(batches, kept):
    lines = [chat_line(f"r{i}", messages=[{"role": "user", "content": f"Say {i} \u2028 東京"}]) for i in range(9)]
    lines += [
        chat_line("wrong", temperature=-1),
        chat_line("long", messages=[{"role": "user", "content": "x" * 40_000}]),
    ]
    before = _labelled(kept, "stille_batch_lines_total")
    batch = batches.create(lines, metadata={"of": "the test"})
    assert (batch.object, batch.status, batch.endpoint, batch.metadata) == (
        "batch",
        "validating",
        CHAT,
        {"of": "the test"},
    )
    assert batch.expires_at == batch.created_at + 24 * 3600
    batch = batches.until(batch)
    assert batch.status == "completed"
    assert batch.request_counts.model_dump() == {"total": 11, "completed": 9, "failed": 2}
    times = [batch.created_at, batch.in_progress_at, batch.finalizing_at, batch.completed_at]
    assert times == sorted(times)
    assert (batch.failed_at, batch.expired_at, batch.cancelling_at, batch.cancelled_at) == (None,) * 4
    counted = _labelled(kept, "stille_batch_lines_total")
    assert counted["completed"] - before.get("completed", 0) == 9
    assert counted["failed"] - before.get("failed", 0) == 2

    right, wrong = batches.lines(batch.output_file_id), batches.lines(batch.error_file_id)
    assert list(right) == [f"r{i}" for i in range(9)]
    assert list(wrong) == ["wrong", "long"]
    ids = set()
    with httpx.Client(base_url=batches.base, timeout=60) as client:
        for line in lines:
            entry = (right | wrong)[line["custom_id"]]
            assert set(entry) == {"id", "custom_id", "response", "error"}
            assert entry["error"] is None
            response = entry["response"]
            ids |= {entry["id"], response["request_id"]}
            answer = client.post(CHAT, json=line["body"])
            assert answer.status_code == response["status_code"]
            assert _lasting(answer.json()) == _lasting(response["body"])
    assert len(ids) == 2 * len(lines)
    output = batches.api.files.retrieve(batch.output_file_id)
    assert output.purpose == "batch_output"
    assert output.expires_at == output.created_at + 30 * 24 * 3600


def _lasting(body):
    """An answer without what differs each time."""
    body = {key: value for key, value in body.items() if key not in ("id", "created")}
    if "usage" in body:
        body["usage"] = {**body["usage"], "prompt_tokens_details": None}
    return body


def _labelled(served, name):
    text = httpx.get(f"{served.base}/metrics").text
    lines = [line for line in text.splitlines() if line.startswith(name + "{")]
    return {line.split('"')[1]: float(line.split()[-1]) for line in lines}


def test_one_line_may_have_more_sequences_than_there_are_slots(batches):
    lines = [text_line("wide", n=3, prompt=["a", "b", "c"]), text_line("narrow"), text_line("twice", n=2)]
    batch = batches.until(batches.create(lines, TEXT, output_expires_after={"anchor": "created_at", "seconds": 3600}))
    assert batch.request_counts.completed == 3
    right = batches.lines(batch.output_file_id)
    assert {key: len(line["response"]["body"]["choices"]) for key, line in right.items()} == {
        "wide": 9,
        "narrow": 1,
        "twice": 2,
    }
    output = batches.api.files.retrieve(batch.output_file_id)
    assert output.expires_at == output.created_at + 3600


@pytest.mark.parametrize(
    ("endpoint", "body", "kind"),
    [
        ("/v1/responses", {"input": "Hi", "max_output_tokens": 16}, "response"),
        ("/v1/embeddings", {"input": ["Hi", "there"]}, "list"),
    ],
)
def test_other_routes_have_batches_too(batches, endpoint, body, kind):
    lines = [
        {"custom_id": str(i), "method": "POST", "url": endpoint, "body": {"model": "tiny", **body}} for i in range(9)
    ]
    batch = batches.until(batches.create(lines, endpoint))
    answers = batches.lines(batch.output_file_id).values()
    assert [line["response"]["body"]["object"] for line in answers] == [kind] * 9


BAD = [
    ("not json", "invalid_json_line", None),
    ("[" * 100_000, "invalid_json_line", None),
    ('"text"', "invalid_request", None),
    ({"custom_id": "x", "method": "POST", "url": CHAT}, "missing_required_parameter", "body"),
    ({**chat_line("x"), "priority": 1}, "unknown_parameter", "priority"),
    ({**chat_line("x"), "custom_id": 7}, "invalid_custom_id", "custom_id"),
    ({**chat_line("x"), "custom_id": ""}, "invalid_custom_id", "custom_id"),
    ({**chat_line("x"), "custom_id": "\ud800"}, "invalid_custom_id", "custom_id"),
    (chat_line("first"), "duplicate_custom_id", "custom_id"),
    ({**chat_line("x"), "method": "GET"}, "invalid_method", "method"),
    (text_line("x"), "mismatched_url", "url"),
    ({**chat_line("x"), "body": []}, "invalid_body", "body"),
    (chat_line("x", stream=True), "unsupported_parameter", "body.stream"),
    (chat_line("x", background=True), "unsupported_parameter", "body.background"),
    (chat_line("x", model="gpt-4o"), "model_not_found", "body.model"),
    (chat_line("x", model=None), "model_not_found", "body.model"),
    (chat_line("x", model="alias"), "mismatched_model", "body.model"),
]


def test_a_bad_line_fails_the_batch_and_is_named(batches, kept):
    lines = [chat_line("first")]
    for bad, _, _ in BAD:
        lines += ["   ", bad]  # empty lines count, and are no requests
    before = kept.metrics()["stille_requests_total"]
    batch = batches.until(batches.create(lines))
    assert batch.status == "failed"
    assert batch.failed_at >= batch.created_at
    assert (batch.output_file_id, batch.error_file_id) == (None, None)
    found = {error.line: (error.code, error.param) for error in batch.errors.data}
    assert found == {3 + 2 * index: (code, param) for index, (_, code, param) in enumerate(BAD)}
    assert all(error.message.endswith(".") for error in batch.errors.data)
    assert kept.metrics()["stille_requests_total"] == before


@pytest.mark.parametrize(
    ("content", "code", "line"),
    [
        (b"", "empty_file", None),
        (b"\n \n", "empty_file", None),
        (b"\xff\xfe\n", "invalid_json_line", 1),
        (b"\n" + b"x" * 5_000_000, "line_too_long", 2),
    ],
)
def test_a_file_without_requests_fails(batches, content, code, line):
    batch = batches.until(batches.create(content))
    (error,) = batch.errors.data
    assert (batch.status, error.code, error.line) == ("failed", code, line)


def test_there_are_at_most_so_many_lines_and_errors(batches):
    line = json.dumps(chat_line("c%d")).replace("%d", "{}").encode()
    many = b"".join(line.replace(b"{}", str(i).encode()) + b"\n" for i in range(validation.MAX_LINES + 1))
    batch = batches.until(batches.create(many))
    assert [(error.code, error.line) for error in batch.errors.data] == [
        ("too_many_requests", validation.MAX_LINES + 1)
    ]
    batch = batches.until(batches.create(["?"] * 1000))
    assert len(batch.errors.data) == validation.MAX_ERRORS


def test_what_cannot_be_a_batch_is_refused(batches):
    file = batches.api.files.create(file=("f", jsonl([chat_line("x")])), purpose="batch")
    right = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h"}
    for change, status, param in [
        ({"input_file_id": "file-of-nobody"}, 404, "input_file_id"),
        ({"endpoint": "/v1/moderations"}, 400, "endpoint"),
        ({"completion_window": "1h"}, 400, "completion_window"),
        ({"metadata": {"a": "b" * 513}}, 400, "metadata.a"),
        ({"metadata": {"a": 1}}, 400, "metadata.a"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 10}}, 400, "output_expires_after.seconds"),
    ]:
        answer = httpx.post(f"{batches.base}/v1/batches", json=right | change)
        assert answer.status_code == status, answer.text
        assert answer.json()["error"]["param"] == param
    batch = batches.until(batches.create([chat_line("x")]))
    with pytest.raises(openai.BadRequestError, match="written by a batch"):
        batches.api.batches.create(input_file_id=batch.output_file_id, endpoint=CHAT, completion_window="24h")
    for ask in (batches.api.batches.retrieve, batches.api.batches.cancel):
        with pytest.raises(openai.NotFoundError, match="no batch 'batch_x'"):
            ask("batch_x")


def test_the_list_is_paged(batches):
    made = [batches.until(batches.create([chat_line("x")])).id for _ in range(5)]
    page = batches.api.batches.list(limit=2)
    assert ([batch.id for batch in page.data], page.has_more) == (made[:2:-1], True)
    listed = [batch.id for batch in batches.api.batches.list(limit=2)]  # the client turns the pages
    assert listed[:5] == made[::-1]
    assert len(set(listed)) == len(listed)
    with pytest.raises(openai.NotFoundError):
        batches.api.batches.list(after="batch_x")


def test_a_cancelled_batch_keeps_what_is_done(batches, kept):
    lines = [text_line("short"), *(text_line(f"long{i}", max_tokens=LONG) for i in range(6))]
    batch = batches.create(lines, TEXT)
    batches.until(batch, lambda batch: batch.request_counts.completed == 1)
    with pytest.raises(openai.ConflictError, match=f"is the input of batch '{batch.id}'"):
        batches.api.files.delete(batch.input_file_id)
    assert batches.api.batches.cancel(batch.id).status == "cancelling"
    batch = batches.until(batch)
    assert batch.status == "cancelled"
    assert batch.created_at <= batch.cancelling_at <= batch.cancelled_at
    assert batch.request_counts.model_dump() == {"total": 7, "completed": 1, "failed": 0}
    assert list(batches.lines(batch.output_file_id)) == ["short"]
    left = batches.lines(batch.error_file_id)
    assert list(left) == [f"long{i}" for i in range(6)]
    assert {(line["response"], line["error"]["code"]) for line in left.values()} == {(None, "batch_cancelled")}
    with pytest.raises(openai.ConflictError, match="too late"):
        batches.api.batches.cancel(batch.id)
    assert batches.api.files.delete(batch.input_file_id).deleted


def test_an_expired_batch_keeps_what_is_done(batches, data):
    batch = batches.create([text_line("short"), text_line("long", max_tokens=LONG)], TEXT)
    batches.until(batch, lambda batch: batch.request_counts.completed == 1)
    with sqlite3.connect(data / FILE_NAME) as db:  # a day later
        db.execute("UPDATE batches SET expires_at = created_at WHERE id = ?", (batch.id,))
    batch = batches.until(batch)
    assert batch.status == "expired"
    assert batch.expired_at >= batch.finalizing_at >= batch.in_progress_at
    assert list(batches.lines(batch.output_file_id)) == ["short"]
    (line,) = batches.lines(batch.error_file_id).values()
    assert (line["custom_id"], line["error"]["code"]) == ("long", "batch_expired")


@contextmanager
def streaming(batches, count):
    """Requests of clients that have begun to be answered and go on, each in a slot."""
    body = {"model": "tiny", "prompt": "go on", "max_tokens": LONG, "ignore_eos": True, "stream": True}
    streams, lines = [], []
    clients = [httpx.Client(base_url=batches.base, timeout=60) for _ in range(count)]
    try:
        for client in clients:
            request = client.build_request("POST", TEXT, json=body)
            streams.append(client.send(request, stream=True))
            lines.append(streams[-1].iter_lines())  # which would close the stream if it were dropped
            next(lines[-1])
        yield
    finally:
        for stream in streams:
            stream.close()
        for client in clients:
            client.close()


def test_lines_wait_while_clients_have_all_slots(batches, kept):
    with streaming(batches, 4):
        batch = batches.create([text_line(f"r{i}") for i in range(3)], TEXT)
        batches.until(batch, lambda batch: batch.status == "in_progress")
        before = kept.metrics()
        # The next client waits for a slot; lines do not get in before it, whatever the time.
        answer = []
        body = {"model": "tiny", "prompt": "me first", "max_tokens": 3}
        client = threading.Thread(target=lambda: answer.append(httpx.post(batches.base + TEXT, json=body, timeout=60)))
        client.start()
        kept.wait_for(lambda metrics: metrics["stille_queue_requests"] == 1)
        kept.wait_for(lambda metrics: metrics["stille_steps_total"] > before["stille_steps_total"] + 100)
        metrics = kept.metrics()
        assert metrics["stille_requests_total"] - before["stille_requests_total"] == 1
        assert batches.api.batches.retrieve(batch.id).request_counts.completed == 0
    client.join(60)
    assert answer[0].status_code == 200
    assert batches.until(batch).request_counts.completed == 3


def test_clients_get_the_slots_that_lines_have(batches, kept):
    batch = batches.create([text_line(f"r{i}", max_tokens=LONG) for i in range(5)], TEXT)
    kept.wait_for(lambda metrics: metrics["stille_sequences_running"] == 4)
    with streaming(batches, 3):
        # Three of four lines have given way, and no other takes the last slot.
        kept.wait_for(lambda m: (m["stille_sequences_running"], m["stille_sequences_waiting"]) == (4, 0))
        load = kept.engine.load()
        assert (load.slots, load.foreground, load.background) == (4, 3, 1)
        answer = httpx.post(batches.base + TEXT, json={"model": "tiny", "prompt": "x", "max_tokens": 2}, timeout=60)
        assert answer.status_code == 200
        assert batches.api.batches.retrieve(batch.id).request_counts.completed == 0
    kept.wait_for(lambda _: kept.engine.load().background == 4)  # and now they are back
    batches.api.batches.cancel(batch.id)
    assert batches.until(batch).request_counts.completed == 0


def test_clients_get_the_cache_that_lines_have(start_server, tiny_checkpoint, tmp_path):
    settings = ServerSettings(served_model_names=("tiny",), data_dir=tmp_path)
    with start_server(tiny_checkpoint, settings, max_num_seqs=4, kv_cache_tokens=4096) as served:
        batches = Batches(served.base)
        lines = [text_line(f"r{i}", prompt=[40 + i] * 1200, max_tokens=2500) for i in range(2)]
        batch = batches.create(lines, TEXT)
        served.wait_for(lambda metrics: metrics["stille_sequences_running"] == 2)
        # There are slots for it, but no pages.
        body = {"model": "tiny", "prompt": [50] * 2500, "max_tokens": 2}
        answer = httpx.post(batches.base + TEXT, json=body, timeout=60)
        assert answer.status_code == 200
        assert batches.api.batches.retrieve(batch.id).request_counts.completed == 0
        batches.api.batches.cancel(batch.id)
        assert batches.until(batch).status == "cancelled"


@pytest.mark.parametrize(("bound", "lines"), [(None, 30), (3, 3)])
def test_some_slots_stay_free_for_the_next_client(start_server, tiny_checkpoint, tmp_path, bound, lines):
    settings = ServerSettings(served_model_names=("tiny",), data_dir=tmp_path, max_batch_seqs=bound)
    with start_server(tiny_checkpoint, settings, max_num_seqs=32, kv_cache_tokens=32768) as served:
        batches = Batches(served.base)
        batch = batches.create([text_line(f"r{i}", max_tokens=1000) for i in range(32)], TEXT)
        before = served.wait_for(lambda metrics: metrics["stille_sequences_running"] == lines)["stille_steps_total"]
        most = 0
        while (metrics := served.metrics())["stille_steps_total"] < before + 100:
            most = max(most, metrics["stille_sequences_running"])
        assert most == lines
        batches.api.batches.cancel(batch.id)


def test_a_full_queue_is_no_error_of_a_line(start_server, tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("stille.server.batches.worker._PAUSE_S", 0.05)  # not half a second each time
    settings = ServerSettings(served_model_names=("tiny",), data_dir=tmp_path, api_key="secret")
    with start_server(tiny_checkpoint, settings, max_num_seqs=8, max_queue=1, kv_cache_tokens=16384) as served:
        batches = Batches(served.base, "secret")
        # Many lines that are started at once, and one of more prompts than the queue ever takes.
        lines = [text_line(f"r{i}") for i in range(6)] + [text_line("never", prompt=["a", "b", "c"])]
        batch = batches.until(batches.create(lines, TEXT))
        assert batch.request_counts.model_dump() == {"total": 7, "completed": 6, "failed": 1}
        (never,) = batches.lines(batch.error_file_id).values()
        assert (never["custom_id"], never["response"]["body"]["error"]["code"]) == ("never", "queue_full")
        text = httpx.get(f"{served.base}/metrics").text
        counts = {line.rpartition(" ")[0]: float(line.split()[-1]) for line in text.splitlines() if line[0] != "#"}
        name = 'stille_http_requests_total{method="POST",route="/v1/completions",status="429"}'
        assert counts[name] > 1  # so it was asked again


def test_a_stopped_server_goes_on_with_its_batches(start_server, tiny_checkpoint, tmp_path):
    settings = ServerSettings(served_model_names=("tiny",), data_dir=tmp_path)
    config = {"max_num_seqs": 2, "kv_cache_tokens": 2 * 16384}
    lines = [text_line(f"r{i}", max_tokens=100) for i in range(60)]
    with start_server(tiny_checkpoint, settings, **config) as served:
        batches = Batches(served.base)
        batch = batches.create(lines, TEXT)
        done = batches.until(batch, lambda batch: batch.request_counts.completed > 3).request_counts.completed
        with pytest.raises(ConfigError, match="in use by another server"):
            start_server(tiny_checkpoint, settings, **config).__enter__()
    # Another model's server leaves them alone.
    other = ServerSettings(served_model_names=("other",), data_dir=tmp_path)
    with start_server(tiny_checkpoint, other, **config) as served:
        batches = Batches(served.base)
        refused = batches.until(batches.create([text_line("x")], TEXT))
        assert refused.errors.data[0].code == "model_not_found"
        waiting = batches.api.batches.retrieve(batch.id)
        assert waiting.status == "in_progress"
        assert done <= waiting.request_counts.completed < 60
        assert served.metrics()["stille_requests_total"] == 0
    with start_server(tiny_checkpoint, settings, **config) as served:
        batches = Batches(served.base)
        batch = batches.until(batch)
        assert batch.request_counts.model_dump() == {"total": 60, "completed": 60, "failed": 0}
        assert list(batches.lines(batch.output_file_id)) == [f"r{i}" for i in range(60)]
        assert served.metrics()["stille_requests_total"] == 60 - waiting.request_counts.completed


def test_without_a_data_directory_the_answer_says_what_to_do(idle):
    body = {"input_file_id": "x", "endpoint": CHAT, "completion_window": "24h"}
    with httpx.Client(base_url=idle.base) as client:
        for answer in (client.get("/v1/files"), client.get("/v1/batches/x"), client.post("/v1/batches", json=body)):
            assert answer.status_code == 404
            assert "--data-dir" in answer.json()["error"]["message"]


def test_killed_at_any_moment_it_loses_and_repeats_nothing(tiny_checkpoint, tmp_path):
    context = warm()
    from stille.cli.serve import command

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = {"model": str(tiny_checkpoint), "dtype": "fp32", "device": "cpu", "threads": 1, "port": port}
    options |= {"served_model_name": ["tiny"], "data_dir": tmp_path, "max_num_seqs": 4}
    options |= {"log_level": "warning", "log_format": "json"}
    batches, chance = Batches(f"http://127.0.0.1:{port}"), random.Random(1)

    def start():
        process = context.Process(target=command, kwargs=options, daemon=True)
        process.start()
        deadline = time.monotonic() + 60
        while True:
            try:
                if httpx.get(f"{batches.base}/ready", timeout=60).status_code == 200:
                    return process
            except httpx.TransportError:
                pass
            assert process.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def stored():
        with sqlite3.connect(tmp_path / FILE_NAME) as db:
            return dict(db.execute("SELECT custom_id, result FROM lines WHERE result IS NOT NULL"))

    def more_than(count):
        return lambda batch: batch.request_counts.completed + batch.request_counts.failed > count

    lines = [text_line(f"r{i}", max_tokens=40) if i % 5 else text_line(f"r{i}", temperature=-1) for i in range(200)]
    server = start()
    batch = batches.create(lines, TEXT)
    server.kill()  # while it validates
    server.join()
    finished = {}
    for _ in range(4):
        server = start()
        batches.until(batch, more_than(len(finished)))
        time.sleep(chance.random() * 0.3)
        server.kill()
        server.join()
        now = stored()
        assert finished.items() <= now.items()  # what was finished stays as it was
        assert len(now) < len(lines)
        finished = now
    server = start()
    batches.until(batch, lambda batch: batch.status in ("finalizing", "completed"))
    server.kill()
    server.join()
    server = start()
    batch = batches.until(batch)
    assert batch.status == "completed"
    assert batch.request_counts.model_dump() == {"total": 200, "completed": 160, "failed": 40}
    texts = batches.api.files.content(batch.output_file_id).text + batches.api.files.content(batch.error_file_id).text
    ids = [json.loads(line)["custom_id"] for line in texts.splitlines()]
    assert sorted(ids) == sorted(line["custom_id"] for line in lines)
    assert set(finished.values()) <= set(texts.splitlines())
    assert {path.name for path in (tmp_path / "files").iterdir()} == {file.id for file in batches.api.files.list()}
    server.kill()
    server.join()
