"""What watches a training run: its speed, Ctrl-C, and the lines of metrics."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from stille.errors import ConfigError

METRICS = "metrics.jsonl"


class Watch:
    """Tokens per second since the last line, and how long a step takes; saving and evaluating do not count."""

    def __init__(self, tokens: int):
        self.mark = self.now = time.perf_counter()
        self.tokens = tokens
        self.step_seconds = 0.0

    def step(self) -> None:
        now = time.perf_counter()
        self.step_seconds, self.now = now - self.now, now

    def rate(self, tokens: int) -> float:
        now = time.perf_counter()
        rate = (tokens - self.tokens) / max(1e-9, now - self.mark)
        self.mark, self.tokens = now, tokens
        return rate

    def pause(self) -> None:
        now = time.perf_counter()
        self.mark += now - self.now
        self.now = now


class Stop:
    """Whether SIGINT was received; the second one interrupts. Outside the main thread signals are left alone."""

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._receive)
        return self

    def _receive(self, *_: Any) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)


class Log:
    """Metrics as lines of JSON, and for TensorBoard on request; lines after the step that a run goes on from go."""

    def __init__(self, out: Path, step: int, tensorboard: bool):
        out.mkdir(parents=True, exist_ok=True)
        path = out / METRICS
        kept = [line for line in lines(path) if json.loads(line)["step"] <= step]
        scratch = path.with_suffix(".tmp")
        scratch.write_text("".join(kept), encoding="utf-8")
        os.replace(scratch, path)
        self.file = path.open("a", encoding="utf-8", buffering=1)
        self.board: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ConfigError("TensorBoard is not installed: pip install tensorboard, or leave it out.") from error
            self.board = SummaryWriter(str(out / "tensorboard"), purge_step=step)

    def write(self, values: dict[str, Any]) -> None:
        self.file.write(json.dumps(values) + "\n")
        if self.board is not None:
            for name, value in values.items():
                if isinstance(value, int | float) and name != "step":
                    self.board.add_scalar(name, value, values["step"])

    def close(self) -> None:
        self.file.close()
        if self.board is not None:
            self.board.close()


def lines(path: Path) -> Iterator[str]:
    """Whole lines of a file; a last one that was cut off by a kill is left out."""
    if path.exists():
        with path.open(encoding="utf-8") as file:
            yield from (line for line in islice(file, None) if line.endswith("\n"))
