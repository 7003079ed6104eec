"""Which experts a token runs: Dynamic Expert Balancing (DEB), and fixed top-k beside it.

DEB selects every expert whose score exceeds that expert's own threshold. Thresholds are quantiles of the expert's
scores, so each expert gets its share of tokens by construction and the number of experts of a token is free. They are
kept for many mean numbers from 0 to E at once, and interpolated: one checkpoint serves every budget. Only a token's own
scores decide, so the choice is causal and does not depend on what else is computed.

Thresholds per expert follow Expert Threshold routing (2603.11535); holding the mean by feedback is shared with DTop-p
(2512.13996). Top-k is DeepSeek-V3's (2412.19437): sigmoid scores, balanced by a bias that counts in selection only, the
bias's updates mean-centred.

Letters: T tokens, C hidden size, E routed experts, K columns of a routing table.
"""

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from stille.errors import ConfigError

STEPS = 4
"""Quantiles between two whole numbers of experts; linear in between, that keeps the mean within a hundredth."""

SEEN = 8192
"""Tokens of a call of which training keeps quantiles of the scores: more are taken at even distances."""

PAIRWISE = 32
"""Experts up to which ranks are counted by comparing each with each, which is one pass over memory once compiled."""

BALANCE = ("quantiles", "correction", "layer_share", "load_bias")
"""Buffers of a gate. They stay in float32: half precision would move thresholds by whole percentiles."""


@dataclass(frozen=True)
class ExpertsConfig:
    """Layers whose FFN is "experts"; the dictionary `StilleConfig.experts`.

    Attributes:
        num_experts: routed experts (E).
        expert_size: inner neurons of one.
        shared_size: inner neurons of the expert that every token runs; 0: none.
        router_size: inner width of the gate; 0: one linear map.
        gate: "threshold" (DEB) or "top_k" (a fixed number).
        target_k: mean number of experts of a token, 1 to E, where a request says nothing else; with "top_k" the number.
        min_k, max_k: least and most experts of a token. 1 and E leave DEB free.
        weights: of a selected expert: "unit", 1 + a learned share of sigmoid(score), so that all experts together are
            the plain sum (a split dense layer); "sigmoid", sigmoid(score); "normalised", sigmoids that sum to 1, times
            `scaling` (V3).
        scaling: factor of normalised weights.
        memory: share of the running quantiles that survives an update.
        correction_rate: of the integral controller, experts per expert of error and update.
        bias_rate: step of top-k's balancing bias.

    Raises:
        ConfigError: an unknown field, or a value out of range.
    """

    num_experts: int = 16
    expert_size: int = 48
    shared_size: int = 768
    router_size: int = 128
    gate: Literal["threshold", "top_k"] = "threshold"
    target_k: float = 4.8
    min_k: int = 1
    max_k: int = 16
    weights: Literal["unit", "sigmoid", "normalised"] = "unit"
    scaling: float = 1.0
    memory: float = 0.9
    correction_rate: float = 0.02
    bias_rate: float = 1e-3

    def __post_init__(self) -> None:
        for name, least in (("num_experts", 1), ("expert_size", 1), ("shared_size", 0), ("router_size", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"experts: {name}={value!r}, expected an integer of at least {least}.")
        if self.gate not in ("threshold", "top_k"):
            raise ConfigError(f"experts: gate={self.gate!r}, expected 'threshold' or 'top_k'.")
        if self.weights not in ("unit", "sigmoid", "normalised"):
            raise ConfigError(f"experts: weights={self.weights!r}, expected 'unit', 'sigmoid' or 'normalised'.")
        if not 0 <= self.min_k <= self.max_k <= self.num_experts or self.max_k < 1:
            raise ConfigError(
                f"experts: min_k={self.min_k}, max_k={self.max_k}, expected 0 <= min_k <= max_k <= {self.num_experts}."
            )
        check_budget(self.target_k, self)
        if self.gate == "top_k" and self.target_k != int(self.target_k):
            raise ConfigError(f"experts: target_k={self.target_k} with gate 'top_k', expected a whole number.")
        if not 0 <= self.memory < 1 or self.correction_rate < 0 or self.bias_rate < 0 or not self.scaling > 0:
            raise ConfigError(
                "experts: expected 0 <= memory < 1, correction_rate and bias_rate of at least 0, scaling above 0; "
                f"given {self.memory}, {self.correction_rate}, {self.bias_rate}, {self.scaling}."
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any] | None) -> "ExpertsConfig":
        """The settings in a model's configuration."""
        if not isinstance(values, dict):
            raise ConfigError(f"experts={values!r}, expected a dictionary of settings.")
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(f"experts: unknown {', '.join(unknown)}; known are {', '.join(sorted(known))}.")
        return cls(**values)


