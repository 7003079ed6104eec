"""What agents know of language models."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from stille.agents.types import ModelEvent, ModelRequest


class ChatModel(Protocol):
    """A language model that holds conversations and calls tools.

    Attributes:
        name: for traces and prices.
    """

    name: str

    def stream(self, request: ModelRequest) -> AsyncIterator[ModelEvent]:
        """The answer in pieces; the last event is its `Reply`. Ending the iteration early stops the model.

        Raises:
            ModelError: the model cannot be reached, or refuses the request.
        """
        ...

    async def count_tokens(self, request: ModelRequest) -> int:
        """Tokens of the prompt, or a number that it does not exceed: what a budget has to reserve."""
        ...
