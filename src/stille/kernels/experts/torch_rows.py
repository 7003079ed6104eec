"""What is done to rows between the products, in plain torch: the specification of `triton_rows`, and for CPUs.

`routes` must hold real rows only. Sums over a token's experts have a fixed order on a CPU.
Shapes: R rows, T tokens, C hidden size, I inner size, K columns of the routing table.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from stille.kernels.experts.routes import Routes


def gather(x_TC: Tensor, routes: Routes) -> Tensor:
    """[R, C]: the token of each row."""
    return x_TC[routes.order_R // max(routes.columns, 1)]


def swiglu(gate_up_R2I: Tensor, routes: Routes) -> Tensor:
    """[R, I]: silu(gate) * up."""
    gate_RI, up_RI = gate_up_R2I.chunk(2, dim=-1)
    return F.silu(gate_RI) * up_RI


def swiglu_backward(
    gate_up_R2I: Tensor, d_inner_RI: Tensor, weight_TK: Tensor, routes: Routes
) -> tuple[Tensor, Tensor, Tensor]:
    """Back through weight * swiglu, computed in float32 (float64 stays).

    Args:
        d_inner_RI: gradient of what the weight has been multiplied with, without the weight.

    Returns:
        gradient of gate_up [R, 2I]; weight * swiglu(gate_up) [R, I]; gradient of the weights [R] (float32 or float64).
    """
    wide = torch.promote_types(gate_up_R2I.dtype, torch.float32)
    gate_RI, up_RI = gate_up_R2I.to(wide).chunk(2, dim=-1)
    weight_R1 = weight_TK.reshape(-1)[routes.order_R, None].to(wide)
    d_RI = d_inner_RI.to(wide)
    sigmoid_RI = torch.sigmoid(gate_RI)
    silu_RI = gate_RI * sigmoid_RI
    inner_RI = silu_RI * up_RI
    d_weight_R = (d_RI * inner_RI).sum(dim=1)
    d_RI = d_RI * weight_R1
    d_gate_RI = d_RI * up_RI * (sigmoid_RI + silu_RI * (1 - sigmoid_RI))
    d_gate_up_R2I = torch.cat([d_gate_RI, d_RI * silu_RI], dim=1)
    return d_gate_up_R2I.to(gate_up_R2I.dtype), (inner_RI * weight_R1).to(gate_up_R2I.dtype), d_weight_R


def combine(rows_RC: Tensor, weight_TK: Tensor | None, routes: Routes, plus_TC: Tensor | None = None) -> Tensor:
    """[T, C]: sum of each token's rows, times their weights if given, and of `plus`; in float32 (float64 stays)."""
    wide = torch.promote_types(rows_RC.dtype, torch.float32)
    tokens, columns = routes.row_TK.shape
    wide_RC = rows_RC.to(wide)
    if weight_TK is not None:
        wide_RC = wide_RC * weight_TK.reshape(-1)[routes.order_R, None].to(wide)
    out_TC = rows_RC.new_zeros(tokens, rows_RC.shape[1], dtype=wide)
    out_TC.index_add_(0, routes.order_R // max(columns, 1), wide_RC)
    if plus_TC is not None:
        out_TC += plus_TC
    return out_TC.to(rows_RC.dtype)
