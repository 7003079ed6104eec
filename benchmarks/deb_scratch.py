"""DEB against fixed top-k, trained from scratch on the same data: validation loss and FLOPs.

    python benchmarks/deb_scratch.py --out runs --minutes 25 --json results.json   # one GPU; again: goes on
    python benchmarks/deb_scratch.py --out runs --report --json results.json       # from the runs that are there
    python benchmarks/deb_scratch.py --out /tmp/runs --tiny                        # CPU: a check that records nothing

Two sizes; 16 routed experts and a shared one in every layer; tokens are bytes of Python's standard library (or --text).
Arms of a size see the same sequences in the same order, from the same seed, with the same experts; they differ in the
gate alone: DEB holds a mean number of experts by thresholds, top-k takes a fixed number (DeepSeek-V3: normalised
sigmoids, balanced by a bias). Top-8 runs with DEB's plain sigmoids as weights too, and the better one is the baseline.
The main pair comes first, seed by seed, then the larger size, then the other numbers of experts. Training computes all
experts and weighs them (`TrainConfig.masked`), which is fastest at these sizes: what is compared is loss, not time.
"""

import argparse
import json
import math
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from stille import ledger
from stille.ledger import measure
from stille.model import StilleConfig, StilleForCausalLM
from stille.train import TokenStore, TrainConfig, byte_tokenizer, open_world, prepare, train

COMMAND = "python benchmarks/deb_scratch.py --out runs"
# Two-sided 95 % of Student's t, by degrees of freedom.
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


@dataclass(frozen=True)
class Size:
    width: int
    depth: int
    heads: int
    expert: int
    shared: int
    lr: float


@dataclass(frozen=True)
class Arm:
    """A gate: "deb" or "top", its number of experts, and how experts are weighted."""

    gate: str
    k: float
    weights: str = ""

    @property
    def name(self) -> str:
        return f"{self.gate}-{self.k:g}" + (f"-{self.weights}" if self.weights else "")

    def experts(self, size: Size, experts: int) -> dict:
        gate, weights = ("threshold", "sigmoid") if self.gate == "deb" else ("top_k", "normalised")
        return dict(
            num_experts=experts, expert_size=size.expert, shared_size=size.shared, router_size=0, gate=gate,
            target_k=self.k, min_k=1, max_k=experts, weights=self.weights or weights, scaling=2.5,
        )  # fmt: skip


@dataclass(frozen=True)
class Run:
    size: str
    arm: Arm
    seed: int

    @property
    def name(self) -> str:
        return f"{self.size}-{self.arm.name}-seed{self.seed}"


@dataclass(frozen=True)
class Plan:
    """An experiment: sizes by name, arms, seeds and the length of a run."""

    sizes: dict[str, Size]
    experts: int
    main: tuple[Arm, ...]
    others: tuple[Arm, ...]
    seeds: dict[str, int]
    train: TrainConfig

    def runs(self, part: str = "all") -> list[Run]:
        """Those of the "main" pair, the "others", or both."""
        first = [Run(size, arm, seed) for size in self.sizes for seed in range(self.seeds[size]) for arm in self.main]
        others = [Run(next(iter(self.sizes)), arm, 0) for arm in self.others]
        return {"all": first + others, "main": first, "others": others}[part]


def full_plan(options: argparse.Namespace) -> Plan:
    return Plan(
        {"small": Size(256, 6, 4, 64, 256, 1.5e-3), "medium": Size(384, 8, 6, 96, 384, 1e-3)},
        16,
        (Arm("deb", 4.8), Arm("top", 8), Arm("top", 8, "sigmoid")),
        (*(Arm(gate, k) for k in (3, 6, 4, 5) for gate in ("deb", "top")), Arm("deb", 8)),
        {"small": options.seeds, "medium": 1},
        TrainConfig(
            steps=options.steps, batch=32, micro_batch=32, length=1024, warmup=100, dtype=options.dtype, save_every=500,
            keep=1, log_every=50, eval_sequences=256, masked=True, compile=True,
        ),
    )  # fmt: skip


def tiny_plan(options: argparse.Namespace) -> Plan:
    return Plan(
        {"small": Size(32, 2, 2, 8, 16, 3e-3), "medium": Size(48, 2, 2, 8, 16, 3e-3)},
        4,
        (Arm("deb", 1.5), Arm("top", 2), Arm("top", 2, "sigmoid")),
        (Arm("deb", 1), Arm("top", 1)),
        {"small": 2, "medium": 1},
        TrainConfig(
            steps=8, batch=4, micro_batch=4, length=64, warmup=2, save_every=4, keep=1, log_every=2, eval_sequences=8
        ),
    )  # fmt: skip


