"""Many streaming clients on one CPU server for a while: no error, no hang, no wrong answer, no page left behind.

    python benchmarks/serve_soak.py [--clients 64] [--seconds 120] [--json OUT]

A real `stille serve` process on loopback; clients in this process, each with one request after the other. Prompts of
20 to 1,200 tokens, answers of up to 128, a fifth of the streams cut off by the client at a random moment (some before
the first token), some prompts with a common beginning. One request in eight is greedy and known: its answer has to be
the one that it had before the load.
"""

import argparse
import asyncio
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from stille import ledger

HANG_S = 120.0  # silence that counts as a hang
KNOWN = {
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "temperature": 0,
    "max_tokens": 24,
}
SYSTEM = "You are a patient teacher. " + "Explain every term that a beginner may not know. " * 12
WORDS = " ".join(topics[name] for name in sorted(topics)).split()


@dataclass
class Tally:
    """What all clients saw."""

    finished: int = 0
    aborted: int = 0
    known: int = 0
    tokens: int = 0
    failures: list[str] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)

    def fail(self, text: str) -> None:
        self.failures.append(text[:300])


@dataclass
class Plan:
    """One request: its body, the answer it must have (if known), and how many tokens until the client leaves."""

    body: dict[str, Any]
    expected: str | None = None
    leave_after: int | None = None
    leave_within_s: float | None = None


def plan_request(generator: random.Random, reference: str) -> Plan:
    """Draw the next request of a client."""
    if generator.random() < 0.125:
        return Plan(KNOWN, expected=reference)
    kind = generator.random()
    words = generator.randint(8, 40) if kind < 0.6 else generator.randint(80, 200) if kind < 0.9 else 700
    start = generator.randrange(len(WORDS) - words)
    messages = [{"role": "user", "content": "Continue: " + " ".join(WORDS[start : start + words])}]
    if generator.random() < 0.3:
        messages.insert(0, {"role": "system", "content": SYSTEM})
    body = {"messages": messages, "max_tokens": generator.randint(8, 128), "temperature": 0.8, "top_p": 0.95}
    leaving = generator.random()
    if leaving < 0.05:
        return Plan(body, leave_within_s=generator.uniform(0.0, 0.5))
    if leaving < 0.2:
        return Plan(body, leave_after=generator.randint(1, 24))
    return Plan(body)


async def request(port: int, plan: Plan, tally: Tally) -> None:
    """Stream one answer, or leave in the middle of it, and check all of it."""
    body = {"model": "stille-135m", "stream": True, "stream_options": {"include_usage": True}, **plan.body}
    payload = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    started = last = time.perf_counter()
    text, pieces, usage, done, reason = "", 0, None, False, None
    try:
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: soak\r\nContent-Type: application/json\r\n"
            b"Connection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(payload), payload)
        )
        status = await reader.readline()
        if b" 200 " not in status:
            tally.fail(f"status {status!r}: {(await reader.read(2000))!r}")
            return
        async for line in reader:
            if not line.startswith(b"data: "):
                continue
            if line.startswith(b"data: [DONE]"):
                done = True
                break
            event = json.loads(line[6:])
            if "error" in event:
                tally.fail(f"error event: {event['error']}")
                return
            usage = event.get("usage") or usage
            for choice in event["choices"]:
                reason = choice["finish_reason"] or reason
                if piece := choice["delta"].get("content"):
                    now = time.perf_counter()
                    (tally.gaps if pieces else tally.first).append(now - last)
                    last, text, pieces = now, text + piece, pieces + 1
            if plan.leave_after is not None and pieces >= plan.leave_after:
                tally.aborted += 1
                return
    finally:
        writer.close()
    if not (done and usage and reason in ("stop", "length")):
        tally.fail(f"a stream ended early after {pieces} pieces, {time.perf_counter() - started:.1f} s")
    elif usage["completion_tokens"] > plan.body["max_tokens"]:
        tally.fail(f"{usage['completion_tokens']} tokens, {plan.body['max_tokens']} were asked for")
    elif plan.expected is not None and text != plan.expected:
        tally.fail(f"the known question was answered with {text!r} instead of {plan.expected!r}")
    else:
        tally.finished += 1
        tally.known += plan.expected is not None
        tally.tokens += usage["completion_tokens"]


async def client(index: int, port: int, reference: str, deadline: float, tally: Tally) -> None:
    """One request after the other until the deadline; what runs then is finished."""
    generator = random.Random(index)
    while time.monotonic() < deadline:
        plan = plan_request(generator, reference)
        try:
            async with asyncio.timeout(plan.leave_within_s or HANG_S):
                await request(port, plan, tally)
        except TimeoutError:
            if plan.leave_within_s is not None:
                tally.aborted += 1
            else:
                tally.fail(f"a hang: no end within {HANG_S:.0f} s")
        except OSError as error:
            tally.fail(f"connection: {error!r}")


async def soak(port: int, clients: int, seconds: float, pid: int) -> tuple[Tally, list[float]]:
    """Run all clients; also samples the server's resident memory, in MiB."""
    before = Tally()
    text = await known_answer(port)
    deadline = time.monotonic() + seconds
    memory: list[float] = []

    async def watch() -> None:
        while True:
            memory.append(status_mib(pid, "VmRSS"))
            await asyncio.sleep(1)

    watcher = asyncio.create_task(watch())
    await asyncio.gather(*(client(index, port, text, deadline, before) for index in range(clients)))
    watcher.cancel()
    if await known_answer(port) != text:
        before.fail("the known question has another answer after the load")
    return before, memory


