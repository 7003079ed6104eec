"""Decoding on CPUs: weights packed to 4 or 8 bits and a whole step in one compiled call.

- `formats.py`: what the packed numbers mean (the reference) and how they lie in memory.
- `simd.py`, `tiles.py`: vector operations for numba and the two inner loops, per instruction set.
- `layers.py`, `experts.py`, `paged.py`, `sparse.py`: the stages of a layer.
- `step.py`, `team.py`: all stages on all threads.
- `decoder.py`: `CpuDecoder`, the public face.
"""

from stille.kernels.cpu.decoder import CpuDecoder, DecoderShape, LayerTensors
from stille.kernels.cpu.experts import ExpertsShape, ExpertTensors, RowBudgets
from stille.kernels.cpu.simd import Target, host_isas
from stille.kernels.cpu.sparse import KeyBudget

__all__ = [
    "CpuDecoder",
    "DecoderShape",
    "LayerTensors",
    "ExpertsShape",
    "ExpertTensors",
    "RowBudgets",
    "KeyBudget",
    "Target",
    "host_isas",
]
