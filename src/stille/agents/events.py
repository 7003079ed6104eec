"""What happens in a run, as it happens: what `Agent.stream` gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from stille.agents.journal import ApprovalRequest
from stille.agents.types import TRUSTED, Data, Labels, Message, ToolCall, Usage

T = TypeVar("T")


class TurnStarted(Data):
    """An agent asks its model. Turns are numbered from 1 over all agents of a conversation."""

    agent: str
    turn: int


class TextWritten(Data):
    """More of an answer's text; all of it at once if it was recorded."""

    agent: str
    text: str


class CallStarted(Data):
    """A call that the policy allows is about to be made."""

    agent: str
    call: ToolCall


class CallFinished(Data):
    """What came of a call. `outcome` is "done", "failed" (the tool says so) or "refused" (it was not made)."""

    agent: str
    call: ToolCall
    outcome: Literal["done", "failed", "refused"]
    message: Message


class ApprovalAsked(Data):
    """A person has to decide before the run goes on."""

    agent: str
    request: ApprovalRequest


class HandedOff(Data):
    """The conversation goes on with another agent."""

    agent: str
    to: str


@dataclass(frozen=True)
class Run(Generic[T]):
    """A run that is over.

    Attributes:
        agent: name of who answered: who was run, or to whom the conversation was handed.
        output: the answer, of that agent's type.
        messages: the whole conversation, to go on from as another run's `history`.
        usage: of all model calls, those of agents that were called as tools included.
        calls: of tools, in order, those of such agents included.
        cut: the answer, a text, ended at `max_tokens`.
    """

    agent: str
    output: T
    messages: tuple[Message, ...]
    usage: Usage
    calls: tuple[CallFinished, ...] = ()
    cut: bool = False

    @property
    def labels(self) -> Labels:
        """Of the whole conversation, and so of the answer."""
        return TRUSTED.union(*(message.labels for message in self.messages))


class Finished(Data):
    """An agent's last event; the stream's last is that of the agent that was run."""

    agent: str
    run: Any


AgentEvent = TurnStarted | TextWritten | CallStarted | CallFinished | ApprovalAsked | HandedOff | Finished
