"""Speculative decoding: whether answers stay the same, how many tokens a step gives, and what that makes of speed.

    python benchmarks/speculation.py --json benchmarks/results/speculation.json

Both sides are this engine, alike in everything but `max_draft_tokens`; on a GPU both decode through CUDA graphs. Every
prompt is answered once by each side, in turn, and no prompt twice, so nothing is guessed from having been answered
before; the first prompts of a kind only warm up. Requests come one at a time ("chat", "code", "prose": the default
system prompt and a user's; "json": a call of one of six tools, under their grammar), or many at once, where
speculation should at least cost nothing.
"""

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from stille import LLM, Grammar, SamplingParams, ledger
from stille.engine.build import Engine, build_engine
from stille.engine.config import EngineConfig
from stille.engine.prompts import Prompts
from stille.engine.speculate import SpeculationStats

DATA = Path(__file__).parent / "data" / "speculation.json"
WARM = 2


@dataclass
class Side:
    """One engine, and what it took for the prompts so far.

    Attributes:
        whole, seconds: from asking to the last token, and from the first token to the last.
        tokens: of all answers, and of each round those after the first.
    """

    engine: Engine
    whole: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    later: list[int] = field(default_factory=list)
    steps: int = 0

    def answer(self, prompts: list[list[int]], params: list[SamplingParams], count: bool) -> list[list[int]]:
        core = self.engine.core
        answers: list[list[int]] = [[] for _ in prompts]
        first, begun, early = 0.0, time.perf_counter(), 0
        for number, (prompt, each) in enumerate(zip(prompts, params, strict=True)):
            core.add(str(number), prompt, each)
        before = core.metrics.steps
        while core.has_work:
            for delta in core.step():
                answers[int(delta.request_id)] += delta.token_ids
            if not first and any(answers):
                first, early, before = time.perf_counter(), sum(map(len, answers)), core.metrics.steps
        end = time.perf_counter()
        if count:
            self.whole.append(end - begun)
            self.seconds.append(end - first)
            self.tokens.append(sum(map(len, answers)))
            self.later.append(self.tokens[-1] - early)
            self.steps += core.metrics.steps - before
        return answers

    @property
    def rate(self) -> float:
        """Tokens per second after the first of each answer."""
        return sum(self.later) / sum(self.seconds)

    @property
    def whole_rate(self) -> float:
        """Tokens per second, prompts included."""
        return sum(self.tokens) / sum(self.whole)


def main() -> int:
    options = parse()
    gpu = torch.cuda.is_available()
    settings: dict[str, Any] = {"model": options.model, "max_model_len": 2048, "max_num_seqs": options.batch}
    if options.threads:
        settings["threads"] = options.threads
    plain = build_engine(EngineConfig(**settings, max_draft_tokens=0))
    guessing = build_engine(EngineConfig(**settings, max_draft_tokens=options.most, draft=options.draft))
    data = json.loads(DATA.read_text(encoding="utf-8"))
    prefix = "spec" if gpu else "spec.cpu"
    records: list[ledger.Record] = []
    for domain in options.domains:
        for temperature in (0.0, 1.0):
            records += one_by_one(plain, guessing, data, domain, temperature, prefix, options)
    for batch in options.batches:
        records.append(together(plain, guessing, data, batch, prefix, options))
    print(ledger.render_table(records))
    if options.json:
        ledger.write(options.json, records)
    return 0


def one_by_one(
    plain: Engine,
    guessing: Engine,
    data: Any,
    domain: str,
    temperature: float,
    prefix: str,
    options: argparse.Namespace,
) -> list[ledger.Record]:
    work = requests(plain, data, domain, temperature, options.tokens)
    sides = Side(plain), Side(guessing)
    speculator = guessing.core.speculator
    assert speculator is not None
    same = 0
    for number, (prompt, params) in enumerate(work):
        if number == WARM:
            speculator.stats = SpeculationStats()
        order = sides if number % 2 else sides[::-1]
        answers = {id(side): side.answer([prompt], [params], number >= WARM)[0] for side in order}
        theirs, ours = (answers[id(side)] for side in sides)
        same += ours == theirs
    exact = torch.cuda.is_available() is False
    if exact and same != len(work):
        raise SystemExit(f"WRONG: {len(work) - same} of {len(work)} answers differ with guesses; nothing is recorded")
    if domain == "json":
        check_calls(plain, work)
    before, after = sides
    stats = speculator.stats
    places = " ".join(f"{right / tried:.2f}" for tried, right in stats.places[:8] if tried)
    sources = ", ".join(f"{name} {right} of {tried}" for name, (tried, right) in sorted(stats.sources.items()))
    kind = "greedy" if temperature == 0 else f"temperature {temperature:g}"
    suffix = "" if temperature == 0 else ".drawn"
    goal = None
    if temperature == 0:
        goal = {"spec.chat": "ratio >= 2.5", "spec.json": "value >= 5000"}.get(f"{prefix}.{domain}")
    each = statistics.median(
        (mine / theirs) * (t / m)
        for mine, theirs, t, m in zip(after.later, before.later, before.seconds, after.seconds, strict=True)
        if mine and theirs
    )
    print(
        f"{domain} at {temperature:g}: {after.rate:.0f} against {before.rate:.0f} tok/s, {places}; {sources}",
        flush=True,
    )
    equal = "all answers equal"
    if same < len(work):
        equal = f"{same} of {len(work)} answers equal, in the others ties in bf16"
    what = f"One request at a time, {domain}, {kind}, {options.model}, {len(after.tokens)} prompts"
    records = [
        ledger.measure(
            f"{prefix}.{domain}{suffix}", after.rate, "tok/s", baseline="the same engine without speculation",
            baseline_value=before.rate, goal=goal, machine=ledger.describe_machine(), command=COMMAND,
            notes=f"{what}, up to {options.tokens} tokens, from the first to the last. "
            f"Median of the ratios {each:.2f}; with prompts {after.whole_rate / before.whole_rate:.2f}. "
            f"{sum(after.later) / max(1, after.steps):.2f} tokens a step. Right guesses by place: {places}; by source: "
            f"{sources}. {equal}.",
        )
    ]  # fmt: skip
    if f"{prefix}.{domain}{suffix}" == "spec.cpu.json":
        records.append(
            ledger.measure(
                "cpu.json", len(after.whole) / sum(after.whole), "calls/s", goal="ratio >= 2",
                baseline="the same engine without speculation", baseline_value=len(before.whole) / sum(before.whole),
                machine=ledger.describe_machine(), command=COMMAND, notes=f"{what}: a tool call end to end, prompt "
                f"included (the description of the tools comes from the prefix cache on both sides). {equal}.",
            )
        )  # fmt: skip
    return records


