"""The strong baseline: single frames of the same network, ByteTrack of roboflow's trackers, medians over tracks.

Zones' inertia, dwell and quiet times are the rules engine's, which is the same for both sides.
"""

from __future__ import annotations

from bisect import insort
from collections import defaultdict, deque
from dataclasses import dataclass, replace

import numpy as np

from stille.video.types import KINDS
from video_sides.kept import Kept


@dataclass(frozen=True, slots=True)
class Tracking:
    """
    Attributes:
        least: score of detections that are taken at all.
        activation, high, iou, buffer_s, consecutive: of ByteTrack: score of a new track, score of the first round,
            least overlap, seconds that a lost track is kept, frames after which it has an identity.
        memory: frames that the medians of attributes are over; scores' are over the whole track.
    """

    least: float = 0.1
    activation: float = 0.5
    high: float = 0.5
    iou: float = 0.2
    buffer_s: float = 2.0
    consecutive: int = 2
    memory: int = 15


def tracked(kept: Kept, tracking: Tracking, rate: float) -> Kept:
    """Detections with identities; those without are left out. One tracker for each kind."""
    import supervision as sv
    from trackers import ByteTrackTracker

    trackers = [
        ByteTrackTracker(
            lost_track_buffer=round(30 * tracking.buffer_s), frame_rate=rate,
            track_activation_threshold=tracking.activation, minimum_consecutive_frames=tracking.consecutive,
            minimum_iou_threshold=tracking.iou, high_conf_det_threshold=tracking.high,
        )
        for _ in KINDS
    ]  # fmt: skip
    starts, identity_N = kept.starts_T.tolist(), np.full(len(kept.score_N), -1, np.int64)
    for t in range(len(kept)):
        place_M = np.arange(starts[t], starts[t + 1])
        place_M = place_M[kept.score_N[place_M] >= tracking.least]
        for kind, tracker in enumerate(trackers):
            mine = place_M[kept.kind_N[place_M] == kind]
            boxes = sv.Detections(
                xyxy=kept.box_N4[mine].astype(float), confidence=kept.score_N[mine].astype(float),
                class_id=np.full(len(mine), kind), data={"place": mine},
            )  # fmt: skip
            out = tracker.update(boxes)
            if len(out) and out.tracker_id is not None:
                settled = out.tracker_id >= 0
                identity_N[np.asarray(out.data["place"])[settled]] = out.tracker_id[settled] * len(KINDS) + kind
    return smoothed(replace(kept, identity_N=identity_N.astype(np.int32)).only(identity_N >= 0), tracking.memory)


def smoothed(kept: Kept, memory: int) -> Kept:
    """Scores are medians over the track so far, attributes over its last frames."""
    scores: dict[int, list[float]] = defaultdict(list)
    recent: dict[int, deque[np.ndarray]] = defaultdict(lambda: deque(maxlen=memory))
    score_N, attribute_NA = kept.score_N.copy(), kept.attribute_NA.copy()
    for n, identity in enumerate(kept.identity_N.tolist()):
        held = scores[identity]
        insort(held, float(kept.score_N[n]))
        score_N[n] = held[len(held) // 2]
        recent[identity].append(kept.attribute_NA[n])
        attribute_NA[n] = np.median(recent[identity], axis=0)
    return replace(kept, score_N=score_N, attribute_NA=attribute_NA)
