"""Whatever requests come, in whatever order they run, end or are aborted: right answers, and nothing leaks.

The executor here computes nothing like a language model: its next token is a checksum of what it reads back from its
pages. Everything that a scheduler, a page pool and token feedback can get wrong changes its answers: a token written to
the wrong place, a page shared that should not be, a stale or missing token anywhere before the last.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor

from stille.engine.block_manager import chain_hash
from stille.engine.config import PAGE_SIZE, EngineConfig
from stille.engine.core import EngineCore
from stille.engine.executor import StepInput
from stille.engine.grammar import Grammar, GrammarCompiler
from stille.engine.outputs import RequestOutput
from stille.engine.sampling_params import SamplingParams
from stille.engine.sequence import Status
from stille.engine.speculate import Costs
from stille.engine.speculate.policy import CostCurve
from stille.errors import QueueFullError
from stille.model import StilleConfig

VOCAB = 97


def next_token(tokens: list[int] | np.ndarray) -> int:
    """Depends on every token and its position."""
    ids = np.asarray(tokens, np.int64)
    return int((ids * (np.arange(len(ids)) * 31 + 7) % 1009).sum() % VOCAB)


def expected(
    prompt: list[int], count: int, stop_ids: frozenset[int] = frozenset(), allowed: Sieve | None = None
) -> list[int]:
    """The greedy answer of `count` tokens, shorter if a stop token ends it."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
        if allowed is not None:
            if not allowed.allows(tokens[-1]):
                tokens[-1] = int(allowed.allowed.argmax())
            allowed.consume(tokens[-1])
        if tokens[-1] in stop_ids:
            break
    return tokens[len(prompt) :]


class Sieve:
    """A grammar of the checksum executor: some of the tokens may not come next, which ones depends on all before."""

    usable = True

    def __init__(self, share: int):
        self.share, self.seen = share, [1]

    @property
    def allowed(self) -> np.ndarray:
        return (np.arange(VOCAB) * 37 + self.seen[-1]) % 8 >= self.share

    def allows(self, token: int) -> bool:
        return bool(self.allowed[token])

    def consume(self, token: int) -> bool:
        assert self.allows(token), "a token that the grammar does not allow"
        self.seen.append((self.seen[-1] * 31 + token) % 1009)
        return True

    def back(self, count: int) -> None:
        del self.seen[len(self.seen) - count :]

    def valid(self, tokens: list[int]) -> int:
        before = list(self.seen)
        right = next(
            (i for i, token in enumerate(tokens) if not (self.allows(token) and self.consume(token))), len(tokens)
        )
        self.seen = before
        return right

    def forced(self) -> list[int]:
        return []

    def fill(self, mask_W: np.ndarray) -> None:
        mask_W[:] = np.packbits(np.pad(self.allowed, (0, -VOCAB % 32)), bitorder="little").view(np.int32)


class Sieves(GrammarCompiler):
    """`Grammar.lark("3")` leaves out three eighths of the tokens."""

    def matcher(self, grammar: Grammar) -> Sieve:  # pyright: ignore[reportIncompatibleMethodOverride]
        return Sieve(int(grammar.source))


