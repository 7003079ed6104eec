"""HSA on CPU tensors against torch's dense attention: both in one process, on pinned threads, output checked first.

    python benchmarks/hsa_cpu.py                      # about five minutes on a quiet machine
    python benchmarks/hsa_cpu.py --json results.json
    python benchmarks/hsa_cpu.py --busy --lengths 8   # on a machine in use: a first idea, nothing is recorded

fp32, causal, one sequence, random data, the default `HSAConfig`, selection included in every time. Random data do not
change what HSA costs: every tile reads its whole budget. The baseline is scaled_dot_product_attention in the faster of
its two forms, grouped heads or repeated ones (the repetition itself is not timed). Rounds interleave the sides; a
sample during which anything else used more than 3 % of the machine is taken again.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from cpu_sides.process import OTHERS_AT_MOST, TooBusyError
from cpu_sides.side import Clock, pin
from stille.kernels.hsa import HSAConfig, cpu, hsa_attention
from stille.kernels.hsa import reference as ref
from stille.ledger import Record, measure, render_table, write

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
        config = HSAConfig(budget=budget)
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


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, help="merge the records into this ledger file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="three at most from 32K on")
    parser.add_argument("--lengths", type=int, nargs="+", default=[8, 32], help="thousands of tokens")
    parser.add_argument("--tries", type=int, default=30, help="for each sample, while other programs disturb")
    parser.add_argument("--busy", action="store_true", help="take every sample; nothing is recorded")
    options = parser.parse_args()
    pin(options.threads)
    torch.set_num_threads(options.threads)
    try:
        records = attention(options)
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
