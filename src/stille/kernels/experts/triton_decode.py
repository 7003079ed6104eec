"""Triton: experts for a few tokens in two launches whose grids depend on shapes only, for decode steps and CUDA graphs.

Programs of entries that are not used end before they load a weight, so the time is that of the experts that run. Sums
are in float32 in a fixed order. A few rows are limited by the weights' bytes: plain multiply-adds, no matrix units.
Letters: T tokens, C hidden size, E experts, I inner size of an expert, K columns of the routing table.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# Triton's language is Python in looks only; its types are beyond the checker.

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from stille.kernels.triton_support import next_power_of_2


@dataclass(frozen=True)
class DecodeConfig:
    """Tiles of the two launches; `benchmarks/deb_layer.py --only sweep` measures others.

    Attributes:
        inner: neurons of a program of the first (gate and up rows each).
        outputs: output rows of a program of the second.
        wide: most weights of a row that are loaded at once.
        warps: most warps of a program.
    """

    inner: int = 4
    outputs: int = 4
    wide: int = 1024
    warps: int = 4


@triton.jit
def inner_kernel(
    x_ptr, expert_ptr, gate_up_ptr, inner_ptr, columns, experts,
    C: tl.constexpr, I: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_C: tl.constexpr,  # noqa: E741
):  # fmt: skip
    """silu(gate) * up of one pair and BLOCK_I neurons. Pairs vary fastest: who shares an expert shares its cache."""
    pair = tl.program_id(0)
    expert = tl.load(expert_ptr + pair).to(tl.int64)
    if (expert >= 0) & (expert < experts):
        i = tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
        i_mask = i < I
        gate_at = gate_up_ptr + expert * (2 * I * C) + i[:, None] * C
        x_at = x_ptr + (pair // columns).to(tl.int64) * C
        gates = tl.zeros([BLOCK_I, BLOCK_C], tl.float32)
        ups = tl.zeros([BLOCK_I, BLOCK_C], tl.float32)
        for c0 in tl.static_range(0, C, BLOCK_C):
            c = c0 + tl.arange(0, BLOCK_C)
            mask = i_mask[:, None] & (c < C)[None, :]
            gate_w = tl.load(gate_at + c[None, :], mask=mask, other=0.0)
            up_w = tl.load(gate_at + I * C + c[None, :], mask=mask, other=0.0)
            x = tl.load(x_at + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
            gates += gate_w.to(tl.float32) * x
            ups += up_w.to(tl.float32) * x
        gate, up = tl.sum(gates, axis=1), tl.sum(ups, axis=1)
        tl.store(inner_ptr + pair.to(tl.int64) * I + i, gate / (1.0 + tl.exp(-gate)) * up, mask=i_mask)


@triton.jit
def output_kernel(
    inner_ptr, expert_ptr, weight_ptr, down_ptr, plus_ptr, out_ptr, columns, experts,
    C: tl.constexpr, I: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_I: tl.constexpr,  # noqa: E741
    HAS_PLUS: tl.constexpr,
):  # fmt: skip
    """Weighted sum over the experts of one token, BLOCK_C outputs."""
    token = tl.program_id(0)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    parts = tl.zeros([BLOCK_C, BLOCK_I], tl.float32)
    for k in range(columns):
        pair = (token * columns + k).to(tl.int64)
        expert = tl.load(expert_ptr + pair).to(tl.int64)
        if (expert >= 0) & (expert < experts):
            weight = tl.load(weight_ptr + pair).to(tl.float32)
            down_at = down_ptr + expert * (C * I) + c[:, None] * I
            for i0 in tl.static_range(0, I, BLOCK_I):
                i = i0 + tl.arange(0, BLOCK_I)
                mask = (c < C)[:, None] & (i < I)[None, :]
                down_w = tl.load(down_at + i[None, :], mask=mask, other=0.0)
                inner = tl.load(inner_ptr + pair * I + i, mask=i < I, other=0.0) * weight
                parts += down_w.to(tl.float32) * inner[None, :]
    total = tl.sum(parts, axis=1)
    at = token.to(tl.int64) * C + c
    if HAS_PLUS:
        total += tl.load(plus_ptr + at, mask=c < C, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, total, mask=c < C)


def decode_forward(
    x_TC: Tensor,
    expert_TK: Tensor,
    weight_TK: Tensor,
    gate_up_proj: Tensor,
    down_proj: Tensor,
    *,
    plus_TC: Tensor | None = None,
    out: Tensor | None = None,
    config: DecodeConfig | None = None,
) -> Tensor:
    """See `api.moe_forward`; no gradients.

    Args:
        x_TC: float32, bfloat16 or float16, as are the experts' weights, which must be contiguous.
        out: contiguous [T, C] for the result.
    """
    (tokens, width), columns = x_TC.shape, expert_TK.shape[1]
    experts, _, inner = down_proj.shape
    config = config or DecodeConfig()
    out = torch.empty(tokens, width, dtype=x_TC.dtype, device=x_TC.device) if out is None else out
    if not out.numel():
        return out
    if columns == 0 or inner == 0:
        return out.zero_() if plus_TC is None else out.copy_(plus_TC)
    expert_TK, weight_TK, x_TC = expert_TK.contiguous(), weight_TK.contiguous(), x_TC.contiguous()
    plus_TC = None if plus_TC is None else plus_TC.contiguous()
    inner_TKI = torch.empty(tokens, columns, inner, dtype=torch.float32, device=x_TC.device)
    block_i, block_c = min(config.inner, next_power_of_2(inner)), min(config.wide, next_power_of_2(width))
    inner_kernel[(tokens * columns, triton.cdiv(inner, block_i))](
        x_TC, expert_TK, gate_up_proj, inner_TKI, columns, experts,
        C=width, I=inner, BLOCK_I=block_i, BLOCK_C=block_c, num_warps=_warps(2 * block_i * block_c, config),
    )  # fmt: skip
    block_c, block_i = min(config.outputs, next_power_of_2(width)), min(config.wide, next_power_of_2(inner))
    output_kernel[(tokens, triton.cdiv(width, block_c))](
        inner_TKI, expert_TK, weight_TK, down_proj, plus_TC, out, columns, experts,
        C=width, I=inner, BLOCK_C=block_c, BLOCK_I=block_i, HAS_PLUS=plus_TC is not None,
        num_warps=_warps(block_c * block_i, config),
    )  # fmt: skip
    return out


def _warps(tile: int, config: DecodeConfig) -> int:
    """A power of two, for at least eight elements per thread."""
    return min(config.warps, max(1, tile // 256))
