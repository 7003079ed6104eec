"""Feed-forward networks of the decoder, one class for each kind."""

import torch.nn.functional as F
from torch import Tensor, nn

from stille.model.config import StilleConfig
from stille.model.registry import FFN_KINDS

__all__ = ["FFN_KINDS", "DenseFFN"]


@FFN_KINDS.register("dense")
class DenseFFN(nn.Module):
    """SwiGLU: `down(silu(gate(x)) * up(x))`, no biases."""

    def __init__(self, config: StilleConfig, layer: int):
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., C]; returns [..., C]."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
