"""From the items of /v1/responses to the chat request that they are, and errors back to the names that they came by."""

import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from stille.errors import InvalidRequestError
from stille.server.errors import ApiError, as_api_error
from stille.server.schemas.base import SamplingBody
from stille.server.schemas.chat import (
    AssistantMessage,
    ChatCompletionRequest,
    InstructionMessage,
    Message,
    ToolMessage,
    UserMessage,
)
from stille.server.schemas.formats import JsonSchemaFormat, NamedSchema, ResponseFormat
from stille.server.schemas.response_items import CallItem, CallOutputItem, Content, Item, MessageItem, ReasoningItem
from stille.server.schemas.responses import AllowedTools, JsonSchemaTextFormat, NamedFunction, ResponseRequest
from stille.server.schemas.tools import EarlierCall, EarlierFunctionCall, Function, NamedTool, Tool
from stille.server.schemas.tools import NamedFunction as ChatFunction

_SHARED = set(SamplingBody.model_fields) - {"n", "stream_options"}
_NEW_NAMES = (
    (re.compile(r"\btools\[(\d+)\]\.function\b"), r"tools[\1]"),
    (re.compile(r"\bresponse_format\b"), "text.format"),
    (re.compile(r"\breasoning_effort\b"), "reasoning.effort"),
    (re.compile(r"\btool_call_id\b"), "call_id"),
)
_MESSAGE = re.compile(r"\bmessages\[(\d+)\]")
_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}


def new_id(prefix: str) -> str:
    """A fresh identifier such as resp_0f3a...; Responses has underscores where chat has hyphens."""
    return f"{prefix}_{uuid.uuid4().hex}"


def kept_items(given: str | Sequence[Item]) -> list[dict[str, Any]]:
    """The input as items that are listed and kept: complete, and each with an id."""
    if isinstance(given, str):
        given = [MessageItem(role="user", content=given, phase=None)]
    return [_kept(item) for item in given]


def _kept(item: Item) -> dict[str, Any]:
    kept = {"id": item.id or new_id(_PREFIXES[item.type]), **item.model_dump(exclude_none=True, exclude={"id"})}
    if not isinstance(item, ReasoningItem):
        kept["status"] = item.status or "completed"
    if isinstance(item, MessageItem):
        kind = "output_text" if item.role == "assistant" else "input_text"
        parts = [item.content] if isinstance(item.content, str) else [part.text for part in item.content]
        more = {"annotations": []} if kind == "output_text" else {}
        kept["content"] = [{"type": kind, "text": text, **more} for text in parts]
    return kept


@dataclass
class Conversation:
    """Chat messages made of items, and where each came from.

    Attributes:
        messages: of chat.
        places: for each message the parameter that errors about it name.
        opened: the last message is an assistant's, and calls that come next belong to it.
    """

    messages: list[Message] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    opened: bool = False

    def say(self, message: Message, place: str) -> None:
        """Add a message."""
        self.messages.append(message)
        self.places.append(place)
        self.opened = isinstance(message, AssistantMessage)

    def add(self, item: Mapping[str, Any] | Item, place: str) -> None:
        """Add an item: one that was validated, or one of an earlier response as it was kept."""
        item = item if not isinstance(item, Mapping) else _read(item)
        if isinstance(item, MessageItem):
            self.say(_message(item), place)
        elif isinstance(item, CallOutputItem):
            answer = ToolMessage(role="tool", content=_text(item.output), tool_call_id=item.call_id, name=None)
            self.say(answer, place)
        elif isinstance(item, CallItem):
            self._call(item, place)

    def _call(self, item: CallItem, place: str) -> None:
        function = EarlierFunctionCall(name=item.name, arguments=item.arguments)
        call = EarlierCall(id=item.call_id, type="function", function=function)
        last = self.messages[-1] if self.messages else None
        if self.opened and isinstance(last, AssistantMessage):
            calls = [*(last.tool_calls or []), call]
            self.messages[-1] = last.model_copy(update={"tool_calls": calls})
        else:
            self.say(AssistantMessage(role="assistant", content=None, tool_calls=[call]), place)


