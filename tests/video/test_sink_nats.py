"""The NATS sink against a real server: with and without a stream, away and back, wrong passwords."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from contextlib import contextmanager
from socket import create_connection, socket

import nats
import pytest

from stille.video.errors import SinkError
from stille.video.sinks import Lane
from stille.video.sinks.nats import Nats
from stille.video.types import Event

pytestmark = pytest.mark.skipif(shutil.which("nats-server") is None, reason="no nats-server on this machine")


def event(number: int, revision: int = 0, **more) -> Event:
    fields = dict(id=f"e{number}", state="open", revision=revision, camera="dock 3", rule="near.x", kind="near_miss")
    return Event.model_validate(
        fields | dict(began=number, changed=number, confidence=0.9, reason="a forklift and a person") | more
    )


@pytest.fixture
def port() -> int:
    with socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def server(port: int, *arguments):
    command = ["nats-server", "-a", "127.0.0.1", "-p", str(port), *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(500):
            try:
                create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.01)
        yield process
    finally:
        process.kill()
        process.wait()


def until(said, seconds=30.0) -> bool:
    end = time.monotonic() + seconds
    while not said() and time.monotonic() < end:
        time.sleep(0.005)
    return said()


async def test_a_stream_survives_kills_and_stores_each_change_once(port, tmp_path):
    sink = Nats(f"nats://127.0.0.1:{port}", "site.video", stream="EVENTS", timeout_s=10)
    lane = Lane(sink, spool=tmp_path / "spool", first_s=0.01, longest_s=0.05)
    lane.put(event(1))
    assert await asyncio.to_thread(until, lambda: lane.problem)  # nobody is there yet
    with server(port, "-js", "-sd", tmp_path / "js"):
        lane.put(event(1))  # at least once: twice here
        assert await asyncio.to_thread(lane.drain, 30)
    lane.put(event(2))
    assert await asyncio.to_thread(until, lambda: lane.problem)
    with server(port, "-js", "-sd", tmp_path / "js"):
        lane.put(event(2, 1, state="closed"))
        assert await asyncio.to_thread(lane.drain, 30)
        client = await nats.connect(f"nats://127.0.0.1:{port}")
        reader = await client.jetstream().subscribe("site.video.>", ordered_consumer=True)
        got = [await reader.next_msg(20) for _ in range(3)]
        with pytest.raises(asyncio.TimeoutError):
            await reader.next_msg(0.1)
        await client.close()
        assert {one.subject for one in got} == {"site.video.dock_3.near_x"}
        assert [(e.id, e.revision) for e in (Event.model_validate_json(one.data) for one in got)] == [
            ("e1", 0), ("e2", 0), ("e2", 1),
        ]  # fmt: skip
        assert got[2].headers["Nats-Msg-Id"] == "e2:1"
        await asyncio.to_thread(lane.close, 2)
    assert (lane.problem, lane.counts["dropped"], lane.counts["sent"]) == (None, 0, 4)


async def test_without_a_stream_listeners_get_it_and_large_events_are_refused(port, tmp_path):
    (tmp_path / "conf").write_text("max_payload: 4096\nauthorization {user: desk, password: geheim}\n")
    with server(port, "-c", tmp_path / "conf"):
        client = await nats.connect(f"nats://desk:geheim@127.0.0.1:{port}")
        listener = await client.subscribe("stille.*.near_x")
        await client.flush()
        wrong = Nats(f"nats://desk:falsch@127.0.0.1:{port}", timeout_s=10)
        with pytest.raises(SinkError, match=r"(?i)authorization") as caught:
            await asyncio.to_thread(wrong.send, event(1))
        assert "falsch" not in str(caught.value) + wrong.name
        wrong.close()
        lane = Lane(Nats(f"nats://desk:geheim@127.0.0.1:{port}", timeout_s=10), first_s=0.01)
        lane.put(event(1, reason="x" * 5000))
        lane.put(event(2))
        assert await asyncio.to_thread(lane.drain, 30)
        message = await listener.next_msg(20)
        assert Event.model_validate_json(message.data) == event(2)
        assert lane.counts == {"refused": 1, "sent": 1}
        await asyncio.to_thread(lane.close, 2)
        await client.close()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("http://desk:geheim@host",), "expected nats://"),
        (("nats://a,host",), "expected nats://"),
        (("nats://host", "a..b"), "words with dots"),
        (("nats://host", "stille", "my stream"), "without spaces"),
    ],
)
def test_what_cannot_be(arguments, told):
    with pytest.raises(SinkError, match=told) as caught:
        Nats(*arguments)
    assert "geheim" not in str(caught.value)
