"""The films' own truth: as a perception that makes no mistakes, and to say who somebody was whom a model has seen."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from examples.warehouse.site import Recording
from stille.video.types import Frame, Seen

SEEN = 0.15
"""Share of an object from which on it counts as seen."""
SURE = 5.0
"""Log-odds of what is so."""
SAME_PLACE = 0.4
"""Intersection over union from which on a seen object may be a true one."""


class TruthPerception:
    """Sees what the films' truth says. No model: it shows what rules and sinks make of perfect perception."""

    def __init__(self, recordings: Iterable[Recording]):
        self.recordings = {one.hall.name: one for one in recordings}

    def see(self, frames: Sequence[Frame]) -> list[Seen]:
        return [self._one(frame) for frame in frames]

    def _one(self, frame: Frame) -> Seen:
        hall = self.recordings[frame.camera].hall
        truth = self.recordings[frame.camera].at(frame.time)
        on = np.array(truth["visible_N"]) >= SEEN
        attribute_NA = np.array(truth["attribute_NA"], np.float32).reshape(-1, 5)[on]
        scale = np.array([*frame.size, *frame.size]) / np.array([*truth["size"], *truth["size"]])
        return Seen(
            frame.camera, frame.index, frame.time, frame.size,
            (np.array(truth["box_N4"]).reshape(-1, 4)[on] * scale).astype(np.float32),
            np.array(truth["kind_N"], np.int64)[on], np.full(int(on.sum()), 0.99, np.float32),
            np.array(truth["identity_N"], np.int64)[on], np.nan_to_num((2 * attribute_NA - 1) * SURE),
            {hall.prefix + name: 0.99 if full else 0.01 for name, full in truth["slots"].items()},
        )  # fmt: skip


class Names:
    """Who somebody is: identities of a perception in the truth's numbers, by the boxes that they share. Give `see` to
    the pipeline."""

    def __init__(self, recordings: Iterable[Recording]):
        self.recordings = {one.hall.name: one for one in recordings}
        self._votes: defaultdict[tuple[str, int], Counter[int]] = defaultdict(Counter)

    def see(self, seen: Seen, _: Frame) -> None:
        truth = self.recordings[seen.camera].at(seen.time)
        scale = np.array([*seen.size, *seen.size]) / np.array([*truth["size"], *truth["size"]])
        there_K4 = np.array(truth["box_N4"]).reshape(-1, 4) * scale
        overlap_NK = _overlap(seen.box_N4, there_K4)
        overlap_NK[seen.kind_N[:, None] != np.array(truth["kind_N"]).reshape(1, -1)] = 0
        while overlap_NK.size and overlap_NK.max() >= SAME_PLACE:
            i, k = np.unravel_index(overlap_NK.argmax(), overlap_NK.shape)
            overlap_NK[i, :] = overlap_NK[:, k] = 0
            self._votes[seen.camera, int(seen.identity_N[i])][truth["identity_N"][k]] += 1

    def of(self, camera: str, identities: Iterable[int]) -> frozenset[int]:
        """Those that were seen in the place of a true object, as what they were most often."""
        votes = (self._votes.get((camera, identity)) for identity in identities)
        return frozenset(one.most_common(1)[0][0] for one in votes if one)


def _overlap(a_N4: np.ndarray, b_K4: np.ndarray) -> np.ndarray:
    """Intersection over union of each pair."""
    low = np.maximum(a_N4[:, None, :2], b_K4[None, :, :2])
    high = np.minimum(a_N4[:, None, 2:], b_K4[None, :, 2:])
    both = (high - low).clip(min=0).prod(-1)
    area_N, area_K = ((box[:, 2:] - box[:, :2]).clip(min=0).prod(-1) for box in (a_N4, b_K4))
    return both / np.maximum(area_N[:, None] + area_K[None] - both, 1e-9)
