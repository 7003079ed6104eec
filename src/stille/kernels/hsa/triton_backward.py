"""Triton: gradients of the exact part. Deterministic, without atomics; probabilities are recomputed from log-sum-exp.

Queries: a program per tile of a head walks the tile's list, as the forward pass does. Keys and values: a program per
leaf walks the transposed list, the tiles that read it, 64 or 128 rows at a time; then the tiles that the leaf lies in,
with the causal mask. Leaves that very many tiles read (sinks) are cut into chunks, whose sums are added in a fixed
order. Two passes that recompute the scores, as in FlashAttention-2 (2307.08691); transposed lists for block-sparse
attention are also those of FlashMoBA (2511.11571).
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# Triton's language is Python in looks only; its types are beyond the checker.

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from stille.kernels.hsa.config import TILE
from stille.kernels.hsa.triton_select import LOG2_E, Selection
from stille.kernels.triton_support import interpreting, next_power_of_2

CHUNK = 256  # fewest readers of a leaf that are worth cutting up
SLOTS = 2048  # about as many chunks of hot leaves, at most: bounds the workspace


@triton.jit(do_not_specialize=["m"])
def rows_kernel(
    do_ptr, out_ptr, lse_ptr, dlse_ptr, log_ptr, delta_ptr, stride_oh, stride_om, m,
    TILE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, HAS_DLSE: tl.constexpr,
):  # fmt: skip
    """Of each row, what every pair needs: log2-sum-exp and dO . O - dlse; rows past the end get weights of zero."""
    t, h = tl.program_id(0), tl.program_id(1).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    row = tl.arange(0, TILE)
    token = t * TILE + row
    ok = token < m
    at = h * stride_oh + token.to(tl.int64)[:, None] * stride_om + d[None, :]
    mask = ok[:, None] & (d < D)[None, :]
    do = tl.load(do_ptr + at, mask=mask, other=0.0).to(tl.float32)
    out = tl.load(out_ptr + at, mask=mask, other=0.0).to(tl.float32)
    delta = tl.sum(do * out, 1)
    if HAS_DLSE:
        delta -= tl.load(dlse_ptr + h * m + token, mask=ok, other=0.0)
    log = tl.load(lse_ptr + h * m + token, mask=ok, other=float("inf")) * 1.4426950408889634
    at = (h * tl.num_programs(0) + t) * TILE + row
    tl.store(log_ptr + at, log)
    tl.store(delta_ptr + at, delta)


@triton.jit
def _rows(ptr, row, stride, ok, d, D: tl.constexpr, BLOCK_D: tl.constexpr):
    at = ptr + row.to(tl.int64)[:, None] * stride + d[None, :]
    return tl.load(at, mask=ok[:, None] & (d < D)[None, :], other=0.0)


@triton.jit
def _dq_step(q, do, k, v, log, delta, dq, seen, scale, MASKED: tl.constexpr):
    s = tl.dot(q, tl.trans(k), input_precision="ieee")
    p = tl.exp2(s * scale - log[:, None])
    dp = tl.dot(do, tl.trans(v), input_precision="ieee")
    ds = p * (dp - delta[:, None])
    if MASKED:
        ds = tl.where(seen, ds, 0.0)
    return tl.dot(ds.to(k.dtype), k, dq, input_precision="ieee")


@triton.jit(do_not_specialize=["m", "n", "start", "tiles"])
def dq_kernel(
    q_ptr, k_ptr, v_ptr, do_ptr, log_ptr, delta_ptr, dq_ptr, index_ptr, count_ptr, stride_qh, stride_qm, stride_kh,
    stride_kn, stride_vh, stride_vn, stride_oh, stride_om, m, n, start, tiles, index_stride, scale, factor, kv_rows,
    G: tl.constexpr, BLOCK_M: tl.constexpr, TILE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    LEAF: tl.constexpr, STEP: tl.constexpr, TMA: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    SPLIT: tl.constexpr = TILE // BLOCK_M
    # Late tiles have the longest lists: they start first.
    part, s = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1)
    t = part // SPLIT
    d = tl.arange(0, BLOCK_D)
    token = part * BLOCK_M + tl.arange(0, BLOCK_M)
    head = s.to(tl.int64)
    kv = (s // G).to(tl.int64)
    ok = token < m
    q = _rows(q_ptr + head * stride_qh, token, stride_qm, ok, d, D, BLOCK_D)
    do = _rows(do_ptr + head * stride_oh, token, stride_om, ok, d, D, BLOCK_D)
    log = tl.load(log_ptr + head * tiles * TILE + token)
    delta = tl.load(delta_ptr + head * tiles * TILE + token)
    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    count = tl.load(count_ptr + head * tiles + t)
    index_ptr += (head * tiles + t) * index_stride
    j = tl.arange(0, STEP * LEAF)
    full = count // STEP * STEP
    first = start + t * TILE
    own = first // LEAF
    every = count + (tl.minimum(first + TILE, n) - 1) // LEAF - own + 1
    if TMA:  # k_ptr and v_ptr are descriptors over [K * kv_rows, D]
        base = (kv * kv_rows).to(tl.int32)
        for i in tl.range(0, count, num_stages=STAGES):
            row = base + tl.load(index_ptr + i) * LEAF
            dq = _dq_step(q, do, k_ptr.load([row, 0]), v_ptr.load([row, 0]), log, delta, dq, ok, scale, False)
        for i in tl.range(count, every, num_stages=1):
            leaf = own + i - count
            k, v = k_ptr.load([base + leaf * LEAF, 0]), v_ptr.load([base + leaf * LEAF, 0])
            key = leaf * LEAF + tl.arange(0, LEAF)
            dq = _dq_step(q, do, k, v, log, delta, dq, key[None, :] <= (start + token)[:, None], scale, True)
    else:
        k_ptr += kv * stride_kh
        v_ptr += kv * stride_vh
        always = j < STEP * LEAF
        for i in tl.range(0, full, STEP, num_stages=STAGES):
            if STEP == 1:
                key = tl.load(index_ptr + i) * LEAF + j
            else:
                key = tl.load(index_ptr + i + j // LEAF) * LEAF + j % LEAF
            k = _rows(k_ptr, key, stride_kn, always, d, D, BLOCK_D)
            v = _rows(v_ptr, key, stride_vn, always, d, D, BLOCK_D)
            dq = _dq_step(q, do, k, v, log, delta, dq, ok, scale, False)
        for i in tl.range(full, every, STEP, num_stages=1):  # what is left of the list, then the tile's own leaves
            at = i + j // LEAF
            listed = at < count
            leaf = tl.where(listed, tl.load(index_ptr + at, mask=listed, other=0), own + at - count)
            key = tl.where(at < every, leaf * LEAF + j % LEAF, 2147483647)
            k = _rows(k_ptr, key, stride_kn, key < n, d, D, BLOCK_D)
            v = _rows(v_ptr, key, stride_vn, key < n, d, D, BLOCK_D)
            dq = _dq_step(q, do, k, v, log, delta, dq, key[None, :] <= (start + token)[:, None], scale, True)
    at = dq_ptr + (head * m + token)[:, None] * D + d[None, :]
    tl.store(at, (dq * factor).to(dq_ptr.dtype.element_ty), mask=ok[:, None] & (d < D)[None, :])


@triton.jit
def _dkv_step(q, do, k, v, log, delta, dk, dv, seen, scale, MASKED: tl.constexpr):
    """Scores are transposed [keys, rows]: then weights are left operands, which stay in registers."""
    s = tl.dot(k, tl.trans(q), input_precision="ieee")
    p = tl.exp2(s * scale - log[None, :])
    if MASKED:
        p = tl.where(seen, p, 0.0)
    dv = tl.dot(p.to(do.dtype), do, dv, input_precision="ieee")
    dp = tl.dot(v, tl.trans(do), input_precision="ieee")
    ds = p * (dp - delta[None, :])
    if MASKED:
        ds = tl.where(seen, ds, 0.0)
    return tl.dot(ds.to(q.dtype), q, dk, input_precision="ieee"), dv


@triton.jit(do_not_specialize=["m", "n", "start", "leaves", "tiles", "chunk", "slots", "lists"])
def dkv_kernel(
    q_ptr, k_ptr, v_ptr, do_ptr, log_ptr, delta_ptr, dk_ptr, dv_ptr, part_ptr, entry_ptr, offset_ptr, slot_leaf_ptr,
    slot_start_ptr, stride_qh, stride_qm, stride_kh, stride_kn, stride_vh, stride_vn, stride_oh, stride_om, m, n, start,
    leaves, tiles, chunk, slots, lists, scale, factor,
    G: tl.constexpr, BLOCK_M: tl.constexpr, TILE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    LEAF: tl.constexpr, TMA: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Programs below `slots` are chunks of hot leaves, which start first; the others are leaves.

    With TMA, q_ptr and do_ptr are descriptors over [H * M, D], and M is a multiple of TILE, so that an entry's rows are
    those of its number.
    """
    SPLIT: tl.constexpr = TILE // BLOCK_M
    pid = tl.program_id(0)
    hot = pid < slots
    leaf_id = tl.load(slot_leaf_ptr + pid, mask=hot, other=0)
    if leaf_id >= lists:  # fewer chunks than there could be
        return
    leaf_id = tl.where(hot, leaf_id, pid - slots)
    nth = tl.where(hot, pid - tl.load(slot_start_ptr + leaf_id), 0)
    begin, end = tl.load(offset_ptr + leaf_id), tl.load(offset_ptr + leaf_id + 1)
    if (hot == 0) & (end - begin > chunk):  # its chunks do it
        return
    begin += nth * chunk
    end = tl.minimum(end, begin + chunk)
    kv, leaf = (leaf_id // leaves).to(tl.int64), leaf_id % leaves
    d = tl.arange(0, BLOCK_D)
    j = tl.arange(0, LEAF)
    r = tl.arange(0, BLOCK_M)
    key = leaf * LEAF + j
    inside = key < n
    k = _rows(k_ptr + kv * stride_kh, key, stride_kn, inside, d, D, BLOCK_D)
    v = _rows(v_ptr + kv * stride_vh, key, stride_vn, inside, d, D, BLOCK_D)
    dk = tl.zeros([LEAF, BLOCK_D], tl.float32)
    dv = tl.zeros([LEAF, BLOCK_D], tl.float32)
    for i in tl.range(begin * SPLIT, end * SPLIT, num_stages=STAGES):
        entry = tl.load(entry_ptr + i // SPLIT)
        row = entry * TILE + i % SPLIT * BLOCK_M
        if TMA:
            q, do = q_ptr.load([row, 0]), do_ptr.load([row, 0])
        else:
            head = (entry // tiles).to(tl.int64)
            token = entry % tiles * TILE + i % SPLIT * BLOCK_M + r
            q = _rows(q_ptr + head * stride_qh, token, stride_qm, token < m, d, D, BLOCK_D)
            do = _rows(do_ptr + head * stride_oh, token, stride_om, token < m, d, D, BLOCK_D)
        log, delta = tl.load(log_ptr + row.to(tl.int64) + r), tl.load(delta_ptr + row.to(tl.int64) + r)
        dk, dv = _dkv_step(q, do, k, v, log, delta, dk, dv, inside, scale, False)
    # The tiles in which the leaf lies, of each head of the group.
    low = tl.maximum(leaf * LEAF - start, 0) // TILE
    past = tl.minimum((leaf + 1) * LEAF - 1 - start, m - 1)
    span = tl.where((past >= 0) & (nth == 0), past // TILE - low + 1, 0)
    for i in tl.range(0, G * span * SPLIT, num_stages=1):
        head, t = kv * G + i // (span * SPLIT), low + i // SPLIT % span
        token = t * TILE + i % SPLIT * BLOCK_M + r
        if TMA:
            row = (head * tiles + t).to(tl.int32) * TILE + i % SPLIT * BLOCK_M
            q, do = q_ptr.load([row, 0]), do_ptr.load([row, 0])
        else:
            q = _rows(q_ptr + head * stride_qh, token, stride_qm, token < m, d, D, BLOCK_D)
            do = _rows(do_ptr + head * stride_oh, token, stride_om, token < m, d, D, BLOCK_D)
        log, delta = tl.load(log_ptr + head * tiles * TILE + token), tl.load(delta_ptr + head * tiles * TILE + token)
        seen = key[:, None] <= (start + token)[None, :]
        dk, dv = _dkv_step(q, do, k, v, log, delta, dk, dv, seen, scale, True)
    if hot:
        at = (pid.to(tl.int64) * 2 * LEAF + j)[:, None] * D + d[None, :]
        mask = (j < LEAF)[:, None] & (d < D)[None, :]
        tl.store(part_ptr + at, dk, mask=mask)
        tl.store(part_ptr + at + LEAF * D, dv, mask=mask)
    else:
        at = (kv * n + key)[:, None] * D + d[None, :]
        mask = inside[:, None] & (d < D)[None, :]
        tl.store(dk_ptr + at, (dk * factor).to(dk_ptr.dtype.element_ty), mask=mask)
        tl.store(dv_ptr + at, dv.to(dv_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["n", "leaves", "chunk", "lists"])
def add_chunks_kernel(
    part_ptr, dk_ptr, dv_ptr, offset_ptr, slot_leaf_ptr, slot_start_ptr, n, leaves, chunk, lists, factor,
    D: tl.constexpr, BLOCK_D: tl.constexpr, LEAF: tl.constexpr,
):  # fmt: skip
    """The chunks of a hot leaf, added in their order by the program of the first."""
    pid = tl.program_id(0)
    leaf_id = tl.load(slot_leaf_ptr + pid)
    if leaf_id >= lists:
        return
    if tl.load(slot_start_ptr + leaf_id) != pid:
        return
    chunks = (tl.load(offset_ptr + leaf_id + 1) - tl.load(offset_ptr + leaf_id) + chunk - 1) // chunk
    kv, leaf = (leaf_id // leaves).to(tl.int64), leaf_id % leaves
    j, d = tl.arange(0, LEAF), tl.arange(0, BLOCK_D)
    dk = tl.zeros([LEAF, BLOCK_D], tl.float32)
    dv = tl.zeros([LEAF, BLOCK_D], tl.float32)
    mask = (j < LEAF)[:, None] & (d < D)[None, :]
    for c in range(chunks):
        at = ((pid + c).to(tl.int64) * 2 * LEAF + j)[:, None] * D + d[None, :]
        dk += tl.load(part_ptr + at, mask=mask, other=0.0)
        dv += tl.load(part_ptr + at + LEAF * D, mask=mask, other=0.0)
    key = leaf * LEAF + j
    at = (kv * n + key)[:, None] * D + d[None, :]
    mask = (key < n)[:, None] & (d < D)[None, :]
    tl.store(dk_ptr + at, (dk * factor).to(dk_ptr.dtype.element_ty), mask=mask)
    tl.store(dv_ptr + at, dv.to(dv_ptr.dtype.element_ty), mask=mask)


@dataclass(frozen=True)
class BackwardConfig:
    """How the launches are cut up.

    Attributes:
        dq_rows: queries of a program, a divisor of the tile.
        dq_keys: keys of an iteration, at least a leaf; with descriptors always a leaf.
        dkv_rows: queries of an iteration, a divisor of the tile.
        tma: rows and leaves arrive through tensor descriptors, where shapes allow it.
        chunk: readers of a leaf that one program adds up; None: bounded by the workspace.
    """

    dq_rows: int
    dq_keys: int
    dq_warps: int
    dq_stages: int
    dkv_rows: int
    dkv_warps: int
    dkv_stages: int
    tma: bool = False
    chunk: int | None = None


def backward_config(k: Tensor, leaf: int) -> BackwardConfig:
    """What registers and shared memory hold; with descriptors on Hopper."""
    dim, wide = next_power_of_2(k.shape[-1]), k.dtype == torch.float32
    shared = 0 if interpreting() else torch.cuda.get_device_properties(k.device).shared_memory_per_block_optin
    hopper = not interpreting() and torch.cuda.get_device_capability(k.device)[0] >= 9 and shared > 200 << 10
    if hopper and leaf == 64 and dim == k.shape[-1] and dim in (64, 128):
        return BackwardConfig(128, 64, 8, 2, 64, 4, 2 if dim == 128 else 3, tma=True)
    if hopper and leaf == 64 and dim == 256:
        return BackwardConfig(64, 64, 8, 1, 32, 8, 2, tma=True)
    if wide or dim > 128 or shared < 128 << 10:
        return BackwardConfig(64, max(32, leaf), 8, 1, 32 if dim > 128 else 64, 8, 1)
    return BackwardConfig(128, max(64, leaf), 8, 2, 64, 8 if leaf == 128 else 4, 2)


@dataclass
class Readers:
    """The transposed selection: which tiles read each leaf.

    Attributes:
        entry_E: int32, numbers head * tiles + tile, by leaf and ascending in each.
        offset: int32 [K * leaves + 1], where a leaf's begin; leaves are numbered key head by key head.
        slot_leaf: int32 [slots], the leaf of each chunk of a hot leaf; K * leaves where there are fewer.
        slot_start: int32 [K * leaves], a hot leaf's first chunk.
        chunk: readers in a chunk; a leaf with more is hot.
    """

    entry_E: Tensor
    offset: Tensor
    slot_leaf: Tensor
    slot_start: Tensor
    chunk: int


def readers(chosen: Selection, kv_heads: int, leaves: int, chunk: int | None = None) -> Readers:
    """Transposes a selection on its device, without waiting for it: sizes are bounds known from the shapes.

    Args:
        chosen: of `triton_select.select`.
        kv_heads: K.
        leaves: of a sequence.
        chunk: see `Readers`; None: few enough chunks that the workspace stays small.
    """
    heads, tiles, keep = chosen.index_HTL.shape
    dev, lists, groups = chosen.index_HTL.device, kv_heads * leaves, heads // kv_heads
    listed = torch.arange(keep, device=dev, dtype=torch.int32) < chosen.count_HT[..., None]
    first = torch.arange(heads, device=dev, dtype=torch.int32) // groups * leaves
    number = torch.where(listed, chosen.index_HTL + first[:, None, None], lists).flatten()
    number, order = torch.sort(number, stable=True)
    entry = (order // max(1, keep)).to(torch.int32)
    offset = torch.searchsorted(number, torch.arange(lists + 1, device=dev, dtype=torch.int32), out_int32=True)
    total = heads * tiles * keep
    chunk = max(CHUNK, -(-2 * total // SLOTS)) if chunk is None else chunk
    # A leaf has at most groups * tiles readers, and a hot one fewer than two chunks per `chunk` readers.
    most = min(2 * total // chunk, lists * -(-groups * tiles // chunk)) if groups * tiles > chunk else 0
    length = offset.diff()
    chunks = torch.where(length > chunk, (length + chunk - 1) // chunk, 0).to(torch.int32)
    ends = chunks.cumsum(0, dtype=torch.int32)
    slots = torch.arange(most, device=dev, dtype=torch.int32)
    return Readers(entry, offset, torch.searchsorted(ends, slots, right=True, out_int32=True), ends - chunks, chunk)


@dataclass
class RowStats:
    """Of each row, padded to whole tiles: log2-sum-exp (infinite for padding) and dO . O less the gradient of lse.

    Attributes:
        log_HTM: float32 [H, T, 128].
        delta_HTM: float32 [H, T, 128].
    """

    log_HTM: Tensor
    delta_HTM: Tensor


def row_stats(do_HMD: Tensor, out_HMD: Tensor, lse_HM: Tensor, dlse_HM: Tensor | None) -> RowStats:
    """See `RowStats`; `do_HMD` and `out_HMD` have the same strides."""
    heads, m, dim = out_HMD.shape
    tiles = triton.cdiv(m, TILE)
    log = torch.empty(heads, tiles, TILE, device=out_HMD.device, dtype=torch.float32)
    delta = torch.empty_like(log)
    rows_kernel[(tiles, heads)](
        do_HMD, out_HMD, lse_HM, lse_HM if dlse_HM is None else dlse_HM, log, delta, out_HMD.stride(0),
        out_HMD.stride(1), m, TILE=TILE, D=dim, BLOCK_D=next_power_of_2(dim), HAS_DLSE=dlse_HM is not None, num_warps=8,
    )  # fmt: skip
    return RowStats(log, delta)


def _rows_descriptor(x: Tensor, rows: int) -> TensorDescriptor:
    dim = x.shape[-1]
    return TensorDescriptor(x.view(-1, dim), [x.shape[0] * x.shape[1], dim], [dim, 1], [rows, dim])


def backward_q(
    q_HMD: Tensor, k_KND: Tensor, v_KND: Tensor, do_HMD: Tensor, rows: RowStats, chosen: Selection, scale: float,
    leaf: int, config: BackwardConfig | None = None,
) -> Tensor:  # fmt: skip
    """Gradient of the queries, contiguous; for the arguments see `backward_kv`."""
    (heads, m, dim), (k_heads, n, _) = q_HMD.shape, k_KND.shape
    config = backward_config(k_KND, leaf) if config is None else config
    dq = torch.empty(heads, m, dim, device=q_HMD.device, dtype=q_HMD.dtype)
    tma = config.tma and n % leaf == 0 and dim == next_power_of_2(dim) and _whole(k_KND) and _whole(v_KND)
    keys, values = (_rows_descriptor(x, leaf) for x in (k_KND, v_KND)) if tma else (k_KND, v_KND)
    dq_kernel[(triton.cdiv(m, config.dq_rows), heads)](
        q_HMD, keys, values, do_HMD, rows.log_HTM, rows.delta_HTM, dq, chosen.index_HTL, chosen.count_HT,
        q_HMD.stride(0), q_HMD.stride(1), k_KND.stride(0), k_KND.stride(1), v_KND.stride(0), v_KND.stride(1),
        do_HMD.stride(0), do_HMD.stride(1), m, n, n - m, triton.cdiv(m, TILE), chosen.index_HTL.shape[-1],
        scale * LOG2_E, scale, n, G=heads // k_heads, BLOCK_M=config.dq_rows, TILE=TILE, D=dim,
        BLOCK_D=next_power_of_2(dim), LEAF=leaf, STEP=1 if tma else max(1, config.dq_keys // leaf), TMA=tma,
        STAGES=config.dq_stages, num_warps=config.dq_warps, num_stages=config.dq_stages,
    )  # fmt: skip
    return dq


def backward_kv(
    q_HMD: Tensor, k_KND: Tensor, v_KND: Tensor, do_HMD: Tensor, rows: RowStats, read_by: Readers, scale: float,
    leaf: int, config: BackwardConfig | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of keys and values, contiguous.

    Args:
        q_HMD, k_KND, v_KND, do_HMD: any strides with a dense last axis; descriptors need whole, contiguous tensors.
        rows: of `row_stats`.
        read_by: of `readers` with the selection of the forward pass.
        scale: factor of the scores.
        leaf: of the selection.
        config: how to cut the work up; None: `backward_config`.
    """
    (heads, m, dim), (k_heads, n, _) = q_HMD.shape, k_KND.shape
    config = backward_config(k_KND, leaf) if config is None else config
    dk, dv = (torch.empty(k_heads, n, dim, device=k_KND.device, dtype=k_KND.dtype) for _ in range(2))
    slots, lists, block_d = read_by.slot_leaf.shape[0], read_by.slot_start.shape[0], next_power_of_2(dim)
    part = torch.empty(slots, 2, leaf, dim, device=k_KND.device, dtype=torch.float32)
    tma = config.tma and m % TILE == 0 and dim == block_d and _whole(q_HMD) and _whole(do_HMD)
    q, do = (_rows_descriptor(x, config.dkv_rows) for x in (q_HMD, do_HMD)) if tma else (q_HMD, do_HMD)
    leaves = triton.cdiv(n, leaf)
    dkv_kernel[(slots + lists,)](
        q, k_KND, v_KND, do, rows.log_HTM, rows.delta_HTM, dk, dv, part, read_by.entry_E, read_by.offset,
        read_by.slot_leaf, read_by.slot_start, q_HMD.stride(0), q_HMD.stride(1), k_KND.stride(0), k_KND.stride(1),
        v_KND.stride(0), v_KND.stride(1), do_HMD.stride(0), do_HMD.stride(1), m, n, n - m, leaves,
        triton.cdiv(m, TILE), read_by.chunk, slots, lists, scale * LOG2_E, scale, G=heads // k_heads,
        BLOCK_M=config.dkv_rows, TILE=TILE, D=dim, BLOCK_D=block_d, LEAF=leaf, TMA=tma, STAGES=config.dkv_stages,
        num_warps=config.dkv_warps, num_stages=config.dkv_stages,
    )  # fmt: skip
    if slots:
        add_chunks_kernel[(slots,)](
            part, dk, dv, read_by.offset, read_by.slot_leaf, read_by.slot_start, n, leaves, read_by.chunk, lists, scale,
            D=dim, BLOCK_D=block_d, LEAF=leaf, num_warps=4,
        )  # fmt: skip
    return dk, dv


def _whole(x: Tensor) -> bool:
    return x.is_contiguous() and x.data_ptr() % 16 == 0
