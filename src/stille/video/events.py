"""The desk: from what is seen to events that are verified, shown and sent.

seen -> rules engine -> verifier -> sinks
             `-> snapshot and clip, which the event names once they are written
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from stille.video.errors import RulesError
from stille.video.evidence import Case, Evidence, Recent, atomic
from stille.video.rules import Engine, Rules
from stille.video.sinks import Sinks
from stille.video.types import ATTRIBUTES, Event, Frame, Seen, Trouble

if TYPE_CHECKING:
    from stille.video.store import Store

log = logging.getLogger(__name__)

RECHECK_S = 2.0
"""Between two looks of the verifier at an event that it withholds and that goes on."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """
    Attributes:
        withhold: the event is held for a false alarm.
        why: in words.
    """

    withhold: bool
    why: str


class Verifier(Protocol):
    """Looks at the short time around an event when its rule fires."""

    def judge(self, case: Case) -> Verdict: ...


class Consistency:
    """Withholds what the frames do not bear out evenly. Needs no learning. Events without identities pass.

    For each identity: the share of the frames since the event began in which it is there and its attribute is on the
    event's side; the median of its scores; the share of steps between frames in which its box stays where it was. Of
    two identities the worse counts, of more the middle one.
    """

    sides = {"no_helmet": ("helmet", -1), "no_vest": ("vest", -1), "lying": ("lying", 1)}

    def __init__(self, share: float = 0.5, score: float = 0.5, stable: float = 0.7):
        self.share, self.score, self.stable = share, score, stable

    def judge(self, case: Case) -> Verdict:
        event = case.event
        frames = [one for one in case.seen if event.began <= one.time <= case.until]
        if not event.identities or not frames:
            return Verdict(False, "nothing to look at")
        figures = [self._figures(event, identity, frames) for identity in event.identities]
        worst = [sorted(column)[(len(figures) - 1) // 2] for column in zip(*figures, strict=True)]
        limits = (("share of frames", self.share), ("median score", self.score), ("steady boxes", self.stable))
        text = ", ".join(f"{name} {value:.2f}" for (name, _), value in zip(limits, worst, strict=True))
        failed = [name for (name, limit), value in zip(limits, worst, strict=True) if value < limit]
        return Verdict(bool(failed), f"{text}; too low: {', '.join(failed)}" if failed else text)

    def _figures(self, event: Event, identity: int, frames: list[Seen]) -> tuple[float, float, float]:
        attribute, side = self.sides.get(event.kind, (None, 1))
        scores, boxes, support = [], [], 0
        for frame in frames:
            for i in np.flatnonzero(frame.identity_N == identity)[:1]:
                scores.append(float(frame.score_N[i]))
                boxes.append((frame.time, frame.box_N4[i]))
                odds = 1.0 if attribute is None else side * frame.attribute_NA[i, ATTRIBUTES.index(attribute)]
                support += odds > 0
        if not scores:
            return 0.0, 0.0, 0.0
        steps = [overlap(a, b) >= 0.3 for (s, a), (t, b) in pairwise(boxes) if t - s <= 0.5]
        return support / len(frames), float(np.median(scores)), sum(steps) / len(steps) if steps else 1.0


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union."""
    width, height = (min(a[k + 2], b[k + 2]) - max(a[k], b[k]) for k in (0, 1))
    both = max(width, 0) * max(height, 0)
    either = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return float(both / either) if either > 0 else 0.0


