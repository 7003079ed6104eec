"""What a request may ask of sampling, checked when it is made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stille.engine.grammar import Grammar
from stille.errors import InvalidRequestError

MAX_N = 128
MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_LOGIT_BIAS = 1024


@dataclass(frozen=True)
class SamplingParams:
    """How the answer to one prompt is drawn. The defaults draw from the model's own distribution.

    Order of application: repetition, presence and frequency penalty, logit bias, temperature, top-k, top-p (over what
    top-k left), min-p. A tie at the edge of top-k or top-p keeps all tokens that tie.

    Attributes:
        n: answers per prompt; answer i uses seed + i.
        max_tokens: most tokens of an answer; None = up to the context's end.
        temperature: 0 = greedy.
        top_p: keep the smallest set of likeliest tokens whose probabilities reach this; 1 = off.
        top_k: keep the k likeliest tokens; 0 = off.
        min_p: keep tokens at least this many times as likely as the likeliest; 0 = off.
        repetition_penalty: divides positive and multiplies negative logits of tokens in prompt or answer; 0.01..100,
            1 = off.
        presence_penalty: subtracted from the logits of tokens in the answer so far; -2..2.
        frequency_penalty: subtracted once per occurrence in the answer so far; -2..2.
        logit_bias: token id -> value added to its logit; -100..100.
        seed: makes the answer reproducible, whatever else is in the batch.
        stop: strings that end the answer; not part of it.
        stop_token_ids: tokens that end the answer; not part of its text.
        ignore_eos: go on after the end-of-sequence token.
        expert_budget: mean number of routed experts of a token, for models that choose it (DEB): the compute dial. It
            holds for the prompt too. None = the model's own.
        grammar: what the answer must look like. Tokens that it does not allow are never drawn, whatever the rest says;
            an answer that max_tokens or a stop string cuts is the beginning of one that follows it.
        logprobs: None = none, k = the chosen token's and the k likeliest tokens' log-probabilities. They are the
            model's own: before penalties, bias, temperature and cuts.

    Raises:
        InvalidRequestError: with `.param` naming the field.
    """

    n: int = 1
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    expert_budget: float | None = None
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        _integer("n", self.n, 1, MAX_N)
        if self.max_tokens is not None:
            _integer("max_tokens", self.max_tokens, 1, 2**31 - 1)
        _number("temperature", self.temperature, 0.0, 100.0)
        _number("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _integer("top_k", self.top_k, 0, 2**31 - 1)
        _number("min_p", self.min_p, 0.0, 1.0)
        _number("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        _number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        if self.seed is not None:
            _integer("seed", self.seed, -(2**63), 2**63 - 1)
        if self.logprobs is not None:
            _integer("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        if self.expert_budget is not None:
            _number("expert_budget", self.expert_budget, 1.0, math.inf)
        if not isinstance(self.ignore_eos, bool):
            raise InvalidRequestError(f"ignore_eos must be true or false, got {self.ignore_eos!r}", "ignore_eos")
        if self.grammar is not None and not isinstance(self.grammar, Grammar):
            raise InvalidRequestError(f"grammar must be a Grammar, got {type(self.grammar).__name__}", "grammar")
        if self.grammar is not None and self.ignore_eos:
            raise InvalidRequestError("ignore_eos would go on behind the grammar's end; give one of them", "ignore_eos")
        set_(self, "stop", _stop_strings(self.stop))
        set_(self, "stop_token_ids", _token_ids(self.stop_token_ids))
        set_(self, "logit_bias", _logit_bias(self.logit_bias))

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def plainly_greedy(self) -> bool:
        """Whether the next token is the likeliest, whatever came before, and nothing else is wanted of it."""
        return self.greedy and self.logprobs is None and not self.logit_bias and not self.uses_penalties

    @property
    def uses_penalties(self) -> bool:
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises InvalidRequestError if a token id named here is outside the model's vocabulary."""
        for name, ids in (("logit_bias", self.logit_bias), ("stop_token_ids", self.stop_token_ids)):
            bad = [i for i in ids if not 0 <= i < vocab_size]
            if bad:
                raise InvalidRequestError(f"{name} names token {bad[0]}; the vocabulary has 0..{vocab_size - 1}", name)


def _integer(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequestError(f"{name} must be an integer, got {value!r}", name)
    if not low <= value <= high:
        raise InvalidRequestError(f"{name} must lie in {low}..{high}, got {value}", name)


def _number(name: str, value: Any, low: float, high: float, open_low: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidRequestError(f"{name} must be a finite number, got {value!r}", name)
    if not low <= value <= high or (open_low and value == low):
        span = f"above {low:g} and at most {high:g}" if open_low else f"in {low:g}..{high:g}"
        raise InvalidRequestError(f"{name} must be {span}, got {value}", name)


def _stop_strings(stop: Any) -> tuple[str, ...]:
    if stop is None:
        return ()
    strings = (stop,) if isinstance(stop, str) else stop
    if not isinstance(strings, Sequence) or not all(isinstance(s, str) and s for s in strings):
        raise InvalidRequestError(f"stop must be a non-empty string or a list of them, got {stop!r}", "stop")
    if len(strings) > MAX_STOP_STRINGS:
        raise InvalidRequestError(f"stop takes at most {MAX_STOP_STRINGS} strings, got {len(strings)}", "stop")
    return tuple(strings)


def _token_ids(ids: Any) -> tuple[int, ...]:
    if ids is None:
        return ()
    if not isinstance(ids, Sequence | set | frozenset) or isinstance(ids, str):
        raise InvalidRequestError(f"stop_token_ids must be a list of token ids, got {ids!r}", "stop_token_ids")
    for i in ids:
        _integer("stop_token_ids", i, 0, 2**31 - 1)
    return tuple(ids)


def _logit_bias(bias: Any) -> dict[int, float]:
    if bias is None:
        return {}
    if not isinstance(bias, Mapping):
        raise InvalidRequestError(f"logit_bias must map token ids to numbers, got {bias!r}", "logit_bias")
    if len(bias) > MAX_LOGIT_BIAS:
        raise InvalidRequestError(f"logit_bias takes at most {MAX_LOGIT_BIAS} tokens, got {len(bias)}", "logit_bias")
    for token, value in bias.items():
        _integer("logit_bias", token, 0, 2**31 - 1)
        _number("logit_bias", value, -100.0, 100.0)
    return {int(token): float(value) for token, value in bias.items()}
