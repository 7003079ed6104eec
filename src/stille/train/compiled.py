"""Parts of a model as compiled kernels: what is many passes over memory by torch's own operations is one."""

from torch import nn

from stille.model.ffn import SwiGLU
from stille.model.norm import RMSNorm


def compile_parts(model: nn.Module) -> None:
    """Compile the norms and SwiGLUs of a model, in place, by torch.compile; state and names stay.

    All modules of a kind share a compilation for each shape. What is computed is the same up to rounding: what lies
    between two operations of a part is not rounded to half precision.
    """
    for module in model.modules():
        if isinstance(module, RMSNorm | SwiGLU):
            module.compile()
