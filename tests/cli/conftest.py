"""The `stille` command in processes of its own; where a process adds nothing, in this one."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import processes
from tests.processes import WarmProcess

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "100"}
ENVIRONMENT.pop("STILLE_API_KEY", None)
ENVIRONMENT.pop("STILLE_MODEL", None)


def environment(env: dict[str, str] | None) -> dict[str, str]:
    return {**ENVIRONMENT, **(env or {})}


@pytest.fixture(scope="session")
def stille_started() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command to its end as users do, imports and all: stille_started("generate", "--raw", ..., input=...)."""

    def run(*arguments: str | Path, input: str = "", env: dict[str, str] | None = None, timeout: float = 120):
        command = [sys.executable, "-m", "stille.cli", *map(str, arguments)]
        return subprocess.run(
            command, input=input, capture_output=True, text=True, timeout=timeout, env=environment(env)
        )

    return run


@pytest.fixture(scope="session")
def stille() -> Callable[..., subprocess.CompletedProcess[str]]:
    """As `stille_started`, in a process that has paid for the imports already."""

    def run(*arguments: str | Path, input: str = "", env: dict[str, str] | None = None, timeout: float = 120):
        given = map(str, arguments)
        return processes.run(processes.stille, *given, input=input, timeout=timeout, env=environment(env))

    return run


@pytest.fixture
def stille_here(monkeypatch, capfd) -> Callable[..., subprocess.CompletedProcess[str]]:
    """As `stille`, but in this process, which has paid for the imports already: for mistakes and messages."""
    from stille.cli import main

    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["stille", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capfd.readouterr()
        return subprocess.CompletedProcess(arguments, end.value.code or 0, out, err)

    yield run
    root.handlers, root.level = handlers, level


@pytest.fixture
def spawn() -> Iterator[Callable[..., WarmProcess]]:
    """Start a command and leave it running; what still runs at the end of the test is killed."""
    started: list[WarmProcess] = []

    def start(*arguments: str | Path, env: dict[str, str] | None = None) -> WarmProcess:
        started.append(WarmProcess(processes.stille, *map(str, arguments), env=environment(env)))
        return started[-1]

    yield start
    for process in started:
        process.close()


@pytest.fixture(scope="session")
def tiny(tiny_checkpoint: Path) -> list[str]:
    """Options that run the tiny checkpoint."""
    return ["--model", str(tiny_checkpoint), "--dtype", "fp32", "--device", "cpu", "--threads", "1"]
