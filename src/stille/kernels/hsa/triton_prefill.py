"""Triton: exact causal attention over selected leaves.

A program is a tile of 128 tokens of one query head. It reads its listed leaves, all in its past, without a mask, then
its own leaves with the causal mask. Keys arrive through pointers, or (TMA) whole leaves through tensor descriptors.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# Triton's language is Python in looks only; its types are beyond the checker.

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad
from triton.tools.tensor_descriptor import TensorDescriptor

from stille.kernels.hsa.config import TILE
from stille.kernels.hsa.triton_residual import Residual
from stille.kernels.hsa.triton_select import LOG2_E, Selection
from stille.kernels.triton_support import interpreting, next_power_of_2


@triton.jit
def _softmax_step(qk, acc, top, total, scale):
    """Online softmax: weights and the rescaled state. `scale` includes log2(e)."""
    new = tl.maximum(top, tl.max(qk, 1) * scale)
    p = tl.exp2(qk * scale - new[:, None])
    alpha = tl.exp2(top - new)
    return p, acc * alpha[:, None], new, total * alpha + tl.sum(p, 1)


@triton.jit
def _gather(ptr, key, stride, d, D: tl.constexpr, BLOCK_D: tl.constexpr):
    at = ptr + key[:, None] * stride + d[None, :]
    if BLOCK_D == D:
        return tl.load(at)
    else:
        return tl.load(at, mask=(d < D)[None, :], other=0.0)


@triton.jit(do_not_specialize=["m", "n", "start", "units"])
def prefill_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, index_ptr, count_ptr, res_log_ptr, res_v_ptr, res_k_ptr, missed_ptr,
    stride_qh, stride_qm, stride_kh, stride_kn, stride_vh, stride_vn, stride_oh, stride_om, m, n, start, index_stride,
    scale, units, kv_rows,
    G: tl.constexpr, BLOCK_M: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, LEAF: tl.constexpr,
    STEP: tl.constexpr, TMA: tl.constexpr, HAS_RES: tl.constexpr, UNIT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    # Late tiles have the longest lists: they start first.
    t, s = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1)
    tiles = tl.num_programs(0)
    d = tl.arange(0, BLOCK_D)
    token = t * BLOCK_M + tl.arange(0, BLOCK_M)
    head = s.to(tl.int64)
    kv = (s // G).to(tl.int64)
    ok = token < m
    d_mask = (d < D)[None, :]
    ok_d = ok[:, None] & d_mask
    q_at = q_ptr + head * stride_qh + token.to(tl.int64)[:, None] * stride_qm + d[None, :]
    q = tl.load(q_at, mask=ok_d, other=0.0)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    top = tl.full([BLOCK_M], -1e30, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    count = tl.load(count_ptr + s * tiles + t)
    index_ptr += (head * tiles + t) * index_stride
    j = tl.arange(0, STEP * LEAF)
    full = count // STEP * STEP
    if TMA:  # k_ptr and v_ptr are descriptors over [K * kv_rows, D]
        base = (kv * kv_rows).to(tl.int32)
        if STEP == 1:
            for i in tl.range(0, full, num_stages=STAGES):
                key = base + tl.load(index_ptr + i) * LEAF
                k = k_ptr.load([key, 0])
                qk = tl.dot(q, tl.trans(k), input_precision="ieee")
                p, acc, top, total = _softmax_step(qk, acc, top, total, scale)
                v = v_ptr.load([key, 0])
                acc = tl.dot(p.to(v.dtype), v, acc, input_precision="ieee")
        else:  # two leaves of a step share one rescale
            for i in tl.range(0, full, 2, num_stages=STAGES):
                key0 = base + tl.load(index_ptr + i) * LEAF
                key1 = base + tl.load(index_ptr + i + 1) * LEAF
                qk0 = tl.dot(q, tl.trans(k_ptr.load([key0, 0])), input_precision="ieee")
                qk1 = tl.dot(q, tl.trans(k_ptr.load([key1, 0])), input_precision="ieee")
                new = tl.maximum(top, tl.maximum(tl.max(qk0, 1), tl.max(qk1, 1)) * scale)
                alpha = tl.exp2(top - new)
                p0 = tl.exp2(qk0 * scale - new[:, None])
                p1 = tl.exp2(qk1 * scale - new[:, None])
                total = total * alpha + tl.sum(p0, 1) + tl.sum(p1, 1)
                acc = acc * alpha[:, None]
                top = new
                acc = tl.dot(p0.to(q.dtype), v_ptr.load([key0, 0]), acc, input_precision="ieee")
                acc = tl.dot(p1.to(q.dtype), v_ptr.load([key1, 0]), acc, input_precision="ieee")
    else:
        k_ptr += kv * stride_kh
        v_ptr += kv * stride_vh
        for i in tl.range(0, full, STEP, num_stages=STAGES):
            if STEP == 1:
                key = tl.load(index_ptr + i).to(tl.int64) * LEAF + j
            else:
                key = tl.load(index_ptr + i + j // LEAF).to(tl.int64) * LEAF + j % LEAF
            k = _gather(k_ptr, key, stride_kn, d, D, BLOCK_D)
            qk = tl.dot(q, tl.trans(k), input_precision="ieee")
            p, acc, top, total = _softmax_step(qk, acc, top, total, scale)
            v = _gather(v_ptr, key, stride_vn, d, D, BLOCK_D)
            acc = tl.dot(p.to(v.dtype), v, acc, input_precision="ieee")
    # What is left of the list, then the tile's own leaves.
    first = start + t * BLOCK_M
    own = first // LEAF
    every = count + tl.minimum(first + BLOCK_M - 1, n - 1) // LEAF - own + 1
    for i in tl.range(full, every, STEP, num_stages=1):
        if TMA:
            for e in tl.static_range(STEP):
                at = i + e
                if at < every:
                    leaf = tl.where(at < count, tl.load(index_ptr + at, mask=at < count, other=0), own + at - count)
                    row = (kv * kv_rows).to(tl.int32) + leaf * LEAF
                    qk = tl.dot(q, tl.trans(k_ptr.load([row, 0])), input_precision="ieee")
                    key = leaf * LEAF + tl.arange(0, LEAF)
                    qk = tl.where(key[None, :] <= (start + token)[:, None], qk, float("-inf"))
                    p, acc, top, total = _softmax_step(qk, acc, top, total, scale)
                    acc = tl.dot(p.to(q.dtype), v_ptr.load([row, 0]), acc, input_precision="ieee")
        else:
            at = i + j // LEAF
            listed = at < count
            leaf = tl.where(listed, tl.load(index_ptr + at, mask=listed, other=0), own + at - count)
            key = tl.where(at < every, leaf * LEAF + j % LEAF, 2147483647)
            inside = (key < n)[:, None] & d_mask
            wide = key.to(tl.int64)[:, None]
            k = tl.load(k_ptr + wide * stride_kn + d[None, :], mask=inside, other=0.0)
            v = tl.load(v_ptr + wide * stride_vn + d[None, :], mask=inside, other=0.0)
            qk = tl.dot(q, tl.trans(k), input_precision="ieee")
            qk = tl.where(key[None, :] <= (start + token)[:, None], qk, float("-inf"))
            p, acc, top, total = _softmax_step(qk, acc, top, total, scale)
            acc = tl.dot(p.to(v.dtype), v, acc, input_precision="ieee")
    if HAS_RES:  # rows share the residual of their unit's mean query, shifted by (q - mean q) . residual key
        unit = ((head // G) * units + token // UNIT) * G + head % G
        res_k = tl.load(res_k_ptr + unit[:, None] * D + d[None, :], mask=ok_d, other=0.0).to(tl.float32)
        log = tl.load(res_log_ptr + unit, mask=ok, other=-1e30) + tl.sum(q.to(tl.float32) * res_k, 1) * scale
        new = tl.maximum(top, log)
        keep, add = tl.exp2(top - new), tl.exp2(log - new)
        total = total * keep + add
        res_v = tl.load(res_v_ptr + unit[:, None] * D + d[None, :], mask=ok_d, other=0.0).to(tl.float32)
        acc = acc * keep[:, None] + res_v * add[:, None]
        top = new
        tl.store(missed_ptr + head * m + token, add / total, mask=ok)
    acc = acc / total[:, None]
    out_at = out_ptr + head * stride_oh + token.to(tl.int64)[:, None] * stride_om + d[None, :]
    tl.store(out_at, acc.to(out_ptr.dtype.element_ty), mask=ok_d)
    tl.store(lse_ptr + head * m + token, (top + tl.log2(total)) * 0.6931471805599453, mask=ok)


@dataclass(frozen=True)
class PrefillConfig:
    """How a launch is cut up: keys of an iteration (at least a leaf), warps, stages, and how keys arrive."""

    keys: int
    warps: int
    stages: int
    tma: bool = False


def prefill_config(k: Tensor, leaf: int) -> PrefillConfig:
    """The best of the sweep on one H200 (head widths 64 and 128); for others what registers and shared memory hold."""
    dim, wide = next_power_of_2(k.shape[-1]), k.dtype == torch.float32
    shared = 0 if interpreting() else torch.cuda.get_device_properties(k.device).shared_memory_per_block_optin
    hopper = not interpreting() and torch.cuda.get_device_capability(k.device)[0] >= 9 and shared > 200 << 10
    if hopper and leaf == 64 and dim == k.shape[-1] and dim in (64, 128):
        return PrefillConfig(128, 8, 2, tma=True) if dim == 128 else PrefillConfig(64, 8, 3, tma=True)
    if wide or dim > 128 or shared < 128 << 10:
        return PrefillConfig(max(32, leaf), 8 if dim > 64 else 4, 2 if dim <= 128 else 1)
    return PrefillConfig(64, 4, 3) if dim == 128 else PrefillConfig(128, 4, 2)


def whole_leaves(x_KND: Tensor, leaf: int) -> Tensor:
    """Contiguous, aligned, zeros up to a whole leaf, as descriptors need; the tensor itself if it is so already."""
    missing = -x_KND.shape[1] % leaf
    whole = pad(x_KND, (0, 0, 0, missing)) if missing else x_KND.contiguous()
    return whole if whole.data_ptr() % 16 == 0 else whole.clone()


def prefill(
    q_HMD: Tensor,
    k_KND: Tensor,
    v_KND: Tensor,
    chosen: Selection,
    scale: float,
    leaf: int,
    unit: int,
    *,
    residual: Residual | None = None,
    out: Tensor | None = None,
    config: PrefillConfig | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Attention of the last M of N positions over the selected leaves.

    Args:
        q_HMD, k_KND, v_KND: any strides with a dense last axis.
        chosen: of `triton_select.select` with the same leaf and unit.
        scale: factor of the scores.
        residual: of `triton_residual.residual`, merged if given.
        out: where to write, optionally.
        config: how to cut the work up; None: `prefill_config`.

    Returns:
        o [H, M, D], natural log-sum-exp [H, M], and with `residual` the share of mass not read exactly [H, M].
    """
    heads, m, dim = q_HMD.shape
    k_heads, n = k_KND.shape[:2]
    config = prefill_config(k_KND, leaf) if config is None else config
    out = torch.empty_like(q_HMD) if out is None else out
    lse = torch.empty(heads, m, device=q_HMD.device, dtype=torch.float32)
    missed = None if residual is None else torch.empty_like(lse)
    log, res_v, res_k = (lse, lse, lse) if residual is None else (residual.log_KR, residual.v_KRD, residual.k_KRD)
    keys, values, kv_rows, step = k_KND, v_KND, 0, max(1, config.keys // leaf)
    if config.tma:
        step = min(step, 2)
        keys, values = whole_leaves(k_KND, leaf), whole_leaves(v_KND, leaf)
        kv_rows = keys.shape[1]
        keys, values = (
            TensorDescriptor(x.view(-1, dim), [k_heads * kv_rows, dim], [dim, 1], [leaf, dim]) for x in (keys, values)
        )
    prefill_kernel[(triton.cdiv(m, TILE), heads)](
        q_HMD, keys, values, out, lse, chosen.index_HTL, chosen.count_HT, log, res_v, res_k,
        lse if missed is None else missed, q_HMD.stride(0), q_HMD.stride(1), k_KND.stride(0), k_KND.stride(1),
        v_KND.stride(0), v_KND.stride(1), out.stride(0), out.stride(1), m, n, n - m, chosen.index_HTL.shape[-1],
        scale * LOG2_E, chosen.units, kv_rows, G=heads // k_heads, BLOCK_M=TILE, D=dim, BLOCK_D=next_power_of_2(dim),
        LEAF=leaf, STEP=step, TMA=config.tma, HAS_RES=residual is not None, UNIT=unit, STAGES=config.stages,
        num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
    return out, lse, missed
