"""The attention seam filled by transformers: its caches, masks and attention functions, for `forward` and `generate`.

Shapes: B batch, T new tokens, S cached and new tokens, H query heads, K key/value heads, D head width.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from stille.model.attention import Attend


def eager_attention(
    module: nn.Module,
    q_BHTD: Tensor,
    k_BKSD: Tensor,
    v_BKSD: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Attention written out, for inspecting weights; the signature is that of transformers' attention functions.

    Returns:
        o_BTHD, and the weights [B, H, T, S].
    """
    groups = q_BHTD.shape[1] // k_BKSD.shape[1]
    k_BHSD, v_BHSD = (x.repeat_interleave(groups, dim=1) for x in (k_BKSD, v_BKSD))
    scores_BHTS = q_BHTD @ k_BHSD.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores_BHTS = scores_BHTS + attention_mask
    weights_BHTS = scores_BHTS.softmax(dim=-1, dtype=torch.float32).to(q_BHTD.dtype)
    weights_BHTS = F.dropout(weights_BHTS, p=dropout, training=module.training)
    return (weights_BHTS @ v_BHSD).transpose(1, 2), weights_BHTS


def make_attend(
    modules: Sequence[Any],
    cache: Cache | None,
    attention_mask: Any,
    implementation: str | None,
    weights: list[Tensor] | None = None,
    **kwargs: Any,
) -> Attend:
    """The `attend` of one forward pass through transformers' cache and attention function.

    Args:
        modules: attention module of each layer; attention functions read their attributes.
        cache: keys and values of earlier tokens, or None.
        attention_mask: what `create_causal_mask` made for the implementation.
        implementation: name in transformers' `AttentionInterface` ("sdpa", "eager", ...).
        weights: if given, each layer's attention weights are appended (None where the function keeps none, of which it
            warns, or which it refuses).
        **kwargs: passed on to the attention function (packing metadata and the like).
    """
    if weights is not None:
        kwargs["output_attentions"] = True
    function: Any = ALL_ATTENTION_FUNCTIONS.get_interface(implementation or "eager", eager_attention)

    def attend(layer: int, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, scale: float) -> Tensor:
        module = modules[layer]
        q_BHTD, k_BKSD, v_BKSD = q_BTHD.transpose(1, 2), k_BTKD.transpose(1, 2), v_BTKD.transpose(1, 2)
        if cache is not None:
            k_BKSD, v_BKSD = cache.update(k_BKSD, v_BKSD, layer)
        o_BTHD, layer_weights = function(
            module,
            q_BHTD,
            k_BKSD,
            v_BKSD,
            attention_mask,
            scaling=scale,
            dropout=module.attention_dropout if module.training else 0.0,
            **kwargs,
        )
        if weights is not None:
            weights.append(layer_weights)
        return o_BTHD

    return attend
