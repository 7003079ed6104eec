"""`swiglu`: the gate of a dense or shared expert, where every row is real; differentiable once."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from stille.kernels.triton_support import IN_TRITON, has_triton

MANY = 2**20
"""Elements from which on one pass over memory instead of several is worth the slower launch of a kernel of ours."""


def swiglu(gate: Tensor, up: Tensor | None = None, *, kernels: bool | None = None) -> Tensor:
    """silu(gate) * up.

    Args:
        gate: [..., I]; or [..., 2I], gate's columns first, then up's, if `up` is None.
        up: [..., I].
        kernels: whether Triton computes it, forward and backward in one launch each, in float32 without rounding
            between; None: on a GPU, for many elements, if it is installed and nothing is being compiled.
    """
    if kernels is None:
        kernels = (
            gate.is_cuda
            and gate.numel() >= MANY
            and gate.dtype in IN_TRITON
            and (up is None or up.dtype == gate.dtype)
            and not torch.compiler.is_compiling()
            and has_triton()
        )
    if kernels:
        return _SwiGLU.apply(gate, up)  # type: ignore[return-value]
    if up is None:
        gate, up = gate.chunk(2, dim=-1)
    return F.silu(gate) * up


def _rows(x: Tensor) -> Tensor:
    """[R, I]; columns side by side, rows in any stride."""
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(-1) == 1 else x.contiguous()


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor | None) -> Tensor:
        from stille.kernels.experts.triton_rows import dense_swiglu

        ctx.save_for_backward(gate, up)
        gate_RI, up_RI = _rows(gate).chunk(2, dim=1) if up is None else (_rows(gate), _rows(up))
        return dense_swiglu(gate_RI, up_RI).view(*gate.shape[:-1], gate_RI.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, Tensor | None]:
        from stille.kernels.experts.triton_rows import dense_swiglu_backward

        gate, up = ctx.saved_tensors
        gate_RI, up_RI = _rows(gate).chunk(2, dim=1) if up is None else (_rows(gate), _rows(up))
        d_R2I = dense_swiglu_backward(gate_RI, up_RI, _rows(d_out))
        if up is None:
            return d_R2I.view(gate.shape), None
        d_gate_RI, d_up_RI = d_R2I.chunk(2, dim=1)
        return d_gate_RI.view(gate.shape), d_up_RI.view(up.shape)
