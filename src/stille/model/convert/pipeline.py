"""`convert`: from a dense checkpoint to a delta (or a whole checkpoint) with experts, in stages that are kept.

    tokens -> inputs of every FFN -> per layer: split, gate, thresholds -> gates on more text -> budgets by layer ->
    judged on held-out text -> written

The dense model runs once over the text. Each layer is then worked on by itself, from the inputs of its FFN on disk; for
budgets by layer the whole model runs over a little of the text once more.
"""

import hashlib
import math
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from stille.errors import ConfigError
from stille.model.checkpoint import build_model
from stille.model.config import StilleConfig
from stille.model.convert import report as reporting
from stille.model.convert.calibrate import Calibration, calibrate, measure
from stille.model.convert.delta import ORDER, check_target, fingerprint, is_delta, tensor_digests, write_delta
from stille.model.convert.importance import fit_routers
from stille.model.convert.judge import judge
from stille.model.convert.router import Router, fit_router, log_norms, normalised
from stille.model.convert.sensitivity import alone, layer_shares
from stille.model.convert.split import Layout, neuron_order, split_ffn
from stille.model.convert.text import read_documents, split_documents, take_tokens
from stille.model.convert.whole import StateSource, write_whole
from stille.model.convert.work import LayerInputs, Result, Work, key_of
from stille.model.decoder import StilleForCausalLM
from stille.model.experts import expert_layers
from stille.model.load import fetch, load_model, open_weights
from stille.model.routing import ExpertsConfig, Gate, check_budget

VERSION = 2  # of the stages: a change of what they compute makes old results useless
CHUNK = 2048  # tokens whose inner activations are held at a time
MIN_TOKENS = 256
ALONE = 1024  # tokens at a time on which layers alone are looked at, whose logits are held


@dataclass(frozen=True)
class ConvertSettings:
    """What a conversion is to make, and how much it looks at.

    Attributes:
        num_experts, expert_size, shared_size: as `split.Layout.of` takes them; None: chosen there.
        router_size, gate, target_k, min_k, max_k, weights: as in `ExpertsConfig`; max_k None: all.
        tokens: of text to calibrate with. They need layers * tokens * hidden_size * 2 bytes of disk.
        profile_tokens: the first of them, by which neurons are ranked and grouped.
        held_out: tokens of other text that the result is judged on; 0: it is not judged.
        length: tokens of a sequence, at most the model's context.
        steps: of fitting each gate to sizes, on the calibration tokens.
        gate_tokens: of other text, on which gates go on to be fitted while it runs through the dense model, see
            `importance`; at most what there is. 0: none.
        fisher: weight of gradients in that.
        layer_budgets: layers that lose more than others with fewer experts get more of them; not with gate "top_k".
        sensitivity_tokens: of the calibration text by which that is measured, at least one sequence.
        budgets: mean numbers of experts that are judged, beside target_k; what the bounds exclude is left out.
        seed: of the choice of text and of the gates.
    """

    num_experts: int = 16
    expert_size: int | None = None
    shared_size: int | None = None
    router_size: int = 128
    gate: str = "threshold"
    target_k: float = 4.8
    min_k: int = 1
    max_k: int | None = None
    weights: str = "unit"
    tokens: int = 32_768
    profile_tokens: int = 8_192
    held_out: int = 4_096
    length: int = 512
    steps: int = 400
    gate_tokens: int = 0
    fisher: float = 0.5
    layer_budgets: bool = True
    sensitivity_tokens: int = 2_048
    budgets: tuple[float, ...] = (3, 4.8, 8, 16)
    seed: int = 0

    def layout(self, inner: int) -> Layout:
        """Sizes for a dense FFN of so many neurons."""
        return Layout.of(inner, self.num_experts, self.shared_size, self.expert_size)

    def experts(self, layout: Layout) -> ExpertsConfig:
        """The settings of the layers."""
        values = {name: getattr(self, name) for name in ("router_size", "gate", "target_k", "min_k", "weights")}
        return ExpertsConfig(
            num_experts=layout.experts,
            expert_size=layout.size,
            shared_size=layout.shared,
            max_k=layout.experts if self.max_k is None else self.max_k,
            **values,
        )

    def by_layer(self, experts: ExpertsConfig) -> bool:
        """Whether layers get budgets of their own."""
        return self.layer_budgets and experts.gate == "threshold" and experts.target_k < experts.num_experts

    def judged_budgets(self, experts: ExpertsConfig) -> list[float]:
        """Budgets that the bounds allow, the target among them, in order."""
        found = {float(experts.target_k)}
        for budget in self.budgets:
            try:
                check_budget(budget, experts)
            except ConfigError:
                continue
            if experts.gate == "threshold" or budget == int(budget):
                found.add(float(budget))
        return sorted(found)


