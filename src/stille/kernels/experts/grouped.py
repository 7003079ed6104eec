"""Experts for many tokens: real pairs gathered by expert, two grouped products, a weighted sum; differentiable once.

Nothing waits for the GPU where torch's grouped GEMM and Triton take the tensors: buffers then have room for all T * K
pairs, but only the rows of real ones are computed, read or written. No atomics: equal inputs give equal bits.

The backward pass keeps the inputs and the products before the gate. It needs no expert's output: the gradient of a
weight, <dy, down(a)>, is <down^T(dy), a>, which is there anyway (the rearrangement of SonicMoE, arXiv:2512.14080).
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stille.kernels.experts import torch_rows
from stille.kernels.experts.matmul import library_takes, outer_products, times_weights
from stille.kernels.experts.routes import Routes, find_routes
from stille.kernels.triton_support import IN_TRITON, has_triton


def grouped_forward(
    x_TC: Tensor,
    expert_TK: Tensor,
    weight_TK: Tensor,
    gate_up_proj: Tensor,
    down_proj: Tensor,
    *,
    plus_TC: Tensor | None = None,
    row_kernels: bool | None = None,
) -> Tensor:
    """See `api.moe_forward`.

    Args:
        row_kernels: whether Triton does what stands between the products; None: on a GPU, if it is installed.
    """
    experts, width, inner = down_proj.shape
    if row_kernels is None:
        row_kernels = x_TC.is_cuda and has_triton() and x_TC.dtype in IN_TRITON
    on_host = not (row_kernels and library_takes(gate_up_proj, width, inner))
    rows = torch_rows
    if row_kernels:
        from stille.kernels.experts import triton_rows as rows
    routes = find_routes(expert_TK, experts, on_host=on_host)
    return _Grouped.apply(x_TC, weight_TK, gate_up_proj, down_proj, plus_TC, routes, rows)  # type: ignore[return-value]


class _Grouped(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        gate_up_proj: Tensor,
        down_proj: Tensor,
        plus: Tensor | None,
        routes: Routes,
        rows: ModuleType,
    ) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        gate_up_R2I = times_weights(rows.gather(x, routes), gate_up_proj.transpose(1, 2), routes)
        out_RC = times_weights(rows.swiglu(gate_up_R2I, routes), down_proj.transpose(1, 2), routes)
        ctx.routes, ctx.rows = routes, rows
        ctx.save_for_backward(x, weight, gate_up_proj, down_proj, gate_up_R2I)
        return rows.combine(out_RC, weight, routes, plus if plus is None else plus.contiguous())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, gate_up_proj, down_proj, gate_up_R2I = ctx.saved_tensors
        routes, rows = ctx.routes, ctx.rows
        wants_x, wants_weight, wants_gate_up, wants_down = ctx.needs_input_grad[:4]
        d_out_RC = rows.gather(d_out.contiguous(), routes)
        d_inner_RI = times_weights(d_out_RC, down_proj, routes)
        d_gate_up_R2I, inner_RI, d_weight_R = rows.swiglu_backward(gate_up_R2I, d_inner_RI, weight, routes)
        d_down = outer_products(d_out_RC, inner_RI, routes) if wants_down else None
        del d_out_RC, d_inner_RI, inner_RI
        d_gate_up = outer_products(d_gate_up_R2I, rows.gather(x, routes), routes) if wants_gate_up else None
        d_x = rows.combine(times_weights(d_gate_up_R2I, gate_up_proj, routes), None, routes) if wants_x else None
        d_weight = _scatter(d_weight_R, routes).to(weight.dtype) if wants_weight else None
        d_plus = d_out if ctx.needs_input_grad[4] else None
        return d_x, d_weight, d_gate_up, d_down, d_plus, None, None


def _scatter(value_R: Tensor, routes: Routes) -> Tensor:
    """[T, K]: a value of each row at its pair, zero at pairs that are not used."""
    if routes.rows == 0:
        return value_R.new_zeros(routes.row_TK.shape)
    used_TK = routes.row_TK < routes.ends_E[-1]
    return torch.where(used_TK, value_R[routes.row_TK.clamp(max=routes.rows - 1)], 0.0)
