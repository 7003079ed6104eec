"""Sinks and their lanes, against real files, servers and a real broker."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import socket

import pytest

from stille.video.errors import SinkError
from stille.video.sinks import JsonLines, Lane, Sinks, Webhook, verify
from stille.video.sinks.lanes import RefusedError
from stille.video.sinks.mqtt import Mqtt
from stille.video.types import Event

SECRET = "a secret of the two of us"


def event(number: int, revision: int = 0, state="open", **more) -> Event:
    return Event(
        id=f"e{number}", state=state, revision=revision, camera="cam", rule="near", kind="near_miss", began=number,
        changed=number, confidence=0.9, reason="a forklift and a person", **more,
    )  # fmt: skip


class Gate:
    """A sink that takes events while it is open."""

    name = "gate"
    withheld = False

    def __init__(self, opened: bool = True):
        self.opened, self.got, self.closed = opened, [], False

    def send(self, event: Event) -> None:
        if not self.opened:
            raise ConnectionError("nobody there")
        if event.reason == "bad":
            raise RefusedError("no")
        self.got.append((event.id, event.revision))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def lane(request):
    lanes = []

    def make(sink, **more):
        lanes.append(Lane(sink, first_s=0.01, longest_s=0.02, **more))
        return lanes[-1]

    yield make
    for one in lanes:
        one.close(0.05)


def test_a_dead_sink_keeps_nobody_waiting_and_loses_nothing_with_a_spool(lane, tmp_path):
    gate = Gate(opened=False)
    one = lane(gate, size=10, spool=tmp_path / "spool")
    began = time.monotonic()
    for number in range(100):
        one.put(event(number))
    assert time.monotonic() - began < 1
    assert one.secure(0.01)
    assert "nobody there" in str(one.problem)
    for number in range(100, 105):
        one.put(event(number))
    gate.opened = True
    assert one.drain(5)
    assert list(dict.fromkeys(gate.got)) == [(f"e{i}", 0) for i in range(105)]
    assert (one.problem, one.counts["dropped"]) == (None, 0)
    assert list(tmp_path.iterdir()) == []


def test_without_a_spool_updates_are_dropped_first(lane):
    gate = Gate(opened=False)
    one = lane(gate, size=4)
    for one_event in (event(1), event(1, 1), event(1, 2), event(1, 3, "closed"), event(2), event(3), event(4)):
        one.put(one_event)
    gate.opened = True
    assert one.drain(5)
    assert gate.got[-3:] == [("e2", 0), ("e3", 0), ("e4", 0)]
    assert ("e1", 1) not in gate.got
    assert ("e1", 2) not in gate.got
    assert one.counts["dropped"] == 3


def test_refused_and_withheld_events(lane, caplog):
    gate = Gate()
    one = lane(gate)
    for number, more in ((1, {}), (2, {"withheld": True})):
        one.put(event(number, **more))
    one.put(event(3).model_copy(update={"reason": "bad"}))
    one.put(event(4))
    assert one.drain(5)
    assert gate.got == [("e1", 0), ("e4", 0)]
    assert one.counts == {"sent": 2, "refused": 1}


def test_a_spool_that_cannot_be_written_is_said_once(lane, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    one = lane(Gate(opened=False), size=2, spool=tmp_path / "file" / "spool")
    for number in range(5):
        one.put(event(number))
    assert one.counts["dropped"] == 3
    assert not one.secure(0.01)
    one.close(0.01)
    assert sum("spool does not work" in record.message for record in caplog.records) == 1
    one.close(0.01)
    assert sum("2 events are lost" in record.message for record in caplog.records) == 1
    assert one.counts["dropped"] == 5


def test_a_killed_process_leaves_its_spool(lane, tmp_path):
    code = f"""
import sys, time
sys.path.insert(0, {str(os.path.dirname(__file__))!r})
from test_sinks import Gate, event
from stille.video.sinks import Lane
one = Lane(Gate(opened=False), size=3, spool={str(tmp_path / "spool")!r}, first_s=0.01)
for number in range(7):
    one.put(event(number))
