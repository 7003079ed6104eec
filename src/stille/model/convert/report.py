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
    about, judged, target = report["about"], report["judgements"], report["about"]["target k"]
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
    now = nearest(judged, target)["layers"] if judged else [None] * len(report["layers"])
    own = "level" in report["layers"][0]
    head = "| layer | R² of the gate |" + (" KL alone | own budget |" if own else "")
    head += " calibrated k | calibrated MaxVio |"
    lines.append(head + (" mean k | MaxVio | tokens by number of experts |" if judged else ""))
    lines.append("| ---: |" + " ---: |" * (5 if own else 3) + (" ---: | ---: | --- |" if judged else ""))
    for fitted, seen in zip(report["layers"], now, strict=True):
        row = f"| {fitted['layer']} | {fitted['r2']:.3f} |"
        row += f" {fitted['kl_alone']:.4f} | {fitted['level']:.2f} |" if own else ""
        row += f" {fitted['mean_k']:.2f} | {fitted['max_violation']:.2f} |"
        if seen is not None:
            row += f" {seen['mean_k']:.2f} | {seen['max_violation']:.2f} | {_histogram(seen['histogram'])} |"
        lines.append(row)
    if own:
        lines += ["", "KL alone: nats to the dense model on text of the calibration, where only this layer runs at the"]
        lines += [
            f"default budget and all others at all experts. Own budget: of the layer where the model's is {target:g}."
        ]
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

    now, own = nearest(judged, report["about"]["target k"]), "level" in report["layers"][0]
    figure = Figure(figsize=(20 if own else 15, 4.5), layout="constrained")
    left, middle, right, *more = figure.subplots(1, 4 if own else 3)
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
    for axes in more:
        _plot_budgets(axes, report["layers"], report["about"]["target k"])
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    return {"report.png": drawn.getvalue()}


def _plot_budgets(axes: Any, layers: list[dict[str, Any]], target: float) -> None:
    """Bars of the layers' own budgets, points of what they lose alone."""
    places = [layer["layer"] for layer in layers]
    axes.bar(places, [layer["level"] for layer in layers], color="tab:blue", alpha=0.5)
    axes.axhline(target, color="tab:blue", linewidth=1)
    axes.set(title=f"Own budgets of layers, model at {target:g}", xlabel="layer")
    axes.set_ylabel("experts", color="tab:blue")
    lost = axes.twinx()
    lost.plot(places, [layer["kl_alone"] for layer in layers], color="tab:red", marker=".", linewidth=0)
    lost.set_ylabel("KL of the layer alone at the model's budget, nats", color="tab:red")
    lost.set_ylim(bottom=0)


def files(report: dict[str, Any]) -> dict[str, bytes]:
    """The report's files by name: JSON, Markdown, and plots if they can be drawn."""
    text = {"report.json": json.dumps(report, indent=1) + "\n", "report.md": to_markdown(report)}
    return {name: content.encode() for name, content in text.items()} | to_plots(report)
