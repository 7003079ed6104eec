"""A converted model against its dense base: divergence, perplexity, tasks, balance, and where experts are spent.

    python benchmarks/deb_convert.py --deb FOLDER --twin FOLDER --text a.txt b.txt --domain code=c.txt --data FOLDER \\
        --json results.json
    python benchmarks/deb_convert.py --tiny      # the same on a random model that it converts itself, also on a CPU

The models are the base (--base), DEB (--deb) and its twin with a fixed number of experts (--twin), converted and
trained identically; texts and domains are such as none of them was trained or calibrated on. Everything is measured in
one run, on the same tokens and questions. --data is the folder of `stille eval quality`. Before anything is recorded,
the split without training must equal the base when all experts run, and kernels must agree with their specification.
"""

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from deb_sides import tiny
from deb_sides.plots import draw
from deb_sides.tasks import record_tasks
from hsa_sides.gpu import Failure, Records, expect
from stille.errors import ConfigError, StilleError
from stille.evals import quality
from stille.evals.quality.score import ROWS, float_logits, hidden_states
from stille.evals.quality.text import divergence, load_windows
from stille.kernels.experts import moe_forward
from stille.ledger import Record, measure
from stille.model import LoadedModel, StilleForCausalLM, expert_budget, load_model
from stille.model.checkpoint import build_model
from stille.model.convert.delta import ORDER, is_delta, read_delta
from stille.model.convert.pipeline import split_state
from stille.model.convert.split import Layout
from stille.model.experts import expert_layers, record_routing
from stille.model.load import fetch

COMMAND = "python benchmarks/deb_convert.py --deb DELTA --twin TWIN --text TEXTS --domain DOMAINS --data DATA"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32
TARGET, BUDGETS, TOP_K = 4.8, (3.0, 4.8, 8.0, 16.0), 8
FEW, MANY, DECILES = 3, 8, 10
EVEN = "even"  # the side at whose budget DEB's measured mean over the texts is the target


@dataclass
class Plan:
    """What is measured, from the command line or tiny."""

    base: str
    deb: str
    twin: str
    texts: list[Path]
    domains: dict[str, Path]
    data: Path | None
    tasks: list[str]
    limit: int = 3000
    tokens: int = 65_536
    length: int = 1_024
    batch: int = 4_096
    target: float = TARGET
    budgets: Sequence[float] = BUDGETS
    top_k: int = TOP_K
    asked: float = 0.0  # the budget at which the texts' measured mean is the target; found first


@dataclass
class Models:
    base: LoadedModel
    deb: LoadedModel
    twin: LoadedModel

    def sides(self, plan: Plan) -> dict[str, tuple[StilleForCausalLM, float]]:
        """name -> model and mean number of experts."""
        sides = {key(budget): (self.deb.model, budget) for budget in plan.budgets}
        sides |= {EVEN: (self.deb.model, plan.asked)} if plan.asked else {}
        return sides | {f"top{plan.top_k}": (self.twin.model, float(plan.top_k))}


@dataclass
class Routed:
    """What DEB's gates did at the target.

    Attributes:
        loads: [L, E] tokens that ran each expert, one for each batch.
        full: whether a batch has as many tokens as it should.
        k_LN: experts of each predicting token, by layer.
        entropy_N: of the base's distribution there, in nats.
    """

    loads: list[Tensor] = field(default_factory=list)
    full: list[bool] = field(default_factory=list)
    k_LN: list[Tensor] = field(default_factory=list)
    entropy_N: list[Tensor] = field(default_factory=list)
    tokens: int = 0

    def load_LE(self) -> Tensor:
        return torch.stack(self.loads).sum(0).double()

    def mean_k_L(self) -> Tensor:
        return self.load_LE().sum(1) / self.tokens


