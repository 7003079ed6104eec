"""What the engine gives back: pieces as they come, and whole answers put together from them."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True, frozen=True)
class TokenLogprob:
    """A token and its log-probability (natural logarithm, of the model's unmodified distribution).

    Attributes:
        text: the token alone as text, possibly with U+FFFD where it holds part of a character.
        bytes: the token's UTF-8 bytes.
        top: the likeliest tokens, if asked for; they have no `top` themselves.
    """

    token_id: int
    logprob: float
    text: str
    bytes: bytes
    top: tuple[TokenLogprob, ...] = ()


@dataclass(slots=True, frozen=True)
class Usage:
    """Tokens of one request: the prompt once, all answers, and how much of the prompt came from the prefix cache."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


@dataclass(slots=True)
class OutputDelta:
    """What one step added to one answer.

    Attributes:
        request_id: whose answer.
        index: which of the n answers.
        text: new text; may be empty (part of a character, or text held back because a stop string may begin in it).
        token_ids: new tokens, the one that ended the answer included.
        logprobs: one entry per token, if asked for.
        finish_reason: None while the answer goes on; "stop", "length" or "abort" in its last delta, or "error": its
            grammar turned out to be too complex on the way.
        stop_reason: the stop string or the stop token id that ended it; None for end-of-sequence.
        usage: in the last delta of the request's last answer.
    """

    request_id: str
    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    usage: Usage | None = None


@dataclass(slots=True)
class CompletionOutput:
    """One finished answer; fields as in `OutputDelta`."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None


@dataclass(slots=True)
class RequestOutput:
    """All answers to one prompt, in order of index.

    Attributes:
        request_id: the request's id.
        prompt: the prompt's text, if it was given as text.
        prompt_ids: its tokens.
        outputs: n answers.
        usage: set when all answers are finished.
    """

    request_id: str
    prompt: str | None
    prompt_ids: list[int]
    outputs: list[CompletionOutput]
    usage: Usage | None = None

    @classmethod
    def empty(cls, request_id: str, prompt: str | None, prompt_ids: list[int], n: int) -> RequestOutput:
        return cls(request_id, prompt, prompt_ids, [CompletionOutput(index) for index in range(n)])

    @property
    def finished(self) -> bool:
        return self.usage is not None

    def add(self, delta: OutputDelta) -> None:
        """Takes in the next piece of one of the answers."""
        output = self.outputs[delta.index]
        output.text += delta.text
        output.token_ids.extend(delta.token_ids)
        if delta.logprobs is not None:
            output.logprobs = (output.logprobs or []) + delta.logprobs
        if delta.finish_reason is not None:
            output.finish_reason, output.stop_reason = delta.finish_reason, delta.stop_reason
        if delta.usage is not None:
            self.usage = delta.usage
