"""All experts for all tokens, then weights: more arithmetic than `moe_forward`, less of everything else.

Where experts are small (the slices of a dense layer), sorting tokens by expert and adding their rows up again takes
longer than products of whole matrices. Nothing is saved here, so inference does not use it.
"""

import torch.nn.functional as F
from torch import Tensor


def masked_forward(x_TC: Tensor, weight_TE: Tensor, gate_up_proj: Tensor, down_proj: Tensor) -> Tensor:
    """Weighted sum of each token's experts, y = sum over e of weight_e * down_e(silu(gate_e(x)) * up_e(x)).

    Args:
        x_TC: tokens, floating point.
        weight_TE: in the dtype of x, 0 where an expert does not run.
        gate_up_proj: [E, 2I, C], gate rows first.
        down_proj: [E, C, I].

    Returns:
        y_TC in the dtype of x.
    """
    experts, _, inner = down_proj.shape
    gate, up = F.linear(x_TC, gate_up_proj.flatten(0, 1)).unflatten(1, (experts, 2, inner)).unbind(2)
    hidden_TEI = F.silu(gate) * up * weight_TE.unsqueeze(2)
    return hidden_TEI.flatten(1) @ down_proj.transpose(1, 2).flatten(0, 1)
