"""Bodies of /v1/responses. What goes in as items is in `response_items`."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from stille.server.schemas.base import EmptyList, Integral, OnlyFalse, RequestBody, ResponseBody, SamplingBody
from stille.server.schemas.formats import NAME_PATTERN, JsonObjectFormat, LarkFormat, RegexFormat, TextFormat
from stille.server.schemas.response_items import KINDS, Input
from stille.server.schemas.tools import MAX_TOOLS, FunctionName

MAX_TOP_LOGPROBS = 20

# What a refused value should be told; by its name.
INSTEAD: dict[str, str] = {
    "input": "send text, or a list of one item or more",
    "tools": "there are functions only, {'type': 'function', 'name': ...}",
    "tool_choice": "send 'none', 'auto', 'required', {'type': 'function', 'name': ...} or a choice of 'allowed_tools'",
    "text": "there are objects of the types 'text', 'json_object', 'json_schema', 'regex' and 'lark'",
    "format": "there are objects of the types 'text', 'json_object', 'json_schema', 'regex' and 'lark'",
    "verbosity": "only 'medium' is supported; ask for shorter or longer answers in the instructions",
    "instructions": "send text; messages of other roles belong into input",
    "include": "there are 'message.output_text.logprobs' and 'reasoning.encrypted_content', which has nothing to add",
    "conversation": "conversations are not supported; continue a response with previous_response_id",
    "prompt": "stored prompts are not supported; send instructions and input",
    "context_management": "compaction is not supported; leave it out, truncation 'auto' drops the oldest turns",
    "max_tool_calls": "it bounds calls of built-in tools, and there are none; for functions, parallel_tool_calls",
    "background_options": "background responses are computed as soon as there is room; leave it out",
    "summary": "the model does not reason in a separate phase, so there is nothing to sum up; leave it out",
    "generate_summary": "the model does not reason in a separate phase; leave it out",
    "reasoning": "there are effort and summary 'auto'",
    "n": "a response is one answer; send several requests",
    "service_tier": "there is one tier; leave it out or send 'auto' or 'default'",
    "moderation": "moderation of answers is not supported; leave it out",
    "access_programs": "there are none; leave it out",
    "image": "images are not supported; leave it out",
    "prompt_cache_retention": "prefixes are cached in memory; leave it out or send 'in_memory'",
    "prompt_cache_options": "prefixes are cached automatically; leave it out",
    "include_obfuscation": "events are never padded; leave it out or send false",
}
# Names of chat that are others here.
_RENAMED = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "logprobs": "include 'message.output_text.logprobs'",
}


def hint(kind: str, path: Sequence[str | int]) -> str | None:
    """What to send instead of what was refused; see `stille.server.errors.from_validation`."""
    last = path[-1]
    if kind == "extra_forbidden":
        instead = _RENAMED.get(str(last)) if len(path) == 1 else None
        return f"send {instead}" if instead else "leave it out; /openapi.json lists what there is"
    if kind == "unsupported_item":
        return f"there are items of the types {', '.join(map(repr, KINDS))}"
    if kind in ("too_long", "too_short"):
        return None
    if last == "type" and ("content" in path or "output" in path):
        return "this model reads text parts only, {'type': 'input_text'}"
    if last == "type" or isinstance(last, int):
        last = next((step for step in reversed(path) if isinstance(step, str) and step != "type"), "")
    return INSTEAD.get(str(last))


class FunctionTool(RequestBody):
    """A function as the model is told of it."""

    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = Field(
        None, description="JSON Schema of an object, the arguments; without it the function takes none."
    )
    strict: bool | None = Field(None, description="Accepted; arguments are always valid for the parameters.")


class NamedFunction(RequestBody):
    """Makes the model call this function."""

    type: Literal["function"]
    name: FunctionName


class AllowedTools(RequestBody):
    """Narrows the tools that may be called, while the prompt tells of all."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedFunction], Field(min_length=1, max_length=MAX_TOOLS)]


class JsonSchemaTextFormat(RequestBody):
    """JSON that is valid for a schema, which always holds. The model sees nothing of it."""

    type: Literal["json_schema"]
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    description: str | None = None
    document: Annotated[dict[str, Any], Field(alias="schema", description="JSON Schema, draft 2020-12.")]
    strict: bool | None = None


Format = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaTextFormat | RegexFormat | LarkFormat, Field(discriminator="type")
]


class TextOptions(RequestBody):
    """What the answer's text must look like."""

    format: Format | None = None
    verbosity: Literal["medium"] | None = None


class ReasoningOptions(RequestBody):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = Field(
        None, description="Of a model with experts, another way to say expert_budget; 'none' and 'medium' are its own."
    )
    summary: Literal["auto"] | None = None
    generate_summary: None = None


class EventOptions(RequestBody):
    include_obfuscation: OnlyFalse | None = None


def _choice_kind(value: Any) -> str:
    if isinstance(value, str):
        return "word"
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "allowed" if kind == "allowed_tools" else "named"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("word")]
    | Annotated[NamedFunction, Tag("named")]
    | Annotated[AllowedTools, Tag("allowed")],
    Discriminator(_choice_kind),
]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]
Includable = Literal["message.output_text.logprobs", "reasoning.encrypted_content"]