def share(text: str) -> tuple[int, int]:
    first, processes = (int(number) for number in text.split("/"))
    if not 0 <= first < processes:
        raise ValueError(text)
    return first, processes


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of the runs; a run that is there is not made again")
    add("--text", type=Path, nargs="+", help="files or folders; default: Python's standard library")
    add("--steps", type=int, default=2000, help="of a run, 32,768 bytes each")
    add("--seeds", type=int, default=3, help="of the main pair at the smaller size")
    add("--minutes", type=float, help="start no run that would likely end after so many minutes")
    add("--dtype", default="bf16", choices=("fp32", "bf16"))
    add("--part", default="all", choices=("all", "main", "others"), help="train these alone; one GPU can take each")
    add(
        "--share",
        type=share,
        default=(0, 1),
        metavar="I/N",
        help="train every N-th run from the I-th on, of --out shared by N",
    )
    add("--points", type=Path, help="results of earlier runs, by name: not made again, and new ones are added")
    add("--report", action="store_true", help="train nothing")
    add("--tiny", action="store_true", help="a check on a CPU; no records")
    add("--plot", type=Path, help="draw validation loss against routed FLOPs there (.svg; needs matplotlib)")
    add("--json", type=Path, help="write records there")
    return parser.parse_args()


def main() -> int:
    options, started = parse(), time.perf_counter()
    plan = tiny_plan(options) if options.tiny else full_plan(options)
    options.out.mkdir(parents=True, exist_ok=True)
    done = True if options.report else make(plan, options, started)
    keep(options)
    results = collect(plan, known(options))
    table(plan, results)
    if options.plot:
        plot(plan, results, options.plot)
    records = [] if options.tiny else make_records(plan, results)
    if options.json and records:
        ledger.write(options.json, records)
    print(ledger.render_table(records) if records else "no records")
    return 0 if done else 3


def make(plan: Plan, options: argparse.Namespace, started: float) -> bool:
    """Train what is missing; whether everything is there now."""
    text = options.text or standard_library()
    store, held_out = prepare(text, byte_tokenizer(), options.out / "tokens")
    print(f"{len(store.tokens):,} bytes to learn from, {len(held_out.tokens):,} held out", flush=True)
    longest = 0.0
    first, processes = options.share
    with open_world() as world:
        for run in plan.runs(options.part)[first::processes]:
            if run.name in known(options):
                continue
            left = math.inf if options.minutes is None else 60 * options.minutes - (time.perf_counter() - started)
            if left < 1.1 * longest:
                print(f"{run.name} and what follows is left out: {left:.0f} s left, a run took {longest:.0f} s")
                return False
            begin = time.perf_counter()
            if not one(plan, run, store, held_out, world, options.out / run.name):
                return False
            longest = max(longest, time.perf_counter() - begin)
            keep(options)
    return True


def keep(options: argparse.Namespace) -> None:
    if options.points:
        options.points.write_text(json.dumps(known(options), indent=1) + "\n", encoding="utf-8")


def known(options: argparse.Namespace) -> dict[str, dict]:
    """Results by the name of the run: those in `--points`, and those in `--out`."""
    found = {}
    if options.points and options.points.exists():
        found = json.loads(options.points.read_text(encoding="utf-8"))
    for file in sorted(options.out.glob("*/result.json")):
        found[file.parent.name] = json.loads(file.read_text(encoding="utf-8"))
    return found


def standard_library() -> list[Path]:
    """Python's own sources, without what was installed beside them."""
    folder = Path(statistics.__file__).parent
    left_out = ("site-packages", "dist-packages", "__pycache__")
    return [
        path
        for path in sorted(folder.iterdir())
        if path.name not in left_out and (path.is_dir() or path.suffix == ".py")
    ]


