"""Attention over a paged KV cache: write, decode, prefill."""

from stille.kernels.paged.api import decode_attention, prefill_attention, write_kv
from stille.kernels.triton_support import PAGE

__all__ = ["PAGE", "decode_attention", "prefill_attention", "write_kv"]
