"""Rules about one person: helmet and vest, lying, being where nobody should be."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

from pydantic import Field, FiniteFloat, model_validator

from stille.video.rules.schema import Kind, Rule, register
from stille.video.rules.tracks import rides
from stille.video.rules.view import Finding, View
from stille.video.types import ATTRIBUTES


def probability(log_odds: float) -> float:
    return 0.5 * (1 + math.tanh(log_odds / 2))


@register("no_helmet", "no_vest")
class MissingGear(Rule):
    """A person in the zone who, by all that was seen of them, wears no helmet (vest)."""

    type: Literal["no_helmet", "no_vest"]
    sure: FiniteFloat = -2.0
    """An event opens when the log-odds that it is worn are at most this."""
    unsure: FiniteFloat = 0.0
    """An open event is quiet once they are above this."""

    @model_validator(mode="after")
    def _ordered(self) -> MissingGear:
        if self.sure > self.unsure:
            raise ValueError(f"sure {self.sure} is above unsure {self.unsure}, expected it below")
        return self

    def find(self, view: View) -> Iterator[Finding]:
        name = self.type.removeprefix("no_")
        number = ATTRIBUTES.index(name)
        for track in view.here("person", min_score=self.min_score):
            if not track.seen:
                continue
            odds, key = track.attributes[number], str(track.identity)
            if odds <= (self.unsure if key in view.ongoing else self.sure):
                chance = probability(odds)
                reason = f"a person without a {name} {view.where}: probability {chance:.2f} that it is worn"
                confidence = track.score * (1 - chance)
                yield Finding(key, confidence, reason, (track.identity,), {"probability_worn": round(chance, 3)})


@register("lying")
class Lying(Rule):
    """A person who lies on the floor, after a fall or for another reason."""

    type: Literal["lying"]
    dwell: FiniteFloat = Field(default=3.0, ge=0)
    sure: FiniteFloat = 2.0
    """An event opens when the log-odds of lying are at least this."""
    unsure: FiniteFloat = 0.0
    """An open event is quiet once they are below this."""

    def find(self, view: View) -> Iterator[Finding]:
        number = ATTRIBUTES.index("lying")
        for track in view.here("person", min_score=self.min_score):
            odds, key = track.attributes[number], str(track.identity)
            if track.seen and odds >= (self.unsure if key in view.ongoing else self.sure):
                chance = probability(odds)
                reason = f"a person lies {view.where}: probability {chance:.2f}"
                yield Finding(key, track.score * chance, reason, (track.identity,), {"probability": round(chance, 3)})


@register("person_in_lane", "intrusion")
class Presence(Rule):
    """Somebody is in the zone; drivers are not persons in a lane. For intrusion outside hours give a schedule with the
    hours, and `outside: true`."""

    type: Literal["person_in_lane", "intrusion"]
    kinds: tuple[Kind, ...] = Field(default=("person",), min_length=1)
    with_forklift: bool = False
    """Only while a forklift is in the same zone."""

    def find(self, view: View) -> Iterator[Finding]:
        if self.with_forklift and not (
            view.here("forklift", min_score=self.min_score) or view.loose("forklift", min_score=self.min_score)
        ):
            return
        forklifts = [t for t in view.tracks if t.kind == "forklift"] if self.type == "person_in_lane" else []
        for track in view.here(*self.kinds, min_score=self.min_score):
            driver = track.kind == "person" and any(rides(track, forklift) for forklift in forklifts)
            if track.seen and not driver:
                reason = f"a {track.kind} {view.where}" + (" with a forklift" if self.with_forklift else "")
                yield Finding(str(track.identity), track.score, reason, (track.identity,))
