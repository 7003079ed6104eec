"""What all request bodies share: strict parsing, sampling parameters, neutral-only parameters."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class RequestBody(BaseModel):
    """Base of request bodies: no coercion between JSON types, no unknown fields, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class ResponseBody(BaseModel):
    """Base of response bodies."""

    model_config = ConfigDict(extra="forbid")


def _integral(value: Any) -> Any:
    # In JSON, 3.0 is an integer; Python's parser makes a float of it, which strict validation would refuse.
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _boolean(value: Any) -> Any:
    if not isinstance(value, bool):  # 0 equals False, which is all that Literal asks for
        raise ValueError("Input should be false")
    return value


# Behind the Field of a bounded integer, so that the bounds stay visible in the JSON schema.
Integral = BeforeValidator(_integral)
OnlyFalse = Annotated[Literal[False], BeforeValidator(_boolean)]
# The mark lets the OpenAPI document replace the bound by the size of the vocabulary that is served.
TOKEN_ID_MARK = "x-token-id"
# This one, by the numbers of experts that the served model runs.
EXPERTS_MARK = "x-experts"
TokenId = Annotated[int, Field(ge=0, lt=2**31, json_schema_extra={TOKEN_ID_MARK: True}), Integral]
ModelName = Annotated[str, Field(min_length=1, max_length=512)]
EmptyList = Annotated[list[Any], Field(max_length=0)]
StopString = Annotated[str, Field(min_length=1, max_length=1024)]

MAX_STOP_STRINGS = 4
MAX_N = 16


class StreamOptions(RequestBody):
    """Options of a streamed answer."""

    include_usage: bool | None = Field(None, description="Send a last chunk with the usage of the whole request.")
    include_obfuscation: OnlyFalse | None = Field(None, description="Only false: chunks are never padded.")
    continuous_usage_stats: bool | None = Field(
        None, description="With include_usage: every chunk has the counts up to it. An extension."
    )


class SamplingBody(RequestBody):
    """Parameters that chat and text completions share."""

    model: ModelName = Field(description="A name listed by GET /v1/models.")
    n: Annotated[int, Field(ge=1, le=MAX_N), Integral] | None = Field(None, description="Number of choices; default 1.")
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(None, description="0 is greedy; default 1.")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(None, description="Nucleus sampling; default 1 (off).")
    top_k: Annotated[int, Field(ge=-1, lt=2**31), Integral] | None = Field(
        None, description="Keep the k likeliest tokens; 0 or -1 is off. An extension."
    )
    min_p: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="Keep tokens at least this likely relative to the likeliest; default 0. An extension."
    )
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = Field(
        None, description="Divides the positive logits of tokens seen in prompt or answer; default 1. An extension."
    )
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: (
        Annotated[
            dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]],
            Field(max_length=1024, json_schema_extra={"additionalProperties": False}),  # other keys are refused
        ]
        | None
    ) = Field(None, description="Added to the logits of the given token ids.")
    seed: Annotated[int, Integral] | None = Field(
        None, description="Makes sampling reproducible, whatever else the server is doing."
    )
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)] | None = Field(
        None, description="Up to 4 strings that end the answer; they are not part of it."
    )
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64)] | None = Field(
        None, description="Token ids that end the answer. An extension."
    )
    ignore_eos: bool | None = Field(None, description="Go on after the end-of-text token. An extension.")
    expert_budget: Annotated[float, Field(ge=1, json_schema_extra={EXPERTS_MARK: True})] | None = Field(
        None,
        description="Mean number of routed experts of a token: the compute dial of a model with experts. An extension.",
    )
    stream: bool | None = Field(None, description="Send the answer as server-sent events.")
    stream_options: StreamOptions | None = Field(None, description="Only with stream=true.")
    user: str | None = Field(None, description="Accepted; has no effect.")

    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings as a tuple, whichever form the request used."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def wants_stream_usage(self) -> bool:
        """True if a streamed answer ends with a usage chunk."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def wants_continuous_usage(self) -> bool:
        """True if every chunk of a streamed answer has the counts up to it."""
        return self.wants_stream_usage() and bool(self.stream_options and self.stream_options.continuous_usage_stats)


class PromptTokensDetails(ResponseBody):
    cached_tokens: int = Field(description="Prompt tokens found in the prefix cache.")


class Usage(ResponseBody):
    """Token counts of one request, all its choices together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


FinishReason = Literal["stop", "length"]
