"""The small grey picture that health and motion are judged by."""

from __future__ import annotations

import numpy as np

ROWS, COLUMNS = 96, 160


def sample(image_HW3: np.ndarray) -> np.ndarray:
    """Every so many pixels of the green channel, uint8, at most about twice `ROWS` x `COLUMNS`, both even."""
    height, width = image_HW3.shape[:2]
    down, across = max(1, height // ROWS), max(1, width // COLUMNS)
    picture_HW = image_HW3[::down, ::across, 1]
    return picture_HW[: picture_HW.shape[0] // 2 * 2, : picture_HW.shape[1] // 2 * 2]


def halve(sample_HW: np.ndarray) -> np.ndarray:
    """Means of 2 x 2, float32: half the noise."""
    wide_HW = sample_HW.astype(np.float32)
    return 0.25 * (wide_HW[::2, ::2] + wide_HW[1::2, ::2] + wide_HW[::2, 1::2] + wide_HW[1::2, 1::2])


def coarsen(grey_HW: np.ndarray, block: int) -> np.ndarray:
    """Means of block x block, what is left over at the edges cut off."""
    rows, columns = grey_HW.shape[0] // block, grey_HW.shape[1] // block
    return grey_HW[: rows * block, : columns * block].reshape(rows, block, columns, block).mean((1, 3))
