"""Logits of tokens that a grammar does not allow become minus infinity, in place.

Shapes: R rows of logits, M masks, V vocabulary, W = ceil(V / 32) words.
"""

import numpy as np

from stille.kernels.cpu.simd import entry

_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_BIAS = np.where(_BITS, 0.0, -np.inf).astype(np.float32)
"""For a byte of a mask, 0 where a bit is set and minus infinity where not: to add it takes no branch."""


@entry
def restrict(logits_RV, row_M, mask_MW):
    """
    Args:
        logits_RV: float32; changed.
        row_M: int64, the row of each mask.
        mask_MW: int32, bit i % 32 of word i // 32 for token i.
    """
    width = logits_RV.shape[1]
    for place in range(row_M.shape[0]):
        row_V = logits_RV[row_M[place]]
        for at in range(mask_MW.shape[1]):
            word, first = mask_MW[place, at], 32 * at
            if word == 0:
                row_V[first : min(first + 32, width)] = -np.inf
            elif word != -1:  # rare: most words allow all or nothing
                for byte in range(first, min(first + 32, width), 8):
                    bias_8 = _BIAS[word & 255]
                    for bit in range(min(8, width - byte)):
                        row_V[byte + bit] += bias_8[bit]
                    word >>= 8


@entry
def best(logits_RV, mask_RW):
    """The likeliest allowed token of each row, int64 [R]; the first of several. As `restrict` and argmax, but what is
    not allowed is not even looked at."""
    rows, width = logits_RV.shape
    found_R = np.zeros(rows, np.int64)
    for row in range(rows):
        logits_V, high = logits_RV[row], np.float32(-np.inf)
        for at in range(mask_RW.shape[1]):
            word, first = mask_RW[row, at], 32 * at
            if word == -1:
                for token in range(first, min(first + 32, width)):
                    if logits_V[token] > high:
                        high, found_R[row] = logits_V[token], token
            elif word != 0:
                for token in range(first, min(first + 32, width)):
                    if word >> (token - first) & 1 and logits_V[token] > high:
                        high, found_R[row] = logits_V[token], token
    return found_R
