"""A step between its launch and its reading."""

from __future__ import annotations

from dataclasses import dataclass, field

from stille.engine.model_runner import StepHandle
from stille.engine.sampling_state import Guesses
from stille.engine.scheduler import Plan
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
