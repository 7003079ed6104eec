"""A perception that knows the truth, and damages of it: what the harness must tell apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from video_sides.kept import Kept

SEEN = 0.15
"""Share of an object from which on the oracle sees it."""


def oracle(truth: Kept, seed: int = 0, damage: float = 0.0) -> Kept:
    """What a nearly perfect model would say.

    Args:
        truth: scores are the share that is seen, attributes 1, 0 or nan.
        damage: 0 to 1: share of objects that are missed in a frame; boxes, attributes and identities get worse with it,
            and things are seen where nothing is.
    """
    rng = np.random.default_rng(seed)
    kept = truth.only((truth.score_N >= SEEN) & (rng.random(len(truth.score_N)) >= max(damage, 0.01)))
    n = len(kept.score_N)
    side_N2 = kept.box_N4[:, 2:] - kept.box_N4[:, :2]
    jitter_N4 = rng.normal(0, 0.015 + 0.1 * damage, (n, 4)) * np.tile(side_N2, 2)
    truth_NA = np.nan_to_num(2 * kept.attribute_NA - 1)
    odds_NA = np.where(truth_NA == 0, 0, 5 * truth_NA + rng.normal(0, 1 + 6 * damage, truth_NA.shape))
    score_N = np.clip(0.6 + 0.38 * kept.score_N - 0.3 * damage + rng.normal(0, 0.03 + 0.15 * damage, n), 0.05, 0.999)
    identity_N = kept.identity_N.astype(np.int64)
    if damage:  # a new number for everybody now and then
        age_N = (kept.time_T[kept.frame_N] / (20 / damage) + 7.3 * identity_N).astype(np.int64)
        identity_N = identity_N * 100_003 + age_N - age_N.min(initial=0)
        identity_N = np.unique(identity_N, return_inverse=True)[1]
    slot_TS = np.clip(np.abs(kept.slot_TS - 0.03) + rng.normal(0, 0.02 + 0.3 * damage, kept.slot_TS.shape), 0, 1)
    return replace(
        kept, box_N4=(kept.box_N4 + jitter_N4).astype(np.float32), score_N=score_N.astype(np.float32),
        identity_N=identity_N.astype(np.int32), attribute_NA=odds_NA.astype(np.float32),
        slot_TS=slot_TS.astype(np.float32),
    )  # fmt: skip
