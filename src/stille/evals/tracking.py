"""Tracking quality of sequences: HOTA, IDF1, MOTA and what they count, by TrackEval.

HOTA: Luiten et al., 2009.07736; IDF1: Ristani et al., 1609.01775; MOTA (CLEAR): Bernardin and Stiefelhagen 2008.
Shapes: N truths and M finds of a frame.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stille.errors import ConfigError, UnsupportedError


@dataclass(frozen=True, slots=True)
class Tracks:
    """Boxes of one frame with their identities.

    Attributes:
        box_N4: float, x0, y0, x1, y1.
        identity_N: int64; the same in all frames for the same object.
    """

    box_N4: np.ndarray
    identity_N: np.ndarray


@dataclass(frozen=True, slots=True)
class TrackingScore:
    """
    Attributes:
        hota, det_a, ass_a, idf1, mota: percent.
        switches, false_positives, missed, truths: counted.
        identities, found_identities: of the truth, and of what was found.
    """

    hota: float
    det_a: float
    ass_a: float
    idf1: float
    mota: float
    switches: int
    false_positives: int
    missed: int
    truths: int
    identities: int
    found_identities: int


@dataclass(frozen=True, slots=True)
class Compared:
    """What TrackEval counted in one sequence."""

    hota: dict[str, Any]
    clear: dict[str, Any]
    identity: dict[str, Any]
    truths: int
    identities: int
    found_identities: int


def score_tracking(truth: Sequence[Tracks], found: Sequence[Tracks]) -> TrackingScore:
    """Compares frame by frame; boxes match from an IoU of 0.5 (HOTA: over 19 thresholds).

    Raises:
        ConfigError: other numbers of frames, no truth at all, or an identity twice in a frame.
        UnsupportedError: TrackEval is not installed.
    """
    return combined([compare(truth, found)])


def compare(truth: Sequence[Tracks], found: Sequence[Tracks]) -> Compared:
    """Counts one sequence, of which `combined` makes a score. It may be without any truth.

    Raises:
        ConfigError: other numbers of frames, or an identity twice in a frame.
        UnsupportedError: TrackEval is not installed.
    """
    if len(truth) != len(found):
        raise ConfigError(f"{len(truth)} frames of truth and {len(found)} of what was found; give the same frames")
    data = {
        "num_timesteps": len(truth),
        "similarity_scores": [iou(a.box_N4, b.box_N4) for a, b in zip(truth, found, strict=True)],
    }
    for side, frames in (("gt", truth), ("tracker", found)):
        names = _identities(frames)
        data[f"{side}_ids"] = [np.searchsorted(names, frame.identity_N) for frame in frames]
        data[f"num_{side}_ids"] = len(names)
        data[f"num_{side}_dets"] = sum(len(frame.identity_N) for frame in frames)
    hota, clear, identity = (metric.eval_sequence(data) for metric in _metrics())
    return Compared(hota, clear, identity, data["num_gt_dets"], data["num_gt_ids"], data["num_tracker_ids"])


def combined(sequences: Sequence[Compared]) -> TrackingScore:
    """One score of several sequences: their counts are added up, as TrackEval does over sequences.

    Raises:
        ConfigError: no truth in any of them.
        UnsupportedError: TrackEval is not installed.
    """
    truths, identities, found_identities = (
        sum(getattr(one, name) for one in sequences) for name in ("truths", "identities", "found_identities")
    )
    if not truths:
        raise ConfigError("the truth has no object in any frame: nothing can be scored")
    hota, clear, identity = (
        metric.combine_sequences({str(i): getattr(one, name) for i, one in enumerate(sequences)})
        for metric, name in zip(_metrics(), ("hota", "clear", "identity"), strict=True)
    )
    return TrackingScore(
        hota=100 * float(np.mean(hota["HOTA"])),
        det_a=100 * float(np.mean(hota["DetA"])),
        ass_a=100 * float(np.mean(hota["AssA"])),
        idf1=100 * float(identity["IDF1"]),
        mota=100 * float(clear["MOTA"]),
        switches=int(clear["IDSW"]),
        false_positives=int(clear["CLR_FP"]),
        missed=int(clear["CLR_FN"]),
        truths=truths,
        identities=identities,
        found_identities=found_identities,
    )


def _metrics() -> tuple[Any, Any, Any]:
    """HOTA, CLEAR and Identity of TrackEval, which is in no extra: by name, see benchmarks/video_pets.py."""
    try:
        metrics = importlib.import_module("trackeval.metrics")
    except ImportError as error:
        raise UnsupportedError("tracking scores need TrackEval: pip install 'trackeval>=1.3,<2'") from error
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its settings
        settings = {"PRINT_CONFIG": False}
        return metrics.HOTA(), metrics.CLEAR(settings), metrics.Identity(settings)


def _identities(frames: Iterable[Tracks]) -> np.ndarray:
    """All identities, ascending."""
    for number, frame in enumerate(frames):
        if len(np.unique(frame.identity_N)) != len(frame.identity_N):
            raise ConfigError(f"frame {number} has an identity twice; each object needs its own")
    every = [frame.identity_N for frame in frames if len(frame.identity_N)]
    return np.unique(np.concatenate(every)) if every else np.zeros(0, np.int64)


def iou(a_N4: np.ndarray, b_M4: np.ndarray) -> np.ndarray:
    """Intersection over union of each pair, [N, M]."""
    low_NM2 = np.maximum(a_N4[:, None, :2], b_M4[None, :, :2])
    high_NM2 = np.minimum(a_N4[:, None, 2:], b_M4[None, :, 2:])
    shared_NM = np.clip(high_NM2 - low_NM2, 0, None).prod(-1)
    areas = [np.clip(box[:, 2:] - box[:, :2], 0, None).prod(-1) for box in (a_N4, b_M4)]
    return shared_NM / np.maximum(areas[0][:, None] + areas[1][None] - shared_NM, 1e-9)


def read_mot(path: str, frames: int) -> list[Tracks]:
    """A file in MOTChallenge's form, frame by frame: frame from 1, identity, left, top, width, height, confidence, ...

    Lines of confidence 0 are left out.
    """
    table = np.loadtxt(path, delimiter=",", ndmin=2)
    table = table[table[:, 6] != 0]
    box_N4 = np.concatenate((table[:, 2:4], table[:, 2:4] + table[:, 4:6]), 1)
    return [
        Tracks(box_N4[chosen], table[chosen, 1].astype(np.int64))
        for chosen in (table[:, 0] == number for number in range(1, frames + 1))
    ]
