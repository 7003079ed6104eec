"""Gluon: the exact part for Hopper, with explicit TMA and wgmma, for head width 128, bfloat16, leaves of 64 keys.

One warp copies the listed leaves into a ring in shared memory; two partitions of four warps have 64 query rows each, in
registers, and need not keep step. In each, the next scores and this step's weighted sum run on the tensor cores while
the softmax is computed. The structure (producer, two consumers, overlap inside each) is that of FlashAttention-3
(2407.08608).
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false, reportAssignmentType=false
# Gluon's language is Python in looks only; its types are beyond the checker.

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from stille.kernels.hsa.config import TILE
from stille.kernels.hsa.triton_prefill import whole_leaves
from stille.kernels.hsa.triton_select import LOG2_E, Selection

STAGES = 4  # leaves in the ring
_copy = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared  # renamed after Triton 3.6


@gluon.jit
def _producer(
    k_desc, v_desc, index_ptr, base, count, own, total, kbuf, vbuf, kfull, vfull, kfree, vfree, S: gl.constexpr,
    LEAF: gl.constexpr, BYTES: gl.constexpr,
):  # fmt: skip
    for i in range(total):
        s = i % S
        phase = ((i // S) & 1) ^ 1
        listed = i < count
        leaf = gl.where(listed, gl.load(index_ptr + i, mask=listed, other=0), own + i - count)
        row = base + leaf * LEAF
        mbarrier.wait(kfree.index(s), phase)
        mbarrier.expect(kfull.index(s), BYTES)
        _copy(k_desc, [row, 0], kfull.index(s), kbuf.index(s))
        mbarrier.wait(vfree.index(s), phase)
        mbarrier.expect(vfull.index(s), BYTES)
        _copy(v_desc, [row, 0], vfull.index(s), vbuf.index(s))


@gluon.jit
def _softmax(qk, top, total, scale):
    new = gl.maximum(top, gl.max(qk, 1) * scale)
    p = gl.exp2(qk * scale - new[:, None])
    alpha = gl.exp2(top - new)
    return p, alpha, new, total * alpha + gl.sum(p, 1)


@gluon.jit
def _masked(qk, i, count, own, pos, LEAF: gl.constexpr, LAYOUT: gl.constexpr):
    if i >= count:  # the tile's own leaves
        key = (own + i - count) * LEAF + gl.arange(0, LEAF, gl.SliceLayout(0, LAYOUT))
        qk = gl.where(key[None, :] <= pos[:, None], qk, float("-inf"))
    return qk


@gluon.jit
def _consumer(
    out_ptr, lse_ptr, head, first, start, m, stride_oh, stride_om, scale, count, own, steps, q, kbuf, vbuf, kfull,
    vfull, kfree, vfree,
    S: gl.constexpr, BLOCK_M: gl.constexpr, D: gl.constexpr, LEAF: gl.constexpr,
):  # fmt: skip
    QK: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, LEAF, 16])
    ACC: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, D, 16])
    P: gl.constexpr = gl.DotOperandLayout(0, ACC, 2)
    # In registers: scores then read only keys from shared memory, whose bandwidth 64 keys per step would else exceed.
    qa = q.load(gl.DotOperandLayout(0, QK, 2))
    pos = start + first + gl.arange(0, BLOCK_M, gl.SliceLayout(1, QK))
    top = gl.full([BLOCK_M], -1e30, gl.float32, gl.SliceLayout(1, QK))
    total = gl.zeros([BLOCK_M], gl.float32, gl.SliceLayout(1, QK))
    acc = gl.zeros([BLOCK_M, D], gl.float32, ACC)
    zero = gl.zeros([BLOCK_M, LEAF], gl.float32, QK)
    mbarrier.wait(kfull.index(0), 0)
    qk = warpgroup_mma(qa, kbuf.index(0).permute((1, 0)), zero, use_acc=False, is_async=True)
    qk = warpgroup_mma_wait(0, deps=(qk,))
    mbarrier.arrive(kfree.index(0), count=1)
    qk = _masked(qk, 0, count, own, pos, LEAF, QK)
    p, alpha, top, total = _softmax(qk, top, total, scale)
    w = gl.convert_layout(p.to(gl.bfloat16), P)
    for i in range(1, steps):
        s = i % S
        mbarrier.wait(kfull.index(s), (i // S) & 1)
        scores = warpgroup_mma(qa, kbuf.index(s).permute((1, 0)), zero, use_acc=False, is_async=True)
        before = (i - 1) % S
        mbarrier.wait(vfull.index(before), ((i - 1) // S) & 1)
        out = warpgroup_mma(w, vbuf.index(before), acc, is_async=True)
        qk = warpgroup_mma_wait(1, deps=(scores,))
        mbarrier.arrive(kfree.index(s), count=1)
        qk = _masked(qk, i, count, own, pos, LEAF, QK)
        p, alpha, top, total = _softmax(qk, top, total, scale)
        acc = warpgroup_mma_wait(0, deps=(out,))
        mbarrier.arrive(vfree.index(before), count=1)
        acc = acc * gl.convert_layout(alpha, gl.SliceLayout(1, ACC))[:, None]
        w = gl.convert_layout(p.to(gl.bfloat16), P)
    last = (steps - 1) % S
    mbarrier.wait(vfull.index(last), ((steps - 1) // S) & 1)
    out = warpgroup_mma(w, vbuf.index(last), acc, is_async=True)
    acc = warpgroup_mma_wait(0, deps=(out,))
    acc = acc / gl.convert_layout(total, gl.SliceLayout(1, ACC))[:, None]
    row = first + gl.arange(0, BLOCK_M, gl.SliceLayout(1, ACC))
    col = gl.arange(0, D, gl.SliceLayout(0, ACC))
    out_at = out_ptr + head * stride_oh + row.to(gl.int64)[:, None] * stride_om + col[None, :]
    gl.store(out_at, acc.to(gl.bfloat16), mask=(row < m)[:, None])
    row = first + gl.arange(0, BLOCK_M, gl.SliceLayout(1, QK))
    gl.store(lse_ptr + head * m + row, (top + gl.log2(total)) * 0.6931471805599453, mask=row < m)


@gluon.jit
def gluon_prefill_kernel(
    q_ptr, k_desc, v_desc, out_ptr, lse_ptr, index_ptr, count_ptr, stride_qh, stride_qm, stride_oh, stride_om, m, n,
    start, index_stride, scale, kv_rows,
    G: gl.constexpr, BLOCK_M: gl.constexpr, D: gl.constexpr, LEAF: gl.constexpr, S: gl.constexpr,
):  # fmt: skip
    t = gl.num_programs(0) - 1 - gl.program_id(0)
    tiles = gl.num_programs(0)
    s = gl.program_id(1)
    head = s.to(gl.int64)
    first = t * BLOCK_M
    LOAD: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    HALF: gl.constexpr = BLOCK_M // 2
    QS: gl.constexpr = gl.NVMMASharedLayout.get_default_for([HALF, D], gl.bfloat16)
    col = gl.arange(0, D, gl.SliceLayout(0, LOAD))
    row = first + gl.arange(0, HALF, gl.SliceLayout(1, LOAD))
    q_at = q_ptr + head * stride_qh + row.to(gl.int64)[:, None] * stride_qm + col[None, :]
    q = gl.load(q_at, mask=(row < m)[:, None], other=0.0)
    q0 = gl.allocate_shared_memory(gl.bfloat16, [HALF, D], QS, q)
    row = row + HALF
    q_at = q_ptr + head * stride_qh + row.to(gl.int64)[:, None] * stride_qm + col[None, :]
    q = gl.load(q_at, mask=(row < m)[:, None], other=0.0)
    q1 = gl.allocate_shared_memory(gl.bfloat16, [HALF, D], QS, q)
    KS: gl.constexpr = gl.NVMMASharedLayout.get_default_for([LEAF, D], gl.bfloat16)
    kbuf = gl.allocate_shared_memory(gl.bfloat16, [S, LEAF, D], KS)
    vbuf = gl.allocate_shared_memory(gl.bfloat16, [S, LEAF, D], KS)
    kfull = gl.allocate_shared_memory(gl.int64, [S, 1], mbarrier.MBarrierLayout())
    vfull = gl.allocate_shared_memory(gl.int64, [S, 1], mbarrier.MBarrierLayout())
    kfree = gl.allocate_shared_memory(gl.int64, [S, 1], mbarrier.MBarrierLayout())
    vfree = gl.allocate_shared_memory(gl.int64, [S, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(S):
        mbarrier.init(kfull.index(i), count=1)
        mbarrier.init(vfull.index(i), count=1)
        mbarrier.init(kfree.index(i), count=2)
        mbarrier.init(vfree.index(i), count=2)
    fence_async_shared()
    count = gl.load(count_ptr + s * tiles + t)
    index_ptr += (head * tiles + t) * index_stride
    own = (start + first) // LEAF
    steps = count + gl.minimum(start + first + BLOCK_M - 1, n - 1) // LEAF - own + 1
    gl.warp_specialize(
        [
            (_consumer, (out_ptr, lse_ptr, head, first, start, m, stride_oh, stride_om, scale, count, own, steps, q0,
                         kbuf, vbuf, kfull, vfull, kfree, vfree, S, HALF, D, LEAF)),
            (_consumer, (out_ptr, lse_ptr, head, first + HALF, start, m, stride_oh, stride_om, scale, count, own, steps,
                         q1, kbuf, vbuf, kfull, vfull, kfree, vfree, S, HALF, D, LEAF)),
            (_producer, (k_desc, v_desc, index_ptr, (s // G) * kv_rows, count, own, steps, kbuf, vbuf, kfull, vfull,
                         kfree, vfree, S, LEAF, LEAF * D * 2)),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip


def prefill(
    q_HMD: Tensor,
    k_KND: Tensor,
    v_KND: Tensor,
    chosen: Selection,
    scale: float,
    leaf: int,
    *,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As `triton_prefill.prefill`, without a residual: o [H, M, D] and natural log-sum-exp [H, M]."""
    heads, m, dim = q_HMD.shape
    k_heads, n = k_KND.shape[:2]
    out = torch.empty_like(q_HMD) if out is None else out
    lse = torch.empty(heads, m, device=q_HMD.device, dtype=torch.float32)
    keys, values = whole_leaves(k_KND, leaf), whole_leaves(v_KND, leaf)
    kv_rows = keys.shape[1]
    layout = gl.NVMMASharedLayout.get_default_for([leaf, dim], gl.bfloat16)
    keys, values = (
        TensorDescriptor(x.view(-1, dim), [k_heads * kv_rows, dim], [dim, 1], [leaf, dim], layout)
        for x in (keys, values)
    )
    gluon_prefill_kernel[(triton.cdiv(m, TILE), heads)](
        q_HMD, keys, values, out, lse, chosen.index_HTL, chosen.count_HT, q_HMD.stride(0), q_HMD.stride(1),
        out.stride(0), out.stride(1), m, n, n - m, chosen.index_HTL.shape[-1], scale * LOG2_E, kv_rows,
        G=heads // k_heads, BLOCK_M=TILE, D=dim, LEAF=leaf, S=STAGES, num_warps=4,
    )  # fmt: skip
    return out, lse