def together(
    plain: Engine, guessing: Engine, data: Any, batch: int, prefix: str, options: argparse.Namespace
) -> ledger.Record:
    work = [r for d in ("chat", "code", "prose") for r in requests(plain, data, d, 0.0, options.tokens, True)]
    sides = Side(plain), Side(guessing)
    for turn in range(options.rounds + 1):
        jobs = [work[(turn * batch + i) % len(work)] for i in range(batch)]
        # Different beginnings, or past answers would be these answers.
        prompts = [plain.tokenizer(f"{turn}.{i}: ").input_ids + prompt for i, (prompt, _) in enumerate(jobs)]
        params = [params for _, params in jobs]
        for side in sides if turn % 2 else sides[::-1]:
            side.answer(prompts, params, turn > 0)
    before, after = sides
    ratios = [b / a for b, a in zip(before.whole, after.whole, strict=True)]
    print(f"batch {batch}: {after.whole_rate:.0f} against {before.whole_rate:.0f} tok/s", flush=True)
    return ledger.measure(
        f"{prefix}.batch{batch}", after.whole_rate, "tok/s", baseline="the same engine without speculation",
        baseline_value=before.whole_rate, goal="ratio >= 0.98", machine=ledger.describe_machine(), command=COMMAND,
        notes=f"{batch} requests at once, chat, code and prose, greedy, {options.tokens} tokens each, {options.model}. "
        f"Ratios of {options.rounds} rounds {min(ratios):.3f} to {max(ratios):.3f}.",
    )  # fmt: skip


def requests(
    engine: Engine, data: Any, domain: str, temperature: float, tokens: int, endless: bool = False
) -> list[tuple[list[int], SamplingParams]]:
    grammar = calls(data["tools"]) if domain == "json" else None
    found = []
    for number, text in enumerate(data[domain]):
        message = text
        if domain == "json":
            tools = "\n".join(json.dumps(tool) for tool in data["tools"])
            message = f"These functions can be called, one JSON description on each line:\n{tools}\nCall one: {text}"
        params = SamplingParams(
            max_tokens=tokens, temperature=temperature, seed=number, grammar=grammar, ignore_eos=endless
        )
        found.append((Prompts(engine.tokenizer).render_chat([{"role": "user", "content": message}]), params))
    return found


def calls(tools: list[dict[str, Any]]) -> Grammar:
    """One call of one of the tools."""
    return Grammar.json_schema(
        {
            "anyOf": [
                {
                    "type": "object",
                    "properties": {"name": {"const": tool["name"]}, "arguments": tool["parameters"]},
                    "required": ["name", "arguments"],
                    "additionalProperties": False,
                }
                for tool in tools
            ]
        }
    )


def check_calls(engine: Engine, work: list[tuple[list[int], SamplingParams]]) -> None:
    prompt, params = work[0]
    text = LLM.from_engine(engine).generate([prompt], params, progress=False)[0].outputs[0].text
    if set(json.loads(text)) != {"name", "arguments"}:
        raise SystemExit(f"WRONG: {text!r} is no call; nothing is recorded")


COMMAND = "python benchmarks/speculation.py"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", default="stille-135m")
    parser.add_argument("--draft", default="auto", help="draft head: a folder, a name, auto or none")
    parser.add_argument("--most", type=int, default=16, help="guesses of a sequence in a step")
    parser.add_argument("--tokens", type=int, default=256, help="of an answer at most")
    parser.add_argument("--domains", nargs="*", default=["chat", "code", "prose", "json"])
    parser.add_argument("--batches", nargs="*", type=int, default=None, help="requests at once")
    parser.add_argument("--rounds", type=int, default=3, help="of each batch")
    parser.add_argument("--threads", type=int, help="on a CPU")
    parser.add_argument("--json", type=Path, help="merge the records into this ledger file")
    options = parser.parse_args()
    if options.batches is None:
        options.batches = [4, 16, 64, 256] if torch.cuda.is_available() else [4, 8]
    options.batch = max(options.batches, default=1)
    return options


if __name__ == "__main__":
    sys.exit(main())
