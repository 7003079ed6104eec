"""The training loop of the perception model: resumable at every step, by the clock or by steps."""

from __future__ import annotations

import copy
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stille.errors import ConfigError
from stille.train import checkpoint
from stille.train.watching import Log, Stop
from stille.video.model import StilleCam, StilleCamNet
from stille.video.scenes.clips import Clips
from stille.video.training.config import VideoTrainConfig, rate
from stille.video.training.metrics import judge, watch
from stille.video.training.step import clip_loss

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
HELD_OUT = 1 << 40  # seeds from here on are for evaluation

Source = Callable[[int, int, int], Clips]
"""Clips for a seed, a number of clips and of frames; the same for the same seed, and other ones for every other."""


@dataclass(frozen=True)
class Progress:
    """What a step reports: steps done, share of the run, the last line of metrics."""

    step: int
    share: float
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        network: with averaged weights, in evaluation mode, on the CPU.
        finished: to its end, not stopped on request.
        step, pictures, seconds: of the whole run, resumed parts included.
        evaluation: of its end, see `metrics.judge`; empty if it was stopped.
    """

    network: StilleCamNet
    finished: bool
    step: int
    pictures: int
    seconds: float
    evaluation: dict[str, float]


def train(
    network: StilleCamNet,
    source: Source,
    config: VideoTrainConfig,
    out: Path,
    *,
    device: torch.device | str = "cpu",
    on_step: Callable[[Progress], None] | None = None,
) -> Result:
    """Train a network; in a folder that holds checkpoints of the same run, go on from the latest.

    SIGINT stops after the current step and saves; a second one interrupts.

    Args:
        network: in float32; it is taken over.
        source: where clips come from; they may lie on any device.
        out: folder of checkpoints and metrics.
        on_step: told after every step.

    Raises:
        ConfigError: the folder holds another run.
        CheckpointError: checkpoints are there, and none can be read.
    """
    return _Run(network, source, config, out, torch.device(device), on_step).run()


class _Run:
    def __init__(
        self,
        network: StilleCamNet,
        source: Source,
        config: VideoTrainConfig,
        out: Path,
        device: torch.device,
        on_step: Callable[[Progress], None] | None,
    ):
        self.started = time.perf_counter()
        self.network, self.source, self.config = network.to(device), source, config
        self.out, self.device, self.on_step = out, device, on_step
        self.averaged = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.optimizer = _optimizer(self.network, config, device)
        self.identity = json.dumps({"config": config.identity(), "model": network.config.to_dict()}, sort_keys=True)
        self.step, self.pictures, self.seconds_before, self.finished = 0, 0, 0.0, False
        self.detected_for = 0.0  # share of the run at which identities began
        self.last: dict[str, Any] = {}

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.started

    def run(self) -> Result:
        self._resume()
        done_before = self.finished
        log = Log(self.out, self.step, False)
        found: dict[str, float] = {}
        try:
            with Stop() as stop:
                if not self.finished:
                    self._steps(stop, log)
            if self.finished:
                found = self.evaluate()
                if not done_before:
                    log.write({"step": self.step, **found})
        finally:
            log.close()
        return Result(self.averaged.cpu(), self.finished, self.step, self.pictures, self.seconds, found)

    def progress(self, seconds: float) -> float:
        """Share of the run that is over, by whichever of steps and minutes is further."""
        config = self.config
        by_steps = 0.0 if config.steps is None else self.step / config.steps
        by_time = 0.0 if config.minutes is None else seconds / (60 * config.minutes)
        return min(1.0, max(by_steps, by_time))

    def _steps(self, stop: Stop, log: Log) -> None:
        config, saved, longest = self.config, self.seconds, 0.0
        while True:
            now = self.seconds
            self.finished = self.step > 0 and self.progress(now + longest) >= 1
            if self.finished or stop.asked:
                self._save()
                return
            progress = self.progress(now)
            facts = self._one_step(progress)
            self.step += 1
            longest = self.seconds - now
            if self.step % config.log_every == 0 or self.step == 1:
                self.last = {"step": self.step, "progress": round(progress, 5), **facts()}
                self.last |= {"seconds": round(self.seconds, 2), "pictures": self.pictures}
                log.write(self.last)
            if config.eval_every and self.step % config.eval_every == 0:
                log.write({"step": self.step, **self.evaluate()})
            if self.seconds - saved >= 60 * config.save_minutes:
                self._save()
                saved = self.seconds
            if self.on_step is not None:
                self.on_step(Progress(self.step, self.progress(self.seconds), self.last))

    def _one_step(self, progress: float) -> Callable[[], dict[str, float]]:
        """One update; returns what makes its metrics, which waits for the device."""
        config = self.config
        identities = progress >= config.detect_share
        count, length = (config.batch, config.frames) if identities else (config.detect_batch, config.detect_frames)
        at_once = count if not config.micro_batch_frames else max(1, min(count, config.micro_batch_frames // length))
        seed = config.seed * (1 << 20) + self.step
        random = torch.Generator().manual_seed(seed)
        clips = on(self.source(seed, count, length), self.device)
        self.network.train()
        gathered: dict[str, torch.Tensor] = {}
        for begin in range(0, count, at_once):
            part = rows(clips, slice(begin, begin + at_once))
            share = part.shape[0] / count
            with torch.autocast(self.device.type, torch.bfloat16, enabled=config.dtype == "bf16"):
                loss = clip_loss(self.network, part, config, random, identities)
            (loss.total * share).backward()
            for name, value in {"loss": loss.total.detach(), **loss.facts}.items():
                gathered[name] = gathered.get(name, torch.zeros((), device=self.device)) + value * share
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), config.clip)
        lr = rate(config, self.step, progress)
        if bool(torch.isfinite(norm)):
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
            self._average()
        else:
            logger.warning("step %d: the gradient is not finite; it is left out.", self.step)
        self.optimizer.zero_grad(set_to_none=True)
        self.pictures += count * length
        return lambda: {name: float(x) for name, x in gathered.items()} | {"grad_norm": float(norm), "lr": lr}

    @torch.no_grad()
    def _average(self) -> None:
        keep = min(self.config.ema, (1 + self.step) / (10 + self.step))
        pairs = zip(self.averaged.state_dict().values(), self.network.state_dict().values(), strict=True)
        mean, now = zip(*((a, b) for a, b in pairs if a.is_floating_point()), strict=True)
        torch._foreach_lerp_(mean, now, 1 - keep)  # pyright: ignore[reportPrivateImportUsage]

    def evaluate(self) -> dict[str, float]:
        """Figures of the averaged weights on clips that are never trained on, streamed frame by frame."""
        config = self.config
        cam = StilleCam(
            copy.deepcopy(self.averaged), self.device, None if self.device.type == "cuda" else torch.float32
        )
        clips = self.source(HELD_OUT + config.seed, config.eval_clips, config.frames)
        return {f"eval_{name}": value for name, value in judge(watch(cam, clips), clips, config.visible).items()}

    def _save(self) -> None:
        state: dict[str, Any] = {n: getattr(self, n) for n in ("step", "pictures", "seconds", "finished", "identity")}
        state |= {n: getattr(self, n).state_dict() for n in ("network", "averaged", "optimizer")}
        checkpoint.save(self.out / CHECKPOINTS, state, self.config.keep)

    def _resume(self) -> None:
        state = checkpoint.load_latest(self.out / CHECKPOINTS)
        if state is None:
            return
        if state["identity"] != self.identity:
            raise ConfigError(
                f"{self.out} holds another run: {_differences(state['identity'], self.identity)}. Use the same "
                "settings to go on, or another folder."
            )
        self.step, self.pictures, self.finished = state["step"], state["pictures"], state["finished"]
        self.seconds_before = state["seconds"]
        self.network.load_state_dict(state["network"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.finished and self.progress(self.seconds) < 1:
            self.finished = False  # more steps or minutes than before
        logger.info("going on from step %d in %s", self.step, self.out)


def on(clips: Clips, device: torch.device) -> Clips:
    """The same on a device."""
    return Clips(*(getattr(clips, field.name).to(device, non_blocking=True) for field in fields(clips)))


def rows(clips: Clips, which: slice) -> Clips:
    """Some of the clips."""
    return Clips(*(getattr(clips, field.name)[which] for field in fields(clips)))


def _optimizer(network: StilleCamNet, config: VideoTrainConfig, device: torch.device) -> torch.optim.AdamW:
    """Matrices decay, the rest (norms, biases, tables) does not."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in network.parameters():
        groups[parameter.ndim > 1].append(parameter)
    return torch.optim.AdamW(
        [{"params": groups[True], "weight_decay": config.weight_decay}, {"params": groups[False], "weight_decay": 0.0}],
        lr=config.lr, betas=(0.9, 0.98), fused=device.type == "cuda",
    )  # fmt: skip


def _differences(before: str, now: str) -> str:
    a, b = json.loads(before), json.loads(now)
    told = [
        f"{name} was {a[part].get(name)!r}, now {b[part].get(name)!r}"
        for part in ("config", "model")
        for name in sorted(a[part] | b[part])
        if a[part].get(name) != b[part].get(name)
    ]
    return "; ".join(told)
