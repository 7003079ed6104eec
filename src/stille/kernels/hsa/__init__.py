"""Hierarchical sparse attention: a coarse map of the keys, exact attention where it matters."""

from stille.kernels.hsa.api import hsa_attention
from stille.kernels.hsa.config import HSAConfig, HSAOutput

__all__ = ["HSAConfig", "HSAOutput", "hsa_attention"]
