"""Tile sizes of the fused projections, by shape: the one place to change after a measurement.

`benchmarks/gpu_engine.py --sweep` measures the alternatives.
"""

from dataclasses import dataclass

from stille.kernels.triton_support import next_power_of_2

FUSED_ROWS = 256
"""Most rows for which the fused projections are meant; beyond that a library matrix product wins."""


@dataclass(frozen=True)
class LinearConfig:
    """Tiles of one projection.

    Attributes:
        m, n, k: rows, output columns and inputs of a tile. m = 1 uses plain multiply-adds, more the matrix units.
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
        return self.m > 1


def linear_config(rows: int, columns: int, inputs: int, itemsize: int) -> LinearConfig:
    """Tiles for `rows` x `inputs` times `inputs` x `columns`."""
    if rows == 1:
        # One load of a whole row of weights per program: nothing to wait for twice. Wide inputs go in pieces.
        k = min(next_power_of_2(inputs), 2048)
        n = 4 if columns <= 2048 else 8 if columns <= 8192 else 16
        return LinearConfig(1, n, k, warps=4 if n * k >= 4096 else 2)
    wide = itemsize > 2
    if rows <= 16:
        return LinearConfig(16, 16 if columns <= 8192 else 64, 64 if wide else 128, stages=3 if wide else 4)
    if rows <= 32:
        return LinearConfig(32, 16 if columns <= 2048 else 32 if columns <= 8192 else 128, 64, stages=3 if wide else 4)
    if rows <= 128:
        return LinearConfig(32, 32 if columns <= 2048 else 64, 64, stages=3 if wide else 4)
    return LinearConfig(64, 32 if columns <= 2048 else 64 if columns <= 8192 else 128, 64, stages=2 if wide else 4)
