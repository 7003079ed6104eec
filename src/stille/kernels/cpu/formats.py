"""Packed weights of the CPU kernels: what the numbers mean, in plain torch, and how they lie in memory.

Weights are quantised in groups of 32 consecutive inputs of one output feature:
- int4: w = scale * q + minimum, q in 0..15, scale and minimum binary16. The grid of GGUF's Q4_1, which it reproduces.
- int8: w = scale * q, q in -127..127, scale binary16. The grid of GGUF's Q8_0.

Packed, the unit is a block of 16 output features, one per vector lane, so that neither products nor scales need a
horizontal operation. Within a block, group after group of 32 inputs; within a group, four inputs ("quad") of each of
the 16 features make 64 consecutive bytes, feature after feature:
- int4 group, 320 bytes: 4 x 64 bytes of which the low nibbles are quads 0..3 and the high nibbles quads 4..7, then 16
  scales, then 16 minima.
- int8 block: groups x 8 quads x 64 bytes of q + 128, then groups x 16 scales.

Activations are quantised by the kernels, row by row, to groups of 40 bytes: float32 scale, float32 scale * sum(q),
32 x int8 q.

Shapes: O output features, I input features, G = I / 32 groups.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stille.errors import ConfigError

GROUP = 32
BLOCK = 16
INT4_GROUP_BYTES = 320
INT8_DATA_BYTES = 512
INT8_SCALE_BYTES = 32
X_GROUP_BYTES = 40
BITS = (4, 8)
_LARGEST_HALF = 65504.0


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight matrix on its grid.

    Attributes:
        bits: 4 or 8.
        q_OI: uint8 in 0..15 (int4) or int8 in -127..127 (int8).
        scale_OG: float16.
        min_OG: float16, int4 only.
    """

    bits: int
    q_OI: Tensor
    scale_OG: Tensor
    min_OG: Tensor | None = None


def quantize(weight_OI: Tensor, bits: int) -> QuantizedWeight:
    """Round-to-nearest onto the grid of `bits`.

    Args:
        weight_OI: finite floating-point matrix, I a multiple of 32.
        bits: 4 or 8.

    Raises:
        ConfigError: wrong shape, dtype, bits, or values that are not finite or do not fit binary16 scales.
    """
    if bits not in BITS:
        raise ConfigError(f"weights are packed to 4 or 8 bits, not {bits!r}")
    return (quantize_int4 if bits == 4 else quantize_int8)(weight_OI)


def quantize_int4(weight_OI: Tensor) -> QuantizedWeight:
    """4-bit asymmetric: scale = (max - min) / 15 of each group. Values already on such a grid are kept.

    Raises:
        ConfigError: see `quantize`.
    """
    w_OGK = _groups(weight_OI)
    low, high = torch.aminmax(w_OGK, dim=-1)
    _check_range(low, high)
    scale = ((high - low) / 15).to(torch.float16)
    minimum = low.to(torch.float16)
    q = (w_OGK - minimum.float()[..., None]).mul_(_inverse(scale)[..., None]).round_().clamp_(0, 15)
    return QuantizedWeight(4, q.to(torch.uint8).reshape(weight_OI.shape), scale, minimum)


def quantize_int8(weight_OI: Tensor) -> QuantizedWeight:
    """8-bit symmetric: scale = max|w| / 127 of each group. Values already on such a grid are kept.

    Raises:
        ConfigError: see `quantize`.
    """
    w_OGK = _groups(weight_OI)
    low, high = torch.aminmax(w_OGK, dim=-1)
    _check_range(low, high)
    scale = (torch.maximum(high, -low) / 127).to(torch.float16)
    q = (w_OGK * _inverse(scale)[..., None]).round_().clamp_(-127, 127)
    return QuantizedWeight(8, q.to(torch.int8).reshape(weight_OI.shape), scale)


def dequantize(weight: QuantizedWeight) -> Tensor:
    """float32 weight_OI."""
    w_OGK = weight.q_OI.float().unflatten(1, (-1, GROUP)) * weight.scale_OG.float()[..., None]
    if weight.min_OG is not None:
        w_OGK += weight.min_OG.float()[..., None]
    return w_OGK.flatten(1)