def one(plan: Plan, run: Run, store: TokenStore, held_out: TokenStore, world, out: Path) -> bool:
    size = plan.sizes[run.size]
    torch.manual_seed(run.seed)
    model = StilleForCausalLM(model_config(plan, run))
    config = TrainConfig.from_dict({**asdict(plan.train), "lr": size.lr, "seed": run.seed})
    result = train(model, store, config, out, world=world, held_out=held_out)
    if not result.finished:
        return False
    ahead = plan.train.steps or 0
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steady = [row["tokens_per_second"] for row in rows if "tokens_per_second" in row and row["step"] > ahead // 10]
    facts = {
        "data": f"{store.digest} {held_out.digest}", "tokens": result.tokens, "seconds": round(result.seconds, 1),
        "tokens_per_second": statistics.median(steady or [0]), "machine": ledger.describe_machine(),
        "steps": plan.train.steps, "dead_experts": rows[-2]["dead_experts"], **result.evaluation,
    }  # fmt: skip
    (out / "result.tmp").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    (out / "result.tmp").replace(out / "result.json")
    print(
        f"{run.name}: held-out loss {facts['held_out']:.4f} at k {facts['held_out_k']:.2f}, {facts['seconds']:.0f} s, "
        f"{facts['tokens_per_second'] / 1e3:.0f}K tok/s, {facts['dead_experts']} dead experts",
        flush=True,
    )
    return True


def model_config(plan: Plan, run: Run) -> StilleConfig:
    size = plan.sizes[run.size]
    return StilleConfig(
        vocab_size=257, hidden_size=size.width, intermediate_size=size.shared, num_hidden_layers=size.depth,
        num_attention_heads=size.heads, max_position_embeddings=2048, tie_word_embeddings=True, eos_token_id=256,
        qk_norm=True, ffn_kinds=["experts"] * size.depth, experts=run.arm.experts(size, plan.experts),
    )  # fmt: skip


def flops(plan: Plan, size: Size, k: float) -> dict[str, float]:
    """FLOPs of a token's forward pass: two for each weight it meets, and attention at half the sequence on average."""
    c, depth = size.width, size.depth
    routed = depth * k * 6 * c * size.expert
    ffn = routed + depth * (6 * c * size.shared + 2 * c * plan.experts)
    attention = depth * (8 * c * c + 4 * c * plan.train.length / 2)
    return {"routed": routed, "ffn": ffn, "model": ffn + attention + 2 * c * 257}


def collect(plan: Plan, results: dict[str, dict]) -> dict[Run, dict]:
    """Results of the plan's runs that are there, all of the same data, length and machine as the first."""
    found: dict[Run, dict] = {}
    for run in plan.runs():
        if run.name not in results:
            continue
        result = results[run.name]
        first = next(iter(found.values()), result)
        if differing := [key for key in ("data", "steps", "tokens") if result[key] != first[key]]:
            raise SystemExit(
                f"{run.name} differs from the other runs in {', '.join(differing)}: remove it, or use another --out."
            )
        found[run] = result
    return found


def table(plan: Plan, results: dict[Run, dict]) -> None:
    print(f"\n{'run':34}{'loss':>8}{'k':>7}{'routed':>9}{'FFN':>9}{'model':>9}  MFLOP   {'s':>6}{'tok/s':>11}")
    for run, facts in results.items():
        cost = flops(plan, plan.sizes[run.size], facts["held_out_k"])
        shown = "".join(f"{cost[part] / 1e6:9.3f}" for part in ("routed", "ffn", "model"))
        print(
            f"{run.name:34}{facts['held_out']:8.4f}{facts['held_out_k']:7.2f}{shown}          {facts['seconds']:6.0f}"
            f"{facts['tokens_per_second']:11,.0f}"
        )
    print()


@dataclass(frozen=True)
class Pair:
    """DEB and the better top-8 of a size over the seeds that both have."""

    deb: list[dict]
    top: list[dict]
    top_name: str

    @property
    def differences(self) -> list[float]:
        return [a["held_out"] - b["held_out"] for a, b in zip(self.deb, self.top, strict=True)]

    def mean(self, side: list[dict], key: str) -> float:
        return statistics.fmean(facts[key] for facts in side)

    def half_width(self) -> float | None:
        """Of the 95 % interval of the mean difference; None below two seeds."""
        n = len(self.deb)
        if n < 2:
            return None
        return STUDENT[min(n - 1, max(STUDENT))] * statistics.stdev(self.differences) / math.sqrt(n)


def pair_of(plan: Plan, results: dict[Run, dict], size: str) -> Pair | None:
    deb, *tops = plan.main
    found: list[Pair] = []
    for top in tops:
        seeds = [
            seed for seed in range(plan.seeds[size]) if all(Run(size, arm, seed) in results for arm in (deb, top))
        ]  # fmt: skip
        if seeds:
            sides = ([results[Run(size, arm, seed)] for seed in seeds] for arm in (deb, top))
            found.append(Pair(*sides, top.name))
    if not found:
        return None
    most = max(len(pair.deb) for pair in found)
    return min((p for p in found if len(p.deb) == most), key=lambda pair: pair.mean(pair.top, "held_out"))


def make_records(plan: Plan, results: dict[Run, dict]) -> list[ledger.Record]:
    records = []
    for size in plan.sizes:
        pair = pair_of(plan, results, size)
        if pair is None:
            continue
        suffix = "" if size == next(iter(plan.sizes)) else f".{size}"
        records += pair_records(plan, size, suffix, pair)
    return records


def pair_records(plan: Plan, size: str, suffix: str, pair: Pair) -> list[ledger.Record]:
    shape, n = plan.sizes[size], len(pair.deb)
    k, k_top = pair.mean(pair.deb, "held_out_k"), pair.mean(pair.top, "held_out_k")
    cost, cost_top = flops(plan, shape, k), flops(plan, shape, k_top)
    saved = {part: 1 - cost[part] / cost_top[part] for part in cost}
    deb, top = (pair.mean(side, "held_out") for side in (pair.deb, pair.top))
    about = (
        f"Width {shape.width}, {shape.depth} layers, {plan.experts} experts of {shape.expert} and a shared one of "
        f"{shape.shared}; bytes, {pair.deb[0]['tokens'] / 1e6:.0f}M tokens a run; {n} "
        f"seed{'s' if n > 1 else ''}. Baseline: {pair.top_name}, trained identically, the better of top-8 with V3's "
        "normalised weights and with DEB's sigmoids. Training computes all experts and weighs them, so it saves no "
        "time here; runs shared GPUs, so their times do not compare."
    )
    machine = pair.deb[0]["machine"]
    half = pair.half_width()
    mean = statistics.fmean(pair.differences)
    interval = "one seed, no interval" if half is None else f"95 % interval {mean - half:+.4f} to {mean + half:+.4f}"
    records = [
        measure(
            f"deb.scratch.loss{suffix}", deb, "nats/byte", better="lower", baseline=f"fixed {pair.top_name}",
            baseline_value=top, command=COMMAND, machine=machine,
            notes=f"Validation loss of DEB at a mean of {k:.2f} experts, {size} model. Difference to the baseline "
            f"{mean:+.4f} ({interval}, seeds paired). {about}",
        ),
        measure(
            f"deb.scratch.flops{suffix}", 100 * saved["routed"], "%", command=COMMAND, machine=machine,
            goal="value >= 40" if not suffix else None,
            notes=f"Routed FLOPs that DEB saves against fixed top-8, {size} model. Of the FFN "
            f"{100 * saved['ffn']:.1f} %, of the whole model {100 * saved['model']:.1f} %. Mean k measured on held-out "
            f"text: {k:.3f} and {k_top:.3f}. {about}",
        ),
    ]  # fmt: skip
    if half is not None:
        records.append(
            measure(
                f"deb.scratch.loss_excess{suffix}", mean - half, "nats/byte", command=COMMAND, machine=machine,
                goal="value <= 0",
                notes=f"Lower end of the interval of DEB's loss less top-8's, {size} model: above 0 DEB is worse. Mean "
                f"{mean:+.4f}, {interval}. {about}",
            )
        )  # fmt: skip
    return records


def plot(plan: Plan, results: dict[Run, dict], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(plan.sizes), figsize=(4.2 * len(plan.sizes), 3.2), squeeze=False, layout="constrained"
    )
    for axis, (name, size) in zip(axes[0], plan.sizes.items(), strict=True):
        for gate, colour, label in (("deb", "#3b82c4", "DEB"), ("top", "#d9822b", "top-k")):
            points: dict[float, list[tuple[float, float]]] = {}
            for run, facts in results.items():
                if run.size == name and run.arm.gate == gate and not run.arm.weights:
                    cost = flops(plan, size, facts["held_out_k"])["routed"] / 1e6
                    points.setdefault(run.arm.k, []).append((cost, facts["held_out"]))
            means = sorted(tuple(map(statistics.fmean, zip(*found, strict=True))) for found in points.values())
            if means:
                axis.plot(*zip(*means, strict=True), color=colour, marker="o", label=label)
        axis.set(title=f"{name}: width {size.width}, {size.depth} layers", xlabel="routed MFLOP per token, forward")
        axis.set_ylabel("validation loss, nats/byte")
        axis.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


if __name__ == "__main__":
    sys.exit(main())
