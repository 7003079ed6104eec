"""The specification of the experts in plain torch.

Shapes: T tokens, C hidden size, E experts, I inner size of an expert, K columns of the routing table.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def moe_forward(
    x_TC: Tensor,
    expert_TK: Tensor,
    weight_TK: Tensor,
    gate_up_proj: Tensor,
    down_proj: Tensor,
    *,
    plus_TC: Tensor | None = None,
) -> Tensor:
    """Each token's experts, weighted and summed; see `api.moe_forward` for the arguments.

    An entry equal to E is not used: what stands in its place of `weight_TK` is never read.
    """
    wide = torch.promote_types(x_TC.dtype, torch.float32)
    y_TC = torch.zeros_like(x_TC, dtype=wide)
    for e in range(gate_up_proj.shape[0]):
        token_P, column_P = torch.where(expert_TK == e)
        gate_PI, up_PI = F.linear(x_TC[token_P], gate_up_proj[e]).chunk(2, dim=-1)
        out_PC = F.linear(F.silu(gate_PI) * up_PI, down_proj[e])
        y_TC = y_TC.index_add(0, token_P, out_PC.to(wide) * weight_TK[token_P, column_P, None].to(wide))
    if plus_TC is not None:
        y_TC = y_TC + plus_TC
    return y_TC.to(x_TC.dtype)