@dataclass
class Conversion:
    """What `convert` made.

    Attributes:
        folder: the delta or the whole checkpoint.
        work: stages that were kept, safe to remove.
        report: as in `report.json`: `about`, `layers`, `judgements`.
    """

    folder: Path
    work: Path
    report: dict[str, Any] = field(repr=False)


def convert(
    source: str | Path,
    folder: str | Path,
    settings: ConvertSettings | None = None,
    *,
    text: Sequence[Path] = (),
    work: str | Path | None = None,
    whole: bool = False,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Conversion:
    """Convert a dense checkpoint.

    Run again after a kill or Ctrl-C, it goes on where it was, as long as arguments and model are the same.

    Args:
        source: as `load_model` takes it; dense, no delta.
        folder: where the result goes: a new folder, or a delta, which is replaced.
        settings: None: the defaults.
        text: files to calibrate with; none: Python's standard library.
        work: folder for stages; None: `<folder>.work`.
        whole: write all tensors, not a delta.
        dtype, device: of the models while they run.
        progress: show bars (on a terminal).

    Raises:
        ConfigError: sizes that do not fit the model, too little text, or a folder that holds something else.
        ModelNotFoundError, CheckpointError: as `load_model`.
    """
    began = time.monotonic()
    settings, folder = settings or ConvertSettings(), Path(folder).expanduser()
    check_target(folder)
    path = fetch(source, progress)
    if is_delta(path):
        raise ConfigError(f"{path} is a delta; convert the dense checkpoint that it was made on.")
    base_config, tensors = open_weights(path)
    if any(kind != "dense" for kind in base_config.ffn_kinds):
        raise ConfigError(f"{source} is not dense: its layers are {', '.join(sorted(set(base_config.ffn_kinds)))}.")
    layout = settings.layout(base_config.intermediate_size)
    experts = settings.experts(layout)
    length = min(settings.length, base_config.max_position_embeddings)
    if length < 2 or settings.tokens < max(MIN_TOKENS, length):
        raise ConfigError(
            f"{settings.tokens} tokens in sequences of {length}: expected at least {max(MIN_TOKENS, length)} tokens in "
            "sequences of at least 2."
        )
    if settings.gate_tokens < 0 or not math.isfinite(settings.fisher) or settings.fisher < 0:
        raise ConfigError(
            f"gate_tokens={settings.gate_tokens}, fisher={settings.fisher}: expected numbers from 0 on, both finite."
        )
    documents = read_documents(text)
    digests = tensor_digests(tensors)
    loaded = load_model(path, dtype=dtype, device=device, progress=progress)
    stages = Work(Path(work).expanduser() if work is not None else folder.with_name(folder.name + ".work"))
    ids_ST, judged_ST, more_ST = _tokens(loaded.tokenizer, documents, settings, length)
    key = key_of(version=VERSION, base=fingerprint(digests), ids=_digest(ids_ST), dtype=str(dtype))
    inputs = _collect(loaded.model, ids_ST, stages, key, progress)
    key = key_of(inputs=key, experts=asdict(experts), **_fitting(settings))
    results = _layers(loaded.model, inputs, stages, key, settings, experts, layout, progress)
    if len(more_ST):
        key = key_of(layers=key, ids=_digest(more_ST), fisher=settings.fisher)
        results = _gates(loaded.model, inputs, more_ST, stages, key, settings, experts, layout, results, progress)

    config = experts_config(base_config, experts)
    orders = torch.stack([tensors["order"] for tensors, _ in results])
    gates = {
        f"model.layers.{layer}.mlp.gate.{name.removeprefix('gate.')}": value
        for layer, (tensors, _) in enumerate(results)
        for name, value in tensors.items()
        if name.startswith("gate.")
    }
    converted = build_model(config, split_state(loaded.model, orders, gates, layout), dtype, device)
    layers, measured = [values for _, values in results], 0
    if settings.by_layer(experts):
        some_ST = ids_ST[: max(1, settings.sensitivity_tokens // length)]
        key = key_of(layers=key, alone=_digest(some_ST))
        shares, layers = _budgets(loaded.model, converted, inputs, some_ST, stages, key, layers, progress)
        gates |= {f"model.layers.{layer}.mlp.gate.layer_share": share.clone() for layer, share in enumerate(shares)}
        measured = some_ST.numel()
    judgements = _judge(loaded.model, converted, judged_ST, stages, key, settings, experts, progress)
    found = {
        "about": {
            "base": str(source),
            "experts": f"{layout.shared} shared neurons, {layout.experts} experts of {layout.size}",
            "gate": f"{experts.gate}, {experts.min_k} to {experts.max_k} experts, inner width {experts.router_size}",
            "target k": experts.target_k,
            "text": ", ".join(file.name for file in text) or "Python's standard library",
            "calibration tokens": ids_ST.numel(),
            "more tokens for the gates": more_ST.numel(),
            "held-out tokens": judged_ST.numel(),
            "budgets by layer": f"measured on {measured:,} tokens" if measured else "equal",
            "seed": settings.seed,
            "minutes, without what was kept": round((time.monotonic() - began) / 60, 2),
        },
        "layers": [{"layer": layer, **values} for layer, values in enumerate(layers)],
        "judgements": judgements,
    }
    extra = reporting.files(found)
    if whole:
        converted.generation_config = loaded.model.generation_config
        write_whole(folder, converted, loaded.tokenizer, extra)
    else:
        small = {name: _smallest(value) for name, value in gates.items()}
        write_delta(folder, config, source, digests, {ORDER: orders, **small}, found["about"], extra)
    return Conversion(folder, stages.folder, found)


def experts_config(base: StilleConfig, experts: ExpertsConfig) -> StilleConfig:
    """The configuration of a dense model with every FFN made experts."""
    values = base.to_dict() | {"ffn_kinds": ["experts"] * base.num_hidden_layers, "experts": asdict(experts)}
    return StilleConfig.from_dict(values)


def split_state(model: StilleForCausalLM, orders_LI: Tensor, gates: dict[str, Tensor], layout: Layout) -> StateSource:
    """Tensors of a converted model, out of its dense one, the order of the neurons and the gates."""
    state = dict(model.state_dict())
    for layer, order in enumerate(orders_LI):
        mlp = f"model.layers.{layer}.mlp."
        dense = [state.pop(f"{mlp}{part}.weight") for part in ("gate_proj", "up_proj", "down_proj")]
        split = split_ffn(dense[0], dense[1], dense[2], order, layout)
        state |= {mlp + name: value for name, value in split.items()}
    return StateSource("the converted model", state | gates)


def _tokens(
    tokenizer: Any, documents: list[str], settings: ConvertSettings, length: int
) -> tuple[Tensor, Tensor, Tensor]:
    """To calibrate with, to judge on, and others to fit gates on."""
    fitted, judged = split_documents(documents)
    least = settings.tokens // length * length
    all_ST = take_tokens(
        tokenizer, fitted, least, length, settings.seed, "calibration", most=least + settings.gate_tokens
    )
    ids_ST, more_ST = all_ST[: least // length], all_ST[least // length :]
    if not settings.held_out:
        return ids_ST, ids_ST[:0], more_ST
    count = max(length, settings.held_out)
    return ids_ST, take_tokens(tokenizer, judged, count, length, settings.seed, "held-out"), more_ST


def _collect(model: StilleForCausalLM, ids_ST: Tensor, stages: Work, key: str, progress: bool) -> LayerInputs:
    config = model.config
    inputs = LayerInputs(stages.folder / f"inputs-{key}", config.num_hidden_layers, ids_ST.numel(), config.hidden_size)
    missing = inputs.bytes * (len(ids_ST) - inputs.done) // len(ids_ST)
    if missing > (free := shutil.disk_usage(stages.folder).free):
        raise ConfigError(
            f"{ids_ST.numel():,} calibration tokens need {inputs.bytes / 1e9:.1f} GB in {stages.folder}, where "
            f"{free / 1e9:.1f} GB are free. Ask for fewer tokens, or name another work folder."
        )
    with _bar("reading text", len(ids_ST), "sequence", progress) as bar:
        for done in inputs.collect(model, ids_ST):
            bar.update(done - bar.n)
    return inputs


def _fitting(settings: ConvertSettings) -> dict[str, Any]:
    return {"profile": settings.profile_tokens, "steps": settings.steps, "seed": settings.seed}


def _layers(
    model: StilleForCausalLM,
    inputs: LayerInputs,
    stages: Work,
    key: str,
    settings: ConvertSettings,
    experts: ExpertsConfig,
    layout: Layout,
    progress: bool,
) -> list[Result]:
    results = []
    layers: Iterable[Any] = model.model.layers
    with _bar("splitting layers", model.config.num_hidden_layers, "layer", progress) as bar:
        for index, layer in enumerate(layers):

            def make(mlp: Any = layer.mlp, index: int = index) -> Result:
                return convert_layer(mlp, inputs.layer(index), settings, experts, layout)

            results.append(stages.stage(f"layer-{index}", key, make))
            bar.update()
    return results


@torch.no_grad()
def convert_layer(
    mlp: nn.Module, x_NC: Tensor, settings: ConvertSettings, experts: ExpertsConfig, layout: Layout
) -> Result:
    """Split one dense FFN, fit its gate and calibrate it.

    Args:
        mlp: `DenseFFN`.
        x_NC: its inputs on calibration tokens, any float dtype, on the CPU.

    Returns:
        Tensors `order` (int32 [I]) and `gate.*` (parameters and buffers of `Gate`); r2, mean_k (at the target),
        mean_k_by_target, max_violation, dead.
    """
    gate_proj, up_proj, down_proj = (
        getattr(mlp, name).weight.float() for name in ("gate_proj", "up_proj", "down_proj")
    )
    device = gate_proj.device

    def inner(x: Tensor, gate_up: tuple[Tensor, Tensor]) -> Tensor:
        x = x.to(device).float()
        return F.silu(F.linear(x, gate_up[0])) * F.linear(x, gate_up[1])

    profile = x_NC[: settings.profile_tokens]
    h_TI = torch.cat([inner(x, (gate_proj, up_proj)) for x in profile.split(CHUNK)])
    order = neuron_order(h_TI, down_proj, layout)
    del h_TI
    routed = split_ffn(gate_proj, up_proj, down_proj, order, layout)
    size, width = layout.size, x_NC.shape[1]
    gate_up = tuple(part.reshape(-1, width) for part in routed["gate_up_proj"].split(size, dim=1))
    target_NE = torch.cat(
        [log_norms(inner(x, (gate_up[0], gate_up[1])), routed["down_proj"]).cpu() for x in x_NC.split(CHUNK)]
    )
    target_NE = normalised(target_NE)
    router = fit_router(x_NC, target_NE, experts.router_size, steps=settings.steps, seed=settings.seed, device=device)
    return _calibrated(router, order.cpu(), x_NC, experts, device)


def _calibrated(router: Router, order_I: Tensor, x_NC: Tensor, experts: ExpertsConfig, device: torch.device) -> Result:
    """What `convert_layer` returns."""
    gate = Gate(x_NC.shape[1], experts)
    gate.load_state_dict(router.tensors(), strict=False)
    calibration = calibrate(gate.to(device), x_NC)
    state = {f"gate.{name}": value.cpu() for name, value in gate.state_dict().items()}
    return {"order": order_I, **state}, {"r2": router.r2, **_described(calibration)}


def _gates(
    model: StilleForCausalLM,
    inputs: LayerInputs,
    ids_ST: Tensor,
    stages: Work,
    key: str,
    settings: ConvertSettings,
    experts: ExpertsConfig,
    layout: Layout,
    results: list[Result],
    progress: bool,
) -> list[Result]:
    """Results of the layers with gates that were fitted on more text, and thresholds placed anew."""
    orders = [tensors["order"] for tensors, _ in results]
    begun = [
        Router(tensors.get("gate.down.weight"), tensors["gate.up.weight"], tensors["gate.up.bias"], found["r2"])
        for tensors, found in results
    ]
    fitted: list[Router] = []

    def fit() -> list[Router]:
        if not fitted:
            with _bar("fitting gates", len(ids_ST), "sequence", progress) as bar:
                fitted.extend(
                    fit_routers(
                        model, ids_ST, torch.stack(orders), begun, layout,
                        fisher=settings.fisher, seed=settings.seed, advance=bar.update,
                    )
                )  # fmt: skip
        return fitted

    return [
        stages.stage(
            f"gate-{index}", key,
            lambda index=index: _calibrated(fit()[index], orders[index], inputs.layer(index), experts, model.device),
        )
        for index in range(len(results))
    ]  # fmt: skip


def _described(calibration: Calibration) -> dict[str, Any]:
    return {
        "mean_k": calibration.mean_k_at_target,
        "mean_k_by_target": calibration.mean_k,
        "max_violation": calibration.max_violation,
        "dead": calibration.dead,
    }


def _budgets(
    dense: StilleForCausalLM,
    converted: StilleForCausalLM,
    inputs: LayerInputs,
    ids_ST: Tensor,
    stages: Work,
    key: str,
    layers: list[dict[str, Any]],
    progress: bool,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Give each layer its part of the model's experts: sets the gates' `layer_share`.

    Returns:
        Shares, float32 [L, 1]; what was found of each layer, at its own level, with `kl_alone`, `level` and
        `layer_share`.
    """
    experts = expert_layers(converted)
    target = experts[0].settings.target_k
    kl, parts = [0.0] * len(experts), ids_ST.split(max(1, ALONE // ids_ST.shape[1]))
    with _bar("one layer alone", len(parts) * len(experts), "layer", progress) as bar:
        for index, part in enumerate(parts):

            def make(part: Tensor = part) -> Result:
                return {}, {"kl": alone(dense, converted, part, target, bar.update)}

            found = stages.stage(f"alone-{index}", key, make)[1]["kl"]
            kl = [before + more / ids_ST.numel() for before, more in zip(kl, found, strict=True)]
            bar.update((index + 1) * len(experts) - bar.n)

    def share() -> Result:
        told = []
        for index, value in enumerate(layer_shares(kl, experts[0].settings)):
            gate = experts[index].gate
            gate.layer_share.fill_(value)
            own = {"kl_alone": kl[index], "level": float(gate.level(target)), "layer_share": float(gate.layer_share)}
            told.append(_described(measure(gate, inputs.layer(index))) | own)
        return {"shares": torch.stack([layer.gate.layer_share.cpu() for layer in experts])}, {"layers": told}

    tensors, found = stages.stage("shares", key, share)
    for layer, value in zip(experts, tensors["shares"], strict=True):
        layer.gate.layer_share.copy_(value)
    return tensors["shares"], [old | new for old, new in zip(layers, found["layers"], strict=True)]


def _judge(
    dense: StilleForCausalLM,
    converted: StilleForCausalLM,
    ids_ST: Tensor,
    stages: Work,
    key: str,
    settings: ConvertSettings,
    experts: ExpertsConfig,
    progress: bool,
) -> list[dict[str, Any]]:
    if not len(ids_ST):
        return []
    budgets = settings.judged_budgets(experts)

    def make() -> Result:
        with _bar("judging", len(ids_ST) * len(budgets), "sequence", progress) as bar:
            judged = judge(dense, converted, ids_ST, budgets, bar.update)
        return {}, {"judgements": [each.as_dict() for each in judged]}

    return stages.stage("judged", key_of(layers=key, ids=_digest(ids_ST), budgets=budgets), make)[1]["judgements"]


def _smallest(value: Tensor) -> Tensor:
    """In bfloat16 if that loses nothing: weights of gates were rounded before they were calibrated."""
    half = value.bfloat16()
    return half if torch.equal(half.to(value.dtype), value) else value


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(f"{list(tensor.shape)}".encode() + tensor.numpy().tobytes()).hexdigest()


@contextmanager
def _bar(title: str, total: int, unit: str, shown: bool) -> Iterator[Any]:
    # disable=None: no bar where the output is not a terminal
    with tqdm(total=total, desc=title, unit=unit, disable=None if shown else True) as bar:
        yield bar
