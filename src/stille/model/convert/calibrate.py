"""Thresholds of a converted layer: quantiles of its scores, so placed that a mean number of experts is met."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stille.model.routing import STEPS, ExpertsConfig, Gate, score_quantiles


@dataclass
class Calibration:
    """What thresholds do on the tokens that they were made from.

    Attributes:
        mean_k: measured, by target 1 .. E; empty for a top-k gate.
        mean_k_at_target: measured at the configured target.
        max_violation, dead: at the configured target: load of the busiest expert over the mean load less 1, and
            experts that no token ran.
    """

    mean_k: list[float]
    mean_k_at_target: float
    max_violation: float
    dead: list[int]


@torch.no_grad()
def calibrate(gate: Gate, x_NC: Tensor) -> Calibration:
    """Set a gate's quantiles by the layer's inputs.

    Where `min_k` and `max_k` bind, plain quantiles would miss the mean: a token that exceeds no threshold runs `min_k`
    experts all the same. So the column of a target holds the quantile at which the mean, bounds included, is that
    target (or as near as it gets).

    Args:
        gate: with weights in place; a top-k gate gets plain quantiles, which it does not use.
        x_NC: layer inputs of calibration tokens, any float dtype.
    """
    config = gate.config
    device = gate.quantiles.device
    score_NE = torch.cat([gate.scores(x.to(device)) for x in x_NC.split(4096)])
    gate.correction.zero_()
    quantiles = score_quantiles(score_NE)
    if config.gate == "threshold":
        quantiles = _bounded(score_NE, quantiles, config)
    gate.quantiles.copy_(quantiles)
    was_training = gate.training
    gate.eval()
    load_E, means = torch.zeros(config.num_experts, device=device), []
    if config.gate == "threshold":
        means = [_mean(score_NE, gate.thresholds(float(k)), config) for k in range(1, config.num_experts + 1)]
    for x in x_NC.split(4096):
        load_E += gate(x.to(device)).mask_TE.sum(0)
    gate.train(was_training)
    violation = float(load_E.max() / load_E.mean().clamp(min=1e-30) - 1)
    mean = float(load_E.sum()) / len(x_NC)
    return Calibration(means, mean, violation, (load_E == 0).nonzero().flatten().tolist())


def _mean(score_NE: Tensor, threshold_E: Tensor, config: ExpertsConfig) -> float:
    return float((score_NE > threshold_E).sum(1).clamp(config.min_k, config.max_k).float().mean())


def _bounded(score_NE: Tensor, quantiles_EJ: Tensor, config: ExpertsConfig) -> Tensor:
    """The quantiles, moved to where the mean with its bounds is what the column is for: it rises with the level."""
    levels = quantiles_EJ.shape[1] - 1
    means = [_mean(score_NE, bound, config) for bound in quantiles_EJ.T]
    place = np.interp(np.arange(levels + 1) / STEPS, means, np.arange(levels + 1.0))
    place[0], place[-1] = 0, levels  # none and all stay what they are
    place = torch.as_tensor(place, dtype=torch.float32, device=quantiles_EJ.device)
    low = place.floor().clamp(max=levels - 1).long()
    return torch.lerp(quantiles_EJ[:, low], quantiles_EJ[:, low + 1], place - low)
