"""Packed weights of the CPU kernels: how the numbers of `kernels.grids` lie in memory.

The unit is a block of 16 output features, one per vector lane, so that neither products nor scales need a
horizontal operation. Within a block, group after group of 32 inputs; within a group, four inputs ("quad") of each of
the 16 features make 64 consecutive bytes, feature after feature:
- int4 group, 320 bytes: 4 x 64 bytes of which the low nibbles are quads 0..3 and the high nibbles quads 4..7, then 16
  scales, then 16 minima.
- int8 block: groups x 8 quads x 64 bytes of q + 128, then groups x 16 scales.

Activations are quantised by the kernels, row by row, to groups of 40 bytes: float32 scale, float32 scale * sum(q),
32 x int8 q.

Shapes: O output features, I input features, G = I / 32 groups.
"""

import numpy as np
from torch import Tensor

from stille.errors import ConfigError
from stille.kernels.grids import GROUP, QuantizedWeight

BLOCK = 16
INT4_GROUP_BYTES = 320
INT8_DATA_BYTES = 512
INT8_SCALE_BYTES = 32
X_GROUP_BYTES = 40


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
