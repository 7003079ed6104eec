"""Many clients on one CPU server for ten minutes: no error, no hang, no wrong answer, no page left behind, flat memory.

    python benchmarks/serve_soak.py [--clients 32] [--seconds 600] [--json OUT]

A real `stille serve` process on loopback; clients in this process, each with one request after the other. What they
send is in serve_sides/traffic.py: chat, prompts of 10 to 1,500 tokens, tool calls, JSON for a schema, messages of
Anthropic's form, responses that go on from each other, embeddings. A fifth of the answers are cut off by the client
at a random moment (some before the first token). One request in eight is malformed and has to be refused, with the
right status, at once; one in eight is greedy and known: its answer has to be the one that it had before the load.
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
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serve_sides.traffic import CHAT, KNOWN, MODEL, Answer, Plan, absorb, absorb_whole, plan_request
from stille import ledger

HANG_S = 120.0  # a request that takes longer hangs
REFUSAL_S = 5.0  # a refusal that takes longer is late: the event loop was blocked, or the request was queued
# Memory that grows by more MiB per minute in the second half of the time leaks (at 300 requests, 13 KiB of each).
# Two things grow for longer and end: the history of past answers (20 MiB for 100,000 tokens, at most two of them), and
# the use of heap that malloc has had since the model was loaded. Shorter runs are not judged.
GROWTH_MIB = 4.0
JUDGED_S = 600


@dataclass
class Tally:
    """What all clients saw."""

    kinds: Counter[str] = field(default_factory=Counter)  # requests with the right answer, by kind
    counts: Counter[str] = field(default_factory=Counter)  # what was in them
    aborted: int = 0
    failures: list[str] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    refusals: list[float] = field(default_factory=list)

    def fail(self, text: str) -> None:
        self.failures.append(text[:400])


async def request(port: int, plan: Plan, tally: Tally) -> Answer | None:
    """Send a request and check what comes back. None: it was refused, or the client left in the middle."""
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**22)
    try:
        length = len(plan.payload) if plan.declared is None else plan.declared
        writer.write(
            f"POST {plan.path} HTTP/1.1\r\nHost: soak\r\nContent-Type: application/json\r\n"
            f"Connection: close\r\nContent-Length: {length}\r\n\r\n".encode()
            + plan.payload
        )
        if plan.refused is not None and plan.refused[0] == 0:
            writer.write_eof()
        line = await reader.readline()
        status = int(line.split()[1]) if line else 0
        if plan.refused is not None or status != 200:
            check_refusal(plan, status, await reader.read(), time.perf_counter() - started, tally)
            return None
        while (await reader.readline()).strip():
            pass  # headers
        answer = Answer()
        if plan.stream:
            if not await read_stream(reader, plan, answer, tally):
                tally.aborted += 1
                return None
        else:
            absorb_whole(answer, plan.path, json.loads(await reader.read()))
    finally:
        writer.close()
    return answer


async def read_stream(reader: asyncio.StreamReader, plan: Plan, answer: Answer, tally: Tally) -> bool:
    """Read a stream to its end; False if the client leaves before."""
    pieces, last = 0, time.perf_counter()
    async for line in reader:
        if not line.startswith(b"data: "):
            continue
        if line.startswith(b"data: [DONE]"):
            answer.complete = plan.path == CHAT
            continue
        if absorb(answer, plan.path, json.loads(line[6:])):
            now = time.perf_counter()
            (tally.gaps if pieces else tally.first).append(now - last)
            last, pieces = now, pieces + 1
        if plan.leave_after is not None and pieces >= plan.leave_after:
            return False
    return True


def check_refusal(plan: Plan, status: int, rest: bytes, elapsed: float, tally: Tally) -> None:
    """That a malformed request is refused as it should be, and no other is."""
    if plan.refused is None:
        tally.fail(f"{plan.kind}, {plan.path}: status {status}, {rest[-300:]!r}")
        return
    expected, word = plan.refused
    # A body that never ends has no right answer; none at all, or 400.
    right = status in (0, 400) if expected == 0 else status == expected and word.encode() in rest
    if not right:
        tally.fail(f"{plan.path}, {plan.payload[:80]!r}: {status}, {rest[-200:]!r}; not {expected} with {word}")
    elif elapsed > REFUSAL_S:
        tally.fail(f"{plan.path}, {plan.payload[:80]!r}: refused after {elapsed:.1f} s")
    else:
        tally.kinds[plan.kind] += 1
    tally.refusals.append(elapsed)


def check(plan: Plan, answer: Answer, tally: Tally) -> None:
    """That an answer is whole and right."""
    if answer.error is not None:
        problem = f"error event {answer.error}"
    elif not answer.complete or (plan.limit and (answer.tokens is None or answer.reason is None)):
        problem = f"ended early after {answer.text!r}"
    elif plan.limit and answer.tokens is not None and answer.tokens > plan.limit:
        problem = f"{answer.tokens} tokens, {plan.limit} were asked for"
    else:
        problem = plan.judge(answer, tally.counts)
    if problem:
        tally.fail(f"{plan.kind}, {plan.path}: {problem}")
    else:
        tally.kinds[plan.kind] += 1


async def client(index: int, port: int, reference: str, deadline: float, tally: Tally) -> None:
    """One request after the other until the deadline; what runs then is finished."""
    generator = random.Random(index)
    previous: str | None = None
    while time.monotonic() < deadline:
        plan = plan_request(generator, reference, previous)
        try:
            async with asyncio.timeout(plan.leave_within_s or HANG_S):
                answer = await request(port, plan, tally)
            if answer is not None:
                check(plan, answer, tally)
                previous = answer.id or previous
        except TimeoutError:
            if plan.leave_within_s is not None:
                tally.aborted += 1
            else:
                tally.fail(f"{plan.kind}, {plan.path}: a hang, no end within {HANG_S:.0f} s")
        except (OSError, ValueError, LookupError) as error:
            tally.fail(f"{plan.kind}, {plan.path}: {error!r}")
            await asyncio.sleep(0.5)


async def soak(port: int, clients: int, seconds: float, pid: int) -> tuple[Tally, list[float]]:
    """Run all clients; also samples the server's resident memory once a second, in MiB."""
    tally = Tally()
    text = await known_answer(port)
    sockets = open_files(pid)
    deadline = time.monotonic() + seconds
    memory: list[float] = []

    async def watch() -> None:
        while True:
            memory.append(status_mib(pid, "VmRSS"))
            if len(memory) % 60 == 0:
                done = sum(tally.kinds.values())
                print(f"{len(memory)} s: {memory[-1]:.0f} MiB, {done} done, {len(tally.failures)} failures", flush=True)
            await asyncio.sleep(1)

    watcher = asyncio.create_task(watch())
    await asyncio.gather(*(client(index, port, text, deadline, tally) for index in range(clients)))
    watcher.cancel()
    if await known_answer(port) != text:
        tally.fail("the known question has another answer after the load")
    await asyncio.sleep(1)
    if (now := open_files(pid)) > sockets + 4:
        tally.fail(f"{now} files and sockets are open after the load, {sockets} were before")
    memory = memory[: int(seconds)]  # what comes later is the end of the last requests
    if seconds >= JUDGED_S and (slope := growth(memory)) > GROWTH_MIB:
        tally.fail(f"memory grows by {slope:.1f} MiB per minute in the second half of the time")
    return tally, memory


