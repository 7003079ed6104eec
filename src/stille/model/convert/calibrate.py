"""Thresholds of a converted layer: quantiles of its scores, so placed that a mean number of experts is met."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stille.errors import ConfigError
from stille.model.experts import expert_budget, expert_layers
from stille.model.routing import STEPS, ExpertsConfig, Gate, check_budget, score_quantiles


@dataclass
class Calibration:
    """What thresholds do on the tokens that they were made from.

    Attributes:
        mean_k: measured, by target 1 .. E; empty for a top-k gate.
        mean_k_at_target: measured at the configured target.
        max_violation, dead: at the configured target: load of the busiest expert over the mean load less 1, and
            experts that no token ran.

    Targets are the model's; the layer runs its own `Gate.level` of them.
    """

    mean_k: list[float]
    mean_k_at_target: float
    max_violation: float
    dead: list[int]


@torch.no_grad()
def calibrate(gate: Gate, x_NC: Tensor) -> Calibration:
    """Set a gate's quantiles by the layer's inputs, see `place_quantiles`.

    Args:
        gate: with weights in place.
        x_NC: layer inputs of calibration tokens, any float dtype.
    """
    place_quantiles(gate, _scored(gate, x_NC))
    return measure(gate, x_NC)


@torch.no_grad()
def measure(gate: Gate, x_NC: Tensor) -> Calibration:
    """What a gate's thresholds do.

    Args:
        gate: calibrated.
        x_NC: as `calibrate` was given.
    """
    config, device = gate.config, gate.quantiles.device
    was_training = gate.training
    gate.eval()
    load_E, means = torch.zeros(config.num_experts, device=device), []
    if config.gate == "threshold":
        score_NE = _scored(gate, x_NC)
        means = [_mean(score_NE, gate.thresholds(float(k)), config) for k in range(1, config.num_experts + 1)]
    for x in x_NC.split(4096):
        load_E += gate(x.to(device)).mask_TE.sum(0)
    gate.train(was_training)
    violation = float(load_E.max() / load_E.mean().clamp(min=1e-30) - 1)
    mean = float(load_E.sum()) / len(x_NC)
    return Calibration(means, mean, violation, (load_E == 0).nonzero().flatten().tolist())


def _scored(gate: Gate, x_NC: Tensor) -> Tensor:
    return torch.cat([gate.scores(x.to(gate.quantiles.device)) for x in x_NC.split(4096)])


@torch.no_grad()
def place_quantiles(gate: Gate, score_NE: Tensor) -> None:
    """Set a gate's quantiles by scores, and its correction to 0.

    Where `min_k` and `max_k` bind, plain quantiles would miss the mean: a token that exceeds no threshold runs `min_k`
    experts all the same. So the column of a target holds the quantile at which the mean, bounds included, is that
    target (or as near as it gets).

    Args:
        gate: a top-k gate gets plain quantiles, which it does not use.
        score_NE: float32, of calibration tokens.
    """
    gate.quantiles.copy_(_table(score_NE, gate.config))
    gate.correction.zero_()


@torch.no_grad()
def recalibrate(model: nn.Module, run: Callable[[], object], budgets: Sequence[float]) -> None:
    """Place the thresholds of all layers anew, from the hidden states that the model itself has at several budgets.

    What a layer is given depends on how many experts the layers before it ran. So thresholds near a budget come from a
    run at that budget, those between two budgets from both; beyond the least and the largest, from the nearest. Old
    thresholds hold during the runs. Gates by top-k stay what they are.

    Args:
        model: with layers of kind "experts"; it runs in evaluation mode.
        run: runs the model over all calibration tokens.
        budgets: mean numbers of experts, at least one.

    Raises:
        ConfigError: a budget out of range, no budget, or no tokens.
    """
    gates = [layer.gate for layer in expert_layers(model) if layer.settings.gate == "threshold"]
    if not gates:
        return
    if not budgets:
        raise ConfigError("thresholds need at least one budget to be placed by.")
    for budget in budgets:
        check_budget(budget, gates[0].config)  # before the first run, not in the last
    budgets, was_training = sorted(budgets), model.training
    tables: list[list[Tensor]] = [[] for _ in gates]
    model.eval()
    try:
        for budget in reversed(budgets):
            with expert_budget(model, budget), _scores(gates) as scores:
                run()
            for gate, table, seen in zip(gates, tables, scores, strict=True):
                if not seen:
                    raise ConfigError("thresholds need tokens to be placed by: a layer was given none.")
                table.insert(0, _table(torch.cat(seen), gate.config))
                seen.clear()
    finally:
        model.train(was_training)
    for gate, table in zip(gates, tables, strict=True):
        gate.quantiles.copy_(_between(table, [float(gate.level(budget)) for budget in budgets]))
        gate.correction.zero_()


@contextmanager
def _scores(gates: list[Gate]) -> Iterator[list[list[Tensor]]]:
    """Scores [T, E] of every gate, for each time that it runs inside."""
    found: list[list[Tensor]] = [[] for _ in gates]

    def keep(seen: list[Tensor]) -> Callable[[Gate, tuple[Any, ...]], None]:
        return lambda gate, given: seen.append(gate.scores(given[0]))

    with ExitStack() as stack:
        for gate, seen in zip(gates, found, strict=True):
            stack.callback(gate.register_forward_pre_hook(keep(seen)).remove)
        yield found


def _between(tables: list[Tensor], levels: list[float]) -> Tensor:
    """Quantiles [E, J + 1] of which column j comes from the tables at the levels (ascending) next to j / STEPS."""
    table_BEJ = torch.stack(tables)
    columns = table_BEJ.shape[2]
    at = np.interp(np.arange(columns) / STEPS, levels, np.arange(len(levels), dtype=float))
    place = torch.as_tensor(at, dtype=torch.float32, device=table_BEJ.device)
    low, column = place.long(), torch.arange(columns, device=table_BEJ.device)
    high = (low + 1).clamp(max=len(levels) - 1)
    mixed_JE = torch.lerp(table_BEJ[low, :, column], table_BEJ[high, :, column], (place - low).unsqueeze(1))
    return mixed_JE.T.cummin(dim=1).values


def _table(score_NE: Tensor, config: ExpertsConfig) -> Tensor:
    quantiles = score_quantiles(score_NE)
    return _bounded(score_NE, quantiles, config) if config.gate == "threshold" else quantiles


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
