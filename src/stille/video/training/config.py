"""Settings of a training run of the perception model, validated."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from stille.errors import ConfigError


@dataclass(frozen=True)
class LossWeights:
    """Of the parts of the loss.

    Attributes:
        presence, kind, distance, overlap: of every layer's objects: focal, cross-entropy, L1, generalised IoU.
        proposals: of the same from the cells of the feature maps.
        attribute, slot, identity: of attributes, rack slots, words.
    """

    presence: float = 2.0
    kind: float = 1.0
    distance: float = 5.0
    overlap: float = 2.0
    proposals: float = 1.0
    attribute: float = 1.0
    slot: float = 0.5
    identity: float = 1.0


@dataclass(frozen=True)
class VideoTrainConfig:
    """
    The first part of a run learns to detect, from many short clips; the rest learns identities too, from long ones.

    Attributes:
        steps: of the optimizer; minutes: wall-clock limit, by which the schedule ends. One of them or both.
        learn: "all", or "identity": who is who alone, the rest of the network stays as it is.
        detect_share: of the run, that learns to detect only; none if identities are all that is learned.
        detect_batch, detect_frames: clips of a step there, and their length.
        batch, frames: the same once identities are learned.
        micro_batch_frames: pictures that are computed at once; more are taken in turns. 0: all.
        repeats: how often each rendered clip is shown, every second time mirrored, with other colours.
        recordings_share: of a step's clips, that are recordings; where there are none, none.
        compile: the decoder by `torch.compile`; where that fails, it goes on without.
        graphs: on GPUs, steps are captured once and replayed, see `passes`; where that fails, it goes on without.
        truncate: frames after which gradients do not go further back in time.
        lr, warmup, weight_decay, clip: of AdamW; rates rise for `warmup` steps, then fall with a cosine to 1 %.
        backbone_lr: share of the rate that the backbone learns with; less for one that begins with what others learned.
        ema: memory of the averaged weights, which are what is kept; less in the first steps.
        dtype: "bf16" (weights stay float32) or "fp32".
        visible: share of an object that has to be seen for it to count; less is neither asked for nor forbidden.
        occlusion, switch, gap: chances that trajectories are hidden for a while, that two past objects of a frame are
            exchanged, and that a clip's beginning is made up to `longest_gap` seconds older.
        rename: chance that an object has another word from some frame on.
        mixed: chance that a clip's objects look more or less like others, so that places have to tell who is who.
        seed: of weights, clips and all else.
        save_minutes, keep: time between checkpoints, and how many stay.
        log_every: steps between metrics; eval_every: steps between evaluations, 0: at the end only; eval_clips: of one.
        loss: weights.

    Raises:
        ConfigError: a value is out of range.
    """

    steps: int | None = None
    minutes: float | None = None
    learn: str = "all"
    detect_share: float = 0.4
    detect_batch: int = 48
    detect_frames: int = 4
    batch: int = 24
    frames: int = 16
    micro_batch_frames: int = 0
    repeats: int = 2
    recordings_share: float = 0.0
    compile: bool = False
    graphs: bool = True
    truncate: int = 5
    lr: float = 6e-4
    backbone_lr: float = 1.0
    warmup: int = 300
    weight_decay: float = 0.05
    clip: float = 1.0
    ema: float = 0.998
    dtype: str = "bf16"
    visible: float = 0.15
    occlusion: float = 0.5
    switch: float = 0.25
    gap: float = 0.5
    rename: float = 0.3
    mixed: float = 0.5
    longest_gap: float = 120.0
    seed: int = 0
    save_minutes: float = 1.0
    keep: int = 2
    log_every: int = 10
    eval_every: int = 0
    eval_clips: int = 24
    loss: LossWeights = field(default_factory=LossWeights)

    def __post_init__(self) -> None:
        if self.steps is None and self.minutes is None:
            raise ConfigError("a run needs steps, minutes or both.")
        for name in ("steps", "minutes"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name} is {value}: expected a positive number")
        for name in ("detect_batch", "detect_frames", "batch", "frames", "truncate", "keep", "log_every", "repeats"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: expected 1 or more")
        for name in (
            "detect_share",
            "backbone_lr",
            "occlusion",
            "switch",
            "gap",
            "mixed",
            "rename",
            "visible",
            "recordings_share",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: expected 0 to 1")
        if self.learn not in ("all", "identity"):
            raise ConfigError(f"learn is {self.learn!r}: expected 'all' or 'identity'")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"ema is {self.ema}: expected 0 or more, below 1")
        if self.dtype not in ("bf16", "fp32"):
            raise ConfigError(f"dtype is {self.dtype!r}: expected 'bf16' or 'fp32'")
        if self.lr <= 0 or self.clip <= 0 or self.longest_gap < 1 or self.save_minutes <= 0:
            raise ConfigError("lr, clip and save_minutes have to be positive, longest_gap at least 1")

    def identity(self) -> dict[str, Any]:
        """What a resumed run must have in common with the one before; the length of the run is not part of it."""
        free = {
            "steps",
            "minutes",
            "save_minutes",
            "keep",
            "log_every",
            "eval_every",
            "eval_clips",
            "compile",
            "graphs",
        }
        return {name: value for name, value in asdict(self).items() if name not in free}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> VideoTrainConfig:
        """
        Raises:
            ConfigError: an unknown field, or a value out of range.
        """
        values = dict(values)
        loss = values.pop("loss", {})
        for kind, given in ((cls, values), (LossWeights, loss)):
            if unknown := sorted(set(given) - {f.name for f in fields(kind)}):
                raise ConfigError(f"training has no settings {', '.join(unknown)}")
        return cls(**values, loss=LossWeights(**loss))


def rate(config: VideoTrainConfig, step: int, progress: float) -> float:
    """The learning rate of a step, `progress` of the run being done."""
    warm = min(1.0, (step + 1) / max(1, config.warmup))
    return config.lr * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))
