"""Feed-forward networks of the decoder, one class for each kind."""

from torch import Tensor, nn

from stille.kernels.experts import swiglu
from stille.model.config import StilleConfig
from stille.model.registry import FFN_KINDS

__all__ = ["FFN_KINDS", "DenseFFN", "SwiGLU"]


class SwiGLU(nn.Module):
    """`down(silu(gate(x)) * up(x))`, no biases; C to `inner` to C."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., C]; returns [..., C]."""
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


@FFN_KINDS.register("dense")
class DenseFFN(SwiGLU):
    """SwiGLU of the configuration's `intermediate_size`."""

    def __init__(self, config: StilleConfig, layer: int):
        super().__init__(config.hidden_size, config.intermediate_size)
