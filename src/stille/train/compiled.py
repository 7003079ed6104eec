"""Parts of a model as compiled kernels: what is many passes over memory by torch's own operations is one."""

from typing import Any

import torch
from torch import nn

from stille.model.attention import Attention
from stille.model.experts import ExpertsFFN
from stille.model.ffn import SwiGLU
from stille.model.norm import RMSNorm


def compile_parts(model: nn.Module) -> None:
    """Compile the norms, SwiGLUs, projections of attention and masked experts of a model, in place, by torch.compile.

    State and names stay. All modules of a kind share a compilation for each shape: none may read its layer's number.
    What is computed is the same up to rounding: what lies between two operations of a part is not rounded to half
    precision.
    """
    for module in model.modules():
        part: Any = module  # methods are replaced, which types do not allow for
        if isinstance(module, RMSNorm | SwiGLU):
            part.compile(dynamic=False)
        elif isinstance(module, Attention):
            part.project = torch.compile(part.project, dynamic=False)
        elif isinstance(module, ExpertsFFN):
            part.run_masked = torch.compile(part.run_masked, dynamic=False)
