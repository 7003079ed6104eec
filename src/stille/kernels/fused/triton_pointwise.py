"""Triton: residual add + RMSNorm, and the SwiGLU gate, for many rows (prefill). Shapes as in `reference.py`."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# Triton's language is Python in looks only; its types are beyond the checker.

import torch
import triton
import triton.language as tl
from torch import Tensor

from stille.kernels.triton_support import next_power_of_2


@triton.jit
def add_rms_norm_kernel(
    delta_ptr, residual_ptr, weight_ptr, out_ptr, delta_stride, eps, K: tl.constexpr, BLOCK_K: tl.constexpr,
    HAS_DELTA: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK_K)
    mask = k < K
    x = tl.load(residual_ptr + row * K + k, mask=mask, other=0.0).to(tl.float32)
    if HAS_DELTA:
        x += tl.load(delta_ptr + row * delta_stride + k, mask=mask, other=0.0).to(tl.float32)
        x = x.to(residual_ptr.dtype.element_ty)  # the norm sees what the residual stream keeps
        tl.store(residual_ptr + row * K + k, x, mask=mask)
        x = x.to(tl.float32)
    weight = tl.load(weight_ptr + k, mask=mask, other=0.0).to(tl.float32)
    y = x / tl.sqrt(tl.sum(x * x, axis=0) / K + eps) * weight
    tl.store(out_ptr + row * K + k, y, mask=mask)


@triton.jit
def silu_mul_kernel(x_ptr, out_ptr, x_stride, I: tl.constexpr, BLOCK: tl.constexpr):  # noqa: E741
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = i < I
    gate = tl.load(x_ptr + row * x_stride + i, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * x_stride + I + i, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * I + i, gate / (1.0 + tl.exp(-gate)) * up, mask=mask)


def add_rms_norm(delta_MK: Tensor | None, residual_MK: Tensor, weight_K: Tensor, eps: float) -> Tensor:
    """See `reference.add_rms_norm`; without `delta` it is the norm alone. `residual` must be contiguous."""
    rows, width = residual_MK.shape
    out = torch.empty_like(residual_MK)
    block = next_power_of_2(width)
    if rows:
        add_rms_norm_kernel[(rows,)](
            delta_MK, residual_MK, weight_K, out, 0 if delta_MK is None else delta_MK.stride(0), eps,
            K=width, BLOCK_K=block, HAS_DELTA=delta_MK is not None, num_warps=min(8, max(1, block // 256)),
        )  # fmt: skip
    return out


def silu_mul(gate_up_M2I: Tensor) -> Tensor:
    """See `reference.silu_mul`."""
    rows, inner = gate_up_M2I.shape[0], gate_up_M2I.shape[1] // 2
    out = gate_up_M2I.new_empty(rows, inner)
    if rows:
        block = min(next_power_of_2(inner), 2048)
        grid = (rows, triton.cdiv(inner, block))
        silu_mul_kernel[grid](gate_up_M2I, out, gate_up_M2I.stride(0), I=inner, BLOCK=block, num_warps=4)
    return out
