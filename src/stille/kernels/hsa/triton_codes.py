"""Triton: codes of cached keys, and queries made ready to be scored against them.

Both are a rotation by the same matrix, so one launch does both. A query head becomes two rows of integers: its rotated
components are rounded to 8 bits, what that leaves is rounded to 8 bits more, and both meet the keys' sign bits in
integer tensor cores, exactly.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# Triton's language is Python in looks only; its types are beyond the checker.

import triton
import triton.language as tl
from torch import Tensor

from stille.kernels.triton_support import PAGE, next_power_of_2

LOG2_E = 1.4426950408889634


@triton.jit
def encode_query(
    q_ptr, rotation_ptr, code_ptr, coef_ptr, row, cell, kv_head, q_stride, scale_log2,
    G: tl.constexpr, GP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Rotate and quantise the query heads of a group: x.sign_j = alpha (254 coarse + fine).bits_j - gamma.

    Component k of a row belongs to the bit that `triton_decode.unpack` puts there. Bits weigh 1, 2, 4 or 8 there, which
    saves it shifts; here the components are divided by that.
    """
    WORDS: tl.constexpr = BLOCK_D // 32
    k = tl.arange(0, BLOCK_D)
    bit = k // (8 * WORDS) * 2 + k // 4 % 2
    dim = 8 * (k // 8 % WORDS * 4 + k % 4) + bit
    c = tl.arange(0, 2 * GP)
    head = c // 2
    acc = tl.zeros([BLOCK_D, 2 * GP], tl.float32)
    for first in tl.static_range(0, BLOCK_D, CHUNK):
        e = first + tl.arange(0, CHUNK)
        turn = tl.load(
            rotation_ptr + dim[:, None] * D + e[None, :], mask=(dim < D)[:, None] & (e < D)[None, :], other=0.0
        )
        at = q_ptr + row * q_stride + (kv_head * G + head)[None, :] * D + e[:, None]
        q = tl.load(at, mask=(head < G)[None, :] & (e < D)[:, None], other=0.0)
        acc = tl.dot(turn, q, acc, input_precision="ieee")
    unit = tl.maximum(tl.max(tl.abs(acc), 0), 1e-30) / 127
    x = acc / ((1 << (bit % 4)).to(tl.float32)[:, None] * unit[None, :])
    coarse = tl.floor(x + 0.5)
    fine = tl.floor((x - coarse) * 254 + 0.5)
    code = tl.where((c % 2 == 0)[None, :], coarse, fine)
    tl.store(code_ptr + (cell * (2 * GP) + c)[None, :] * BLOCK_D + k[:, None], code.to(tl.int8))
    even = c % 2 == 0
    tl.store(coef_ptr + cell * (2 * GP) + head, unit * (2 * scale_log2 / 254), mask=even)
    tl.store(coef_ptr + cell * (2 * GP) + GP + head, tl.sum(acc, 0) * scale_log2, mask=even)


@triton.jit
def encode_leaf(
    k_pages_ptr, rotation_ptr, signs_ptr, scales_ptr, means_ptr, slot, kv_head, kv_heads,
    D: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr, LEAF: tl.constexpr, PAGE: tl.constexpr,
):  # fmt: skip
    """Codes of the leaf that ends with the slot."""
    cell = slot // PAGE * kv_heads + kv_head
    place = slot % PAGE // LEAF
    t = tl.arange(0, LEAF)
    r = tl.arange(0, BLOCK_D)
    key = cell * PAGE + place * LEAF + t
    acc = tl.zeros([LEAF, BLOCK_D], tl.float32)
    for first in tl.static_range(0, BLOCK_D, CHUNK):
        e = first + tl.arange(0, CHUNK)
        stored = tl.load(k_pages_ptr + key[:, None] * D + e[None, :], mask=(e < D)[None, :], other=0.0)
        mean = (tl.sum(stored.to(tl.float32), 0) / LEAF).to(stored.dtype)
        tl.store(means_ptr + (cell * (PAGE // LEAF) + place) * D + e, mean, mask=e < D)
        centred = (stored.to(tl.float32) - mean.to(tl.float32)[None, :]).to(stored.dtype)
        turn = tl.load(rotation_ptr + r[None, :] * D + e[:, None], mask=(r < D)[None, :] & (e < D)[:, None], other=0.0)
        acc = tl.dot(centred, turn, acc, input_precision="ieee")
    bits = (acc >= 0).to(tl.int32) << (r % 8)[None, :]
    packed = tl.sum(tl.reshape(bits, [LEAF, BLOCK_D // 8, 8]), 2)
    b = tl.arange(0, BLOCK_D // 8)
    tl.store(signs_ptr + key[:, None] * (D // 8) + b[None, :], packed.to(tl.uint8), mask=(b < D // 8)[None, :])
    size = tl.sum(tl.abs(acc), 1) / D
    tl.store(scales_ptr + key, tl.minimum(size, 65504.0).to(scales_ptr.dtype.element_ty))


@triton.jit(do_not_specialize=["queries", "budget"])
def prepare_kernel(
    q_ptr, lengths_ptr, rotation_ptr, code_ptr, coef_ptr, k_pages_ptr, signs_ptr, scales_ptr, means_ptr, slots_ptr,
    queries, q_stride, rotation_stride, budget, scale_log2,
    G: tl.constexpr, GP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr, LEAF: tl.constexpr,
    PAGE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Programs below `queries` encode queries, the others the leaf of a slot, if it is the leaf's last."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    i = tl.program_id(0)
    kv_head, kv_heads = tl.program_id(1), tl.num_programs(1)
    turn_ptr = rotation_ptr + kv_head * rotation_stride
    if i < queries:
        if tl.load(lengths_ptr + i) > budget:  # else everything is read and nothing scored
            encode_query(
                q_ptr, turn_ptr, code_ptr, coef_ptr, i.to(tl.int64), i.to(tl.int64) * kv_heads + kv_head, kv_head,
                q_stride, scale_log2, G, GP, D, BLOCK_D, CHUNK,
            )  # fmt: skip
    else:
        slot = tl.load(slots_ptr + i - queries).to(tl.int64)
        if (slot >= 0) & (slot % LEAF == LEAF - 1):
            encode_leaf(
                k_pages_ptr, turn_ptr, signs_ptr, scales_ptr, means_ptr, slot, kv_head, kv_heads, D, BLOCK_D, CHUNK,
                LEAF, PAGE,
            )  # fmt: skip


def padded_width(head_dim: int) -> int:
    """Components of a query row in the kernels."""
    return max(32, next_power_of_2(head_dim))


def padded_group(group: int) -> int:
    """Query heads of a group in the kernels: two rows each, and a tensor core's tile has eight."""
    return max(4, next_power_of_2(group))


def prepare(
    k_pages: Tensor,
    signs: Tensor,
    scales: Tensor,
    means: Tensor,
    rotation: Tensor,
    slots_N: Tensor | None,
    leaf: int,
    *,
    q_SHD: Tensor | None = None,
    lengths_S: Tensor | None = None,
    queries: int = 0,
    code: Tensor | None = None,
    coef: Tensor | None = None,
    scale: float = 1.0,
    budget: int = 0,
    pdl: bool = False,
) -> None:
    """Encode the leaves that end with one of the slots, and the first `queries` rows of q. One launch."""
    kv_heads, dim = k_pages.shape[1], k_pages.shape[3]
    group = 1 if q_SHD is None else q_SHD.shape[1] // kv_heads
    slots = 0 if slots_N is None else slots_N.shape[0]
    width = padded_width(dim)
    extra = {"launch_pdl": True} if pdl else {}
    if queries + slots:
        prepare_kernel[(queries + slots, kv_heads)](  # what stands for a missing tensor is never read
            k_pages if q_SHD is None else q_SHD, slots_N if lengths_S is None else lengths_S, rotation,
            signs if code is None else code, scales if coef is None else coef, k_pages, signs, scales, means,
            lengths_S if slots_N is None else slots_N, queries,
            0 if q_SHD is None else q_SHD.stride(0), rotation.stride(0) if rotation.ndim == 3 else 0, budget,
            scale * LOG2_E,
            G=group, GP=padded_group(group), D=dim, BLOCK_D=width, CHUNK=min(width, 64), LEAF=leaf, PAGE=PAGE,
            PDL=pdl, num_warps=4, **extra,
        )  # fmt: skip
