"""A `ChatModel` without a language model: it makes every call that it may, once, and says that it is done.

The desk works with it as well, because no value and no decision of a case comes from a model.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from stille.agents.types import Message, ModelEvent, ModelRequest, Reply, ToolCall, Usage


class Clerk:
    """Calls each permitted tool with each combination of the values that its parameters list."""

    name = "clerk"

    async def stream(self, request: ModelRequest) -> AsyncIterator[ModelEvent]:
        made = {(call.name, _frozen(call.arguments)) for message in request.messages for call in message.calls}
        wanted = [
            ToolCall(id=str(number), name=tool.name, arguments=arguments)
            for number, (tool, arguments) in enumerate(
                (tool, arguments)
                for tool in request.tools
                if request.permitted is None or tool.name in request.permitted
                for arguments in _combinations(tool.parameters)
            )
            if (tool.name, _frozen(arguments)) not in made
        ]
        if wanted and request.choice != "none":
            yield Reply(
                message=Message(role="assistant", calls=tuple(wanted)), usage=Usage(), finish_reason="tool_calls"
            )
        else:
            yield Reply(message=Message(role="assistant", content="Done."), usage=Usage())

    async def count_tokens(self, request: ModelRequest) -> int:
        return 0


def _combinations(parameters: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    properties = parameters.get("properties", {})
    for values in itertools.product(*(schema.get("enum", [None]) for schema in properties.values())):
        yield dict(zip(properties, values, strict=True))


def _frozen(arguments: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(arguments.items()))
