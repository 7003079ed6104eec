"""Prometheus metrics: what the engine counts, read when scraped, and the HTTP answers, counted here."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from stille.engine.async_llm import AsyncLLM
from stille.engine.routing_stats import LayerLoad
from stille.engine.stats import EngineStats, Histogram

_GAUGES = (
    ("queue_requests", "queue_depth", "Requests waiting for admission."),
    ("queue_requests_max", "max_queue", "Requests that may wait; more get 429."),
    ("sequences_running", "running", "Sequences in the running batch."),
    ("sequences_running_max", "max_num_seqs", "Sequences that may run together."),
    ("sequences_waiting", "waiting", "Sequences without a place in the batch, preempted ones included."),
    ("kv_pages", "pages", "Pages of the KV cache."),
    ("kv_pages_used", "pages_used", "Pages in use by sequences."),
    ("kv_pages_cached", "pages_cached", "Pages in no use, kept for their prefixes."),
    ("kv_pages_free", "pages_free", "Empty pages."),
)
_COUNTERS = (
    ("requests", "requests", "Requests accepted by the engine."),
    ("prompt_tokens", "prompt_tokens", "Prompt tokens of accepted requests."),
    ("generation_tokens", "generation_tokens", "Generated tokens."),
    ("embedding_tokens", "embedding_tokens", "Tokens of inputs that were embedded."),
    ("prefix_cache_query_tokens", "prefix_query_tokens", "Prompt tokens looked up in the prefix cache."),
    ("prefix_cache_hit_tokens", "prefix_hit_tokens", "Prompt tokens found in the prefix cache."),
    ("drafted_tokens", "drafted_tokens", "Guesses that steps of the model checked (speculative decoding)."),
    ("accepted_tokens", "accepted_tokens", "Guesses that were right."),
    ("preemptions", "preemptions", "Sequences put back because the pages ran out."),
    ("steps", "steps", "Steps of the engine."),
)
_HISTOGRAMS = (
    ("time_to_first_token_seconds", "ttft", "From a request's arrival to the first token of an answer."),
    ("inter_token_latency_seconds", "inter_token", "Between two tokens of an answer."),
    ("e2e_latency_seconds", "e2e", "From a request's arrival to the end of an answer."),
    ("queue_time_seconds", "queue_time", "From a request's arrival to its admission."),
    ("step_sequences", "step_seqs", "Sequences per step: the running batch."),
    ("step_tokens", "step_tokens", "Tokens computed per step."),
)


class ServerMetrics:
    """The metrics of one server, in a registry of their own (several servers may live in one process)."""

    def __init__(self, engine: AsyncLLM):
        self.registry = CollectorRegistry()
        self.registry.register(_EngineCollector(engine))
        ProcessCollector(registry=self.registry)
        self._http = Counter(
            "stille_http_requests",
            "HTTP requests by answer; status 499 is a client that left first.",
            ("method", "route", "status"),
            registry=self.registry,
        )

        self._batch_lines = Counter(
            "stille_batch_lines", "Lines of batches that were finished.", ("result",), registry=self.registry
        )

    def observe_http(self, method: str, route: str, status: int) -> None:
        """Count an HTTP answer."""
        self._http.labels(method, route, str(status)).inc()

    def observe_batch_line(self, result: str) -> None:
        """Count a line of a batch that is finished, "completed" or "failed"."""
        self._batch_lines.labels(result).inc()

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self.registry)


class _EngineCollector(Collector):
    """Turns a snapshot of the engine into metric families."""

    def __init__(self, engine: AsyncLLM):
        self.engine = engine

    def describe(self) -> list[Metric]:
        return []  # the registry need not ask the engine, which may not run yet, for the names

    def collect(self) -> Iterator[Metric]:
        stats: EngineStats = self.engine.stats()
        for name, field, text in _GAUGES:
            yield GaugeMetricFamily(f"stille_{name}", text, getattr(stats, field))
        for name, field, text in _COUNTERS:
            yield CounterMetricFamily(f"stille_{name}", text, getattr(stats, field))
        finished = CounterMetricFamily(
            "stille_answers_finished", "Answers by the reason of their end.", labels=["reason"]
        )
        for reason, count in sorted(stats.finished.items()):
            finished.add_metric([reason], count)
        yield finished
        for name, field, text in _HISTOGRAMS:
            yield _histogram(f"stille_{name}", text, getattr(stats, field))
        if stats.routing:
            yield from _routing(stats.routing)


def _routing(layers: list[LayerLoad]) -> Iterator[Metric]:
    """What the gates did, in the steps that were counted."""
    loads = CounterMetricFamily(
        "stille_expert_tokens", "Counted tokens that ran an expert.", labels=["layer", "expert"]
    )
    violation = GaugeMetricFamily(
        "stille_expert_max_violation", "Load of the busiest expert above the mean, as a share of it.", labels=["layer"]
    )
    dead = GaugeMetricFamily("stille_experts_dead", "Experts that no counted token ran.", labels=["layer"])
    spread = HistogramMetricFamily("stille_experts_per_token", "Experts of a counted token.", labels=["layer"])
    for layer in layers:
        name = str(layer.layer)
        for expert, load in enumerate(layer.load):
            loads.add_metric([name, str(expert)], load)
        violation.add_metric([name], layer.max_violation)
        dead.add_metric([name], len(layer.dead))
        buckets, total = [], 0
        for experts, count in enumerate(layer.spread):
            total += count
            buckets.append((str(float(experts)), total))
        spread.add_metric([name], [*buckets, ("+Inf", total)], sum_value=sum(layer.load))
    yield from (loads, violation, dead, spread)


def _histogram(name: str, text: str, histogram: Histogram) -> HistogramMetricFamily:
    buckets: list[tuple[str, float]] = []
    total = 0
    for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        total += count
        buckets.append(("+Inf" if bound == float("inf") else str(float(bound)), total))
    family = HistogramMetricFamily(name, text)
    family.add_metric([], buckets=buckets, sum_value=histogram.sum)
    return family
