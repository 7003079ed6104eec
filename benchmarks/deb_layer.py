"""A layer of experts on one GPU: what a variable number of experts saves over a fixed one, and over transformers.

    python benchmarks/deb_layer.py                       # check, then time
    python benchmarks/deb_layer.py --only check
    python benchmarks/deb_layer.py --only sweep          # tiles of the decode kernels
    python benchmarks/deb_layer.py --only crossover      # up to how many tokens they win
    python benchmarks/deb_layer.py --only profile        # the kernels of a pass, and their times
    python benchmarks/deb_layer.py --json results.json
    python benchmarks/deb_layer.py --tiny                # the same code on small shapes, also on a CPU; records nothing

A layer of DeepSeek-V3's shape: bf16, hidden size 4,096, 16 experts of 2,048 and a shared one of 2,048. Random data and
random, balanced routing tables, which are given: gates are not timed. DEB's table has 1 to 16 experts per token, 4.8 on
the mean; top-8 is the same code with eight. Sides of a comparison take turns; medians, by CUDA events. All sides have
the same shared expert, and are replayed from CUDA graphs where they can be captured: in a model the host is ahead of
such a layer. Notes have the times of launching one by one, too, in which a GPU waits for Python at the start.

Decoding is the routed experts of one token, replayed from a CUDA graph over 40 different tokens, so that weights come
from memory and not from a cache. transformers' `batched_mm` has 16 columns, as a table for up to 16 experts must have.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, use_experts_implementation

from hsa_sides.gpu import Failure, Records, expect
from stille.kernels.experts import moe_forward, reference, swiglu
from stille.kernels.experts.routes import find_routes
from stille.ledger import measure

COMMAND = "python benchmarks/deb_layer.py"
MEAN_K, TOP_K, EXPERTS = 4.8, 8, 16
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Run = Callable[[], object]


@dataclass(frozen=True)
class Shape:
    """Sizes of the layer."""

    width: int = 4096
    inner: int = 2048
    shared: int = 2048
    tokens: int = 8192
    dtype: torch.dtype = torch.bfloat16
    rounds: int = 15
    decoded: int = 40


TINY = Shape(width=64, inner=32, shared=32, tokens=48, dtype=torch.float32, rounds=2, decoded=3)


@use_experts_implementation
class Experts(nn.Module):
    """Experts as transformers' functions want them; `config` is a `Shape` and a place for their settings."""

    gate_up_proj: nn.Parameter
    down_proj: nn.Parameter
    shared_gate_up: nn.Parameter
    shared_down: nn.Parameter

    def __init__(self, config: SimpleNamespace):
        super().__init__()
        shape: Shape = config.shape
        random = torch.Generator(DEVICE).manual_seed(0)

        def weights(*sizes: int) -> nn.Parameter:
            drawn = torch.randn(*sizes, generator=random, device=DEVICE, dtype=shape.dtype)
            return nn.Parameter(drawn.mul_(sizes[-1] ** -0.5))

        self.num_experts = EXPERTS
        self.act_fn = nn.SiLU()
        self.gate_up_proj = weights(EXPERTS, 2 * shape.inner, shape.width)
        self.down_proj = weights(EXPERTS, shape.width, shape.inner)
        self.shared_gate_up = weights(2 * shape.shared, shape.width)
        self.shared_down = weights(shape.width, shape.shared)

    def forward(self, x: Tensor, expert: Tensor, weight: Tensor) -> Tensor:
        return moe_forward(x, expert, weight, self.gate_up_proj, self.down_proj)

    def shared_expert(self, x: Tensor) -> Tensor:
        return F.linear(swiglu(F.linear(x, self.shared_gate_up)), self.shared_down)


def build(shape: Shape) -> Experts:
    return Experts(SimpleNamespace(shape=shape, _experts_implementation="eager"))


