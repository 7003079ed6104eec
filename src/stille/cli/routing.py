"""`stille doctor --model`: what the gates of a model with experts do on a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from stille.errors import ConfigError

BARS = " ▁▂▃▄▅▆▇█"


def report(model: str, text: Path | None, tokens: int, budget: float | None) -> dict[str, Any]:
    """Run a text through a model with experts, and say layer by layer how it was routed.

    Args:
        model: as `load_model` takes it.
        text: None: sources and docstrings of Python's standard library.
        tokens: read in pieces of at most 1,024.
        budget: mean number of experts; None: the model's own.

    Raises:
        ConfigError: the model has no experts, or no text.
    """
    from stille.model import expert_budget, load_config, load_model, record_routing
    from stille.model.convert.text import read_documents
    from stille.model.experts import expert_layers

    if load_config(model).experts is None:
        raise ConfigError(f"{model} has no layers with experts: there is no routing to report.")
    loaded = load_model(model)
    documents = read_documents([] if text is None else [text])
    joined = "\n\n".join(documents)[: 16 * tokens]  # no tokenizer needs more characters for so many tokens
    ids = torch.tensor(loaded.tokenizer(joined, add_special_tokens=False)["input_ids"][:tokens])
    settings = expert_layers(loaded.model)[0].settings
    own = settings.target_k if budget is None else budget
    with torch.inference_mode(), expert_budget(loaded.model, budget), record_routing(loaded.model) as logs:
        for piece in ids.split(min(1024, loaded.config.max_position_embeddings)):
            loaded.model(piece[None], use_cache=False, logits_to_keep=1)
    layers = []
    for log, layer in zip(logs, expert_layers(loaded.model), strict=True):
        load = log.load_E.double() / log.tokens
        target = max(1, settings.min_k, min(settings.max_k, float(layer.gate.level(own))))
        layers.append(
            {
                "layer": log.layer,
                "mean_k": log.mean_k,
                "drift": log.mean_k / target - 1,
                "histogram": (log.count_K.double() / log.tokens).tolist(),
                "load": load.tolist(),
                "load_percentiles": [float(load.quantile(q)) for q in (0.0, 0.5, 1.0)],
                "max_violation": log.max_violation,
                "dead": log.dead,
            }
        )
    mean_k = sum(layer["mean_k"] for layer in layers) / len(layers)
    return {"model": model, "tokens": len(ids), "budget": own, "mean_k": mean_k, "layers": layers}


def table(found: dict[str, Any]) -> Any:
    """A report as a table for people."""
    from rich.table import Table

    title = (
        f"{found['model']}: {found['mean_k']:.2f} experts a token over {found['tokens']:,} tokens, "
        f"budget {found['budget']:g}"
    )
    drawn = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name, right in (("layer", True), ("mean k", True), ("drift", True), ("0 .. E experts", False),
                        ("load of each", False), ("least", True), ("median", True), ("most", True),
                        ("MaxVio", True), ("dead", True)):  # fmt: skip
        drawn.add_column(name, justify="right" if right else "left", no_wrap=True)
    for layer in found["layers"]:
        least, median, most = (f"{value:.0%}" for value in layer["load_percentiles"])
        drawn.add_row(
            str(layer["layer"]), f"{layer['mean_k']:.2f}", f"{layer['drift']:+.1%}", bars(layer["histogram"]),
            bars(layer["load"]), least, median, most, f"{layer['max_violation']:.2f}", str(len(layer["dead"])),
        )  # fmt: skip
    return drawn


def bars(values: list[float]) -> str:
    """Values as a row of bars, the largest at full height; what is above 0 is seen."""
    most = max(values, default=0.0) or 1.0
    return "".join(BARS[-(-int(value / most * 8000) // 1000) if value else 0] for value in values)