def check_budget(target_k: Any, config: ExpertsConfig) -> None:
    """Whether a mean number of experts can be asked for.

    Raises:
        ConfigError: no number from max(1, min_k) to max_k.
    """
    least = max(1, config.min_k)
    if isinstance(target_k, bool) or not isinstance(target_k, int | float) or not least <= target_k <= config.max_k:
        raise ConfigError(f"a mean of {target_k!r} experts, expected a number from {least} to {config.max_k}.")


class Routing(NamedTuple):
    """What a gate decided for some tokens.

    Attributes:
        expert_TK: int64, selected experts first, in the order of their numbers; E where a column is not used.
        weight_TK: weights, in the gate's float32; 0 where not used.
        mask_TE: bool, who runs.
    """

    expert_TK: Tensor
    weight_TK: Tensor
    mask_TE: Tensor


class Gate(nn.Module):
    """Scores experts, selects by threshold or top-k, and keeps what balances them.

    The running state lies in buffers: `quantiles` [E, J + 1] with J = STEPS * E, column j the score that a share j / J
    of the tokens exceeds; `correction` [1], experts that the integral controller adds to a target; `layer_share` [1],
    this layer's part of what the model leaves out, see `level`; `load_bias` [E] of top-k.

    Args:
        width: hidden size (C).
        config: the settings.

    Attributes:
        seen: what training saw since the last `balance`.
        frozen: see `freeze`.
    """

    quantiles: Tensor
    correction: Tensor
    layer_share: Tensor
    load_bias: Tensor

    def __init__(self, width: int, config: ExpertsConfig):
        super().__init__()
        self.config = config
        experts, inner = config.num_experts, config.router_size
        self.down = nn.Linear(width, inner, bias=False) if inner else None
        self.up = nn.Linear(inner or width, experts)
        self.scale = nn.Parameter(torch.zeros(experts)) if config.weights == "unit" else None
        self.register_buffer("quantiles", normal_quantiles(experts).repeat(experts, 1))
        self.register_buffer("correction", torch.zeros(1))
        self.register_buffer("layer_share", torch.ones(1))
        self.register_buffer("load_bias", torch.zeros(experts))
        self.seen: Seen | None = None
        self.frozen = False

    def _apply(self, fn: Any, recurse: bool = True) -> "Gate":
        """Move or convert, but for the precision of `BALANCE`."""
        kept = {name: getattr(self, name) for name in BALANCE}
        super()._apply(fn, recurse)
        for name, value in kept.items():
            moved = getattr(self, name)
            if moved.dtype != value.dtype:
                setattr(self, name, value.to(moved.device))
        return self

    def freeze(self) -> None:
        """From now on scores are given: no gradient goes to what makes them, nor through them to the hidden states."""
        self.frozen = True
        for part in (self.down, self.up):
            if part is not None:
                part.requires_grad_(False)

    def scores(self, x_TC: Tensor) -> Tensor:
        """float32 [T, E], whatever the dtype of x."""
        x = x_TC.float()
        if self.down is not None:
            x = nn.functional.silu(nn.functional.linear(x, self.down.weight.float()))
        return nn.functional.linear(x, self.up.weight.float(), self.up.bias.float())

    def level(self, target: float | Tensor) -> Tensor:
        """This layer's own mean number of experts where the model's is the target: E - (E - target) * layer_share.

        With shares whose mean over layers is 1, the mean of the levels is the target, whatever it is, and with a target
        of E every layer runs everything. Levels may lie beyond what `min_k` and `max_k` allow.

        Returns:
            float32 [1] of a number, [T] of one for each token.
        """
        return target + (self.config.num_experts - target) * (1 - self.layer_share)  # exact where the share is 1

    def thresholds(self, target: float | Tensor) -> Tensor:
        """What scores must exceed for a mean number of experts, [E] of a number, [T, E] of one for each token [T].

        From `num_experts` on everything is exceeded.
        """
        experts = self.config.num_experts
        target = torch.as_tensor(target, dtype=torch.float32, device=self.quantiles.device)
        level = STEPS * (self.level(target) + self.correction).clamp(0, experts)
        level = level if target.dim() else level[0]
        low = level.floor().clamp(max=STEPS * experts - 1).long()
        part = (level - low).unsqueeze(-1)
        bound = torch.lerp(self.quantiles.T[low], self.quantiles.T[low + 1], part)
        return torch.where((target >= experts).unsqueeze(-1), -math.inf, bound)

    def forward(self, x_TC: Tensor, target: float | Tensor | None = None) -> Routing:
        """Route tokens.

        Args:
            x_TC: hidden states, any float dtype.
            target: mean number of experts, or one for each token [T]; None: the configured one. With "top_k" the
                number itself, rounded.

        In training, scores are kept for `balance`, and the weights carry gradients to them straight through.
        """
        score, weight, mask = self.weigh(x_TC, self.config.target_k if target is None else target)
        self.remember(score, mask)
        order = (~mask).to(torch.uint8).argsort(dim=-1, stable=True)[:, : self.config.max_k]
        used = mask.gather(1, order)
        return Routing(torch.where(used, order, self.config.num_experts), weight.gather(1, order), mask)

    def weigh(self, x_TC: Tensor, target: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores, weights (0 where an expert does not run), both float32 [T, E], and who runs, bool [T, E].

        As `forward`, without its table, and nothing is kept.
        """
        score = self.scores(x_TC)
        if self.frozen:
            score = score.detach()
        if self.config.gate == "top_k":
            margin, mask = self._top_k(score, target)
        else:
            margin = score - self.thresholds(target)
            mask = self._clamp(margin, margin > 0)
        return score, self._weights(score, margin, mask), mask

    def _top_k(self, score_TE: Tensor, target: float | Tensor) -> tuple[Tensor, Tensor]:
        ranked = torch.sigmoid(score_TE) + self.load_bias
        count = torch.as_tensor(target, dtype=torch.float32, device=score_TE.device).round()
        return score_TE, _rank(ranked) < count.reshape(-1, 1)

    def _clamp(self, margin_TE: Tensor, mask_TE: Tensor) -> Tensor:
        if self.config.min_k == 0 and self.config.max_k == self.config.num_experts:
            return mask_TE
        rank = _rank(margin_TE)
        return (mask_TE | (rank < self.config.min_k)) & (rank < self.config.max_k)

    def _weights(self, score_TE: Tensor, margin_TE: Tensor, mask_TE: Tensor) -> Tensor:
        config = self.config
        chance = torch.sigmoid(score_TE)
        if config.weights == "unit":
            assert self.scale is not None
            weight = 1 + self.scale.float() * chance
            if self.training and not self.frozen:
                # straight through: the value stays, the gate learns whom it should have left out
                soft = torch.sigmoid(margin_TE)
                weight = weight + torch.where(mask_TE, soft - soft.detach(), 0.0)
        elif config.weights == "sigmoid":
            weight = chance
        else:
            kept = torch.where(mask_TE, chance, 0.0)
            weight = config.scaling * kept / kept.sum(-1, keepdim=True).clamp(min=1e-20)
        return torch.where(mask_TE, weight, 0.0)

    @torch.no_grad()
    def remember(self, score_TE: Tensor, mask_TE: Tensor) -> None:
        """Keep for `balance` what was routed, in training."""
        if not self.training or not score_TE.shape[0]:
            return
        some = score_TE[:: -(-score_TE.shape[0] // SEEN)]
        seen = Seen(score_quantiles(some), mask_TE.float().mean(0), 1)
        self.seen = seen if self.seen is None else self.seen + seen

    @torch.no_grad()
    def balance(self, target: float | None = None, memory: float | None = None) -> None:
        """Take in what was routed in training since the last call; call it after each step of the optimizer.

        Args:
            target: mean number of experts that was asked for; None: the configured one. From `num_experts` on the
                controller rests: everything runs.
            memory: share of the running quantiles that survives; None: the configured one. Less in the first steps of
                fresh weights, whose scores are far from what the quantiles start at.

        Quantiles move towards those of the batch, the controller towards `level`, top-k's bias against the load.
        With several processes all of them must call it: they average what they saw, so they stay equal.
        """
        if self.seen is None:
            return
        quantiles, load = self.seen.means()
        self.seen = None
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for value in (quantiles, load):
                torch.distributed.all_reduce(value)
                value /= torch.distributed.get_world_size()
        config = self.config
        if config.gate == "top_k":
            step = torch.sign(load.mean() - load)
            self.load_bias += config.bias_rate * (step - step.mean())
            return
        self.quantiles.lerp_(quantiles, 1 - (config.memory if memory is None else memory))
        target = config.target_k if target is None else target
        if target >= config.num_experts:
            return
        missing = self.level(target).clamp(config.min_k, config.max_k) - load.sum()
        half = config.num_experts / 2
        self.correction += config.correction_rate * missing
        self.correction.clamp_(-half, half)


class Seen(NamedTuple):
    """Sums of what training steps saw: quantiles [E, J + 1], loads [E] as shares of the tokens, and of how many."""

    quantiles: Tensor
    load: Tensor
    count: int

    def __add__(self, other: "Seen") -> "Seen":  # pyright: ignore[reportIncompatibleMethodOverride]
        return Seen(self.quantiles + other.quantiles, self.load + other.load, self.count + other.count)

    def means(self) -> tuple[Tensor, Tensor]:
        return self.quantiles / self.count, self.load / self.count


def _rank(value_TE: Tensor) -> Tensor:
    """0 for the largest; the earlier expert first if equal."""
    experts = value_TE.shape[1]
    if experts > PAIRWISE:
        return value_TE.argsort(dim=-1, descending=True, stable=True).argsort(-1)
    mine, others = value_TE.unsqueeze(2), value_TE.unsqueeze(1)
    place = torch.arange(experts, device=value_TE.device)
    return ((others > mine) | ((others == mine) & (place < place[:, None]))).sum(-1)


def normal_quantiles(experts: int) -> Tensor:
    """[J + 1]: what scores of a standard normal distribution exceed with probability 0, 1/J, .., 1; J = STEPS * E."""
    share = torch.arange(1, STEPS * experts) / (STEPS * experts)
    inner = math.sqrt(2) * torch.erfinv(1 - 2 * share)
    end = torch.tensor([math.sqrt(2 * math.log(STEPS * experts)) + 2])
    return torch.cat([end, inner, -end])


def score_quantiles(score_TE: Tensor) -> Tensor:
    """[E, J + 1]: the score that shares 0, 1/J, .., 1 of the tokens exceed, for each expert; J = STEPS * E.

    Between two scores the quantile lies in the middle, so that exactly the wanted number of tokens exceeds it; at the
    ends it lies a little outside of what was seen.
    """
    tokens, levels = score_TE.shape[0], STEPS * score_TE.shape[1]
    ordered = score_TE.T.sort(dim=-1, descending=True).values
    edge = (ordered[:, :1] - ordered[:, -1:]) / tokens + 1e-6
    ordered = torch.cat([ordered[:, :1] + edge, ordered, ordered[:, -1:] - edge], 1)
    place = torch.arange(levels + 1, device=score_TE.device) * tokens / levels
    low = place.floor().long()
    above = ordered[:, low] + (ordered[:, low + 1] - ordered[:, low]) * 0.5
    beyond = ordered[:, low + 1] + (ordered[:, (low + 2).clamp(max=tokens + 1)] - ordered[:, low + 1]) * 0.5
    return torch.lerp(above, beyond, (place - low).to(above))
