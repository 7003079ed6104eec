"""Triton: codes of cached keys, and queries made ready to be scored against them.

Both are a rotation by the same matrix. A query head becomes two rows of integers: its rotated components are rounded
to 8 bits, what that leaves is rounded to 8 bits more, and both meet the keys' codes in integer tensor cores, exactly.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportAssignmentType=false
# Triton's language is Python in looks only; its types are beyond the checker.

import triton
import triton.language as tl
from torch import Tensor

from stille.kernels.hsa.paged_reference import FAR, planes
from stille.kernels.triton_support import PAGE, next_power_of_2

LOG2_E = 1.4426950408889634
_FAR = tl.constexpr(FAR)


@triton.jit
def turn_hadamard(x, ROWS: tl.constexpr, D: tl.constexpr, STEPS: tl.constexpr):
    """x [ROWS, D = 2^STEPS] times the Hadamard matrix of entries +-1."""
    for i in tl.static_range(STEPS):
        pairs = tl.reshape(x, [ROWS * D // (2 << i), 2, 1 << i])
        a, b = tl.split(tl.permute(pairs, (0, 2, 1)))
        x = tl.reshape(tl.permute(tl.join(a + b, a - b), (0, 2, 1)), [ROWS, D])
    return x


@triton.jit
def two_bytes(x):
    """x in -127..127 as coarse + fine / 254, int8, joined in a last axis."""
    NEAREST: tl.constexpr = 12582912.0  # 1.5 * 2^23: added to a small number, its last bits are the nearest integer
    coarse = x + NEAREST
    fine = (x - (coarse - NEAREST)) * 254 + NEAREST
    return tl.join(coarse.to(tl.int32, bitcast=True).to(tl.int8), fine.to(tl.int32, bitcast=True).to(tl.int8))


@triton.jit
def query_codes(x, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, PLANES: tl.constexpr):
    """Quantise rotated query heads [ROWS, BLOCK_D]: x = unit (coarse + fine / 254).

    Returns int8 [PLANES BLOCK_D, 2 ROWS] for keys' signs and [BLOCK_D, 2 ROWS] for leaves' means, coarse and fine side
    by side, and float32 [ROWS]: unit, and the sum over what meets signs. That is x, and x / 2 for a second plane.
    Components come in the orders in which `triton_decode_score` reads signs and means.
    Bits weigh 1, 2, 4 or 8 there, which saves it shifts; here components that meet bits are divided by that.
    """
    CHUNK: tl.constexpr = min(BLOCK_D, 64)
    SIGN_D: tl.constexpr = PLANES * BLOCK_D
    most = tl.maximum(tl.max(tl.abs(x), 1), 1e-30)
    x_unit = x * (127 / most)[:, None]
    of_planes = x_unit
    if PLANES == 2:
        weight = 1 - 0.5 * tl.arange(0, 2).to(tl.float32)
        of_planes = tl.reshape(x_unit[:, None, :] * weight[None, :, None], [ROWS, SIGN_D])
    lighter = (8 >> (tl.arange(0, SIGN_D) % 4)).to(tl.float32) * 0.125
    signs = tl.reshape(two_bytes(of_planes * lighter[None, :]), [ROWS, SIGN_D // 32, 4, 4, 2, 2])
    signs = tl.reshape(tl.permute(signs, (3, 1, 4, 2, 0, 5)), [SIGN_D, 2 * ROWS])
    means = tl.reshape(two_bytes(x_unit), [ROWS, BLOCK_D // CHUNK, 4, CHUNK // 32, 8, 2])
    means = tl.reshape(tl.permute(means, (1, 3, 2, 4, 0, 5)), [BLOCK_D, 2 * ROWS])
    return signs, means, most / 127, tl.sum(x, 1) * (2 - 1 / PLANES)


@triton.jit
def encode_query(
    q_ptr, rotation_ptr, code_ptr, coef_ptr, row, cell, kv_head, q_stride,
    G: tl.constexpr, GP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, PLANES: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """Rotate and quantise the query heads of a group."""
    SIGN_D: tl.constexpr = PLANES * BLOCK_D
    k = tl.arange(0, BLOCK_D)
    g = tl.arange(0, GP)
    acc = tl.zeros([GP, BLOCK_D], tl.float32)
    for first in tl.static_range(0, BLOCK_D, CHUNK):
        e = first + tl.arange(0, CHUNK)
        turn = tl.load(rotation_ptr + k[None, :] * D + e[:, None], mask=(k < D)[None, :] & (e < D)[:, None], other=0.0)
        at = q_ptr + row * q_stride + (kv_head * G + g)[:, None] * D + e[None, :]
        q = tl.load(at, mask=(g < G)[:, None] & (e < D)[None, :], other=0.0)
        acc = tl.dot(q, turn, acc, input_precision="ieee")
    signs, means, unit, total = query_codes(acc, GP, BLOCK_D, PLANES)
    c = tl.arange(0, 2 * GP)
    code_ptr += cell * (2 * GP * (SIGN_D + BLOCK_D))
    tl.store(code_ptr + c[None, :] * SIGN_D + tl.arange(0, SIGN_D)[:, None], signs)
    tl.store(code_ptr + 2 * GP * SIGN_D + c[None, :] * BLOCK_D + k[:, None], means)
    tl.store(coef_ptr + cell * (2 * GP) + g, unit)
    tl.store(coef_ptr + cell * (2 * GP) + GP + g, total)


@triton.jit
def store_signs(at, signs, LEAF: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BYTES: tl.constexpr):
    """Pack one sign per component of each key of a leaf."""
    bits = signs.to(tl.int32) << (tl.arange(0, BLOCK_D) % 8)[None, :]
    packed = tl.sum(tl.reshape(bits, [LEAF, BLOCK_D // 8, 8]), 2)
    b = tl.arange(0, BLOCK_D // 8)
    packed = tl.where((b < D // 8)[None, :], packed, 0).to(tl.uint8)
    tl.store(at[:, None] + b[None, :], packed, mask=(b < BYTES)[None, :])


@triton.jit
def encode_leaf(
    k_pages_ptr, rotation_ptr, signs_ptr, scales_ptr, means_ptr, mean_scales_ptr, slot, kv_head, kv_heads,
    D: tl.constexpr, BLOCK_D: tl.constexpr, PLANES: tl.constexpr, CHUNK: tl.constexpr, LEAF: tl.constexpr,
    PAGE: tl.constexpr,
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
        turn = tl.load(rotation_ptr + r[None, :] * D + e[:, None], mask=(r < D)[None, :] & (e < D)[:, None], other=0.0)
        acc = tl.dot(stored, turn, acc, input_precision="ieee")
    mean = tl.sum(acc, 0) / LEAF
    unit = tl.minimum(tl.max(tl.abs(mean), 0) / 127, 65504.0).to(tl.float16)
    rounded = tl.floor(mean / tl.maximum(unit.to(tl.float32), 1e-30) + 0.5)
    rounded = tl.minimum(tl.maximum(rounded, -127.0), 127.0)
    leaf = cell * (PAGE // LEAF) + place
    tl.store(means_ptr + leaf * D + r, rounded.to(tl.int8), mask=r < D)
    tl.store(mean_scales_ptr + leaf, unit)
    acc -= mean[None, :]
    BYTES: tl.constexpr = (D + 31) // 32 * 4
    at = signs_ptr + key * (PLANES * BYTES)
    positive, size = acc >= 0, tl.abs(acc)
    store_signs(at, positive, LEAF, D, BLOCK_D, BYTES)
    if PLANES == 2:
        far = size > tl.sqrt(tl.sum(acc * acc, 1) / D)[:, None] * _FAR
        store_signs(at + BYTES, positive == far, LEAF, D, BLOCK_D, BYTES)
        level = tl.where(far, 1.5, 0.5)
        squares = tl.where((r < D)[None, :], level * level, 0.0)
        scale = tl.sum(size * level, 1) / tl.sum(squares, 1)
    else:
        scale = tl.sum(size, 1) / D
    tl.store(scales_ptr + key, tl.minimum(scale, 65504.0).to(tl.float16))


@triton.jit
def encode_slot(
    k_pages_ptr, rotation_ptr, rotation_stride, signs_ptr, scales_ptr, means_ptr, mean_scales_ptr, slots_ptr, i,
    kv_head, kv_heads,
    D: tl.constexpr, BLOCK_D: tl.constexpr, PLANES: tl.constexpr, CHUNK: tl.constexpr, LEAF: tl.constexpr,
    PAGE: tl.constexpr,
):  # fmt: skip
    """Codes of the leaf of the i-th slot, if that is the leaf's last."""
    slot = tl.load(slots_ptr + i).to(tl.int64)
    if (slot >= 0) & (slot % LEAF == LEAF - 1):
        encode_leaf(
            k_pages_ptr, rotation_ptr + kv_head * rotation_stride, signs_ptr, scales_ptr, means_ptr, mean_scales_ptr,
            slot, kv_head, kv_heads, D, BLOCK_D, PLANES, CHUNK, LEAF, PAGE,
        )  # fmt: skip


