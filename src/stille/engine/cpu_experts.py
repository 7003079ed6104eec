"""What the CPU kernels need to know of a model's experts: sizes, tensors, and thresholds for the budgets of a step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stille.model.experts import ExpertsFFN, LayerRouting, expert_layers
from stille.model.routing import ExpertsConfig, Gate

if TYPE_CHECKING:
    from stille.kernels.cpu import ExpertsShape, ExpertTensors, RowBudgets
    from stille.model import StilleForCausalLM

_CACHED = 256  # budgets whose thresholds are kept


def experts_shape(model: StilleForCausalLM) -> ExpertsShape | None:
    """None for a model without experts."""
    from stille.kernels.cpu import ExpertsShape

    layers = expert_layers(model)
    if not layers:
        return None
    e: ExpertsConfig = layers[0].settings
    return ExpertsShape(
        layers=tuple(layer.layer for layer in layers),
        experts=e.num_experts,
        size=e.expert_size,
        shared=e.shared_size,
        router=e.router_size,
        gate=e.gate,
        weights=e.weights,
        scaling=e.scaling,
    )


def expert_tensors(ffn: ExpertsFFN) -> ExpertTensors:
    """The routed experts of a layer."""
    from stille.kernels.cpu import ExpertTensors

    gate = ffn.gate
    return ExpertTensors(
        gate_up_E2IC=ffn.gate_up_proj,
        down_ECI=ffn.down_proj,
        router_up_ER=gate.up.weight,
        router_bias_E=gate.up.bias,
        router_down_RC=None if gate.down is None else gate.down.weight,
        scale_E=gate.scale,
        load_bias_E=gate.load_bias,
    )


class StepBudgets:
    """Thresholds for the budgets that requests ask for.

    Args:
        model: with experts. Only buffers of its gates are read later on, so its weights may be freed.
    """

    def __init__(self, model: StilleForCausalLM):
        layers = expert_layers(model)
        self._gates: dict[int, Gate] = {layer.layer: layer.gate for layer in layers}
        self._config = layers[0].settings
        self._layers = int(model.config.num_hidden_layers)
        self._width = -(-self._config.num_experts // 16) * 16
        self._cache: dict[float, np.ndarray] = {}
        self._last: tuple[bytes, RowBudgets] | None = None

    def rows(self, budget_N: np.ndarray) -> RowBudgets:
        """For rows with these mean numbers of experts, float32[N]; the same object while they stay the same."""
        asked = budget_N.tobytes()
        if self._last is None or self._last[0] != asked:
            self._last = asked, self._rows(budget_N)
        return self._last[1]

    def _rows(self, budget_N: np.ndarray) -> RowBudgets:
        from stille.kernels.cpu import RowBudgets

        values, which = np.unique(budget_N, return_inverse=True)
        thresholds = np.stack([self._thresholds(float(value)) for value in values])
        bounds = np.array([self._bounds(float(value)) for value in values], np.int32)
        return RowBudgets(thresholds, bounds, which.astype(np.int32))

    def _bounds(self, budget: float) -> tuple[int, int]:
        if self._config.gate == "top_k":
            number = min(round(budget), self._config.max_k)
            return number, number
        return self._config.min_k, self._config.max_k

    @torch.inference_mode()
    def _thresholds(self, budget: float) -> np.ndarray:
        if (known := self._cache.get(budget)) is not None:
            return known
        found = np.zeros((self._layers, self._width), np.float32)
        for layer, gate in self._gates.items():
            found[layer, : self._config.num_experts] = gate.thresholds(budget).numpy()
        if len(self._cache) >= _CACHED:
            self._cache.pop(next(iter(self._cache)))
        self._cache[budget] = found
        return found


def routing_of(masks: list[np.ndarray], experts: int, layers: tuple[int, ...]) -> list[LayerRouting]:
    """Counts of a step from the experts of its rows, int64[all layers, rows] with a bit for each expert."""
    ran_LNE = (np.concatenate(masks, 1)[list(layers), :, None] >> np.arange(experts)) & 1
    load_LE, count_LN = ran_LNE.sum(1), ran_LNE.sum(2)
    spread = [np.bincount(count_N, minlength=experts + 1) for count_N in count_LN]
    as_tensor: Any = torch.from_numpy
    return [
        LayerRouting(layer, as_tensor(load_E), as_tensor(spread_K))
        for layer, load_E, spread_K in zip(layers, load_LE, spread, strict=True)
    ]
