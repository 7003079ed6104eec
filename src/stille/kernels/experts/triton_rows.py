"""Triton: what is done to rows between the products; functions and shapes as in `torch_rows`.

The number of real rows is read on the device. Programs walk over them in strides, so that room for rows that are not
real costs nothing.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# Triton's language is Python in looks only; its types are beyond the checker.

import torch
import triton
import triton.language as tl
from torch import Tensor

from stille.kernels.experts.routes import Routes
from stille.kernels.triton_support import next_power_of_2

PROGRAMS = 2048
"""Most programs that share the rows: enough to fill a large GPU several times."""


@triton.jit
def gather_kernel(x_ptr, order_ptr, end_ptr, out_ptr, columns, step, C: tl.constexpr, BLOCK: tl.constexpr):
    end = tl.load(end_ptr).to(tl.int64)  # as the rows, whose offsets may exceed 32 bits
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = c < C
    for row in range(tl.program_id(0).to(tl.int64), end, step):
        token = tl.load(order_ptr + row) // columns
        x = tl.load(x_ptr + token * C + c, mask=mask)
        tl.store(out_ptr + row * C + c, x, mask=mask)


@triton.jit
def swiglu_kernel(
    gate_up_ptr, end_ptr, out_ptr, step, I: tl.constexpr, BLOCK: tl.constexpr  # noqa: E741
):  # fmt: skip
    end = tl.load(end_ptr).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = i < I
    for row in range(tl.program_id(0).to(tl.int64), end, step):
        at = gate_up_ptr + row * (2 * I) + i
        gate = tl.load(at, mask=mask, other=0.0).to(tl.float32)
        up = tl.load(at + I, mask=mask, other=0.0).to(tl.float32)
        tl.store(out_ptr + row * I + i, gate / (1.0 + tl.exp(-gate)) * up, mask=mask)


@triton.jit
def swiglu_backward_kernel(
    gate_up_ptr, d_inner_ptr, weight_ptr, order_ptr, end_ptr, d_gate_up_ptr, inner_ptr, d_weight_ptr, step,
    I: tl.constexpr, BLOCK: tl.constexpr,  # noqa: E741
):  # fmt: skip
    end = tl.load(end_ptr).to(tl.int64)
    for row in range(tl.program_id(0).to(tl.int64), end, step):
        weight = tl.load(weight_ptr + tl.load(order_ptr + row)).to(tl.float32)
        total = tl.zeros([BLOCK], tl.float32)
        for i0 in range(0, I, BLOCK):
            i = i0 + tl.arange(0, BLOCK)
            mask = i < I
            gate = tl.load(gate_up_ptr + row * (2 * I) + i, mask=mask, other=0.0).to(tl.float32)
            up = tl.load(gate_up_ptr + row * (2 * I) + I + i, mask=mask, other=0.0).to(tl.float32)
            d = tl.load(d_inner_ptr + row * I + i, mask=mask, other=0.0).to(tl.float32)
            sigmoid = 1.0 / (1.0 + tl.exp(-gate))
            silu = gate * sigmoid
            total += d * silu * up
            d = d * weight
            d_gate = d * up * (sigmoid + silu * (1.0 - sigmoid))
            tl.store(d_gate_up_ptr + row * (2 * I) + i, d_gate, mask=mask)
            tl.store(d_gate_up_ptr + row * (2 * I) + I + i, d * silu, mask=mask)
            tl.store(inner_ptr + row * I + i, silu * up * weight, mask=mask)
        tl.store(d_weight_ptr + row, tl.sum(total, axis=0))


@triton.jit
def dense_swiglu_kernel(
    gate_ptr, up_ptr, out_ptr, gate_stride, up_stride, I: tl.constexpr, BLOCK: tl.constexpr  # noqa: E741
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = i < I
    gate = tl.load(gate_ptr + row * gate_stride + i, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * up_stride + i, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * I + i, gate / (1.0 + tl.exp(-gate)) * up, mask=mask)


@triton.jit
def dense_swiglu_backward_kernel(
    gate_ptr, up_ptr, d_ptr, d_gate_up_ptr, gate_stride, up_stride, d_stride,
    I: tl.constexpr, BLOCK: tl.constexpr,  # noqa: E741
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = i < I
    gate = tl.load(gate_ptr + row * gate_stride + i, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * up_stride + i, mask=mask, other=0.0).to(tl.float32)
    d = tl.load(d_ptr + row * d_stride + i, mask=mask, other=0.0).to(tl.float32)
    sigmoid = 1.0 / (1.0 + tl.exp(-gate))
    silu = gate * sigmoid
    at = d_gate_up_ptr + row * (2 * I) + i
    tl.store(at, d * up * (sigmoid + silu * (1.0 - sigmoid)), mask=mask)
    tl.store(at + I, d * silu, mask=mask)


@triton.jit
def combine_kernel(
    rows_ptr, weight_ptr, row_ptr, end_ptr, plus_ptr, out_ptr,
    K: tl.constexpr, C: tl.constexpr, BLOCK_C: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_PLUS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    end = tl.load(end_ptr)
    total = tl.zeros([BLOCK_C], tl.float32)
    for k in tl.range(0, K, loop_unroll_factor=8):  # the loads of several columns are on their way at once
        row = tl.load(row_ptr + token * K + k).to(tl.int64)
        value = tl.load(rows_ptr + row * C + c, mask=c < tl.where(row < end, C, 0), other=0.0).to(tl.float32)
        if HAS_WEIGHT:
            value *= tl.where(row < end, tl.load(weight_ptr + token * K + k).to(tl.float32), 0.0)
        total += value
    if HAS_PLUS:
        total += tl.load(plus_ptr + token * C + c, mask=c < C, other=0.0).to(tl.float32)
    tl.store(out_ptr + token * C + c, total, mask=c < C)


@triton.jit
def clear_idle_kernel(out_ptr, ends_ptr, SIZE: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr):
    expert = tl.program_id(0)
    start = tl.load(ends_ptr + expert - 1, mask=expert > 0, other=0)
    if tl.load(ends_ptr + expert) == start:
        for i0 in range(tl.program_id(1) * BLOCK, SIZE, STEP * BLOCK):
            i = i0 + tl.arange(0, BLOCK)
            zero = tl.zeros([BLOCK], out_ptr.dtype.element_ty)
            tl.store(out_ptr + expert.to(tl.int64) * SIZE + i, zero, mask=i < SIZE)


def _warps(block: int) -> int:
    return min(8, max(1, block // 256))


def gather(x_TC: Tensor, routes: Routes) -> Tensor:
    """See `torch_rows.gather`. x must be contiguous."""
    width = x_TC.shape[1]
    out = x_TC.new_empty(routes.rows, width)
    if out.numel():
        block, step = min(next_power_of_2(width), 2048), min(routes.rows, PROGRAMS)
        gather_kernel[(step, triton.cdiv(width, block))](
            x_TC, routes.order_R, routes.ends_E[-1:], out, routes.columns, step,
            C=width, BLOCK=block, num_warps=_warps(block),
        )  # fmt: skip
    return out


def swiglu(gate_up_R2I: Tensor, routes: Routes) -> Tensor:
    """See `torch_rows.swiglu`."""
    inner = gate_up_R2I.shape[1] // 2
    out = gate_up_R2I.new_empty(routes.rows, inner)
    if out.numel():
        block, step = min(next_power_of_2(inner), 2048), min(routes.rows, PROGRAMS)
        swiglu_kernel[(step, triton.cdiv(inner, block))](
            gate_up_R2I, routes.ends_E[-1:], out, step, I=inner, BLOCK=block, num_warps=_warps(block)
        )
    return out


def swiglu_backward(
    gate_up_R2I: Tensor, d_inner_RI: Tensor, weight_TK: Tensor, routes: Routes
) -> tuple[Tensor, Tensor, Tensor]:
    """See `torch_rows.swiglu_backward`. weight must be contiguous."""
    inner = d_inner_RI.shape[1]
    d_gate_up, out = torch.empty_like(gate_up_R2I), torch.empty_like(d_inner_RI)
    d_weight = d_inner_RI.new_empty(routes.rows, dtype=torch.float32)
    if out.numel():
        block, step = min(next_power_of_2(inner), 1024), min(routes.rows, PROGRAMS)
        swiglu_backward_kernel[(step,)](
            gate_up_R2I, d_inner_RI, weight_TK, routes.order_R, routes.ends_E[-1:], d_gate_up, out, d_weight, step,
            I=inner, BLOCK=block, num_warps=_warps(block),
        )  # fmt: skip
    return d_gate_up, out, d_weight


def dense_swiglu(gate_RI: Tensor, up_RI: Tensor) -> Tensor:
    """silu(gate) * up where every row is real; rows may have any stride."""
    rows, inner = gate_RI.shape
    out = torch.empty(rows, inner, dtype=gate_RI.dtype, device=gate_RI.device)
    if out.numel():
        block = min(next_power_of_2(inner), 2048)
        dense_swiglu_kernel[(rows, triton.cdiv(inner, block))](
            gate_RI, up_RI, out, gate_RI.stride(0), up_RI.stride(0), I=inner, BLOCK=block, num_warps=_warps(block)
        )
    return out


def dense_swiglu_backward(gate_RI: Tensor, up_RI: Tensor, d_out_RI: Tensor) -> Tensor:
    """[R, 2I]: gradients of gate and up, side by side."""
    rows, inner = gate_RI.shape
    d_R2I = torch.empty(rows, 2 * inner, dtype=gate_RI.dtype, device=gate_RI.device)
    if d_R2I.numel():
        block = min(next_power_of_2(inner), 2048)
        dense_swiglu_backward_kernel[(rows, triton.cdiv(inner, block))](
            gate_RI, up_RI, d_out_RI, d_R2I, gate_RI.stride(0), up_RI.stride(0), d_out_RI.stride(0),
            I=inner, BLOCK=block, num_warps=_warps(block),
        )  # fmt: skip
    return d_R2I


def combine(rows_RC: Tensor, weight_TK: Tensor | None, routes: Routes, plus_TC: Tensor | None = None) -> Tensor:
    """See `torch_rows.combine`. weight and plus must be contiguous."""
    tokens, columns = routes.row_TK.shape
    width = rows_RC.shape[1]
    out = rows_RC.new_empty(tokens, width)
    if columns == 0:
        return out.zero_() if plus_TC is None else out.copy_(plus_TC)
    if out.numel():
        block = min(next_power_of_2(width), 1024)
        combine_kernel[(tokens, triton.cdiv(width, block))](
            rows_RC, weight_TK, routes.row_TK, routes.ends_E[-1:], plus_TC, out,
            K=columns, C=width, BLOCK_C=block, HAS_WEIGHT=weight_TK is not None, HAS_PLUS=plus_TC is not None,
            num_warps=max(1, block // 256),
        )  # fmt: skip
    return out


def clear_idle(out_EXY: Tensor, routes: Routes) -> Tensor:
    """Write zeros to what belongs to experts without rows; in place, the tensor must be contiguous."""
    size = out_EXY[0].numel()
    step = min(64, triton.cdiv(size, 1024))
    clear_idle_kernel[(out_EXY.shape[0], step)](out_EXY, routes.ends_E, SIZE=size, BLOCK=1024, STEP=step)
    return out_EXY