@triton.jit
def encode_slots_kernel(
    k_pages_ptr, rotation_ptr, signs_ptr, scales_ptr, means_ptr, mean_scales_ptr, slots_ptr, rotation_stride,
    D: tl.constexpr, BLOCK_D: tl.constexpr, PLANES: tl.constexpr, CHUNK: tl.constexpr, LEAF: tl.constexpr,
    PAGE: tl.constexpr,
):  # fmt: skip
    encode_slot(
        k_pages_ptr, rotation_ptr, rotation_stride, signs_ptr, scales_ptr, means_ptr, mean_scales_ptr, slots_ptr,
        tl.program_id(0), tl.program_id(1), tl.num_programs(1), D, BLOCK_D, PLANES, CHUNK, LEAF, PAGE,
    )  # fmt: skip


@triton.jit(do_not_specialize=["budget"])
def encode_queries_kernel(
    q_ptr, lengths_ptr, rotation_ptr,
    code_ptr,  # int8 [S, K, 2 GP * (PLANES + 1) * BLOCK_D]: for signs [2 GP, PLANES BLOCK_D], for means [2 GP, BLOCK_D]
    coef_ptr,  # fp32 [S, K, 2, GP]
    q_stride, rotation_stride, budget,
    G: tl.constexpr, GP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, PLANES: tl.constexpr,
    CHUNK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    i = tl.program_id(0)
    kv_head, kv_heads = tl.program_id(1), tl.num_programs(1)
    if tl.load(lengths_ptr + i) > budget:  # else everything is read and nothing scored
        encode_query(
            q_ptr, rotation_ptr + kv_head * rotation_stride, code_ptr, coef_ptr, i.to(tl.int64),
            i.to(tl.int64) * kv_heads + kv_head, kv_head, q_stride, G, GP, D, BLOCK_D, PLANES, CHUNK,
        )  # fmt: skip


def padded_width(head_dim: int) -> int:
    """Components of a query row in the kernels."""
    return max(32, next_power_of_2(head_dim))


def padded_group(group: int) -> int:
    """Query heads of a group in the kernels: two rows each, and a tensor core's tile has eight."""
    return max(4, next_power_of_2(group))


def rotation_stride(rotation: Tensor) -> int:
    """Entries from one key head's matrix to the next."""
    return rotation.stride(0) if rotation.ndim == 3 else 0


def encode_slots(
    k_pages: Tensor,
    signs: Tensor,
    scales: Tensor,
    means: Tensor,
    mean_scales: Tensor,
    rotation: Tensor,
    slots_N: Tensor,
    leaf: int,
) -> None:
    """Encode the leaves that end with one of the slots."""
    kv_heads, dim = k_pages.shape[1], k_pages.shape[3]
    width = padded_width(dim)
    if len(slots_N):
        encode_slots_kernel[(len(slots_N), kv_heads)](
            k_pages, rotation, signs, scales, means, mean_scales, slots_N, rotation_stride(rotation),
            D=dim, BLOCK_D=width, PLANES=planes(dim), CHUNK=min(width, 64), LEAF=leaf, PAGE=PAGE, num_warps=4,
        )  # fmt: skip


def encode_queries(
    q_SHD: Tensor,
    kv_heads: int,
    lengths_S: Tensor,
    queries: int,
    rotation: Tensor,
    code: Tensor,
    coef: Tensor,
    budget: int,
    pdl: bool,
) -> None:
    """Rotate and quantise the first `queries` rows of q, where sequences exceed the budget."""
    _, heads, dim = q_SHD.shape
    group, width = heads // kv_heads, padded_width(dim)
    encode_queries_kernel[(queries, kv_heads)](
        q_SHD, lengths_S, rotation, code, coef, q_SHD.stride(0), rotation_stride(rotation), budget,
        G=group, GP=padded_group(group), D=dim, BLOCK_D=width, PLANES=planes(dim), CHUNK=min(width, 64), PDL=pdl,
        num_warps=4, **({"launch_pdl": True} if pdl else {}),
    )  # fmt: skip
