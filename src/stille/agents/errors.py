"""What can go wrong with agents."""

from __future__ import annotations

from stille.errors import StilleError


class AgentError(StilleError):
    """Base of all errors of agents."""


class ToolError(AgentError):
    """A tool says what was wrong with a call; the model is told, and may try again."""


class ToolFailedError(AgentError):
    """A tool gave up: its retries are spent, its time is over, or its breaker is open.

    Attributes:
        started: False: it certainly did nothing, so an effect did not happen. True: nobody knows.
    """

    def __init__(self, message: str, *, started: bool = True):
        super().__init__(message)
        self.started = started


class UnknownOutcomeError(AgentError):
    """An effect may have happened or not, and asking the other side did not tell. Its run is parked.

    Attributes:
        key: of the effect.
    """

    def __init__(self, message: str, key: str):
        super().__init__(message)
        self.key = key


class PolicyError(AgentError):
    """The policy forbids it."""


class ApprovalNeededError(PolicyError):
    """The policy allows it only if a person does: forbidden to whoever cannot ask one."""


class BudgetExceededError(AgentError):
    """A budget does not allow what was about to be spent; nothing of it was.

    Attributes:
        budget: name of the budget.
        resource: "tokens", "micros", "calls" or "seconds".
    """

    def __init__(self, message: str, budget: str, resource: str):
        super().__init__(message)
        self.budget = budget
        self.resource = resource


class DeadlineError(AgentError):
    """A run's time is over."""


class TurnLimitError(AgentError):
    """An agent went on for more turns than it may."""


class ModelError(AgentError):
    """A model cannot be reached, refused the request, or gave what cannot be used."""


class ReplayError(AgentError):
    """A run asked for something else than what is recorded of it."""
