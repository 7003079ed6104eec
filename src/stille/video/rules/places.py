"""Rules about places: exits, queues, rack slots; and about the camera itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, FiniteFloat, model_validator

from stille.video.rules.schema import Kind, Name, OpenAfter, Rule, Slot, register
from stille.video.rules.view import Finding, View
from stille.video.types import KINDS
from stille.video.zones import inside

ANY: tuple[Kind, ...] = KINDS  # type: ignore[assignment]


@register("blocked")
class Blocked(Rule):
    """Something stands in the zone for longer than `dwell`. Who walks through does not count; things without an
    identity do, other than persons."""

    type: Literal["blocked"]
    needs = ("zones",)
    kinds: tuple[Kind, ...] = Field(default=ANY, min_length=1)
    dwell: FiniteFloat = Field(default=10.0, ge=0)
    quiet: FiniteFloat = Field(default=5.0, ge=0)

    def find(self, view: View) -> Iterator[Finding]:
        still = [t for t in view.here(*self.kinds, min_score=self.min_score) if view.time - t.still >= 1.0]
        loose = [one for one in view.loose(*self.kinds, min_score=self.min_score) if one.kind != "person"]
        if still or loose:
            kinds = sorted({one.kind for one in [*still, *loose]})
            reason = f"{' and '.join(kinds)} standing {view.where}"
            identities = tuple(track.identity for track in still)
            confidence = max(one.score for one in [*still, *loose])
            yield Finding("zone", confidence, reason, identities, {"objects": len(still) + len(loose)})


@register("queue")
class Queue(Rule):
    """More persons in the zone than allowed, or one who waits for too long."""

    type: Literal["queue"]
    needs = ("zones",)
    worst = False
    dwell: FiniteFloat = Field(default=3.0, ge=0)  # longer than somebody counts twice whose identity changes
    quiet: FiniteFloat = Field(default=5.0, ge=0)
    persons: int | None = Field(default=None, ge=1)
    """More than so many are too many."""
    wait: FiniteFloat | None = Field(default=None, gt=0)
    """Seconds that nobody should wait longer than."""

    @model_validator(mode="after")
    def _something(self) -> Queue:
        if self.persons is None and self.wait is None:
            raise ValueError("a queue is too long by `persons` or by `wait`, got neither")
        return self

    def find(self, view: View) -> Iterator[Finding]:
        tracks = view.here("person", min_score=self.min_score)
        count = len(tracks) + len(view.loose("person", min_score=self.min_score))
        waits = [view.stay(track) or 0.0 for track in tracks]
        longest = max(waits, default=0.0)
        many = self.persons is not None and count > self.persons
        long = self.wait is not None and longest > self.wait
        if not (many or long):
            return
        reason = f"{count} persons wait {view.where}, one for {longest:.0f} s"
        scores = sorted(track.score for track in tracks)
        confidence = scores[len(scores) // 2] if scores else self.min_score
        facts = {"persons": count, "longest_wait": round(longest, 1)}
        yield Finding("zone", confidence, reason, (), facts, count)


class _AboutSlots(Rule):
    slots: tuple[Name, ...] = ()
    """Only these; none means all of the cameras."""
    dwell: FiniteFloat = Field(default=5.0, ge=0)
    quiet: FiniteFloat = Field(default=5.0, ge=0)

    def watched(self, view: View) -> list[Slot]:
        return [s for s in view.rules.slots if s.camera == view.camera and (not self.slots or s.name in self.slots)]


@register("pallet_missing", "pallet_extra")
class WrongSlot(_AboutSlots):
    """A slot that should hold a pallet is empty; a slot that should hold nothing is not."""

    type: Literal["pallet_missing", "pallet_extra"]
    sure: FiniteFloat = Field(default=0.8, ge=0.5, le=1)
    """An event opens when this is the probability of it; an open one is quiet below one half."""

    def find(self, view: View) -> Iterator[Finding]:
        missing = self.type == "pallet_missing"
        for slot in self.watched(view):
            full = view.slots.get(slot.name)
            if full is None or (slot.holds == "pallet") != missing:
                continue
            wrong = 1 - full if missing else full
            if wrong >= (0.5 if slot.name in view.ongoing else self.sure):
                state = "empty, a pallet belongs there" if missing else "taken, it should be free"
                reason = f"slot {slot.name} is {state}"
                yield Finding(slot.name, wrong, reason, (), {"slot": slot.name, "probability": round(wrong, 3)})


@register("pallet_misplaced")
class Misplaced(_AboutSlots):
    """A pallet stands, in the zone if there are zones, where it is in no slot that holds pallets."""

    type: Literal["pallet_misplaced"]
    dwell: FiniteFloat = Field(default=20.0, ge=0)

    def find(self, view: View) -> Iterator[Finding]:
        right = [view.places[slot.name] for slot in self.watched(view) if slot.holds == "pallet"]
        carriers = [track.box for track in view.tracks if track.kind == "forklift"]
        for track in view.here("pallet", min_score=self.min_score):
            x0, y0, x1, y1 = track.box
            middle = ((x0 + x1) / 2, (y0 + y1) / 2)
            carried = any(a <= middle[0] <= c and b <= middle[1] <= d for a, b, c, d in carriers)
            if not track.seen or carried or view.time - track.still < 1.0 or any(inside(middle, p) for p in right):
                continue
            reason = f"a pallet stands {view.where} where it is in no slot"
            facts = {"x": round(track.foot[0], 3), "y": round(track.foot[1], 3)}
            yield Finding(str(track.identity), track.score, reason, (track.identity,), facts)


@register("camera_trouble")
class CameraTrouble(Rule):
    """The camera is offline, frozen, black, blurred, moved, or its clock or picture size changed."""

    type: Literal["camera_trouble"]
    about = "camera"
    kinds: tuple[Literal["offline", "frozen", "black", "blurred", "moved", "clock", "size"], ...] = ()
    """Only these; none means all."""
    open_after: OpenAfter = OpenAfter(hits=1, of=1)
    evidence: bool = False
    verify: bool = False

    def find(self, view: View) -> Iterator[Finding]:
        for kind, trouble in view.troubles.items():
            if not self.kinds or kind in self.kinds:
                reason = f"camera {view.camera} {kind}: {trouble.detail}"
                yield Finding(kind, 1.0, reason, (), {"trouble": kind}, since=trouble.since)
