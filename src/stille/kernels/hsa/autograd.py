"""`hsa_attention` with gradients: through what was read and, if on, through the residual; the selection is a constant.

On Triton the backward pass recomputes weights from the log-sum-exp: beside the inputs, the output and the selection
(with a residual, also its units) are kept. Its sums have a fixed order: equal inputs give equal bits.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stille.kernels.hsa import reference
from stille.kernels.hsa.config import HSAConfig

if TYPE_CHECKING:
    from stille.kernels.hsa.triton_residual import Residual
    from stille.kernels.hsa.triton_select import Selection

    Forward = Callable[..., tuple[Tensor, Tensor, Tensor | None, Selection, Residual | None]]


def wanted(*inputs: Tensor) -> bool:
    """Whether autograd records what is done with these."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in inputs)


def by_kernels(
    forward: "Forward", q_HMD: Tensor, k_KND: Tensor, v_KND: Tensor, scale: float, config: HSAConfig, *rest: Any
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Differentiable attention by kernels.

    Args:
        forward: called with the five arguments that follow and `rest`; returns output, log-sum-exp, missed mass or
            None, and what it was computed with: the selection and the residual or None.

    Returns:
        o [H, M, D] and log-sum-exp [H, M], differentiable once; missed mass [H, M] or None, which is not.
    """
    return _ByKernels.apply(q_HMD, k_KND, v_KND, forward, scale, config, rest)  # type: ignore[return-value]


def by_reference(
    q_HMD: Tensor, k_KND: Tensor, v_KND: Tensor, config: HSAConfig, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`reference.hsa_attention`, differentiable for a selection that is held constant; missed mass is not."""
    with torch.no_grad():
        selected = reference.select(q_HMD, k_KND, scale, config)
    out, lse, missed = reference.attend(q_HMD, k_KND, v_KND, selected, scale, config)
    return out, lse, missed.detach()


class _ByKernels(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, forward: "Forward", scale: float, config: HSAConfig, rest: tuple
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        out, lse, missed, chosen, units = forward(q, k, v, scale, config, *rest)
        ctx.scale, ctx.config, ctx.units = scale, config, chosen.units
        ctx.save_for_backward(
            q, k, v, out, lse, chosen.index_HTL, chosen.count_HT,
            *(() if units is None else (chosen.unit_means_KRD, *units)),
        )  # fmt: skip
        ctx.set_materialize_grads(False)
        if missed is not None:
            ctx.mark_non_differentiable(missed)
        return out, lse, missed

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, do: Tensor | None, dlse: Tensor | None, _: Tensor | None = None
    ) -> tuple[Tensor | None, ...]:
        from stille.kernels.hsa import triton_backward as kernels
        from stille.kernels.hsa.triton_residual import Residual
        from stille.kernels.hsa.triton_residual_backward import add_residual
        from stille.kernels.hsa.triton_select import Selection

        if do is None and dlse is None:
            return (None,) * 7
        q, k, v, out, lse, index, count, *units = ctx.saved_tensors
        chosen = Selection(index, count, None, units[0] if units else q, ctx.units)
        do = torch.zeros_like(out) if do is None else do.contiguous()
        # Descriptors take whole tensors; a copy costs little beside the passes over it.
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        rows = kernels.row_stats(do, out, lse, None if dlse is None else dlse.contiguous())
        leaf, scale = ctx.config.leaf, ctx.scale
        dq = dk = dv = None
        if units or ctx.needs_input_grad[0]:
            dq = kernels.backward_q(q, k, v, do, rows, chosen, scale, leaf)
        if units or ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            read_by = kernels.readers(chosen, k.shape[0], -(-k.shape[1] // leaf))
            dk, dv = kernels.backward_kv(q, k, v, do, rows, read_by, scale, leaf)
        if units and dq is not None and dk is not None and dv is not None:
            add_residual(dq, dk, dv, q, k, v, do, rows, chosen, Residual(*units[1:]), scale, ctx.config)
        return dq, dk, dv, None, None, None, None
