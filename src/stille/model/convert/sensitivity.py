"""Budgets by layer: what is lost where one layer alone runs fewer experts, and the part that each gets for it.

A layer's own mean number of experts, its level, is `Gate.level` of the model's target: the buffer `layer_share` says
how much of what the model leaves out this layer leaves out. Shares with a mean of 1 keep the mean at any target.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stille.errors import ConfigError
from stille.model.convert.judge import ROWS
from stille.model.decoder import StilleForCausalLM
from stille.model.experts import expert_budget, expert_layers
from stille.model.routing import ExpertsConfig

POWER = 0.25
"""Of the KL, to which levels are proportional: found on SmolLM2-135M, see the notebook."""
LEAST = 1e-4
"""Of the largest KL; a layer with less counts as if it had this much."""


@torch.inference_mode()
def alone(
    dense: StilleForCausalLM,
    converted: StilleForCausalLM,
    ids_ST: Tensor,
    target: float,
    advance: Callable[[int], Any] = lambda count: None,
) -> list[float]:
    """KL(dense || converted) where one layer runs at a target and all others at all experts, for each layer.

    Layers before that one do what they do in any case, so the model runs from it on only.

    Args:
        dense: of which the other one was made.
        converted: not trained since. So layers with weights "unit" are those of the dense model where all experts run,
            and are computed as such.
        ids_ST: int64 [S, T], all of which is run at once.
        target: mean number of experts.
        advance: told 1 after each layer.

    Returns:
        [L], in nats, the sum over S * T tokens.
    """
    ids_ST = ids_ST.to(dense.device)
    settings = expert_layers(converted)[0].settings
    full = dense if settings.weights == "unit" else converted
    given: list[Any] = []
    with expert_budget(converted, float(settings.num_experts)):
        layers: list[Any] = list(full.model.layers)
        hooks = [layer.register_forward_pre_hook(lambda layer, values: given.append(values)) for layer in layers]
        try:
            full.model(input_ids=ids_ST, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        hidden = dense.model(input_ids=ids_ST, use_cache=False).last_hidden_state
        log_p = [F.log_softmax(dense.compute_logits(rows).float(), -1) for rows in hidden.flatten(0, 1).split(ROWS)]
        found = torch.zeros(len(layers), dtype=torch.float64, device=ids_ST.device)
        for index, layer in enumerate(converted.model.layers):
            x, *others = given[index]
            with expert_budget(layer, target):
                x = layer(x, *others)
            for each in layers[index + 1 :]:
                x = each(x, *others)
            for p, rows in zip(log_p, full.model.norm(x).flatten(0, 1).split(ROWS), strict=True):
                q = F.log_softmax(full.compute_logits(rows).float(), -1)
                found[index] += F.kl_div(q, p, reduction="sum", log_target=True)
            advance(1)
    return found.tolist()


def layer_shares(kl: Sequence[float], config: ExpertsConfig) -> list[float]:
    """`layer_share` of each layer, with a mean of 1: levels at the configured target are proportional to KL**POWER.

    No level is above `max_k` at the configured target, or below max(1, min_k) there and down to a target of one more.
    What that takes from a layer, or gives it, the others share.

    Args:
        kl: of each layer, see `alone`.

    Raises:
        ConfigError: a KL that is no finite number.
    """
    experts, target, fewest = config.num_experts, config.target_k, max(1, config.min_k)
    for layer, value in enumerate(kl):
        if not math.isfinite(value):
            raise ConfigError(f"the KL of layer {layer} alone is {value}; try float32, or no budgets by layer.")
    if experts - target <= 1e-8 * experts or max(kl) <= 0:  # closer to all, rounding would decide
        return [1.0] * len(kl)
    wanted = [max(value, LEAST * max(kl)) ** POWER for value in kl]
    least = (experts - config.max_k) / (experts - target)
    most = (experts - fewest) / (experts - min(target, fewest + 1))

    def shares(factor: float) -> list[float]:
        return [min(most, max(least, (experts - factor * each) / (experts - target))) for each in wanted]

    low, high = 0.0, experts / min(wanted)  # at the first the mean is at least 1, at the last at most
    for _ in range(100):
        factor = (low + high) / 2
        low, high = (low, factor) if math.fsum(shares(factor)) < len(kl) else (factor, high)
    return shares(low)
