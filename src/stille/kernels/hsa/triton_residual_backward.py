"""Triton: gradients of the residual.

A row adds a pseudo-key, its unit's: value v (mean of what the tile pruned), log-mass L + (q - mean q) . k. So its
gradients to the unit's v, k and L are those of one more key; the unit's mean query then attends to the pruned keys, and
its gradients follow as in any attention, with dv . v_j + dk . k_j in the place of dO . v_j. The shift cancels L's share
of the gradient to the mean query. Plain kernels that recompute, untuned: each passes over all keys once per unit.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# Triton's language is Python in looks only; its types are beyond the checker.

import torch
import triton
import triton.language as tl
from torch import Tensor

from stille.kernels.hsa.config import TILE, HSAConfig
from stille.kernels.hsa.triton_backward import RowStats
from stille.kernels.hsa.triton_residual import ROWS, STEP, Residual
from stille.kernels.hsa.triton_select import LOG2_E, Selection
from stille.kernels.triton_support import next_power_of_2

BLOCK = 32  # rows that are added up at a time


@triton.jit(do_not_specialize=["m", "units", "tiles"])
def unit_gradients_kernel(
    q_ptr, do_ptr, log_ptr, delta_ptr, mean_ptr, res_log_ptr, res_v_ptr, res_k_ptr, dq_ptr, dv_ptr, dk_ptr, centre_ptr,
    dmass_ptr, stride_qh, stride_qm, stride_oh, stride_om, m, units, tiles, scale, factor,
    G: tl.constexpr, UNIT: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradients of each unit's v, k and log-mass, and the rows' own: adds dlog * k to dQ.

    A program is a unit, or as many as BLOCK rows hold.
    """
    INNER: tl.constexpr = BLOCK if UNIT > BLOCK else UNIT
    SIDE: tl.constexpr = BLOCK // INNER
    h = tl.program_id(1).to(tl.int64)
    u = tl.program_id(0) * SIDE + tl.arange(0, SIDE)
    r, d = tl.arange(0, BLOCK), tl.arange(0, BLOCK_D)
    d_mask = (d < D)[None, :]
    dv = tl.zeros([SIDE, BLOCK_D], tl.float32)
    dk = tl.zeros([SIDE, BLOCK_D], tl.float32)
    dmass = tl.zeros([SIDE], tl.float32)
    for i in range(0, UNIT, INNER):
        token = (tl.program_id(0) * SIDE + r // INNER) * UNIT + i + r % INNER
        ok = token < m
        mask = ok[:, None] & d_mask
        unit = ((h // G) * units + token // UNIT) * G + h % G
        wide = token.to(tl.int64)[:, None]
        q = tl.load(q_ptr + h * stride_qh + wide * stride_qm + d[None, :], mask=mask, other=0.0).to(tl.float32)
        do = tl.load(do_ptr + h * stride_oh + wide * stride_om + d[None, :], mask=mask, other=0.0).to(tl.float32)
        res_k = tl.load(res_k_ptr + unit[:, None] * D + d[None, :], mask=mask, other=0.0).to(tl.float32)
        log = tl.load(res_log_ptr + unit, mask=ok, other=-1e30) + tl.sum(q * res_k, 1) * scale
        share = tl.exp2(log - tl.load(log_ptr + h * tiles * TILE + token, mask=ok, other=float("inf")))
        res_v = tl.load(res_v_ptr + unit[:, None] * D + d[None, :], mask=mask, other=0.0).to(tl.float32)
        delta = tl.load(delta_ptr + h * tiles * TILE + token, mask=ok, other=0.0)
        dlog = share * (tl.sum(do * res_v, 1) - delta)
        at = dq_ptr + (h * m + token)[:, None] * D + d[None, :]
        dq = tl.load(at, mask=mask, other=0.0).to(tl.float32) + dlog[:, None] * res_k * factor
        tl.store(at, dq.to(dq_ptr.dtype.element_ty), mask=mask)
        mean = tl.load(mean_ptr + unit[:, None] * D + d[None, :], mask=mask, other=0.0).to(tl.float32)
        dv += tl.sum(tl.reshape(share[:, None] * do, [SIDE, INNER, BLOCK_D]), 1)
        dk += tl.sum(tl.reshape(dlog[:, None] * (q - mean) * factor, [SIDE, INNER, BLOCK_D]), 1)
        dmass += tl.sum(tl.reshape(dlog, [SIDE, INNER]), 1)
    unit = ((h // G) * units + u) * G + h % G
    ok = u < units
    mask = ok[:, None] & d_mask
    at = unit[:, None] * D + d[None, :]
    dv = dv.to(dv_ptr.dtype.element_ty)
    dk = dk.to(dk_ptr.dtype.element_ty)
    tl.store(dv_ptr + at, dv, mask=mask)
    tl.store(dk_ptr + at, dk, mask=mask)
    centre = dv.to(tl.float32) * tl.load(res_v_ptr + at, mask=mask, other=0.0).to(tl.float32)
    centre += dk.to(tl.float32) * tl.load(res_k_ptr + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(centre_ptr + unit, tl.sum(centre, 1), mask=ok)
    tl.store(dmass_ptr + unit, dmass, mask=ok)


@triton.jit
def _unit_weights(mean, dv, dk, k, v, log, centre, pruned, scale):
    """[units, keys]: weights of pruned keys, and the same times (dv . v_j + dk . k_j - its mean)."""
    x = tl.dot(mean, tl.trans(k), input_precision="ieee") * scale
    w = tl.exp2(tl.where(pruned, x - log[:, None], float("-inf")))
    g = tl.dot(dv, tl.trans(v), input_precision="ieee") + tl.dot(dk, tl.trans(k), input_precision="ieee")
    return w, w * (g - centre[:, None])


@triton.jit(do_not_specialize=["rows", "start", "m"])
def mean_gradients_kernel(
    mean_ptr, k_ptr, v_ptr, chosen_ptr, log_ptr, res_k_ptr, dv_ptr, dk_ptr, centre_ptr, dmean_ptr, stride_kh, stride_kn,
    stride_vh, stride_vn, rows, start, m, scale, factor, chosen_stride, tiles,
    UNITS: tl.constexpr, G: tl.constexpr, BLOCK_R: tl.constexpr, TILE: tl.constexpr, UNIT: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, LEAF: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Gradient of the mean queries, divided among the queries that they average."""
    block, h = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1).to(tl.int64)
    r, d = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_D)
    row = block * UNITS * G + r
    ok = (r < UNITS * G) & (row < rows)
    tile = row // G * UNIT // TILE
    own = tl.where(ok, (start + tile * TILE) // LEAF, 0)
    chosen_at = chosen_ptr + ((h * G + row % G) * tiles + tile) * chosen_stride
    at = (h * rows + row)[:, None] * D + d[None, :]
    mask = ok[:, None] & (d < D)[None, :]
    mean = tl.load(mean_ptr + at, mask=mask, other=0.0)
    dv = tl.load(dv_ptr + at, mask=mask, other=0.0)
    dk = tl.load(dk_ptr + at, mask=mask, other=0.0)
    log = tl.load(log_ptr + h * rows + row, mask=ok, other=0.0)  # q . k was taken off it
    log += tl.sum(mean.to(tl.float32) * tl.load(res_k_ptr + at, mask=mask, other=0.0).to(tl.float32), 1) * scale
    centre = tl.load(centre_ptr + h * rows + row, mask=ok, other=0.0)
    acc = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    limit = tl.max(own, 0) * LEAF
    j = tl.arange(0, STEP)
    for b in range(0, limit, STEP):
        key = b + j
        inside = (key < limit)[:, None] & (d < D)[None, :]
        wide = key.to(tl.int64)[:, None]
        k = tl.load(k_ptr + h * stride_kh + wide * stride_kn + d[None, :], mask=inside, other=0.0)
        v = tl.load(v_ptr + h * stride_vh + wide * stride_vn + d[None, :], mask=inside, other=0.0)
        leaf = key // LEAF
        past = (leaf[None, :] < own[:, None]) & ok[:, None]
        read = tl.load(chosen_at[:, None] + leaf[None, :], mask=past, other=1)
        _, wg = _unit_weights(mean, dv, dk, k, v, log, centre, read == 0, scale)
        acc = tl.dot(wg.to(k.dtype), k, acc, input_precision="ieee")
    among = tl.minimum(m - row // G * UNIT, UNIT).to(tl.float32)
    tl.store(dmean_ptr + at, acc * (factor / among)[:, None], mask=mask)


@triton.jit(do_not_specialize=["rows", "start", "n", "m"])
def pruned_gradients_kernel(
    mean_ptr, k_ptr, v_ptr, chosen_ptr, log_ptr, res_k_ptr, dv_ptr, dk_ptr, centre_ptr, dmass_ptr, out_dk_ptr,
    out_dv_ptr, stride_kh, stride_kn, stride_vh, stride_vn, rows, start, n, m, scale, factor, chosen_stride, tiles,
    G: tl.constexpr, BLOCK_R: tl.constexpr, TILE: tl.constexpr, UNIT: tl.constexpr, D: tl.constexpr,
    BLOCK_D: tl.constexpr, LEAF: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Gradients of pruned keys and values, added to those of the exact part."""
    b, h = tl.program_id(0), tl.program_id(1).to(tl.int64)
    j, d = tl.arange(0, STEP), tl.arange(0, BLOCK_D)
    key = b * STEP + j
    leaf = key // LEAF
    inside = (key < n)[:, None] & (d < D)[None, :]
    wide = key.to(tl.int64)[:, None]
    k = tl.load(k_ptr + h * stride_kh + wide * stride_kn + d[None, :], mask=inside, other=0.0)
    v = tl.load(v_ptr + h * stride_vh + wide * stride_vn + d[None, :], mask=inside, other=0.0)
    acc_k = tl.zeros([STEP, BLOCK_D], tl.float32)
    acc_v = tl.zeros([STEP, BLOCK_D], tl.float32)
    # Tiles before the first leaf's end have it in their own leaves or in their future.
    first = tl.maximum((b * STEP // LEAF + 1) * LEAF - start + TILE - 1, 0) // TILE * (TILE // UNIT) * G
    for at in range(first, rows, BLOCK_R):
        row = at + tl.arange(0, BLOCK_R)
        ok = row < rows
        tile = row // G * UNIT // TILE
        own = (start + tile * TILE) // LEAF
        mask = ok[:, None] & (d < D)[None, :]
        place = (h * rows + row)[:, None] * D + d[None, :]
        mean = tl.load(mean_ptr + place, mask=mask, other=0.0)
        dv = tl.load(dv_ptr + place, mask=mask, other=0.0)
        dk = tl.load(dk_ptr + place, mask=mask, other=0.0)
        log = tl.load(log_ptr + h * rows + row, mask=ok, other=0.0)
        log += tl.sum(mean.to(tl.float32) * tl.load(res_k_ptr + place, mask=mask, other=0.0).to(tl.float32), 1) * scale
        centre = tl.load(centre_ptr + h * rows + row, mask=ok, other=0.0)
        dmass = tl.load(dmass_ptr + h * rows + row, mask=ok, other=0.0)
        past = (leaf[None, :] < own[:, None]) & ok[:, None] & (key < n)[None, :]
        chosen_at = chosen_ptr + ((h * G + row % G) * tiles + tile) * chosen_stride
        read = tl.load(chosen_at[:, None] + leaf[None, :], mask=past, other=1)
        w, wg = _unit_weights(mean, dv, dk, k, v, log, centre, read == 0, scale)
        wg += w * dmass[:, None]
        acc_v = tl.dot(tl.trans(w.to(dv.dtype)), dv, acc_v, input_precision="ieee")
        acc_k = tl.dot(tl.trans(w.to(dk.dtype)), dk, acc_k, input_precision="ieee")
        acc_k = tl.dot(tl.trans((wg * factor).to(mean.dtype)), mean, acc_k, input_precision="ieee")
    at = (h * n + key)[:, None] * D + d[None, :]
    acc_k += tl.load(out_dk_ptr + at, mask=inside, other=0.0).to(tl.float32)
    acc_v += tl.load(out_dv_ptr + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_dk_ptr + at, acc_k.to(out_dk_ptr.dtype.element_ty), mask=inside)
    tl.store(out_dv_ptr + at, acc_v.to(out_dv_ptr.dtype.element_ty), mask=inside)


def add_residual(
    dq_HMD: Tensor, dk_KND: Tensor, dv_KND: Tensor, q_HMD: Tensor, k_KND: Tensor, v_KND: Tensor, do_HMD: Tensor,
    rows: RowStats, chosen: Selection, residual: Residual, scale: float, config: HSAConfig,
) -> None:  # fmt: skip
    """Adds the residual's gradients to contiguous `dq_HMD`, `dk_KND` and `dv_KND`, in place.

    Args:
        rows: of `triton_backward.row_stats`, with a log-sum-exp that holds the residual.
        chosen: of the forward pass; its map is rebuilt from the lists.
        residual: of the forward pass.
    """
    (heads, m, dim), (k_heads, n, _) = q_HMD.shape, k_KND.shape
    groups, unit, leaf, units = heads // k_heads, config.unit, config.leaf, chosen.units
    tiles, total, start = triton.cdiv(m, TILE), units * groups, n - m
    read = _map(chosen, triton.cdiv(n, leaf))
    means, factor, block_d = chosen.unit_means_KRD, scale * LOG2_E, next_power_of_2(dim)
    unit_dv, unit_dk = torch.empty_like(means), torch.empty_like(means)
    dmean = torch.empty(means.shape, device=means.device, dtype=torch.float32)
    centre, dmass = (torch.empty(k_heads, total, device=means.device, dtype=torch.float32) for _ in range(2))
    unit_gradients_kernel[(triton.cdiv(units, max(1, BLOCK // unit)), heads)](
        q_HMD, do_HMD, rows.log_HTM, rows.delta_HTM, means, residual.log_KR, residual.v_KRD, residual.k_KRD, dq_HMD,
        unit_dv, unit_dk, centre, dmass, q_HMD.stride(0), q_HMD.stride(1), do_HMD.stride(0), do_HMD.stride(1), m, units,
        tiles, factor, scale, G=groups, UNIT=unit, TILE=TILE, BLOCK=BLOCK, D=dim, BLOCK_D=block_d, num_warps=4,
    )  # fmt: skip
    keys = (k_KND.stride(0), k_KND.stride(1), v_KND.stride(0), v_KND.stride(1))
    sizes = dict(
        G=groups, BLOCK_R=ROWS, TILE=TILE, UNIT=unit, D=dim, BLOCK_D=block_d, LEAF=leaf, STEP=STEP,
        num_warps=8 if dim > 64 else 4, num_stages=1,
    )  # fmt: skip
    per = max(1, ROWS // groups)
    mean_gradients_kernel[(triton.cdiv(units, per), k_heads)](
        means, k_KND, v_KND, read, residual.log_KR, residual.k_KRD, unit_dv, unit_dk, centre, dmean, *keys, total,
        start, m, factor, scale, read.stride(1), tiles, UNITS=per, **sizes,
    )  # fmt: skip
    pruned_gradients_kernel[(triton.cdiv(n, STEP), k_heads)](
        means, k_KND, v_KND, read, residual.log_KR, residual.k_KRD, unit_dv, unit_dk, centre, dmass, dk_KND, dv_KND,
        *keys, total, start, n, m, factor, scale, read.stride(1), tiles, **sizes,
    )  # fmt: skip
    spread = dmean.view(k_heads, units, groups, dim).transpose(1, 2).reshape(heads, units, dim)
    whole = m // unit * unit
    dq_HMD[:, :whole].unflatten(1, (whole // unit, unit)).add_(spread[:, : whole // unit, None])
    if whole < m:
        dq_HMD[:, whole:] += spread[:, -1:]


def _map(chosen: Selection, leaves: int) -> Tensor:
    """[H, T, leaves] uint8: what the lists name."""
    heads, tiles, keep = chosen.index_HTL.shape
    listed = torch.arange(keep, device=chosen.index_HTL.device) < chosen.count_HT[..., None]
    at = torch.where(listed, chosen.index_HTL, leaves).long()
    read = torch.zeros(heads, tiles, leaves + 1, device=at.device, dtype=torch.uint8)
    return read.scatter_(2, at, 1)
