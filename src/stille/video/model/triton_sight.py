"""Triton: what the perception model computes on GPUs besides products and convolutions; see `kernels` for the meaning.

Shapes: B cameras, Q objects, h heads, D width of a head, C = h D, P points, N leaves of an object, E tokens of a leaf,
R rows of memory, L leaves of a row. Names that end in an underscore are sizes rounded up to powers of two.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# Triton's language is Python in looks only; its types are beyond the checker.

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from stille.kernels.triton_support import next_power_of_2


@triton.jit
def _corner(map_ptr, cell_HP, share_HP, channel_HD, inside_HPD):
    place = cell_HP[:, :, None] + channel_HD[:, None, :]
    return tl.load(map_ptr + place, mask=inside_HPD, other=0.0).to(tl.float32) * share_HP[:, :, None]


@triton.jit
def _of_map(
    map_ptr, box_ptr, said_ptr, top_H, total_H, at_HP, real_HP, channel_HD, inside_HPD,
    WEIGHTS: tl.constexpr, C: tl.constexpr, HIGH: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """fp32 [h, P, D]: weighted samples of one picture's map, its numbers [HIGH, WIDE, C]."""
    centre_x, centre_y = tl.load(box_ptr), tl.load(box_ptr + 1)
    half_x, half_y = tl.load(box_ptr + 2) / 2, tl.load(box_ptr + 3) / 2
    off_x = tl.load(said_ptr + 2 * at_HP, mask=real_HP, other=0.0).to(tl.float32)
    off_y = tl.load(said_ptr + 2 * at_HP + 1, mask=real_HP, other=0.0).to(tl.float32)
    share = tl.load(said_ptr + WEIGHTS + at_HP, mask=real_HP, other=float("-inf")).to(tl.float32)
    share = tl.exp(share - top_H[:, None]) / total_H[:, None]
    x = tl.minimum(tl.maximum((centre_x + off_x * half_x) * WIDE - 0.5, 0.0), WIDE - 1.0)
    y = tl.minimum(tl.maximum((centre_y + off_y * half_y) * HIGH - 0.5, 0.0), HIGH - 1.0)
    left, upper = tl.floor(x), tl.floor(y)
    x, y = x - left, y - upper
    column, row = left.to(tl.int32), upper.to(tl.int32)
    right, below = tl.minimum(column + 1, WIDE - 1), tl.minimum(row + 1, HIGH - 1)  # with a weight of 0 at the edge
    out = _corner(map_ptr, (row * WIDE + column) * C, share * (1 - x) * (1 - y), channel_HD, inside_HPD)
    out += _corner(map_ptr, (row * WIDE + right) * C, share * x * (1 - y), channel_HD, inside_HPD)
    out += _corner(map_ptr, (below * WIDE + column) * C, share * (1 - x) * y, channel_HD, inside_HPD)
    return out + _corner(map_ptr, (below * WIDE + right) * C, share * x * y, channel_HD, inside_HPD)


@triton.jit
def box_kernel(
    fine_ptr, middle_ptr, coarse_ptr,  # [B, HIGH, WIDE, C] each
    box_ptr,  # fp32 [B, Q, 4]
    said_ptr,  # [B, Q, h 3 P 3]: offsets, then weights
    out_ptr,  # [B, Q, C]
    Q, HEADS: tl.constexpr, POINTS: tl.constexpr, D: tl.constexpr,
    HIGH_0: tl.constexpr, WIDE_0: tl.constexpr, HIGH_1: tl.constexpr, WIDE_1: tl.constexpr,
    HIGH_2: tl.constexpr, WIDE_2: tl.constexpr,
    H_: tl.constexpr, P_: tl.constexpr, D_: tl.constexpr, X_: tl.constexpr,
):  # fmt: skip
    C: tl.constexpr = HEADS * D
    EACH: tl.constexpr = 3 * POINTS  # samples of a head
    WEIGHTS: tl.constexpr = 2 * HEADS * EACH
    at = tl.program_id(0).to(tl.int64)
    b = at // Q
    head, point, d, sample = tl.arange(0, H_), tl.arange(0, P_), tl.arange(0, D_), tl.arange(0, X_)
    said_ptr += at * (3 * HEADS * EACH)
    box_ptr += at * 4
    all_real = (head < HEADS)[:, None] & (sample < EACH)[None, :]
    logit = tl.load(said_ptr + WEIGHTS + head[:, None] * EACH + sample[None, :], mask=all_real, other=float("-inf"))
    logit = logit.to(tl.float32)
    top = tl.max(tl.where((head < HEADS)[:, None], logit, 0.0), 1)
    total = tl.sum(tl.exp(logit - top[:, None]), 1)
    total = tl.where(head < HEADS, total, 1.0)
    real = (head < HEADS)[:, None] & (point < POINTS)[None, :]
    there = (head < HEADS)[:, None] & (d < D)[None, :]
    inside = real[:, :, None] & there[:, None, :]
    channel = head[:, None] * D + d[None, :]
    place = head[:, None] * EACH + point[None, :]
    out = _of_map(
        fine_ptr + b * (HIGH_0 * WIDE_0 * C), box_ptr, said_ptr, top, total, place, real, channel, inside,
        WEIGHTS, C, HIGH_0, WIDE_0,
    )  # fmt: skip
    out += _of_map(
        middle_ptr + b * (HIGH_1 * WIDE_1 * C), box_ptr, said_ptr, top, total, place + POINTS, real, channel, inside,
        WEIGHTS, C, HIGH_1, WIDE_1,
    )  # fmt: skip
    out += _of_map(
        coarse_ptr + b * (HIGH_2 * WIDE_2 * C), box_ptr, said_ptr, top, total, place + 2 * POINTS, real, channel,
        inside, WEIGHTS, C, HIGH_2, WIDE_2,
    )  # fmt: skip
    tl.store(out_ptr + at * C + channel, tl.sum(out, 1).to(out_ptr.dtype.element_ty), mask=there)


