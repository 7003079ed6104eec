"""`stille serve` as a process: what it prints, how it ends, and clients in other processes."""

import json
import re
import socket
import threading
import time

import httpx
import pytest

from stille.server.data_dir import DataLock

LONG = 12_000


class Process:
    """A running `stille serve`; everything it writes is kept."""

    def __init__(self, process):
        self.process = process
        self.written = ""
        self.base = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stderr:
            self.written += line

    def until(self, pattern, seconds=90):
        deadline = time.monotonic() + seconds
        while not (match := re.search(pattern, self.written)):
            assert self.process.poll() is None, f"it ended: {self.written}"
            assert time.monotonic() < deadline, f"{pattern!r} did not come: {self.written}"
            time.sleep(0.05)
        return match

    def wait(self, seconds=30):
        code = self.process.wait(seconds)
        self._reader.join(10)
        return code

    def stream(self, client, max_tokens):
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Go on"}], "stream": True}
        return client.stream(
            "POST", "/v1/chat/completions", json={**body, "max_tokens": max_tokens, "ignore_eos": True}
        )


@pytest.fixture
def serve(spawn, tiny, tmp_path):
    def start(*arguments):
        options = ["--port", "0", "--served-model-name", "tiny", "--data-dir", tmp_path / "data"]
        server = Process(spawn("serve", *tiny, *options, *arguments))
        server.base = server.until(r"(http://127\.0\.0\.1:\d+)").group(1)
        return server

    return start


def test_it_prints_a_curl_that_works_and_sigterm_drains(serve, stille):
    server = serve()
    curl = server.until(r"curl (\S+) [^{]*-d '(\{.*\})'")
    answer = httpx.post(curl.group(1), content=curl.group(2), headers={"Content-Type": "application/json"}, timeout=60)
    assert answer.json()["choices"][0]["message"]["content"]

    chat = stille("chat", "--url", server.base, "--max-tokens", "5", "--top-k", "3", input="Hello\n")
    assert chat.returncode == 0, chat.stderr
    assert chat.stdout.strip()

    with httpx.Client(base_url=server.base, timeout=60) as client:
        # Open before the signal: it must still be answered, with a refusal, afterwards.
        assert client.get("/ready").status_code == 200
        with httpx.Client(base_url=server.base, timeout=60) as other, server.stream(other, 1500) as response:
            lines = response.iter_lines()  # some seconds' worth, and then it ends by itself
            next(lines)
            server.process.terminate()
            server.until("draining")
            assert client.get("/ready").status_code == 503
            refused = client.post("/v1/completions", json={"model": "tiny", "prompt": "x"})
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "service_unavailable"
            rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    assert server.wait() == 0


def test_the_drain_has_a_deadline_and_json_logs_are_json(serve):
    server = serve("--log-format", "json", "--drain-timeout", "0.3")
    with httpx.Client(base_url=server.base, timeout=60) as client, server.stream(client, LONG) as response:
        lines = response.iter_lines()
        next(lines)
        server.process.terminate()
        rest = [line for line in lines if line]
    assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "service_unavailable"
    assert server.wait() == 0
    entries = [json.loads(line) for line in server.written.splitlines()]
    (request,) = [entry for entry in entries if entry["logger"] == "stille.server.access"]
    assert (request["status"], request["level"]) == (200, "info")
    assert request["request_id"]


def test_a_second_signal_ends_it_at_once(serve):
    server = serve()
    with httpx.Client(base_url=server.base, timeout=60) as client, server.stream(client, LONG) as response:
        lines = response.iter_lines()  # kept: it closes the response when it is collected
        next(lines)
        server.process.terminate()
        server.until("draining")
        server.process.terminate()
        assert server.wait(5) == 128 + 15


def test_a_port_that_is_taken_is_one_clear_line(stille_here):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run = stille_here("serve", "--port", str(port))
    assert run.returncode == 2
    assert run.stderr.startswith(f"error: cannot listen on 127.0.0.1:{port}")
    assert "--port" in run.stderr
    assert run.stderr.count("\n") == 1


def test_a_data_directory_is_for_one_server(serve, tiny, stille_here, tmp_path):
    server = serve()
    assert httpx.get(f"{server.base}/v1/files").json()["data"] == []
    run = stille_here("serve", *tiny, "--port", "0", "--data-dir", tmp_path / "data")
    assert run.returncode == 2
    assert f"{tmp_path / 'data'} is in use by another server (process {server.process.pid})" in run.stderr
    assert "--data-dir" in run.stderr
    (tmp_path / "file").touch()
    run = stille_here("serve", *tiny, "--port", "0", "--data-dir", tmp_path / "file" / "x")
    assert run.returncode == 2
    assert "choose another (--data-dir)" in run.stderr


@pytest.mark.slow
def test_where_the_usual_data_directory_is_in_use_it_runs_without(spawn, tiny, tmp_path):
    lock = DataLock(tmp_path / "server")
    server = Process(spawn("serve", *tiny, "--port", "0", env={"STILLE_HOME": str(tmp_path)}))
    server.base = server.until(r"(http://127\.0\.0\.1:\d+)").group(1)
    lock.release()
    assert "no files and batches" in server.written
    assert httpx.get(f"{server.base}/v1/files").status_code == 404