def ours(layer: Experts, x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    return moe_forward(x, *table, layer.gate_up_proj, layer.down_proj)


def theirs(name: str, layer: Experts, x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    # Some versions look for entries that are not used only then, and are faster without.
    layer._is_expert_parallel = table[0].shape[1] == EXPERTS
    return ALL_EXPERTS_FUNCTIONS[name](layer, x, *table)


def whole(side: str, layer: Experts, x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Routed and shared experts."""
    shared = layer.shared_expert(x)
    if side == "ours":
        return moe_forward(x, *table, layer.gate_up_proj, layer.down_proj, plus_TC=shared)
    return theirs("grouped_mm", layer, x, table) + shared


def numbers(tokens: int, mean: float, seed: int = 0) -> Tensor:
    """How many experts each token has: 1 to 16, skewed as gates are, `mean` exactly (to one expert in all)."""
    random = torch.Generator().manual_seed(seed)
    share = torch.rand(tokens, generator=random) ** ((EXPERTS - 1) / (mean - 1) - 1)
    k = (1 + (EXPERTS - 1) * share).round().long()
    wanted = round(mean * tokens)
    while (missing := wanted - int(k.sum())) != 0:
        step = 1 if missing > 0 else -1
        free = ((k + step >= 1) & (k + step <= EXPERTS)).nonzero().flatten()
        k[free[torch.randperm(len(free), generator=random)[: abs(missing)]]] += step
    return k


def make_table(k: Tensor, columns: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random experts, k of them per token, and their weights; entries that are not used last."""
    random = torch.Generator().manual_seed(seed)
    expert = torch.rand(len(k), EXPERTS, generator=random).argsort(1)[:, :columns]
    unused = torch.arange(columns) >= k[:, None]
    weight = torch.rand(len(k), columns, generator=random) + 0.5
    return expert.masked_fill(unused, EXPERTS).to(DEVICE), weight.masked_fill(unused, 0.0).to(dtype).to(DEVICE)


def tokens_of(shape: Shape, tokens: int, seed: int = 1) -> Tensor:
    random = torch.Generator(DEVICE).manual_seed(seed)
    return torch.randn(tokens, shape.width, generator=random, device=DEVICE, dtype=shape.dtype)


def once(run: Run) -> float:
    """Milliseconds of one call."""
    if DEVICE == "cpu":
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def in_turns(sides: dict[str, Run], rounds: int) -> dict[str, float]:
    """Median milliseconds of each side; all are run twice before, and then one after the other in every round."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 2):
        for name, run in sides.items():
            taken = once(run)
            if turn >= 2:
                times[name].append(taken)
    return {name: statistics.median(taken) for name, taken in times.items()}


def graphed(run: Run) -> Run:
    """`run` from a CUDA graph, or itself on a CPU."""
    run()
    if DEVICE == "cpu":
        return run
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def captured(run: Run) -> Run | None:
    """As `graphed`; None, with the reason printed, if `run` waits for the host or cannot be captured otherwise."""
    if DEVICE == "cpu":
        return run
    run()
    try:
        torch.cuda.set_sync_debug_mode("error")  # a capture that fails leaves traces: better not to begin
        run()
        torch.cuda.set_sync_debug_mode("default")
        with torch.cuda.stream(torch.cuda.current_stream()):  # again the current one if a capture fails
            return graphed(run)
    except RuntimeError as reason:
        print(f"not captured: {reason}", flush=True)
        return None
    finally:
        torch.cuda.set_sync_debug_mode("default")


def gradients(
    forward: Callable[[Tensor, tuple[Tensor, Tensor]], Tensor], layer: Experts, x: Tensor, table: tuple[Tensor, Tensor]
) -> list[Tensor]:
    """Of x, the routing weights and the experts, for a fixed gradient of the output."""
    x, weight = x.detach().requires_grad_(), table[1].detach().requires_grad_()
    d_out = torch.linspace(-1, 1, x.shape[1], device=DEVICE, dtype=x.dtype).expand_as(x)
    out = forward(x, (table[0], weight))
    return list(torch.autograd.grad(out, [x, weight, layer.gate_up_proj, layer.down_proj], d_out))


def check(shape: Shape, layer: Experts) -> None:
    few = min(shape.tokens, 256)
    x = tokens_of(shape, few)
    table = make_table(numbers(few, MEAN_K), EXPERTS, shape.dtype)
    wide = [w.detach().float() for w in (layer.gate_up_proj, layer.down_proj)]
    with torch.no_grad():
        want = reference.moe_forward(x.float(), *table, *wide)
        expect(f"{few} tokens against the specification in float32", ours(layer, x, table), want, 1e-2)
        for name in ("grouped_mm", "batched_mm") if few <= 64 else ("grouped_mm",):
            expect(f"transformers' {name}", theirs(name, layer, x, table), want, 1e-2)
        one = (table[0][:1], table[1][:1])
        expect("one token", ours(layer, x[:1], one), want[:1], 1e-2)
        expect("one token, transformers' batched_mm", theirs("batched_mm", layer, x[:1], one), want[:1], 1e-2)
    del wide
    got = gradients(lambda x, t: ours(layer, x, t), layer, x, table)
    specified = gradients(
        lambda x, t: reference.moe_forward(x, *t, layer.gate_up_proj, layer.down_proj), layer, x, table
    )
    for name, mine, wanted in zip(("x", "weights", "gate_up_proj", "down_proj"), got, specified, strict=True):
        expect(f"gradient of {name} against the specification", mine, wanted, 2e-2)
    x = tokens_of(shape, shape.tokens)
    with torch.no_grad():
        for name, table in tables(shape).items():
            want = theirs("grouped_mm", layer, x, table)
            expect(f"{name}, {shape.tokens} tokens, against grouped_mm", ours(layer, x, table), want, 1e-2)
            both = [whole(side, layer, x, table) for side in ("ours", "theirs")]
            expect(f"{name}, {shape.tokens} tokens, with the shared expert", *both, 1e-2)


def tables(shape: Shape) -> dict[str, tuple[Tensor, Tensor]]:
    eight = torch.full((shape.tokens,), TOP_K)
    return {
        "deb": make_table(numbers(shape.tokens, MEAN_K), EXPERTS, shape.dtype),
        "top8": make_table(eight, TOP_K, shape.dtype),
    }


def layers(shape: Shape, layer: Experts, records: Records) -> list[str]:
    """The whole layer with its shared expert, forward and with the backward pass; CUDA graphs where they can be."""
    x, lines = tokens_of(shape, shape.tokens), []
    given = tables(shape)
    d_out = tokens_of(shape, shape.tokens, seed=2)
    inputs = [x, *layer.parameters()]

    def inference(side: str, table: str) -> None:
        with torch.no_grad():
            whole(side, layer, x, given[table])

    def training(side: str, table: str) -> None:
        torch.autograd.grad(whole(side, layer, x, given[table]), inputs, d_out)

    sides = [(side, table) for side in ("ours", "theirs") for table in given]
    for stage, run in (("fwd", inference), ("bwd", training)):
        x.requires_grad_(stage == "bwd")
        eager = {f"{s} {t}": (lambda s=s, t=t, run=run: run(s, t)) for s, t in sides}
        launched = in_turns(eager, shape.rounds)
        graphs = {name: captured(run) for name, run in eager.items()}
        waiting = [name for name, graph in graphs.items() if graph is None]
        ms = in_turns({name: graphs[name] or run for name, run in eager.items()}, shape.rounds)
        del graphs  # and their memory
        for how, times in (("", ms), (" launched one by one", launched)):
            lines.append(f"{stage}{how}: " + ", ".join(f"{name} {value:.2f} ms" for name, value in times.items()))
        if waiting:
            lines.append(f"{stage}: not captured, so launched one by one: {', '.join(waiting)}")
        passes = "forward" if stage == "fwd" else "forward and backward"
        flops = 6 * shape.width * shape.tokens * (1 if stage == "fwd" else 3)  # of a neuron
        rates = ", ".join(
            f"{name} {flops * (k * shape.inner + shape.shared) / ms[name] / 1e9:.0f}"
            for name, k in (("ours deb", MEAN_K), ("ours top8", TOP_K))
        )
        setting = (
            f"{shape.tokens} tokens, bf16, hidden size {shape.width}, {EXPERTS} experts of {shape.inner}, shared "
            f"{shape.shared}, 1 to 16 experts per token; tables are given. TFLOP/s: {rates}."
        )
        for id, mine, base, baseline, goal in (
            (f"deb.layer.{stage}", "ours deb", "ours top8", "the same layer with top-8", "ratio >= 1.5"),
            (f"deb.layer.{stage}.grouped_mm", "ours deb", "theirs deb", "transformers grouped_mm, same table", None),
            (f"deb.layer.{stage}.top8", "ours top8", "theirs top8", "transformers grouped_mm, same table", None),
        ):
            what = "top-8" if mine.endswith("top8") else f"a mean of {MEAN_K} experts"
            how = ("CUDA graphs", "CUDA graph on one side, the other is not captured", "No CUDA graphs")
            how = how[(mine in waiting) + (base in waiting)]
            each = f"{launched[mine]:.2f} ms against {launched[base]:.2f} ms"
            records.append(
                measure(
                    id, ms[mine], "ms", better="lower", baseline=baseline, baseline_value=ms[base], goal=goal,
                    command=COMMAND,
                    notes=f"Layer of experts, {passes}, {what}. {setting} {how}; launched one by one: {each}.",
                )
            )  # fmt: skip
    sorts = {name: (lambda t=t: find_routes(t[0], EXPERTS, on_host=False)) for name, t in given.items()}
    sorts |= {
        f"{name} torch.sort alone": (lambda t=t: torch.sort(t[0].flatten().to(torch.int16), stable=True))
        for name, t in given.items()
    }
    routes = in_turns({name: captured(run) or run for name, run in sorts.items()}, shape.rounds)
    lines.append("of which sorting the table: " + ", ".join(f"{name} {value:.3f} ms" for name, value in routes.items()))
    return lines


@torch.no_grad()
def decode(shape: Shape, layer: Experts, records: Records) -> list[str]:
    """Routed experts of one token, for several numbers of them."""
    x, lines, mine, batched = tokens_of(shape, shape.decoded), [], {}, {}
    bytes_each = 3 * shape.width * shape.inner * x.element_size()
    for mean in (2.0, MEAN_K, 8.0, 16.0):
        k = numbers(shape.decoded, mean, seed=3) if mean == MEAN_K else torch.full((shape.decoded,), int(mean))
        expert, weight = make_table(k, EXPERTS, shape.dtype, seed=4)

        def each(
            one: Callable[[Tensor, tuple[Tensor, Tensor]], Tensor], e: Tensor = expert, w: Tensor = weight
        ) -> None:
            for t in range(shape.decoded):
                one(x[t : t + 1], (e[t : t + 1], w[t : t + 1]))

        sides = {
            "ours": graphed(lambda each=each: each(lambda x, t: ours(layer, x, t))),
            "batched_mm": graphed(lambda each=each: each(lambda x, t: theirs("batched_mm", layer, x, t))),
            "grouped_mm": lambda each=each: each(lambda x, t: theirs("grouped_mm", layer, x, t)),
        }
        us = {name: 1e3 * ms / shape.decoded for name, ms in in_turns(sides, max(2, shape.rounds // 2)).items()}
        mine[mean], batched[mean] = us["ours"], us["batched_mm"]
        rate = mean * bytes_each / us["ours"] / 1e3
        lines.append(
            f"decode k={mean:g}: " + ", ".join(f"{n} {v:.1f} us" for n, v in us.items()) + f"; {rate:.0f} GB/s"
        )
        kind = "1 to 16 experts, on the mean " if mean == MEAN_K else ""
        records.append(
            measure(
                "deb.layer.decode" + ("" if mean == MEAN_K else f".k{mean:g}"), us["ours"], "us", better="lower",
                baseline="transformers batched_mm, 16 columns, in a CUDA graph", baseline_value=us["batched_mm"],
                goal="ratio >= 2" if mean == MEAN_K else None, command=COMMAND,
                notes=f"Routed experts of one token, {kind}{mean:g}. bf16, hidden size {shape.width}, {EXPERTS} "
                f"experts of {shape.inner}, CUDA graph, {shape.decoded} different tokens. Weights at {rate:.0f} GB/s. "
                f"transformers' grouped_mm, launched one by one: {us['grouped_mm']:.0f} us.",
            )
        )  # fmt: skip
    times = ", ".join(f"{k:g}: {value:.0f}" for k, value in mine.items())
    records.append(
        measure(
            "deb.layer.decode.per_expert", (mine[2.0] / 2) / (mine[16.0] / 16), "x", command=COMMAND,
            notes="Time per expert of a token with two, over that of a token with sixteen; 1 if time is proportional "
            f"to their number. us by experts: {times}.",
        )
    )  # fmt: skip
    return lines


def profile(shape: Shape, layer: Experts, records: Records) -> list[str]:
    """Our kernels that take the longest, for both tables."""
    x, lines, repeats = tokens_of(shape, shape.tokens), [], 5
    d_out = tokens_of(shape, shape.tokens, seed=2)
    activity = torch.profiler.ProfilerActivity.CUDA if DEVICE == "cuda" else torch.profiler.ProfilerActivity.CPU
    for stage in ("fwd", "bwd"):
        x.requires_grad_(stage == "bwd")
        for name, table in tables(shape).items():

            def run(table: tuple[Tensor, Tensor] = table, graded: bool = stage == "bwd") -> None:
                with torch.set_grad_enabled(graded):
                    out = whole("ours", layer, x, table)
                    if graded:
                        torch.autograd.grad(out, [x, *layer.parameters()], d_out)

            in_turns({"": run}, 1)  # what is compiled or allocated once
            with torch.profiler.profile(activities=[activity]) as trace:
                for _ in range(repeats):
                    once(run)
            kernels = {
                event.key: (time / repeats / 1e3, event.count / repeats)
                for event in trace.key_averages()
                if (time := event.self_device_time_total if DEVICE == "cuda" else event.self_cpu_time_total)
            }
            total = sum(ms for ms, _ in kernels.values())
            lines.append(f"{stage} {name}: {total:.3f} ms of {sum(n for _, n in kernels.values()):.0f} kernels")
            longest = sorted(kernels.items(), key=lambda item: -item[1][0])[:12]
            lines += [f"  {ms:8.3f} ms {count:5.1f}x  {key[:100]}" for key, (ms, count) in longest]
    return lines


@torch.no_grad()
def sweep(shape: Shape, layer: Experts, records: Records) -> list[str]:
    """Tiles of the decode kernels, at the mean number of experts."""
    from stille.kernels.experts.triton_decode import DecodeConfig, decode_forward

    x = tokens_of(shape, shape.decoded)
    expert, weight = make_table(numbers(shape.decoded, MEAN_K, seed=3), EXPERTS, shape.dtype, seed=4)
    configs = {
        DecodeConfig(): 0,
        **{
            DecodeConfig(inner, outputs, wide, warps): 0
            for inner, outputs in ((2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16))
            for wide in (512, 1024, 2048)
            for warps in (2, 4, 8)
            if inner * wide <= 8192 and outputs * wide <= 16384
        },
    }
    if shape is TINY:
        configs = dict(list(configs.items())[:2])
    weights, cells = (layer.gate_up_proj.detach(), layer.down_proj.detach()), []
    for config in configs:

        def run(config: DecodeConfig = config) -> None:
            for t in range(shape.decoded):
                decode_forward(x[t : t + 1], expert[t : t + 1], weight[t : t + 1], *weights, config=config)

        ms = in_turns({"": graphed(run)}, max(2, shape.rounds // 3))[""]
        cells.append((1e3 * ms / shape.decoded, f"{config}{' (default)' if config == DecodeConfig() else ''}"))
    cells.sort()
    best = [f"  {us:.1f} us  {text}" for us, text in cells if us <= cells[7 % len(cells)][0] or "default" in text]
    return ["sweep of decode tiles, best first:", *best]


@torch.no_grad()
def crossover(shape: Shape, layer: Experts, records: Records) -> list[str]:
    """For how many tokens the decode kernels beat grouped products: this layer, and one of a small model."""
    lines = []
    small = build(Shape(width=576, inner=48, shared=768)) if shape is not TINY else layer
    for which, width in ((layer, shape.width), (small, 576 if small is not layer else shape.width)):
        cells = []
        for tokens in (1, 2, 4, 8, 16, 32, 64, 128, 256) if shape is not TINY else (2,):
            x = torch.randn(tokens, width, device=DEVICE, dtype=shape.dtype)
            e, w = make_table(numbers(tokens, MEAN_K), EXPERTS, shape.dtype)
            weights = (which.gate_up_proj, which.down_proj)
            sides = {
                name: graphed(lambda x=x, e=e, w=w, n=name, p=weights: moe_forward(x, e, w, *p, backend=n))
                for name in ("triton", "grouped")
            }
            us = in_turns(sides, shape.rounds)
            cells.append(f"{tokens}: {1e3 * us['triton']:.0f} / {1e3 * us['grouped']:.0f}")
        inner = which.down_proj.shape[2]
        lines.append(f"experts {width} x {inner}, us by tokens, decode kernels / grouped: " + ", ".join(cells))
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the records there")
    parser.add_argument(
        "--only",
        nargs="*",
        choices=["check", "layer", "decode", "sweep", "crossover", "profile"],
        help="stages; default: the first 3",
    )
    parser.add_argument("--tiny", action="store_true", help="small shapes, also on a CPU; records nothing")
    chosen = parser.parse_args()
    if chosen.tiny and chosen.json:
        parser.error("--tiny records nothing; leave out --json")
    if DEVICE == "cpu" and not chosen.tiny:
        parser.error("torch sees no CUDA device; --tiny runs on a CPU")
    shape = TINY if chosen.tiny else Shape()
    stages = chosen.only or ["check", "layer", "decode"]
    begin, records, lines = time.perf_counter(), Records(chosen.json), []
    layer = build(shape)
    try:
        check(shape, layer)  # before anything is timed
        for name, stage in (
            ("layer", layers), ("decode", decode), ("sweep", sweep), ("crossover", crossover), ("profile", profile),
        ):  # fmt: skip
            if name in stages:
                lines += stage(shape, layer, records)
    except Failure as wrong:
        records.discard()
        print(f"WRONG: {wrong}; nothing is recorded", file=sys.stderr)
        return 1
    records.finish()
    where = torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"
    print(f"\n=== {where}, {time.perf_counter() - begin:.0f} s in all")
    print("\n".join(lines))
    for record in records:
        state = {True: "met", False: "MISSED", None: "no goal"}[record.met]
        figure = f"{record.value:.3f}" if record.ratio is None else f"{record.ratio:.2f}x"
        print(f"{record.id:32s} {figure:>9s}  {record.goal or '':15s} {state}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
