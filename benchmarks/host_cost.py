"""What a token costs the host, on its way from a device to whoever asked for it.

    python benchmarks/host_cost.py                    # all ways, 256 answers at once
    python benchmarks/host_cost.py --device-ms 4.2    # beside a device that takes 4.2 ms for a step of all of them
    python benchmarks/host_cost.py --ways agent --form calls --profile

The engine is the real one, scheduler, grammars, detokenisation and all, but for the device and the sampling: the
answers are written already, and a step hands out their next tokens, at once or after as long as `--device-ms` says (in
which Python's lock is free, as it is while one waits for a GPU). Ways: `core` steps alone; `stream`, tokens read one
by one from `AsyncLLM`; `agent` and `agent-whole`, `EngineModel`'s events and its reply alone; `server` and
`server-stream`, chat completions over HTTP, of which the server's process is measured. Forms: `text`, and `calls` of
tools under the grammar of their schemas, which is compiled before.

It says microseconds of a token: by the clock (with --device-ms 0 that is the host's work), and of the processor: of
the engine's thread, and of the others, where the event loop is and the masks of grammars are computed.
"""

import argparse
import asyncio
import contextlib
import cProfile
import json
import multiprocessing
import pstats
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stille import ledger
from stille.agents.models.engine import EngineModel, _form
from stille.agents.types import Message, ModelRequest, Reply, ToolSpec
from stille.engine.async_llm import AsyncLLM
from stille.engine.build import Engine
from stille.engine.config import EngineConfig
from stille.engine.core import EngineCore
from stille.engine.executor import StepInput
from stille.engine.model_runner import Logprobs, StepOutput
from stille.engine.sampling_params import SamplingParams
from stille.model import load_config, load_tokenizer
from stille.model.store import resolve

PROMPT = "What does it take to feed a family of four for a month, and what would you leave out?"
SENTENCE = "The quick brown fox, as ever, jumps over “the lazy dog” — and back again in 17.5 seconds.\n"
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 40},
        "days": {"type": "integer", "minimum": 1, "maximum": 30},
        "notes": {"type": "array", "items": {"type": "string", "maxLength": 60}, "maxItems": 3},
        "unit": {"enum": ["C", "F"]},
    },
    "required": ["city", "days", "notes", "unit"],
    "additionalProperties": False,
}
NAMES = ["get_weather", "find_hotels", "plan_trip"]
ARGUMENTS = {"city": "Oslo, at sea", "days": 14, "notes": ["no rain, please", 'as "cheap" as it gets'], "unit": "C"}


class Written:
    """An executor and a runner in one, whose answers are known: row i of the table is that of requests with seed i.

    Attributes:
        pause: seconds that the device takes for a step.
    """

    device = torch.device("cpu")
    async_depth = 1
    hidden_size = 1
    experts = routing = drafter = None

    def __init__(self, vocab_size: int, num_pages: int, slots: int, answers_AT: np.ndarray):
        self.executor, self.vocab_size, self.num_pages = self, vocab_size, num_pages
        self.pause, self._free_at = 0.0, 0.0
        self.calls, self._some = 0, torch.zeros(64)
        self._answers_AT = answers_AT
        self._answer, self._prompt = np.zeros(slots, np.int64), np.zeros(slots, np.int64)

    def assign(self, slot: int, params: SamplingParams, seed: int, prompt_ids: list[int], output_ids: Any = ()) -> None:
        self._answer[slot], self._prompt[slot] = (params.grammar is not None), len(prompt_ids)

    def launch(
        self, step: StepInput, allowed: Any = None, guesses: Any = None, draft: Any = False, keep: Any = False
    ) -> "Handle":
        self._free_at = max(time.perf_counter(), self._free_at) + self.pause
        if allowed is not None:
            allowed()
        for _ in range(self.calls):  # each lets go of Python's lock and takes it again, as those that feed a device do
            self._some.add_(1)
        slots, at = step.slots[step.sample], (step.starts + step.lengths)[step.sample]
        return Handle(self._answers_AT[self._answer[slots], at - self._prompt[slots]].tolist(), self._free_at)


@dataclass
class Handle:
    tokens: list[int]
    ready_at: float
    logprobs: Logprobs | None = None

    def result(self) -> StepOutput:
        if (left := self.ready_at - time.perf_counter()) > 0:
            time.sleep(left)
        return StepOutput(self.tokens, self.logprobs)


