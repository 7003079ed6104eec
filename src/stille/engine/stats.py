"""What the engine counts: written by the engine's thread, read from any other."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stille.engine.core import EngineCore
    from stille.engine.routing_stats import LayerLoad

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


class Histogram:
    """Counts of observations by bucket, as Prometheus wants them.

    Attributes:
        bounds: upper bounds (inclusive) of all buckets but the last, which has none.
        counts: observations per bucket, one more than bounds; not cumulative.
        sum: of all observations.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...], counts: list[int] | None = None, total: float = 0.0):
        self.bounds = bounds
        self.counts = counts or [0] * (len(bounds) + 1)
        self.sum = total

    @property
    def count(self) -> int:
        return sum(self.counts)

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def copy(self) -> Histogram:
        return Histogram(self.bounds, list(self.counts), self.sum)


@dataclass(slots=True)
class Metrics:
    """Counters and histograms of one engine since it started.

    Attributes:
        finished: requests' answers by finish reason.
        prompt_tokens: of admitted requests; generation_tokens: given out; embedding_tokens: of embedded inputs.
        ttft: seconds from a request's arrival to the first token of each answer.
        inter_token: seconds between two tokens of an answer.
        e2e: seconds from a request's arrival to an answer's end.
        queue_time: seconds from a request's arrival to its admission.
        step_seqs, step_tokens: sequences and tokens per step.
    """

    requests: int = 0
    finished: dict[str, int] = field(default_factory=lambda: {"stop": 0, "length": 0, "abort": 0, "error": 0})
    prompt_tokens: int = 0
    generation_tokens: int = 0
    embedding_tokens: int = 0
    steps: int = 0
    ttft: Histogram = field(default_factory=lambda: Histogram(_SECONDS))
    inter_token: Histogram = field(default_factory=lambda: Histogram(_SECONDS))
    e2e: Histogram = field(default_factory=lambda: Histogram(_SECONDS))
    queue_time: Histogram = field(default_factory=lambda: Histogram(_SECONDS))
    step_seqs: Histogram = field(default_factory=lambda: Histogram(_COUNTS))
    step_tokens: Histogram = field(default_factory=lambda: Histogram(_COUNTS))


@dataclass(slots=True, frozen=True)
class Load:
    """Unfinished sequences, and how many slots there are for them.

    Attributes:
        slots: sequences that may run together (max_num_seqs).
        foreground: of requests that were made in the ordinary way; background: of those made with
            `stille.engine.async_llm.background` set.
        waiting: of both kinds, without a slot.
    """

    slots: int
    foreground: int
    background: int
    waiting: int


@dataclass(slots=True, frozen=True)
class EngineStats:
    """A snapshot.

    Attributes:
        queue_depth: requests waiting for admission; max_queue: how many may.
        waiting: sequences without a slot (preempted ones too); running: with one.
        pages: of the cache without the scratch page = pages_used + pages_cached + pages_free.
        pages_cached: not in use, kept for their content.
        prefix_query_tokens, prefix_hit_tokens: prompt tokens looked up in the prefix cache, and found.
        drafted_tokens, accepted_tokens: guesses that steps checked, and those that were right.
        routing: of each layer with experts.
        Others: see `Metrics`.
    """

    queue_depth: int
    max_queue: int
    waiting: int
    running: int
    max_num_seqs: int
    pages: int
    pages_used: int
    pages_cached: int
    pages_free: int
    requests: int
    finished: dict[str, int]
    prompt_tokens: int
    generation_tokens: int
    embedding_tokens: int
    prefix_query_tokens: int
    prefix_hit_tokens: int
    preemptions: int
    drafted_tokens: int
    accepted_tokens: int
    steps: int
    ttft: Histogram
    inter_token: Histogram
    e2e: Histogram
    queue_time: Histogram
    step_seqs: Histogram
    step_tokens: Histogram
    routing: list[LayerLoad] = field(default_factory=list)

    @classmethod
    def of(cls, core: EngineCore) -> EngineStats:
        m, blocks, scheduler, speculator = core.metrics, core.blocks, core.scheduler, core.speculator
        cached, available, pages = blocks.num_cached, blocks.num_available, blocks.num_pages - 1
        return cls(
            queue_depth=core.queue_depth,
            max_queue=core.max_queue,
            waiting=len(scheduler.waiting),
            running=scheduler.num_running,
            max_num_seqs=core.config.max_num_seqs or 0,
            pages=pages,
            pages_used=pages - available,
            pages_cached=cached,
            pages_free=available - cached,
            requests=m.requests,
            finished=dict(m.finished),
            prompt_tokens=m.prompt_tokens,
            generation_tokens=m.generation_tokens,
            embedding_tokens=m.embedding_tokens,
            prefix_query_tokens=scheduler.prefix_queries,
            prefix_hit_tokens=scheduler.prefix_hits,
            preemptions=scheduler.preemptions,
            drafted_tokens=0 if speculator is None else speculator.stats.drafted,
            accepted_tokens=0 if speculator is None else speculator.stats.accepted,
            steps=m.steps,
            ttft=m.ttft.copy(),
            inter_token=m.inter_token.copy(),
            e2e=m.e2e.copy(),
            queue_time=m.queue_time.copy(),
            step_seqs=m.step_seqs.copy(),
            step_tokens=m.step_tokens.copy(),
            routing=[] if core.routing is None else core.routing.snapshot(),
        )
