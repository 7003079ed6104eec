"""Sides from the outside: start one, ask it, and take only samples during which it had the machine to itself."""

import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
OTHERS_AT_MOST = 0.03  # of the machine; above that a sample says more about the neighbours


class TooBusyError(Exception):
    """Something else used the machine during every try."""


@dataclass(frozen=True, eq=False)
class Side:
    """How to start one side.

    Attributes:
        name: for tables.
        python: the interpreter whose environment holds what it needs.
        script: in this folder.
        settings: its argument.
    """

    name: str
    python: Path
    script: str
    settings: dict[str, Any]

    def start(self) -> "Running":
        return Running(self)


class Running:
    """A side's process; a context manager that ends it."""

    def __init__(self, side: Side):
        self.name = side.name
        command = [str(side.python), str(FOLDER / side.script), json.dumps(side.settings)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ready = self._read()["ready"]

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended early with status {self.process.wait()}; its words are above")
        return json.loads(line)

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **fields}) + "\n")
        self.process.stdin.flush()
        return self._read()

    def timed(self, tries: int, do: str, **fields: Any) -> dict[str, Any]:
        """As `ask`, repeated until nothing else used the machine meanwhile.

        Raises:
            TooBusyError: never in `tries` tries.
        """
        for attempt in range(tries):
            answer = self.ask(do, **fields)
            if answer["others"] <= OTHERS_AT_MOST:
                answer["dropped"] = attempt
                return answer
            time.sleep(min(5.0, 0.5 * (attempt + 1)))
        raise TooBusyError(f"{self.name}, {do}: other programs used the machine in each of {tries} tries")


@dataclass
class Samples:
    """Rates of one phase on one side, one for each round."""

    rates: list[float] = field(default_factory=list)
    utilisation: list[float] = field(default_factory=list)  # CPU time / wall
    dropped: int = 0

    def add(self, tokens: int, answer: dict[str, Any]) -> None:
        self.rates.append(tokens / answer["seconds"])
        self.utilisation.append(answer["cpu"] / answer["seconds"])
        self.dropped += answer["dropped"]

    @property
    def median(self) -> float:
        return statistics.median(self.rates)

    def __str__(self) -> str:
        spread = f"{min(self.rates):.1f}-{max(self.rates):.1f}"
        return f"{self.median:.1f} ({spread}; {min(self.utilisation):.2f} cores busy, {self.dropped} dropped)"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
