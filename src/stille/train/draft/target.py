"""What the head learns from its target: hidden states of chosen layers, and next-token probabilities.

Shapes: B rows, T tokens, R flat rows, C hidden size, F features, D draft vocabulary, V vocabulary.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stille.model.decoder import StilleForCausalLM
from stille.train.losses import LOGITS_AT_ONCE


def causal(layer: int, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, scale: float) -> Tensor:
    """Plain causal attention of padded rows: padding is on the right, where nothing before sees it."""
    q, k, v = (x.transpose(1, 2) for x in (q_BTHD, k_BTKD, v_BTKD))
    o = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    return o.transpose(1, 2)


@torch.no_grad()
def run_target(model: StilleForCausalLM, ids_BT: Tensor, layers: Sequence[int]) -> tuple[list[Tensor], Tensor]:
    """Run a target over padded rows.

    Args:
        model: in evaluation mode; one with experts runs its own budget, padding included.
        ids_BT: int64.
        layers: numbers of layers, ascending.

    Returns:
        hidden states [B, T, C] after each of the layers, and the last one's after the final norm.
    """
    decoder = model.model
    cos_TD, sin_TD = decoder.rope_table(ids_BT.shape[1])
    x = decoder.embed_tokens(ids_BT)
    cos, sin = (table[: ids_BT.shape[1]].to(x.dtype) for table in (cos_TD, sin_TD))
    states = []
    for number, layer in enumerate(decoder.layers):
        x = layer(x, cos, sin, causal)
        if number in layers:
            states.append(x)
    return states, decoder.norm(x)


@torch.no_grad()
def probabilities(model: StilleForCausalLM, hidden_RC: Tensor, head_DC: Tensor) -> Tensor:
    """Probabilities of the draft vocabulary in the target's distribution over all tokens, [R, D] in its dtype.

    A row sums to less than 1: the rest is that of tokens that are never drafted.
    """
    weight_VC = model.lm_head.weight
    found_RD = hidden_RC.new_empty(hidden_RC.shape[0], head_DC.shape[0])
    chunk = max(16, LOGITS_AT_ONCE // weight_VC.shape[0])
    for begin in range(0, hidden_RC.shape[0], chunk):
        h = hidden_RC[begin : begin + chunk]
        total_R = F.linear(h, weight_VC).float().logsumexp(-1)
        found_RD[begin : begin + chunk] = (F.linear(h, head_DC).float() - total_R[:, None]).exp()
    return found_RD