@dataclass
class Read:
    """What was measured on a text: mean losses of base and sides, the sides' divergences and mean numbers of experts,
    routing at the target."""

    tokens: int
    base_loss: float
    loss: dict[str, float]
    kl: dict[str, float]
    mean_k: dict[str, float]
    routed: Routed


def key(budget: float) -> str:
    return f"k{budget:g}".replace(".", "_")


@contextmanager
def gates_watched(model: StilleForCausalLM) -> Iterator[list[Tensor]]:
    """Masks [T, E] of the layers, in order, of what runs inside."""
    masks: list[Tensor] = []
    hooks = [
        layer.gate.register_forward_hook(lambda module, given, routing: masks.append(routing.mask_TE))
        for layer in expert_layers(model)
    ]
    try:
        yield masks
    finally:
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def check(plan: Plan, models: Models) -> None:
    """Refuse to measure what is not a conversion of this base, or is computed wrongly.

    Raises:
        Failure: the figure that is off.
    """
    ids = torch.tensor([w.ids for w in load_windows(models.base.tokenizer, plan.texts[0], 256, min(256, plan.length))])
    ids = ids[:1].to(DEVICE)
    dense = load_model(models.base.path, device=DEVICE, progress=False).model
    want = dense(ids, use_cache=False).logits[0]
    for name, loaded in (("DEB", models.deb), ("twin", models.twin)):
        settings, config = expert_layers(loaded.model)[0].settings, loaded.config
        if not is_delta(loaded.path):
            raise Failure(f"{name} is no delta, whose split could be checked: give the folder with delta.json")
        with safe_open(read_delta(loaded.path).file, framework="pt") as file:
            orders = file.get_tensor(ORDER)
        gates = {n: v.clone() for n, v in loaded.model.state_dict().items() if ".mlp.gate." in n}
        gates |= {n: torch.zeros_like(v) for n, v in gates.items() if n.endswith(".scale")}
        layout = Layout.of(config.intermediate_size, settings.num_experts, settings.shared_size, settings.expert_size)
        split = build_model(config, split_state(dense, orders, gates, layout), torch.float32, DEVICE)
        with expert_budget(split, float(settings.num_experts)):
            got = split(ids, use_cache=False).logits[0]
        expect(f"{name}: split without training, all experts, against the base", got, want, 1e-3)
        single = load_model(loaded.path, device=DEVICE, progress=False).model
        fast = single(ids, use_cache=False).logits[0]
        with mock.patch("stille.model.experts.moe_forward", partial(moe_forward, backend="reference")):
            slow = single(ids, use_cache=False).logits[0]
        expect(f"{name}: kernels against their specification, fp32", fast, slow, 5e-3)  # a near tie
        served = F.log_softmax(float_logits(loaded.model, hidden_states(loaded.model, ids)[0]), -1)
        apart = float(divergence(F.log_softmax(fast.float(), -1), served).mean())
        print(f"check  {name}: KL of the same model in fp32 and as measured: {apart:.5f}", flush=True)
        if not apart < 0.05:
            raise Failure(f"{name}: {DTYPE} moves the model by a KL of {apart}, at most 0.05 is allowed")


