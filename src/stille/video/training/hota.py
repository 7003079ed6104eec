"""Higher order tracking accuracy (J. Luiten et al., IJCV 2021) of boxes with identities.

G true objects, I identities, N boxes and M true boxes of a frame.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

ALPHAS = np.arange(1, 20) / 20


def hota(frames: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> float:
    """0 to 1, the mean over overlaps of 0.05 to 0.95.

    Args:
        frames: of each, true objects [M], identities [N] (both unique within it), and overlaps [M, N].
    """
    who, g = np.unique(np.concatenate([f[0] for f in frames] or [np.zeros(0, int)]), return_inverse=True)
    names, i = np.unique(np.concatenate([f[1] for f in frames] or [np.zeros(0, int)]), return_inverse=True)
    if not len(who):
        return float(not len(names))
    if not len(names):
        return 0.0
    ends_g, ends_i = (np.cumsum([0, *(len(f[k]) for f in frames)]) for k in (0, 1))
    parts = [
        (g[ends_g[t] : ends_g[t + 1]], i[ends_i[t] : ends_i[t + 1]], frame[2].reshape(len(frame[0]), len(frame[1])))
        for t, frame in enumerate(frames)
    ]
    count_g, count_i = np.bincount(g, minlength=len(who)), np.bincount(i, minlength=len(names))
    likely = np.zeros((len(who), len(names)))
    for a, b, same in parts:
        share = same / np.maximum(same.sum(0)[None] + same.sum(1)[:, None] - same, 1e-9)
        likely[np.ix_(a, b)] += share
    likely /= np.maximum(count_g[:, None] + count_i[None] - likely, 1e-9)
    together = np.zeros((len(ALPHAS), len(who), len(names)))
    for a, b, same in parts:
        rows, columns = linear_sum_assignment(likely[np.ix_(a, b)] * same, maximize=True)
        good = same[rows, columns][None] >= ALPHAS[:, None] - 1e-9
        together[:, a[rows], b[columns]] += good
    right = together.sum((1, 2))
    found = right / np.maximum(len(g) + len(i) - right, 1)
    each = together / np.maximum(count_g[:, None] + count_i[None] - together, 1e-9)
    linked = (together * each).sum((1, 2)) / np.maximum(right, 1)
    return float(np.sqrt(found * linked).mean())
