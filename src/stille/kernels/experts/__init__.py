"""Experts of a mixture with any number of them per token: a token costs what it uses."""

from stille.kernels.experts.api import Backend, moe_forward

__all__ = ["Backend", "moe_forward"]
