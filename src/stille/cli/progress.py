"""A progress bar for long runs, on stderr, so that stdout stays clean for pipes."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

import typer

from stille.cli.download import stderr_console


@contextlib.contextmanager
def share_bar(what: str) -> Iterator[Callable[[float, str], None]]:
    """A bar on stderr; where that is no terminal, a line every ten seconds.

    Yields:
        what to call with the share that is done and a few words about it.
    """
    if not sys.stderr.isatty():
        told = 0.0

        def line(share: float, text: str) -> None:
            nonlocal told
            if time.monotonic() - told >= 10 or share >= 1:
                told = time.monotonic()
                typer.echo(f"{what} {share:.0%}  {text}", err=True)

        yield line
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.description}"), console=stderr_console(quiet=False)) as bars:
        task = bars.add_task("", total=1.0)
        yield lambda share, text: bars.update(task, completed=share, description=text)