assert one.secure(0)
print("secured", flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "secured\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    left = next(path for path in tmp_path.iterdir())
    with open(left, "ab") as file:
        file.write(b'\n{"id": "cut o')
    gate = Gate()
    one = lane(gate, spool=tmp_path / "spool")
    assert one.drain(5)
    assert gate.got == [(f"e{i}", 0) for i in range(7)]


def test_json_lines_rotate_and_survive_half_a_line(tmp_path):
    path = tmp_path / "log" / "events.jsonl"
    sink = JsonLines(path, size=3 * len(event(1).model_dump_json()) + 10, keep=2)
    for number in range(9):
        sink.send(event(number % 10))
    sink.close()
    assert sorted(p.name for p in path.parent.iterdir()) == ["events.jsonl", "events.jsonl.1", "events.jsonl.2"]
    older = [path.with_name(path.name + ending) for ending in (".2", ".1", "")]
    lines = [json.loads(line)["id"] for one in older for line in one.read_text().splitlines()]
    assert lines == [f"e{i}" for i in range(9)]
    path.write_text('{"id": "ha')
    sink.send(event(9))
    sink.close()
    half, whole = path.read_text().splitlines()
    assert half == '{"id": "ha'
    assert json.loads(whole)["id"] == "e9"


def test_json_lines_on_a_full_disk(lane, caplog):
    caplog.set_level(logging.WARNING)
    one = lane(JsonLines("/dev/full"), size=5)
    for number in range(8):
        one.put(event(number))
    assert not one.drain(0.1)
    assert "No space left" in str(one.problem)
    assert one.counts["dropped"] == 3


class Receiver(BaseHTTPRequestHandler):
    """Answers with the next of `answers`; keeps what it got."""

    answers: list[int]
    got: list[tuple[dict[str, str], bytes]]

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.got.append((dict(self.headers), body))
        self.send_response(self.answers.pop(0) if self.answers else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def receiver():
    handler = type("Handler", (Receiver,), {"answers": [], "got": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    handler.url = f"http://127.0.0.1:{server.server_port}/hook?token=x"
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_webhook_is_signed_retried_and_idempotent(lane, receiver):
    receiver.answers = [500, 429, 200, 404, 200]
    one = lane(Webhook(receiver.url, SECRET))
    for number in (1, 2, 3):
        one.put(event(number))
    assert one.drain(5)
    keys = [headers["Idempotency-Key"] for headers, _ in receiver.got]
    assert keys == ["e1:0", "e1:0", "e1:0", "e2:0", "e3:0"]
    assert one.counts == {"sent": 2, "retried": 2, "refused": 1}
    headers, body = receiver.got[-1]
    assert Event.model_validate_json(body) == event(3)
    stamp, given = headers["Stille-Timestamp"], headers["Stille-Signature"]
    assert verify(SECRET, stamp, body, given)
    assert not verify(SECRET, stamp, body + b" ", given)
    assert not verify("another secret of theirs", stamp, body, given)
    assert not verify(SECRET, str(int(stamp) + 1), body, given)
    assert not verify(SECRET, "1", body, given)
    assert not verify(SECRET, "x", body, "ü")


def test_webhooks_that_cannot_be():
    with pytest.raises(SinkError, match="http or https"):
        Webhook("ftp://example.org", SECRET)
    with pytest.raises(SinkError, match="16"):
        Webhook("https://example.org", "short")


def free_port() -> int:
    with socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


async def test_mqtt_against_a_real_broker(lane):
    broker_module = pytest.importorskip("amqtt.broker")
    from paho.mqtt import client as paho
    from paho.mqtt.enums import CallbackAPIVersion

    port = free_port()
    one = lane(Mqtt("127.0.0.1", port, topic="site/video", timeout_s=3))
    one.put(event(1))
    for _ in range(200):  # nobody is there yet
        if one.problem:
            break
        await asyncio.sleep(0.01)
    assert "refused" in str(one.problem)
    broker = broker_module.Broker(
        {
            "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}},
            "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
        }
    )
    await broker.start()
    try:
        got: list[tuple[str, bytes]] = []
        listener = paho.Client(CallbackAPIVersion.VERSION2)
        subscribed = threading.Event()
        listener.on_message = lambda _c, _d, message: got.append((message.topic, message.payload))
        listener.on_subscribe = lambda *_: subscribed.set()
        await asyncio.to_thread(listener.connect, "127.0.0.1", port)
        listener.loop_start()
        listener.subscribe("site/#", qos=1)
        assert await asyncio.to_thread(subscribed.wait, 5)
        one.put(event(2).model_copy(update={"rule": "a/b"}))
        one.put(event(3))
        assert await asyncio.to_thread(one.drain, 10)
        await asyncio.to_thread(one.close, 2)
        for _ in range(200):
            if ("site/video/status", b"offline") in got:
                break
            await asyncio.sleep(0.01)
        listener.loop_stop()
        listener.disconnect()
    finally:
        await broker.shutdown()
    events = dict(got)
    assert ("site/video/status", b"online") in got
    assert events["site/video/status"] == b"offline"
    assert Event.model_validate_json(events["site/video/cam/near"]) == event(3)
    assert json.loads(events["site/video/cam/a_b"])["id"] == "e2"


def test_one_dead_sink_does_not_hold_up_another(tmp_path):
    dead, alive = Gate(opened=False), Gate()
    sinks = Sinks([Lane(dead, spool=tmp_path / "dead", first_s=5), Lane(alive)])
    sinks.put([event(1), event(2)])
    assert sinks.lanes[1].drain(5)
    began = time.monotonic()
    sinks.close(0.3)
    assert time.monotonic() - began < 3
    assert alive.got == [("e1", 0), ("e2", 0)]
    assert (alive.closed, dead.closed) == (True, True)
    assert sinks.lanes[0].counts["spooled"] == 2
    assert (tmp_path / "dead").read_bytes().count(b"reason") == 2