def _read(item: Mapping[str, Any]) -> Item:
    kinds = {"message": MessageItem, "function_call": CallItem, "function_call_output": CallOutputItem}
    return kinds.get(item["type"], ReasoningItem).model_validate(item)


def _message(item: MessageItem) -> Message:
    text = _text(item.content)
    if item.role == "user":
        return UserMessage(role="user", content=text)
    if item.role == "assistant":
        return AssistantMessage(role="assistant", content=text)
    return InstructionMessage(role=item.role, content=text)


def _text(content: Content) -> str:
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


def conversation(body: ResponseRequest, earlier: Sequence[Mapping[str, Any]]) -> Conversation:
    """What the request's answer goes on from.

    Args:
        body: the request.
        earlier: items of the responses that came before, the oldest first.
    """
    made = Conversation()
    if body.instructions is not None:
        made.say(InstructionMessage(role="system", content=body.instructions), "instructions")
    for item in earlier:
        made.add(item, "previous_response_id")
    made.opened = False  # calls in the input begin a message of their own
    if isinstance(body.input, str):
        made.say(UserMessage(role="user", content=body.input), "input")
    else:
        for index, item in enumerate(body.input):
            made.add(item, f"input[{index}]")
    return made


def as_chat(body: ResponseRequest, messages: Sequence[Message]) -> ChatCompletionRequest:
    """The chat request that means the same. Its parts were validated as parts of the body."""
    logprobs = body.logprobs_count()
    return ChatCompletionRequest.model_construct(
        **{name: getattr(body, name) for name in _SHARED},
        messages=list(messages),
        max_completion_tokens=body.max_output_tokens,
        logprobs=logprobs is not None,
        top_logprobs=logprobs,
        response_format=_format(body),
        tools=[
            Tool(
                type="function",
                function=Function(
                    name=tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict
                ),
            )
            for tool in body.tools or []
        ],
        tool_choice=_choice(body),
        parallel_tool_calls=body.parallel_tool_calls,
        reasoning_effort=body.reasoning.effort if body.reasoning else None,
    )


def _format(body: ResponseRequest) -> ResponseFormat | None:
    asked = body.text.format if body.text else None
    if isinstance(asked, JsonSchemaTextFormat):
        schema = NamedSchema.model_validate({"name": asked.name, "schema": asked.document, "strict": asked.strict})
        return JsonSchemaFormat(type="json_schema", json_schema=schema)
    return asked


def _choice(body: ResponseRequest) -> Any:
    choice = body.tool_choice
    if isinstance(choice, NamedFunction):
        return NamedTool(type="function", function=ChatFunction(name=choice.name))
    return choice.mode if isinstance(choice, AllowedTools) else choice


def allowed_names(body: ResponseRequest) -> frozenset[str] | None:
    """Functions that the answer may call, if the request narrows them.

    Raises:
        ApiError: it names one that is not among the tools.
    """
    if not isinstance(body.tool_choice, AllowedTools):
        return None
    known = {tool.name for tool in body.tools or []}
    for index, tool in enumerate(body.tool_choice.tools):
        if tool.name not in known:
            message = f"tool_choice names '{tool.name}', which is not among the tools."
            raise ApiError(400, message, code="incompatible_parameters", param=f"tool_choice.tools[{index}].name")
    return frozenset(tool.name for tool in body.tool_choice.tools)


def renamed(error: Exception, places: Sequence[str] = ()) -> ApiError:
    """An error about a chat request, in the names of the request that it was made of."""
    known = as_api_error(error)

    def place(match: re.Match[str]) -> str:
        index = int(match[1])
        return places[index] if index < len(places) else "input"

    def rename(text: str) -> str:
        text = _MESSAGE.sub(place, text)
        for old, new in _NEW_NAMES:
            text = old.sub(new, text)
        return text

    param = "input" if known.param == "messages" else known.param and rename(known.param)
    return ApiError(
        known.status_code,
        rename(known.message),
        code=known.code,
        param=param,
        type=known.type,
        headers=known.headers,
    )


@contextmanager
def own_names(places: Sequence[str]) -> Iterator[None]:
    """Errors about the chat request come out in the names of this one."""
    try:
        yield
    except (ApiError, InvalidRequestError) as error:
        raise renamed(error, places) from error