def growth(memory: list[float]) -> float:
    """Slope of the second half of samples a second apart, by least squares: MiB per minute."""
    half = memory[len(memory) // 2 :]
    return statistics.linear_regression(range(len(half)), half).slope * 60


async def known_answer(port: int) -> str:
    """The greedy answer to the known question, not streamed."""

    def ask() -> str:
        body = json.dumps({"model": MODEL, **KNOWN}).encode()
        url = f"http://127.0.0.1:{port}{CHAT}"
        call = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(call, timeout=HANG_S) as response:
            return json.load(response)["choices"][0]["message"]["content"]

    return await asyncio.to_thread(ask)


def metrics(port: int) -> dict[str, float]:
    """Samples of /metrics without labels, and those of HTTP answers."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as response:
        lines = response.read().decode().splitlines()
    plain = (line for line in lines if line and line[0] != "#" and ("{" not in line or "http_requests_total" in line))
    pairs = (line.rsplit(" ", 1) for line in plain)
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
    answered = {name: value for name, value in now.items() if re.search(r'status="(5..|429)"', name)}
    return problems + [f"{value:.0f} answers of {name}" for name, value in answered.items()]


def open_files(pid: int) -> int:
    """Open files and sockets of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def status_mib(pid: int, name: str) -> float:
    """VmRSS or VmHWM of a process."""
    match = re.search(rf"^{name}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(encoding="ascii"), re.MULTILINE)
    if match is None:
        raise SystemExit("the server died")
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
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--json", type=Path, help="merge the records into this ledger file")
    options = parser.parse_args()
    with tempfile.TemporaryFile("w+") as log, tempfile.TemporaryDirectory() as data:
        command = [sys.executable, "-m", "stille.cli", "serve", "--port", "0", "--log-format", "json"]
        command += ["--data-dir", data]
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
        log.seek(0)
        tally.failures += [f"log: {line[-300:]}" for line in log if '"level":"error"' in line.lower().replace(" ", "")]
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
    load = f"{options.clients} clients for {options.seconds:g} s, mixed traffic, prompts of 10 to 1,500 tokens, CPU."
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(tally.kinds.items()))
    counts = tally.counts
    quarter, half = memory[len(memory) // 4], memory[len(memory) // 2]

    def record(name: str, value: float, unit: str, notes: str, goal: str | None = None) -> ledger.Record:
        return ledger.measure(f"serve.soak{name}", value, unit, goal=goal, command=command, notes=f"{notes} {load}")

    return [
        record(
            "",
            len(tally.failures),
            "failures",
            "Errors, hangs, wrong answers, invalid tool calls, wrong refusals, leaked pages and growing memory under "
            f"mixed traffic. Right, by kind: {kinds}. {tally.aborted} cut off by their clients. {counts['calls']} tool "
            f"calls were finished and valid, {counts['calls cut']} cut by max_tokens; so were {counts['documents']} "
            f"and {counts['documents cut']} JSON documents. {after['stille_preemptions_total']:.0f} preemptions.",
            goal="value <= 0",
        ),
        record(
            ".throughput",
            after["stille_generation_tokens_total"] / elapsed,
            "tok/s",
            "Generated tokens per second of all clients together.",
        ),
        record(".ttft_p50", percentile(tally.first, 0.5), "ms", "Median time to the first token, waiting included."),
        record(".ttft_p99", percentile(tally.first, 0.99), "ms", "99th percentile of the time to the first token."),
        record(".itl_p50", percentile(tally.gaps, 0.5), "ms", "Median time between two pieces of an answer."),
        record(".itl_p99", percentile(tally.gaps, 0.99), "ms", "99th percentile of the time between two pieces."),
        record(
            ".refusal_p99",
            percentile(tally.refusals, 0.99),
            "ms",
            f"99th percentile of the time until a malformed request is refused; median "
            f"{percentile(tally.refusals, 0.5):.0f} ms.",
        ),
        record(
            ".memory",
            peak / 1024,
            "GiB",
            f"Peak resident memory of the server under this load. {quarter:.0f} MiB after a quarter of the time, "
            f"{half:.0f} after half, {memory[-1]:.0f} at its end.",
            goal="value <= 1.2",
        ),
        record(
            ".memory_growth",
            growth(memory),
            "MiB/min",
            "Slope of the server's resident memory over the second half of the time, by least squares.",
            goal=f"value <= {GROWTH_MIB:g}" if options.seconds >= JUDGED_S else None,
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
