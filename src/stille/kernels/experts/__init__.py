"""Experts of a mixture with any number of them per token: a token costs what it uses."""

from stille.kernels.experts.api import Backend, moe_forward
from stille.kernels.experts.gate import swiglu
from stille.kernels.experts.masked import masked_forward

__all__ = ["Backend", "masked_forward", "moe_forward", "swiglu"]
