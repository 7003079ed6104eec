"""Tools of a chat request: which of them the answer may call, the grammar that holds it to that, and the prompt."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stille.engine.grammar import Grammar, json_style
from stille.errors import InvalidRequestError
from stille.server.answers import ChatAnswer
from stille.server.errors import ApiError
from stille.server.schemas.chat import ChatCompletionRequest
from stille.server.schemas.formats import TextFormat
from stille.server.schemas.tools import Function, NamedTool, Tool
from stille.server.tool_calls import CLOSE, HEAD, MIDDLE, OPEN, ToolCallParser

_MISFIT = "incompatible_parameters"
_PLAIN = {"type", "properties", "required", "title", "description", "$defs", "definitions", "$schema"}
_NO_ARGUMENTS: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}

_INSTRUCTION = """\
You can call functions. Each line between <tools> and </tools> describes one of them, its parameters as a JSON schema:

<tools>
{tools}
</tools>

To call a function, write its name and its arguments as JSON in exactly this form:

<tool_call>
{{"name": "the function's name", "arguments": {{"a parameter": "its value"}}}}
</tool_call>

What it returns comes in the next message. Then answer in words."""


@dataclass(frozen=True)
class ToolUse:
    """How the answer to one request may use tools.

    Attributes:
        tools: all that the prompt tells of.
        allowed: those that the answer may call.
        forced: the answer must be calls and nothing else.
        parallel: it may be several.
    """

    tools: Sequence[Tool]
    allowed: Sequence[Tool]
    forced: bool
    parallel: bool

    def grammar(self) -> Grammar:
        """What the answer must look like.

        Raises:
            InvalidRequestError: the parameters of a tool are no schema of an object, or too large.
        """
        lines = ["%llguidance {}"]
        if self.forced:
            lines.append(f'start: "{OPEN}" calls')
        else:  # free text; the lazy lexeme ends with the first mark, after which only a call goes on
            lines += [
                "start: TEXT | text_and_mark calls",
                r"TEXT: /(.|\n)*/",
                rf"text_and_mark[lazy]: /(.|\n)*{OPEN}/",
            ]
        lines.append(rf'calls: call ("\n{OPEN}" call)*' if self.parallel else "calls: call")
        lines.append(
            f"call: {_quoted(HEAD)} ({' | '.join(f'call_{i}' for i in range(len(self.allowed)))}) {_quoted(CLOSE)}"
        )
        for index, tool in enumerate(self.allowed):
            schema = arguments_schema(tool.function)
            schema = {**schema, "x-guidance": json_style(schema)}
            try:
                text = json.dumps(schema, allow_nan=False)
            except (ValueError, RecursionError) as error:
                message = f"the parameters of function '{tool.function.name}' cannot be read: {error}"
                raise InvalidRequestError(message, "tools") from error
            lines.append(f"call_{index}: {_quoted(tool.function.name + MIDDLE)} %json {text}")
        return Grammar.lark("\n".join(lines) + "\n", "tools")

    def answer(self) -> ChatAnswer:
        """For the text of an answer that follows the grammar."""
        return ChatAnswer(ToolCallParser(free_text=not self.forced))


def tool_use(body: ChatCompletionRequest) -> ToolUse | None:
    """What a request says about tools; None: it has none, or does not want them used.

    Raises:
        ApiError: its parts do not fit each other.
    """
    tools, choice = body.tools or [], body.tool_choice or "auto"
    check_tools(tools)
    if not tools:
        if choice not in ("none", "auto"):
            raise ApiError(
                400, "tool_choice asks for a call, but there are no tools.", code=_MISFIT, param="tool_choice"
            )
        return None
    allowed = tools
    if isinstance(choice, NamedTool):
        allowed = [tool for tool in tools if tool.function.name == choice.function.name]
        if not allowed:
            message = f"tool_choice names '{choice.function.name}', which is not among the tools."
            raise ApiError(400, message, code=_MISFIT, param="tool_choice")
    if choice == "none":
        return None
    if body.response_format is not None and not isinstance(body.response_format, TextFormat):
        message = "An answer that may call tools has no other format; leave out response_format or tools."
        raise ApiError(400, message, code=_MISFIT, param="response_format")
    parallel = body.parallel_tool_calls is not False and not isinstance(choice, NamedTool)
    return ToolUse(tools, allowed, choice != "auto", parallel)


def check_tools(tools: Sequence[Tool]) -> None:
    """400 unless names are unique and parameters are objects."""
    seen: set[str] = set()
    for index, tool in enumerate(tools):
        function, place = tool.function, f"tools[{index}].function"
        if function.name in seen:
            raise ApiError(400, f"Two tools have the name '{function.name}'.", code=_MISFIT, param=f"{place}.name")
        seen.add(function.name)
        if function.parameters and function.parameters.get("type") != "object":
            message = f"The parameters of function '{function.name}' must be a JSON schema of type 'object'."
            raise ApiError(400, message, code="invalid_request", param=f"{place}.parameters")


def arguments_schema(function: Function) -> Mapping[str, Any]:
    """Of the arguments that a call may have: those that are declared, unless the schema says that there are more."""
    schema = function.parameters
    if not schema:
        return _NO_ARGUMENTS
    declared, required = schema.get("properties"), schema.get("required", [])
    if not (isinstance(declared, dict) and isinstance(required, list) and set(schema) <= _PLAIN):
        return schema
    if not all(isinstance(name, str) and name in declared for name in required):
        return schema
    return {**schema, "additionalProperties": False}


def described(tool: Tool) -> dict[str, Any]:
    """A tool as prompts show it."""
    function = tool.function
    shown: dict[str, Any] = {"name": function.name}
    if function.description:
        shown["description"] = function.description
    shown["parameters"] = function.parameters or {"type": "object", "properties": {}}
    return {"type": "function", "function": shown}


def instruction(tools: Sequence[Tool]) -> str:
    """Tells a model about tools whose chat template does not."""
    lines = "\n".join(json.dumps(described(tool)["function"], ensure_ascii=False) for tool in tools)
    return _INSTRUCTION.format(tools=lines)


def _quoted(text: str) -> str:
    """As a string of Lark."""
    return json.dumps(text)
