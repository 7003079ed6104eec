"""Stages "convert" and "distill": experts out of the dense model, then taught by it."""

from typing import Any

import torch

from stille.model.convert.calibrate import recalibrate
from stille.model.convert.pipeline import convert as convert_dense
from stille.model.decoder import StilleForCausalLM
from stille.model.experts import expert_layers
from stille.model.load import load_model
from stille.model.tokenizer import load_tokenizer
from stille.train.config import TrainConfig
from stille.train.data import TokenStore, in_order, store_of
from stille.train.default.samples import HELD_OUT, LIBRARY, SAMPLES, base_digest, base_of
from stille.train.default.settings import DefaultSettings
from stille.train.default.stages import Context, Progress, Stopped
from stille.train.export import export_delta
from stille.train.loop import Progress as Step
from stille.train.loop import train
from stille.train.losses import run_model
from stille.train.weights import DTYPES, World

DELTA, MODEL, METRICS = "delta", "model", "metrics.jsonl"
BUDGETS = (2.0, 3.0, 8.0, 12.0)
"""Mean numbers of experts, beside the target, that thresholds are placed by after the training."""
MOST_TOKENS = 131_072
"""Of the text that they are placed by."""


def convert_inputs(settings: DefaultSettings) -> dict[str, Any]:
    """What the stage "convert" reads."""
    return {"base": base_digest(settings), "settings": vars(settings.conversion()) | {"budgets": None}}


def convert(context: Context) -> dict[str, Any]:
    """`DELTA`: the dense model split into experts, with gates fitted on the samples and the local text."""
    samples = context.done["samples"]
    made = convert_dense(
        base_of(context.settings), context.folder / DELTA, context.settings.conversion(),
        text=[samples / SAMPLES, samples / LIBRARY], work=context.folder / "parts", device=context.device,
        progress=not context.quiet,
    )  # fmt: skip
    layers = made.report["layers"]
    return {
        "r2": [round(layer["r2"], 4) for layer in layers],
        "mean_k": [round(layer["mean_k"], 3) for layer in layers],
    }


def distill_inputs(settings: DefaultSettings) -> dict[str, Any]:
    """What the stage "distill" reads."""
    config = settings.training()
    found = {"base": base_digest(settings), "settings": config.identity() | {"minutes": config.minutes}}
    if settings.gate == "threshold":
        found["thresholds"] = {"tokens": _calibration_tokens(settings), "budgets": [*BUDGETS, settings.target_k]}
    return found


def distill(context: Context) -> dict[str, Any]:
    """`MODEL`: the delta after it learned from the dense model, by pairs of low rank."""
    settings, folder = context.settings, context.folder
    samples, start = context.done["samples"], context.done["convert"] / DELTA
    base = base_of(settings)
    tokenizer = load_tokenizer(start)
    store = store_of([samples / SAMPLES, samples / LIBRARY], tokenizer, folder / "tokens")
    held_out = store_of([samples / HELD_OUT], tokenizer, folder / "tokens-held-out")
    config = settings.training()
    device = torch.device(context.device)
    shown = not context.quiet
    teacher = load_model(base, dtype=DTYPES[config.dtype], device=device, progress=shown).model
    model = load_model(start, device=device, progress=shown).model
    result = train(
        model, store, config, folder, world=World(0, 1, device), teacher=teacher, held_out=held_out,
        on_step=lambda step: context.report(_shown(step, config)),
    )  # fmt: skip
    if not result.finished:
        raise Stopped
    if settings.gate == "threshold":
        context.report(Progress("distill", 1.0, 1.0, "thresholds are placed anew"))
        _place_thresholds(result.model, store, config, _calibration_tokens(settings), device)
    about = {
        "base": base, "trained by": "stille train default", "steps": result.step, "tokens": result.tokens,
        "seconds": round(result.seconds, 1), "rank": config.rank, "dtype": config.dtype,
    }  # fmt: skip
    export_delta(result, start, folder / MODEL, about)
    return {**about, "tokens in the text": len(store.tokens), "evaluation": result.evaluation}


def _calibration_tokens(settings: DefaultSettings) -> int:
    """After the training; of filled settings."""
    return min(settings.calibration_tokens or 0, MOST_TOKENS)


def _place_thresholds(
    model: StilleForCausalLM, store: TokenStore, config: TrainConfig, tokens: int, device: torch.device
) -> None:
    """Of the trained model, by text that it learned from."""
    experts = expert_layers(model)[0].settings
    least, most = max(1, experts.min_k), experts.max_k
    budgets = {b for b in (*BUDGETS, experts.target_k) if least <= b <= most and b < experts.num_experts}

    def run() -> None:
        for batch in in_order(store, config.length, config.micro_batch, max(1, tokens // config.length)):
            run_model(model, batch.to(device))

    for _ in range(2 if budgets else 0):  # the second by hidden states under the new thresholds
        recalibrate(model, run, sorted(budgets))


def _shown(step: Step, config: TrainConfig) -> Progress:
    names = (("kl", "KL", ".4f"), ("mean_k", "k", ".2f"), ("tokens_per_second", "tok/s", ",.0f"))
    facts = [f"{label} {step.metrics[name]:{form}}" for name, label, form in names if name in step.metrics]
    return Progress("distill", step.share, 1.0, "  ".join([f"step {step.step}", *facts]))
