"""Items of a conversation, as /v1/responses takes them."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from stille.server.schemas.base import EmptyList, RequestBody
from stille.server.schemas.tools import CallId, FunctionName

MAX_ITEMS = 4096

ItemId = Annotated[str, Field(min_length=1, max_length=256)]
ItemStatus = Literal["in_progress", "completed", "incomplete"]


class ContentPart(RequestBody):
    """Text, the only kind of content that the model reads. Log probabilities of earlier answers have no effect."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: EmptyList | None = None
    logprobs: list[Any] | None = None


Content = str | Annotated[list[ContentPart], Field(min_length=1)]


class MessageItem(RequestBody):
    """A message. `developer` is today's name for `system` and is treated as that."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    id: ItemId | None = None
    status: ItemStatus | None = None
    phase: Literal["commentary", "final_answer"] | None = Field(None, description="Accepted; has no effect.")


class CallItem(RequestBody):
    """A call in an earlier answer. What the official client's own models add to it is accepted empty."""

    type: Literal["function_call"]
    call_id: CallId
    name: FunctionName
    arguments: str
    id: ItemId | None = None
    status: ItemStatus | None = None
    namespace: None = None
    caller: None = None
    async_: None = None
    asynchronous: None = Field(None, alias="async")


class CallOutputItem(RequestBody):
    """What a function returned to a call that an item before it has made."""

    type: Literal["function_call_output"]
    call_id: CallId
    output: Content
    id: ItemId | None = None
    status: ItemStatus | None = None
    name: None = None
    namespace: None = None
    caller: None = None


class ReasoningItem(RequestBody):
    """Reasoning of another model; accepted and left out, as this one reads none."""

    type: Literal["reasoning"]
    id: ItemId | None = None
    summary: list[Any] | None = None
    content: list[Any] | None = None
    encrypted_content: str | None = None
    status: ItemStatus | None = None


KINDS = ("message", "function_call", "function_call_output", "reasoning")


def _kind(value: Any) -> str | None:
    if not isinstance(value, dict):
        return getattr(value, "type", None)
    kind = value.get("type", "message")  # which messages alone may leave out
    return kind if isinstance(kind, str) and kind in KINDS else None


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[CallOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(
        _kind,
        custom_error_type="unsupported_item",
        custom_error_message="unsupported item",
    ),
]
Input = str | Annotated[list[Item], Field(min_length=1, max_length=MAX_ITEMS)]
