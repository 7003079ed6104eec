"""Experts on a CPU: only those that run are touched."""

import torch
import torch.nn.functional as F
from torch import Tensor

from stille.kernels.experts.grouped import grouped_forward
from stille.kernels.experts.routes import find_routes

MANY_TOKENS = 64
"""From here on all tokens' rows at once no longer fit the caches; below, fewer and larger calls are faster."""


def cpu_forward(
    x_TC: Tensor,
    expert_TK: Tensor,
    weight_TK: Tensor,
    gate_up_proj: Tensor,
    down_proj: Tensor,
    *,
    plus_TC: Tensor | None = None,
) -> Tensor:
    """See `api.moe_forward`."""
    inputs = (x_TC, weight_TK, gate_up_proj, down_proj, plus_TC)
    tokens = x_TC.shape[0]
    graded = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    if graded or 1 < tokens < MANY_TOKENS:
        return grouped_forward(x_TC, expert_TK, weight_TK, gate_up_proj, down_proj, plus_TC=plus_TC)
    forward = _one_token if tokens == 1 else _many_tokens
    y_TC = forward(x_TC, expert_TK, weight_TK, gate_up_proj, down_proj)
    return (y_TC if plus_TC is None else y_TC.add_(plus_TC)).to(x_TC.dtype)


def _many_tokens(x_TC: Tensor, expert_TK: Tensor, weight_TK: Tensor, gate_up_proj: Tensor, down_proj: Tensor) -> Tensor:
    """One expert after the other; summed in float32 or wider, as `_one_token`."""
    wide = torch.promote_types(x_TC.dtype, torch.float32)
    y_TC = torch.zeros_like(x_TC, dtype=wide)
    routes = find_routes(expert_TK, down_proj.shape[0], on_host=True)
    token_R = routes.order_R // max(routes.columns, 1)
    weight_R1 = weight_TK.reshape(-1)[routes.order_R, None].to(wide)
    for e, start, end in routes.live():
        token_P = token_R[start:end]
        gate_PI, up_PI = F.linear(x_TC[token_P], gate_up_proj[e]).chunk(2, dim=1)
        out_PC = F.linear(F.silu(gate_PI) * up_PI, down_proj[e])
        y_TC.index_add_(0, token_P, out_PC.to(wide) * weight_R1[start:end])
    return y_TC


def _one_token(x_1C: Tensor, expert_1K: Tensor, weight_1K: Tensor, gate_up_proj: Tensor, down_proj: Tensor) -> Tensor:
    """Nothing is sorted or gathered: there is one row for every expert that runs."""
    experts, width, inner = down_proj.shape
    live = [(k, e) for k, e in enumerate(expert_1K[0].tolist()) if e < experts]
    wide = torch.promote_types(x_1C.dtype, torch.float32)
    if not live:
        return torch.zeros_like(x_1C, dtype=wide)
    x_C = x_1C[0]
    gate_up_L2I, out_LC = x_1C.new_empty(len(live), 2 * inner), x_1C.new_empty(len(live), width)
    for row_2I, (_, e) in zip(gate_up_L2I.unbind(), live, strict=True):
        torch.mv(gate_up_proj[e], x_C, out=row_2I)
    gate_LI, up_LI = gate_up_L2I.chunk(2, dim=1)
    inner_LI = F.silu(gate_LI) * up_LI
    for row_C, inner_I, (_, e) in zip(out_LC.unbind(), inner_LI.unbind(), live, strict=True):
        torch.mv(down_proj[e], inner_I, out=row_C)
    weight_L = weight_1K[0].to(wide)
    if len(live) < weight_L.shape[0]:
        weight_L = weight_L[[k for k, _ in live]]
    return weight_L[None] @ out_LC.to(wide)
