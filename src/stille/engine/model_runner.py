"""Runs steps: feeds sampled tokens back on the device, calls the executor, samples, and copies results out.

`launch` never waits for the device, so the host can prepare the next step while this one runs; `StepHandle.result`
is the only place that waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stille.engine.executor import Executor, StepInput
from stille.engine.sampling_params import SamplingParams
from stille.engine.sampling_state import AllowedTokens, Guesses, SamplingState, to_device


@dataclass(slots=True)
class Logprobs:
    """chosen: float32[R]; values, ids: float32 and int64 [R, K], likeliest first."""

    chosen: np.ndarray
    values: np.ndarray
    ids: np.ndarray


@dataclass(slots=True)
class StepOutput:
    """Tokens of the step's rows with `sample` set, in order; `logprobs` if one of them wants some; `drafts` if a draft
    head went on from the step: its guesses and their probabilities, [sequences, T] each."""

    token_ids: list[int]
    logprobs: Logprobs | None
    drafts: tuple[list[list[int]], list[list[float]]] | None = None


class StepHandle:
    """A launched step. `result` waits for it.

    Attributes:
        logits_RV: of the sampled rows, on the device, if they were to be kept.
    """

    def __init__(
        self,
        tokens: Tensor | None,
        logprobs: tuple[Tensor, Tensor, Tensor] | None,
        device: torch.device,
        drafts: tuple[Tensor, Tensor] | None = None,
        logits_RV: Tensor | None = None,
    ):
        self.logits_RV = logits_RV
        self._parts = [[] if tokens is None else [tokens], list(logprobs or ()), list(drafts or ())]
        self._event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._parts = [[_to_pinned(tensor) for tensor in part] for part in self._parts]
            self._event = torch.cuda.Event()
            self._event.record()

    def result(self) -> StepOutput:
        if self._event is not None:
            self._event.synchronize()
        tokens, logprobs, drafts = self._parts
        return StepOutput(
            tokens[0].tolist() if tokens else [],
            Logprobs(*(tensor.numpy() for tensor in logprobs)) if logprobs else None,
            (drafts[0].tolist(), drafts[1].tolist()) if drafts else None,
        )


class ModelRunner:
    """An executor and the sampling state of its slots.

    Args:
        executor: computes logits.
        max_seqs: slots.
    """

    def __init__(self, executor: Executor, max_seqs: int):
        self.executor = executor
        self.device = torch.device(executor.device)
        self.state = SamplingState(max_seqs, executor.vocab_size, self.device)
        # Taken now, not at each step: another engine of this process may be in the middle of one.
        self._torch_threads = torch.get_num_threads() if getattr(executor, "own_threads", False) else None

    def assign(
        self, slot: int, params: SamplingParams, seed: int, prompt_ids: Seq[int], output_ids: Seq[int] = ()
    ) -> None:
        """Sets up `slot` for a sequence, before the step that first contains it is launched."""
        self.state.assign(slot, params, seed, prompt_ids, output_ids)

    @torch.inference_mode()
    def launch(
        self,
        step: StepInput,
        allowed: Callable[[], AllowedTokens | None] | None = None,
        guesses: Guesses | None = None,
        draft: bool = False,
        keep: bool = False,
    ) -> StepHandle:
        """Computes or enqueues the step and the sampling of its complete rows.

        Args:
            allowed: says which tokens grammars leave; called when the step is on its way, before the sampling.
            guesses: in the step. `accept` has to follow, once it is known how many were right.
            draft: whether the executor's draft head goes on from it; only if every row decodes and is sampled.
            keep: the logits of the sampled rows, for `again`.
        """
        rows = self.state.rows_of(step.slots, step.sample)
        ids_N = self._input_ids(step, None if rows is None else rows.slots)
        logits_SV = self.executor.forward(step, ids_N)
        if rows is None:
            return StepHandle(None, None, self.device)
        kept = None
        if keep:  # the executor's own buffer holds the next step's soon
            kept = logits_SV.clone() if rows.rows is None else logits_SV.index_select(0, rows.rows)
        left = None if allowed is None else allowed()
        with nullcontext() if self._torch_threads is None else _one_torch_thread(self._torch_threads):
            tokens_R, logprobs = self.state.sample(logits_SV, rows, left, guesses)
        drafts = None
        if draft and self.executor.drafter is not None:
            first = np.flatnonzero(np.diff(step.slots, prepend=-1)).astype(np.int32)
            count = np.diff(first, append=step.num_seqs).astype(np.int32) - 1
            drafts = self.executor.drafter.draft(tokens_R, ids_N, first, count)
        return StepHandle(tokens_R, logprobs, self.device, drafts, kept)

    @torch.inference_mode()
    def again(self, step: StepHandle, slots: Seq[int], allowed: AllowedTokens) -> StepHandle:
        """Chooses anew, after any step launched since, the likeliest token of some rows of a step that was kept.

        Args:
            slots: of these rows, which were greedy.
            allowed: what grammars leave of them; `rows` are those of the step that was kept.
        """
        assert step.logits_RV is not None
        return StepHandle(self.state.choose_again(step.logits_RV, slots, allowed), None, self.device)

    @torch.inference_mode()
    def accept(self, slots: Seq[int], tokens: Seq[Seq[int]]) -> None:
        """After a step with guesses: the tokens by which the answers in these slots have grown."""
        self.state.accept(slots, tokens)

    def _input_ids(self, step: StepInput, sampled_slots: Tensor | None) -> Tensor:
        fed_back = int(np.count_nonzero(step.token_ids < 0))
        if fed_back == 0:
            return to_device(step.token_ids, self.device)
        self.state.send_last_tokens()
        if fed_back == step.num_seqs and sampled_slots is not None:  # all rows decode: their slots are there already
            return self.state.last_token.index_select(0, sampled_slots)
        ids_N = to_device(step.token_ids, self.device)
        slots = to_device(step.slots[:fed_back].astype(np.int64), self.device)
        ids_N[:fed_back] = self.state.last_token.index_select(0, slots)
        return ids_N


@contextmanager
def _one_torch_thread(usual: int) -> Iterator[None]:
    """Torch's other threads spin for a while after each operation, and would hinder an executor's own for
    milliseconds (measured on 2 cores: 14.8 to 9.8 ms a step of 8). `usual` is how many there are otherwise."""
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(usual)


def _to_pinned(tensor: Tensor) -> Tensor:
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)