class HashExecutor:
    """Real paging, checked: a step that overwrites a token with another one is an error."""

    def __init__(self, pages: int):
        self.device = torch.device("cpu")
        self.vocab_size = VOCAB
        self.num_pages = pages + 1
        self.async_depth, self.experts, self.routing, self.drafter = 0, None, None, None
        self.memory = np.full((pages + 1, PAGE_SIZE), -1, np.int64)
        self.steps: list[StepInput] = []

    def warmup(self) -> None:
        pass

    def forward(self, step: StepInput, ids_N: Tensor) -> Tensor:
        ids = ids_N.numpy()
        assert (ids >= 0).all()
        again = np.diff(step.slots) == 0  # a row that follows a guess
        assert len(set(step.slots.tolist())) == step.num_seqs - again.sum()
        assert (np.diff(step.starts)[again] == 1).all()
        assert ((step.lengths == 1) == (np.arange(step.num_seqs) < step.num_decodes)).all()
        first = 0
        for row in range(step.num_seqs):  # all writes before all reads, as in a layer of a model
            positions = step.starts[row] + np.arange(step.lengths[row])
            pages = step.page_table[row, positions // PAGE_SIZE]
            assert (pages > 0).all(), "the scratch page belongs to no sequence"
            self.memory[pages, positions % PAGE_SIZE] = ids[first : first + step.lengths[row]]
            first += int(step.lengths[row])
        logits = np.zeros((step.num_seqs, VOCAB), np.float32)
        for row in range(step.num_seqs):
            length = int(step.starts[row] + step.lengths[row])
            stored = self.memory[step.page_table[row]].reshape(-1)[:length]
            logits[row, next_token(stored)] = 1.0
        self.steps.append(step)
        return torch.from_numpy(logits)


def hash_core(depth: int, pages: int, seqs: int, budget: int, **more) -> EngineCore:
    config = EngineConfig(
        dtype="fp32",
        device="cpu",
        kv_cache_tokens=pages * PAGE_SIZE,
        max_num_seqs=seqs,
        max_num_batched_tokens=max(seqs, budget),
        async_depth=depth,
        **more,
    ).resolve(StilleConfig(num_hidden_layers=1, max_position_embeddings=100_000))
    core = EngineCore(HashExecutor(pages), _NoText(), config, costs=Costs(Free(), Free()))
    core.grammars = Sieves(None, VOCAB, ())
    return core


class Free(CostCurve):
    """Of checks that cost nothing, so that every guess is checked."""

    def __init__(self):
        super().__init__((1, 1000), (1.0, 1.0))

    def observe(self, rows: int, sequences: int, seconds: float) -> None:
        pass


class _NoText:
    """The vocabulary of the checksum executor: nothing special, every id a letter."""

    all_special_ids: tuple[int, ...] = ()

    def get_vocab(self):
        return {chr(0x4E00 + i): i for i in range(VOCAB)}

    def decode(self, ids, **_):
        return "".join(chr(0x4E00 + i) for i in ids)


@st.composite
def workload(draw):
    """Prompts that share beginnings, as conversations do."""
    stem = draw(st.lists(st.integers(0, VOCAB - 1), min_size=8, max_size=8)) * 32
    requests = []
    for _ in range(draw(st.integers(1, 8))):
        ids = stem[: draw(st.integers(1, 200))] + draw(st.lists(st.integers(0, VOCAB - 1), max_size=20))
        requests.append((ids, draw(st.integers(1, 90)), draw(st.sampled_from([None, None, 0, 1, 5]))))
    return requests


@settings(max_examples=60, deadline=None)
@given(
    requests=workload(),
    depth=st.integers(0, 1),
    pages=st.integers(5, 14),
    seqs=st.integers(1, 6),
    budget=st.integers(6, 150),
    caching=st.booleans(),
    guesses=st.sampled_from([0, 7]),
)
def test_every_schedule_gives_the_same_answers(requests, depth, pages, seqs, budget, caching, guesses):
    core = hash_core(depth, pages, seqs, budget, prefix_caching=caching, max_queue=100, max_draft_tokens=guesses)
    work = {
        f"{i}": (
            ids,
            SamplingParams(
                temperature=0,
                max_tokens=count,
                stop_token_ids=[5],
                grammar=None if sieve is None else Grammar(f"{sieve}"),
            ),
        )
        for i, (ids, count, sieve) in enumerate(requests)
        if len(ids) + count <= core.max_model_len
    }
    results = {name: RequestOutput.empty(name, None, ids, 1) for name, (ids, _) in work.items()}
    for name, (ids, params) in work.items():
        core.add(name, ids, params)
    while core.has_work:
        for delta in core.step():
            results[delta.request_id].add(delta)
    for name, (ids, params) in work.items():
        sieve = None if params.grammar is None else Sieve(int(params.grammar.source))
        assert results[name].outputs[0].token_ids == expected(ids, params.max_tokens, frozenset([5]), sieve), name
        assert results[name].usage.completion_tokens == len(results[name].outputs[0].token_ids)


class Traffic(RuleBasedStateMachine):
    """Requests come, are aborted and finish in any order, while steps run; whatever happens, the books balance."""

    @initialize(depth=st.integers(0, 1), pages=st.integers(4, 10), seqs=st.integers(1, 4), budget=st.integers(4, 100))
    def start(self, depth, pages, seqs, budget):
        self.core = hash_core(depth, pages, seqs, budget, max_queue=5)
        self.asked: dict[str, tuple[list[int], SamplingParams]] = {}
        self.results: dict[str, RequestOutput] = {}

    @rule(
        stem=st.integers(0, 2),
        length=st.integers(1, 180),
        count=st.integers(1, 80),
        n=st.integers(1, 3),
        stop=st.sampled_from([(), (5,), tuple(range(0, VOCAB, 3))]),
    )
    def add(self, stem, length, count, n, stop):
        ids = [(stem + i * i) % VOCAB for i in range(length)]
        params = SamplingParams(temperature=0, max_tokens=count, n=n, stop_token_ids=stop)
        if length + count > self.core.max_model_len:
            return
        name = str(len(self.asked))
        if self.core.queue_depth == 5:
            with pytest.raises(QueueFullError) as caught:
                self.core.add(name, ids, params)
            assert caught.value.retry_after_s >= 1
            return
        self.core.add(name, ids, params)
        self.asked[name] = (ids, params)
        self.results[name] = RequestOutput.empty(name, None, ids, n)

    @rule(steps=st.integers(1, 12))
    def step(self, steps):
        for _ in range(steps):
            self.take(self.core.step())

    @precondition(lambda self: self.core.requests)
    @rule(data=st.data())
    def abort(self, data):
        self.take(self.core.abort(data.draw(st.sampled_from(sorted(self.core.requests)))))

    @rule()
    def abort_what_is_gone(self):
        assert self.core.abort("never was") == []

    def take(self, deltas):
        for delta in deltas:
            self.results[delta.request_id].add(delta)

    @invariant()
    def books_balance(self):
        core = self.core
        core.blocks.check()
        sequences = [
            s for r in core.requests.values() for s in r.sequences if s.pages and s.status is not Status.FINISHED
        ]
        held = {page for s in sequences for page in s.pages}
        waiting_for_a_step = {page for s in core.scheduler._ended for page in s.pages}
        assert core.blocks.num_used == len(held | waiting_for_a_step)
        slots = [s.slot for s in sequences] + [s.slot for s in core.scheduler._ended]
        assert len(set(slots) - {-1}) == len(slots)

    @invariant()
    def nothing_that_a_step_in_flight_writes_to_is_given_away(self):
        for flight in self.core._launched:
            step = flight.plan.step
            for row, sequence in enumerate(flight.plan.sequences):
                assert sequence.slot == step.slots[row]
                assert step.starts[row] + step.lengths[row] < sequence.limit, "a token that nobody needs"
                pages = step.page_table[row, step.starts[row] // PAGE_SIZE :]
                assert set(pages[pages > 0].tolist()) <= set(sequence.pages)

    @invariant()
    def cached_pages_hold_what_their_hash_says(self):
        executor: HashExecutor = self.core.runner.executor
        names = self.core.blocks._hash_of
        for page, name in names.items():
            content = executor.memory[page].tolist()
            before = [b"", *names.values()]
            before += [h for r in self.core.requests.values() for s in r.sequences for h in s.hashes]
            before += self.evicted_names()
            assert any(chain_hash(previous, content) == name for previous in before)

    def evicted_names(self):
        """Names of pages that may be gone while a page after them is still cached."""
        known = []
        for ids, params in self.asked.values():
            tokens = ids + expected(ids, params.max_tokens)
            previous = b""
            for begin in range(0, len(tokens) - PAGE_SIZE + 1, PAGE_SIZE):
                previous = chain_hash(previous, tokens[begin : begin + PAGE_SIZE])
                known.append(previous)
        return known

    @invariant()
    def answers_so_far_are_right(self):
        for name, result in self.results.items():
            ids, params = self.asked[name]
            right = expected(ids, params.max_tokens, frozenset(params.stop_token_ids))
            for output in result.outputs:
                assert output.token_ids == right[: len(output.token_ids)]
                if output.finish_reason in ("stop", "length"):
                    assert output.token_ids == right

    def teardown(self):
        if not hasattr(self, "core"):
            return
        while self.core.has_work:
            self.take(self.core.step())
        assert self.core.blocks.num_used == 0, "a page leaked"
        assert sorted(self.core.scheduler._free_slots) == list(range(self.core.config.max_num_seqs)), "a slot leaked"
        assert all(result.finished for result in self.results.values())
        assert not self.core.requests
        assert self.core.queue_depth == 0


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