async def known_answer(port: int) -> str:
    """The greedy answer to the known question, not streamed."""

    def ask() -> str:
        body = json.dumps({"model": "stille-135m", **KNOWN}).encode()
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        call = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(call, timeout=HANG_S) as response:
            return json.load(response)["choices"][0]["message"]["content"]

    return await asyncio.to_thread(ask)


def metrics(port: int) -> dict[str, float]:
    """Samples of /metrics without labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as response:
        lines = response.read().decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if line and line[0] != "#" and "{" not in line)
    return {name: float(value) for name, value in pairs}


def leftovers(port: int) -> list[str]:
    """What the engine still holds a while after the last client left."""
    for _ in range(100):
        now = metrics(port)
        held = {name: now[f"stille_{name}"] for name in
                ("sequences_running", "sequences_waiting", "queue_requests", "kv_pages_used")}  # fmt: skip
        if not any(held.values()):
            break
        time.sleep(0.1)
    problems = [f"{name} is {value:.0f} after the load" for name, value in held.items() if value]
    if now["stille_kv_pages"] != now["stille_kv_pages_cached"] + now["stille_kv_pages_free"]:
        problems.append("pages are missing from the count")
    return problems


def status_mib(pid: int, name: str) -> float:
    """VmRSS or VmHWM of a process."""
    match = re.search(rf"^{name}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(encoding="ascii"), re.MULTILINE)
    assert match is not None
    return int(match[1]) / 1024


def percentile(values: list[float], share: float) -> float:
    """Of a non-empty list, in milliseconds."""
    return statistics.quantiles(values, n=1000, method="inclusive")[round(share * 1000) - 1] * 1000


def wait_for_port(server: subprocess.Popen, log: Any, seconds: float = 300) -> int:
    """The port that the server announces in its log."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        log.seek(0)
        text = log.read()
        if match := re.search(r"serving \S+ on http://[\d.]+:(\d+)", text):
            return int(match[1])
        if server.poll() is not None:
            raise SystemExit(f"the server ended with status {server.returncode}:\n{text[-2000:]}")
        time.sleep(0.2)
    raise SystemExit(f"the server did not start within {seconds:.0f} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--json", type=Path, help="merge the records into this ledger file")
    options = parser.parse_args()
    with tempfile.TemporaryFile("w+") as log:
        command = [sys.executable, "-m", "stille.cli", "serve", "--port", "0", "--log-format", "json"]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            port = wait_for_port(server, log)
            started = time.perf_counter()
            tally, memory = asyncio.run(soak(port, options.clients, options.seconds, server.pid))
            elapsed = time.perf_counter() - started
            after = metrics(port)
            tally.failures += leftovers(port)
            peak = status_mib(server.pid, "VmHWM")
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                status = server.wait(60)
            except subprocess.TimeoutExpired:
                server.kill()
                status = -9
    if status != 0:
        tally.fail(f"the server ended with status {status} after SIGTERM")
    for failure in tally.failures[:20]:
        print(f"FAILURE {failure}", file=sys.stderr)
    records = describe(options, tally, memory, elapsed, after, peak)
    print(ledger.render_table(records))
    if options.json:
        ledger.write(options.json, records)
    return 1 if tally.failures else 0


def describe(
    options: argparse.Namespace,
    tally: Tally,
    memory: list[float],
    elapsed: float,
    after: dict[str, float],
    peak: float,
) -> list[ledger.Record]:
    """The records of a run."""
    command = f"python benchmarks/serve_soak.py --clients {options.clients} --seconds {options.seconds:g}"
    load = f"{options.clients} streaming clients for {options.seconds:g} s, prompts of 20 to 1,200 tokens, CPU."
    generated = after["stille_generation_tokens_total"]
    quarter = memory[len(memory) // 4]

    def record(name: str, value: float, unit: str, notes: str, goal: str | None = None) -> ledger.Record:
        return ledger.measure(f"serve.soak{name}", value, unit, goal=goal, command=command, notes=f"{notes} {load}")

    return [
        record(
            "",
            len(tally.failures),
            "failures",
            "Errors, hangs, wrong answers and leaked pages under load. "
            f"{tally.finished} answers finished, {tally.known} of them known beforehand and equal; {tally.aborted} cut "
            f"off by their clients; {after['stille_preemptions_total']:.0f} preemptions.",
            goal="value <= 0",
        ),
        record(".throughput", generated / elapsed, "tok/s", "Generated tokens per second of all clients together."),
        record(".ttft_p50", percentile(tally.first, 0.5), "ms", "Median time to the first token, waiting included."),
        record(".ttft_p99", percentile(tally.first, 0.99), "ms", "99th percentile of the time to the first token."),
        record(".itl_p50", percentile(tally.gaps, 0.5), "ms", "Median time between two pieces of an answer."),
        record(".itl_p99", percentile(tally.gaps, 0.99), "ms", "99th percentile of the time between two pieces."),
        record(
            ".memory",
            peak / 1024,
            "GiB",
            f"Peak resident memory of the server under this load. {quarter / 1024:.2f} GiB after a quarter of the "
            f"time, {memory[-1] / 1024:.2f} GiB at its end.",
            goal="value <= 1.2",
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
