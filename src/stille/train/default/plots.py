"""Plots of the stage "judge", where matplotlib is installed."""

import io
from importlib.util import find_spec
from typing import Any


def draw(judgement: dict[str, Any]) -> dict[str, bytes]:
    """PNG files by name: KL against experts, experts against entropy, the load of the first domain's layers."""
    if find_spec("matplotlib") is None:
        return {}
    from matplotlib.figure import Figure

    target, domains = judgement["target_k"], judgement["domains"]
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for name, domain in domains.items():
        budgets = sorted(domain["budgets"], key=lambda each: each["mean_k"])
        left.plot([each["mean_k"] for each in budgets], [each["kl"] for each in budgets], marker="o", label=name)
        deciles = _at(domain, target)["k_by_entropy"]
        middle.plot([d["entropy"] for d in deciles], [d["k"] for d in deciles], marker="o", label=name)
    left.set(title="KL to the dense model", xlabel="measured mean number of experts", ylabel="nats")
    left.set_ylim(bottom=0)
    middle.set(
        title=f"Experts by the dense model's uncertainty, budget {target:g}", xlabel="entropy of the next token (nats)",
        ylabel="mean number of experts",
    )  # fmt: skip
    for axes in (left, middle):
        axes.grid(alpha=0.3)
        axes.legend()
    first = next(iter(domains))
    image = right.imshow(_at(domains[first], target)["load"], aspect="auto", vmin=0, cmap="viridis")
    right.set(title=f"Share of tokens of each expert, {first}", xlabel="expert", ylabel="layer")
    figure.colorbar(image, ax=right)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    return {"judge.png": drawn.getvalue()}


def _at(domain: dict[str, Any], target: float) -> dict[str, Any]:
    return next(each for each in domain["budgets"] if each["budget"] == target)
