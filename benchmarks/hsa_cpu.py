"""HSA on CPU tensors against torch's dense attention: both in one process, on pinned threads, output checked first.

    python benchmarks/hsa_cpu.py                      # about five minutes on a quiet machine
    python benchmarks/hsa_cpu.py --json results.json
    python benchmarks/hsa_cpu.py --busy --lengths 8   # on a machine in use: a first idea, nothing is recorded
    python benchmarks/hsa_cpu.py --engine             # instead: the CPU engine at 8K, attention "hsa" against "full"

fp32, causal, one sequence, random data, the default `HSAConfig`, selection included in every time. Random data do not
change what HSA costs: every tile reads its whole budget. The baseline is scaled_dot_product_attention in the faster of
its two forms, grouped heads or repeated ones (the repetition itself is not timed). Rounds interleave the sides; a
sample during which anything else used more than 3 % of the machine is taken again.

The engine's part reads a prompt of real text (the default model, 8,000 tokens, in 4 bits) and then computes the text's
next tokens one by one, the same for both sides, so that their log-likelihoods can be compared too.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from cpu_sides.process import OTHERS_AT_MOST, TooBusyError
from cpu_sides.side import Clock, pin
from stille.engine.config import EngineConfig
from stille.engine.cpu_executor import CpuExecutor
from stille.engine.executor import StepInput
from stille.kernels.hsa import HSAConfig, cpu, hsa_attention
from stille.kernels.hsa import reference as ref
from stille.ledger import Record, measure, render_table, write
from stille.model.load import load_model, load_tokenizer
from stille.model.store import DEFAULT_MODEL, resolve

COMMAND = "python benchmarks/hsa_cpu.py"
CONFIG = HSAConfig()
OTHER_BUDGET = 2048 if CONFIG.budget != 2048 else 4096  # shown beside the default


@dataclass(frozen=True)
class Shape:
    name: str
    heads: int
    kv_heads: int
    dim: int


SMOLLM = Shape("SmolLM2-135M's heads (9 on 3, width 64)", 9, 3, 64)
LLAMA = Shape("8 heads on 2, width 128 (a quarter of an 8B model's)", 8, 2, 128)


class Failure(Exception):
    """An output is wrong."""


def data(shape: Shape, n: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    q, k, v = (
        torch.randn(1, heads, n, shape.dim, generator=random).to(dtype)
        for heads in (shape.heads, shape.kv_heads, shape.kv_heads)
    )
    return q, k, v


def expect(name: str, got: Tensor, want: Tensor, most: float) -> None:
    error = float((got.float() - want.float()).norm() / want.float().norm())
    print(f"check  {name:70s} relative error {error:.1e}", flush=True)
    if not error < most:  # NaN too
        raise Failure(f"{name}: relative error {error}, at most {most} is allowed")


def check() -> None:
    n = 3000
    for shape in (SMOLLM, LLAMA):
        for dtype, most in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
            q, k, v = data(shape, n, dtype, seed=1)
            full = replace(CONFIG, budget=n // 64 * 64 + 192, dense_below=0)
            want = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            got = hsa_attention(q, k, v, full, return_details=True).out  # details leave no row to torch's attention
            expect(f"{shape.name}, {dtype}, budget for everything", got, want, most)
            sparse = replace(CONFIG, budget=1024, dense_below=0)
            groups, scale = shape.heads // shape.kv_heads, shape.dim**-0.5
            by_group = q[0].unflatten(0, (-1, groups))
            chosen = torch.cat([cpu.select(x, k[0, i : i + 1], scale, sparse) for i, x in enumerate(by_group)])
            want, _, _ = ref.attend(q[0], k[0], v[0], chosen, scale, sparse)
            expect(f"{shape.name}, {dtype}, sparse", hsa_attention(q, k, v, sparse)[0], want, most)
            agree = float((chosen & ref.select(q[0], k[0], scale, sparse)).sum() / chosen.sum())
            if agree < 0.999:
                raise Failure(f"only {agree:.2%} of the leaves are those of the specification")


def check_last_tile(shape: Shape, q: Tensor, k: Tensor, v: Tensor, out: Tensor, config: HSAConfig) -> None:
    """At full length: finite everywhere, and the last tile of the last group against the specification's rule."""
    if not bool(torch.isfinite(out).all()):
        raise Failure("not every output is a finite number")
    n, groups, scale = q.shape[2], shape.heads // shape.kv_heads, shape.dim**-0.5
    chosen = cpu.select(q[0, -groups:], k[0, -1:], scale, config)[:, -1:]
    want, _, _ = ref.attend(q[0, -groups:, -128:], k[0, -1:], v[0, -1:], chosen, scale, config)
    expect(f"{shape.name}, {n >> 10}K, budget {config.budget}, last tile", out[0, -groups:, -128:], want, 1e-5)


