"""What a conversion found, for people: Markdown, and plots where matplotlib is installed."""

import io
import json
from importlib.util import find_spec
from typing import Any


def nearest(judgements: list[dict[str, Any]], target: float) -> dict[str, Any]:
    """The judgement at the budget that is nearest to a target."""
    return min(judgements, key=lambda each: abs(each["budget"] - target))


def to_markdown(report: dict[str, Any]) -> str:
    """The report of `pipeline.convert` as tables: budgets, then layers at the default budget."""
    about, judged = report["about"], report["judgements"]
    lines = ["# Conversion report", ""]
    lines += [f"- {name}: {value}" for name, value in about.items()]
    if judged:
        lines += ["", "## Held-out text against the dense model", ""]
        lines += ["| budget | mean k | KL (nats) | perplexity | ratio | worst MaxVio | dead experts |"]
        lines += ["| ---: |" + " ---: |" * 6]
        for each in judged:
            worst = max(layer["max_violation"] for layer in each["layers"])
            dead = sum(len(layer["dead"]) for layer in each["layers"])
            lines.append(
                f"| {each['budget']:g} | {each['mean_k']:.2f} | {each['kl']:.4f} | {each['perplexity']:.2f} | "
                f"{each['perplexity_ratio']:.3f} | {worst:.2f} | {dead} |"
            )
        lines += ["", f"Perplexity of the dense model: {judged[0]['dense_perplexity']:.2f}."]
    lines += ["", "## Layers", ""]
    now = nearest(judged, about["target k"])["layers"] if judged else [None] * len(report["layers"])
    head = "| layer | R² of the gate | calibrated k | calibrated MaxVio |"
    lines.append(head + (" mean k | MaxVio | tokens by number of experts |" if judged else ""))
    lines.append("| ---: |" + " ---: |" * 3 + (" ---: | ---: | --- |" if judged else ""))
    for fitted, seen in zip(report["layers"], now, strict=True):
        row = f"| {fitted['layer']} | {fitted['r2']:.3f} | {fitted['mean_k']:.2f} | {fitted['max_violation']:.2f} |"
        if seen is not None:
            row += f" {seen['mean_k']:.2f} | {seen['max_violation']:.2f} | {_histogram(seen['histogram'])} |"
        lines.append(row)
    return "\n".join(lines) + "\n"


def _histogram(shares: list[float]) -> str:
    """k: percent, where there are any."""
    return ", ".join(f"{k}: {100 * share:.0f}%" for k, share in enumerate(shares) if share >= 0.005)


def to_plots(report: dict[str, Any]) -> dict[str, bytes]:
    """PNG files by name; none without matplotlib, or if nothing was judged."""
    judged = report["judgements"]
    if not judged or find_spec("matplotlib") is None:
        return {}
    from matplotlib.figure import Figure

    now = nearest(judged, report["about"]["target k"])
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for axes, what, title, label in (
        (left, "histogram", f"Share of tokens by number of experts, budget {now['budget']:g}", "experts of a token"),
        (middle, "load", f"Share of tokens of each expert, budget {now['budget']:g}", "expert"),
    ):
        image = axes.imshow([layer[what] for layer in now["layers"]], aspect="auto", vmin=0, cmap="viridis")
        axes.set(title=title, xlabel=label, ylabel="layer")
        figure.colorbar(image, ax=axes)
    ordered = sorted(judged, key=lambda each: each["mean_k"])
    right.plot([each["mean_k"] for each in ordered], [each["kl"] for each in ordered], marker="o")
    right.set(title="KL to the dense model on held-out text", xlabel="measured mean number of experts", ylabel="nats")
    right.set_ylim(bottom=0)
    right.grid(alpha=0.3)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    return {"report.png": drawn.getvalue()}


def files(report: dict[str, Any]) -> dict[str, bytes]:
    """The report's files by name: JSON, Markdown, and plots if they can be drawn."""
    text = {"report.json": json.dumps(report, indent=1) + "\n", "report.md": to_markdown(report)}
    return {name: content.encode() for name, content in text.items()} | to_plots(report)
