"""What `stille train default` is told: one data class, readable from JSON."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stille.errors import ConfigError
from stille.model.convert.pipeline import ConvertSettings
from stille.model.store import DEFAULT_MODEL
from stille.train.config import DISTILL, LossWeights, TrainConfig, known_fields

DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class DefaultSettings:
    """Settings of the pipeline. None means: by the device (`filled`).

    Attributes:
        base: the dense model, as `load_model` takes it; of a delta, its base.
        name: of the folder that is made.
        seed: of everything that is random.
        text: files of text beside what the model writes; none: Python's standard library.
        samples: a .jsonl file of documents (field `text`) in place of what the model would write.
        tokens: that the model writes for training.
        held_out_tokens: that it writes for the judge, by other seeds.
        sequences: that it writes at once.
        shard: documents between two saves.
        answer_tokens, question_tokens, prefix_tokens: most tokens of an answer or continuation, of a question, and of
            the beginning of a text that is continued.
        second_turns: share of the chats that have a second turn.
        temperature, chat_top_p: of sampling; continuations take all tokens.
        calibration_tokens, router_steps, gate_tokens, fisher: of the conversion. By as many tokens as the first says
            thresholds are placed after training.
        gate, target_k, min_k, max_k: of the experts, see `ExpertsConfig`.
        num_experts, shared_size, expert_size, router_size: see `ConvertSettings`.
        minutes, steps: of distillation, whichever is over first; steps None: by the clock alone.
        rank, lr, rate_b, rate_whole, warmup, anneal, batch, micro_batch, length, loss, dtype: see `TrainConfig`.
        quantize, gates, dial, compile, masked: see there too.
        judge_tokens: of each kind of text.
        judge: other files to judge on, [name, path] pairs.
        budgets: mean numbers of experts that are judged.

    Raises:
        ConfigError: a value out of range.
    """

    base: str = DEFAULT_MODEL
    name: str = "stille-135m"
    seed: int = 0
    text: tuple[str, ...] = ()
    samples: str | None = None
    tokens: int | None = None
    held_out_tokens: int | None = None
    sequences: int | None = None
    shard: int | None = None
    answer_tokens: int = 512
    question_tokens: int = 192
    prefix_tokens: tuple[int, int] = (8, 64)
    second_turns: float = 0.25
    temperature: float = 1.0
    chat_top_p: float = 0.95
    calibration_tokens: int | None = None
    router_steps: int | None = None
    gate_tokens: int | None = None
    fisher: float = 0.5
    gate: str = "threshold"
    target_k: float = 4.8
    min_k: int = 0
    max_k: int | None = None
    num_experts: int = 16
    shared_size: int | None = None
    expert_size: int | None = None
    router_size: int = 128
    minutes: float | None = 16.0
    steps: int | None = None
    rank: int = 32
    lr: float | None = None
    rate_b: float = 4.0
    rate_whole: float = 0.25
    warmup: int = 50
    anneal: float = 0.2
    batch: int | None = None
    micro_batch: int | None = None
    length: int = 1024
    loss: LossWeights = DISTILL
    dtype: str | None = None
    quantize: str = "none"
    gates: str = "frozen"
    dial: float = 0.25
    compile: bool | None = None
    masked: bool = True
    judge_tokens: int | None = None
    judge: tuple[tuple[str, str], ...] = ()
    budgets: tuple[float, ...] = (3, 4.8, 8, 16)

    def __post_init__(self) -> None:
        least = dict(tokens=1, held_out_tokens=1, sequences=1, shard=1, judge_tokens=1, calibration_tokens=1)
        least |= dict(router_steps=1, answer_tokens=1, question_tokens=1, rank=1)
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < low):
                raise ConfigError(f"{name}={value!r}, expected an integer of at least {low}.")
        if not 0 <= self.second_turns <= 1 or not 0 < self.chat_top_p <= 1 or not self.temperature > 0:
            raise ConfigError("expected second_turns from 0 to 1, chat_top_p from 0 to 1, temperature above 0.")
        if len(self.prefix_tokens) != 2 or not 1 <= self.prefix_tokens[0] <= self.prefix_tokens[1]:
            raise ConfigError(f"prefix_tokens={self.prefix_tokens}, expected the least and the most, from 1 on.")
        if not self.name or Path(self.name).name != self.name or self.name in (".", "..", "stages", "work"):
            raise ConfigError(f"name={self.name!r}, expected the name of a folder, and neither stages nor work.")
        names = [name for name, _ in self.judge]
        if len({*names, "samples", "library"}) != len(names) + 2:
            raise ConfigError(f"judge: names {', '.join(names)}; each once, and neither samples nor library.")
        if self.minutes is None and self.steps is None:
            raise ConfigError("distillation needs an end: give minutes, steps or both.")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "DefaultSettings":
        """From JSON's types.

        Raises:
            ConfigError: an unknown name or a value out of range.
        """
        values = dict(known_fields(cls, values, "the settings of the pipeline"))
        if isinstance(values.get("loss"), dict):
            values["loss"] = LossWeights(**known_fields(LossWeights, values["loss"], "loss"))
        try:
            for name in ("text", "prefix_tokens", "budgets"):
                if name in values:
                    values[name] = tuple(values[name])
            if "judge" in values:
                values["judge"] = tuple((str(name), str(path)) for name, path in values["judge"])
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"the settings of the pipeline: {error}.") from error

    def filled(self, device: str) -> "DefaultSettings":
        """What is None chosen for a device; a CPU gets what it can do in an hour or two."""
        small = device == "cpu"
        chosen = dict(
            tokens=200_000 if small else 8_000_000, held_out_tokens=16_384 if small else 131_072,
            sequences=32 if small else 256, shard=64 if small else 4096,
            calibration_tokens=32_768 if small else 131_072, router_steps=400 if small else 1000,
            gate_tokens=0 if small else 16_777_216,
            batch=8 if small else 64, micro_batch=2 if small else 64, dtype="fp32" if small else "bf16",
            judge_tokens=8192 if small else 65_536, compile=not small, lr=2e-4 if small else 1e-3,
        )  # fmt: skip
        values = {name: value for name, value in chosen.items() if getattr(self, name) is None}
        if self.batch is not None and self.micro_batch is None:
            values["micro_batch"] = min(self.batch, int(values["micro_batch"]))
        return dataclasses.replace(self, **values)  # pyright: ignore[reportArgumentType]

    @property
    def result_name(self) -> str:
        """Of the final folder; twins with a fixed number of experts get their own."""
        return self.name if self.gate == "threshold" else f"{self.name}-top-{self.target_k:g}"

    def conversion(self) -> ConvertSettings:
        """Of the stage `convert`; of filled settings."""
        names = ("num_experts", "shared_size", "expert_size", "router_size", "gate", "target_k", "min_k", "max_k")
        count = int(self.calibration_tokens or 0)
        return ConvertSettings(
            **{name: getattr(self, name) for name in (*names, "fisher", "seed", "budgets")},
            tokens=count, profile_tokens=min(count, 32_768), sensitivity_tokens=min(count, 4096), held_out=0,
            steps=int(self.router_steps or 0), gate_tokens=int(self.gate_tokens or 0), length=min(512, self.length),
        )  # fmt: skip

    def training(self) -> TrainConfig:
        """Of the stage `distill`; of filled settings."""
        names = (
            "steps", "minutes", "batch", "micro_batch", "length", "lr", "rate_b", "rate_whole", "warmup", "anneal",
            "rank", "seed", "loss", "dtype", "quantize", "gates", "dial", "compile", "masked",
        )  # fmt: skip
        values = {name: getattr(self, name) for name in names}
        return TrainConfig(
            **values, weight_decay=0.0, save_every=1_000_000, save_minutes=1.0, keep=1, log_every=10, eval_sequences=64
        )
