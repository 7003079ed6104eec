"""What agents, models, tools and journals hand each other. All of it is data that can be stored as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypeAliasType

Json = TypeAliasType("Json", "bool | int | float | str | list[Json] | dict[str, Json] | None")

Label = Literal["untrusted", "secret", "personal"]
Labels = frozenset[Label]
"""What is known of data: written by who knows whom, never to be shown to a model, or about a person. What is made of
several pieces has the labels of all of them."""

TRUSTED: Labels = frozenset()

Effect = Literal["none", "idempotent", "once"]
"""What calling a tool does: it only reads; it may be repeated with the same idempotency key; it must not be repeated,
because the other side does not know keys."""


class Data(BaseModel):
    """Frozen and strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ToolSpec(Data):
    """A tool as models see it: `parameters` is a JSON schema of type object."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = Field(default_factory=lambda: {"type": "object", "properties": {}})


class ToolCall(Data):
    """What a model wants called. `id` is unique within a run."""

    id: str
    name: str
    arguments: dict[str, Any]


class Message(Data):
    """One message of a conversation.

    Attributes:
        role: "tool" is what a call gave; `call_id` says which.
        calls: of an assistant's message.
        labels: of the content.
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    calls: tuple[ToolCall, ...] = ()
    call_id: str | None = None
    labels: Labels = TRUSTED


class Usage(Data):
    """Tokens of model calls. `cached_tokens` of the prompt were not computed again."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
        )


class TextDelta(Data):
    """More of an answer's text."""

    text: str


class CallDelta(Data):
    """More of a call's arguments, as JSON that is being written; `name` in the first piece."""

    index: int
    name: str | None = None
    arguments: str = ""


class Reply(Data):
    """A model's whole answer; the last event of its stream.

    Attributes:
        message: with text, calls, or both.
        finish_reason: "length" if it was cut: then its last call is left out.
    """

    message: Message
    usage: Usage
    finish_reason: Literal["stop", "tool_calls", "length"] = "stop"


ModelEvent = TextDelta | CallDelta | Reply


class ModelRequest(Data):
    """What a model is asked.

    Attributes:
        tools: that the prompt tells of. Stays the same within a run, so that its beginning stays in the prefix cache.
        permitted: names of those that may be called now; the model cannot name another. None: all.
        choice: "required": the answer is calls and nothing else; "none": it is text.
        output_schema: JSON schema of an answer that is no call; None: free text.
        max_tokens: of the answer.
    """

    messages: Sequence[Message]
    tools: Sequence[ToolSpec] = ()
    permitted: frozenset[str] | None = None
    choice: Literal["auto", "required", "none"] = "auto"
    parallel: bool = True
    output_schema: Mapping[str, Any] | None = None
    max_tokens: int | None = None
    temperature: float = 0.0
    seed: int | None = None
