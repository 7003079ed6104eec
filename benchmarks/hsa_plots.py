"""The plots of docs/hsa.md, drawn from recorded results: speed against length, recall against density.

    python benchmarks/hsa_plots.py                                     # from benchmarks/results to docs/img
    python benchmarks/hsa_plots.py --results FILE --recall FILE --folder FOLDER

Needs matplotlib (`pip install --group plots`). What has no results yet is left out, and said so.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from stille import ledger

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "hsa.json"
RECALL = ROOT / "benchmarks" / "results" / "points" / "hsa_recall.json"
IMAGES = ROOT / "docs" / "img"

GREY = "#808080"  # reads on white and on black
BLUE, ORANGE, GREEN, RED, VIOLET = "#3b82c4", "#d9822b", "#3c9d6b", "#c8504b", "#8a63b8"
BASELINES = {"fa2": ("FlashAttention-2", RED), "fa3": ("FlashAttention-3", ORANGE)}
METHODS = {  # of the recall points: label, colour, line
    "oracle": ("oracle", GREY, "--"),
    "hsa": ("HSA", BLUE, "-"),
    "learned": ("learned signs", GREEN, ":"),
    "signs": ("Hadamard signs", GREEN, "-"),
    "quest": ("Quest bounds", ORANGE, "-"),
    "submeans": ("four sub-means", VIOLET, "-"),
    "mean": ("mean key", RED, "-"),
}

mpl.rcParams.update(
    {
        "svg.fonttype": "none", "svg.hashsalt": "hsa", "font.family": "sans-serif", "font.size": 10,
        "text.color": GREY, "axes.labelcolor": GREY, "axes.edgecolor": GREY, "xtick.color": GREY, "ytick.color": GREY,
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": GREY,
        "grid.alpha": 0.25, "grid.linewidth": 0.6, "legend.frameon": False, "lines.linewidth": 1.8,
        "lines.markersize": 4, "axes.titlesize": 10,
    }
)  # fmt: skip


def speed(records: list[ledger.Record]) -> Figure | None:
    """Milliseconds of a forward pass against tokens, one panel for each head width that has more than one length."""
    found: dict[int, dict[str, list[tuple[int, float]]]] = {}
    for record in records:
        match = re.fullmatch(r"hsa\.prefill\.hd(\d+)\.(\d+)k\.(\w+)", record.id)
        if match and match[3] in BASELINES and record.baseline_value is not None:
            lines, thousands = found.setdefault(int(match[1]), {}), int(match[2])
            lines.setdefault(match[3], []).append((thousands, record.baseline_value))
            if (thousands, record.value) not in lines.setdefault("hsa", []):
                lines["hsa"].append((thousands, record.value))
    widths = [dim for dim, lines in sorted(found.items()) if len(lines["hsa"]) > 1]
    if not widths:
        return None
    figure, axes = plt.subplots(1, len(widths), figsize=(3.8 * len(widths), 3.2), squeeze=False, layout="constrained")
    for axis, dim in zip(axes[0], widths, strict=True):
        for name, (label, colour) in {**BASELINES, "hsa": ("HSA", BLUE)}.items():
            if points := sorted(found[dim].get(name, [])):
                axis.plot(*zip(*points, strict=True), color=colour, marker="o", label=label)
        axis.set(xscale="log", yscale="log", title=f"head width {dim}", xlabel="tokens", ylabel="ms, forward")
        lengths = [x for x, _ in sorted(set(found[dim]["hsa"]))]
        ticks(axis, lengths[::-2] if len(lengths) > 5 else lengths, lambda x, _: f"{x:g}K")
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axis.yaxis.set_minor_locator(NullLocator())
    axes[0][0].legend()
    return figure


def recall(points: list[dict]) -> Figure | None:
    """Share of the attention mass read against the share of the past read, in prefill, one panel for each length."""
    lengths = sorted({point["length"] for point in points})
    if not lengths:
        return None
    figure, axes = plt.subplots(
        1, len(lengths), figsize=(2.9 * len(lengths) + 1.4, 3.2), squeeze=False, sharey=True, layout="constrained"
    )
    for axis, length in zip(axes[0], lengths, strict=True):
        here = {(p["kind"], p["method"], p["budget"]): p["value"] for p in points if p["length"] == length}
        density = {budget: value for (kind, _, budget), value in here.items() if kind == "density-prefill"}
        for method, (label, colour, line) in METHODS.items():
            known = [budget for budget in sorted(density) if ("prefill", method, budget) in here]
            pairs = [(density[budget], here["prefill", method, budget]) for budget in known]
            if pairs:
                width = 2.4 if method == "hsa" else 1.4
                axis.plot(*zip(*pairs, strict=True), line, color=colour, label=label, linewidth=width)
        axis.set(xscale="log", title=f"{length >> 10}K tokens", xlabel="share of the past that is read")
        low, high = min(density.values()), max(density.values())
        ticks(
            axis, [x for x in (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0) if low <= x <= high], lambda x, _: f"{x:.0%}"
        )
    axes[0][0].set_ylabel("share of the attention mass")
    figure.legend(*axes[0][-1].get_legend_handles_labels(), loc="outside right upper")
    return figure


def ticks(axis: Axes, at: list[float] | list[int], label: Callable[..., str]) -> None:
    axis.set_xticks(at)
    axis.xaxis.set_major_formatter(FuncFormatter(label))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.xaxis.set_minor_locator(NullLocator())


def save(figure: Figure | None, name: str, folder: Path) -> bool:
    if figure is None:
        print(f"{name} is left out: there are no results for it", file=sys.stderr)
        return False
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / name, transparent=True, metadata={"Date": None})
    text = (folder / name).read_text(encoding="utf-8")
    (folder / name).write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n", encoding="utf-8")
    print(folder / name)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="ledger records (default: %(default)s)")
    parser.add_argument("--recall", type=Path, default=RECALL, help="what hsa_recall.py --points wrote")
    parser.add_argument("--folder", type=Path, default=IMAGES, help="where the plots go (default: %(default)s)")
    chosen = parser.parse_args()
    records = ledger.read(chosen.results) if chosen.results.exists() else []
    points = json.loads(chosen.recall.read_text(encoding="utf-8")) if chosen.recall.exists() else []
    drawn = [
        save(speed(records), "hsa_speed.svg", chosen.folder),
        save(recall(points), "hsa_recall.svg", chosen.folder),
    ]
    return 0 if any(drawn) else 1


if __name__ == "__main__":
    sys.exit(main())
