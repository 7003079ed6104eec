"""A real engine on a tiny random model, behind a real uvicorn server on a free port."""

import contextlib
import http.client
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from prometheus_client.parser import text_string_to_metric_families

from stille.engine.async_llm import AsyncLLM
from stille.engine.config import EngineConfig
from stille.server import ServerSettings, create_app


@dataclass
class Served:
    """A running server. `base` is its URL without a path; `model` the name it serves."""

    base: str
    port: int
    model: str
    engine: AsyncLLM
    state: Any

    def metrics(self) -> dict[str, float]:
        """Samples of /metrics without labels, by name."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        families = text_string_to_metric_families(text)
        return {sample.name: sample.value for family in families for sample in family.samples if not sample.labels}

    def wait_idle(self, seconds: float = 20) -> dict[str, float]:
        """Wait until nothing runs; fail if something still does, or holds pages."""
        return self.wait_for(
            lambda m: not (m["stille_sequences_running"] or m["stille_sequences_waiting"] or m["stille_kv_pages_used"]),
            seconds,
        )

    def wait_for(self, condition: Callable[[dict[str, float]], bool], seconds: float = 20) -> dict[str, float]:
        deadline = time.monotonic() + seconds
        while not condition(metrics := self.metrics()):
            assert time.monotonic() < deadline, f"not reached within {seconds} s: {metrics}"
            time.sleep(0.02)
        return metrics


@contextlib.contextmanager
def running(model: Path, settings: ServerSettings | None = None, **config: Any) -> Iterator[Served]:
    """A server in a thread of this process, with an engine of its own."""
    engine = AsyncLLM(EngineConfig(model=str(model), **{"dtype": "fp32", "device": "cpu", "threads": 1, **config}))
    app = create_app(engine, settings or ServerSettings(served_model_names=("tiny",)))
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        assert time.monotonic() < deadline, "the server took too long to start"
        time.sleep(0.01)
    try:
        yield Served(f"http://127.0.0.1:{port}", port, app.state.stille.model_names[0], engine, app.state.stille)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the server did not stop"


@pytest.fixture(scope="session")
def served(tiny_checkpoint: Path) -> Iterator[Served]:
    """The server that most tests share; every test leaves it idle."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with running(tiny_checkpoint, max_num_seqs=8, kv_cache_tokens=32768) as server:
        yield server


@pytest.fixture
def idle(served: Served) -> Iterator[Served]:
    """The shared server, and the promise that nothing of the test stays in its engine."""
    yield served
    served.wait_idle()


@pytest.fixture(scope="session")
def start_server() -> Callable[..., contextlib.AbstractContextManager[Served]]:
    """`running`, for tests that need settings of their own."""
    return running
