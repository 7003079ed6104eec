"""What the GPU benchmarks of HSA share: outputs held to an error, times by events, records kept as they come."""

import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from stille.ledger import Record, write


class Failure(Exception):
    """An output is wrong."""


def expect(name: str, got: Tensor, want: Tensor, most: float) -> None:
    """Raise `Failure` unless the relative error (of norms) is below `most`."""
    error = float((got.float() - want.float()).norm() / want.float().norm())
    print(f"check  {name:70s} relative error {error:.1e}", flush=True)
    if not error < most:  # NaN too
        raise Failure(f"{name}: relative error {error}, at most {most} is allowed")


def milliseconds(run: Callable[[], object], repeats: int, warm: int = 1) -> float:
    """Median by events."""
    for _ in range(warm):
        run()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def graphed(run: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """A graph of `run`, which is called once before."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


class Records(list[Record]):
    """Records of a run. Until it has ended well they stand in FILE.part, so that one that is cut off keeps what it had.

    Args:
        file: where they go in the end; None: nowhere.
    """

    def __init__(self, file: Path | None):
        super().__init__()
        self._file = file
        self._part = file and file.with_name(file.name + ".part")

    def append(self, record: Record) -> None:
        super().append(record)
        if self._part:
            write(self._part, [record])

    def finish(self) -> None:
        """Merge them into the file."""
        if self._file and self:
            write(self._file, self)
        self.discard()

    def discard(self) -> None:
        """What was wrong records nothing."""
        if self._part:
            self._part.unlink(missing_ok=True)
