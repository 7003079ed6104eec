"""Figures of how well clips are understood: detection, identities, attributes, slots; and thresholds that suit best."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from stille.video.model.camera import StilleCam
from stille.video.model.config import StilleCamConfig
from stille.video.model.network import StilleCamNet
from stille.video.scenes.clips import Clips
from stille.video.training.hota import hota
from stille.video.training.losses import SMALLEST
from stille.video.types import KINDS, NOBODY, Frame, Seen

PERSON = KINDS.index("person")

OVERLAP = 0.5
LONG_GONE = 4.0
"""Seconds unseen from which it counts as coming back."""
TRIED = {"shown": (0.3, 0.5, 0.6), "born": (0.5, 0.7, 0.8), "carry": (0.2, 0.4)}
"""Thresholds that `tuned` tries, besides those that are there."""


def watch(cam: StilleCam, clips: Clips) -> list[list[Seen]]:
    """What a camera model sees in each clip, frame after frame, every clip as a camera that just joined."""
    b, t = clips.shape[:2]
    frames, times = clips.frame_BTHW3.cpu().numpy(), clips.time_BT.cpu().numpy()
    names = [f"\0clip{i}" for i in range(b)]
    for i, name in enumerate(names):
        slots = clips.slot_BS4[i].cpu()
        boxes = {str(s): tuple(box.tolist()) for s, box in enumerate(slots) if bool((box[2:] > box[:2]).all())}
        cam.watch_slots(name, boxes)  # pyright: ignore[reportArgumentType]
    seen: list[list[Seen]] = [[] for _ in range(b)]
    for step in range(t):
        now = cam.see([Frame(name, step, times[i, step], 0.0, frames[i, step]) for i, name in enumerate(names)])
        for i, each in enumerate(now):
            seen[i].append(each)
    for name in names:
        cam.forget(name)
    return seen


def judge(seen: Sequence[Sequence[Seen]], clips: Clips, visible: float) -> dict[str, float]:
    """
    Args:
        seen: of each clip and frame.
        visible: share of an object that has to be seen for it to be asked for; less is neither asked for nor a mistake.

    Returns:
        ap50: average precision of boxes at an IoU of 0.5, kinds apart, all shown objects of all clips together;
        recall and precision of what is shown; hota: of all kinds, and of persons alone; idf1: of identities (E. Ristani
        et al., 2016), also of persons alone; switches: changes of the identity of an object, per 100 of its
        appearances; came_back: of persons that were unseen for `LONG_GONE` seconds, the share with the identity from
        before; attributes, slots: share that is right, where there are any.
    """
    _, _, height, width = clips.shape
    kinds, boxes = clips.kind_BM.cpu().numpy(), clips.box_BTM4.cpu().numpy() * np.tile([width, height], 2)
    shown, attributes = clips.visible_BTM.cpu().numpy(), clips.attribute_BTMA.cpu().numpy()
    occupied = clips.occupied_BTS.cpu().numpy()
    tall = boxes[..., 3] - boxes[..., 1] >= SMALLEST * height
    scored: list[tuple[float, bool, int]] = []
    wanted: Counter[int] = Counter()
    right = asked = slots_right = slots = switches = tracks_right = tracks_seen = 0
    persons_right = persons_seen = gone = back = 0
    overlaps: list[_Overlap] = []
    times = clips.time_BT.cpu().numpy()
    for i, frames in enumerate(seen):
        pairs: Counter[tuple[int, int]] = Counter()
        last: dict[int, int] = {}
        when: dict[int, float] = {}
        for t, frame in enumerate(frames):
            there = np.flatnonzero((kinds[i] >= 0) & (shown[i, t] > 0) & (np.ptp(boxes[i, t][:, ::2], axis=1) > 0))
            clear = {int(m) for m in there if shown[i, t, m] >= visible and tall[i, t, m]}
            wanted.update(int(kinds[i, m]) for m in clear)
            overlap = _iou(frame.box_N4, boxes[i, t][there])
            free = set(range(len(there)))
            counted: list[int] = []
            for n in np.argsort(-frame.score_N, kind="stable"):
                best = max(free, key=lambda j: overlap[n, j], default=None)
                hit = best is not None and overlap[n, best] >= OVERLAP
                m = int(there[best]) if hit else -1
                if hit and m not in clear:
                    continue
                counted.append(int(n))
                tracks_seen += frame.identity_N[n] != NOBODY
                persons_seen += frame.identity_N[n] != NOBODY and frame.kind_N[n] == PERSON
                same = hit and int(kinds[i, m]) == int(frame.kind_N[n])
                scored.append((float(frame.score_N[n]), same, int(frame.kind_N[n])))
                if not hit:
                    continue
                free.discard(best)
                who = int(frame.identity_N[n])
                if who != NOBODY:
                    pairs[m, who] += 1
                    if times[i, t] - when.get(m, times[i, t]) >= LONG_GONE and kinds[i, m] == PERSON:
                        gone, back = gone + 1, back + (last[m] == who)
                    when[m] = times[i, t]
                    switches += last.get(m, who) != who
                    last[m] = who
                known = ~np.isnan(attributes[i, t, m]) & same
                asked += int(known.sum())
                right += int(((frame.attribute_NA[n] > 0) == (attributes[i, t, m] > 0.5))[known].sum())
            named = [n for n in counted if frame.identity_N[n] != NOBODY]
            asked_for = [j for j, m in enumerate(there) if int(m) in clear]
            overlaps.append(_Overlap(
                i, there[asked_for], frame.identity_N[named], overlap[np.ix_(named, asked_for)].T,
                kinds[i, there[asked_for]], frame.kind_N[named],
            ))  # fmt: skip
            for name, p in frame.slots.items():
                truth = occupied[i, t, int(name)]
                slots += bool(not np.isnan(truth))
                slots_right += bool(not np.isnan(truth) and (p > 0.5) == (truth > 0.5))
        tracks_right += _identities(pairs)
        of_persons = Counter({(m, who): count for (m, who), count in pairs.items() if kinds[i, m] == PERSON})
        persons_right += _identities(of_persons)
    hits = sum(hit for _, hit, _ in scored)
    total = sum(wanted.values())
    by_kind = {kind: [(score, hit) for score, hit, k in scored if k == kind] for kind in wanted}
    precisions = [_average_precision(by_kind[kind], count) for kind, count in wanted.items()]
    found = {
        "ap50": sum(precisions) / max(1, len(precisions)),
        "recall": hits / max(1, total),
        "precision": hits / max(1, len(scored)),
        "hota": hota([x.frame() for x in overlaps]),
        "hota_person": hota([x.frame(PERSON) for x in overlaps]),
        "idf1": 2 * tracks_right / max(1, total + tracks_seen),
        "idf1_person": 2 * persons_right / max(1, wanted[PERSON] + persons_seen),
        "switches": 100 * switches / max(1, hits),
    }
    if gone:
        found["came_back"] = back / gone
    if asked:
        found["attributes"] = right / asked
    if slots:
        found["slots"] = slots_right / slots
    return found


def tuned(
    network: StilleCamNet, clips: Clips, visible: float, device: torch.device, dtype: torch.dtype | None
) -> StilleCamConfig:
    """The network's configuration with the thresholds under which it follows these clips best: one after the other, by
    the mean of HOTA of all and of persons."""

    def score(config: StilleCamConfig) -> float:
        found = judge(watch(StilleCam(with_thresholds(network, config), device, dtype), clips), clips, visible)
        return found["hota"] + found["hota_person"]

    config, best = network.config, score(network.config)
    for name, values in TRIED.items():
        for value in values:
            other = replace(config, **{name: value})
            if (now := score(other)) > best:
                config, best = other, now
    return config


def with_thresholds(network: StilleCamNet, config: StilleCamConfig) -> StilleCamNet:
    """A copy with another configuration of the same sizes."""
    network = copy.deepcopy(network)
    network.config = network.decoder.config = config
    return network


@dataclass(slots=True)
class _Overlap:
    """Of the objects that are asked for in a frame, and of those that are named."""

    clip: int
    object_M: np.ndarray
    identity_N: np.ndarray
    overlap_MN: np.ndarray
    kind_M: np.ndarray
    kind_N: np.ndarray

    def frame(self, kind: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `hota` takes it; numbers differ from clip to clip."""
        rows = np.ones(len(self.object_M), bool) if kind is None else self.kind_M == kind
        columns = np.ones(len(self.identity_N), bool) if kind is None else self.kind_N == kind
        apart = self.clip << 32
        return self.object_M[rows] + apart, self.identity_N[columns] + apart, self.overlap_MN[np.ix_(rows, columns)]