def sample(run: Callable[[], object], tries: int | None) -> Clock:
    """One run, repeated while other programs disturb; `tries` None takes what comes."""
    for attempt in range(tries or 1):
        clock = Clock()
        with clock.running():
            run()
        if tries is None or clock.others <= OTHERS_AT_MOST:
            return clock
        time.sleep(min(5.0, 0.5 * (attempt + 1)))
    raise TooBusyError(f"other programs used the machine in each of {tries} tries")


def compare(shape: Shape, n: int, rounds: int, tries: int | None) -> dict[str, float]:
    """Median seconds of the sides: "dense", and HSA by budget."""
    q, k, v = data(shape, n)
    groups = shape.heads // shape.kv_heads
    many_k, many_v = (x.repeat_interleave(groups, 1) for x in (k, v))
    dense = [
        partial(scaled_dot_product_attention, q, k, v, is_causal=True, enable_gqa=True),
        partial(scaled_dot_product_attention, q, many_k, many_v, is_causal=True),
    ]
    sides: dict[str, Callable[[], Tensor]] = {}
    for budget in (CONFIG.budget, OTHER_BUDGET):
        config = HSAConfig(budget=budget, dense_below=0)
        sides[str(budget)] = partial(hsa_attention, q, k, v, config)
        check_last_tile(shape, q, k, v, sides[str(budget)](), config)
    sides = {"dense": min(dense, key=lambda run: sample(run, tries).seconds), **sides}
    clocks: dict[str, list[Clock]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            clocks[name].append(sample(run, tries))
    medians = {name: statistics.median(clock.seconds for clock in taken) for name, taken in clocks.items()}
    for name, taken in clocks.items():
        spent = statistics.median(clock.cpu for clock in taken)
        ratio = medians["dense"] / medians[name]
        print(
            f"{shape.name}, {n >> 10}K, {name:5s} {medians[name]:8.3f} s ({spent:.3f} s CPU)  {ratio:.2f}x", flush=True
        )
    return medians


def attention(options: argparse.Namespace) -> list[Record]:
    check()
    records, tries = [], None if options.busy else options.tries
    for thousands in options.lengths:
        n, rounds = thousands << 10, options.rounds if thousands <= 8 else min(3, options.rounds)
        here = compare(SMOLLM, n, rounds, tries)
        other = compare(LLAMA, n, rounds, tries)
        ratios = [f"{x[name]:.3g} s against {x['dense']:.3g}" for x, name in (
            (here, str(OTHER_BUDGET)), (other, str(CONFIG.budget)), (other, str(OTHER_BUDGET)))]  # fmt: skip
        records.append(
            measure(
                f"hsa.cpu.{thousands}k", here[str(CONFIG.budget)], "s", better="lower", command=COMMAND,
                baseline="torch SDPA, dense, the faster form", baseline_value=here["dense"], goal="ratio >= 1.0",
                notes=f"Attention of {thousands}K tokens on {options.threads} threads, forward, selection included: "
                f"{SMOLLM.name}, fp32, causal, budget {CONFIG.budget}; median of {rounds} rounds. With budget "
                f"{OTHER_BUDGET}: {ratios[0]}. {LLAMA.name}: {ratios[1]}; with {OTHER_BUDGET}: {ratios[2]}. "
                "Random data: a speed, not an accuracy.",
            )
        )  # fmt: skip
    return records


PROMPT, FOLLOWING, CHUNK = 8000, 64, 500  # tokens


class Reader:
    """The CPU executor over one sequence."""

    def __init__(self, threads: int, hsa: HSAConfig | None):
        loaded = load_model(resolve(DEFAULT_MODEL), progress=False)
        fields = {} if hsa is None else {"attention": "hsa", "hsa": hsa}
        config = EngineConfig(
            dtype="int4", device="cpu", threads=threads, kv_cache_tokens=8192, max_draft_tokens=0, **fields
        )
        self.executor = CpuExecutor(loaded.model, config.resolve(loaded.config))
        self.executor.warmup()

    def read(self, ids: list[int], start: int) -> Tensor:
        """Log-probabilities of what follows the last of the tokens."""
        step = StepInput(
            slots=np.zeros(1, np.int32),
            starts=np.array([start], np.int32),
            lengths=np.array([len(ids)], np.int32),
            token_ids=np.array(ids, np.int64),
            page_table=np.arange(1, 129, dtype=np.int32)[None],
            sample=np.ones(1, bool),
            num_decodes=int(len(ids) == 1),
        )
        return self.executor.forward(step, torch.tensor(ids))[0].double().log_softmax(-1)

    def prompt(self, ids: list[int]) -> None:
        for start in range(0, len(ids), CHUNK):
            self.read(ids[start : start + CHUNK], start)

    def follow(self, ids: list[int]) -> list[float]:
        """Log-probability of each token of `ids` after PROMPT from the one before."""
        rows = [self.read(ids[i - 1 : i], i - 1) for i in range(PROMPT + 1, len(ids))]
        return [float(row[ids[i]]) for row, i in zip(rows, range(PROMPT + 1, len(ids)), strict=True)]


def engine(options: argparse.Namespace) -> list[Record]:
    tries = None if options.busy else options.tries
    text = "\n".join(topics[name] for name in sorted(topics))
    ids = load_tokenizer(resolve(DEFAULT_MODEL)).encode(text[:60_000])[: PROMPT + FOLLOWING + 1]
    sides = {"full": Reader(options.threads, None)}
    for budget in (CONFIG.budget, OTHER_BUDGET):
        sides[str(budget)] = Reader(options.threads, HSAConfig(budget=budget))
    check_engine(sides["full"], options.threads, ids)
    reading: dict[str, float] = {}
    for name, side in sides.items():
        reading[name] = sample(partial(side.prompt, ids[:PROMPT]), tries).seconds
        print(f"prompt of {PROMPT} tokens, {name:5s} {PROMPT / reading[name]:7.1f} tokens/s", flush=True)
    clocks: dict[str, list[Clock]] = {name: [] for name in sides}
    likelihood = {}
    for _ in range(options.rounds):
        for name, side in sides.items():
            clocks[name].append(sample(partial(side.follow, ids), tries))
    for name, side in sides.items():
        likelihood[name] = statistics.mean(side.follow(ids))
    rates = {name: FOLLOWING / statistics.median(clock.seconds for clock in taken) for name, taken in clocks.items()}
    for name, rate in rates.items():
        print(f"decode at {PROMPT} tokens, {name:5s} {rate:6.1f} tokens/s  {rate / rates['full']:.2f}x, mean "
              f"log-likelihood of the text {likelihood[name]:.4f}", flush=True)  # fmt: skip
    first, second = str(CONFIG.budget), str(OTHER_BUDGET)
    return [
        measure(
            "hsa.cpu.engine.decode.8k", rates[first], "tokens/s", better="higher", command=f"{COMMAND} --engine",
            baseline="our CPU engine, attention full", baseline_value=rates["full"], goal="ratio >= 1.0",
            notes=f"Decode steps of the default model in int4 after {PROMPT} tokens on {options.threads} threads, "
            f"attention hsa, budget {first}; with budget {second}: {rates[second]:.1f} tokens/s. Reading the prompt: "
            f"{PROMPT / reading[first]:.0f} ({first}), {PROMPT / reading[second]:.0f} ({second}) and "
            f"{PROMPT / reading['full']:.0f} (full) tokens/s. Mean log-likelihood of the {FOLLOWING} tokens of text "
            f"that follow: {likelihood[first]:.3f}, {likelihood[second]:.3f} and {likelihood['full']:.3f}. Median of "
            f"{options.rounds} rounds.",
        )
    ]  # fmt: skip


def check_engine(full: Reader, threads: int, ids: list[int]) -> None:
    """A budget for everything changes nothing; a small one does."""
    ids = ids[:3000]
    want = full.read(ids, 0)
    if not torch.equal(Reader(threads, HSAConfig(budget=8192)).read(ids, 0), want):
        raise Failure("a budget for everything does not give the numbers of full attention")
    if torch.equal(Reader(threads, HSAConfig(budget=1024)).read(ids, 0), want):
        raise Failure("a small budget gives the numbers of full attention: nothing is sparse")
    print("check  engine: a budget for everything is full attention bit for bit, a small one is not", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, help="merge the records into this ledger file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="three at most from 32K on")
    parser.add_argument("--lengths", type=int, nargs="+", default=[8, 32], help="thousands of tokens")
    parser.add_argument("--tries", type=int, default=30, help="for each sample, while other programs disturb")
    parser.add_argument("--engine", action="store_true", help="measure the CPU engine instead")
    parser.add_argument("--busy", action="store_true", help="take every sample; nothing is recorded")
    options = parser.parse_args()
    pin(options.threads)
    torch.set_num_threads(options.threads)
    try:
        records = engine(options) if options.engine else attention(options)
    except Failure as wrong:
        print(f"WRONG: {wrong}; nothing is recorded", file=sys.stderr)
        return 1
    except TooBusyError as error:
        print(f"{error}; nothing recorded. Try again on a quiet machine, or with --tries or --busy", file=sys.stderr)
        return 1
    print("\n" + render_table(records))
    if options.json and not options.busy:
        write(options.json, records)
    return 0


if __name__ == "__main__":
    sys.exit(main())
