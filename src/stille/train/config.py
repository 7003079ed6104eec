"""What a training run is told: data classes, readable from JSON, and the curves that follow from them."""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from stille.errors import ConfigError


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms of the loss; 0 leaves a term out.

    Attributes:
        next_token: cross-entropy of the next token.
        kl: Kullback-Leibler divergence from the teacher's next-token distribution.
        layers: squared error of every layer's output relative to the teacher's, mean over layers.
        budget: routing weights times load (ReMoE, 2412.14711); thresholds hold the mean without it.
    """

    next_token: float = 1.0
    kl: float = 0.0
    layers: float = 0.0
    budget: float = 0.0

    @property
    def needs_teacher(self) -> bool:
        return self.kl > 0 or self.layers > 0


DISTILL = LossWeights(next_token=0.0, kl=1.0, layers=0.1)


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a run.

    Attributes:
        steps: steps of the optimizer; None: as many as fit into `minutes`.
        minutes: wall-clock limit of the whole run, resumed parts included; the schedule finishes by it. None: no limit.
        batch: sequences of a step, over all processes.
        micro_batch: sequences computed at once by a process; divides `batch`.
        length: tokens of a sequence.
        lr: peak rate.
        warmup: steps until it is reached.
        schedule: "cosine" from the peak to the end; "wsd": level, then linear over the last `decay` of the run.
        final_lr: share of `lr` at the end.
        decay: share of the run over which "wsd" decays.
        weight_decay: of matrices; vectors have none.
        beta1, beta2: of AdamW.
        clip: largest norm of the gradient; 0: none.
        dtype: of the arithmetic. "bf16" computes in it on float32 master weights.
        seed: of the order of the data and of what is random in the model.
        anneal: share of the run over which the mean number of experts falls from all to the configured target; 0: none.
        loss: weights of its terms.
        save_every, keep: steps between checkpoints, and how many stay. One is always saved at the end.
        log_every: steps between lines of metrics.
        eval_every: steps between evaluations; 0: only at the end.
        eval_sequences: held-out sequences of one.
        parallel: with several processes, "replicate": each holds the model; "fsdp": they share it (FSDP2).
        rank: above 0, matrices of attention and FFNs learn by pairs of this rank (W0 + B A), embeddings and head not
            at all, everything else whole. 0: all weights learn.
        rate_b, rate_whole: with `rank`, rates relative to `lr`: of B (above that of A: LoRA+, 2402.12354), and of what
            learns whole.
        save_minutes: minutes between checkpoints, beside `save_every`; None: by steps only.
        quantize: with `rank`, the grid of the CPU engine that matrices are rounded to after each step, so that pairs
            learn what is best once rounded (gradients pass straight through). The pairs themselves are not rounded.
        gates: "frozen": what scores experts stays as it is and gets no gradient, nor does what it scores; thresholds
            and the weights of experts still follow.
        dial: share of the sequences that run at another mean number of experts, drawn evenly from half the target to
            all, so that one checkpoint learns every budget.
        compile: compute norms, SwiGLUs, projections, masked experts and losses by compiled kernels; needs a C++
            compiler, and the first steps take longer.
        masked: compute all experts for all tokens and weigh them: faster in training where experts are small, slower
            where they are not.

    Raises:
        ConfigError: a value out of range, neither steps nor minutes, or `rank` with "fsdp", or
            `quantize` without `rank`, or `masked` with a budget in the loss.
    """

    steps: int | None = 1000
    minutes: float | None = None
    batch: int = 32
    micro_batch: int = 32
    length: int = 1024
    lr: float = 1e-3
    warmup: int = 50
    schedule: Literal["cosine", "wsd"] = "cosine"
    final_lr: float = 0.05
    decay: float = 0.3
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 1.0
    dtype: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0
    anneal: float = 0.0
    loss: LossWeights = LossWeights()
    save_every: int = 500
    keep: int = 2
    log_every: int = 10
    eval_every: int = 0
    eval_sequences: int = 64
    parallel: Literal["replicate", "fsdp"] = "replicate"
    rank: int = 0
    rate_b: float = 4.0
    rate_whole: float = 0.25
    save_minutes: float | None = None
    quantize: Literal["none", "int4", "int8"] = "none"
    gates: Literal["learned", "frozen"] = "learned"
    dial: float = 0.0
    compile: bool = False
    masked: bool = False

    def __post_init__(self) -> None:
        if self.steps is None and self.minutes is None:
            raise ConfigError("a run needs an end: give steps, minutes or both.")
        least = dict(batch=1, micro_batch=1, length=2, warmup=0, save_every=1, keep=1, log_every=1, eval_every=0)
        least |= dict(eval_sequences=0, rank=0) | ({} if self.steps is None else dict(steps=1))
        for name, low in least.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise ConfigError(f"{name}={value!r}, expected an integer of at least {low}.")
        for name in ("minutes", "save_minutes"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)}, expected more than 0.")
        if self.batch % self.micro_batch:
            raise ConfigError(f"batch={self.batch} is no multiple of micro_batch={self.micro_batch}.")
        if not self.lr > 0 or self.weight_decay < 0 or self.clip < 0:
            raise ConfigError("expected lr above 0, weight_decay and clip of at least 0.")
        if not self.rate_b > 0 or self.rate_whole < 0:
            raise ConfigError("expected rate_b above 0 and rate_whole of at least 0.")
        for name in ("final_lr", "decay", "anneal", "beta1", "beta2", "dial"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)}, expected a number from 0 to 1.")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ConfigError(f"{name}={getattr(self, name)!r}, expected one of {', '.join(known)}.")
        if self.rank and self.parallel == "fsdp":
            raise ConfigError("pairs of low rank (rank) are not split over processes: parallel 'replicate', or rank 0.")
        if self.quantize != "none" and not self.rank:
            raise ConfigError(f"quantize={self.quantize!r} is for pairs of low rank: give rank, or leave it out.")
        if self.masked and self.loss.budget:
            raise ConfigError(
                "masked experts keep no routing table for a budget in the loss: loss.budget 0, or not masked."
            )
        terms = dataclasses.asdict(self.loss)
        if min(terms.values()) < 0 or not max(terms.values()) > 0:
            raise ConfigError(f"loss weights {terms}: expected none below 0 and one above.")

    def identity(self) -> dict[str, Any]:
        """What two parts of one run must agree on: all but what only watches or saves it."""
        values = dataclasses.asdict(self)
        watching = ("save_every", "save_minutes", "keep", "log_every", "eval_every", "eval_sequences")
        unused = () if self.rank else ("rank", "rate_b", "rate_whole", "quantize")
        for name in (*watching, "parallel", "minutes", *unused):
            del values[name]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainConfig":
        """From JSON's types; `loss` is a dictionary of its own.

        Raises:
            ConfigError: an unknown name or a value out of range.
        """
        values = dict(values)
        if isinstance(values.get("loss"), dict):
            values["loss"] = LossWeights(**known_fields(LossWeights, values["loss"], "loss"))
        return cls(**known_fields(cls, values, "the training configuration"))