def sample_boxes(maps: list[Tensor], box_BQ4: Tensor, said_BQX: Tensor, heads: int, points: int) -> Tensor:
    """See `kernels.sampled_boxes`; maps are channels-last, everything else contiguous."""
    b, q, _ = box_BQ4.shape
    c = maps[0].shape[1]
    out_BQC = said_BQX.new_empty(b, q, c)
    sizes = [side for one in maps for side in one.shape[2:]]
    rounded = [next_power_of_2(n) for n in (heads, points, c // heads, 3 * points)]
    box_kernel[(b * q,)](*maps, box_BQ4, said_BQX, out_BQC, q, heads, points, c // heads, *sizes, *rounded)
    return out_BQC


@triton.jit
def leaf_logits_kernel(
    q_ptr,  # [B, h, Q, D], by strides
    long_ptr,  # [R, L, E, 2, C]
    row_ptr,  # int64 [B]
    leaf_ptr, count_ptr,  # int64 [B, Q, N]
    out_ptr,  # fp32 [B, h, Q, N E]
    Q, LEAVES, s_b, s_h, s_q, s_d,
    N: tl.constexpr, E: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr,
    E_: tl.constexpr, H_: tl.constexpr, D_: tl.constexpr,
):  # fmt: skip
    C: tl.constexpr = HEADS * D
    at, n = tl.program_id(0).to(tl.int64), tl.program_id(1)
    b, q = at // Q, at % Q
    token, head, d = tl.arange(0, E_), tl.arange(0, H_), tl.arange(0, D_)
    real = (head < HEADS)[:, None] & (d < D)[None, :]
    count = tl.load(count_ptr + at * N + n)
    first = (tl.load(row_ptr + b) * LEAVES + tl.load(leaf_ptr + at * N + n)) * (E * 2 * C)
    query = tl.load(q_ptr + b * s_b + q * s_q + head[:, None] * s_h + d[None, :] * s_d, mask=real, other=0.0)
    place = token[:, None, None] * (2 * C) + (head[:, None] * D + d[None, :])[None, :, :]
    key = tl.load(long_ptr + first + place, mask=(token < count)[:, None, None] & real[None, :, :], other=0.0)
    found = tl.sum(key.to(tl.float32) * query.to(tl.float32)[None, :, :], 2)  # [E, h]
    to = ((b * HEADS + head[None, :]) * Q + q) * (N * E) + n * E + token[:, None]
    tl.store(out_ptr + to, found, mask=(token < E)[:, None] & (head < HEADS)[None, :])


@triton.jit
def leaf_values_kernel(
    weight_ptr,  # [B, h, Q, N E], by strides
    long_ptr, row_ptr, leaf_ptr, count_ptr,  # as above
    out_ptr,  # [B, Q, C]
    Q, LEAVES, s_b, s_h, s_q, s_i,
    N: tl.constexpr, E: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr,
    E_: tl.constexpr, H_: tl.constexpr, D_: tl.constexpr,
):  # fmt: skip
    C: tl.constexpr = HEADS * D
    at = tl.program_id(0).to(tl.int64)
    b, q = at // Q, at % Q
    token, head, d = tl.arange(0, E_), tl.arange(0, H_), tl.arange(0, D_)
    real = (head < HEADS)[:, None] & (d < D)[None, :]
    channel = head[:, None] * D + d[None, :]
    place = token[:, None, None] * (2 * C) + C + channel[None, :, :]
    row = tl.load(row_ptr + b) * LEAVES
    weight_ptr += b * s_b + q * s_q
    out = tl.zeros([E_, H_, D_], tl.float32)
    for n in range(N):
        there = token < tl.load(count_ptr + at * N + n)
        first = (row + tl.load(leaf_ptr + at * N + n)) * (E * 2 * C)
        value = tl.load(long_ptr + first + place, mask=there[:, None, None] & real[None, :, :], other=0.0)
        weight = tl.load(
            weight_ptr + head[None, :] * s_h + (n * E + token)[:, None] * s_i,
            mask=there[:, None] & (head < HEADS)[None, :], other=0.0,
        )  # fmt: skip
        out += value.to(tl.float32) * weight.to(tl.float32)[:, :, None]
    tl.store(out_ptr + at * C + channel, tl.sum(out, 0).to(out_ptr.dtype.element_ty), mask=real)


def leaf_logits(q_BhQD: Tensor, long_RLE2C: Tensor, rows_B: Tensor, leaf_BQN: Tensor, count_BQN: Tensor) -> Tensor:
    """See `kernels.Leaves.logits`."""
    b, heads, q, d = q_BhQD.shape
    _, leaves, e, _, _ = long_RLE2C.shape
    n = leaf_BQN.shape[2]
    out = q_BhQD.new_empty(b, heads, q, n * e, dtype=torch.float32)
    leaf_logits_kernel[(b * q, n)](
        q_BhQD, long_RLE2C, rows_B, leaf_BQN, count_BQN, out, q, leaves, *q_BhQD.stride(), n, e, heads, d,
        *(next_power_of_2(x) for x in (e, heads, d)),
    )  # fmt: skip
    return out


def leaf_values(weight_BhQI: Tensor, long_RLE2C: Tensor, rows_B: Tensor, leaf_BQN: Tensor, count_BQN: Tensor) -> Tensor:
    """See `kernels.Leaves.values`; [B, Q, C]."""
    b, heads, q, _ = weight_BhQI.shape
    _, leaves, e, _, c = long_RLE2C.shape
    n, d = leaf_BQN.shape[2], c // heads
    out = long_RLE2C.new_empty(b, q, c)
    leaf_values_kernel[(b * q,)](
        weight_BhQI, long_RLE2C, rows_B, leaf_BQN, count_BQN, out, q, leaves, *weight_BhQI.stride(), n, e, heads, d,
        *(next_power_of_2(x) for x in (e, heads, d)),
    )  # fmt: skip
    return out


@triton.jit
def _first_tap(place, scale, support):
    """Where the triangle around a target pixel's centre begins, as in torch's antialiased scaling; and that centre."""
    centre = scale * (place.to(tl.float32) + 0.5)
    return tl.maximum(tl.floor(centre - support + 0.5), 0.0), centre


@triton.jit
def _share(place, centre, support, size):
    """Of a pixel; none beyond the last one."""
    return tl.where(place < size, tl.maximum(1.0 - tl.abs((place - centre + 0.5) / support), 0.0), 0.0)


@triton.jit
def letterbox_kernel(
    picture_ptr,  # uint8 [N, high, wide, 3]
    where_ptr,  # int64 [N]: which picture of the batch it becomes
    out_ptr,  # uint8 [B, HEIGHT, WIDTH, 3]
    high, wide, left, top, to_wide, to_high, scale_x, scale_y, taps_x, taps_y,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, GREY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n, line = tl.program_id(0).to(tl.int64), tl.program_id(1)
    number = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    x, y, colour = number // 3 - left, line - top, number % 3
    down = tl.zeros([BLOCK], tl.int32) + y
    inside = (x >= 0) & (x < to_wide) & (down >= 0) & (down < to_high)
    support_x, support_y = tl.maximum(scale_x, 1.0), tl.maximum(scale_y, 1.0)
    first_x, centre_x = _first_tap(x, scale_x, support_x)
    first_y, centre_y = _first_tap(y, scale_y, support_y)
    picture_ptr += n * high * wide * 3
    column, total_x = first_x.to(tl.int32), tl.zeros([BLOCK], tl.float32)
    row = first_y.to(tl.int32)
    for i in range(taps_x):
        total_x += _share(first_x + i, centre_x, support_x, wide)
    out, total_y = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for j in range(taps_y):
        line_ptr = picture_ptr + tl.minimum(row + j, high - 1) * wide * 3
        across = tl.zeros([BLOCK], tl.float32)
        for i in range(taps_x):
            pixel = tl.load(line_ptr + tl.minimum(column + i, wide - 1) * 3 + colour, mask=inside, other=0)
            across += _share(first_x + i, centre_x, support_x, wide) * pixel.to(tl.float32)
        share = _share(first_y + j, centre_y, support_y, high)
        out += share * across
        total_y += share
    out = tl.minimum(tl.floor(out / tl.where(inside, total_x * total_y, 1.0) + 0.5), 255.0)
    out = tl.where(inside, out, GREY).to(tl.uint8)
    at = out_ptr + (tl.load(where_ptr + n) * HEIGHT + line) * (WIDTH * 3) + number
    tl.store(at, out, mask=number < WIDTH * 3)


def letterbox(picture_NHW3: Tensor, where_N: Tensor, out_BHW3: Tensor, fit: Any, grey: int) -> None:
    """See `kernels.letterbox`."""
    count, high, wide, _ = picture_NHW3.shape
    _, height, width, _ = out_BHW3.shape
    scale = wide / fit.wide, high / fit.high
    # A triangle of half width s covers at most 2 s + 1 pixels; only one has a share where nothing is scaled.
    taps = (1 if one == 1.0 else int(2 * max(one, 1.0)) + 1 for one in scale)
    block = 1024
    letterbox_kernel[(count, height, triton.cdiv(width * 3, block))](
        picture_NHW3, where_N, out_BHW3, high, wide, fit.left, fit.top, fit.wide, fit.high, *scale, *taps,
        height, width, grey, block,
    )  # fmt: skip
