"""Tools of a chat request: which of them the answer may call."""

from collections.abc import Sequence
from dataclasses import dataclass

from stille.engine import tool_grammar
from stille.engine.grammar import Grammar
from stille.engine.quoted import said_in
from stille.engine.tool_calls import ToolCallParser
from stille.server.answers import ChatAnswer
from stille.server.errors import ApiError
from stille.server.schemas.chat import ChatCompletionRequest, Message
from stille.server.schemas.formats import TextFormat
from stille.server.schemas.tools import NamedTool, Tool

_MISFIT = "incompatible_parameters"


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

    def grammar(self, messages: Sequence[Message]) -> Grammar:
        """What the answer to a conversation must look like.

        Raises:
            InvalidRequestError: the parameters of a tool are no schema of an object, or too large.
        """
        functions = [as_function(tool) for tool in self.allowed]
        said = said_in(message.model_dump(include={"role", "content"}) for message in messages)
        return tool_grammar.call_grammar(functions, forced=self.forced, parallel=self.parallel, said=said)

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


def as_function(tool: Tool) -> tool_grammar.Function:
    """A tool as the engine knows it."""
    return tool_grammar.Function(tool.function.name, tool.function.description, tool.function.parameters)
