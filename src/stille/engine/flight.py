"""A step between its launch and its reading."""

from __future__ import annotations

from dataclasses import dataclass, field

from stille.engine.model_runner import StepHandle
from stille.engine.sampling_state import Guesses
from stille.engine.scheduler import Plan, Scheduler
from stille.engine.sequence import Sequence


@dataclass(slots=True)
class Flight:
    """
    Attributes:
        guesses: in it; None: there are none.
        hopeful: grammars were not asked before it was sampled; a token that one of them does not allow is chosen again.
        void: sequences of which such a token was found after the launch: what they got here does not count.
        again: those sequences, and the step that chooses their tokens again; it follows this one.
    """

    plan: Plan
    handle: StepHandle
    guesses: Guesses | None = None
    hopeful: bool = False
    void: set[Sequence] = field(default_factory=set)
    again: tuple[list[Sequence], StepHandle] | None = None


def sampled(plan: Plan) -> list[Sequence]:
    """The step's sequences of which a token is sampled."""
    if plan.step.sample.all():
        return plan.sequences
    return [s for s, sampled in zip(plan.sequences, plan.step.sample, strict=True) if sampled]


def may_hope(bound: list[tuple[int, Sequence]], scheduler: Scheduler) -> bool:
    """Whether to sample before grammars are asked, as they would have to wait for a token in flight.

    A greedy token that turns out to be allowed is the one that a mask would have left; others are chosen again, for
    which their sequence waits, and no other.

    Args:
        bound: sampled rows of a planned step whose sequence has a grammar.
    """
    waiting = [s for _, s in bound if scheduler.ahead(s) > 1]
    return bool(waiting) and all(s.request.params.plainly_greedy for s in waiting)
