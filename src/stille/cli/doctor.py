"""`stille doctor`: what this machine has, what is fast on it, what is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from stille.cli.options import examples

EXAMPLES = examples(
    ("stille doctor", "a report for people"),
    ("stille doctor --json", "the same for programs, and for bug reports"),
    ("stille doctor --model ./converted", "how a model with experts routes a text, layer by layer"),
)


def command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    model: Annotated[str | None, typer.Option(help="Report the routing of this model with experts instead.")] = None,
    text: Annotated[
        Path | None, typer.Option(help="With --model: the text to route; default: Python's standard library.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="With --model: tokens of the text.")] = 4096,
    budget: Annotated[
        float | None, typer.Option(help="With --model: mean number of experts; default: the model's own.")
    ] = None,
) -> None:
    """Report hardware, versions and caches; what is fast here, what is missing, and the command that mends it.

    With --model: how many experts tokens run in each layer, how far that drifts from the target, and how evenly experts
    are loaded (MaxVio: the busiest expert's load above the mean, as a share of it).
    """
    if model is not None:
        _routing(model, text, tokens, budget, as_json)
        return
    from stille.cli import machine

    report = machine.report()
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        _print(report)
    if any(finding["level"] == "missing" for finding in report["findings"]):
        raise typer.Exit(1)


def _routing(model: str, text: Path | None, tokens: int, budget: float | None, as_json: bool) -> None:
    from stille.cli import routing

    found = routing.report(model, text, tokens, budget)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    from rich.console import Console

    console = Console(soft_wrap=True)
    console.width = max(console.width, 110)  # cut columns would say nothing
    console.print(routing.table(found))


_COLOURS = {"fast": "green", "note": "cyan", "slow": "yellow", "missing": "red"}


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(soft_wrap=True)
    for section in ("hardware", "software", "caches"):
        table = Table(title=section, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 2))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for key, value in report[section].items():
            table.add_row(key, escape(_text(value)))
        console.print(table)
        console.print()
    for finding in report["findings"]:
        level = finding["level"]
        console.print(f"[{_COLOURS[level]}]{level:<7}[/]  {escape(finding['text'])}")
        if finding["fix"]:
            console.print(f"         fix: [bold]{escape(finding['fix'])}[/bold]")


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(str(item) for item in value) or "none"
    return "not installed" if value is None else str(value)
