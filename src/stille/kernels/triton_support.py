"""Whether Triton can run here: on a GPU, or through its interpreter (`TRITON_INTERPRET=1`) on CPU tensors."""

import importlib.util
import os

import torch
from torch import Tensor

from stille.errors import UnsupportedError

PAGE = 64
"""Tokens in a page of the KV cache."""

IN_TRITON: dict[torch.dtype, str] = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
"""The dtypes that the kernels take."""


def has_triton() -> bool:
    """True if the `triton` package is installed."""
    return importlib.util.find_spec("triton") is not None


def interpreting() -> bool:
    """True if Triton's interpreter was asked for, which lets the kernels run on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def runs_triton(tensor: Tensor) -> bool:
    """True if the Triton kernels take this tensor: it is on a CUDA device, or the interpreter is on."""
    return has_triton() and (tensor.is_cuda or interpreting())


def require_triton(what: str) -> None:
    """Raise `UnsupportedError` if Triton is not installed.

    Args:
        what: the feature that needs it, for the message.
    """
    if not has_triton():
        raise UnsupportedError(
            f"{what} needs the 'triton' package, which is not installed. It comes with torch's CUDA builds for Linux; "
            "install it with 'pip install triton', or run on the CPU (device='cpu')."
        )


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least n (n >= 1)."""
    return 1 << (n - 1).bit_length()
