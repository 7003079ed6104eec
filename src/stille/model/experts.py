"""The FFN kind "experts": a shared expert that every token runs, and routed ones of which a gate chooses.

The compute dial: `expert_budget` sets the mean number of routed experts of a token for what runs inside it, one for all
tokens or one for each, without another checkpoint. `record_routing` says what the gates did.

Letters: T tokens, C hidden size, S shared neurons, E routed experts, I neurons of one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stille.kernels.experts import masked_forward, moe_forward
from stille.model.config import StilleConfig
from stille.model.ffn import FFN_KINDS, SwiGLU
from stille.model.routing import ExpertsConfig, Gate, check_budget

__all__ = ["ExpertsFFN", "LayerRouting", "balance", "expert_budget", "expert_layers", "record_routing"]


@FFN_KINDS.register("experts")
class ExpertsFFN(nn.Module):
    """Shared and routed experts; `config.experts` has the fields of `ExpertsConfig`.

    Parameters: `shared` (if any), `gate_up_proj` [E, 2I, C] (gate rows first), `down_proj` [E, C, I] (transformers'
    layout for experts), `gate`.

    Attributes:
        budget: mean number of experts, one number or one for each token [T]; None: the configured one.
        log: where routing is recorded, if it is.
        masked: compute all experts for all tokens (`masked_forward`), as training does where that is faster. The gate
            is then not called as a module, so hooks on it do not run.

    Raises:
        ConfigError: settings that `ExpertsConfig` does not know or take.
    """

    def __init__(self, config: StilleConfig, layer: int):
        super().__init__()
        self.settings = settings = ExpertsConfig.from_dict(config.experts)
        width, experts, size = config.hidden_size, settings.num_experts, settings.expert_size
        self.layer = layer
        self.shared = SwiGLU(width, settings.shared_size) if settings.shared_size else None
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * size, width))
        self.down_proj = nn.Parameter(torch.empty(experts, width, size))
        self.gate = Gate(width, settings)
        self.budget: float | Tensor | None = None
        self.log: LayerRouting | None = None
        self.masked = False
        for weight in (self.gate_up_proj, self.down_proj):
            nn.init.normal_(weight, std=config.initializer_range)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., C]; returns [..., C]. With a budget for each token, tokens count in the order of x."""
        x_TC = x.reshape(-1, x.shape[-1])
        if self.masked:
            return self._all_experts(x_TC).view_as(x)
        expert_TK, weight_TK, mask_TE = self.gate(x_TC, self.budget)
        if self.log is not None:
            self.log.add(mask_TE)
        shared_TC = None if self.shared is None else self.shared(x_TC)
        weight_TK = weight_TK.to(x.dtype)
        y = moe_forward(x_TC, expert_TK, weight_TK, self.gate_up_proj, self.down_proj, plus_TC=shared_TC)
        return y.view_as(x)

    def _all_experts(self, x_TC: Tensor) -> Tensor:
        budget = self.settings.target_k if self.budget is None else self.budget
        # A tensor, so that compiled code is not made anew for each number; filled there, which waits for no copy.
        target = budget if isinstance(budget, Tensor) else torch.full((), budget, device=x_TC.device)
        y, score, mask = self.run_masked(x_TC, target)
        self.gate.remember(score, mask)
        if self.log is not None:
            self.log.add(mask)
        return y

    def run_masked(self, x_TC: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The output [T, C] with all experts computed, and the gate's scores and mask [T, E]; keeps nothing."""
        score, weight, mask = self.gate.weigh(x_TC, target)
        y = masked_forward(x_TC, weight.to(x_TC.dtype), self.gate_up_proj, self.down_proj)
        return y if self.shared is None else y + self.shared(x_TC), score, mask


@dataclass
class LayerRouting:
    """What a layer's gate did.

    Attributes:
        layer: its number.
        load_E: tokens that ran each expert.
        count_K: tokens that ran 0, 1, .., E experts.
    """

    layer: int
    load_E: Tensor
    count_K: Tensor

    @torch.no_grad()
    def add(self, mask_TE: Tensor) -> None:
        """Count tokens; no wait for the device."""
        self.load_E += mask_TE.sum(0)
        # scatter_add: bincount would wait for the device to learn the size
        self.count_K.scatter_add_(0, mask_TE.sum(1), torch.ones_like(mask_TE[:, 0], dtype=torch.long))

    @property
    def tokens(self) -> int:
        return int(self.count_K.sum())

    @property
    def mean_k(self) -> float:
        """Experts of a token."""
        return float(self.load_E.sum()) / max(1, self.tokens)

    @property
    def max_violation(self) -> float:
        """MaxVio of 2408.15664: how far the most loaded expert lies above the mean load, as a share of it."""
        load = self.load_E.double()
        return float(load.max() / load.mean().clamp(min=1e-30) - 1)

    @property
    def dead(self) -> list[int]:
        """Experts that no token ran."""
        return [] if not self.tokens else (self.load_E == 0).nonzero().flatten().tolist()


def expert_layers(model: nn.Module) -> list[ExpertsFFN]:
    """The model's layers of kind "experts", in order."""
    return [module for module in model.modules() if isinstance(module, ExpertsFFN)]


def balance(model: nn.Module, target: float | None = None, memory: float | None = None) -> None:
    """`Gate.balance` of every layer: after each step of the optimizer in training."""
    for layer in expert_layers(model):
        layer.gate.balance(target, memory)


@contextmanager
def expert_budget(model: nn.Module, budget: float | Tensor | None) -> Iterator[None]:
    """Run the model at another mean number of experts.

    Args:
        model: with layers of kind "experts"; others are not touched.
        budget: a number from 1 to E for all tokens, or float [T], one for each token of the flattened input; None: the
            configured one.

    Raises:
        ConfigError: a number out of range. Tensors are not checked: that would wait for the device.
    """
    layers = expert_layers(model)
    if budget is not None and not isinstance(budget, Tensor):
        for layer in layers:
            check_budget(budget, layer.settings)
    before = [layer.budget for layer in layers]
    for layer in layers:
        layer.budget = budget
    try:
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.budget = value


@contextmanager
def record_routing(model: nn.Module) -> Iterator[list[LayerRouting]]:
    """Count what the gates do inside: one `LayerRouting` for each layer of kind "experts"."""
    layers, logs = expert_layers(model), []
    for layer in layers:
        device, experts = layer.down_proj.device, layer.settings.num_experts
        log = LayerRouting(
            layer.layer, torch.zeros(experts, dtype=torch.long, device=device),
            torch.zeros(experts + 1, dtype=torch.long, device=device),
        )  # fmt: skip
        layer.log = log
        logs.append(log)
    try:
        yield logs
    finally:
        for layer in layers:
            layer.log = None
