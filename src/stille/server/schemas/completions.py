"""Bodies of /v1/completions."""

from typing import Annotated, Literal

from pydantic import Field

from stille.server.schemas.base import FinishReason, Integral, OnlyFalse, ResponseBody, SamplingBody, TokenId, Usage
from stille.server.schemas.formats import ResponseFormat

MAX_PROMPTS = 64
DEFAULT_MAX_TOKENS = 16  # the API's own default

PromptText = Annotated[str, Field(min_length=1)]
PromptIds = Annotated[list[TokenId], Field(min_length=1)]


class CompletionRequest(SamplingBody):
    """A prompt, or several, to continue as plain text: no chat template is applied."""

    prompt: (
        PromptText
        | Annotated[list[PromptText], Field(min_length=1, max_length=MAX_PROMPTS)]
        | PromptIds
        | Annotated[list[PromptIds], Field(min_length=1, max_length=MAX_PROMPTS)]
    ) = Field(description="A text, a list of texts, a list of token ids, or a list of such lists.")
    max_tokens: Annotated[int, Field(ge=1, lt=2**31), Integral] | None = Field(
        None, description="Bound on generated tokens per choice; default 16; never beyond the context."
    )
    logprobs: Annotated[int, Field(ge=0, le=20), Integral] | None = Field(
        None, description="Alternatives per generated token; 0 gives the chosen token's log probability only."
    )
    response_format: ResponseFormat | None = Field(
        None, description="What the continuation must look like. An extension."
    )
    # Neutral values only.
    echo: OnlyFalse | None = None
    suffix: Literal[""] | None = None
    best_of: None = None

    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts as a list, whichever form the request used."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]  # pyright: ignore[reportReturnType]
        return self.prompt  # pyright: ignore[reportReturnType]

    def token_limit(self) -> int:
        """The bound on generated tokens per choice."""
        return DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens

    def logprobs_count(self) -> int | None:
        """None: no log probabilities; otherwise the number of alternatives beside the chosen token."""
        return self.logprobs


class CompletionLogprobs(ResponseBody):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class CompletionChoice(ResponseBody):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason


class Completion(ResponseBody):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class CompletionChunkChoice(ResponseBody):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None


class CompletionChunk(ResponseBody):
    """Data of one server-sent event of a streamed completion."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChunkChoice]
    usage: Usage | None = None
