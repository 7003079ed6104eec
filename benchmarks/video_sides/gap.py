"""Whether who was away for a minute is known again: identities before and after gaps in generator B."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stille.evals.warehouse.gaps import gaps
from stille.video.types import NOBODY
from video_sides.judge import matched
from video_sides.studio import SIZE, Camera
from video_sides.watch import Files

BEFORE_S, AFTER_S, AT_LEAST, SEEN = 10.0, 12.0, 5, 0.4
"""Identities are taken from so long before a gap and after it, of frames in which that share of the person is seen; a
gap counts if the truth shows them in this many frames on both sides."""


@dataclass(frozen=True, slots=True)
class Return:
    """
    Attributes:
        others: other persons seen in the frames after it, at most.
        kept: the same identity before and after. taken: another one that somebody had before. new: a new one.
        unseen: no identity at all on one of the sides.
    """

    seconds: float
    others: int
    kept: bool
    taken: bool = False
    new: bool = False
    unseen: bool = False


def returns(folder: Path, camera: Camera, side: str) -> list[Return]:
    """Of one camera's clip."""
    files, (told, away) = Files(folder, camera), gaps(camera.seed, SIZE)
    truth, kept = files.load("truth"), files.load(side)
    who_N, found = matched(kept, truth), []
    second_T = truth.time_T - told.begins
    for gap in away:
        before_T = (second_T > gap.left - BEFORE_S) & (second_T < gap.left)
        after_T = (second_T > gap.back) & (second_T < gap.back + AFTER_S)
        clear_N = (truth.identity_N == gap.identity) & (truth.score_N >= SEEN)
        if any(clear_N[span_T[truth.frame_N]].sum() < AT_LEAST for span_T in (before_T, after_T)):
            continue
        mine_N = (who_N == gap.identity) & (kept.identity_N != NOBODY)
        names = [_most(kept.identity_N[mine_N & span_T[kept.frame_N]]) for span_T in (before_T, after_T)]
        person_N = (truth.kind_N == 0) & (truth.score_N >= SEEN) & (truth.identity_N != gap.identity)
        others = int(np.bincount(truth.frame_N[person_N & after_T[truth.frame_N]], minlength=1).max())
        old = set(kept.identity_N[(second_T < gap.back)[kept.frame_N]].tolist())
        same = None not in names and names[0] == names[1]
        found.append(
            Return(
                gap.back - gap.left, others, same, not same and names[1] in old,
                names[1] is not None and names[1] not in old, None in names,
            )
        )  # fmt: skip
    return found


def _most(identity_N: np.ndarray) -> int | None:
    return Counter(identity_N.tolist()).most_common(1)[0][0] if len(identity_N) else None


def share(found: Sequence[Return]) -> tuple[float, float, float]:
    """Percent kept, and its 95 % interval (Wilson's)."""
    n, p = max(len(found), 1), sum(one.kept for one in found) / max(len(found), 1)
    z = 1.96
    middle, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return 100 * p, 100 * (middle - half) / (1 + z * z / n), 100 * (middle + half) / (1 + z * z / n)
