"""Decides what the next step computes: decode rows first, then prompt chunks, under one token budget.

State that the decode step needs lives in vectors indexed by slot, so a step over 256 decoding sequences is a handful
of numpy operations. Steps may be in flight: a decoding sequence's vectors run ahead of its known tokens, its next
input is named -1 ("the slot's last sampled token"), and pages and slot of a sequence that ends are given back only
when no launched step can still write to them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from stille.engine.block_manager import BlockManager, prefix_hashes
from stille.engine.config import PAGE_SIZE
from stille.engine.executor import StepInput
from stille.engine.sequence import Sequence, Status


@dataclass(slots=True)
class Plan:
    """A step and what the core needs to launch it and to read it.

    Attributes:
        number: counts steps from 1.
        step: goes to the runner.
        sequences: the step's rows.
        admitted: sequences that entered a slot in this step and whose sampling state must be set before it.
        offsets: int64[S], with guesses in the step: how many of them the row follows; None: there are none.
    """

    number: int
    step: StepInput
    sequences: list[Sequence]
    admitted: list[Sequence]
    offsets: np.ndarray | None = None


class Scheduler:
    """Waiting and running sequences of one engine.

    Args:
        blocks: the page pool.
        max_num_seqs: slots.
        max_num_batched_tokens: tokens per step, at least max_num_seqs.
        max_model_len: most tokens of one sequence; the pool must hold that many.
        cut: the last position up to a given one where a prompt may be cut into chunks or begin after a cached prefix;
            None: anywhere. What `max_num_batched_tokens` leaves beside max_num_seqs must reach the next cut.
    """

    def __init__(
        self,
        blocks: BlockManager,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
        cut: Callable[[int], int] | None = None,
    ):
        self.blocks = blocks
        self._cut = cut
        self.max_num_batched_tokens = max_num_batched_tokens
        self.waiting: deque[Sequence] = deque()
        self.prefilling: list[Sequence] = []
        self.decoding: list[Sequence] = []
        self.preemptions = 0
        self.prefix_queries = 0  # prompt tokens looked up in the prefix cache, and those found there
        self.prefix_hits = 0
        self.launched = 0  # number of the last planned step and of the last one whose result was read
        self.read = 0
        self._free_slots = list(range(max_num_seqs - 1, -1, -1))
        self._ended: list[Sequence] = []  # hold slot and pages until the last step they are part of is read
        width = -(-max_model_len // PAGE_SIZE)
        self._table = np.zeros((max_num_seqs, width), np.int32)
        self._pages_held = np.zeros(max_num_seqs, np.int32)
        self._length = np.zeros(max_num_seqs, np.int32)  # of decoding slots: known tokens and those in flight
        self._limit = np.zeros(max_num_seqs, np.int32)
        self._budget = np.zeros(max_num_seqs, np.float32)
        self._last_step = np.zeros(max_num_seqs, np.int64)
        self._decode_slots = np.zeros(0, np.int32)
        self._decode_changed = False

    @property
    def num_running(self) -> int:
        return len(self.prefilling) + len(self.decoding)

    def room_for_guesses(self, rows: int) -> int:
        """How many guesses the next step takes, of whose rows so many may decode.

        Where prompts can be read beside them they leave these half of the step, and all of it where prompts have to
        reach a place to be cut at.
        """
        room = rows - len(self.decoding)
        if not (self.prefilling or (self.waiting and self._free_slots)):
            return room
        return 0 if self._cut is not None else min(room, (self.max_num_batched_tokens - len(self.decoding)) // 2)

    @property
    def in_flight(self) -> bool:
        return self.launched > self.read

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.prefilling or self.decoding or self._ended)

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def schedule(self, guesses: Mapping[Sequence, list[int]] | None = None) -> Plan | None:
        """The next step, or None if nothing can be computed before a step in flight is read (or at all).

        Args:
            guesses: of how decoding sequences go on, each a row of its own that decodes; only with no step in flight.
                A guess too many for the pages is left out. `checked` has to follow.
        """
        rows = self._decode_rows()
        if rows is None:
            return None
        slots, sequences = rows
        drafts = None if not guesses else [self._room_for(s, guesses.get(s, [])) for s in sequences]
        budget = self.max_num_batched_tokens - len(slots)
        if drafts is not None:
            budget -= sum(len(draft) for draft in drafts)
        chunks: list[tuple[Sequence, int]] = []
        for sequence in self.prefilling:
            length = self._chunk_length(sequence.computed, len(sequence.tokens), budget)
            if length == 0:
                break
            chunks.append((sequence, length))
            budget -= length
        admitted: list[Sequence] = []
        if budget > 0 and self.waiting and self._free_slots:
            self._admit(budget, chunks, admitted)
        if not sequences and not chunks:
            return None
        return self._build(slots, sequences, chunks, admitted, drafts)

    def checked(self, sequence: Sequence) -> None:
        """A step with guesses was read: a decoding sequence has the tokens that the host knows, and no more."""
        self._length[sequence.slot] = len(sequence.tokens)

    def ahead(self, sequence: Sequence) -> int:
        """Tokens of a decoding sequence that launched steps sample and the host does not know."""
        return int(self._length[sequence.slot]) - len(sequence.tokens)

    def void(self, sequence: Sequence) -> None:
        """A launched step followed a wrong token of a decoding sequence: what it sampled does not count."""
        self._length[sequence.slot] -= 1

    def _chunk_length(self, computed: int, total: int, budget: int) -> int:
        """How many tokens of a prompt come next; 0 if the budget does not reach a place where it may be cut."""
        end = computed + budget
        if end >= total:
            return total - computed
        return (end if self._cut is None else max(computed, self._cut(end))) - computed

    def end(self, sequence: Sequence) -> None:
        """The sequence is complete or aborted: it computes nothing more and gives back what it holds, now or later."""
        if sequence.status is Status.WAITING:
            self.waiting.remove(sequence)
        else:
            self._leave(sequence)
            if self._last_step[sequence.slot] > self.read:
                self._ended.append(sequence)
            else:
                self._give_back(sequence)
        sequence.status = Status.FINISHED

    def step_read(self, number: int) -> None:
        """The result of step `number` (they are read in order) is on the host: nothing of it runs any more."""
        self.read = number
        if self._ended:
            still = [s for s in self._ended if self._last_step[s.slot] > number]
            for sequence in self._ended:
                if self._last_step[sequence.slot] <= number:
                    self._give_back(sequence)
            self._ended = still

    def page_filled(self, sequence: Sequence) -> None:
        """Publishes a decoding sequence's page that its newest known token has just proved full."""
        page = (len(sequence.tokens) - 1) // PAGE_SIZE - 1
        if self.blocks.prefix_caching:
            self.blocks.publish(
                sequence.pages[page], prefix_hashes(sequence.tokens, sequence.hashes, page + 1, sequence.root)[page]
            )

    # Decode rows

    def _decode_rows(self) -> tuple[np.ndarray, list[Sequence]] | None:
        """Slots and sequences that decode one token now, each with a page for it; None: read a step first."""
        while True:
            if self._decode_changed:
                self._decode_slots = np.array([s.slot for s in self.decoding], np.int32)
                self._decode_changed = False
            slots, sequences = self._decode_slots, self.decoding
            length = self._length[slots]
            going = length < self._limit[slots]
            if not going.all():  # the last token of the others is in flight
                slots, length = slots[going], length[going]
                sequences = [s for s, goes in zip(sequences, going, strict=True) if goes]
            short = np.flatnonzero(length > self._pages_held[slots] * PAGE_SIZE)
            if not len(short):
                return slots, sequences
            if len(short) > self.blocks.num_available:
                if self.in_flight:
                    return None  # what ends there may free pages, and nothing in flight may be preempted
                self._preempt(max(self.prefilling + self.decoding, key=lambda s: s.order))
                continue
            for row in short:
                self._hold(sequences[row], self.blocks.allocate(1) or [])

    def _room_for(self, sequence: Sequence, guesses: list[int]) -> list[int]:
        """As many of the guesses as there are pages for, without preempting anything."""
        end = len(sequence.tokens) + len(guesses)
        missing = -(-end // PAGE_SIZE) - len(sequence.pages)
        if missing > 0:
            if (pages := self.blocks.allocate(missing)) is None:
                return guesses[: len(sequence.pages) * PAGE_SIZE - len(sequence.tokens)]
            self._hold(sequence, pages)
        return guesses

    def _preempt(self, sequence: Sequence) -> None:
        """Takes a sequence out and puts it first in line; it will compute prompt and answer so far again."""
        self._leave(sequence)
        self._give_back(sequence)
        sequence.status = Status.WAITING
        sequence.computed = 0
        self.waiting.appendleft(sequence)
        self.preemptions += 1

    # Admission

    def _admit(self, budget: int, chunks: list[tuple[Sequence, int]], admitted: list[Sequence]) -> None:
        """Moves waiting sequences into slots, in order, while slots, pages and budget last.

        A sequence whose next page another one is computing in this very step waits for it: one step later it is a hit.
        """
        in_progress = self._pages_in_progress(chunks)
        passed: list[Sequence] = []
        while budget and self.waiting and self._free_slots:
            sequence = self.waiting[0]
            total = len(sequence.tokens)
            found: list[int] = []
            if self.blocks.prefix_caching:
                # At least the last token must be computed, for its logits.
                hashes = prefix_hashes(sequence.tokens, sequence.hashes, (total - 1) // PAGE_SIZE, sequence.root)
                hashes = hashes[: (total - 1) // PAGE_SIZE]
                found = self.blocks.lookup(hashes)
                if len(found) < len(hashes) and hashes[len(found)] in in_progress:
                    passed.append(self.waiting.popleft())
                    continue
                if self._cut is not None:
                    found = found[: self._cut(len(found) * PAGE_SIZE) // PAGE_SIZE]
            length = self._chunk_length(len(found) * PAGE_SIZE, total, budget)
            if length == 0:
                break
            new = -(-total // PAGE_SIZE) - len(found)
            # A page in reserve for each running sequence, or it would be preempted again as soon as one of them grows.
            reserve = self.num_running
            if self.blocks.num_available - self.blocks.idle(found) < new + reserve:
                break
            self.waiting.popleft()
            self.blocks.acquire(found)
            sequence.slot = self._free_slots.pop()
            self._hold(sequence, found + (self.blocks.allocate(new) or []))
            self._limit[sequence.slot] = sequence.limit
            self._budget[sequence.slot] = sequence.budget
            sequence.status = Status.PREFILL
            sequence.computed = len(found) * PAGE_SIZE
            self._count_hits(sequence)
            self.prefilling.append(sequence)
            admitted.append(sequence)
            chunks.append((sequence, length))
            if self.blocks.prefix_caching:
                in_progress.update(_chunk_hashes(sequence, length))
            budget -= length
        self.waiting.extendleft(reversed(passed))

    def _pages_in_progress(self, chunks: list[tuple[Sequence, int]]) -> set[bytes]:
        if not self.blocks.prefix_caching:
            return set()
        return {name for sequence, length in chunks for name in _chunk_hashes(sequence, length)}

    def _count_hits(self, sequence: Sequence) -> None:
        request = sequence.request
        if len(sequence.tokens) == sequence.num_prompt:  # not one that comes back after preemption
            self.prefix_queries += len(sequence.tokens)
            self.prefix_hits += sequence.computed
        if not request.admitted:
            request.admitted = True
            request.cached_tokens = sequence.computed

    # Slots and pages

    def _hold(self, sequence: Sequence, pages: list[int]) -> None:
        held = len(sequence.pages)
        self._table[sequence.slot, held : held + len(pages)] = pages
        sequence.pages.extend(pages)
        self._pages_held[sequence.slot] = len(sequence.pages)

    def _leave(self, sequence: Sequence) -> None:
        if sequence.status is Status.PREFILL:
            self.prefilling.remove(sequence)
        else:
            self.decoding.remove(sequence)
            self._decode_changed = True

    def _give_back(self, sequence: Sequence) -> None:
        self.blocks.release(sequence.pages)
        self._table[sequence.slot, : len(sequence.pages)] = 0
        self._pages_held[sequence.slot] = 0
        self._free_slots.append(sequence.slot)
        sequence.pages = []
        sequence.slot = -1

    # The step

    def _build(
        self,
        slots: np.ndarray,
        sequences: list[Sequence],
        chunks: list[tuple[Sequence, int]],
        admitted: list[Sequence],
        drafts: list[list[int]] | None,
    ) -> Plan:
        self.launched += 1
        starts = self._length[slots] - 1
        self._length[slots] += 1
        lengths = np.ones(len(slots), np.int32)
        token_ids = np.full(len(slots), -1, np.int64)
        sample = np.ones(len(slots), bool)
        offsets = None
        if drafts is not None:
            counts = np.array([1 + len(draft) for draft in drafts])
            offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            slots, starts = np.repeat(slots, counts), np.repeat(starts, counts) + offsets.astype(np.int32)
            lengths, sample = np.ones(len(slots), np.int32), np.ones(len(slots), bool)
            known = [[sequence.tokens[-1], *draft] for sequence, draft in zip(sequences, drafts, strict=True)]
            token_ids = np.array([token for row in known for token in row], np.int64)
            sequences = [s for s, draft in zip(sequences, drafts, strict=True) for _ in range(1 + len(draft))]
        totals = starts + 1
        num_decodes = len(slots)
        if chunks:
            if self._cut is None:  # else a prompt's tokens are attended differently, even a single one
                chunks.sort(key=lambda chunk: chunk[1] > 1)
                num_decodes += sum(length == 1 for _, length in chunks)
            slots = np.concatenate((slots, np.array([s.slot for s, _ in chunks], np.int32)))
            starts = np.concatenate((starts, np.array([s.computed for s, _ in chunks], np.int32)))
            lengths = np.concatenate((lengths, np.array([length for _, length in chunks], np.int32)))
            ids = [token for s, length in chunks for token in s.tokens[s.computed : s.computed + length]]
            token_ids = np.concatenate((token_ids, np.array(ids, np.int64)))
            totals = np.concatenate((totals, np.array([len(s.tokens) for s, _ in chunks], np.int32)))
            sequences = sequences + [s for s, _ in chunks]
            complete = [self._chunk_planned(s, length) for s, length in chunks]
            sample = np.concatenate((sample, np.array(complete, bool)))
            if offsets is not None:
                offsets = np.concatenate((offsets, np.zeros(len(chunks), np.int64)))
        elif sequences is self.decoding:
            sequences = list(sequences)
        width = -(-int((starts + lengths).max()) // PAGE_SIZE)
        self._last_step[slots] = self.launched
        table = self._table[slots, :width]
        budgets = self._budget[slots] if sequences[0].budget else None
        step = StepInput(slots, starts, lengths, token_ids, table, sample, num_decodes, totals, budgets)
        return Plan(self.launched, step, sequences, admitted, offsets)

    def _chunk_planned(self, sequence: Sequence, length: int) -> bool:
        """Books a prompt chunk; returns whether it completes the prompt."""
        before = sequence.computed // PAGE_SIZE
        sequence.computed += length
        if self.blocks.prefix_caching:
            full = sequence.computed // PAGE_SIZE
            names = prefix_hashes(sequence.tokens, sequence.hashes, full, sequence.root)
            for page in range(before, full):
                self.blocks.publish(sequence.pages[page], names[page])
        if sequence.computed < len(sequence.tokens):
            return False
        self.prefilling.remove(sequence)
        self.decoding.append(sequence)
        self._decode_changed = True
        sequence.status = Status.DECODE
        self._length[sequence.slot] = len(sequence.tokens) + 1
        return True


def _chunk_hashes(sequence: Sequence, length: int) -> list[bytes]:
    """Hashes of the pages that a chunk of `length` tokens will fill."""
    full = (sequence.computed + length) // PAGE_SIZE
    return prefix_hashes(sequence.tokens, sequence.hashes, full, sequence.root)[sequence.computed // PAGE_SIZE : full]
