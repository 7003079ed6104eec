"""Products of each expert's rows with its own matrix: torch's grouped GEMM where it is fast, else one after the other.

Rows beyond `routes.ends_E[-1]` are neither read nor written.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from stille.kernels.experts.routes import Routes


def library_takes(weight: Tensor, *sizes: int) -> bool:
    """Whether torch's grouped GEMM computes this without a loop over experts that waits for the GPU.

    Its fast kernels take bf16 on GPUs since Ampere, with strides that are multiples of 16 bytes.
    """
    return (
        weight.is_cuda
        and weight.dtype == torch.bfloat16
        and hasattr(F, "grouped_mm")
        and torch.cuda.get_device_capability(weight.device) >= (8, 0)
        and all(size % 8 == 0 for size in sizes)
    )


def times_weights(rows_RX: Tensor, weight_EXY: Tensor, routes: Routes) -> Tensor:
    """[R, Y]: every expert's rows times its matrix."""
    _, x, y = weight_EXY.shape
    if rows_RX.shape[0] and library_takes(weight_EXY, x, y):
        return F.grouped_mm(rows_RX, weight_EXY, offs=routes.ends_E)
    out_RY = rows_RX.new_empty(rows_RX.shape[0], y)
    for e, start, end in routes.live():
        torch.mm(rows_RX[start:end], weight_EXY[e], out=out_RY[start:end])
    return out_RY


def outer_products(a_RX: Tensor, b_RY: Tensor, routes: Routes) -> Tensor:
    """[E, X, Y]: for every expert, the sum of its rows' outer products. Zeros for an expert without rows."""
    x, y = a_RX.shape[1], b_RY.shape[1]
    if a_RX.shape[0] and library_takes(a_RX, x, y):
        from stille.kernels.experts.triton_rows import clear_idle

        return clear_idle(F.grouped_mm(a_RX.t(), b_RY, offs=routes.ends_E), routes)
    out_EXY = a_RX.new_zeros(routes.ends_E.shape[0], x, y)
    for e, start, end in routes.live():
        torch.mm(a_RX[start:end].t(), b_RY[start:end], out=out_EXY[e])
    return out_EXY