@torch.inference_mode()
def read(plan: Plan, models: Models, file: Path) -> Read:
    """All sides on one text, in batches of plan.batch tokens."""
    sides, target = models.sides(plan), key(plan.target)
    windows = load_windows(models.base.tokenizer, file, plan.tokens, plan.length)
    ids_ST = torch.tensor([window.ids for window in windows], device=DEVICE)
    names, routed = list(sides), Routed()
    sums = torch.zeros(1 + 2 * len(names), dtype=torch.float64, device=DEVICE)
    ran = dict.fromkeys(names, 0.0)
    for ids in ids_ST.split(max(1, plan.batch // plan.length)):
        wanted = ids[:, 1:].flatten()
        base = predicting(hidden_states(models.base.model, ids))
        hidden = {}
        for name, (model, budget) in sides.items():
            with expert_budget(model, budget), gates_watched(model) as masks:
                hidden[name] = predicting(hidden_states(model, ids))
            ran[name] += int(torch.stack(masks).sum()) / len(masks) / ids_ST.numel()
            if name == target:
                mask_LBTE = torch.stack(masks).unflatten(1, ids.shape)
                routed.loads.append(mask_LBTE.sum((1, 2)).cpu())
                routed.full.append(ids.numel() >= plan.batch // plan.length * plan.length)
                routed.k_LN.append(mask_LBTE[:, :, :-1].sum(-1).flatten(1).to(torch.uint8).cpu())
                routed.tokens += ids.numel()
        for at in range(0, len(wanted), ROWS):
            rows = slice(at, at + ROWS)
            log_p = F.log_softmax(float_logits(models.base.model, base[rows]), -1)
            routed.entropy_N.append(-(log_p.exp() * log_p).sum(-1).cpu())
            sums[0] += loss(log_p, wanted[rows])
            for place, name in enumerate(names):
                log_q = F.log_softmax(float_logits(sides[name][0], hidden[name][rows]), -1)
                sums[1 + 2 * place] += loss(log_q, wanted[rows])
                sums[2 + 2 * place] += divergence(log_p, log_q).double().sum()
    count = ids_ST.shape[0] * (ids_ST.shape[1] - 1)
    base_loss, *rest = (sums / count).tolist()
    if not all(map(math.isfinite, rest)):
        raise Failure(f"{file.name}: losses or divergences are not finite")
    return Read(
        count,
        base_loss,
        dict(zip(names, rest[::2], strict=True)),
        dict(zip(names, rest[1::2], strict=True)),
        ran,
        routed,
    )


@torch.inference_mode()
def budget_of_mean(plan: Plan, models: Models) -> float:
    """The budget at which DEB's measured mean over a quarter of the texts is the target: means drift with the text."""
    deb, low, high = models.deb.model, 1.0, float(max(plan.budgets))
    ids_ST = torch.tensor(
        [w.ids for f in plan.texts for w in load_windows(models.base.tokenizer, f, plan.tokens // 4, plan.length)]
    ).to(DEVICE)
    for _ in range(9):
        budget, ran = (low + high) / 2, 0
        for ids in ids_ST.split(max(1, plan.batch // plan.length)):
            with expert_budget(deb, budget), record_routing(deb) as layers:
                hidden_states(deb, ids)
            ran += sum(int(layer.load_E.sum()) for layer in layers) / len(layers)
        low, high = (low, budget) if ran / ids_ST.numel() > plan.target else (budget, high)
    return (low + high) / 2


def predicting(hidden_BTC: Tensor) -> Tensor:
    """Rows of all but the last tokens."""
    return hidden_BTC[:, :-1].flatten(0, 1)


def loss(log_p_NV: Tensor, wanted_N: Tensor) -> Tensor:
    return -log_p_NV.gather(1, wanted_N[:, None]).double().sum()


def merged(reads: Sequence[Read]) -> Read:
    """Several texts as one: every token weighs the same."""
    total = sum(one.tokens for one in reads)

    def mean(values: list[float]) -> float:
        return sum(one.tokens * value for one, value in zip(reads, values, strict=True)) / total

    routed = Routed(tokens=sum(one.routed.tokens for one in reads))
    for one in reads:
        for name in ("loads", "full", "k_LN", "entropy_N"):
            getattr(routed, name).extend(getattr(one.routed, name))
    names = reads[0].kl
    return Read(
        total,
        mean([one.base_loss for one in reads]),
        {name: mean([one.loss[name] for one in reads]) for name in names},
        {name: mean([one.kl[name] for one in reads]) for name in names},
        {name: mean([one.mean_k[name] for one in reads]) for name in names},
        routed,
    )


def record_texts(plan: Plan, whole: Read, by_name: dict[str, Read], records: Records) -> None:
    """Divergence from the base, and perplexity."""
    twin, most = f"top{plan.top_k}", key(max(plan.budgets))
    if whole.kl[most] > 1:
        raise Failure(f"with all experts the KL to the base is {whole.kl[most]:.2f} nats: no conversion of this base")
    each = "; ".join(
        f"{name} " + ", ".join(f"{side} {one.kl[side]:.4f}" for side in one.kl) for name, one in by_name.items()
    )
    common = f"{whole.tokens:,} tokens of {', '.join(by_name)}, pieces of {plan.length}. By text: {each}."
    means = ", ".join(f"{side} {one:.2f}" for side, one in whole.mean_k.items())
    common += f" Measured means: {means}; {EVEN}: asked for {plan.asked:.3f}, which gives the target on these texts."
    kl, loss = whole.kl, whole.loss
    text = f"KL from the dense model at a measured mean of {plan.target:g} experts, fixed top-{plan.top_k} beside it. "
    make = partial(measure, command=COMMAND, better="lower")
    records.append(
        make(
            "deb.convert.kl", kl[EVEN], "nats", baseline=f"fixed top-{plan.top_k}, converted and trained identically",
            baseline_value=kl[twin], goal="ratio >= 1.0", notes=text + common,
        )
    )  # fmt: skip
    text = f"KL from the dense model at a measured mean of {plan.target:g} experts, on held-out text. "
    records.append(make("deb.convert.kl.absolute", kl[EVEN], "nats", goal="value <= 0.05", notes=text + common))
    for side in kl:
        which = f"a budget of {side[1:].replace('_', '.')} experts"
        which = {twin: f"fixed top-{plan.top_k}", EVEN: f"a measured mean of {plan.target:g} experts"}.get(side, which)
        notes = f"KL from the dense model with {which}, on held-out text. {common}"
        records.append(make(f"deb.convert.kl.{side}", kl[side], "nats", notes=notes))
        notes = f"Perplexity with {which} on held-out text. {whole.tokens:,} tokens of {', '.join(by_name)}."
        records.append(
            make(
                f"deb.convert.ppl.{side}", math.exp(loss[side]), "perplexity", baseline="the dense model",
                baseline_value=math.exp(whole.base_loss), notes=notes,
            )
        )  # fmt: skip


def record_balance(
    plan: Plan, models: Models, whole: Read, texts: Sequence[str], domains: dict[str, Read], records: Records
) -> None:
    """Evenness of the load, dead experts, and the mean number of experts on domains."""
    make = partial(measure, command=COMMAND, better="lower")
    load_LE = whole.routed.load_LE()
    violation_L = load_LE.max(1).values / load_LE.mean(1).clamp(min=1e-30) - 1
    about = f"{whole.routed.tokens:,} tokens of {', '.join(texts)} at a mean of {plan.target:g} experts."
    notes = (
        f"MaxVio over the whole corpus, worst layer ({int(violation_L.argmax())}). Load of the most loaded expert over "
        f"the mean load, less 1. Mean over layers {float(violation_L.mean()):.3f}. {about}"
    )
    records.append(make("deb.balance.maxvio", float(violation_L.max()), "MaxVio", goal="value <= 0.10", notes=notes))
    batches = [load.double() for load, full in zip(whole.routed.loads, whole.routed.full, strict=True) if full]
    if batches:
        loads_BLE = torch.stack(batches)
        violation_BL = loads_BLE.max(2).values / loads_BLE.mean(2).clamp(min=1e-30) - 1
        worst = violation_BL.amax(1)
        notes = (
            f"MaxVio of a batch of {plan.batch:,} tokens, worst batch and layer. Worst layer of the median batch "
            f"{float(worst.median()):.3f}, mean over all {float(violation_BL.mean()):.3f}; {len(batches)} batches. "
            f"{about}"
        )
        value = float(worst.max())
        records.append(make("deb.balance.maxvio.batch", value, "MaxVio", goal="value <= 0.5", notes=notes))
    dead = int((load_LE == 0).sum())
    notes = f"Experts that no token ran, of {load_LE.numel()} in all layers. {about}"
    records.append(make("deb.balance.dead", dead, "experts", goal="value <= 0", notes=notes))
    levels_L = torch.tensor([float(layer.gate.level(plan.target)) for layer in expert_layers(models.deb.model)])
    worst_model = []
    for name, one in domains.items():
        mean_k_L = one.routed.mean_k_L()
        off_L = (mean_k_L / levels_L - 1).abs()
        off = abs(float(mean_k_L.mean()) / plan.target - 1)
        worst_model.append(off)
        text = f"{one.routed.tokens:,} tokens; measured {float(mean_k_L.mean()):.3f} for {plan.target:g}"
        load = one.routed.load_LE()
        text += f"; worst MaxVio of a layer {float((load.max(1).values / load.mean(1) - 1).max()):.3f}."
        notes = f"Deviation of the model's mean number of experts from its target, on {name}. Unseen domain, {text}"
        records.append(make(f"deb.balance.mean_k.{name}", off, "share", goal="value <= 0.02", notes=notes))
        notes = f"The same of the worst layer ({int(off_L.argmax())}), on {name}. {text}"
        value = float(off_L.max())
        records.append(make(f"deb.balance.mean_k.{name}.layer", value, "share", goal="value <= 0.02", notes=notes))
    if worst_model:
        notes = f"Deviation of the model's mean number of experts from its target, worst of {', '.join(domains)}."
        records.append(make("deb.balance.mean_k", max(worst_model), "share", goal="value <= 0.02", notes=notes))


def record_entropy(plan: Plan, whole: Read, records: Records) -> dict[str, list[float]]:
    """Experts against the dense model's uncertainty; returns what is drawn."""
    k_LN = torch.cat(whole.routed.k_LN, 1).float()
    entropy_N = torch.cat(whole.routed.entropy_N)
    parts = entropy_N.argsort().tensor_split(DECILES)
    found = {
        "entropy": [float(entropy_N[at].mean()) for at in parts],
        "mean_k": [float(k_LN[:, at].mean()) for at in parts],
        "few": [float((k_LN[:, at] <= FEW).float().mean()) for at in parts],
        "many": [float((k_LN[:, at] >= MANY).float().mean()) for at in parts],
    }
    listed = ", ".join(f"{value:.2f}" for value in found["mean_k"])
    notes = f"Mean number of experts by decile of the dense model's entropy: {listed}; {len(entropy_N):,} tokens."
    make = partial(measure, command=COMMAND)
    low, high = found["mean_k"][0], found["mean_k"][-1]
    text = "Experts of a token where the dense model is"
    records.append(make("deb.balance.k_entropy.low", low, "experts", notes=f"{text} surest (first decile). {notes}"))
    records.append(make("deb.balance.k_entropy.high", high, "experts", notes=f"{text} least sure (tenth). {notes}"))
    for name, value, what in (
        ("few", float((k_LN <= FEW).float().mean()), f"at most {FEW}"),
        ("many", float((k_LN >= MANY).float().mean()), f"{MANY} or more"),
    ):
        shares = ", ".join(f"{share:.1%}" for share in found[name])
        notes = f"Share of (token, layer) pairs with {what} experts. By decile of entropy: {shares}."
        records.append(make(f"deb.balance.k_share.{name}", value, "share", notes=notes))
    return found


def measured(plan: Plan, records: Records) -> dict[str, list[float]]:
    """All stages. Returns what is drawn."""
    begin = time.perf_counter()
    loaded = [load_model(fetch(n, False), dtype=DTYPE, device=DEVICE) for n in (plan.base, plan.deb, plan.twin)]
    models = Models(*loaded)
    check(plan, models)
    print(f"checked after {time.perf_counter() - begin:.0f} s", flush=True)
    plan.asked = budget_of_mean(plan, models)
    texts = {file.stem: read(plan, models, file) for file in plan.texts}
    domains = {
        name: texts[file.stem] if file in plan.texts else read(plan, models, file)
        for name, file in plan.domains.items()
    }
    print(f"texts after {time.perf_counter() - begin:.0f} s", flush=True)
    whole = merged(list(texts.values()))
    record_texts(plan, whole, texts, records)
    record_balance(plan, models, whole, list(texts), domains, records)
    drawn = record_entropy(plan, whole, records)
    if plan.data is not None:
        tasks = quality.select_tasks(plan.tasks, plan.data)
        items = [item for task in tasks for item in quality.load_items(task, plan.data, plan.limit)]
        sides = {name: side for name, side in models.sides(plan).items() if name != key(plan.target)}
        record_tasks(items, models.base, sides, EVEN, records, COMMAND)
    print(f"tasks after {time.perf_counter() - begin:.0f} s", flush=True)
    return drawn


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--base", default="stille-135m", help="the dense model")
    parser.add_argument("--deb", help="delta with thresholds")
    parser.add_argument("--twin", help=f"delta with fixed top-{TOP_K}, made identically")
    parser.add_argument("--text", type=Path, nargs="+", help="held-out texts")
    parser.add_argument("--domain", nargs="+", default=[], metavar="NAME=FILE", help="texts of unseen domains")
    parser.add_argument("--data", type=Path, help="folder with the tasks' data; none: no tasks")
    parser.add_argument("--tasks", nargs="+", default=["all"])
    parser.add_argument("--limit", type=int, default=Plan.limit, help="questions of a task")
    parser.add_argument("--tokens", type=int, default=Plan.tokens, help="of each text")
    parser.add_argument("--plot", type=Path, nargs="?", const=Path("docs/img/deb_entropy.svg"), help="draw it there")
    parser.add_argument("--json", type=Path, help="write the records there")
    parser.add_argument("--tiny", action="store_true", help="a small random model; records nothing")
    chosen = parser.parse_args()
    if chosen.tiny and (chosen.json or chosen.deb or chosen.twin):
        parser.error("--tiny makes its own models and records nothing: leave out --deb, --twin and --json")
    if not chosen.tiny and not (chosen.deb and chosen.twin and chosen.text):
        parser.error("--deb, --twin and --text are needed")
    if any("=" not in one for one in chosen.domain):
        parser.error("--domain takes NAME=FILE")
    return chosen


def show(records: Sequence[Record]) -> None:
    for one in records:
        state = {True: "met", False: "MISSED", None: ""}[one.met]
        ratio = "" if one.ratio is None else f"{one.ratio:.3f}x"
        print(f"{one.id:34s} {one.value:10.4f} {one.unit:10s} {ratio:>8s}  {one.goal or '':14s} {state}")


def main() -> int:
    chosen = options()
    records = Records(chosen.json)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            if chosen.tiny:
                plan = Plan(**tiny.make(Path(scratch)))
            else:
                domains = dict(one.split("=", 1) for one in chosen.domain)
                plan = Plan(
                    chosen.base, chosen.deb, chosen.twin, chosen.text, {n: Path(f) for n, f in domains.items()},
                    chosen.data, chosen.tasks, chosen.limit, chosen.tokens,
                )  # fmt: skip
            if len({file.stem for file in plan.texts}) < len(plan.texts):
                raise ConfigError("two texts have the same name")
            drawn = measured(plan, records)
        except (Failure, StilleError) as wrong:
            records.discard()
            print(f"WRONG: {wrong}; nothing is recorded", file=sys.stderr)
            return 1
    if chosen.plot:
        draw(chosen.plot, drawn, plan.target)
    show(records)
    records.finish()
    return 0


if __name__ == "__main__":
    sys.exit(main())