GRIDS = {"none": 0, "int4": 4, "int8": 8}
"""Bits of what `quantize` names; 0: no rounding."""

CHOICES = {
    "schedule": ("cosine", "wsd"), "dtype": ("fp32", "bf16"), "parallel": ("replicate", "fsdp"),
    "quantize": tuple(GRIDS), "gates": ("learned", "frozen"),
}  # fmt: skip


def known_fields(kind: Any, values: dict[str, Any], what: str) -> dict[str, Any]:
    """The values, if all are fields of the data class.

    Raises:
        ConfigError: one is not.
    """
    known = {field.name for field in dataclasses.fields(kind)}
    if unknown := sorted(set(values) - known):
        raise ConfigError(f"{what}: unknown {', '.join(unknown)}; known are {', '.join(sorted(known))}.")
    return values


def progress_of(config: TrainConfig, step: int, seconds: float) -> float:
    """Share of the run that is behind it, by steps or by the clock, whichever is further; 1 ends it."""
    by_steps = 0.0 if config.steps is None else step / config.steps
    by_clock = 0.0 if config.minutes is None else seconds / (60 * config.minutes)
    return min(1.0, max(by_steps, by_clock))


def learning_rate(config: TrainConfig, step: int, progress: float) -> float:
    """Rate of a step (counted from 0), given the share of the run behind it."""
    if config.schedule == "cosine":
        share = config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))
    else:
        late = max(0.0, progress - (1 - config.decay)) / max(config.decay, 1e-9)
        share = 1 - (1 - config.final_lr) * min(1.0, late)
    return config.lr * share * min(1.0, (step + 1) / max(1, config.warmup))


def target_k(config: TrainConfig, progress: float, experts: int, target: float) -> float:
    """Mean number of experts at this point: falling along a line from all of them to the configured target."""
    if config.anneal == 0 or progress >= config.anneal:
        return float(target)
    return experts + (target - experts) * progress / config.anneal


def sequence_targets(config: TrainConfig, step: int, target: float, least: float, most: float) -> np.ndarray:
    """Mean numbers of experts of a step's sequences: float32 [batch]; a share of `dial` differs from the target.

    Args:
        config: for dial, batch and seed.
        step: counted from 0.
        target: of the others.
        least: no number is below it.
        most: none of those drawn is above it.
    """
    dice = np.random.default_rng([config.seed, step, 1])
    other = dice.random(config.batch) < config.dial
    drawn = dice.uniform(min(most, max(least, target / 2)), most, config.batch)
    return np.where(other, drawn, target).astype(np.float32)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ConfigError: it cannot be read, or is something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is no readable JSON file: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds {type(values).__name__}, expected a JSON object of settings.")
    return values
