"""Triton: attention of mean queries to what their tile does not read."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# Triton's language is Python in looks only; its types are beyond the checker.

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from stille.kernels.hsa.config import TILE, HSAConfig
from stille.kernels.hsa.triton_select import LOG2_E, Selection
from stille.kernels.triton_support import next_power_of_2

ROWS = 64  # mean queries of a program
STEP = 64  # keys of an iteration


@triton.jit(do_not_specialize=["rows", "start"])
def residual_kernel(
    q_ptr, k_ptr, v_ptr, chosen_ptr, log_ptr, res_v_ptr, res_k_ptr, stride_kh, stride_kn, stride_vh, stride_vn, rows,
    start, scale, chosen_stride, tiles,
    UNITS: tl.constexpr, G: tl.constexpr, BLOCK_R: tl.constexpr, TILE: tl.constexpr, UNIT: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, LEAF: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    block, h = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1).to(tl.int64)
    r, d = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_D)
    row = block * UNITS * G + r
    ok = (r < UNITS * G) & (row < rows)
    tile = row // G * UNIT // TILE
    own = tl.where(ok, (start + tile * TILE) // LEAF, 0)
    chosen_at = chosen_ptr + ((h * G + row % G) * tiles + tile) * chosen_stride
    d_mask = (d < D)[None, :]
    q = tl.load(q_ptr + (h * rows + row)[:, None] * D + d[None, :], mask=ok[:, None] & d_mask, other=0.0)
    acc_v = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    acc_k = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    top = tl.full([BLOCK_R], -1e30, tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    limit = tl.max(own, 0) * LEAF
    j = tl.arange(0, STEP)
    for b in range(0, limit, STEP):
        key = b + j
        inside = (key < limit)[:, None] & d_mask
        wide = key.to(tl.int64)[:, None]
        k = tl.load(k_ptr + h * stride_kh + wide * stride_kn + d[None, :], mask=inside, other=0.0)
        v = tl.load(v_ptr + h * stride_vh + wide * stride_vn + d[None, :], mask=inside, other=0.0)
        leaf = key // LEAF
        past = (leaf[None, :] < own[:, None]) & ok[:, None]
        read = tl.load(chosen_at[:, None] + leaf[None, :], mask=past, other=1)
        x = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        x = tl.where(read == 0, x, float("-inf"))
        new = tl.maximum(top, tl.max(x, 1))
        p = tl.exp2(x - new[:, None])
        alpha = tl.exp2(top - new)
        total = total * alpha + tl.sum(p, 1)
        acc_v = tl.dot(p.to(v.dtype), v, acc_v * alpha[:, None], input_precision="ieee")
        acc_k = tl.dot(p.to(k.dtype), k, acc_k * alpha[:, None], input_precision="ieee")
        top = new
    some = tl.where(total > 0, total, 1.0)
    acc_v = acc_v / some[:, None]
    acc_k = acc_k / some[:, None]
    log = tl.where(total > 0, top + tl.log2(some), -1e30)
    log -= tl.sum(q.to(tl.float32) * acc_k, 1) * scale  # a row adds its own q . res_k
    out = h * rows + row
    tl.store(log_ptr + out, log, mask=ok)
    mask = ok[:, None] & d_mask
    tl.store(res_v_ptr + out[:, None] * D + d[None, :], acc_v.to(res_v_ptr.dtype.element_ty), mask=mask)
    tl.store(res_k_ptr + out[:, None] * D + d[None, :], acc_k.to(res_k_ptr.dtype.element_ty), mask=mask)


class Residual(NamedTuple):
    """Of each unit, rows ordered (unit, head of the group): what its tile does not read.

    Attributes:
        log_KR: log2 of its mass, less q . mean key, which rows put back with their own q.
        v_KRD: its mean value, by mass.
        k_KRD: its mean key, by mass.
    """

    log_KR: Tensor
    v_KRD: Tensor
    k_KRD: Tensor


def residual(
    k_KND: Tensor, v_KND: Tensor, chosen: Selection, m: int, groups: int, scale: float, config: HSAConfig
) -> Residual:
    """The residual of the last `m` positions; `chosen` needs its map."""
    if chosen.chosen_HTB is None:
        raise ValueError("the selection has no map; select with want_map=True")
    heads, n, dim = k_KND.shape
    rows = chosen.units * groups
    log = torch.empty(heads, rows, device=k_KND.device, dtype=torch.float32)
    res_v = torch.empty(heads, rows, dim, device=k_KND.device, dtype=k_KND.dtype)
    res_k = torch.empty_like(res_v, dtype=torch.float32)  # q . k is taken off the mass and put back: no roundings
    units = max(1, ROWS // groups)
    residual_kernel[(triton.cdiv(chosen.units, units), heads)](
        chosen.unit_means_KRD, k_KND, v_KND, chosen.chosen_HTB, log, res_v, res_k, k_KND.stride(0), k_KND.stride(1),
        v_KND.stride(0), v_KND.stride(1), rows, n - m, scale * LOG2_E, chosen.chosen_HTB.stride(1),
        chosen.chosen_HTB.shape[1], UNITS=units, G=groups, BLOCK_R=ROWS, TILE=TILE, UNIT=config.unit, D=dim,
        BLOCK_D=next_power_of_2(dim), LEAF=config.leaf, STEP=STEP, num_warps=8 if dim > 64 else 4, num_stages=2,
    )  # fmt: skip
    return Residual(log, res_v, res_k)
