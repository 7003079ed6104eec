"""One answer being written: its tokens, where it stands, and what its consumer gets."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stille.engine.sampling_params import SamplingParams

if TYPE_CHECKING:
    from stille.engine.detokenizer import TextStream


class Status(enum.Enum):
    WAITING = "waiting"
    PREFILL = "prefill"
    DECODE = "decode"
    FINISHED = "finished"


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
        finish_reason: None while the answer goes on; "stop", "length" or "abort" in its last delta.
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


@dataclass(slots=True, eq=False)
class Request:
    """One call: a prompt, how to answer it, and its n sequences."""

    request_id: str
    prompt_ids: list[int]
    params: SamplingParams
    seed: int
    arrival: float = 0.0
    sequences: list[Sequence] = field(default_factory=list)
    unfinished: int = 0
    admitted: bool = False
    cached_tokens: int = 0

    def usage(self) -> Usage:
        completion = sum(len(s.tokens) for s in self.sequences) - len(self.prompt_ids) * len(self.sequences)
        return Usage(len(self.prompt_ids), completion, self.cached_tokens)


@dataclass(slots=True, eq=False)
class Sequence:
    """One answer to a request.

    Attributes:
        tokens: prompt and answer as far as known on the host. A step in flight may have sampled one more.
        limit: most tokens that it may ever have.
        computed: tokens in the cache (or being written there by a launched step); kept while status is PREFILL.
        slot: its row in the runner and in the scheduler's vectors while it runs, else -1.
        order: position in order of arrival; the youngest is preempted first.
        pages: its pages by position while it runs.
        hashes: chain hashes of its full pages, computed as needed.
        stop_ids: tokens that end it.
        text: incremental detokenisation and stop strings.
    """

    request: Request
    index: int
    tokens: list[int]
    limit: int
    order: int
    stop_ids: frozenset[int]
    text: TextStream
    status: Status = Status.WAITING
    computed: int = 0
    slot: int = -1
    pages: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)

    @property
    def num_prompt(self) -> int:
        return len(self.request.prompt_ids)

    @property
    def output_ids(self) -> list[int]:
        return self.tokens[self.num_prompt :]
