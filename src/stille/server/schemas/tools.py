"""Functions that a model may call, and its calls of them."""

from typing import Annotated, Any, Literal

from pydantic import Field

from stille.server.schemas.base import RequestBody, ResponseBody
from stille.server.schemas.formats import NAME_PATTERN

MAX_TOOLS = 128

FunctionName = Annotated[str, Field(pattern=NAME_PATTERN)]
CallId = Annotated[str, Field(min_length=1, max_length=256)]


class Function(RequestBody):
    """A function as the model is told of it."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = Field(
        None, description="JSON Schema of an object, the arguments; without it the function takes none."
    )
    strict: bool | None = Field(None, description="Accepted; arguments are always valid for the parameters.")


class Tool(RequestBody):
    type: Literal["function"]
    function: Function


class NamedFunction(RequestBody):
    name: FunctionName


class NamedTool(RequestBody):
    """Makes the model call this function."""

    type: Literal["function"]
    function: NamedFunction


class EarlierFunctionCall(RequestBody):
    name: FunctionName
    arguments: str


class EarlierCall(RequestBody):
    """A call in an earlier answer."""

    id: CallId
    type: Literal["function"]
    function: EarlierFunctionCall


Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS)]
ToolChoice = Literal["none", "auto", "required"] | NamedTool


class FunctionCall(ResponseBody):
    name: str
    arguments: str


class ToolCall(ResponseBody):
    """A call that the answer makes; the arguments are JSON, cut where the answer is."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class FunctionCallDelta(ResponseBody):
    name: str | None = None
    arguments: str


class ToolCallDelta(ResponseBody):
    """What is new of a call: id, type and name come first, then the arguments in pieces."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionCallDelta
