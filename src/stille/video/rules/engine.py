"""The rules engine: what is seen, in order of time for each camera, becomes events that open, change and close.

It has no clock and no randomness: the same input gives the same events with the same ids, and an engine restored from
its state goes on as if it had never stopped.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pydantic import TypeAdapter, ValidationError

from stille.video.errors import RulesError
from stille.video.rules.incidents import Incident, event_id
from stille.video.rules.schema import Rule, Rules, Zone
from stille.video.rules.tracks import Tracks, Unsettled
from stille.video.rules.view import Finding, View
from stille.video.types import Event, Seen, Trouble
from stille.video.zones import Floor, Point

BACK_S = 2.0
"""A frame that is older than the last by at most this is left out; by more, the clock was set back."""
GAP_S = 5.0
"""After so long without frames what had not become an event is forgotten."""
LOST_S = 60.0
"""After so long without frames nobody knows what goes on: events are closed."""
NUMBERED = 4096
"""Incident keys of a camera whose number is kept: identities are never used again, so old ones may go."""


@dataclass
class CameraState:
    """
    Attributes:
        start: time of its first frame, part of its events' ids.
        last: time of the last frame; resumed: of the first one after a gap; now: of the last news of any kind.
        incidents: by rule, zone and key.
        numbers: how many events each key has had.
        memory: of rules, by their ids.
    """

    start: float
    last: float | None = None
    resumed: float = 0.0
    now: float = 0.0
    tracks: Tracks = field(default_factory=Tracks)
    incidents: dict[str, Incident] = field(default_factory=dict)
    troubles: dict[str, Trouble] = field(default_factory=dict)
    memory: dict[str, dict[str, float]] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Layout:
    """Of a camera: polygons and lines in 0..1, the floor, and which rules look where."""

    zones: dict[str, tuple[Point, ...]]
    slots: dict[str, tuple[Point, ...]]
    lines: dict[str, tuple[Point, Point]]
    floor: Floor | None
    looks: tuple[tuple[Rule, Zone | None], ...]

    @cached_property
    def places(self) -> dict[str, tuple[Point, ...]]:
        return {**self.slots, **self.zones}


_STATE = TypeAdapter(dict[str, CameraState])


class Engine:
    """
    Args:
        rules: that it applies; cameras that they do not name are subject to rules without zones and cameras.

    Attributes:
        skipped: frames that were left out, by reason ("late", "time").
    """

    def __init__(self, rules: Rules):
        self.rules = rules
        self.skipped: Counter[str] = Counter()
        self._cameras: dict[str, CameraState] = {}
        self._layouts: dict[str, _Layout] = {}

    def see(self, seen: Seen) -> list[Event]:
        """Take in a frame; the changes to events that follow from it, in order."""
        time = seen.time
        if not math.isfinite(time):
            self.skipped["time"] += 1
            return []
        state = self._state(seen.camera, time)
        changes: list[Event] = []
        if state.last is not None and time <= state.last:
            if state.last - time <= BACK_S:
                self.skipped["late"] += 1
                return []
            changes += self._restart(state, time)
        if state.last is None or time - state.last > GAP_S:
            state.resumed = time
            state.incidents = {k: one for k, one in state.incidents.items() if one.event is not None}
        layout = self._layout(seen.camera)
        unsettled = state.tracks.update(seen, layout.zones, layout.lines, layout.floor)
        state.last, state.now = time, max(time, state.now)
        return changes + self._apply(seen.camera, state, time, seen, unsettled)

    def trouble(self, trouble: Trouble) -> list[Event]:
        """Take in what is wrong, or right again, with a camera."""
        if not (math.isfinite(trouble.time) and math.isfinite(trouble.since)):
            self.skipped["time"] += 1
            return []
        state = self._state(trouble.camera, trouble.time)
        state.now = max(trouble.time, state.now)
        state.troubles[trouble.kind] = trouble
        changes = self._apply(trouble.camera, state, state.now, None, [])
        if trouble.over:
            del state.troubles[trouble.kind]
        return changes

    def advance(self, camera: str, time: float) -> list[Event]:
        """Say that it is this time and no frame has come: camera troubles get older, and events of which nobody knows
        any more whether they go on are closed."""
        state = self._cameras.get(camera)
        if state is None or not math.isfinite(time):
            return []
        state.now = max(time, state.now)
        changes = self._apply(camera, state, state.now, None, [])
        if state.last is not None and time - state.last >= LOST_S:
            objects = [k for k, one in state.incidents.items() if self._about(one) == "objects"]
            changes += self._close(state, objects, state.last, "no frames")
            state.tracks = Tracks()
        return changes

    def end(self, camera: str) -> list[Event]:
        """The camera is no more: its events close."""
        state = self._cameras.pop(camera, None)
        if state is None:
            return []
        return self._close(state, list(state.incidents), None, "camera ended")

    def open_events(self) -> list[Event]:
        """As they were sent last."""
        return [one.event for s in self._cameras.values() for one in s.incidents.values() if one.event is not None]

    def amend(
        self, id: str, notes: Mapping[str, str] | None = None, before_told: bool = False, **fields: Any
    ) -> Event | None:
        """Set fields of an open event (`withheld`, `snapshot`, `clip`); the change, or None if it is not open.

        Args:
            notes: added to its facts, for good.
            before_told: its last change has not been told yet, and this becomes part of it.
        """
        for state in self._cameras.values():
            for incident in state.incidents.values():
                if incident.event is not None and incident.event.id == id:
                    if notes:
                        incident.notes.update(notes)
                        fields["facts"] = {**incident.event.facts, **notes}
                    if before_told:
                        fields["revision"] = incident.event.revision
                    return incident.change(**fields)
        return None

    def state(self) -> dict[str, Any]:
        """All that it knows, as JSON."""
        return {"cameras": _STATE.dump_python(self._cameras, mode="json"), "skipped": dict(self.skipped)}

    @classmethod
    def restore(cls, rules: Rules, state: dict[str, Any]) -> tuple[Engine, list[Event]]:
        """An engine that goes on from a state; events of rules and zones that are no more are closed.

        Raises:
            RulesError: not a state of this version.
        """
        engine = cls(rules)
        try:
            engine._cameras = _STATE.validate_python(state["cameras"])
            engine.skipped.update(state["skipped"])
        except (ValidationError, KeyError, TypeError) as error:
            raise RulesError(f"the saved state cannot be used: {error}; delete it to begin anew") from error
        changes = []
        for name, camera in engine._cameras.items():
            looks = {(rule.id, zone and zone.name) for rule, zone in engine._layout(name).looks}
            orphans = [k for k, one in camera.incidents.items() if (one.rule, one.zone) not in looks]
            changes += engine._close(camera, orphans, None, "rules changed")
        return engine, changes

    # One frame

    def _apply(
        self, camera: str, state: CameraState, time: float, seen: Seen | None, unsettled: list[Unsettled]
    ) -> list[Event]:
        """Let the rules look; without a frame only those that are about the camera itself."""
        layout = self._layout(camera)
        tracks = state.tracks.present(time) if seen is not None else []
        gone = {track.identity for track in tracks if not track.seen}
        changes: list[Event] = []
        for rule, zone in layout.looks:
            if seen is None and rule.about == "objects":
                continue
            prefix = f"{rule.id}\x1f{zone.name if zone else ''}\x1f"
            mine = {key: one for key, one in state.incidents.items() if key.startswith(prefix)}
            if rule.schedule is not None and not rule.schedule.holds(time, self.rules.timezone):
                changes += self._close(state, mine, time, "schedule")
                continue
            view = View(
                self.rules, camera, time, zone, tracks, unsettled, seen.slots if seen else {},
                layout.places, state.troubles,
                frozenset(one.key for one in mine.values() if one.event is not None),
                state.memory.setdefault(rule.id, {}),
            )  # fmt: skip
            for finding in rule.find(view):
                if rule.momentary:
                    changes.append(self._moment(camera, state, rule, zone, finding, time))
                    continue
                key = prefix + finding.key
                incident = mine.pop(key, None) or state.incidents.get(key)
                if incident is None:
                    incident = state.incidents[key] = Incident(rule.id, zone and zone.name, finding.key, time)
                incident.hit(rule, finding, time)
                if incident.event is None and incident.held is not None:
                    incident = self._adopt(state, prefix, incident) or incident
                    mine.pop(key, None)
                change = self._open(camera, state, rule, incident, time) or incident.update(time)
                if change is not None:
                    changes.append(change)
            changes += self._quiet(state, rule, mine, gone, time)
        return changes

    def _quiet(
        self, state: CameraState, rule: Rule, silent: dict[str, Incident], gone: set[int], time: float
    ) -> list[Event]:
        """What was not found in this frame."""
        changes = []
        for key, incident in silent.items():
            if key not in state.incidents or any(identity in gone for identity in incident.about):
                continue
            incident.miss(rule, time)
            if incident.gone:
                del state.incidents[key]
            elif incident.event is not None and time - max(incident.last, state.resumed) >= rule.quiet:
                changes += self._close(state, [key], incident.last)
            elif incident.due:
                change = incident.update(time)
                changes += [change] if change is not None else []
        return changes

    def _open(self, camera: str, state: CameraState, rule: Rule, incident: Incident, time: float) -> Event | None:
        if not incident.ripe(rule, time):
            return None
        return incident.open(rule, camera, self._next_id(camera, state, incident), time)

    def _moment(
        self, camera: str, state: CameraState, rule: Rule, zone: Zone | None, finding: Finding, time: float
    ) -> Event:
        incident = Incident(rule.id, zone and zone.name, finding.key, time)
        incident.hit(rule, finding, time)
        event = incident.open(rule, camera, self._next_id(camera, state, incident), time)
        return event.model_copy(update={"state": "closed", "ended": time})

    def _adopt(self, state: CameraState, prefix: str, new: Incident) -> Incident | None:
        """The open incident that this is: its object has vanished, and where it was an identity has come up since."""
        known = state.tracks.known
        for key, old in list(state.incidents.items()):
            if old is new or old.event is None or not key.startswith(prefix):
                continue
            lost, found = set(old.about) - set(new.about), set(new.about) - set(old.about)
            if len(lost) != 1 or len(found) != 1:
                continue
            was, now = known.get(lost.pop()), known.get(found.pop())
            if was is None or now is None or was.seen or now.first < was.last or was.kind != now.kind:
                continue
            if math.dist(was.foot, now.foot) > max(was.height, now.height):
                continue
            del state.incidents[key]
            old.key, old.about, old.last, old.votes = new.key, new.about, new.last, new.votes
            old.held, old.due = new.held, True
            state.incidents[prefix + new.key] = old
            return old
        return None

    def _next_id(self, camera: str, state: CameraState, incident: Incident) -> str:
        name = f"{incident.rule}\x1f{incident.zone or ''}\x1f{incident.key}"
        number = state.numbers.pop(name, 0) + 1
        state.numbers[name] = number  # the newest is the last
        while len(state.numbers) > NUMBERED:
            del state.numbers[next(iter(state.numbers))]
        return event_id(camera, state.start, name, number)

    @staticmethod
    def _close(state: CameraState, keys: Iterable[str], ended: float | None, why: str | None = None) -> list[Event]:
        """
        Args:
            ended: None: with the last frame that showed it.
        """
        changes = []
        for key in list(keys):
            incident = state.incidents.pop(key, None)
            change = incident.close(incident.last if ended is None else ended, why) if incident else None
            if change is not None:
                changes.append(change)
        return changes

    def _restart(self, state: CameraState, time: float) -> list[Event]:
        """The camera's clock was set back."""
        changes = self._close(state, list(state.incidents), state.last, "clock")
        state.tracks, state.troubles = Tracks(), {}
        state.last, state.now = None, time
        return changes

    # Cameras

    def _state(self, camera: str, time: float) -> CameraState:
        return self._cameras.get(camera) or self._cameras.setdefault(camera, CameraState(time, resumed=time, now=time))

    def _about(self, incident: Incident) -> str:
        rule = self.rules.rule(incident.rule)
        return rule.about if rule else "objects"

    def _layout(self, camera: str) -> _Layout:
        layout = self._layouts.get(camera)
        if layout is None:
            rules = self.rules
            zones = {zone.name: zone for zone in rules.zones if zone.camera == camera}
            looks: list[tuple[Rule, Zone | None]] = []
            for rule in rules.rules:
                if rule.cameras and camera not in rule.cameras:
                    continue
                if rule.zones:
                    looks += [(rule, zones[name]) for name in rule.zones if name in zones]
                elif all(self._here(camera, names, getattr(rule, names, ())) for names in ("lines", "slots")):
                    looks.append((rule, None))
            layout = self._layouts[camera] = _Layout(
                {name: rules.scaled(camera, zone.points) for name, zone in zones.items()},
                {slot.name: rules.scaled(camera, slot.points) for slot in rules.slots if slot.camera == camera},
                {
                    line.name: (ends[0], ends[1])
                    for line in rules.lines
                    if line.camera == camera
                    for ends in [rules.scaled(camera, (line.start, line.end))]
                },
                rules.floor(camera),
                tuple(looks),
            )
        return layout

    def _here(self, camera: str, kind: str, names: Iterable[str]) -> bool:
        """Whether a rule that is about such names, or about all, has any of them on this camera."""
        names = set(names)
        return not names or any(one.name in names and one.camera == camera for one in getattr(self.rules, kind))
