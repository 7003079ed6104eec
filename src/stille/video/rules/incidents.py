"""From findings in frames to one event for each incident.

    candidate   found at least once; forgotten when none of its last frames shows it
    held        `hits` of the last `of` frames show it: its dwell runs from the oldest of those
    open        it has held for the dwell: the event opens, dated from when it began to hold
    closed      nothing for `quiet` seconds: the event ends with the last frame that showed it

A frame in which an object of the incident is out of sight for a moment says nothing either way.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from stille.video.rules.schema import Rule
from stille.video.rules.view import Finding
from stille.video.types import Event

UPDATE_S = 1.0
"""Between two updates of an event."""
SURER = 0.1
"""An update is worth while when the confidence has grown by this."""


@dataclass
class Incident:
    """
    Attributes:
        votes: time and confidence of the last frames, 0 for one that did not show it.
        held: since when it holds; last: time of the last frame that supports it.
        about: identities of the last finding.
        level, reason, facts, confidence: of the finding that is told.
        event: as it was sent last; sent: when; due: whether something has changed since then.
        notes: facts that others have added to the event.
    """

    rule: str
    zone: str | None
    key: str
    last: float
    votes: list[tuple[float, float]] = field(default_factory=list)
    held: float | None = None
    about: list[int] = field(default_factory=list)
    level: int = 0
    reason: str = ""
    facts: dict[str, float | int | str | bool] = field(default_factory=dict)
    confidence: float = 0.0
    began: float | None = None
    event: Event | None = None
    sent: float = 0.0
    due: bool = False
    notes: dict[str, str] = field(default_factory=dict)

    def hit(self, rule: Rule, finding: Finding, time: float) -> None:
        """This frame shows it."""
        hits = self._vote(rule, time, max(finding.confidence, 1e-6))
        if len(hits) >= rule.open_after.hits and self.held is None:
            self.held = hits[0][0]
        if 2 * len(hits) >= rule.open_after.hits:
            self.last = time
        self.about = list(finding.identities)
        self.began = finding.since
        confidence = sum(value for _, value in hits) / len(hits)
        if self.event is None or not rule.worst or finding.level >= self.level:
            self.due |= self.event is not None and finding.level != self.level
            self.level, self.reason, self.facts = finding.level, finding.reason, dict(finding.facts)
        if self.event is None:
            self.confidence = confidence
            return
        self.confidence = max(self.confidence, confidence)
        self.due |= self.confidence >= self.event.confidence + SURER
        self.due |= not set(self.about) <= set(self.event.identities)

    def miss(self, rule: Rule, time: float) -> None:
        """This frame does not."""
        hits = self._vote(rule, time, 0.0)
        if len(hits) < rule.open_after.hits:
            self.held = None

    def _vote(self, rule: Rule, time: float, confidence: float) -> list[tuple[float, float]]:
        self.votes.append((time, confidence))
        del self.votes[: -rule.open_after.of]
        return [vote for vote in self.votes if vote[1] > 0]

    @property
    def gone(self) -> bool:
        """A candidate that none of the last frames shows."""
        return self.event is None and all(confidence == 0 for _, confidence in self.votes)

    def ripe(self, rule: Rule, time: float) -> bool:
        """Whether its event has to open."""
        if self.event is not None or self.held is None:
            return False
        return time - (self.held if self.began is None else min(self.held, self.began)) >= rule.dwell

    def open(self, rule: Rule, camera: str, id: str, time: float) -> Event:
        held = time if self.held is None else self.held
        self.event = Event(
            id=id, state="open", revision=0, camera=camera, rule=rule.id, kind=rule.type, zone=self.zone,
            began=held if self.began is None else min(held, self.began), changed=time,
            identities=tuple(dict.fromkeys(self.about)), confidence=round(min(self.confidence, 1.0), 3),
            reason=self._words(time), facts=self.facts,
        )  # fmt: skip
        self.sent, self.due = time, False
        return self.event

    def update(self, time: float) -> Event | None:
        """A change, if there is one to tell and the last was not just now."""
        if self.event is None or not self.due or time - self.sent < UPDATE_S:
            return None
        self.sent, self.due = time, False
        return self.change(changed=time, **self._told(time))

    def close(self, ended: float, why: str | None = None) -> Event | None:
        """The last change; None if it was never open.

        Args:
            why: if it is not because nothing was found any more.
        """
        if self.event is None:
            return None
        told = self._told(ended)
        if why:
            told["facts"] = told["facts"] | {"closed_by": why}
        ended = max(ended, self.event.began)
        return self.change(state="closed", changed=max(ended, self.event.changed), ended=ended, **told)

    def change(self, **fields: Any) -> Event:
        assert self.event is not None
        self.event = self.event.model_copy(update={"revision": self.event.revision + 1} | fields)
        return self.event

    def _told(self, time: float) -> dict[str, Any]:
        assert self.event is not None
        identities = tuple(dict.fromkeys([*self.event.identities, *self.about]))
        confidence = round(min(max(self.confidence, self.event.confidence), 1.0), 3)
        return dict(
            identities=identities, confidence=confidence, reason=self._words(time), facts={**self.facts, **self.notes}
        )

    def _words(self, time: float) -> str:
        began = self.event.began if self.event else self.held
        lasted = 0.0 if began is None else time - began
        return f"{self.reason}, for {lasted:.0f} s" if lasted >= 1 else self.reason


def event_id(*parts: str | int | float | None) -> str:
    """The same for the same incident, in whichever process it is told."""
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()[:24]
