"""What the training of a draft head is told."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from stille.errors import ConfigError


@dataclass(frozen=True)
class DraftTrainConfig:
    """Settings of a run.

    Attributes:
        steps: steps of the optimizer; None: as many as fit into `minutes`.
        minutes: wall-clock limit of the whole run, resumed parts included; rates follow it. None: no limit.
        unroll: draft steps that are learned from each position.
        batch_tokens: most tokens that the target is given at once, padding included.
        positions: share of `batch_tokens` that is drafted from, at most; where a batch has more, they are drawn.
        lr: peak rate; `warmup` steps until it is reached, then a cosine to `final_lr` of it.
        weight_decay: of matrices.
        beta1, beta2, clip: of AdamW; largest norm of the gradient, 0: any.
        ce, tv: weights of cross-entropy and of total variation (1 - acceptance).
        ce_only: share of the run at its beginning that cross-entropy has to itself.
        decay: weight of a draft step relative to the one before.
        dtype: of the arithmetic; "bf16" keeps float32 weights.
        seed: of fresh weights, of the order of the text and of the positions drawn.
        save_minutes, save_every: minutes, and if given steps, between checkpoints.
        log_every: steps between lines of metrics.
        compile: compute layers and losses by compiled kernels.
        eval_tokens: most held-out tokens of a domain at each temperature.

    Raises:
        ConfigError: a value out of range, or neither steps nor minutes.
    """

    steps: int | None = None
    minutes: float | None = None
    unroll: int = 7
    batch_tokens: int = 32_768
    positions: float = 0.5
    lr: float = 1e-3
    final_lr: float = 0.02
    warmup: int = 100
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 1.0
    ce: float = 0.1
    tv: float = 0.9
    ce_only: float = 0.1
    decay: float = 0.8
    dtype: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0
    save_minutes: float = 1.0
    save_every: int | None = None
    log_every: int = 20
    compile: bool = False
    eval_tokens: int = 50_000

    def __post_init__(self) -> None:
        if self.steps is None and self.minutes is None:
            raise ConfigError("a run needs an end: give steps, minutes or both.")
        least = dict(unroll=1, batch_tokens=8, warmup=0, log_every=1, eval_tokens=0)
        least |= {name: 1 for name in ("steps", "save_every") if getattr(self, name) is not None}
        for name, low in least.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise ConfigError(f"{name}={value!r}, expected an integer of at least {low}.")
        for name in ("minutes", "save_minutes", "lr", "decay", "positions"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)}, expected more than 0.")
        for name in ("final_lr", "beta1", "beta2", "ce_only", "positions"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)}, expected a number from 0 to 1.")
        if min(self.ce, self.tv, self.weight_decay, self.clip) < 0 or not self.ce + self.tv > 0:
            raise ConfigError("expected ce, tv, weight_decay and clip of at least 0, and ce or tv above it.")
        if self.dtype not in ("fp32", "bf16"):
            raise ConfigError(f"dtype={self.dtype!r}, expected fp32 or bf16.")

    def identity(self) -> dict[str, Any]:
        """What two parts of one run must agree on: all but what only watches, saves or ends it by the clock."""
        values = dataclasses.asdict(self)
        for name in ("minutes", "save_minutes", "save_every", "log_every", "compile", "eval_tokens"):
            del values[name]
        return values

    def progress(self, step: int, seconds: float) -> float:
        """Share of the run that is behind it, by steps or by the clock, whichever is further; 1 ends it."""
        by_steps = 0.0 if self.steps is None else step / self.steps
        by_clock = 0.0 if self.minutes is None else seconds / (60 * self.minutes)
        return min(1.0, max(by_steps, by_clock))

    def rate(self, step: int, progress: float) -> float:
        """Learning rate of a step (counted from 0), given the share of the run behind it."""
        share = self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))
        return self.lr * share * min(1.0, (step + 1) / max(1, self.warmup))

    def terms(self, progress: float) -> tuple[float, float]:
        """Weights of cross-entropy and total variation at this point."""
        return (1.0, 0.0) if progress < self.ce_only else (self.ce, self.tv)
