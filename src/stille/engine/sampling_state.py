"""What sampling must remember between steps, by slot.

Parameters live on the host; what a batch needs of them is sent to the device when the batch's composition changes and
kept while it stays the same. The last token and the token counts for penalties live on the device and are never read
back; how many tokens a slot has been asked for is known on the host, which draws the random numbers.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stille.engine import sampler
from stille.engine.cuda_staging import Layout, Staging
from stille.engine.sampler import RandomRows
from stille.engine.sampling_params import SamplingParams
from stille.kernels.triton_support import has_triton


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """A copy on `device`, sent without waiting; the pinned staging memory is recycled by torch when it is done."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device, copy=True)


_KEPT_BATCHES = 32


@dataclass(slots=True)
class Penalties:
    """rows: which batch rows (None = all); host_rows: these on the host; table: their rows in the count tables; then
    the three factors [R]."""

    rows: Tensor | None
    host_rows: np.ndarray
    table: Tensor
    repetition: Tensor
    presence: Tensor
    frequency: Tensor


@dataclass(slots=True)
class Bias:
    """Values to add at (rows, tokens), all [M]."""

    rows: Tensor
    tokens: Tensor
    values: Tensor


@dataclass(slots=True)
class AllowedTokens:
    """What grammars leave of the vocabulary, for some of a step's sampled rows.

    Attributes:
        rows: int64 [M], positions among the sampled rows.
        mask_MW: int32, bit i % 32 of word i // 32 for token i.
    """

    rows: np.ndarray
    mask_MW: np.ndarray


@dataclass(slots=True)
class Guesses:
    """Which of a step's sampled rows follow a guess.

    Attributes:
        offset_R: int64, guesses of its slot before the row; 0 = it follows what is known.
        tokens_R: int64, the guess that the row follows, where there is one.
    """

    offset_R: np.ndarray
    tokens_R: np.ndarray

    def right(self, sampled: Seq[int]) -> list[tuple[int, list[int]]]:
        """Of each slot its first row, and what was sampled from there on, up to the first wrong guess."""
        found: list[tuple[int, list[int]]] = []
        going, previous = True, -1
        rows = zip(self.offset_R.tolist(), self.tokens_R.tolist(), sampled, strict=True)
        for row, (offset, guess, token) in enumerate(rows):
            if offset == 0:
                found.append((row, []))
            going = offset == 0 or (going and guess == previous)
            previous = token
            if going:
                found[-1][1].append(token)
        return found


@dataclass(slots=True)
class SampledRows:
    """How the sampled rows of one step are sampled. None = nothing of the kind in this batch.

    Attributes:
        rows: int64, rows of the step's logits that are sampled; None = all.
        slots, host_slots: int64[R], on the device and on the host.
        top_logprobs: alternatives wanted at most.
    """

    rows: Tensor | None
    slots: Tensor
    host_slots: np.ndarray
    random: RandomRows | None
    penalties: Penalties | None
    bias: Bias | None
    top_logprobs: int | None