class Desk:
    """All cameras of a process. One thread uses it.

    Args:
        evidence: None: no snapshots and clips.
        before_s, after_s: what a clip shows of the time around the moment in which an event opens.
        fps: of clips.

    Attributes:
        counts: "opened", "closed", "withheld", "released", "unsaved".
    """

    def __init__(
        self, rules: Rules, sinks: Sinks, verifier: Verifier | None = None, evidence: Evidence | None = None,
        before_s: float = 4.0, after_s: float = 2.0, fps: float = 5.0,
    ):  # fmt: skip
        self.rules, self.sinks, self.verifier, self.evidence = rules, sinks, verifier, evidence
        self.engine = Engine(rules)
        self.counts: Counter[str] = Counter()
        self._before_s, self._after_s, self._fps = before_s, after_s, fps
        self._recent: dict[str, Recent] = {}
        self._clips: dict[str, tuple[Event, float]] = {}  # by event id: what to show, and when
        self._doubted: dict[str, tuple[str, float]] = {}  # withheld and open: camera, when to look again
        self._shown: dict[str, Event] = {}  # whose evidence is being written: the last change

    def see(self, seen: Seen, frame: Frame | None = None) -> list[Event]:
        """Take in a frame and what is seen in it; the changes to events, as they went to the sinks."""
        recent = self._recent.get(seen.camera) or self._recent.setdefault(
            seen.camera, Recent(self._before_s + self._after_s, self._fps)
        )
        recent.add(frame, seen)
        changes = self._tell(self.engine.see(seen), seen.time)
        changes += self._again(seen.camera, seen.time)
        for id, (event, when) in list(self._clips.items()):
            if event.camera == seen.camera and (seen.time >= when or seen.time < event.changed):
                self._write_clip(id)
        return changes + self._written()

    def trouble(self, trouble: Trouble) -> list[Event]:
        return self._tell(self.engine.trouble(trouble), trouble.time) + self._written()

    def advance(self, camera: str, time: float) -> list[Event]:
        """As `Engine.advance`: call it now and then for a camera that gives no frames."""
        return self._tell(self.engine.advance(camera, time), time) + self._written()

    def end(self, camera: str) -> list[Event]:
        """The camera is no more."""
        for id in [id for id, (event, _) in self._clips.items() if event.camera == camera]:
            self._write_clip(id)
        recent = self._recent.pop(camera, None)
        time = recent.seen[-1].time if recent and recent.seen else 0.0
        return self._tell(self.engine.end(camera), time) + self._written()

    def close(self, timeout_s: float = 10.0) -> None:
        """Write what evidence waits and give the sinks that time to take what they have not. Events stay open: they go
        on with the saved state."""
        for id in list(self._clips):
            self._write_clip(id)
        if self.evidence is not None:
            self.evidence.close(timeout_s)
            self._written()
        self.sinks.close(timeout_s)

    def save(self, path: str | os.PathLike[str]) -> bool:
        """Write the state, once nothing of it can get lost on the way to the sinks. False, and counted, if the disk
        does not take it."""
        try:
            self.sinks.secure(0.005)
            with atomic(Path(path)) as file:
                file.write(json.dumps(self.engine.state(), allow_nan=False).encode())
        except OSError as error:
            if not self.counts["unsaved"]:
                log.error("the state cannot be saved to %s: %s", path, error)
            self.counts["unsaved"] += 1
            return False
        return True

    def load(self, path: str | os.PathLike[str]) -> list[Event]:
        """Go on from a saved state, if there is one; changes for events of rules that are no more.

        Raises:
            RulesError: it is no state.
        """
        try:
            state = json.loads(Path(path).read_bytes())
        except FileNotFoundError:
            return []
        except ValueError as error:
            raise RulesError(f"{path} is no saved state: {error}; delete it to begin anew") from error
        self.engine, changes = Engine.restore(self.rules, state)
        for event in self.engine.open_events():
            if event.withheld:
                self._doubted[event.id] = (event.camera, event.changed + RECHECK_S)
        return self._tell(changes, 0.0)

    def health(self) -> dict[str, Any]:
        """Counts of events, of frames that were skipped, of evidence and of each sink."""
        evidence = dict(self.evidence.counts) if self.evidence is not None else {}
        skipped = dict(self.engine.skipped)
        return {"events": dict(self.counts), "skipped": skipped, "evidence": evidence, "sinks": self.sinks.health()}

    # What becomes of a change

    def _tell(self, changes: Iterable[Event], time: float) -> list[Event]:
        told = []
        for event in changes:
            if event.revision == 0:
                event = self._first(event, time)
            elif event.state == "closed":
                self.counts["closed"] += 1
                self._doubted.pop(event.id, None)
                if event.id in self._shown:
                    self._shown[event.id] = event
            told.append(event)
        self.sinks.put(told)
        return told

    def _first(self, event: Event, time: float) -> Event:
        """An event opens: verify it and see to its evidence."""
        self.counts["opened"] += 1
        rule = self.rules.rule(event.rule)
        case = self._case(event, time)
        if self.verifier is not None and rule is not None and rule.verify and case is not None:
            verdict = self._judge(case)
            if verdict is not None and verdict.withhold:
                self.counts["withheld"] += 1
                fields = {"withheld": True, "facts": {**event.facts, "verdict": verdict.why}}
                amended = self.engine.amend(event.id, {"verdict": verdict.why}, before_told=True, withheld=True)
                event = amended or event.model_copy(update=fields)
                if event.state == "open":
                    self._doubted[event.id] = (event.camera, time + RECHECK_S)
        if self.evidence is not None and rule is not None and rule.evidence and case is not None and case.frames:
            self._shown[event.id] = event
            while len(self._shown) > 1000:
                del self._shown[next(iter(self._shown))]
            self.evidence.write(case, "snapshot")
            self._clips[event.id] = (event, time + self._after_s)
        return event

    def _again(self, camera: str, time: float) -> list[Event]:
        """Look again at what is withheld and goes on: a real incident bears itself out in time."""
        released = []
        for id, (where, when) in list(self._doubted.items()):
            if where != camera or time < when:
                continue
            event = next((one for one in self.engine.open_events() if one.id == id), None)
            case = self._case(event, time) if event is not None else None
            if event is None or case is None:
                del self._doubted[id]
                continue
            verdict = self._judge(case)
            if verdict is None or not verdict.withhold:
                self.counts["released"] += 1
                del self._doubted[id]
                notes = {"verdict": verdict.why} if verdict else {}
                change = self.engine.amend(id, notes, withheld=False, changed=time)
                released += [change] if change is not None else []
            else:
                self._doubted[id] = (camera, time + RECHECK_S)
        self.sinks.put(released)
        return released

    def _judge(self, case: Case) -> Verdict | None:
        """None, and the event is sent, if the verifier fails."""
        assert self.verifier is not None
        try:
            return self.verifier.judge(case)
        except Exception:
            log.exception("the verifier failed on event %s, which is sent", case.event.id)
            return None

    def _case(self, event: Event, time: float) -> Case | None:
        recent = self._recent.get(event.camera)
        if recent is None or not recent.seen:
            return None
        return Case(event, list(recent.frames), list(recent.seen), time)

    def _write_clip(self, id: str) -> None:
        event, when = self._clips.pop(id)
        case = self._case(event, when)
        if case is not None and self.evidence is not None:
            opened = when - self._after_s
            case.frames = [one for one in case.frames if opened - self._before_s <= one.time <= when]
            if case.frames:
                self.evidence.write(case, "clip")

    def _written(self) -> list[Event]:
        """Tell where evidence is that has been written since the last look."""
        changes = []
        for id, what, path in self.evidence.done() if self.evidence is not None else ():
            change = self.engine.amend(id, None, False, **{what: path})
            if change is None and (closed := self._shown.get(id)) is not None:
                change = closed.model_copy(update={"revision": closed.revision + 1, what: path})
                self._shown[id] = change
            if what == "clip":
                self._shown.pop(id, None)
            if change is not None:
                changes.append(change)
        self.sinks.put(changes)
        return changes


def purge(store: Store, rules: Rules, evidence: Evidence | None, now: float, keep_days: float | None = None) -> int:
    """Delete events that are kept no longer, their evidence first; how many. See `Store.expired`."""
    total = 0
    while old := store.expired(rules, now, keep_days):
        if evidence is not None:
            evidence.remove(path for one in old for path in (one.snapshot, one.clip) if path)
        total += store.delete([one.id for one in old])
    return total
