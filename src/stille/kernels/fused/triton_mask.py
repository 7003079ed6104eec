"""Triton: logits of tokens that a grammar does not allow become minus infinity, in one launch.

Shapes: R rows of logits, M masks, V vocabulary, W = ceil(V / 32) words.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# Triton's language is Python in looks only; its types are beyond the checker.

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048


@triton.jit
def restrict_kernel(
    logits_ptr,  # fp32 [R, V]
    place_ptr,  # int32 [R]
    mask_ptr,  # int32 [M, W]
    out_ptr,  # fp32 [R, V]
    V: tl.constexpr,
    W: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    v = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    inside = v < V
    place = tl.load(place_ptr + row)
    x = tl.load(logits_ptr + row * V + v, mask=inside, other=0.0)
    word = tl.load(mask_ptr + tl.maximum(place, 0).to(tl.int64) * W + (v >> 5), mask=inside, other=0)
    allowed = ((word >> (v & 31)) & 1) + tl.where(place < 0, 1, 0)
    tl.store(out_ptr + row * V + v, tl.where(allowed > 0, x, float("-inf")), mask=inside)


def restrict(logits_RV: Tensor, place_R: Tensor, mask_MW: Tensor) -> Tensor:
    """Logits with minus infinity for what masks leave out.

    Args:
        logits_RV: float32, contiguous; not changed.
        place_R: int32, the mask of each row; -1: everything is allowed.
        mask_MW: int32, contiguous, bit i % 32 of word i // 32 for token i.
    """
    rows, width = logits_RV.shape
    out_RV = torch.empty_like(logits_RV)
    grid = (triton.cdiv(width, BLOCK), rows)
    restrict_kernel[grid](logits_RV, place_R, mask_MW, out_RV, width, mask_MW.shape[1], BLOCK)
    return out_RV