class SamplingState:
    """Sampling parameters and running state of `max_seqs` slots on one device."""

    def __init__(self, max_seqs: int, vocab_size: int, device: torch.device):
        self.device = device
        self.vocab_size = vocab_size
        self.last_token = torch.zeros(max_seqs, dtype=torch.int64, device=device)
        self.next_index = np.zeros(max_seqs, np.int64)  # of the next token to be launched, in its answer
        self._params: list[SamplingParams] = [SamplingParams()] * max_seqs
        self._seed = np.zeros(max_seqs, np.int64)
        self._temperature = np.zeros(max_seqs, np.float32)
        self._penalized = np.zeros(max_seqs, bool)
        self._biased = np.zeros(max_seqs, bool)
        self._logprobs = np.full(max_seqs, -1, np.int32)
        # Count tables have a row per slot that uses penalties, made when needed.
        self._table_row = np.full(max_seqs, -1, np.int64)
        self._free_rows: list[int] = []
        self._counts = torch.zeros(0, vocab_size, dtype=torch.int32, device=device)
        self._in_prompt = torch.zeros(0, vocab_size, dtype=torch.bool, device=device)
        self._batches: dict[tuple[bytes, bytes], SampledRows] = {}  # as described last, while the slots stay the same
        self._unsent: dict[int, int] = {}  # slots whose last token the device does not have yet
        self._triton = has_triton()
        self._staging = Staging(device)  # for masks
        self._layouts: dict[tuple[int, int], Layout] = {}

    def assign(
        self, slot: int, params: SamplingParams, seed: int, prompt_ids: Seq[int], output_ids: Seq[int] = ()
    ) -> None:
        """Hands `slot` to a sequence that has `output_ids` already (after preemption). Does not wait for the device."""
        self._params[slot] = params
        self._seed[slot] = seed
        # Colder than this is greedy in effect, and logits divided by less would overflow.
        self._temperature[slot] = max(params.temperature, 1e-6) if params.temperature > 0 else 0.0
        self._penalized[slot] = params.uses_penalties
        self._biased[slot] = bool(params.logit_bias)
        self._logprobs[slot] = -1 if params.logprobs is None else params.logprobs
        self.next_index[slot] = len(output_ids)
        self._batches.clear()
        self._unsent.pop(slot, None)
        if self._table_row[slot] >= 0:
            self._free_rows.append(int(self._table_row[slot]))
            self._table_row[slot] = -1
        if params.uses_penalties:
            row = self._take_table_row()
            self._table_row[slot] = row
            used, counts = np.unique(np.asarray(output_ids, np.int64), return_counts=True)
            # Not by assignment to an index, which would send a scalar and wait for it.
            self._in_prompt[row].zero_().index_fill_(0, self._send(np.asarray(prompt_ids, np.int64)), True)
            self._counts[row].zero_().index_copy_(0, self._send(used), self._send(counts.astype(np.int32)))

    def rows_of(self, slots: np.ndarray, sample: np.ndarray) -> SampledRows | None:
        """How to sample the rows of a step with `sample` set; None if there are none."""
        key = (slots.tobytes(), sample.tobytes())
        batch = self._batches.get(key)
        if batch is None:
            if not sample.any():
                return None
            if len(self._batches) >= _KEPT_BATCHES:
                self._batches.clear()
            batch = self._batches[key] = self._describe(slots, sample)
        return batch

    def sample(
        self,
        logits_SV: Tensor,
        rows: SampledRows,
        allowed: AllowedTokens | None = None,
        guesses: Guesses | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor] | None]:
        """Samples, and moves the slots' state on by one token; with guesses, `accept` does the latter.

        Args:
            logits_SV: float32, of the whole step; on a CPU grammars change it.
            allowed: by grammars; None: everything.
            guesses: rows that are sampled as if their guesses were part of the answer; None: there are none.

        Returns:
            tokens int64[R], and what `sampler.log_probabilities` returns if a row wants it.
        """
        raw = logits_SV if rows.rows is None else logits_SV.index_select(0, rows.rows)
        logits = raw
        if rows.penalties is not None:
            logits = self._penalize(logits, rows.penalties, guesses)
        if rows.bias is not None:
            bias = rows.bias
            logits = logits.index_put((bias.rows, bias.tokens), bias.values, accumulate=True)
        if allowed is not None and rows.random is None and self.device.type == "cpu" and len(allowed.rows) == len(raw):
            from stille.kernels.cpu.mask import best

            tokens = torch.from_numpy(best(logits.numpy(), allowed.mask_MW))
        else:
            if allowed is not None:
                logits = self._restrict(logits, allowed, spare=rows.top_logprobs is not None)
            tokens = self._choose(logits, rows, None if guesses is None else guesses.offset_R)
        if guesses is None:
            self._move_on(tokens, rows)
        if rows.top_logprobs is None:
            return tokens, None
        return tokens, sampler.log_probabilities(raw, tokens, rows.top_logprobs)

    def choose_again(self, logits_RV: Tensor, slots: Seq[int], allowed: AllowedTokens) -> Tensor:
        """The likeliest tokens int64[M] of some rows under a grammar, which become the last ones of their slots.

        Args:
            logits_RV: float32, as `sample` had them.
            slots: [M], without penalties, biases or wanted log-probabilities.
            allowed: what is left of these M rows.
        """
        chosen = AllowedTokens(np.arange(len(slots)), allowed.mask_MW)
        logits_MV = self._restrict(logits_RV.index_select(0, self._send(allowed.rows)), chosen, spare=False)
        tokens = logits_MV.argmax(dim=-1)
        self.last_token.index_copy_(0, self._send(np.array(slots, np.int64)), tokens)
        return tokens

    def accept(self, slots: Seq[int], tokens: Seq[Seq[int]]) -> None:
        """Moves slots on by the tokens, at least one each, that a step with guesses gave."""
        self.next_index[list(slots)] += [len(each) for each in tokens]
        self._unsent |= {slot: each[-1] for slot, each in zip(slots, tokens, strict=True)}
        used = [
            (self._table_row[slot], token)
            for slot, each in zip(slots, tokens, strict=True)
            if self._penalized[slot]
            for token in each
        ]
        if used:
            table, chosen = (self._send(np.array(column, np.int64)) for column in zip(*used, strict=True))
            self._counts.index_put_((table, chosen), torch.ones_like(chosen, dtype=torch.int32), accumulate=True)

    def send_last_tokens(self) -> None:
        """Before `last_token` is read: what `accept` has left to be sent."""
        if self._unsent:
            slots, tokens = (np.array(list(part), np.int64) for part in (self._unsent, self._unsent.values()))
            self.last_token.index_copy_(0, self._send(slots), self._send(tokens))
            self._unsent.clear()

    def _move_on(self, tokens: Tensor, rows: SampledRows) -> None:
        self.next_index[rows.host_slots] += 1
        self.last_token.index_copy_(0, rows.slots, tokens)
        if rows.penalties is not None:
            table, chosen = rows.penalties.table, tokens
            if rows.penalties.rows is not None:
                chosen = tokens.index_select(0, rows.penalties.rows)
            self._counts.index_put_((table, chosen), torch.ones_like(chosen, dtype=torch.int32), accumulate=True)

    def _choose(self, logits_RV: Tensor, rows: SampledRows, offset_R: np.ndarray | None) -> Tensor:
        random = rows.random
        if random is None:
            return logits_RV.argmax(dim=-1)
        index = self.next_index[rows.host_slots]
        if offset_R is not None:
            index = index + offset_R
        uniform = sampler.uniform(self._seed[rows.host_slots], index)
        if random.rows is None:
            return sampler.draw(logits_RV, random, self._send(uniform))
        drawn_logits = logits_RV.index_select(0, random.rows)
        drawn = sampler.draw(drawn_logits, random, self._send(uniform).index_select(0, random.rows))
        return logits_RV.argmax(dim=-1).index_copy_(0, random.rows, drawn)

    def _restrict(self, logits_RV: Tensor, allowed: AllowedTokens, spare: bool) -> Tensor:
        """On a CPU it changes the logits themselves unless they are to be spared."""
        width = logits_RV.shape[1]
        if self.device.type == "cpu":
            from stille.kernels.cpu.mask import restrict

            left_RV = np.array(logits_RV.numpy(), copy=spare)
            restrict(left_RV, allowed.rows, allowed.mask_MW)
            return torch.from_numpy(left_RV)
        if not self._triton:
            shifts = torch.arange(32, dtype=torch.int32, device=self.device)
            bits_MWB = self._send(allowed.mask_MW).unsqueeze(-1).bitwise_right_shift(shifts) & 1
            rows = self._send(allowed.rows)
            some_MV = torch.where(bits_MWB.flatten(1)[:, :width] != 0, logits_RV.index_select(0, rows), -torch.inf)
            return logits_RV.index_copy(0, rows, some_MV)
        from stille.kernels.fused.triton_mask import restrict

        place_R = np.full(len(logits_RV), -1, np.int32)
        place_R[allowed.rows] = np.arange(len(allowed.rows))
        sizes = (place_R.size, allowed.mask_MW.size)
        if (layout := self._layouts.get(sizes)) is None:
            layout = self._layouts[sizes] = Layout({"place": sizes[0], "mask": sizes[1]})
        sent = self._staging.send(self._staging.pack(layout, {"place": place_R, "mask": allowed.mask_MW}))
        mask_MW = layout.view(sent, "mask").view(allowed.mask_MW.shape)
        return restrict(logits_RV.contiguous(), layout.view(sent, "place"), mask_MW)

    def _penalize(self, logits_RV: Tensor, penalties: Penalties, guesses: Guesses | None) -> Tensor:
        rows = penalties.rows
        counts_RV = self._counts.index_select(0, penalties.table)
        if guesses is not None:
            self._count_guesses(counts_RV, guesses, penalties.host_rows)
        penalized = sampler.penalize(
            logits_RV if rows is None else logits_RV.index_select(0, rows),
            counts_RV,
            self._in_prompt.index_select(0, penalties.table),
            penalties.repetition,
            penalties.presence,
            penalties.frequency,
        )
        return penalized if rows is None else logits_RV.index_copy(0, rows, penalized)

    def _count_guesses(self, counts_RV: Tensor, guesses: Guesses, rows: np.ndarray) -> None:
        """Counts the guesses before each of some rows as part of its answer."""
        cells = [
            (place, guesses.tokens_R[row - back])
            for place, row in enumerate(rows)
            for back in range(guesses.offset_R[row])
        ]
        if cells:
            places, tokens = (self._send(np.array(column, np.int64)) for column in zip(*cells, strict=True))
            counts_RV.index_put_((places, tokens), torch.ones_like(tokens, dtype=torch.int32), accumulate=True)

    # Describing a batch

    def _describe(self, slots: np.ndarray, sample: np.ndarray) -> SampledRows:
        everything = bool(sample.all())
        rows = None if everything else self._send(np.flatnonzero(sample))
        slots = slots.astype(np.int64) if everything else slots[sample].astype(np.int64)
        asked = int(self._logprobs[slots].max())
        return SampledRows(
            rows,
            self._send(slots),
            slots,
            self._describe_random(slots),
            self._describe_penalties(slots),
            self._describe_bias(slots),
            None if asked < 0 else asked,
        )

    def _describe_random(self, slots: np.ndarray) -> RandomRows | None:
        subset, drawn = self._subset(self._temperature[slots] > 0)
        if drawn is None:
            return None
        slots = slots[drawn]
        params = [self._params[slot] for slot in slots]
        vocab = self.vocab_size
        top_k = np.array([p.top_k if 0 < p.top_k < vocab else vocab for p in params], np.int64)
        limited = top_k[top_k < vocab]
        top_p = np.array([p.top_p for p in params], np.float32)
        min_p = np.array([p.min_p for p in params], np.float32)
        return RandomRows(
            rows=subset,
            temperature=self._send(self._temperature[slots]),
            top_k=self._send(top_k) if len(limited) else None,
            max_top_k=int(limited.max()) if len(limited) else 0,
            top_p=self._send(top_p) if (top_p < 1).any() else None,
            min_p=self._send(min_p) if (min_p > 0).any() else None,
        )

    def _describe_penalties(self, slots: np.ndarray) -> Penalties | None:
        subset, penalized = self._subset(self._penalized[slots])
        if penalized is None:
            return None
        slots = slots[penalized]
        params = [self._params[slot] for slot in slots]
        return Penalties(
            subset,
            penalized,
            self._send(self._table_row[slots]),
            self._send(np.array([p.repetition_penalty for p in params], np.float32)),
            self._send(np.array([p.presence_penalty for p in params], np.float32)),
            self._send(np.array([p.frequency_penalty for p in params], np.float32)),
        )

    def _describe_bias(self, slots: np.ndarray) -> Bias | None:
        entries = [
            (row, token, value)
            for row in np.flatnonzero(self._biased[slots])
            for token, value in self._params[slots[row]].logit_bias.items()
        ]
        if not entries:
            return None
        rows, tokens, values = zip(*entries, strict=True)
        return Bias(
            self._send(np.array(rows, np.int64)),
            self._send(np.array(tokens, np.int64)),
            self._send(np.array(values, np.float32)),
        )

    def _subset(self, chosen: np.ndarray) -> tuple[Tensor | None, np.ndarray | None]:
        """Row indices on the device (None = all) and on the host (None = none)."""
        if not chosen.any():
            return None, None
        indices = np.flatnonzero(chosen)
        return (None if chosen.all() else self._send(indices)), indices

    # Count tables

    def _take_table_row(self) -> int:
        if not self._free_rows:
            old = len(self._counts)
            added = max(1, old)
            self._counts = torch.cat((self._counts, self._counts.new_zeros(added, self.vocab_size)))
            self._in_prompt = torch.cat((self._in_prompt, self._in_prompt.new_zeros(added, self.vocab_size)))
            self._free_rows.extend(range(old + added - 1, old - 1, -1))
        return self._free_rows.pop()

    def _send(self, array: np.ndarray) -> Tensor:
        return to_device(np.ascontiguousarray(array), self.device)