def written_engine(options: argparse.Namespace) -> tuple[Engine, Written]:
    """An engine of the model's tokenizer and limits, without the model."""
    tokenizer: Any = load_tokenizer(resolve(options.model))
    config = EngineConfig(
        model=options.model, dtype="fp32", device="cpu", max_model_len=2048, max_num_seqs=options.batch,
        kv_cache_tokens=options.batch * 2048, max_queue=4 * options.batch, max_draft_tokens=0,
    ).resolve(model := load_config(options.model))  # fmt: skip
    text = tokenizer.encode(SENTENCE * (options.tokens // 10 + 2))[: options.tokens]
    one = [json.dumps({"name": name, "arguments": ARGUMENTS}) for name in NAMES]
    made, count = "", 0
    while len(ids := tokenizer.encode(made)) < options.tokens:
        kept = ids
        made += ("\n" if made else "") + f"<tool_call>\n{one[count % len(one)]}\n</tool_call>"
        count += 1
    calls = kept
    eos = tokenizer.eos_token_id
    answers_AT = np.full((2, options.tokens + 2), eos)
    answers_AT[0, : len(text)], answers_AT[1, : len(calls)] = text, calls
    pages = options.batch * 2048 // 64 + 1
    written = Written(model.vocab_size, pages, options.batch, answers_AT)
    core = EngineCore(written, tokenizer, config, [eos])  # type: ignore[arg-type]
    written.calls = options.device_calls
    core.runner = written  # type: ignore[assignment]
    return Engine(core, tokenizer, "written"), written


def tools() -> list[dict[str, Any]]:
    return [{"name": name, "description": "Useful.", "parameters": SCHEMA} for name in NAMES]


def request(form: str, options: argparse.Namespace) -> ModelRequest:
    given = [ToolSpec(**tool) for tool in tools()] if form == "calls" else []
    return ModelRequest(
        messages=[Message(role="user", content=PROMPT)], tools=given, choice="required" if given else "none",
        max_tokens=options.tokens, temperature=1.0, seed=1,
    )  # fmt: skip


@dataclass
class Cost:
    """Seconds of all tokens: by the clock, of the process's threads, and of its engine's."""

    tokens: int
    wall: float
    processor: float
    engine: float


@contextlib.contextmanager
def profiled(on: bool) -> Iterator[None]:
    """The calls of this thread: of the engine in `core`, else of the event loop."""
    if not on:
        yield
        return
    with cProfile.Profile() as profile:
        yield
    pstats.Stats(profile).sort_stats("tottime").print_stats(35)


async def run_stream(llm: AsyncLLM, model: EngineModel, asked: ModelRequest) -> int:
    prompt, params = await plain(model, asked)
    count = 0
    async for delta in llm.generate(prompt, params):
        count += len(delta.token_ids)
    return count


async def plain(model: EngineModel, asked: ModelRequest) -> tuple[list[int], SamplingParams]:
    """What the model asks its engine."""
    await model._ready()
    grammar, _ = _form(asked)
    params = SamplingParams(max_tokens=asked.max_tokens, temperature=1.0, seed=1, grammar=grammar)
    return await model._prompt(asked), params


async def run_agent(llm: AsyncLLM, model: EngineModel, asked: ModelRequest) -> int:
    reply = None
    async for event in model.stream(asked):
        reply = event
    assert isinstance(reply, Reply)
    return reply.usage.completion_tokens


async def run_whole(llm: AsyncLLM, model: EngineModel, asked: ModelRequest) -> int:
    reply = await model.complete(asked)
    return reply.usage.completion_tokens


IN_PROCESS: dict[str, Callable[..., Any]] = {"stream": run_stream, "agent": run_agent, "agent-whole": run_whole}


def measure_core(form: str, options: argparse.Namespace) -> Cost:
    engine, written = written_engine(options)
    core = engine.core
    written.pause = options.device_ms / 1000
    llm = AsyncLLM.from_engine(engine)

    async def ask() -> tuple[list[int], SamplingParams]:
        async with llm:
            return await plain(EngineModel(llm), request(form, options))

    prompt, params = asyncio.run(ask())
    for index in range(options.batch):
        core.add(f"r{index}", prompt, params)
    begun, cpu = time.perf_counter(), time.process_time()
    tokens = 0
    with profiled(options.profile):
        while core.has_work:
            tokens += sum(len(delta.token_ids) for delta in core.step())
    used = time.process_time() - cpu
    return Cost(tokens, time.perf_counter() - begun, used, used)


def measure_async(way: str, form: str, options: argparse.Namespace) -> Cost:
    engine, written = written_engine(options)
    return asyncio.run(_measure_async(way, form, engine, written, options))


async def _measure_async(way: str, form: str, engine: Engine, written: Written, options: argparse.Namespace) -> Cost:
    async with AsyncLLM.from_engine(engine) as llm:
        model, asked = EngineModel(llm), request(form, options)
        await IN_PROCESS[way](llm, model, asked)  # what is compiled and looked up once
        written.pause = options.device_ms / 1000
        clock = time.pthread_getcpuclockid(llm._thread.ident)  # type: ignore[union-attr,arg-type]
        begun, cpu, own = time.perf_counter(), time.process_time(), time.clock_gettime(clock)
        with profiled(options.profile):
            counts = await asyncio.gather(*(IN_PROCESS[way](llm, model, asked) for _ in range(options.batch)))
        wall, used = time.perf_counter() - begun, time.process_time() - cpu
        return Cost(sum(counts), wall, used, time.clock_gettime(clock) - own)


# Over HTTP


def serve(options: argparse.Namespace, pipe: Any) -> None:
    """The server's process: says its port, then answers "mark" with its clocks."""
    import uvicorn

    from stille.server import ServerSettings, create_app

    engine, written = written_engine(options)
    llm = AsyncLLM.from_engine(engine)
    app = create_app(llm, ServerSettings(served_model_names=("written",)))
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(2048)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))

    def talk() -> None:
        while not server.started:
            time.sleep(0.01)
        pipe.send(sock.getsockname()[1])
        while (word := pipe.recv()) != "end":
            written.pause = options.device_ms / 1000 if word == "begin" else 0
            clock = time.pthread_getcpuclockid(llm._thread.ident)  # type: ignore[union-attr,arg-type]
            pipe.send((time.process_time(), time.clock_gettime(clock)))
        server.should_exit = True

    threading.Thread(target=talk, daemon=True).start()
    with profiled(options.profile):
        server.run(sockets=[sock])


