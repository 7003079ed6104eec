"""What of an hour's incidents the camera shows: who is hidden is no part of one, however true it is.

Incidents are measured on tracks. A person behind a rack breaks the same rule there, but nobody who sees only pictures
can say so; when they come out, it is an incident anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from stille.evals.warehouse.incidents import DWELL, QUEUE, QUIET, Incident

SEEN = 0.25
"""Share of an object that has to be seen for it to count."""


def shown(
    happened: Iterable[Incident], second_T: np.ndarray, visible: Mapping[int, np.ndarray], queued_T: np.ndarray
) -> list[Incident]:
    """Incidents as far as frames show them.

    Args:
        second_T: of the frames, since the hour's beginning, evenly apart.
        visible: by identity, the share of it that each frame shows.
        queued_T: persons of whom enough is seen in the zone of the queue.
    """
    found = []
    step = float(np.median(np.diff(second_T)))
    for one in happened:
        inside_T = (second_T >= one.began - step) & (second_T <= one.ended + step)
        if not inside_T.any():
            continue
        holds_T = inside_T & _seen(one, visible, queued_T)
        at_K = np.flatnonzero(holds_T)
        for part in np.split(at_K, np.flatnonzero(np.diff(second_T[at_K]) > QUIET[one.kind]) + 1):
            if not len(part):
                continue
            longest = max(len(run) for run in np.split(part, np.flatnonzero(np.diff(part) > 1) + 1)) * step
            began, ended = max(one.began, second_T[part[0]]), min(one.ended, second_T[part[-1]])
            short = longest < 1.5 * DWELL[one.kind] + 0.5
            found.append(replace(one, began=float(began), ended=float(ended), doubtful=one.doubtful or short))
        for part in np.split(out_K := np.flatnonzero(inside_T & ~holds_T), np.flatnonzero(np.diff(out_K) > 1) + 1):
            if len(part) * step > QUIET[one.kind]:  # a model that saw enough before may go on to say so
                began, ended = (float(second_T[k]) for k in part[[0, -1]])
                found.append(replace(one, began=began, ended=ended, doubtful=True))
    return sorted(found, key=lambda one: (one.began, one.kind, one.identities))


def _seen(one: Incident, visible: Mapping[int, np.ndarray], queued_T: np.ndarray) -> np.ndarray:
    if one.kind == "queue":
        return queued_T > QUEUE
    if not one.identities:
        return np.ones(len(queued_T), bool)
    each = [visible.get(i, np.zeros(len(queued_T))) >= SEEN for i in one.identities]
    return (np.logical_or if one.kind == "blocked" else np.logical_and).reduce(each)
