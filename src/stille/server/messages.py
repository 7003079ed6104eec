"""From Anthropic's form of a conversation to the chat form that the rest of the server knows."""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from stille.server.errors import ApiError
from stille.server.schemas.chat import (
    AssistantMessage,
    ChatCompletionRequest,
    Content,
    InstructionMessage,
    Message,
    TextPart,
    ToolMessage,
    UserMessage,
)
from stille.server.schemas.formats import JsonSchemaFormat, NamedSchema
from stille.server.schemas.messages import (
    Block,
    ChoiceAny,
    ChoiceAuto,
    ChoiceTool,
    ClientTool,
    Conversation,
    MessagesRequest,
    TextBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from stille.server.schemas.tools import (
    EarlierCall,
    EarlierFunctionCall,
    Function,
    NamedFunction,
    NamedTool,
    Tool,
    ToolChoice,
)

# Anthropic's "high" is what a request gets that says nothing, as is OpenAI's "medium".
_EFFORTS = {"low": "minimal", "medium": "low", "high": None, "xhigh": "high", "max": "xhigh"}
_MISFIT = "incompatible_parameters"


@dataclass(frozen=True)
class ChatForm:
    """A conversation as the chat route would get it.

    Attributes:
        body: the request.
        continue_last: its last message is the beginning of the answer.
        stop: strings that end the answer.
    """

    body: ChatCompletionRequest
    continue_last: bool
    stop: Sequence[str]


def chat_form(body: Conversation) -> ChatForm:
    """The conversation as the chat route would get it.

    Raises:
        ApiError: a block is not where it may be, a result answers no call, or the last call has no result.
    """
    values: dict[str, Any] = {"model": body.model, "messages": list(_messages(body)), "tools": _tools(body.tools)}
    choice, parallel = _tool_choice(body)
    values |= {"tool_choice": choice, "parallel_tool_calls": parallel}
    asked = body.output_config
    if asked is not None and asked.format is not None:
        schema = NamedSchema.model_validate({"name": "output", "schema": asked.format.document})
        values["response_format"] = JsonSchemaFormat(type="json_schema", json_schema=schema)
    if asked is not None and asked.effort is not None:
        values["reasoning_effort"] = _EFFORTS[asked.effort]
    stop: Sequence[str] = ()
    if isinstance(body, MessagesRequest):
        stop = body.stop_sequences or ()
        values |= {name: getattr(body, name) for name in ("max_tokens", "temperature", "top_p", "top_k", "stream")}
    # Its parts have been validated, and its bounds (on messages, on stop strings) are not those of this API.
    return ChatForm(ChatCompletionRequest.model_construct(**values), body.messages[-1].role == "assistant", stop)


def _messages(body: Conversation) -> Iterator[Message]:
    if body.system:
        yield InstructionMessage(role="system", content=_content(body.system))
    known: set[str] = set()
    last: list[EarlierCall] = []
    for role, blocks in _turns(body):
        if role == "user":
            yield from _of_user(blocks, known)
        elif role == "assistant":
            calls: list[EarlierCall] = []
            for place, block in blocks:
                if isinstance(block, ToolResultBlock):
                    raise _misplaced(place, "tool_result", "user")
                if isinstance(block, ToolUseBlock):
                    known.add(block.id)
                    calls.append(_call(place, block))
            texts = _texts(blocks)
            yield AssistantMessage(role="assistant", content=texts or None, tool_calls=calls or None)
            last = calls
        else:
            for place, block in blocks:
                if not isinstance(block, TextBlock):
                    raise _misplaced(place, block.type, "user" if block.type == "tool_result" else "assistant")
            yield InstructionMessage(role="system", content=_texts(blocks))
    if body.messages[-1].role == "assistant" and last:
        message = (
            "The messages end with calls of tools; send what they returned, as tool_result blocks of a user message."
        )
        raise ApiError(400, message, code="invalid_prompt", param="messages")


def _turns(body: Conversation) -> Iterator[tuple[str, list[tuple[str, Block]]]]:
    """(role, [(place in the body, block)]), those in a row of one role as one."""
    placed: list[tuple[str, str, Block]] = []
    for index, message in enumerate(body.messages):
        place, content = f"messages[{index}].content", message.content
        if isinstance(content, str):
            placed.append((message.role, place, TextBlock(type="text", text=content)))
        else:
            placed += [(message.role, f"{place}[{i}]", block) for i, block in enumerate(content)]
    for role, turn in itertools.groupby(placed, key=itemgetter(0)):
        yield role, [(place, block) for _, place, block in turn]


def _of_user(blocks: Sequence[tuple[str, Block]], known: set[str]) -> Iterator[Message]:
    """Results as messages of tools, and the text between them, in their order."""
    texts: list[TextPart] = []
    for place, block in blocks:
        if isinstance(block, ToolUseBlock):
            raise _misplaced(place, "tool_use", "assistant")
        if isinstance(block, TextBlock):
            texts.append(TextPart(type="text", text=block.text))
            continue
        if block.tool_use_id not in known:
            message = f"No tool_use block before '{place}' has the id '{block.tool_use_id}'."
            raise ApiError(400, message, code="invalid_prompt", param=f"{place}.tool_use_id")
        if texts:
            yield UserMessage(role="user", content=texts)
            texts = []
        content = _content(block.content or "")
        if block.is_error:
            content = [TextPart(type="text", text="Error:"), *_content_parts(content)]
        yield ToolMessage(role="tool", content=content, tool_call_id=block.tool_use_id, name=None)
    if texts:
        yield UserMessage(role="user", content=texts)


def _call(place: str, block: ToolUseBlock) -> EarlierCall:
    try:
        arguments = json.dumps(block.input, ensure_ascii=False)
    except RecursionError as error:
        message = f"'{place}.input' is nested too deeply."
        raise ApiError(400, message, code="invalid_prompt", param=f"{place}.input") from error
    return EarlierCall(id=block.id, type="function", function=EarlierFunctionCall(name=block.name, arguments=arguments))


def _misplaced(place: str, kind: str, role: str) -> ApiError:
    message = f"'{place}' is a {kind} block, which only messages of the role '{role}' may have."
    return ApiError(400, message, code=_MISFIT, param=place)


def _content(content: str | Sequence[TextBlock]) -> Content:
    if isinstance(content, str):
        return content
    if not content:
        return ""
    return [TextPart(type="text", text=block.text) for block in content]


def _content_parts(content: Content) -> list[TextPart]:
    return [TextPart(type="text", text=content)] if isinstance(content, str) else content


def _texts(blocks: Sequence[tuple[str, Block]]) -> list[TextPart]:
    return [TextPart(type="text", text=block.text) for _, block in blocks if isinstance(block, TextBlock)]


def _tools(tools: Sequence[ClientTool] | None) -> list[Tool] | None:
    if not tools:
        return None
    return [
        Tool(
            type="function",
            function=Function(name=tool.name, description=tool.description, parameters=tool.input_schema, strict=None),
        )
        for tool in tools
    ]


def _tool_choice(body: Conversation) -> tuple[ToolChoice | None, bool | None]:
    """`tool_choice` and `parallel_tool_calls` of the chat form."""
    choice = body.tool_choice
    if choice is None:
        return None, None
    if isinstance(choice, ChoiceTool):
        return NamedTool(type="function", function=NamedFunction(name=choice.name)), False
    if isinstance(choice, ChoiceAuto | ChoiceAny):
        return "auto" if isinstance(choice, ChoiceAuto) else "required", not choice.disable_parallel_tool_use
    return "none", None
