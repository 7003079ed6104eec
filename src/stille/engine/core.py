"""The engine's core: requests in, pieces of answers out, one `step` at a time.

It has no thread and no waiting of its own; `LLM` calls it directly and `AsyncLLM` from its thread. With an executor of
async_depth 1, `step` launches the next step before it reads the last one, so the device never waits for the host. A
sequence that is found to have ended has then computed one token too many, which is dropped.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from typing import Any

import numpy as np

from stille.engine.block_manager import BlockManager
from stille.engine.config import PAGE_SIZE, EngineConfig
from stille.engine.detokenizer import Detokenizer
from stille.engine.executor import Executor
from stille.engine.flight import Flight, may_hope, sampled
from stille.engine.grammar import GrammarCompiler
from stille.engine.hsa import PromptRule
from stille.engine.model_runner import Logprobs, ModelRunner, StepHandle, StepOutput
from stille.engine.outputs import OutputDelta, TokenLogprob
from stille.engine.sampling_params import SamplingParams
from stille.engine.sampling_state import AllowedTokens, Guesses
from stille.engine.scheduler import Plan, Scheduler
from stille.engine.sequence import Request, Sequence, Status
from stille.engine.speculate import Costs, Speculator
from stille.engine.stats import EngineStats, Metrics
from stille.errors import ConfigError, InvalidRequestError, PromptTooLongError, QueueFullError

logger = logging.getLogger(__name__)


class EngineCore:
    """Scheduler, runner and detokenisation of one model. Not thread-safe, except `check` and `stats`.

    Args:
        executor: computes steps.
        tokenizer: a transformers tokenizer.
        config: resolved.
        eos_token_ids: tokens that end an answer unless the request ignores them.
        costs: of steps, to decide by whether guessing pays; None: found out on the way.
    """

    def __init__(
        self,
        executor: Executor,
        tokenizer: Any,
        config: EngineConfig,
        eos_token_ids: Iterable[int] = (),
        costs: Costs | None = None,
    ):
        limits = (config.max_model_len, config.max_num_seqs, config.max_num_batched_tokens, config.max_queue)
        if None in limits:
            raise ConfigError("EngineCore needs a resolved config: call config.resolve(model_config) first")
        max_model_len, max_num_seqs, max_num_batched_tokens, max_queue = (int(limit or 0) for limit in limits)
        self.config = config
        self.max_queue = max_queue
        self.vocab_size = executor.vocab_size
        self.experts, self.routing = executor.experts, executor.routing
        self.eos_token_ids = frozenset(eos_token_ids)
        pool = (executor.num_pages - 1) * PAGE_SIZE
        self.max_model_len = min(max_model_len, pool)
        if pool < max_model_len:
            logger.warning(
                "the KV cache holds %d tokens: longer sequences (up to %d) are refused", pool, self.max_model_len
            )
        self.detokenizer = Detokenizer(tokenizer)
        self.grammars = GrammarCompiler(tokenizer, executor.vocab_size, self.eos_token_ids)
        self.runner = ModelRunner(executor, max_num_seqs)
        self.blocks = BlockManager(executor.num_pages, config.prefix_caching)
        cut = PromptRule.of(config.hsa).floor if config.hsa is not None else None
        self.scheduler = Scheduler(self.blocks, max_num_seqs, max_num_batched_tokens, self.max_model_len, cut)
        self.metrics = Metrics()
        self.requests: dict[str, Request] = {}
        self._queued: dict[str, Request] = {}  # not admitted yet
        self._depth = executor.async_depth if config.async_depth is None else config.async_depth
        self._launched: deque[Flight] = deque()
        self._unsaid: list[tuple[Sequence, int]] = []  # tokens taken in whose text is not made yet
        self._decode_rows = min(config.max_decode_rows, max_num_batched_tokens)
        self.speculator: Speculator | None = None
        if config.max_draft_tokens:
            self.speculator = Speculator(
                costs or Costs.unknown(),
                config.max_draft_tokens,
                patient=self._depth > 0,
                heads=0 if executor.drafter is None else executor.drafter.most,
            )
        self._last_read: float | None = None
        self._order = itertools.count()
        self._seeds = np.random.default_rng(config.seed)
        self._finish_times: deque[float] = deque(maxlen=64)

    # Requests

    def check(self, prompt_ids: Seq[int], params: SamplingParams) -> None:
        """Raises what is wrong with a request before it is queued.

        Raises:
            PromptTooLongError: prompt and answer asked for do not fit.
            InvalidRequestError: empty prompt, a token outside the vocabulary, or a number of experts that the model
                does not run, or a grammar that cannot be compiled.
            UnsupportedError: grammars do not work with this tokenizer.
        """
        if not len(prompt_ids):
            raise InvalidRequestError("the prompt is empty; give at least one token", "prompt")
        least, most = min(prompt_ids), max(prompt_ids)
        if least < 0 or most >= self.vocab_size:
            bad = least if least < 0 else most
            raise InvalidRequestError(
                f"prompt token {bad} is outside the vocabulary 0..{self.vocab_size - 1}", "prompt"
            )
        params.check_vocabulary(self.vocab_size)
        self._check_budget(params.expert_budget)
        if params.grammar is not None:
            self.grammars.matcher(params.grammar)  # kept: `add` finds it compiled
        asked = params.max_tokens or 1
        if len(prompt_ids) + asked > self.max_model_len:
            raise PromptTooLongError(
                f"the prompt has {len(prompt_ids)} tokens and {asked} more were asked for, but this engine takes "
                f"{self.max_model_len} together; shorten the prompt or lower max_tokens",
                "prompt" if len(prompt_ids) >= self.max_model_len else "max_tokens",
            )

    def _check_budget(self, budget: float | None) -> None:
        if budget is None:
            return
        if self.experts is None:
            raise InvalidRequestError("this model has no experts to choose; leave expert_budget out", "expert_budget")
        if not self.experts.least <= budget <= self.experts.most:
            raise InvalidRequestError(
                f"expert_budget is {budget:g}; this model runs {self.experts.least:g} to {self.experts.most:g} experts "
                f"of a token on average, {self.experts.own:g} if nothing is said",
                "expert_budget",
            )

    @property
    def queue_depth(self) -> int:
        """Requests that wait for admission."""
        return len(self._queued)

    def check_queue(self, also_waiting: int = 0) -> None:
        """Raises QueueFullError if no further request may wait."""
        if self.queue_depth + also_waiting >= self.max_queue:
            raise QueueFullError(
                f"{self.queue_depth + also_waiting} requests are waiting already (max_queue {self.max_queue}); "
                "try again later",
                self._retry_after(),
            )

    def add(self, request_id: str, prompt_ids: Seq[int], params: SamplingParams, arrival: float | None = None) -> None:
        """Queues a request.

        Args:
            request_id: unique among the unfinished.
            arrival: `time.perf_counter()` when it came; None = now.

        Raises:
            InvalidRequestError, PromptTooLongError: see `check`.
            QueueFullError: see `check_queue`.
        """
        self.check(prompt_ids, params)
        if request_id in self.requests:
            raise InvalidRequestError(f"request id {request_id!r} is in use; ids must be unique", "request_id")
        self.check_queue()
        prompt = list(prompt_ids)
        seed = params.seed if params.seed is not None else int(self._seeds.integers(2**63))
        request = Request(request_id, prompt, params, seed, time.perf_counter() if arrival is None else arrival)
        limit = self.max_model_len
        if params.max_tokens is not None:
            limit = min(limit, len(prompt) + params.max_tokens)
        stop_ids = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self.eos_token_ids)
        budget = 0.0 if self.experts is None else params.expert_budget or self.experts.own
        for index in range(params.n):
            text = self.detokenizer.stream(params.stop, prompt)
            sequence = Sequence(request, index, list(prompt), limit, next(self._order), stop_ids, text)
            sequence.budget = budget
            if params.grammar is not None:
                sequence.matcher = self.grammars.matcher(params.grammar)
            request.sequences.append(sequence)
            self.scheduler.add(sequence)
        request.unfinished = params.n
        self.requests[request_id] = self._queued[request_id] = request
        self.metrics.requests += 1
        self.metrics.prompt_tokens += len(prompt)

    def abort(self, request_id: str) -> list[OutputDelta]:
        """Ends a request; unknown ids (finished long ago) are no error. Returns its answers' last pieces."""
        request = self.requests.get(request_id)
        if request is None:
            return []
        now = time.perf_counter()
        deltas: list[OutputDelta] = []
        self._say(deltas)
        left = [s for s in request.sequences if s.status is not Status.FINISHED]
        return deltas + [self._end(s, "", [], "abort", None, now) for s in left]

    def abort_all(self) -> list[OutputDelta]:
        """Ends every request and waits for the steps in flight, so that all pages and slots are free."""
        deltas = [delta for request_id in list(self.requests) for delta in self.abort(request_id)]
        self._read_all(deltas)
        return deltas

    # Steps

    @property
    def has_work(self) -> bool:
        return bool(self._launched) or self.scheduler.has_work

    def step(self) -> list[OutputDelta]:
        """Launches a step if there is something to compute and reads one if enough are in flight."""
        deltas: list[OutputDelta] = []
        begun = time.perf_counter()
        guesses = self._guess(deltas)
        plan = self.scheduler.schedule(guesses)
        if plan is not None:
            self._launch(plan, deltas)
        if self._launched:
            if plan is None or len(self._launched) > self._depth or plan.offsets is not None:
                self._read_oldest(deltas)
        elif self.scheduler.has_work:
            raise RuntimeError("the scheduler has work but can neither compute nor wait for any of it")
        if self.speculator is not None:
            self._note_cost(self.speculator, plan, begun, guesses is not None)
        return deltas

    def _guess(self, deltas: list[OutputDelta]) -> dict[Sequence, list[int]] | None:
        """Guesses for the next step; all steps in flight are read before any is made."""
        speculator, decoding = self.speculator, self.scheduler.decoding
        if speculator is None or not speculator.due(len(decoding)):
            return None
        if self._launched and not speculator.promising(decoding, self.scheduler.room_for_guesses(self._decode_rows)):
            return None
        self._read_all(deltas)
        return speculator.propose(decoding, self.scheduler.room_for_guesses(self._decode_rows)) if decoding else None

    def _note_cost(self, speculator: Speculator, plan: Plan | None, begun: float, asked: bool) -> None:
        """Times of steps that only decode: with guesses from their beginning, without from one reading to the next.

        Where steps overlap, one that was asked for guesses and has none did not, and says nothing.
        """
        now = time.perf_counter()
        if plan is None or not plan.step.is_decode:
            self._last_read = None
        elif plan.offsets is not None:
            speculator.costs.checked.observe(plan.step.num_seqs, int((plan.offsets == 0).sum()), now - begun)
            self._last_read = None
        else:
            since = self._last_read if self._depth else begun
            if since is not None and not (asked and self._depth) and plan.step.num_seqs <= speculator.most_sequences:
                speculator.costs.plain.observe(plan.step.num_seqs, plan.step.num_seqs, now - since)
            self._last_read = now

    def _launch(self, plan: Plan, deltas: list[OutputDelta]) -> None:
        for sequence in plan.admitted:
            request = sequence.request
            self.runner.assign(sequence.slot, request.params, sequence.seed, request.prompt_ids, sequence.output_ids)
            if self._queued.pop(request.request_id, None) is not None:
                self.metrics.queue_time.observe(time.perf_counter() - request.arrival)
        guesses, sequences = None, plan.step.num_seqs
        if plan.offsets is not None:
            rows = plan.step.sample
            ends = np.cumsum(plan.step.lengths) - 1
            guesses = Guesses(plan.offsets[rows], plan.step.token_ids[ends[rows]])
            sequences = int(np.count_nonzero(plan.offsets == 0))
        draft = self.speculator is not None and plan.step.is_decode and self.speculator.goes_on(sequences)
        bound = [(row, s) for row, s in enumerate(sampled(plan)) if s.matcher is not None]
        hopeful = guesses is None and self._depth == 1 and may_hope(bound, self.scheduler)
        allowed = self._allowed(bound, guesses, deltas, hopeful) if bound else None
        handle = self.runner.launch(plan.step, allowed, guesses, draft, hopeful)
        self._launched.append(Flight(plan, handle, guesses, hopeful))
        self._say(deltas)
        self.metrics.steps += 1
        self.metrics.step_seqs.observe(plan.step.num_seqs)
        self.metrics.step_tokens.observe(plan.step.num_tokens)

    def _allowed(
        self, bound: list[tuple[int, Sequence]], guesses: Guesses | None, deltas: list[OutputDelta], hopeful: bool
    ) -> Callable[[], AllowedTokens | None]:
        """How to find what grammars allow in a step, of the sampled rows that have one.

        It depends on every token before, so steps in flight are read first; the step itself is on its way by then. A
        hopeful step waits for none of them, and masks are for sequences of which all tokens are known.
        """

        def find() -> AllowedTokens | None:
            if not hopeful:
                self._read_all(deltas)
            going = [
                (row, s.matcher)
                for row, s in bound
                if s.matcher is not None
                and s.status is not Status.FINISHED
                and not (hopeful and self.scheduler.ahead(s) > 1)
            ]
            if not going:
                return None
            rows, matchers = zip(*going, strict=True)
            if guesses is None:
                return AllowedTokens(np.array(rows), self.grammars.masks(matchers, lambda: self._say(deltas)))
            after = [(int(guesses.offset_R[row]), int(guesses.tokens_R[row])) for row in rows]
            return AllowedTokens(np.array(rows), self.grammars.masks_after(matchers, after))

        return find

    def _read_all(self, deltas: list[OutputDelta]) -> None:
        while self._launched:
            self._read_oldest(deltas)

    def _read_oldest(self, deltas: list[OutputDelta]) -> None:
        flight = self._launched.popleft()
        plan, output = flight.plan, flight.handle.result()
        self.scheduler.step_read(plan.number)
        now, wrong = time.perf_counter(), []
        if flight.guesses is not None:
            self._read_guessed(sampled(plan), flight.guesses, output, now, deltas)
        else:
            for row, (sequence, token) in enumerate(zip(sampled(plan), output.token_ids, strict=True)):
                if sequence.status is Status.FINISHED or sequence in flight.void:
                    continue  # one token too many
                if sequence.matcher is not None:
                    if flight.hopeful and not sequence.matcher.allows(token):
                        wrong.append((row, sequence))
                        continue
                    if not flight.hopeful and self._take_silently(sequence, token, now):
                        continue
                if self._unsaid:
                    self._say(deltas)
                deltas.append(self._take(sequence, token, row, output.logprobs, now))
            if wrong:
                self._choose_again(flight, wrong, deltas)
        if flight.again is not None:
            self._take_again(*flight.again, deltas)
        if output.drafts is not None and self.speculator is not None:
            stale = flight.void.union(sequence for _, sequence in wrong)
            for sequence, tokens, chances in zip(dict.fromkeys(plan.sequences), *output.drafts, strict=True):
                if sequence.status is Status.DECODE and sequence not in stale:
                    self.speculator.hear(sequence, tokens, chances)

    def _choose_again(self, flight: Flight, wrong: list[tuple[int, Sequence]], deltas: list[OutputDelta]) -> None:
        """For sampled rows of a hopeful step whose token a grammar does not allow."""
        sequences = [sequence for _, sequence in wrong]
        masks = self.grammars.masks([s.matcher for s in sequences if s.matcher is not None])
        allowed = AllowedTokens(np.array([row for row, _ in wrong]), masks)
        handle = self.runner.again(flight.handle, [s.slot for s in sequences], allowed)
        if not self._launched:
            self._take_again(sequences, handle, deltas)
            return
        following = self._launched[0]
        following.again = (sequences, handle)
        following.void = set(sequences).intersection(following.plan.sequences)
        for sequence in following.void:
            self.scheduler.void(sequence)

    def _take_again(self, sequences: list[Sequence], handle: StepHandle, deltas: list[OutputDelta]) -> None:
        tokens, now = handle.result().token_ids, time.perf_counter()
        self._say(deltas)
        for row, (sequence, token) in enumerate(zip(sequences, tokens, strict=True)):
            if sequence.status is not Status.FINISHED:
                deltas.append(self._take(sequence, token, row, None, now))

    def _read_guessed(
        self, sequences: list[Sequence], guesses: Guesses, output: StepOutput, now: float, deltas: list[OutputDelta]
    ) -> None:
        """Takes of each sequence (of the sampled rows) the tokens up to the first that a guess was wrong about."""
        assert self.speculator is not None
        grown = [
            (sequences[row], tokens[: self._take_all(sequences[row], tokens, row, output.logprobs, now, deltas)])
            for row, tokens in guesses.right(output.token_ids)
            if sequences[row].status is not Status.FINISHED
        ]
        still = [(sequence, tokens) for sequence, tokens in grown if sequence.status is not Status.FINISHED]
        if still:
            self.runner.accept([sequence.slot for sequence, _ in still], [tokens for _, tokens in still])
        for sequence, tokens in grown:
            self.speculator.checked(sequence, len(tokens))
            if sequence.status is Status.DECODE:
                self.scheduler.checked(sequence)

    def _take_all(
        self,
        sequence: Sequence,
        tokens: list[int],
        row: int,
        logprobs: Logprobs | None,
        now: float,
        deltas: list[OutputDelta],
    ) -> int:
        """As `_take`, for tokens of successive rows; returns how many the answer took before it ended."""
        for place, token in enumerate(tokens):
            if self._take_silently(sequence, token, now):
                continue
            self._say(deltas)
            deltas.append(self._take(sequence, token, row + place, logprobs, now))
            if sequence.status is Status.FINISHED:
                return place + 1
        return len(tokens)

    def _take_silently(self, sequence: Sequence, token: int, now: float) -> bool:
        """As `_take`, if it needs no text to go on and a device waits meanwhile; text is made once that is busy."""
        params = sequence.request.params
        ends = token in sequence.stop_ids or len(sequence.tokens) + 1 >= sequence.limit
        if ends or not self._depth or params.stop or params.logprobs is not None:
            return False
        if sequence.matcher is not None and not sequence.matcher.consume(token):
            return False
        self._grow(sequence, token, now)
        self._unsaid.append((sequence, token))
        return True

    def _say(self, deltas: list[OutputDelta]) -> None:
        """Tokens that were taken in without text become pieces of answers."""
        for sequence, group in itertools.groupby(self._unsaid, key=lambda entry: entry[0]):
            tokens = [token for _, token in group]
            text = "".join(sequence.text.push(token)[0] for token in tokens)
            deltas.append(OutputDelta(sequence.request.request_id, sequence.index, text, tokens))
        self._unsaid.clear()

    def _take(self, sequence: Sequence, token: int, row: int, logprobs: Logprobs | None, now: float) -> OutputDelta:
        """Appends a token to its answer and says what that gives the consumer."""
        request, tokens = sequence.request, sequence.tokens
        self._grow(sequence, token, now)
        if sequence.matcher is not None and not sequence.matcher.consume(token):
            return self._end(sequence, "", [token], "error", None, now)
        details = None
        if logprobs is not None and request.params.logprobs is not None:
            details = [self.detokenizer.describe(token, row, logprobs, request.params.logprobs)]
        if token in sequence.stop_ids:
            text, stop = sequence.text.finish()
            if stop is None and token in request.params.stop_token_ids:
                return self._end(sequence, text, [token], "stop", token, now, details)
            return self._end(sequence, text, [token], "stop", stop, now, details)
        text, stop = sequence.text.push(token)
        if stop is not None:
            return self._end(sequence, text, [token], "stop", stop, now, details)
        if len(tokens) >= sequence.limit:
            rest, stop = sequence.text.finish()
            reason = "length" if stop is None else "stop"
            return self._end(sequence, text + rest, [token], reason, stop, now, details)
        return OutputDelta(request.request_id, sequence.index, text, [token], details)

    def _grow(self, sequence: Sequence, token: int, now: float) -> None:
        sequence.tokens.append(token)
        if (len(sequence.tokens) - 1) % PAGE_SIZE == 0:
            self.scheduler.page_filled(sequence)
        self.metrics.generation_tokens += 1
        if sequence.last_token_at:
            self.metrics.inter_token.observe(now - sequence.last_token_at)
        else:
            self.metrics.ttft.observe(now - sequence.request.arrival)
        sequence.last_token_at = now

    def _end(
        self,
        sequence: Sequence,
        text: str,
        token_ids: list[int],
        reason: str,
        stop: str | int | None,
        now: float,
        logprobs: list[TokenLogprob] | None = None,
    ) -> OutputDelta:
        request = sequence.request
        self.scheduler.end(sequence)
        if self.speculator is not None:
            self.speculator.ended(sequence)
        self.metrics.finished[reason] += 1
        self.metrics.e2e.observe(now - request.arrival)
        request.unfinished -= 1
        usage = None
        if request.unfinished == 0:
            usage = request.usage()
            del self.requests[request.request_id]
            self._queued.pop(request.request_id, None)
            self._finish_times.append(now)
        return OutputDelta(request.request_id, sequence.index, text, token_ids, logprobs, reason, stop, usage)

    # Figures

    def stats(self) -> EngineStats:
        """A snapshot; may be called from any thread."""
        return EngineStats.of(self)

    def _retry_after(self) -> float:
        """Seconds until about half of the queue is gone at the rate of the last requests, 1 .. 60."""
        times = self._finish_times
        if len(times) < 2 or times[-1] <= times[0]:
            return 1.0
        rate = (len(times) - 1) / (times[-1] - times[0])
        return min(60.0, max(1.0, 0.5 * self.queue_depth / rate))
