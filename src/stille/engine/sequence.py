"""A request and its answers being written: their tokens and where they stand."""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stille.engine.outputs import Usage
from stille.engine.sampling_params import SamplingParams

if TYPE_CHECKING:
    from stille.engine.detokenizer import TextStream
    from stille.engine.grammar import Matcher


class Status(enum.Enum):
    WAITING = "waiting"
    PREFILL = "prefill"
    DECODE = "decode"
    FINISHED = "finished"


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
        budget: mean number of experts of its tokens; 0 where the model has none.
        stop_ids: tokens that end it.
        text: incremental detokenisation and stop strings.
        matcher: where it stands in its grammar; None without one.
        last_token_at: when its last token was read; 0 before the first.
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
    last_token_at: float = 0.0
    budget: float = 0.0
    matcher: Matcher | None = None

    @property
    def root(self) -> bytes:
        """Names what else than tokens the content of its pages depends on."""
        return struct.pack("<d", self.budget) if self.budget else b""

    @property
    def seed(self) -> int:
        """Its own among its request's, a signed 64-bit integer."""
        return (self.request.seed + self.index + 2**63) % 2**64 - 2**63

    @property
    def num_prompt(self) -> int:
        return len(self.request.prompt_ids)

    @property
    def output_ids(self) -> list[int]:
        return self.tokens[self.num_prompt :]
