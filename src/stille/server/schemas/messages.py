"""Bodies of /v1/messages and /v1/messages/count_tokens, Anthropic's form of a conversation."""

from typing import Annotated, Any, Literal

from pydantic import Field, RootModel

from stille.engine.sampling_params import MAX_STOP_STRINGS
from stille.server.schemas.base import EmptyList, Integral, ModelName, OnlyFalse, RequestBody, ResponseBody, StopString
from stille.server.schemas.chat import MAX_MESSAGES
from stille.server.schemas.tools import MAX_TOOLS, CallId, FunctionName


class CacheControl(RequestBody):
    """Accepted wherever Anthropic's API has it, without effect: prefixes are cached by content, unasked."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class TextBlock(RequestBody):
    """Text, in messages, results and the system prompt."""

    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None
    citations: EmptyList | None = None


class DirectCaller(RequestBody):
    type: Literal["direct"]


class ToolUseBlock(RequestBody):
    """A call in an earlier answer."""

    type: Literal["tool_use"]
    id: CallId
    name: FunctionName
    input: dict[str, Any]
    cache_control: CacheControl | None = None
    caller: DirectCaller | None = None
    toolset_name: None = None


class ToolResultBlock(RequestBody):
    """What a tool returned to an earlier call."""

    type: Literal["tool_result"]
    tool_use_id: CallId
    content: str | list[TextBlock] | None = None
    is_error: bool | None = Field(None, description="True: the model reads the content as an error.")
    cache_control: CacheControl | None = None
    toolset_name: None = None


Block = Annotated[TextBlock | ToolUseBlock | ToolResultBlock, Field(discriminator="type")]


class Turn(RequestBody):
    """A message. Calls belong to the assistant and results to the user; turns of one role in a row are one turn."""

    role: Literal["user", "assistant", "system"]
    content: str | Annotated[list[Block], Field(min_length=1)]


class ClientTool(RequestBody):
    """A tool that the client runs."""

    type: Literal["custom"] | None = None
    name: FunctionName
    description: str | None = None
    input_schema: dict[str, Any] = Field(description="JSON Schema of an object, the call's input.")
    cache_control: CacheControl | None = None
    strict: bool | None = Field(None, description="Accepted; input is always valid for the schema.")
    eager_input_streaming: Literal[True] | None = Field(None, description="Input is always streamed as it is written.")
    defer_loading: OnlyFalse | None = None
    allowed_callers: Annotated[list[Literal["direct"]], Field(min_length=1, max_length=1)] | None = None
    input_examples: EmptyList | None = None


class ChoiceAuto(RequestBody):
    """The model decides."""

    type: Literal["auto"]
    disable_parallel_tool_use: bool | None = Field(None, description="True: one call at most.")


class ChoiceAny(RequestBody):
    """The answer is calls."""

    type: Literal["any"]
    disable_parallel_tool_use: bool | None = Field(None, description="True: exactly one call.")


class ChoiceTool(RequestBody):
    """The answer is one call of this tool."""

    type: Literal["tool"]
    name: FunctionName
    disable_parallel_tool_use: bool | None = None


class ChoiceNone(RequestBody):
    """No calls; the prompt then has no tools."""

    type: Literal["none"]


class ThinkingDisabled(RequestBody):
    type: Literal["disabled"]


class JsonOutput(RequestBody):
    """The answer is JSON, valid for the schema."""

    type: Literal["json_schema"]
    document: Annotated[dict[str, Any], Field(alias="schema", description="JSON Schema, draft 2020-12.")]


class OutputConfig(RequestBody):
    format: JsonOutput | None = None
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = Field(
        None, description="Of a model with experts, how many of them run; see expert_budget of chat completions."
    )


class Conversation(RequestBody):
    """What a request to answer a conversation and one to count its tokens share."""

    model: ModelName = Field(description="A name listed by GET /v1/models.")
    messages: Annotated[list[Turn], Field(min_length=1, max_length=MAX_MESSAGES)]
    system: str | list[TextBlock] | None = None
    tools: Annotated[list[ClientTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Annotated[ChoiceAuto | ChoiceAny | ChoiceTool | ChoiceNone, Field(discriminator="type")] | None = None
    output_config: OutputConfig | None = None
    cache_control: CacheControl | None = None
    thinking: ThinkingDisabled | None = None
    # Neutral values only.
    speed: Literal["standard"] | None = None
    context_management: None = None
    mcp_servers: EmptyList | None = None


class CountTokensRequest(Conversation):
    """A conversation whose tokens are to be counted."""


class Metadata(RequestBody):
    user_id: str | None = Field(None, description="Accepted; has no effect.")


class MessagesRequest(Conversation):
    """A conversation to answer.

    Parameters of Anthropic's API that this server does not support are declared with the neutral values that clients
    send for them; any other value is refused.
    """

    max_tokens: Annotated[int, Field(ge=1, lt=2**31), Integral] = Field(
        description="Bound on generated tokens; the rest of the context, where that is less."
    )
    temperature: Annotated[float, Field(ge=0, le=1)] | None = Field(None, description="0 is greedy; default 1.")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(None, description="Nucleus sampling; default 1 (off).")
    top_k: Annotated[int, Field(ge=0, lt=2**31), Integral] | None = Field(
        None, description="Keep the k likeliest tokens; 0 is off."
    )
    stop_sequences: Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)] | None = Field(
        None, description="Strings that end the answer; they are not part of it."
    )
    stream: bool | None = Field(None, description="Send the answer as server-sent events.")
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    # Neutral values only.
    container: None = None
    diagnostics: None = None
    inference_geo: None = None


class DeltaUsage(ResponseBody):
    """Token counts. The prompt has `input_tokens` and `cache_read_input_tokens` together."""

    input_tokens: int = Field(description="Prompt tokens that were computed, without those of the prefix cache.")
    output_tokens: int
    cache_read_input_tokens: int = Field(description="Prompt tokens found in the prefix cache.")
    cache_creation_input_tokens: int = Field(description="Always 0: nothing is kept beyond what is computed anyway.")
    output_tokens_details: None = None
    server_tool_use: None = None


class MessageUsage(DeltaUsage):
    """Token counts of an answer."""

    cache_creation: None = None
    inference_geo: None = None
    service_tier: Literal["standard"] = "standard"


class AnswerText(ResponseBody):
    type: Literal["text"]
    text: str
    citations: None


class AnswerToolUse(ResponseBody):
    """A call; where the answer was cut in it, `input` has what was complete."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]
    caller: DirectCaller


