"""Hierarchical sparse attention: a coarse map of the keys, exact attention where it matters."""

from stille.kernels.hsa.api import hsa_attention
from stille.kernels.hsa.config import HSAConfig, HSAOutput
from stille.kernels.hsa.paged import HSAWorkspace, PageCodes, hsa_decode, update_codes

__all__ = [
    "HSAConfig",
    "HSAOutput",
    "HSAWorkspace",
    "PageCodes",
    "hsa_attention",
    "hsa_decode",
    "update_codes",
]
