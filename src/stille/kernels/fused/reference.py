"""The fused operations in plain torch: the specification of the Triton kernels.

Shapes: M rows, K input width, F output width, I inner width of the FFN. Weights are [F, K] as in `nn.Linear`.
Intermediate results stay in fp32 (fp64 stays fp64); outputs have the dtype of the rows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rms_norm(x_MK: Tensor, weight_K: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last dimension."""
    x = _wide(x_MK)
    return (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * _wide(weight_K)).to(x_MK.dtype)


def add_rms_norm(delta_MK: Tensor, residual_MK: Tensor, weight_K: Tensor, eps: float) -> Tensor:
    """Add `delta` to the residual stream in place; return its RMSNorm."""
    residual_MK.add_(delta_MK)
    return rms_norm(residual_MK, weight_K, eps)


def silu_mul(gate_up_M2I: Tensor) -> Tensor:
    """`silu(gate) * up` of a row's two halves; [M, I]."""
    gate, up = _wide(gate_up_M2I).chunk(2, dim=-1)
    return (F.silu(gate) * up).to(gate_up_M2I.dtype)


def linear(
    x_MK: Tensor,
    weight_FK: Tensor,
    bias_F: Tensor | None = None,
    *,
    norm_K: Tensor | None = None,
    eps: float = 0.0,
    residual_MF: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """`norm(x) W^T + bias (+ residual)`, the sum in place of the residual if one is given."""
    x = _wide(x_MK)
    if norm_K is not None:
        x = rms_norm(x, norm_K, eps)
    y = x @ _wide(weight_FK).T
    if bias_F is not None:
        y = y + _wide(bias_F)
    if residual_MF is not None:
        return residual_MF.copy_(_wide(residual_MF) + y)
    return y.to(out_dtype or x_MK.dtype)


def gate_up(x_MK: Tensor, weight_2IK: Tensor, norm_K: Tensor, eps: float) -> Tensor:
    """`silu(gate) * up` of a normed row; the weight is gate's rows, then up's. [M, I]."""
    y = linear(_wide(x_MK), weight_2IK, norm_K=norm_K, eps=eps)
    return silu_mul(y).to(x_MK.dtype)
