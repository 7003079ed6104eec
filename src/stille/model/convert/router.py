"""The gate of a converted layer: regressed on how much each expert would add.

The target is the logarithm of the norm of an expert's output for a token (D2DMoE, 2310.04361, regresses the norm). All
experts of a layer share one shift and one scale, so their scores compare with each other.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

FLOOR = 1e-12  # of squared norms: an expert that is silent still has a logarithm


@dataclass
class Router:
    """A fitted gate.

    Attributes:
        down: [R, C], or None for a linear gate.
        up: [E, R], or [E, C].
        bias: [E].
        r2: share of the targets' variance, each expert about its own mean, that is explained on tokens left out of the
            fit.
    """

    down: Tensor | None
    up: Tensor
    bias: Tensor
    r2: float

    def tensors(self) -> dict[str, Tensor]:
        """By their names in `Gate`."""
        found = {"up.weight": self.up, "up.bias": self.bias}
        return found if self.down is None else {"down.weight": self.down, **found}


def log_norms(h_TI: Tensor, down_proj: Tensor) -> Tensor:
    """Logarithms of the experts' output norms, float32 [T, E].

    Args:
        h_TI: inner activations of the routed neurons, expert after expert, float32 [T, E * I'].
        down_proj: [E, C, I'], float32.
    """
    experts, _, size = down_proj.shape
    gram_EII = down_proj.transpose(1, 2) @ down_proj  # ||W h||^2 = h' (W'W) h needs no outputs
    h_ETI = h_TI.view(-1, experts, size).transpose(0, 1)
    return ((h_ETI @ gram_EII) * h_ETI).sum(-1).T.clamp(min=FLOOR).log() / 2


def normalised(target_NE: Tensor) -> Tensor:
    """Mean 0 and variance 1 over a layer, all experts together."""
    return (target_NE - target_NE.mean()) / target_NE.std().clamp(min=1e-6)


def fit_router(
    x_NC: Tensor,
    target_NE: Tensor,
    size: int,
    *,
    steps: int = 400,
    batch: int = 512,
    rate: float = 5e-3,
    held_out: float = 0.125,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Router:
    """Fit a gate, C -> R -> E with SiLU between or one linear map, by Adam on the squared error.

    Args:
        x_NC: layer inputs, any float dtype, on the CPU; a copy in that dtype is made on the device, and only batches
            of it are held in float32.
        target_NE: what to predict, float32.
        size: R; 0: linear.
        steps, batch, rate: of Adam; the rate falls to 0 along a cosine.
        held_out: share of the tokens, the last ones, that only judge.
        seed: of the initial weights and the batches.

    Returns:
        The gate, float32 on the CPU, its weights rounded to bfloat16: what is calibrated is what is saved.
    """
    count, width = x_NC.shape
    fitted = max(1, count - int(count * held_out))
    generator = torch.Generator().manual_seed(seed)
    some = x_NC[torch.randperm(fitted, generator=generator)[:4096]].float()
    deviation_C = some.std(0, correction=0).clamp(min=1e-4).to(device)  # hidden dimensions differ by magnitudes
    experts = target_NE.shape[1]
    sizes = [(size, width), (experts, size)] if size else [(experts, width)]
    weights = [(torch.randn(shape, generator=generator) * shape[1] ** -0.5).to(device) for shape in sizes]
    if size:
        weights[-1] *= 0.1
    else:
        weights[-1] *= 0.0  # convex: begin at the mean
    bias = target_NE[:fitted].mean(0).to(device)
    near_NC, goal_NE = x_NC.to(device), target_NE.to(device)  # picking rows across devices costs more than the step
    parameters = [*weights, bias]
    for parameter in parameters:
        parameter.requires_grad_()
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-2, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with torch.enable_grad():
        for _ in range(steps):
            pick = torch.randint(fitted, (min(batch, fitted),), generator=generator).to(device)
            x = near_NC[pick].float() / deviation_C
            loss = F.mse_loss(_score(x, weights, bias), goal_NE[pick])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    first = (weights[0] / deviation_C).detach()
    found = [value.bfloat16().float().cpu() for value in (first, *(w.detach() for w in weights[1:]), bias.detach())]
    router = Router(found[0] if size else None, found[-2], found[-1], 0.0)
    router.r2 = _explained(
        router, x_NC[fitted:] if fitted < count else x_NC, target_NE[fitted:] if fitted < count else target_NE
    )
    return router


def _score(x: Tensor, weights: list[Tensor], bias: Tensor) -> Tensor:
    for weight in weights[:-1]:
        x = F.silu(F.linear(x, weight))
    return F.linear(x, weights[-1], bias)


@torch.no_grad()
def _explained(router: Router, x_NC: Tensor, target_NE: Tensor) -> float:
    weights = [router.up] if router.down is None else [router.down, router.up]
    error = sum(
        float((_score(x.float(), weights, router.bias) - target).square().sum())
        for x, target in zip(x_NC.split(4096), target_NE.split(4096), strict=True)
    )
    spread = float((target_NE - target_NE.mean(0)).square().sum())
    return 1 - error / max(spread, 1e-12)
