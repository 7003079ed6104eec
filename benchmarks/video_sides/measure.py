"""What was kept of cameras, scored: tracks and events of both sides, and the search for each side's best settings."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from stille.evals.events import Happening, Tally, Windows, count_windows, tally, threshold_at
from stille.evals.events import false_events as count_false
from stille.evals.tracking import Compared, TrackingScore, Tracks, combined, compare
from stille.evals.warehouse.geometry import inside_N
from stille.evals.warehouse.incidents import DWELL, incidents_of
from stille.evals.warehouse.rules_file import CAMERA, rules_yaml
from stille.evals.warehouse.shown import SEEN, shown
from stille.video.types import KINDS, NOBODY
from video_sides.judge import OF_PLACES, Strictness, events_of, happenings, matched, rules_of
from video_sides.kept import Kept
from video_sides.oracle import oracle
from video_sides.strong import Tracking, tracked
from video_sides.studio import SIZE, Camera
from video_sides.watch import Files

SEQUENCE_S = 60.0
"""Tracks are scored in sequences of this length; models go on between them."""
RECALL = 0.9


@dataclass(frozen=True, slots=True)
class Settings:
    """Of one side.

    Attributes:
        tracking: of the baseline; None for a model that says itself who is who.
        least: score of an object that counts in tracks.
        strictness: of the rules. threshold: confidence of an event that counts for accuracy.
    """

    tracking: Tracking | None = None
    least: float = 0.4
    strictness: Strictness = field(default_factory=Strictness)
    threshold: float = 0.0


@dataclass(frozen=True, slots=True)
class Job:
    """One camera of one side.

    Attributes:
        folder: of the set that the camera is of. seconds: of it that are looked at, from its beginning.
        damage: of an oracle that takes the model's place; None: the model.
        tracks, events: what is asked for.
    """

    folder: Path
    camera: Camera
    settings: Settings
    rate: float
    seconds: float = float("inf")
    damage: float | None = None
    tracks: bool = True
    events: bool = True


@dataclass(frozen=True, slots=True)
class Judged:
    """
    Attributes:
        compared: by kind, of each sequence.
        incidents, events: what was, and what was told. begin, end: seconds into the story.
    """

    camera: str
    compared: dict[str, list[Compared]]
    incidents: list[Happening]
    events: list[Happening]
    begin: float
    end: float


def judge(job: Job) -> Judged:
    files, told = Files(job.folder, job.camera), job.camera.story()
    truth, place_N2 = files.load("truth"), files.places()
    if job.seconds * job.rate < len(truth):
        truth, place_N2 = (first_frames(truth, round(job.seconds * job.rate)), place_N2)
    kept = _side(job, files, truth)
    who_N, name = matched(kept, truth), job.camera.name
    second_T = truth.time_T - told.begins
    compared = sequences(kept, truth, who_N, job) if job.tracks else {}
    real, events = [], []
    if job.events:
        real = _incidents(job.camera, truth, place_N2[: len(truth.score_N)], second_T)
        strictness = job.settings.strictness
        text = rules_yaml(job.camera.seed, SIZE).replace(f"camera: {CAMERA},", f"camera: {name},")
        text = text.replace(f"- name: {CAMERA}\n", f"- name: {name}\n").replace(f"[{CAMERA}]", f"[{name}]")
        slots = [slot.name for slot in told.layout.slots]
        found = events_of(kept, rules_of(text, strictness), name, SIZE, slots, strictness.verify)
        events = happenings(found, kept, who_N, name, told.begins)
    return Judged(name, compared, real, events, float(second_T[0]), float(second_T[-1]))


def first_frames(kept: Kept, frames: int) -> Kept:
    objects = int(kept.starts_T[min(frames, len(kept))])
    cut = {name: getattr(kept, name)[:frames] for name in ("time_T", "count_T", "slot_TS")}
    cut |= {n: getattr(kept, n)[:objects] for n in ("box_N4", "kind_N", "score_N", "identity_N", "attribute_NA")}
    return Kept(**cut)


def _side(job: Job, files: Files, truth: Kept) -> Kept:
    """What this side saw, with its identities."""
    tracking = job.settings.tracking
    if job.damage is not None:
        kept = oracle(truth, job.camera.seed, job.damage)
    else:
        kept = first_frames(files.load("ours" if tracking is None else "frame"), len(truth))
    if tracking is None:
        return kept
    name = hashlib.sha256(repr((tracking, len(truth), job.damage)).encode()).hexdigest()[:12]
    path = files.folder / f"tracked-{name}.npz"
    if not path.exists():
        tracked(replace(kept.nobody(), slot_TS=_slots(job, files, truth)), tracking, job.rate).save(path)
    return Kept.load(path)


def _slots(job: Job, files: Files, truth: Kept) -> np.ndarray:
    """What the slot head says, which has no memory and is the same for both sides."""
    if job.damage is not None:
        return oracle(truth, job.camera.seed, job.damage).slot_TS
    return first_frames(files.load("ours"), len(truth)).slot_TS


def sequences(kept: Kept, truth: Kept, who_N: np.ndarray, job: Job) -> dict[str, list[Compared]]:
    """Tracks of each kind, in sequences. Objects of which less than `SEEN` is seen are neither asked for nor wrong."""
    clear_N = truth.score_N >= SEEN
    hidden = set(zip(truth.frame_N[~clear_N].tolist(), truth.identity_N[~clear_N].tolist(), strict=True))
    counts_N = (kept.score_N >= job.settings.least) & (kept.identity_N != NOBODY)
    pairs = zip(kept.frame_N.tolist(), who_N.tolist(), strict=True)
    counts_N &= ~np.fromiter((pair in hidden for pair in pairs), bool, len(who_N))
    step = round(SEQUENCE_S * job.rate)
    result: dict[str, list[Compared]] = {}
    for number, kind in enumerate(KINDS):
        real = _tracks(truth.only(clear_N & (truth.kind_N == number)))
        mine = _tracks(kept.only(counts_N & (kept.kind_N == number)))
        result[kind] = [compare(real[i : i + step], mine[i : i + step]) for i in range(0, len(real), step)]
    return result


def _tracks(kept: Kept) -> list[Tracks]:
    starts, found = kept.starts_T.tolist(), []
    for a, b in pairwise(starts):
        order = np.argsort(-kept.score_N[a:b], kind="stable")
        _, first = np.unique(kept.identity_N[a:b][order], return_index=True)
        place = a + order[first]
        found.append(Tracks(kept.box_N4[place].astype(float), kept.identity_N[place].astype(np.int64)))
    return found


def _incidents(camera: Camera, truth: Kept, place_N2: np.ndarray, second_T: np.ndarray) -> list[Happening]:
    told, frame_N = camera.story(), truth.frame_N
    visible = {}
    for identity in np.unique(truth.identity_N).tolist():
        mine_N = truth.identity_N == identity
        visible[identity] = np.zeros(len(truth))
        visible[identity][frame_N[mine_N]] = truth.score_N[mine_N]
    waits_N = (truth.kind_N == KINDS.index("person")) & (truth.score_N >= SEEN)
    waits_N &= inside_N(place_N2, told.layout.zones["queue"])
    queued_T = np.bincount(frame_N[waits_N], minlength=len(truth))
    return [
        Happening(
            camera.name, one.kind, one.zone, frozenset(() if one.kind in OF_PLACES else one.identities), one.began,
            one.ended, doubtful=one.doubtful,
        )
        for one in shown(incidents_of(told), second_T, visible, queued_T)
    ]  # fmt: skip


# Scores -----------------------------------------------------------------------------------------------------------


def tracking_score(judged: Iterable[Judged], kinds: Sequence[str] = KINDS) -> TrackingScore:
    return combined([one for each in judged for kind in kinds for one in each.compared[kind]])


def tallies(judged: Iterable[Judged]) -> dict[tuple[str, str], Tally]:
    return {key: one for each in judged for key, one in tally(each.incidents, each.events).items()}


def windows(judged: Iterable[Judged], threshold: float) -> dict[str, Windows]:
    """By rule."""
    result = {rule: Windows() for rule in DWELL}
    for each in judged:
        for rule, held in result.items():
            real = [one for one in each.incidents if one.rule == rule]
            told = [one for one in each.events if one.rule == rule]
            held.add(count_windows(real, told, each.begin, each.end, threshold))
    return result


def accuracy(by_rule: Mapping[str, Windows]) -> float:
    """Balanced, of all windows together."""
    whole = Windows()
    for one in by_rule.values():
        whole.add(one)
    return whole.accuracy or 0.0


# Search -----------------------------------------------------------------------------------------------------------

TRACKING = {
    "activation": (0.3, 0.4, 0.5, 0.6, 0.7), "high": (0.3, 0.5, 0.6), "iou": (0.05, 0.1, 0.2, 0.3),
    "buffer_s": (0.6, 1.0, 2.0, 4.0), "consecutive": (1, 2, 3), "least": (0.05, 0.1, 0.2),
}  # fmt: skip
STRICTNESS = {
    "min_score": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6), "sure": (0.5, 1.0, 2.0, 3.0), "slot": (0.6, 0.8, 0.9),
    "dwell": (0.7, 1.0, 1.2), "verify": (False, True),
}  # fmt: skip


def search(
    start: Any,
    choices: Mapping[str, Sequence[Any]],
    value: Callable[[list[Any]], list[Any]],
    tell: Callable[[str], None],
) -> Any:
    """The best of the settings that differ from the best so far in one field, field by field.

    Args:
        value: of several settings, each something that is larger for better ones.
    """
    best, worth = start, None
    for name, options in choices.items():
        tried = [replace(best, **{name: option}) for option in options]
        values = value(tried)
        top = max(range(len(tried)), key=lambda i: (values[i], tried[i] == best))  # no change without a reason
        if worth is None or values[top] > worth:
            best, worth = tried[top], values[top]
        tell(f"{name}: {dict(zip(options, values, strict=True))}")
    return best


def tuned(pool: ProcessPoolExecutor, jobs: Sequence[Job], start: Settings, tell: Callable[[str], None]) -> Settings:
    """The best settings of a side on these cameras: first its tracks by HOTA and IDF1, then the rules' strictness by
    false events where `RECALL` of the incidents are found, then the confidence of the best accuracy."""

    def judged(settings: Sequence[Settings], **asked: Any) -> list[list[Judged]]:
        every = [replace(job, settings=one, **asked) for one in settings for job in jobs]
        found = list(pool.map(judge, every))
        return [found[i : i + len(jobs)] for i in range(0, len(found), len(jobs))]

    def by_tracks(settings: Sequence[Settings]) -> list[float]:
        scores = [tracking_score(one) for one in judged(settings, events=False, seconds=240.0)]
        return [round(score.hota + score.idf1, 2) for score in scores]

    def by_events(settings: Sequence[Settings]) -> list[tuple[float, int]]:
        values = []
        for one in judged(settings, tracks=False):
            found = list(tallies(one).values())
            limit, recall = threshold_at(found, RECALL)
            values.append((round(min(recall, RECALL), 3), -count_false(found, limit)))
        return values

    best = start
    if best.tracking is not None:

        def tracks_of(tried: list[Tracking]) -> list[float]:
            return by_tracks([replace(best, tracking=t, least=0.0) for t in tried])

        best = replace(best, tracking=search(best.tracking, TRACKING, tracks_of, tell), least=0.0)
    else:
        best = search(best, {"least": (0.0, 0.4, 0.5, 0.6, 0.7)}, by_tracks, tell)
    fixed = best
    strictness = search(
        best.strictness, STRICTNESS, lambda tried: by_events([replace(fixed, strictness=s) for s in tried]), tell
    )
    best = replace(best, strictness=strictness)
    (events,) = judged([best], tracks=False)
    every = [event.confidence for one in events for event in one.events] or [0.0]
    limits = sorted({0.0, *np.quantile(every, np.arange(0, 1, 0.05)).tolist()})
    threshold = max(limits, key=lambda limit: accuracy(windows(events, limit)))
    tell(f"accuracy {accuracy(windows(events, threshold)):.4f} from a confidence of {threshold:.3f} on")
    return replace(best, threshold=float(threshold))
