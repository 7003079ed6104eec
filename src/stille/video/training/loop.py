"""The training loop of the perception model: resumable at every step, by the clock or by steps."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import math
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stille.errors import ConfigError
from stille.train import checkpoint
from stille.train.watching import Log, Stop
from stille.video.model import StilleCam, StilleCamNet
from stille.video.model.quantized import measure
from stille.video.scenes.clips import Clips
from stille.video.training.config import VideoTrainConfig, rate
from stille.video.training.feed import Feed, Phase, Source, rows, tensors
from stille.video.training.metrics import judge, tuned, watch, with_thresholds
from stille.video.training.passes import Gradients, Passes

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
HELD_OUT = 1 << 40  # seeds from here on are for evaluation
TUNED_ON = 1 << 41  # and these for the choice of thresholds
AHEAD = 2
"""Steps that a GPU may have before it."""


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
    recordings: Source | None = None,
) -> Result:
    """Train a network; in a folder that holds checkpoints of the same run, go on from the latest.

    SIGINT and SIGTERM stop after the current step and save; a second SIGINT interrupts. What does not fit into the
    device's memory is computed in more turns; where CUDA graphs or `torch.compile` fail, it goes on without.

    Args:
        network: in float32; it is taken over.
        source: where clips come from; they may lie on any device.
        out: folder of checkpoints and metrics.
        on_step: told after every step.
        recordings: clips that are no renderings, on the CPU; a thread asks for them ahead of time.

    Raises:
        ConfigError: the folder holds another run.
        CheckpointError: checkpoints are there, and none can be read.
    """
    return _Run(network, source, config, out, torch.device(device), on_step, recordings).run()


class _Run:
    def __init__(
        self,
        network: StilleCamNet,
        source: Source,
        config: VideoTrainConfig,
        out: Path,
        device: torch.device,
        on_step: Callable[[Progress], None] | None,
        recordings: Source | None,
    ):
        self.started = time.perf_counter()
        self.network, self.source, self.config = network.to(device), source, config
        self.out, self.device, self.on_step = out, device, on_step
        self.averaged = copy.deepcopy(self.network).eval().requires_grad_(False)
        if config.learn == "identity":
            self.network.requires_grad_(False)
            self.network.identity.requires_grad_(True)
        self.optimizer = _optimizer(self.network, config)
        self.identity = json.dumps({"config": config.identity(), "model": network.config.to_dict()}, sort_keys=True)
        self.step, self.pictures, self.seconds_before, self.finished = 0, 0, 0.0, False
        self.last: dict[str, Any] = {}
        self.told = 0.0, 0  # seconds and pictures at the last line of metrics
        if recordings is not None and device.type == "cuda":
            recordings = _pinned(recordings)
        self.feed = Feed(source, recordings, config, device)
        self.at_once = config.micro_batch_frames or math.inf  # pictures
        self.passes = Passes(self.network, config, device)
        self.left_out = torch.zeros((), device=device)  # steps whose gradient was not finite
        self.pairs: list[Any] = []  # averaged tensors, and those that they follow
        self.behind: deque[Any] = deque()
        self.compiled = config.compile
        if self.compiled:
            for layer in self.network.decoder.layers:
                layer.compile(dynamic=False)

    @property
    def detect_share(self) -> float:
        return 0.0 if self.config.learn == "identity" else self.config.detect_share

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.started

    def run(self) -> Result:
        self._resume()
        done_before = self.finished
        log = Log(self.out, self.step, False)
        found: dict[str, float] = {}
        try:
            with Stop() as stop, _terminated(stop):
                if not self.finished:
                    self._steps(stop, log)
                self.passes.free()
            if self.finished:
                found = self._judged()
                if not done_before:
                    log.write({"step": self.step, **found})
        finally:
            self.feed.close()
            log.close()
        return Result(self.averaged.cpu(), self.finished, self.step, self.pictures, self.seconds, found)

    def _judged(self) -> dict[str, float]:
        """Figures at the end, under the thresholds that suit best, and what 8 bits need; a failure costs no weights."""
        config = self.config
        try:
            clips = self.source(TUNED_ON + config.seed, config.eval_clips, config.frames)
            best = tuned(self.averaged, clips, config.visible, self.device, self._dtype())
            self.averaged = with_thresholds(self.averaged, best)
            ranges = measure(self.averaged, clips.frame_BTHW3[:, ::4])
            self.averaged.config = dataclasses.replace(self.averaged.config, ranges=ranges)
            return self.evaluate()
        except Exception:
            logger.exception("the evaluation failed; the weights are kept")
            return {}

    def _dtype(self) -> torch.dtype | None:
        return None if self.device.type == "cuda" else torch.float32

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
            facts = self._tried(progress)
            self.step += 1
            longest = self.seconds - now
            if self.step % config.log_every == 0 or self.step == 1:
                self.last = {"step": self.step, "progress": round(progress, 5), **facts()}
                since, was = self.seconds - self.told[0], self.pictures - self.told[1]
                self.told = self.seconds, self.pictures
                self.last |= {"seconds": round(self.seconds, 2), "pictures": self.pictures}
                self.last["pictures_per_second"] = round(was / max(since, 1e-9), 1)
                log.write(self.last)
            if config.eval_every and self.step % config.eval_every == 0:
                log.write({"step": self.step, **self.evaluate()})
            if self.seconds - saved >= 60 * config.save_minutes:
                self._save()
                saved = self.seconds
            if self.on_step is not None:
                self.on_step(Progress(self.step, self.progress(self.seconds), self.last))

    def _tried(self, progress: float) -> Callable[[], dict[str, float]]:
        """One update, tried again with less memory or without compiling."""
        while True:
            try:
                return self._one_step(progress)
            except torch.OutOfMemoryError:
                _, length = phase = self._phase(progress)
                if min(self.at_once, phase.clips * length) <= length:
                    raise
                self.at_once = max(length, min(self.at_once, phase.clips * length) // 2)
                logger.warning("step %d: out of memory; now %d pictures at once", self.step, self.at_once)
            except Exception:
                if self.compiled:  # given up first: it gains less
                    logger.warning("a step failed; going on without torch.compile", exc_info=True)
                    self.compiled = False
                    for layer in self.network.decoder.layers:
                        layer._compiled_call_impl = None
                elif self.passes.graphs:
                    logger.warning("capturing steps as CUDA graphs failed; going on without", exc_info=True)
                    self.passes.graphs = False
                else:
                    raise
            self.optimizer.zero_grad(set_to_none=True)
            self.passes.free()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _one_step(self, progress: float) -> Callable[[], dict[str, float]]:
        """One update; returns what makes its metrics, which waits for the device."""
        config = self.config
        identities, phase = progress >= self.detect_share, self._phase(progress)
        count, length = phase
        most = max(1, int(min(count * length, self.at_once)) // length)
        at_once = max(n for n in range(1, most + 1) if count % n == 0)  # all parts are of one shape
        random = torch.Generator().manual_seed(config.seed * (1 << 20) + self.step)
        clips = self.feed.take(self.step, phase)
        self.network.train()
        if config.learn == "identity":
            self.network.backbone.eval()  # batch norms stay as well
        facts, total = torch.zeros((), device=self.device), None
        for begin in range(0, count, at_once):
            part, share = rows(clips, slice(begin, begin + at_once)), at_once / count
            last = begin + at_once == count and self.device.type == "cuda"
            found, gradients = self.passes(part, identities, random, share, self._render_ahead if last else None)
            facts = facts + found * share
            total = gradients if share == 1 else _sum(total, gradients)
        for parameter, gradient in zip(self.passes.parameters, total or (), strict=True):
            parameter.grad = gradient
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), config.clip)
        lr = rate(config, self.step, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["share"]
        wrong = (~norm.isfinite()).float()
        self.optimizer.found_inf = wrong  # pyright: ignore[reportAttributeAccessIssue]  # a step to be left out
        self.optimizer.step()
        self._average()
        self.left_out += wrong
        self.optimizer.zero_grad(set_to_none=True)
        self.pictures += count * length
        self._keep_pace()
        names = self.passes.names
        return lambda: self._told(names, facts) | {"grad_norm": float(norm), "lr": lr}

    def _told(self, names: list[str], facts_F: torch.Tensor) -> dict[str, float]:
        if left_out := int(self.left_out):
            logger.warning("%d steps up to %d: the gradient was not finite; they are left out.", left_out, self.step)
            self.left_out.zero_()
        return dict(zip(names, facts_F.tolist(), strict=True))

    def _render_ahead(self) -> None:
        self.feed.ahead(self.step + 1, self._phase(self.progress(self.seconds)))

    def _keep_pace(self) -> None:
        """The CPU goes no further ahead of a GPU, so that the clock counts what is done."""
        if self.device.type == "cuda":
            self.behind.append(torch.cuda.Event())
            self.behind[-1].record()
            if len(self.behind) > AHEAD:
                self.behind.popleft().synchronize()

    def _phase(self, progress: float) -> Phase:
        config = self.config
        if progress < self.detect_share:
            return Phase(config.detect_batch, config.detect_frames)
        return Phase(config.batch, config.frames)

    @torch.no_grad()
    def _average(self) -> None:
        keep = min(self.config.ema, (1 + self.step) / (10 + self.step))
        if not self.pairs:
            pairs = zip(self.averaged.state_dict().values(), self.network.state_dict().values(), strict=True)
            self.pairs = list(zip(*((a, b) for a, b in pairs if a.is_floating_point()), strict=True))
        mean, now = self.pairs
        torch._foreach_lerp_(mean, now, 1 - keep)  # pyright: ignore[reportPrivateImportUsage]

    def evaluate(self) -> dict[str, float]:
        """Figures of the averaged weights on clips that are never trained on, streamed frame by frame."""
        config = self.config
        cam = StilleCam(copy.deepcopy(self.averaged), self.device, self._dtype())
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
        self.seconds_before, self.told = state["seconds"], (state["seconds"], state["pictures"])
        self.network.load_state_dict(state["network"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.finished and self.progress(self.seconds) < 1:
            self.finished = False  # more steps or minutes than before
        logger.info("going on from step %d in %s", self.step, self.out)


@contextmanager
def _terminated(stop: Stop) -> Iterator[None]:
    """SIGTERM asks to stop as well, where signals are ours to take."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(*_: Any) -> None:
        stop.asked = True

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _optimizer(network: StilleCamNet, config: VideoTrainConfig) -> torch.optim.AdamW:
    """Matrices decay, the rest (norms, biases, tables) does not; the backbone may learn more slowly."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        groups.setdefault((name.startswith("backbone."), parameter.ndim > 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": config.weight_decay if matrix else 0.0,
                "share": config.backbone_lr if backbone else 1.0,
            }
            for (backbone, matrix), parameters in groups.items()
        ],
        lr=config.lr, betas=(0.9, 0.98), fused=True,
    )  # fmt: skip


def _pinned(source: Source) -> Source:
    """The same clips, in memory that a GPU copies from by itself."""

    def pinned(seed: int, clips: int, frames: int) -> Clips:
        return Clips(*(x.pin_memory() for x in tensors(source(seed, clips, frames))))

    return pinned


def _sum(total: Gradients | None, more: Gradients) -> Gradients:
    """Of both, in memory of its own."""
    if total is None:
        return [None if x is None else x.clone() for x in more]
    pairs = [(a, b) for a, b in zip(total, more, strict=True) if a is not None and b is not None]
    if pairs:
        a, b = zip(*pairs, strict=True)
        torch._foreach_add_(a, b)  # pyright: ignore[reportPrivateImportUsage]
    return total


def _differences(before: str, now: str) -> str:
    a, b = json.loads(before), json.loads(now)
    told = [
        f"{name} was {a[part].get(name)!r}, now {b[part].get(name)!r}"
        for part in ("config", "model")
        for name in sorted(a[part] | b[part])
        if a[part].get(name) != b[part].get(name)
    ]
    return "; ".join(told)
