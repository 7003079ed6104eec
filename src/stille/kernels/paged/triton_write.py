"""Triton: q/k norm, RoPE and the write into the paged cache, for q, k and v that exist already.

Shapes as in `reference.py`. Pairs of a head are (p, p + D/2), p < D/2.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# Triton's language is Python in looks only; its types are beyond the checker.

import triton
import triton.language as tl
from torch import Tensor

from stille.kernels.triton_support import PAGE, next_power_of_2


@triton.jit
def finish_head(
    first,  # fp32 [R, BP]: components p of one head, rows are tokens; 0 where masked
    second,  # fp32 [R, BP]: components p + D/2
    head,  # 0..H-1 query heads, then K key heads, then K value heads
    rows,
    row_mask,
    pairs,
    pair_mask,
    q_norm_ptr,
    k_norm_ptr,
    cos_ptr,
    sin_ptr,
    positions_ptr,
    slots_ptr,
    q_out_ptr,
    k_pages_ptr,
    v_pages_ptr,
    q_out_stride,
    eps,
    H: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    QK_NORM: tl.constexpr,
    ROPE: tl.constexpr,
):
    """Normalise, rotate and store one head of some tokens: queries to q_out, keys and values to their pages."""
    HALF: tl.constexpr = D // 2
    mask = row_mask[:, None] & pair_mask[None, :]
    if head < H + K:
        if QK_NORM:
            if head < H:
                w_first = tl.load(q_norm_ptr + pairs, mask=pair_mask, other=0.0).to(tl.float32)
                w_second = tl.load(q_norm_ptr + HALF + pairs, mask=pair_mask, other=0.0).to(tl.float32)
            else:
                w_first = tl.load(k_norm_ptr + pairs, mask=pair_mask, other=0.0).to(tl.float32)
                w_second = tl.load(k_norm_ptr + HALF + pairs, mask=pair_mask, other=0.0).to(tl.float32)
            mean_square = (tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)) / D
            factor = 1.0 / tl.sqrt(mean_square + eps)
            first = first * factor[:, None] * w_first[None, :]
            second = second * factor[:, None] * w_second[None, :]
        if ROPE:
            position = tl.load(positions_ptr + rows, mask=row_mask, other=0).to(tl.int64)
            cos = tl.load(cos_ptr + position[:, None] * D + pairs[None, :], mask=mask, other=0.0)
            sin = tl.load(sin_ptr + position[:, None] * D + pairs[None, :], mask=mask, other=0.0)
            turned = first * cos - second * sin
            second = second * cos + first * sin
            first = turned
    if head < H:
        at = rows.to(tl.int64)[:, None] * q_out_stride + head * D + pairs[None, :]
        tl.store(q_out_ptr + at, first, mask=mask)
        tl.store(q_out_ptr + at + HALF, second, mask=mask)
    else:
        slot = tl.load(slots_ptr + rows, mask=row_mask, other=0).to(tl.int64)
        kv_head = (head - H) % K
        at = (((slot // PAGE) * K + kv_head) * PAGE + slot % PAGE)[:, None] * D + pairs[None, :]
        if head < H + K:
            tl.store(k_pages_ptr + at, first, mask=mask)
            tl.store(k_pages_ptr + at + HALF, second, mask=mask)
        else:
            tl.store(v_pages_ptr + at, first, mask=mask)
            tl.store(v_pages_ptr + at + HALF, second, mask=mask)


@triton.jit(do_not_specialize=["n"])
def write_kv_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    q_norm_ptr,
    k_norm_ptr,
    cos_ptr,
    sin_ptr,
    positions_ptr,
    slots_ptr,
    k_pages_ptr,
    v_pages_ptr,
    n,
    q_stride,
    k_stride,
    v_stride,
    eps,
    H: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    QK_NORM: tl.constexpr,
    ROPE: tl.constexpr,
    FIRST_HEAD: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    head = tl.program_id(1) + FIRST_HEAD
    pairs = tl.arange(0, BLOCK_P)
    row_mask = rows < n
    pair_mask = pairs < D // 2
    mask = row_mask[:, None] & pair_mask[None, :]
    if head < H:
        source = q_ptr + rows.to(tl.int64)[:, None] * q_stride + head * D + pairs[None, :]
        first = tl.load(source, mask=mask, other=0.0).to(tl.float32)
        second = tl.load(source + D // 2, mask=mask, other=0.0).to(tl.float32)
    elif head < H + K:
        source = k_ptr + rows.to(tl.int64)[:, None] * k_stride + (head - H) * D + pairs[None, :]
        first = tl.load(source, mask=mask, other=0.0).to(tl.float32)
        second = tl.load(source + D // 2, mask=mask, other=0.0).to(tl.float32)
    else:
        source = v_ptr + rows.to(tl.int64)[:, None] * v_stride + (head - H - K) * D + pairs[None, :]
        first = tl.load(source, mask=mask, other=0.0).to(tl.float32)
        second = tl.load(source + D // 2, mask=mask, other=0.0).to(tl.float32)
    finish_head(
        first, second, head, rows, row_mask, pairs, pair_mask,
        q_norm_ptr, k_norm_ptr, cos_ptr, sin_ptr, positions_ptr, slots_ptr, q_ptr, k_pages_ptr, v_pages_ptr,
        q_stride, eps, H, K, D, PAGE, QK_NORM, ROPE,
    )  # fmt: skip


def write_kv(
    q_NHD: Tensor,
    k_NKD: Tensor,
    v_NKD: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    slots_N: Tensor,
    *,
    positions_N: Tensor | None = None,
    cos_TD: Tensor | None = None,
    sin_TD: Tensor | None = None,
    q_norm_D: Tensor | None = None,
    k_norm_D: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    """See `stille.kernels.paged.api.write_kv`."""
    n, heads, head_dim = q_NHD.shape
    kv_heads = k_NKD.shape[1]
    norm, rope = q_norm_D is not None, positions_N is not None
    # Queries that neither turn nor change need no program of their own.
    first_head = 0 if norm or rope else heads
    block_n = 16 if n > 64 else 4
    grid = (triton.cdiv(n, block_n), heads + 2 * kv_heads - first_head)
    if n:
        write_kv_kernel[grid](
            q_NHD, k_NKD, v_NKD, q_norm_D, k_norm_D, cos_TD, sin_TD, positions_N, slots_N, k_pages, v_pages,
            n, q_NHD.stride(0), k_NKD.stride(0), v_NKD.stride(0), eps,
            H=heads, K=kv_heads, D=head_dim, PAGE=PAGE, BLOCK_P=next_power_of_2(head_dim // 2), BLOCK_N=block_n,
            QK_NORM=norm, ROPE=rope, FIRST_HEAD=first_head, num_warps=2,
        )  # fmt: skip
    return q_NHD
