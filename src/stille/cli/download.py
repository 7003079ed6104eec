"""Fetching models with a progress bar on stderr, so that stdout stays clean for pipes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def stderr_console(quiet: bool = False) -> Console:
    """Where progress and status go."""
    from rich.console import Console

    return Console(stderr=True, quiet=quiet)


def fetch(name: str, *, offline: bool = False, quiet: bool = False) -> Path:
    """The model on this machine, downloaded with a progress bar if it is not there yet.

    Raises:
        ModelNotFoundError: the name leads nowhere, or the download is impossible.
    """
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from stille.model import store

    columns = (
        TextColumn("fetching {task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    progress = Progress(*columns, console=stderr_console(quiet))
    bar = progress.add_task(name, total=None)

    def update(done: int, total: int) -> None:
        progress.start()  # not before the first byte: a model that is in the cache shows no bar
        progress.update(bar, completed=done, total=total or None)

    try:
        return store.resolve(name, offline=offline, progress=update)
    finally:
        if progress.live.is_started:  # stopping what was not started prints an empty line
            progress.stop()