def measure_server(way: str, form: str, options: argparse.Namespace) -> Cost:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(options, there))
    process.start()
    body: dict[str, Any] = {
        "model": "written", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": options.tokens, "seed": 1,
        "stream": way == "server-stream",
    }  # fmt: skip
    if body["stream"]:
        body["stream_options"] = {"include_usage": True}
    if form == "calls":
        body |= {"tools": [{"type": "function", "function": tool} for tool in tools()], "tool_choice": "required"}
    port, sent = here.recv(), json.dumps(body).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
    whole = f"{head}Content-Length: {len(sent)}\r\n\r\n".encode() + sent

    async def ask() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(whole)
        parts = []
        while part := await reader.read(1 << 18):
            parts.append(part)
        writer.close()
        answer = b"".join(parts)
        at = answer.rindex(b'"completion_tokens":')
        return int(answer[at + 20 :].split(b",")[0])

    async def load() -> tuple[list[int], float]:
        await ask()
        here.send("begin")
        marks.append(here.recv())
        begun = time.perf_counter()
        counts = await asyncio.gather(*(ask() for _ in range(options.batch)))
        return counts, time.perf_counter() - begun

    marks: list[tuple[float, float]] = []
    counts, wall = asyncio.run(load())
    here.send("mark")
    (cpu, own), (cpu_after, own_after) = marks[0], here.recv()
    here.send("end")
    process.join()
    return Cost(sum(counts), wall, cpu_after - cpu, own_after - own)


def measure(way: str, form: str, options: argparse.Namespace) -> Cost:
    if way == "core":
        return measure_core(form, options)
    return (measure_async if way in IN_PROCESS else measure_server)(way, form, options)


def main() -> int:
    options = parse()
    torch.set_num_threads(1)
    if options.switch_ms is not None:
        sys.setswitchinterval(options.switch_ms / 1000)
    records: list[ledger.Record] = []
    command = f"python benchmarks/host_cost.py {ledger.arguments()}".strip()
    print(f"{'way':<14} {'form':<6} {'tokens':>7} {'us/token':>9} {'tok/s':>9} {'engine us':>9} {'others us':>9}")
    for form in options.form:
        for way in options.ways:
            costs = [measure(way, form, options) for _ in range(1 if options.profile else options.repeats)]
            cost = sorted(costs, key=lambda each: each.wall / each.tokens)[len(costs) // 2]
            wall, cpu, own = (1e6 * value / cost.tokens for value in (cost.wall, cost.processor, cost.engine))
            print(
                f"{way:<14} {form:<6} {cost.tokens:>7,} {wall:9.1f} {1e6 / wall:9,.0f} {own:9.1f} {cpu - own:9.1f}",
                flush=True,
            )
            id, machine = f"host.{way.replace('-', '.')}.{form}", ledger.describe_machine()
            records.append(
                ledger.measure(
                    id, cpu, "us", better="lower", command=command, machine=machine,
                    notes=f"Of the processor for each token, {options.batch} answers at once, of which {own:.1f} in "
                    f"the engine's thread; {wall:.1f} by the clock beside a device of {options.device_ms:g} ms a step.",
                )
            )  # fmt: skip
    if options.json:
        ledger.write(options.json, records)
    return 0


WAYS = ["core", *IN_PROCESS, "server", "server-stream"]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", default="stille-135m")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--form", nargs="+", choices=["text", "calls"], default=["text", "calls"])
    parser.add_argument("--batch", type=int, default=256, help="answers at once")
    parser.add_argument("--tokens", type=int, default=256, help="of an answer, at most")
    parser.add_argument("--device-ms", type=float, default=0.0, help="what the device takes for a step")
    parser.add_argument("--device-calls", type=int, default=30, help="calls of torch that a step is made of")
    parser.add_argument("--switch-ms", type=float, help="Python's switch interval; its own if not given")
    parser.add_argument("--repeats", type=int, default=3, help="of which the median is told")
    parser.add_argument("--profile", action="store_true", help="instead of more than one run, where its time goes")
    parser.add_argument("--json", type=Path, help="merge the records into this ledger file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
