"""What stands between an agent and what it wants to do: where budgets and policies take hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from stille.agents.tools import Tool
from stille.agents.types import Data, Json, Labels, Message, ToolSpec, Usage


class Spend(Data):
    """What a call costs: at most, when it is reserved; in fact, when it is settled.

    Attributes:
        id: of the call, the same when its run is resumed: what it pays for is paid once.
        name: of the model or tool.
        usage: of a model: when reserved, tokens of the prompt, and the most that the answer may have.
        micros: of a tool: its price.
        calls: 0 when settled if nothing was called after all.
        seconds: that it took; 0 when reserved.
    """

    id: str
    name: str
    usage: Usage = Usage()
    micros: int = 0
    calls: int = 1
    seconds: float = 0.0


class Guard(Protocol):
    """Budgets and policies, outside the model. What they say of calls and messages depends on these only: a run that is
    resumed asks again."""

    def permitted(self, tools: Sequence[ToolSpec], labels: Labels) -> frozenset[str]:
        """Names of the tools that may be called now. The model cannot name another.

        Args:
            labels: of all that the conversation holds.
        """
        ...

    def check_call(self, tool: ToolSpec, arguments: Mapping[str, Json], labels: Labels) -> None:
        """Looks at a call before it is made.

        Raises:
            ApprovalNeededError: a person has to allow it.
            PolicyError: it is forbidden; the model is told why.
        """
        ...

    def armed(self, tool: Tool) -> Tool:
        """The tool as it is called: with the secrets that it may have, none of which shows in what it gives or raises.
        Agents call no tool without."""
        ...

    def seconds_left(self) -> float | None:
        """Wall time that calls may still take; None: no limit."""
        ...

    async def reserve(self, kind: Literal["model", "tool"], amounts: Spend) -> Any:
        """A ticket for what is about to be spent.

        Raises:
            BudgetExceededError: it is too much; the run ends.
        """
        ...

    async def settle(self, ticket: Any, actual: Spend) -> None:
        """What it came to."""
        ...

    def redact(self, message: Message) -> Message:
        """A message as the model may see it. Each message of a conversation passes here once, in order."""
        ...


class Open:
    """Allows everything."""

    def permitted(self, tools: Sequence[ToolSpec], labels: Labels) -> frozenset[str]:
        return frozenset(tool.name for tool in tools)

    def check_call(self, tool: ToolSpec, arguments: Mapping[str, Json], labels: Labels) -> None:
        pass

    def armed(self, tool: Tool) -> Tool:
        return tool

    def seconds_left(self) -> float | None:
        return None

    async def reserve(self, kind: Literal["model", "tool"], amounts: Spend) -> Any:
        return None

    async def settle(self, ticket: Any, actual: Spend) -> None:
        pass

    def redact(self, message: Message) -> Message:
        return message
