"""From what was seen to events by the rules, and to the objects that they are about."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import yaml
from scipy.optimize import linear_sum_assignment

from stille.evals.events import Happening
from stille.evals.tracking import iou
from stille.video.events import Consistency, Desk
from stille.video.rules import Rules, load_rules
from stille.video.sinks import Sinks
from stille.video.types import Event
from video_sides.kept import Kept

OVERLAP = 0.5
OF_PLACES = frozenset({"queue", "blocked", "pallet_missing", "pallet_extra"})
"""Rules of which an incident is about a place, whoever makes it."""


@dataclass(frozen=True, slots=True)
class Strictness:
    """
    Attributes:
        min_score: of objects. sure: log-odds at which helmets, vests and lying count. slot: the same of slots, as a
            probability. dwell: the rules' times are multiplied by it. verify: whether doubtful events are withheld.
    """

    min_score: float = 0.4
    sure: float = 2.0
    slot: float = 0.8
    dwell: float = 1.0
    verify: bool = False


def rules_of(text: str, strictness: Strictness) -> Rules:
    """A rules file with other limits."""
    data = yaml.safe_load(text)
    for rule in data["rules"]:
        rule["min_score"] = strictness.min_score
        rule["dwell"] = rule["dwell"] * strictness.dwell
        if rule["type"] in ("no_helmet", "no_vest"):
            rule["sure"] = -strictness.sure
        elif rule["type"] == "lying":
            rule["sure"] = strictness.sure
        elif rule["type"] in ("pallet_missing", "pallet_extra"):
            rule["sure"] = strictness.slot
    return _loaded(yaml.safe_dump(data))


@lru_cache(64)
def _loaded(text: str) -> Rules:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rules.yaml"
        path.write_text(text)
        return load_rules(path)


def events_of(
    kept: Kept, rules: Rules, camera: str, size: tuple[int, int], slots: Sequence[str], verify: bool
) -> list[Event]:
    """The last state of each event that was told of."""
    desk = Desk(rules, Sinks([]), Consistency() if verify else None)
    last: dict[str, Event] = {}
    for seen in kept.seen(camera, size, slots):
        last.update((event.id, event) for event in desk.see(seen))
    last.update((event.id, event) for event in desk.end(camera))
    return [event for event in last.values() if not event.withheld]


def matched(kept: Kept, truth: Kept) -> np.ndarray:
    """For each object of `kept` the identity of the object that it shows, -1 where it shows none."""
    who_N = np.full(len(kept.score_N), -1)
    a, b = kept.starts_T, truth.starts_T
    for t in range(len(kept)):
        mine, real = slice(a[t], a[t + 1]), slice(b[t], b[t + 1])
        same_NM = kept.kind_N[mine, None] == truth.kind_N[None, real]
        overlap_NM = iou(kept.box_N4[mine], truth.box_N4[real]) * same_NM
        rows, columns = linear_sum_assignment(-overlap_NM)
        good = overlap_NM[rows, columns] >= OVERLAP
        who_N[a[t] + rows[good]] = truth.identity_N[b[t] + columns[good]]
    return who_N


def happenings(events: Sequence[Event], kept: Kept, who_N: np.ndarray, camera: str, zero: float) -> list[Happening]:
    """Events with the truth's identities.

    Args:
        who_N: from `matched`.
        zero: time that counts as 0.
    """
    starts, found = kept.starts_T, []
    for event in events:
        ended = event.ended if event.ended is not None else float(kept.time_T[-1])
        low, high = np.searchsorted(kept.time_T, [event.began - 1e-3, ended + 1e-3])
        at = slice(starts[low], starts[high])
        about = set()
        for identity in () if event.kind in OF_PLACES else event.identities:
            seen = Counter(who_N[at][kept.identity_N[at] == identity].tolist())
            seen.pop(-1, None)
            about |= {who for who, _ in seen.most_common(1)}
        place = str(event.facts["slot"]) if "slot" in event.facts and event.kind in OF_PLACES else event.zone
        found.append(
            Happening(camera, event.kind, place, frozenset(about), event.began - zero, ended - zero, event.confidence)
        )
    return found
