"""Triton: projections of a few rows with what stands before and after them fused in, for decode steps.

    linear:   y = norm(x) W^T + bias, or residual += x W^T + bias
    gate_up:  y = silu(norm(x) Wg^T) * (norm(x) Wu^T)
    qkv:      q/k/v = norm(x) W^T + bias, q/k norm, RoPE, q to a buffer, k and v to the paged cache

A small model's decode step is limited by the number of launches, not by bytes; with these a layer takes five. The norm
costs nothing extra: every program sums the squares of the rows while it multiplies them and scales at the end.
Shapes: M rows, K inputs, F outputs.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportAssignmentType=false
# Triton's language is Python in looks only; its types are beyond the checker.

import torch
import triton
import triton.language as tl
from torch import Tensor

from stille.kernels.fused.configs import LinearConfig, linear_config
from stille.kernels.paged.triton_write import finish_head
from stille.kernels.triton_early import prefetch
from stille.kernels.triton_support import PAGE, next_power_of_2


@triton.jit
def project(
    x_ptr,
    w_ptr,
    norm_ptr,
    rows,  # [BLOCK_M] rows of x
    row_mask,
    columns,  # [BLOCK_F] rows of w
    column_mask,
    eps,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_NORM: tl.constexpr,
    NORM_FIRST: tl.constexpr,
    USE_DOT: tl.constexpr,
    PDL: tl.constexpr,
):
    """norm(x)[rows] times w[columns]^T, fp32 [BLOCK_M, BLOCK_F]."""
    w_at = w_ptr + columns.to(tl.int64)[:, None] * K
    square = tl.zeros([BLOCK_M], tl.float32)
    if USE_DOT:
        if PDL:
            # The weights do not depend on the launch before: they are fetched into the L2 cache until it has ended.
            LINES: tl.constexpr = 16 if K <= 1024 else 32 if K <= 2048 else 64
            line = tl.minimum(tl.arange(0, LINES) * 64, K - 1)  # 128 bytes of half precision
            at = w_ptr + tl.where(column_mask, columns, 0).to(tl.int64)[:, None] * K + line[None, :]
            prefetch(at)
            tl.extra.cuda.gdc_wait()
            tl.extra.cuda.gdc_launch_dependents()
        x_at = x_ptr + rows.to(tl.int64)[:, None] * K
        scale = tl.full([BLOCK_M], 1.0, tl.float32)
        if HAS_NORM and NORM_FIRST:
            # fp16 cannot hold an outlier of the residual stream times its weight: scale before, not after.
            for k0 in range(0, K, BLOCK_K):
                k = k0 + tl.arange(0, BLOCK_K)
                x = tl.load(x_at + k[None, :], mask=row_mask[:, None] & (k < K)[None, :], other=0.0).to(tl.float32)
                square += tl.sum(x * x, axis=1)
            scale = 1.0 / tl.sqrt(square / K + eps)
        acc = tl.zeros([BLOCK_M, BLOCK_F], tl.float32)
        for k0 in range(0, K, BLOCK_K):
            k = k0 + tl.arange(0, BLOCK_K)
            k_mask = k < K
            w = tl.load(w_at + k[None, :], mask=column_mask[:, None] & k_mask[None, :], other=0.0)
            x = tl.load(x_at + k[None, :], mask=row_mask[:, None] & k_mask[None, :], other=0.0)
            if HAS_NORM:
                wide = x.to(tl.float32)
                weight = tl.load(norm_ptr + k, mask=k_mask, other=0.0).to(tl.float32)
                if NORM_FIRST:
                    x = (wide * scale[:, None] * weight[None, :]).to(x.dtype)
                else:
                    square += tl.sum(wide * wide, axis=1)
                    x = (wide * weight[None, :]).to(x.dtype)
            acc = tl.dot(x, tl.trans(w), acc, input_precision="ieee")
        if HAS_NORM and not NORM_FIRST:
            acc = acc * (1.0 / tl.sqrt(square / K + eps))[:, None]
    elif BLOCK_M > 1:
        # A few rows: the weights stay in registers while the rows pass by.
        acc = tl.zeros([BLOCK_M, BLOCK_F], tl.float32)
        place = tl.arange(0, BLOCK_M)
        first = tl.min(rows, axis=0)
        valid = tl.sum(row_mask.to(tl.int32), axis=0)
        for k0 in tl.static_range(0, K, BLOCK_K):
            k = k0 + tl.arange(0, BLOCK_K)
            k_mask = k < K
            w = tl.load(w_at + k[None, :], mask=column_mask[:, None] & k_mask[None, :], other=0.0).to(tl.float32)
            if HAS_NORM:
                weight = tl.load(norm_ptr + k, mask=k_mask, other=0.0).to(tl.float32)
            if PDL and k0 == 0:
                tl.extra.cuda.gdc_wait()
                tl.extra.cuda.gdc_launch_dependents()
            for m in tl.static_range(BLOCK_M):
                x_row = x_ptr + (first + m).to(tl.int64) * K
                x = tl.load(x_row + k, mask=k < tl.where(valid > m, K, 0), other=0.0).to(tl.float32)
                if HAS_NORM:
                    square += tl.where(place == m, tl.sum(x * x, axis=0), 0.0)
                    x = x * weight
                acc += tl.where((place == m)[:, None], tl.sum(w * x[None, :], axis=1)[None, :], 0.0)
        if HAS_NORM:
            acc = acc * (1.0 / tl.sqrt(square / K + eps))[:, None]
    else:
        # One row. The weights do not depend on the launch before, so their load may start before it has ended.
        row = tl.sum(rows, axis=0).to(tl.int64)  # BLOCK_M is 1: the only element
        parts = tl.zeros([BLOCK_F, BLOCK_K], tl.float32)
        squares = tl.zeros([BLOCK_K], tl.float32)
        for k0 in tl.static_range(0, K, BLOCK_K):
            k = k0 + tl.arange(0, BLOCK_K)
            k_mask = k < K
            w = tl.load(w_at + k[None, :], mask=column_mask[:, None] & k_mask[None, :], other=0.0)
            if HAS_NORM:
                weight = tl.load(norm_ptr + k, mask=k_mask, other=0.0).to(tl.float32)
            if PDL and k0 == 0:
                tl.extra.cuda.gdc_wait()
                tl.extra.cuda.gdc_launch_dependents()
            x = tl.load(x_ptr + row * K + k, mask=k_mask, other=0.0).to(tl.float32)
            if HAS_NORM:
                squares += x * x
                x = x * weight
            parts += w.to(tl.float32) * x[None, :]
        acc = tl.sum(parts, axis=1)[None, :]
        if HAS_NORM:
            acc = acc * (1.0 / tl.sqrt(tl.sum(squares, axis=0) / K + eps))
    return acc


@triton.jit(do_not_specialize=["m"])
def linear_kernel(
    x_ptr,
    w_ptr,
    bias_ptr,
    norm_ptr,
    residual_ptr,
    out_ptr,
    m,
    eps,
    F: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_NORM: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    NORM_FIRST: tl.constexpr,
    USE_DOT: tl.constexpr,
    PDL: tl.constexpr,
):
    rows = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(0) * BLOCK_F + tl.arange(0, BLOCK_F)
    row_mask = rows < m
    column_mask = columns < F
    acc = project(
        x_ptr, w_ptr, norm_ptr, rows, row_mask, columns, column_mask, eps,
        K, BLOCK_M, BLOCK_F, BLOCK_K, HAS_NORM, NORM_FIRST, USE_DOT, PDL,
    )  # fmt: skip
    mask = row_mask[:, None] & column_mask[None, :]
    at = rows.to(tl.int64)[:, None] * F + columns[None, :]
    if HAS_BIAS:
        acc += tl.load(bias_ptr + columns, mask=column_mask, other=0.0).to(tl.float32)[None, :]
    if HAS_RESIDUAL:
        acc += tl.load(residual_ptr + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, acc, mask=mask)


@triton.jit(do_not_specialize=["m"])
def gate_up_kernel(
    x_ptr,
    w_ptr,
    norm_ptr,
    out_ptr,
    m,
    eps,
    I: tl.constexpr,  # noqa: E741
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NORM_FIRST: tl.constexpr,
    USE_DOT: tl.constexpr,
    PDL: tl.constexpr,
):
    rows = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_mask = rows < m
    j = tl.arange(0, 2 * BLOCK_I)  # gate and up alternate, so that a pair ends in one thread
    inner = tl.program_id(0) * BLOCK_I + j // 2
    acc = project(
        x_ptr, w_ptr, norm_ptr, rows, row_mask, inner + (j % 2) * I, inner < I, eps,
        K, BLOCK_M, 2 * BLOCK_I, BLOCK_K, True, NORM_FIRST, USE_DOT, PDL,
    )  # fmt: skip
    gate, up = tl.split(tl.reshape(acc, [BLOCK_M, BLOCK_I, 2]))
    columns = tl.program_id(0) * BLOCK_I + tl.arange(0, BLOCK_I)
    mask = row_mask[:, None] & (columns < I)[None, :]
    tl.store(out_ptr + rows.to(tl.int64)[:, None] * I + columns[None, :], gate / (1.0 + tl.exp(-gate)) * up, mask=mask)


@triton.jit(do_not_specialize=["m"])
def qkv_kernel(
    x_ptr,
    w_ptr,
    bias_ptr,
    norm_ptr,
    q_norm_ptr,
    k_norm_ptr,
    cos_ptr,
    sin_ptr,
    positions_ptr,
    slots_ptr,
    q_out_ptr,
    k_pages_ptr,
    v_pages_ptr,
    m,
    eps,
    H: tl.constexpr,
    KV: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_P: tl.constexpr,  # pairs of components of a head; all of them if there is a q/k norm
    BLOCK_K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    QK_NORM: tl.constexpr,
    NORM_FIRST: tl.constexpr,
    USE_DOT: tl.constexpr,
    PDL: tl.constexpr,
):
    HALF: tl.constexpr = D // 2
    BLOCKS: tl.constexpr = (HALF + BLOCK_P - 1) // BLOCK_P
    rows = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_mask = rows < m
    head = tl.program_id(0) // BLOCKS
    pair0 = (tl.program_id(0) % BLOCKS) * BLOCK_P
    j = tl.arange(0, 2 * BLOCK_P)  # the two components of a pair alternate
    component = pair0 + j // 2
    j_mask = component < HALF
    columns = head * D + component + (j % 2) * HALF
    acc = project(
        x_ptr, w_ptr, norm_ptr, rows, row_mask, columns, j_mask, eps,
        K, BLOCK_M, 2 * BLOCK_P, BLOCK_K, True, NORM_FIRST, USE_DOT, PDL,
    )  # fmt: skip
    if HAS_BIAS:
        acc += tl.load(bias_ptr + columns, mask=j_mask, other=0.0).to(tl.float32)[None, :]
    first, second = tl.split(tl.reshape(acc, [BLOCK_M, BLOCK_P, 2]))
    pairs = pair0 + tl.arange(0, BLOCK_P)
    finish_head(
        first, second, head, rows, row_mask, pairs, pairs < HALF,
        q_norm_ptr, k_norm_ptr, cos_ptr, sin_ptr, positions_ptr, slots_ptr, q_out_ptr, k_pages_ptr, v_pages_ptr,
        H * D, eps, H, KV, D, PAGE, QK_NORM, True,
    )  # fmt: skip


def _launch(pdl: bool, config: LinearConfig) -> dict:
    options = {"num_warps": config.warps, "num_stages": config.stages, "USE_DOT": config.uses_dot, "PDL": pdl}
    return options | ({"launch_pdl": True} if pdl else {})


def linear(
    x_MK: Tensor,
    weight_FK: Tensor,
    bias_F: Tensor | None = None,
    *,
    norm_K: Tensor | None = None,
    eps: float = 0.0,
    residual_MF: Tensor | None = None,
    out: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    config: LinearConfig | None = None,
    pdl: bool = False,
) -> Tensor:
    """See `reference.linear`. x, weight, residual and out must be contiguous; without `out` the residual is changed."""
    (m, k), f = x_MK.shape, weight_FK.shape[0]
    if out is None and residual_MF is not None:
        out = residual_MF
    elif out is None:
        out = x_MK.new_empty(m, f, dtype=out_dtype or x_MK.dtype)
    config = config or linear_config(m, f, k, x_MK.dtype.itemsize)
    if m:
        linear_kernel[(triton.cdiv(f, config.n), triton.cdiv(m, config.m))](
            x_MK, weight_FK, bias_F, norm_K, residual_MF, out, m, eps,
            F=f, K=k, BLOCK_M=config.m, BLOCK_F=config.n, BLOCK_K=config.k, HAS_BIAS=bias_F is not None,
            HAS_NORM=norm_K is not None, HAS_RESIDUAL=residual_MF is not None,
            NORM_FIRST=x_MK.dtype == torch.float16, **_launch(pdl, config),
        )  # fmt: skip
    return out


def gate_up(
    x_MK: Tensor,
    weight_2IK: Tensor,
    norm_K: Tensor,
    eps: float,
    *,
    out: Tensor | None = None,
    config: LinearConfig | None = None,
    pdl: bool = False,
) -> Tensor:
    """See `reference.gate_up`. All tensors contiguous; `config.n` counts gate and up columns together."""
    (m, k), inner = x_MK.shape, weight_2IK.shape[0] // 2
    out = x_MK.new_empty(m, inner) if out is None else out
    config = config or linear_config(m, 2 * inner, k, x_MK.dtype.itemsize)
    block_i = config.n // 2
    if m:
        gate_up_kernel[(triton.cdiv(inner, block_i), triton.cdiv(m, config.m))](
            x_MK, weight_2IK, norm_K, out, m, eps, I=inner, K=k, BLOCK_M=config.m, BLOCK_I=block_i, BLOCK_K=config.k,
            NORM_FIRST=x_MK.dtype == torch.float16, **_launch(pdl, config),
        )  # fmt: skip
    return out


def qkv(
    x_MK: Tensor,
    weight_FK: Tensor,
    bias_F: Tensor | None,
    norm_K: Tensor,
    eps: float,
    k_pages: Tensor,
    v_pages: Tensor,
    slots_M: Tensor,
    positions_M: Tensor,
    cos_TD: Tensor,
    sin_TD: Tensor,
    q_out_MHD: Tensor,
    *,
    q_norm_D: Tensor | None = None,
    k_norm_D: Tensor | None = None,
    config: LinearConfig | None = None,
    pdl: bool = False,
) -> Tensor:
    """RMSNorm, q/k/v projection, q/k norm, RoPE; writes q to `q_out` and k, v to their slots; returns `q_out`.

    Args:
        x_MK: rows of the residual stream.
        weight_FK, bias_F: rows of q's heads, then k's, then v's.
        norm_K, eps: the layer's input norm (`eps` is also the q/k norm's).
        k_pages, v_pages, slots_M, positions_M, cos_TD, sin_TD, q_norm_D, k_norm_D: as in `paged.api.write_kv`.
        q_out_MHD: contiguous buffer for the queries.
        config: tiles; `n` counts the components of a head together.
        pdl: programmatic dependent launch: may start before the previous kernel has ended.
    """
    m, k = x_MK.shape
    _, heads, head_dim = q_out_MHD.shape
    kv_heads = k_pages.shape[1]
    config = config or linear_config(m, weight_FK.shape[0], k, x_MK.dtype.itemsize)
    half = head_dim // 2
    block_p = next_power_of_2(half) if q_norm_D is not None else min(config.n // 2, next_power_of_2(half))
    if m:
        qkv_kernel[((heads + 2 * kv_heads) * triton.cdiv(half, block_p), triton.cdiv(m, config.m))](
            x_MK, weight_FK, bias_F, norm_K, q_norm_D, k_norm_D, cos_TD, sin_TD, positions_M, slots_M,
            q_out_MHD, k_pages, v_pages, m, eps,
            H=heads, KV=kv_heads, D=head_dim, PAGE=PAGE, K=k, BLOCK_M=config.m, BLOCK_P=block_p, BLOCK_K=config.k,
            HAS_BIAS=bias_F is not None, QK_NORM=q_norm_D is not None, NORM_FIRST=x_MK.dtype == torch.float16,
            **_launch(pdl, config),
        )  # fmt: skip
    return q_out_MHD