class ResponseRequest(SamplingBody):
    """One turn of a conversation, whose earlier turns are in the input or kept on the server.

    Parameters of the OpenAI API that this server does not support are declared here with the neutral values that
    clients send for them; any other value is refused.
    """

    input: Input = Field(description="Text of the user, or items of a conversation.")
    instructions: str | None = Field(
        None, description="A system message at the beginning; not carried over by previous_response_id."
    )
    previous_response_id: Annotated[str, Field(min_length=1, max_length=128)] | None = Field(
        None, description="Go on from this kept response."
    )
    max_output_tokens: Annotated[int, Field(ge=1, lt=2**31), Integral] | None = Field(
        None, description="Bound on generated tokens; default and upper bound: the rest of the context."
    )
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS), Integral] | None = Field(
        None, description="Alternatives per token; above 0 it asks for log probabilities as include does."
    )
    include: list[Includable] | None = None
    text: TextOptions | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS)] | None = Field(
        None, description="Functions that the answer may call."
    )
    tool_choice: ToolChoice | None = Field(
        None, description="Whether the answer may call functions, must, or must call a certain one; default auto."
    )
    parallel_tool_calls: bool | None = Field(None, description="False: one call at most; default true.")
    reasoning: ReasoningOptions | None = None
    store: bool | None = Field(None, description="Keep the response, for previous_response_id and GET; default true.")
    background: bool | None = Field(None, description="Answer at once, compute afterwards; needs store.")
    truncation: Literal["auto", "disabled"] | None = Field(
        None, description="auto: drop the oldest turns of a conversation that does not fit; default disabled."
    )
    metadata: Metadata | None = Field(None, description="Kept with the response.")
    stream_options: EventOptions | None = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        None, description="Only with stream=true."
    )
    # Neutral values only.
    n: Literal[1] | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    conversation: None = None
    prompt: None = None
    context_management: EmptyList | None = None
    max_tool_calls: None = None
    background_options: None = None
    moderation: None = None
    access_programs: None = None
    image: None = None
    service_tier: Literal["auto", "default"] | None = None
    # Labels: accepted and shown, without effect on the answer.
    safety_identifier: str | None = Field(None, description="Shown in the response; has no other effect.")
    prompt_cache_key: str | None = Field(None, description="Shown; prefixes are cached by content, without keys.")
    prompt_cache_retention: Literal["in_memory"] | None = None
    prompt_cache_options: None = None

    def stored(self) -> bool:
        """Whether the response is kept."""
        return self.store is not False

    def logprobs_count(self) -> int | None:
        """None: no log probabilities; otherwise the number of alternatives beside the chosen token."""
        asked = "message.output_text.logprobs" in (self.include or ())
        return (self.top_logprobs or 0) if asked or self.top_logprobs else None


class InputTokensDetails(ResponseBody):
    cached_tokens: int = Field(description="Prompt tokens found in the prefix cache.")
    cache_write_tokens: int = Field(description="0: writing to the prefix cache is not counted.")


class OutputTokensDetails(ResponseBody):
    reasoning_tokens: int = Field(description="0: there is no separate phase of reasoning.")


class ResponseUsage(ResponseBody):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class OutputText(ResponseBody):
    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[Any]


ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputMessage(ResponseBody):
    id: str
    type: Literal["message"]
    status: ItemStatus
    role: Literal["assistant"]
    content: list[OutputText]


class OutputCall(ResponseBody):
    """A call that the answer makes; the arguments are JSON, cut where the answer is."""

    id: str
    type: Literal["function_call"]
    status: ItemStatus
    call_id: str
    name: str
    arguments: str


class ResponseFailure(ResponseBody):
    code: str
    message: str


class IncompleteDetails(ResponseBody):
    reason: Literal["max_output_tokens"]


class Response(ResponseBody):
    """A response, complete or on its way."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    background: bool
    error: ResponseFailure | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: None
    model: str
    output: list[Annotated[OutputMessage | OutputCall, Field(discriminator="type")]]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: dict[str, str | None]
    safety_identifier: str | None
    service_tier: Literal["default"]
    store: bool
    temperature: float
    top_p: float
    presence_penalty: float
    frequency_penalty: float
    top_logprobs: int
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    truncation: Literal["auto", "disabled"]
    usage: ResponseUsage | None
    user: str | None
    metadata: dict[str, str]


class ResponseEvent(BaseModel):
    """Data of one server-sent event: its type, its number, and what the type brings, as OpenAI has it."""

    model_config = ConfigDict(extra="allow")

    type: Literal[
        "response.created",
        "response.queued",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
        "response.incomplete",
        "response.failed",
        "error",
    ]
    sequence_number: int


class DeletedResponse(ResponseBody):
    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


class ItemList(ResponseBody):
    """One page of the items that a response was asked with."""

    object: Literal["list"] = "list"
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class InputTokens(ResponseBody):
    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: int
