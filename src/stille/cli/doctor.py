"""`stille doctor`: what this machine has, what is fast on it, what is missing."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from stille.cli.options import examples

EXAMPLES = examples(
    ("stille doctor", "a report for people"),
    ("stille doctor --json", "the same for programs, and for bug reports"),
)


def command(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Report hardware, versions and caches; what is fast here, what is missing, and the command that mends it."""
    from stille.cli import machine

    report = machine.report()
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        _print(report)
    if any(finding["level"] == "missing" for finding in report["findings"]):
        raise typer.Exit(1)


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
