"""Tile sizes of the fused projections, by shape: the one place to change after a measurement.

`benchmarks/gpu_kernels.py` measures the alternatives.
"""

from dataclasses import dataclass

from stille.kernels.triton_support import next_power_of_2

FUSED_ROWS = 256
"""Most rows for which the fused projections are meant; beyond that a library matrix product wins."""


@dataclass(frozen=True)
class LinearConfig:
    """Tiles of one projection.

    Attributes:
        m, n, k: rows, output columns and inputs of a tile. Less than 16 rows use plain multiply-adds, more the matrix
            units.
        warps, stages: of a program.
    """

    m: int
    n: int
    k: int
    warps: int = 4
    stages: int = 4

    @property
    def uses_dot(self) -> bool:
        """Whether tiles are multiplied by the matrix units."""
        return self.m >= 16


def linear_config(rows: int, columns: int, inputs: int, itemsize: int) -> LinearConfig:
    """Tiles for `rows` x `inputs` times `inputs` x `columns`."""
    if rows == 1:
        # One load of a whole row of weights per program: nothing to wait for twice. Wide inputs go in pieces.
        k = min(next_power_of_2(inputs), 2048)
        n = 4 if columns <= 2048 else 8 if columns <= 8192 else 16
        return LinearConfig(1, n, k, warps=4 if n * k >= 4096 else 2)
    if rows <= 8 and itemsize <= 2 and (few := _few_rows(rows, columns, inputs)) is not None:
        return few
    m, n, k = _half_precision_tiles(rows, columns, inputs)
    if itemsize > 2:  # twice the bytes: smaller tiles in fewer stages, or shared memory does not hold them
        return LinearConfig(m, min(n, 64), 64 if k > 64 else 32, stages=3)
    return LinearConfig(m, n, k)


def _few_rows(rows: int, columns: int, inputs: int) -> LinearConfig | None:
    """Up to 8 rows without the matrix units, where that is faster (swept at 4 and 8 rows on one H200); else None."""
    square = columns <= 768 and inputs <= 1024
    if square or columns > (8192 if rows <= 4 else 2048):
        return None
    k = min(next_power_of_2(inputs), 2048)
    warps = 2 if k <= 1024 else 8 if rows <= 4 else 4
    return LinearConfig(2 if rows == 2 else 4, 8 if warps == 8 else 4, k, warps, stages=2)


def _half_precision_tiles(rows: int, columns: int, inputs: int) -> tuple[int, int, int]:
    """Best of the sweep at 8, 32, 64 and 256 rows of a 576-wide model on one H200."""
    if rows <= 32:
        if columns <= 768:
            return 16, 16, 128
        if columns <= 2048 or (columns <= 8192 and rows <= 16):
            return 16, 32, 64
        if columns <= 8192:
            return 16, 64, 64
        return (16 if rows <= 16 else 32), 128, 64
    if rows <= 128:
        if columns <= 768:
            return 32, 16, 128
        if columns <= 2048:
            return 16, 32, 64
        return 64, (32 if columns <= 8192 else 128), 64
    if columns <= 2048:
        return 64, 32, (128 if inputs > 1024 else 64)
    return 64, 128, 64
