"""The `stille` command, run as users run it, in processes of its own; where a process adds nothing, in this one."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "stille.cli"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "100"}
ENVIRONMENT.pop("STILLE_API_KEY", None)
ENVIRONMENT.pop("STILLE_MODEL", None)


@pytest.fixture(scope="session")
def stille() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command to its end: stille("generate", "--raw", ..., input=..., env={...})."""

    def run(*arguments: str | Path, input: str = "", env: dict[str, str] | None = None, timeout: float = 120):
        return subprocess.run(
            [*COMMAND, *map(str, arguments)],
            input=input,
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**ENVIRONMENT, **(env or {})},
        )

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
def spawn() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a command and leave it running; what still runs at the end of the test is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**ENVIRONMENT, **(env or {})},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def tiny(tiny_checkpoint: Path) -> list[str]:
    """Options that run the tiny checkpoint."""
    return ["--model", str(tiny_checkpoint), "--dtype", "fp32", "--device", "cpu", "--threads", "1"]
