"""The seam between the engine and the hardware: a step goes in, logits come out.

The scheduler describes a step with host-side vectors (`StepInput`); an `Executor` owns the model and the KV cache and
computes it. Everything above this file is the same on every machine.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from stille.engine.config import EngineConfig
from stille.errors import UnsupportedError

if TYPE_CHECKING:
    from stille.engine.routing_stats import RoutingMonitor
    from stille.engine.speculate.head import Drafter
    from stille.model import StilleForCausalLM
    from stille.model.draft import DraftHead

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class StepInput:
    """One step over S sequences and N tokens; each sequence computes `lengths[i]` tokens from position `starts[i]`.

    The arrays are fresh for each step and never changed after it is built, so an executor may keep them while it
    runs. Sequences that decode come first, then the prefill chunks.

    Attributes:
        slots: int32[S], runner slot of each sequence, 0..max_num_seqs-1. Rows of one slot that follow each other
            are guesses of one sequence being checked: one token each, at successive positions, attended like decode
            rows of their own, each over the keys of those before. No slot is there twice otherwise.
        starts: int32[S], position of the first token computed now = tokens already in the cache.
        lengths: int32[S], tokens computed now, at least 1.
        token_ids: int64[N], sequence after sequence; -1 = the slot's last sampled token, which only the device knows
            (always a sequence of length 1, and all of these come before all others).
        page_table: int32[S, P], pages that hold positions 0 .. starts+lengths-1 in order; then pages that are not
            written yet, then page 0.
        sample: bool[S], whether the last row of the sequence is sampled (false while a prompt is incomplete).
        num_decodes: how many leading sequences decode: one token each, attended as such. With attention "hsa" a prompt
            chunk of one token is not among them, because prompts choose their keys in another way.
        budgets: float32[S], mean number of experts of the sequence's tokens; None: the model has no experts.
        totals: int32[S], tokens of the whole prompt (or of what is computed again after preemption) that a chunk is
            part of; starts + lengths for rows that decode. None: starts + lengths for all.
    """

    slots: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    token_ids: np.ndarray
    page_table: np.ndarray
    sample: np.ndarray
    num_decodes: int
    totals: np.ndarray | None = None
    budgets: np.ndarray | None = None

    @property
    def num_seqs(self) -> int:
        return len(self.slots)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def is_decode(self) -> bool:
        """Whether every sequence decodes."""
        return self.num_decodes == len(self.slots)

    def total(self, row: int) -> int:
        """Tokens of the prompt that a row is part of."""
        return int(self.starts[row] + self.lengths[row] if self.totals is None else self.totals[row])

    def token_budgets(self) -> np.ndarray | None:
        """float32[N]: `budgets` of each token."""
        return None if self.budgets is None else np.repeat(self.budgets, self.lengths)


@dataclass(frozen=True)
class ExpertRange:
    """Mean numbers of experts of a token that a model can run at, and its own."""

    least: float
    most: float
    own: float

    def for_effort(self, effort: str) -> float:
        """The budget that a word stands for: "minimal", "low", "medium" (the model's own), "high" or "xhigh" (all)."""
        factor = {"none": 1.0, "minimal": 0.5, "low": 0.625, "medium": 1.0, "high": 5 / 3, "xhigh": math.inf}[effort]
        return min(self.most, max(self.least, self.own * factor))

    @staticmethod
    def of(config: Any) -> ExpertRange | None:
        """Of a `StilleConfig`; None without experts."""
        if config.experts is None:
            return None
        from stille.model import ExpertsConfig

        experts = ExpertsConfig.from_dict(config.experts)
        return ExpertRange(max(1, experts.min_k), experts.max_k, experts.target_k)


def monitor_of(model: StilleForCausalLM) -> RoutingMonitor | None:
    """A monitor for a model with experts."""
    if model.config.experts is None:
        return None
    from stille.engine.routing_stats import RoutingMonitor

    return RoutingMonitor(model)


class Executor(Protocol):
    """Owns the model and the paged KV cache on one device.

    Attributes:
        device: where logits and sampling live.
        vocab_size: V, columns of the logits.
        num_pages: pages in the cache, page 0 included, which is scratch (padding) and never belongs to a sequence.
        async_depth: 0 if `forward` finishes before it returns, 1 if it only enqueues work on the device's stream.
        experts: budgets that steps may ask for; None: the model has no experts.
        routing: what its gates did; None: the model has no experts.
        drafter: guesses after a decode step; None: nothing does.
        hidden_size: C, of hidden states.

    One that computes in threads of its own says so by a true `own_threads`: torch then samples in a single thread.
    """

    experts: ExpertRange | None
    routing: RoutingMonitor | None
    device: torch.device
    vocab_size: int
    num_pages: int
    async_depth: int
    hidden_size: int

    @property
    def drafter(self) -> Drafter | None: ...

    def forward(self, step: StepInput, ids_N: Tensor) -> Tensor:
        """Computes the step: writes K and V of all N tokens, returns the last row's logits of each sequence.

        Args:
            step: see StepInput.
            ids_N: int64[N] on `device`: step.token_ids with -1 replaced.

        Returns:
            logits_SV: float32[S, V] on `device`, contiguous rows; only rows with step.sample set are used. It may be a
            buffer that the next forward overwrites. Must not wait for the device when async_depth is 1.
        """
        ...

    def embed(self, step: StepInput, ids_N: Tensor) -> Tensor:
        """Computes whole prompts for their hidden states; writes K and V as `forward` does.

        Args:
            step: of prompts from position 0, none of them among its decodes.
            ids_N: int64[N] on `device`.

        Returns:
            sums_SC: float32[S, C] on `device`, of each sequence's hidden states after the final norm.
        """
        ...

    def warmup(self) -> None:
        """Compiles and captures what would make the first requests slow. Called once, before the first step."""
        ...


def make_executor(model: StilleForCausalLM, config: EngineConfig, draft_head: DraftHead | None = None) -> Executor:
    """The fastest executor for a resolved config: Triton and graphs on CUDA, packed kernels on CPU, torch otherwise.

    Args:
        model, config: resolved.
        draft_head: attached to the model. The packed kernels have no use for it.

    Raises:
        UnsupportedError: this model cannot run in the dtype asked for.
    """
    try:
        if config.device == "cuda" and config.dtype in ("bf16", "fp16"):
            from stille.engine.cuda_executor import CudaExecutor

            return CudaExecutor(model, config, draft_head)
        if config.device == "cpu" and config.dtype in ("int8", "int4"):
            from stille.engine.cpu_executor import CpuExecutor

            return CpuExecutor(model, config)
    except UnsupportedError as error:
        raise UnsupportedError(f"{error}; dtype 'fp32' runs every model") from error
    from stille.engine.torch_executor import TorchExecutor

    return TorchExecutor(model, config, draft_head)
