"""Triton: the mean squares of a prompt's first queries, per page of its positions."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# Triton's language is Python in looks only; its types are beyond the checker.

import triton
import triton.language as tl
from torch import Tensor

from stille.kernels.hsa.config import TILE
from stille.kernels.triton_support import PAGE

STEP = 256  # queries of an iteration, of all heads of a group
WIDTH = 32  # dimensions of a program


@triton.jit
def importance_kernel(
    q_ptr, begun_ptr, parts_ptr, stride_qn, stride_qh,
    G: tl.constexpr, K: tl.constexpr, D: tl.constexpr, TILE: tl.constexpr, PAGE: tl.constexpr, STEP: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    PARTS: tl.constexpr = TILE // PAGE
    prompt, part, head = tl.program_id(0) // PARTS, tl.program_id(0) % PARTS, tl.program_id(1)
    entry = begun_ptr + prompt * (2 + PARTS)
    first, count = tl.load(entry).to(tl.int64) + part * PAGE, tl.load(entry + 1) - part * PAGE
    if count > 0:
        page = tl.load(entry + 2 + part).to(tl.int64)
        d = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
        total = tl.zeros([WIDTH], tl.float32)
        for start in range(0, G * PAGE, STEP):
            r = start + tl.arange(0, STEP)
            of_head, row = head * G + r // PAGE, r % PAGE
            mask = ((r < G * PAGE) & (row < count))[:, None] & (d < D)[None, :]
            at = ((first + row) * stride_qn + of_head * stride_qh)[:, None] + d[None, :]
            q = tl.load(q_ptr + at, mask=mask, other=0.0).to(tl.float32)
            total += tl.sum(q * q, 0)
        mean = total / (G * TILE)
        tl.store(parts_ptr + (page * K + head) * D + d, mean.to(parts_ptr.dtype.element_ty), mask=d < D)


def write_importance(q_NHD: Tensor, begun_BI: Tensor, parts_PKD: Tensor) -> None:
    """Write the parts of prompts that begin in a step; one launch.

    The sum over a prompt's first 128 // 64 pages is `reference.importance` of its queries, times the share of 128
    positions that it has.

    Args:
        q_NHD: the step's queries, fp32, bfloat16 or float16; dimensions lie side by side.
        begun_BI: int32 [prompts, 4], contiguous, on the device: a prompt's first row, how many of its rows are in the
            step, up to 128, and the two pages that hold them. A page without a row is not written.
        parts_PKD: [num_pages, K, D], contiguous, any float dtype.
    """
    (_, heads, dim), kv_heads = q_NHD.shape, parts_PKD.shape[1]
    grid = (begun_BI.shape[0] * (TILE // PAGE), kv_heads, triton.cdiv(dim, WIDTH))
    importance_kernel[grid](
        q_NHD, begun_BI, parts_PKD, q_NHD.stride(0), q_NHD.stride(1), G=heads // kv_heads, K=kv_heads, D=dim, TILE=TILE,
        PAGE=PAGE, STEP=STEP, WIDTH=WIDTH, num_warps=4,
    )  # fmt: skip