def packed_bytes(out_features: int, in_features: int, bits: int) -> int:
    """Size of a packed matrix; output features are padded to whole blocks."""
    blocks, groups = -(-out_features // BLOCK), in_features // GROUP
    per_block = groups * INT4_GROUP_BYTES if bits == 4 else _int8_block_bytes(groups)
    return blocks * per_block


def block_bytes(in_features: int, bits: int) -> int:
    """Distance between two blocks of 16 output features."""
    return packed_bytes(BLOCK, in_features, bits)


def pack(weight: QuantizedWeight, out: np.ndarray | None = None) -> np.ndarray:
    """Lay a quantised matrix out for the kernels.

    Args:
        weight: rows beyond a multiple of 16 are padded with zeros.
        out: uint8[packed_bytes(...)] to fill, 64-byte aligned; None allocates.

    Returns:
        uint8[packed_bytes(...)], the layout of the module's text.
    """
    rows, inputs = weight.q_OI.shape
    blocks, groups = -(-rows // BLOCK), inputs // GROUP
    size = packed_bytes(rows, inputs, weight.bits)
    if out is None:
        out = aligned_bytes(size)
    if out.size != size or out.dtype != np.uint8 or out.ctypes.data % 64:
        raise ConfigError(f"packing needs {size} aligned bytes, got {out.size} of {out.dtype}")

    def by_block(t: Tensor, columns: tuple[int, ...]) -> np.ndarray:  # [blocks, lane, G, ...]
        array = t.cpu().numpy()
        if rows % BLOCK:
            array = np.concatenate([array, np.zeros((blocks * BLOCK - rows, array.shape[1]), array.dtype)])
        return array.reshape(blocks, BLOCK, *columns)

    scale = by_block(weight.scale_OG, (groups,)).transpose(0, 2, 1)  # [blocks, G, lane]
    if weight.bits == 4:
        assert weight.min_OG is not None
        q = by_block(weight.q_OI, (groups, 2, 4, 4)).transpose(3, 0, 2, 4, 1, 5)  # [half, blocks, G, quad, lane, 4]
        view = out.reshape(blocks, groups, INT4_GROUP_BYTES)
        view[..., :256] = (q[0] | (q[1] << 4)).reshape(blocks, groups, 256)
        view[..., 256:288] = np.ascontiguousarray(scale).view(np.uint8)
        minimum = by_block(weight.min_OG, (groups,)).transpose(0, 2, 1)
        view[..., 288:] = np.ascontiguousarray(minimum).view(np.uint8)
        return out
    q = by_block(weight.q_OI, (groups, 8, 4)).transpose(0, 2, 3, 1, 4)  # [blocks, G, quad, lane, 4]
    view = out.reshape(blocks, _int8_block_bytes(groups))
    data, scales = groups * INT8_DATA_BYTES, groups * INT8_SCALE_BYTES
    view[:, :data] = (q.astype(np.int16) + 128).astype(np.uint8).reshape(blocks, data)
    view[:, data : data + scales] = np.ascontiguousarray(scale).reshape(blocks, -1).view(np.uint8)
    view[:, data + scales :] = 0
    return out


def aligned_bytes(size: int) -> np.ndarray:
    """Zeroed uint8[size] that starts at a cache line; pages are committed when first touched."""
    raw = np.zeros(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size]


def _int8_block_bytes(groups: int) -> int:
    return -(-groups * (INT8_DATA_BYTES + INT8_SCALE_BYTES) // 64) * 64


def _inverse(scale: Tensor) -> Tensor:
    scale = scale.float()
    return torch.where(scale > 0, 1 / scale, torch.zeros_like(scale))


def _groups(weight_OI: Tensor) -> Tensor:
    if weight_OI.dim() != 2 or not weight_OI.is_floating_point() or weight_OI.shape[1] % GROUP or not weight_OI.numel():
        raise ConfigError(
            f"a weight to quantise must be a floating-point matrix with a multiple of {GROUP} columns, "
            f"got {weight_OI.dtype} {tuple(weight_OI.shape)}"
        )
    return weight_OI.detach().float().unflatten(1, (-1, GROUP))


def _check_range(low: Tensor, high: Tensor) -> None:
    """Minima and maxima of the groups; NaN spreads to both."""
    if not (low.amin() >= -_LARGEST_HALF and high.amax() <= _LARGEST_HALF):
        raise ConfigError("a weight to quantise holds values that are not finite or exceed 65504")
