"""The plot of `deb_convert.py`: experts of a token against the dense model's uncertainty."""

from pathlib import Path
from typing import Any

GREY, BLUE, ORANGE, GREEN = "#808080", "#3b82c4", "#d9822b", "#3c9d6b"  # grey reads on white and on black


def draw(file: Path, found: dict[str, list[float]], target: float) -> None:
    """Write an SVG.

    Args:
        found: by decile of entropy: entropy (mean, nats), mean_k, few and many (shares of tokens and layers).
        target: mean number of experts that was asked for.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: Any = {
        "svg.fonttype": "none", "svg.hashsalt": "deb", "font.size": 10, "text.color": GREY, "axes.labelcolor": GREY,
        "axes.edgecolor": GREY, "xtick.color": GREY, "ytick.color": GREY, "axes.spines.top": False,
        "axes.spines.right": False, "legend.frameon": False, "axes.titlesize": 10,
    }  # fmt: skip
    with mpl.rc_context(style):
        figure = Figure(figsize=(9, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.plot(found["entropy"], found["mean_k"], color=BLUE, marker="o", markersize=4)
        left.axhline(target, color=GREY, linestyle="--", linewidth=1)
        left.set(title="Mean number of experts of a token", xlabel="entropy of the dense model (nats), by decile")
        right.plot(found["entropy"], found["few"], color=GREEN, marker="o", markersize=4, label="at most 3 experts")
        right.plot(found["entropy"], found["many"], color=ORANGE, marker="o", markersize=4, label="8 experts or more")
        right.set(title="Share of tokens and layers", xlabel="entropy of the dense model (nats), by decile")
        right.set_ylim(bottom=0)
        right.legend()
        for axes in (left, right):
            axes.grid(color=GREY, alpha=0.25, linewidth=0.6)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
