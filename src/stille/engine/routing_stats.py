"""The gates of a model with experts while it serves: at which budgets they run, and a sample of what they do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stille.model.experts import LayerRouting, expert_budget, record_routing

if TYPE_CHECKING:
    from torch import Tensor

    from stille.model import StilleForCausalLM

EVERY = 16
"""One step in so many is counted: counting is a few small kernels in each layer."""


@dataclass(frozen=True)
class LayerLoad:
    """Of the counted tokens, since the engine started.

    Attributes:
        layer: its number.
        tokens: counted.
        load: tokens that ran each expert.
        spread: tokens that ran 0, 1, .., E experts.
        max_violation: how far the most loaded expert lies above the mean, as a share of it.
        dead: experts that no token ran.
    """

    layer: int
    tokens: int
    load: tuple[int, ...]
    spread: tuple[int, ...]
    max_violation: float
    dead: tuple[int, ...]

    @staticmethod
    def of(log: LayerRouting) -> LayerLoad:
        return LayerLoad(
            log.layer, log.tokens, tuple(log.load_E.tolist()), tuple(log.count_K.tolist()), log.max_violation,
            tuple(log.dead),
        )  # fmt: skip


class RoutingMonitor:
    """Counts every `EVERY`-th step, the first among them: those that run inside `watch`, or that `add` is told of.

    Args:
        model: with layers of kind "experts".
    """

    def __init__(self, model: StilleForCausalLM):
        self._model = model
        self._steps = 0
        self._totals: list[LayerRouting] = []

    @contextmanager
    def watch(self, budget_N: Tensor, count: bool = True) -> Iterator[None]:
        """Around one step.

        Args:
            budget_N: mean number of experts of each token; the step runs at it.
            count: whether the step may be counted.
        """
        with expert_budget(self._model, budget_N):
            if not count or not self.due():
                yield
                return
            with record_routing(self._model) as logs:
                yield
        self.add(logs)

    def due(self) -> bool:
        """Whether the step that begins is one to count; to be asked once for each."""
        self._steps += 1
        return (self._steps - 1) % EVERY == 0

    def add(self, logs: list[LayerRouting]) -> None:
        """Count what the gates did in a step, layer by layer."""
        if self._totals:
            for total, log in zip(self._totals, logs, strict=True):
                # not in place: the first step may have run in inference mode, a later one outside
                total.load_E, total.count_K = total.load_E + log.load_E, total.count_K + log.count_K
        else:
            self._totals = logs

    def snapshot(self) -> list[LayerLoad]:
        """What was counted so far; waits for the device. From any thread."""
        return [LayerLoad.of(log) for log in self._totals]