def _iou(a_N4: np.ndarray, b_M4: np.ndarray) -> np.ndarray:
    low, high = np.maximum(a_N4[:, None, :2], b_M4[None, :, :2]), np.minimum(a_N4[:, None, 2:], b_M4[None, :, 2:])
    shared = (high - low).clip(0).prod(-1)
    size = [(x[:, 2:] - x[:, :2]).prod(-1) for x in (a_N4, b_M4)]
    return shared / np.maximum(size[0][:, None] + size[1][None] - shared, 1e-9)


def _average_precision(scored: list[tuple[float, bool]], wanted: int) -> float:
    """Area under the precision that falls with recall."""
    if not scored or not wanted:
        return 0.0
    hit = np.array([h for _, h in sorted(scored, key=lambda each: -each[0])])
    recall = hit.cumsum() / wanted
    precision = np.maximum.accumulate((hit.cumsum() / np.arange(1, len(hit) + 1))[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def _identities(pairs: Counter[tuple[int, int]]) -> int:
    """Appearances that the best one-to-one map of objects to identities explains."""
    if not pairs:
        return 0
    objects, names = sorted({m for m, _ in pairs}), sorted({n for _, n in pairs})
    table = np.zeros((len(objects), len(names)))
    for (m, n), count in pairs.items():
        table[objects.index(m), names.index(n)] = count
    rows, columns = linear_sum_assignment(table, maximize=True)
    return int(table[rows, columns].sum())
