"""Decoding on a CPU with experts against the dense model that they were split from: the same engine, machine and run.

    python benchmarks/deb_cpu.py MODEL                                  # MODEL: a delta made by `stille convert`
    python benchmarks/deb_cpu.py MODEL --json benchmarks/results/deb.json

Every side is a process of its own, started anew each round, pinned to the same cores; rounds interleave the sides, and
samples during which other programs used over 3 % of the machine are taken again. Before anything is timed, the engine
reads a text in int8 with all experts, and has to read it as well as the model's own modules do in float32. In int4 it
need not: a base that was quantised before lies on its grid, which the order of the split and training leave.
"""

import argparse
import dataclasses
import gc
import math
import statistics
import sys
from pathlib import Path

import torch

from cpu_engine import PHASES, find_gguf, read_text
from cpu_sides.process import Samples, Side, TooBusyError, say
from stille import ledger
from stille.model import expert_budget, load_model
from stille.model.load import load_config

CONTEXT = 2304
WINDOW = 384
WORSE_AT_MOST = 1.02  # perplexity with all experts in int8 against that of the modules
WHAT = {
    "decode.short": ("decode", "Decoding one sequence, 24 tokens of prompt, 128 new"),
    "decode.2k": ("decode.2k", "Decoding one sequence after 2,000 tokens, 64 new"),
    "prefill.2k": ("prefill.2k", "Reading a prompt of 2,048 tokens"),
}


def main() -> int:
    options = parse()
    experts = load_config(options.model).experts
    if experts is None:
        raise SystemExit(f"{options.model} has no experts: give a model that `stille convert` made")
    dense = find_gguf(options.dense)
    base = {"threads": options.threads, "dtype": options.dtype, "context": CONTEXT}
    python = Path(sys.executable)

    def split(budget: float) -> Side:
        settings = {**base, "path": options.model, "budget": budget}
        return Side(f"{budget:g} experts", python, "stille_side.py", settings)

    everything = split(experts["num_experts"])
    sides = {"dense": Side("dense", python, "stille_side.py", {**base, "path": str(dense)})}
    sides |= {f"{k:g}": split(k) for k in options.budgets}
    ids = read_text(dense, WINDOW + options.rounds * 2100)
    quality = check(options.model, experts["num_experts"], sides["dense"], everything, ids[:WINDOW])
    try:
        samples, mean_k, dtype = run_rounds(sides, ids[WINDOW:], options)
    except TooBusyError as error:
        raise SystemExit(f"{error}; nothing recorded. Try again on a quiet machine, or with --tries") from error
    records = make_records(samples, mean_k, dtype, quality, experts, options)
    print(ledger.render_table(records))
    if options.json:
        ledger.write(options.json, records)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model", help="with experts: a folder that `stille convert` made")
    parser.add_argument("--dense", default="stille-135m", help="what it was made from: name or .gguf file")
    parser.add_argument("--budgets", type=float, nargs="+", default=[3, 4.8, 8, 16], help="mean numbers of experts")
    parser.add_argument("--json", type=Path, help="merge the records into this ledger file")
    parser.add_argument("--dtype", default="int4", help="int4 or int8, both sides")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=3, help="of each phase in a round")
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES))
    parser.add_argument("--tries", type=int, default=30, help="for each sample, while other programs disturb")
    return parser.parse_args()


def modules_perplexity(model: str, experts: int, ids: list[int]) -> float:
    """Of the modules in float32, all experts running."""
    loaded = load_model(model, progress=False).model
    with torch.inference_mode(), expert_budget(loaded, float(experts)):
        log_p = loaded(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    found = math.exp(-float(log_p.gather(1, torch.tensor(ids[1:])[:, None]).mean()))
    del loaded, log_p
    gc.collect()
    return found


def check(model: str, experts: int, dense: Side, everything: Side, ids: list[int]) -> str:
    """Perplexities; ends the program if the engine does not read as the model's modules do."""

    def perplexity(side: Side, dtype: str) -> float:
        with dataclasses.replace(side, settings={**side.settings, "dtype": dtype}).start() as running:
            return math.exp(-statistics.fmean(running.ask("score", ids=ids)["logprobs"]))

    want = modules_perplexity(model, experts, ids)
    parts = [f"{want:.2f} with all experts in float32"]
    for dtype in dict.fromkeys(("int8", dense.settings["dtype"])):
        got = perplexity(everything, dtype)
        parts.append(f"{got:.2f} so in {dtype} ({perplexity(dense, dtype):.2f} dense)")
        say(parts[-1])
        if dtype == "int8" and got > WORSE_AT_MOST * want:
            raise SystemExit(f"the engine reads worse in int8 than the modules do ({want:.2f}); nothing is timed")
    return f"Perplexity of {len(ids)} tokens {', '.join(parts)}"


def run_rounds(sides: dict[str, Side], ids: list[int], options: argparse.Namespace):
    """Samples by (phase, side), measured mean number of experts by side, and what the engines ran in."""
    samples = {(phase, name): Samples() for phase in options.phases for name in sides}
    mean_k: dict[str, float] = {}
    dtype, order = "", list(sides)
    for round in range(options.rounds):
        for name in order[round % len(order) :] + order[: round % len(order)]:
            with sides[name].start() as running:
                for phase in options.phases:
                    do, prompt, new = PHASES[phase]
                    fields = {"new": new} if new else {}
                    for _ in range(options.samples):
                        answer = running.timed(options.tries, do, ids=ids[round * 2100 :][:prompt], **fields)
                        samples[phase, name].add(new - 1 if new else prompt, answer)
                if name != "dense":
                    mean_k[name] = running.ask("routing")["mean_k"]
                dtype = running.ready["dtype"]
        say(f"round {round + 1} of {options.rounds}: " + ", ".join(f"{p} {n} {s}" for (p, n), s in samples.items()))
    return samples, mean_k, dtype


def make_records(samples, mean_k, dtype: str, quality: str, experts, options: argparse.Namespace):
    records, own = [], f"{experts['target_k']:g}"
    for phase in options.phases:
        name, what = WHAT[phase]
        dense = samples[phase, "dense"]
        for k in options.budgets:
            side = f"{k:g}"
            ours = samples[phase, side]
            records.append(
                ledger.measure(
                    f"deb.cpu.{name}" if side == own else f"deb.cpu.{name}.k{side}",
                    ours.median,
                    "tok/s",
                    baseline=f"the dense model in the same engine ({dtype})",
                    baseline_value=dense.median,
                    goal="ratio >= 1.15" if side == own and phase == "decode.short" else None,
                    command="python benchmarks/deb_cpu.py MODEL",
                    machine=ledger.describe_machine(),
                    notes=f"{what}; a budget of {side} of {experts['num_experts']} experts (measured mean "
                    f"{mean_k[side]:.2f}) of {experts['expert_size']} neurons beside {experts['shared_size']} shared "
                    f"ones, gate of {experts['router_size']}. {options.threads} threads, batch 1, median of "
                    f"{options.rounds} interleaved rounds of {options.samples}. Ranges: ours {ours}; dense "
                    f"{dense}. {quality}.",
                )
            )
    return records


if __name__ == "__main__":
    sys.exit(main())
