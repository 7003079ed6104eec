"""Attention: projections, q/k norm and RoPE around a seam behind which keys, values and the arithmetic live.

Shapes: leading [N] (flat tokens, the engine) or [B, T] (transformers); H query heads, K key/value heads, D head width,
C hidden size.
"""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn

from stille.model.config import StilleConfig
from stille.model.norm import RMSNorm
from stille.model.registry import ATTENTION_KINDS
from stille.model.rope import apply_rope

__all__ = ["ATTENTION_KINDS", "Attend", "Attention", "AttentionBackend"]

Attend = Callable[[int, Tensor, Tensor, Tensor, float], Tensor]
"""`attend(layer, q, k, v, scale) -> o`: store k and v, then attend. q and o are [..., H, D]; k and v [..., K, D]."""


class AttentionBackend(Protocol):
    """What an engine gives to `StilleModel.forward_tokens`: the cache and the attention over it, for flat tokens."""

    def attend(self, layer: int, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor, scale: float) -> Tensor:
        """Write k and v of the N new tokens into the cache of `layer`, then attend causally within each sequence.

        Args:
            layer: index of the decoder layer.
            q_NHD, k_NKD, v_NKD: after q/k norm and RoPE, in the model's dtype.
            scale: factor of the scores.

        Returns:
            o_NHD in the model's dtype.
        """
        ...


@ATTENTION_KINDS.register("full")
class Attention(nn.Module):
    """Grouped-query attention over every earlier token."""

    def __init__(self, config: StilleConfig, layer: int):
        super().__init__()
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        width, head_dim = config.hidden_size, config.head_dim
        self.layer = self.layer_idx = layer
        self.head_dim = head_dim
        self.scale = head_dim**-0.5
        self.q_proj = nn.Linear(width, heads * head_dim, bias=config.attention_bias)
        self.k_proj = nn.Linear(width, kv_heads * head_dim, bias=config.attention_bias)
        self.v_proj = nn.Linear(width, kv_heads * head_dim, bias=config.attention_bias)
        self.o_proj = nn.Linear(heads * head_dim, width, bias=config.attention_output_bias)
        self.q_norm = RMSNorm(head_dim, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(head_dim, config.rms_norm_eps) if config.qk_norm else None
        # Read by transformers' attention functions.
        self.config = config
        self.num_key_value_groups = heads // kv_heads
        self.is_causal = True
        self.attention_dropout = config.attention_dropout

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """x: [..., C]; cos, sin: [..., D] of the tokens' positions; returns [..., C]."""
        return self.o_proj(attend(self.layer, *self.project(x, cos, sin), self.scale).flatten(-2))

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q [..., H, D], k and v [..., K, D] of x, as they are attended with."""
        q = self.q_proj(x).unflatten(-1, (-1, self.head_dim))
        k = self.k_proj(x).unflatten(-1, (-1, self.head_dim))
        v = self.v_proj(x).unflatten(-1, (-1, self.head_dim))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return apply_rope(q, cos, sin), apply_rope(k, cos, sin), v
