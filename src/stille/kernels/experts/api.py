"""`moe_forward`: checks what it is given and chooses who computes it."""

from typing import Literal, get_args

import torch
from torch import Tensor

from stille.errors import UnsupportedError
from stille.kernels.experts import reference
from stille.kernels.experts.cpu import cpu_forward
from stille.kernels.experts.grouped import grouped_forward
from stille.kernels.experts.matmul import library_takes
from stille.kernels.triton_support import IN_TRITON, has_triton, require_triton, runs_triton

Backend = Literal["auto", "reference", "grouped", "triton", "cpu"]

DECODE_TOKENS = 16
"""Most tokens for which "auto" takes the kernels that read an expert's weights anew for each token."""

WAITING_TOKENS = 256
"""The same where grouped products would wait for the host, which CUDA graphs of decode steps cannot."""


def moe_forward(
    x_TC: Tensor,
    expert_TK: Tensor,
    weight_TK: Tensor,
    gate_up_proj: Tensor,
    down_proj: Tensor,
    *,
    plus_TC: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Weighted sum of each token's experts, y = sum over k of weight_k * down_e(silu(gate_e(x)) * up_e(x)).

    A row of the table may have any number of experts, also none (y is 0), in any columns; the time is that of the
    experts that run. Differentiable once in what is floating point, except by "triton". Below autocast x and experts
    are cast as for matrix products. Equal inputs give equal bits (on a GPU without Triton nearly).

    Args:
        x_TC: tokens; any floating-point dtype that the backend takes.
        expert_TK: integers, the experts of each token; an entry equal to E is not used. No expert twice in a row. On a
            CPU the range is checked; on a GPU other entries give undefined results.
        weight_TK: floating point; not read where the entry is not used, so NaN may stand there.
        gate_up_proj: [E, 2I, C] in the dtype of x; rows 0 to I - 1 are gate, the others up (transformers' layout).
        down_proj: [E, C, I] in the dtype of x.
        plus_TC: added to the result, as what a shared expert gives; in the shape and dtype of x.
        backend: "reference": plain torch, the specification. "grouped": sorted by expert, grouped products; waits for
            the GPU only where torch's grouped GEMM or Triton is missing (dtypes other than bf16, C or I no multiple of
            8). "triton": two launches for a few tokens, in CUDA graphs too; float32, bfloat16, float16. "cpu": for
            CPU tensors. "auto": on a GPU, without gradients, "triton" up to `DECODE_TOKENS` tokens, or
            `WAITING_TOKENS` where "grouped" waits, else "grouped"; on a CPU "cpu".

    Returns:
        y_TC in the dtype of x (under autocast: of autocast), accumulated in float32 or wider.

    Raises:
        ValueError: shapes, devices, entries or the backend's name do not fit.
        UnsupportedError: dtypes, or a backend that cannot take these tensors.
    """
    x_TC, gate_up_proj, down_proj = _autocast(x_TC, gate_up_proj, down_proj)
    if plus_TC is not None:
        (plus_TC,) = _autocast(plus_TC)
    _check(x_TC, expert_TK, weight_TK, gate_up_proj, down_proj, plus_TC)
    if backend not in get_args(Backend):
        raise ValueError(f"backend {backend!r}: expected one of {', '.join(get_args(Backend))}.")
    inputs = (x_TC, weight_TK, gate_up_proj, down_proj, plus_TC)
    graded = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    name = _choose(x_TC, gate_up_proj, down_proj, graded) if backend == "auto" else backend
    if name == "triton":
        _check_triton(x_TC, gate_up_proj, down_proj, graded)
        from stille.kernels.experts.triton_decode import decode_forward as forward
    elif name == "cpu":
        if x_TC.device.type != "cpu":
            raise UnsupportedError(f"backend 'cpu' got tensors on {x_TC.device}: use backend='auto'.")
        forward = cpu_forward
    else:
        forward = grouped_forward if name == "grouped" else reference.moe_forward
    return forward(x_TC, expert_TK, weight_TK, gate_up_proj, down_proj, plus_TC=plus_TC)


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """What autocast does for matrix products."""
    device = tensors[0].device.type
    if device not in ("cpu", "cuda") or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x for x in tensors)


def _choose(x: Tensor, gate_up_proj: Tensor, down_proj: Tensor, graded: bool) -> Backend:
    if x.device.type == "cpu":
        return "cpu"
    most = DECODE_TOKENS if library_takes(down_proj, *down_proj.shape[1:]) else WAITING_TOKENS
    few = x.is_cuda and x.shape[0] <= most and not graded and x.dtype in IN_TRITON and has_triton()
    return "triton" if few and gate_up_proj.is_contiguous() and down_proj.is_contiguous() else "grouped"


def _check_triton(x: Tensor, gate_up_proj: Tensor, down_proj: Tensor, graded: bool) -> None:
    require_triton("backend 'triton'")
    if not runs_triton(x):
        raise UnsupportedError(f"backend 'triton' got tensors on {x.device}: it needs a CUDA device; use 'auto'.")
    if graded:
        raise UnsupportedError("backend 'triton' has no gradients: use 'auto' or 'grouped', or torch.no_grad().")
    if x.dtype not in IN_TRITON:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in IN_TRITON)
        raise UnsupportedError(f"backend 'triton' got {x.dtype}: expected {names}; others go by 'auto' or 'grouped'.")
    if not (gate_up_proj.is_contiguous() and down_proj.is_contiguous()):
        raise UnsupportedError("backend 'triton' needs contiguous gate_up_proj and down_proj: call .contiguous() once.")


def _check(
    x: Tensor, expert: Tensor, weight: Tensor, gate_up_proj: Tensor, down_proj: Tensor, plus: Tensor | None
) -> None:
    shapes = (
        f"x {tuple(x.shape)}, expert {tuple(expert.shape)}, weight {tuple(weight.shape)}, "
        f"gate_up_proj {tuple(gate_up_proj.shape)}, down_proj {tuple(down_proj.shape)}"
    )
    if not (x.ndim == expert.ndim == weight.ndim == 2 and gate_up_proj.ndim == down_proj.ndim == 3):
        raise ValueError(f"{shapes}: expected x [T, C], expert and weight [T, K], [E, 2I, C] and [E, C, I].")
    tokens, width = x.shape
    experts, _, inner = down_proj.shape
    if expert.shape != weight.shape or expert.shape[0] != tokens:
        raise ValueError(f"{shapes}: expert and weight need one row for each of the {tokens} tokens of x.")
    if gate_up_proj.shape != (experts, 2 * inner, width) or down_proj.shape[1] != width or experts == 0:
        raise ValueError(f"{shapes}: expected gate_up_proj [E, 2I, C] and down_proj [E, C, I] with C = {width}, E > 0.")
    if plus is not None and plus.shape != x.shape:
        raise ValueError(f"plus {tuple(plus.shape)}: expected the shape of x, {tuple(x.shape)}.")
    tensors = (x, expert, weight, gate_up_proj, down_proj, x if plus is None else plus)
    devices = {str(tensor.device) for tensor in tensors}
    if len(devices) > 1:
        raise ValueError(f"tensors are on {', '.join(sorted(devices))}: expected one device.")
    if expert.is_floating_point() or expert.is_complex() or expert.dtype == torch.bool:
        raise UnsupportedError(f"expert has dtype {expert.dtype}: expected integers.")
    if not weight.is_floating_point() or not x.is_floating_point():
        raise UnsupportedError(f"x has {x.dtype} and weight {weight.dtype}: expected floating point.")
    if not x.dtype == gate_up_proj.dtype == down_proj.dtype:
        raise UnsupportedError(
            f"x has {x.dtype}, gate_up_proj {gate_up_proj.dtype}, down_proj {down_proj.dtype}: expected one dtype; "
            "cast x, or the layer."
        )
    if plus is not None and plus.dtype != x.dtype:
        raise UnsupportedError(f"plus has {plus.dtype}: expected the dtype of x, {x.dtype}.")
    if expert.device.type == "cpu" and expert.numel():
        least, most = (int(value) for value in torch.aminmax(expert))
        if least < 0 or most > experts:
            raise ValueError(
                f"expert has entries from {least} to {most}: expected 0 to {experts - 1}, or {experts} for not used."
            )