AnswerBlock = Annotated[AnswerText | AnswerToolUse, Field(discriminator="type")]
StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class MessageBody(ResponseBody):
    """An answer."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[AnswerBlock]
    stop_reason: StopReason | None
    stop_sequence: str | None
    stop_details: None = None
    container: None = None
    usage: MessageUsage


class TokenCount(ResponseBody):
    input_tokens: int = Field(description="Tokens of the whole prompt, whether or not they are in the prefix cache.")


class MessagesErrorDetails(ResponseBody):
    error_code: str | None
    param: str | None


class MessagesErrorDetail(ResponseBody):
    type: str
    message: str
    details: MessagesErrorDetails


class MessagesErrorBody(ResponseBody):
    """Body of every answer of these routes with a status of 400 or more."""

    type: Literal["error"]
    error: MessagesErrorDetail
    request_id: str


class MessageStart(ResponseBody):
    type: Literal["message_start"]
    message: MessageBody


class Ping(ResponseBody):
    type: Literal["ping"]


class BlockStart(ResponseBody):
    type: Literal["content_block_start"]
    index: int
    content_block: AnswerBlock


class TextDelta(ResponseBody):
    type: Literal["text_delta"]
    text: str


class InputJsonDelta(ResponseBody):
    type: Literal["input_json_delta"]
    partial_json: str


class BlockDelta(ResponseBody):
    type: Literal["content_block_delta"]
    index: int
    delta: Annotated[TextDelta | InputJsonDelta, Field(discriminator="type")]


class BlockStop(ResponseBody):
    type: Literal["content_block_stop"]
    index: int


class StopDelta(ResponseBody):
    stop_reason: StopReason
    stop_sequence: str | None
    stop_details: None = None
    container: None = None


class MessageDelta(ResponseBody):
    type: Literal["message_delta"]
    delta: StopDelta
    usage: DeltaUsage


class MessageStop(ResponseBody):
    type: Literal["message_stop"]


class MessageStreamEvent(
    RootModel[
        Annotated[
            MessageStart | Ping | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop | MessagesErrorBody,
            Field(discriminator="type"),
        ]
    ]
):
    """Data of one server-sent event of a streamed answer; the event's name is its `type`."""
