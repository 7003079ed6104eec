"""Bodies of /v1/chat/completions."""

from typing import Annotated, Literal

from pydantic import Field

from stille.server.schemas.base import (
    EmptyList,
    Integral,
    OnlyFalse,
    RequestBody,
    ResponseBody,
    SamplingBody,
    Usage,
)
from stille.server.schemas.formats import ResponseFormat
from stille.server.schemas.tools import CallId, EarlierCall, FunctionName, ToolCall, ToolCallDelta, ToolChoice, Tools

MAX_MESSAGES = 4096


class TextPart(RequestBody):
    """The only kind of content part that a text model reads."""

    type: Literal["text"]
    text: str


Content = str | Annotated[list[TextPart], Field(min_length=1)]
Name = Annotated[str, Field(min_length=1, max_length=64)]


class InstructionMessage(RequestBody):
    """Instructions; `developer` is today's name for `system` and is treated as that."""

    role: Literal["system", "developer"]
    content: Content
    name: Name | None = None


class UserMessage(RequestBody):
    role: Literal["user"]
    content: Content
    name: Name | None = None


class AssistantMessage(RequestBody):
    """An earlier answer. What answers carry and this server does not have is accepted empty."""

    role: Literal["assistant"]
    content: Content | None = Field(None, description="May be left out beside tool_calls.")
    name: Name | None = None
    refusal: None = None
    annotations: EmptyList | None = None
    audio: None = None
    function_call: None = None
    tool_calls: list[EarlierCall] | None = None


class ToolMessage(RequestBody):
    """What a function returned to a call that an assistant's message before it has made."""

    role: Literal["tool"]
    content: Content
    tool_call_id: CallId
    name: FunctionName | None = Field(None, description="If given, the name of the function that was called.")


Message = Annotated[InstructionMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class ChatCompletionRequest(SamplingBody):
    """A conversation to continue.

    Parameters of the OpenAI API that this server does not support are declared here with the neutral values that
    clients send for them; any other value is refused.
    """

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31), Integral] | None = Field(
        None, description="Bound on generated tokens; default and upper bound: the rest of the context."
    )
    max_tokens: Annotated[int, Field(ge=1, lt=2**31), Integral] | None = Field(
        None, description="The older name of max_completion_tokens; the smaller one counts if both are given."
    )
    logprobs: bool | None = Field(None, description="Return the log probability of each generated token.")
    top_logprobs: Annotated[int, Field(ge=0, le=20), Integral] | None = Field(
        None, description="Alternatives per token; needs logprobs=true."
    )
    response_format: ResponseFormat | None = Field(None, description="What the answer must look like.")
    tools: Tools | None = Field(None, description="Functions that the answer may call.")
    tool_choice: ToolChoice | None = Field(
        None, description="Whether the answer may call functions, must, or must call a certain one; default auto."
    )
    parallel_tool_calls: bool | None = Field(None, description="False: one call at most; default true.")
    # Neutral values only, until the features behind them exist.
    functions: EmptyList | None = None
    function_call: Literal["none", "auto"] | None = None
    modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None = None
    audio: None = None
    prediction: None = None
    web_search_options: None = None
    moderation: None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = Field(
        None, description="Of a model with experts, another way to say expert_budget; 'none' and 'medium' are its own."
    )
    verbosity: Literal["medium"] | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: OnlyFalse | None = None
    # Labels: accepted, without effect on the answer.
    metadata: (
        Annotated[
            dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
        ]
        | None
    ) = Field(None, description="Accepted; has no effect, answers are not stored.")
    safety_identifier: str | None = Field(None, description="Accepted; has no effect.")
    prompt_cache_key: str | None = Field(None, description="Accepted; prefixes are cached by content, without keys.")
    prompt_cache_retention: Literal["in_memory"] | None = None
    prompt_cache_options: None = None

    def token_limit(self) -> int | None:
        """The bound on generated tokens that the request states, if any."""
        limits = [limit for limit in (self.max_completion_tokens, self.max_tokens) if limit is not None]
        return min(limits) if limits else None

    def logprobs_count(self) -> int | None:
        """None: no log probabilities; otherwise the number of alternatives beside the chosen token."""
        return (self.top_logprobs or 0) if self.logprobs else None


class TopLogprob(ResponseBody):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(ResponseBody):
    content: list[TokenLogprob]
    refusal: None = None


ChatFinishReason = Literal["stop", "length", "tool_calls"]


class AnswerMessage(ResponseBody):
    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    annotations: EmptyList = []
    tool_calls: list[ToolCall] | None = None


class ChatChoice(ResponseBody):
    index: int
    message: AnswerMessage
    logprobs: ChoiceLogprobs | None = None
    finish_reason: ChatFinishReason


class ChatCompletion(ResponseBody):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Delta(ResponseBody):
    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChunkChoice(ResponseBody):
    index: int
    delta: Delta
    logprobs: ChoiceLogprobs | None
    finish_reason: ChatFinishReason | None


class ChatCompletionChunk(ResponseBody):
    """Data of one server-sent event of a streamed answer."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
