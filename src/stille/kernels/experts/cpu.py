"""Experts on a CPU: only those that run are touched."""

import torch
import torch.nn.functional as F
from torch import Tensor

from stille.kernels.experts.grouped import grouped_forward


def cpu_forward(x_TC: Tensor, expert_TK: Tensor, weight_TK: Tensor, gate_up_proj: Tensor, down_proj: Tensor) -> Tensor:
    """See `api.moe_forward`; a single token is neither sorted nor gathered."""
    inputs = (x_TC, weight_TK, gate_up_proj, down_proj)
    if x_TC.shape[0] == 1 and not (torch.is_grad_enabled() and any(x.requires_grad for x in inputs)):
        return _one_token(x_TC, expert_TK, weight_TK, gate_up_proj, down_proj)
    return grouped_forward(x_TC, expert_TK, weight_TK, gate_up_proj, down_proj)


def _one_token(x_1C: Tensor, expert_1K: Tensor, weight_1K: Tensor, gate_up_proj: Tensor, down_proj: Tensor) -> Tensor:
    experts, width, inner = down_proj.shape
    live = [(k, e) for k, e in enumerate(expert_1K[0].tolist()) if e < experts]
    if not live:
        return torch.zeros_like(x_1C)
    x_C = x_1C[0]
    gate_up_L2I, out_LC = x_1C.new_empty(len(live), 2 * inner), x_1C.new_empty(len(live), width)
    for row_2I, (_, e) in zip(gate_up_L2I.unbind(), live, strict=True):
        torch.mv(gate_up_proj[e], x_C, out=row_2I)
    gate_LI, up_LI = gate_up_L2I.chunk(2, dim=1)
    inner_LI = F.silu(gate_LI) * up_LI
    for row_C, inner_I, (_, e) in zip(out_LC.unbind(), inner_LI.unbind(), live, strict=True):
        torch.mv(down_proj[e], inner_I, out=row_C)
    wide = torch.promote_types(x_1C.dtype, torch.float32)
    weight_L = weight_1K[0].to(wide)
    if len(live) < weight_L.shape[0]:
        weight_L = weight_L[[k for k, _ in live]]
    return (weight_L[None] @ out_LC.to(wide)).to(x_1C.dtype)
