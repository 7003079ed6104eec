"""The training of a draft head: the target runs over its own text, the head learns to guess what it will say."""

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stille.errors import ConfigError
from stille.model.decoder import StilleForCausalLM
from stille.model.draft import DraftHead
from stille.train import checkpoint
from stille.train.draft.config import DraftTrainConfig
from stille.train.draft.data import DraftBatch, DraftText, make_batch, plan_epoch
from stille.train.draft.losses import draft_chunk, draft_loss
from stille.train.draft.unroll import autocast, look_up, unroll
from stille.train.watching import Log, Stop

logger = logging.getLogger(__name__)

CHECKPOINTS, KEEP = "checkpoints", 2


@dataclass(frozen=True)
class DraftResult:
    """How a run ended.

    Attributes:
        head: trained, in float32.
        finished: to its end, not stopped on request.
        step, positions, seconds: of the whole run, resumed parts included.
    """

    head: DraftHead
    finished: bool
    step: int
    positions: int
    seconds: float


def train_draft(
    model: StilleForCausalLM,
    head: DraftHead,
    text: DraftText,
    config: DraftTrainConfig,
    out: Path,
    *,
    on_step: Callable[[int, float, dict[str, Any]], None] | None = None,
) -> DraftResult:
    """Train a head; in a folder that holds checkpoints of the same run, go on from the latest.

    SIGINT stops after the current step and saves; a second one interrupts. By steps and on a CPU, a run that was
    stopped or killed ends with the very weights of one that was not.

    Args:
        model: the target, frozen, in evaluation mode and in the dtype that it is served in.
        head: in float32, attached to the target.
        text: what is not held out of it is learned from.
        config: the settings.
        out: folder of checkpoints and metrics.
        on_step: told (steps, share of the run, the latest metrics) after every step.

    Raises:
        ConfigError: nothing to learn from, a head in another dtype, or a folder with another run.
        CheckpointError: checkpoints are there, and none can be read.
    """
    return _Run(model, head, text, config, out, on_step).run()


class _Run:
    def __init__(self, model: Any, head: DraftHead, text: DraftText, config: DraftTrainConfig, out: Path, on_step: Any):
        self.started = time.perf_counter()
        if any(p.dtype != torch.float32 for p in head.parameters()):
            raise ConfigError("train_draft takes a head in float32: dtype is what it computes in.")
        learned = (text.held_out == 0) & (text.length - 2 - text.start >= 1)
        self.text = text.select(learned)
        if not len(self.text.length):
            raise ConfigError("there is no text to learn from: all of it is held out, or too short. Make more.")
        self.model, self.head, self.config, self.out, self.on_step = model.eval(), head, config, out, on_step
        self.device = model.lm_head.weight.device
        matrices = [p for p in head.parameters() if p.dim() > 1]
        vectors = [p for p in head.parameters() if p.dim() < 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=config.lr, betas=(config.beta1, config.beta2), fused=self.device.type == "cuda",
        )  # fmt: skip
        self.chunk_loss: Any = torch.compile(draft_chunk, dynamic=True) if config.compile else draft_chunk
        if config.compile:
            for layer in head.layers:
                layer.compile(dynamic=True)
        self.identity = json.loads(json.dumps({
            "config": config.identity(), "head": [*vars(head.config).values()], "data": text.digest,
            "target": vars(head.target),
        }))  # fmt: skip
        self.step, self.positions, self.seconds_before, self.finished = 0, 0, 0.0, False
        self.epoch, self.place = 0, 0
        self.plan = plan_epoch(self.text, config.batch_tokens, config.seed, 0)
        self.last: dict[str, Any] = {}

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.started

    def run(self) -> DraftResult:
        self._resume()
        log = Log(self.out, self.step, False)
        self.head.train()
        try:
            with Stop() as stop:
                if not self.finished:
                    self._steps(stop, log)
        finally:
            log.close()
        self.head.eval()
        return DraftResult(self.head, self.finished, self.step, self.positions, self.seconds)

    def _steps(self, stop: Stop, log: Log) -> None:
        config, saved = self.config, self.seconds
        sums = torch.zeros(config.unroll, 3, device=self.device)
        mark, since, longest = time.perf_counter(), self.positions, 0.0
        while True:
            now = self.seconds
            self.finished = self.step > 0 and config.progress(self.step, now + longest) >= 1
            if self.finished or stop.asked:
                self._save()
                return
            progress = config.progress(self.step, now)
            norm, rate = self._one_step(progress, sums)
            self.step += 1
            if self.step % config.log_every == 0 or self.step == 1:
                self.last = self._metrics(progress, sums, norm, rate)  # waits for the device
                speed = (self.positions - since) / max(1e-9, time.perf_counter() - mark)
                self.last["positions_per_second"] = round(speed, 1)
                log.write(self.last)
                sums.zero_()
                mark, since = time.perf_counter(), self.positions
            due = self.seconds - saved >= 60 * config.save_minutes
            if due or (config.save_every and self.step % config.save_every == 0):
                paused = time.perf_counter()
                self._save()
                saved, mark = self.seconds, mark + time.perf_counter() - paused
            elif self.step > 1:
                longest = max(0.9 * longest, self.seconds - now)
            if self.on_step is not None:
                self.on_step(self.step, config.progress(self.step, self.seconds), self.last)

    def _next_batch(self) -> DraftBatch:
        if self.place >= len(self.plan):
            self.epoch, self.place = self.epoch + 1, 0
            self.plan = plan_epoch(self.text, self.config.batch_tokens, self.config.seed, self.epoch)
        config, documents = self.config, self.plan[self.place]
        most = max(1, int(config.positions * config.batch_tokens))
        batch = make_batch(self.text, documents, config.unroll, most, (config.seed, self.epoch, self.place))
        self.place += 1
        self.positions += len(batch.row_M)
        return batch.to(self.device)

    def _one_step(self, progress: float, sums: Tensor) -> tuple[Tensor, float]:
        """Adds weights, cross-entropy and acceptance of each draft step to the sums [unroll, 3]."""
        config, head = self.config, self.head
        batch = self._next_batch()
        features, p_RD = look_up(self.model, head, batch)
        head_DC: Any = head.head_DC
        total, loss, terms = torch.zeros((), device=self.device), 0.0, config.terms(progress)
        with autocast(self.device, config.dtype):
            for step in unroll(head, features, batch, config.unroll):
                weight_M = step.open_M.float() * config.decay**step.number
                found = draft_loss(
                    step.h_MC.to(head_DC.dtype), head_DC, p_RD, step.row_M, weight_M, terms, self.chunk_loss
                )
                loss, total = loss + found[0], total + weight_M.sum()
                sums[step.number] += torch.stack([weight_M.sum(), found[1], found[2]])
        (loss / total).backward()  # pyright: ignore[reportAttributeAccessIssue]
        norm = nn.utils.clip_grad_norm_(head.parameters(), config.clip or math.inf)
        rate = config.rate(self.step, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm, rate

    def _metrics(self, progress: float, sums: Tensor, norm: Tensor, rate: float) -> dict[str, Any]:
        weight, ce, accepted = sums.cpu().double().unbind(1)
        whole, shares = float(weight.sum()), accepted / weight.clamp(min=1e-9)
        loss = (self.config.ce * ce.sum() + self.config.tv * (whole - accepted.sum())) / max(1e-9, whole)
        found: dict[str, Any] = {"step": self.step, "progress": round(progress, 5), "epoch": self.epoch}
        found |= {"positions": self.positions, "loss": round(float(loss), 5)}
        found |= {
            "ce": round(float(ce.sum()) / max(1e-9, whole), 5),
            "acceptance": [round(a, 4) for a in shares.tolist()],
        }
        # What a round would give if steps were accepted independently of each other.
        found["tau"] = round(1 + float(np.cumprod(shares.numpy()).sum()), 4)
        if not math.isfinite(found["loss"]):
            logger.warning("step %d: the loss is %s.", self.step, found["loss"])
        return found | {"lr": rate, "grad_norm": round(float(norm), 5), "seconds": round(self.seconds, 2)}

    def _save(self) -> None:
        head = {name: value.detach().cpu() for name, value in self.head.state_dict().items()}
        state = dict(
            step=self.step, positions=self.positions, seconds=self.seconds, finished=self.finished, epoch=self.epoch,
            place=self.place, identity=json.dumps(self.identity), head=head, optimizer=self.optimizer.state_dict(),
        )  # fmt: skip
        checkpoint.save(self.out / CHECKPOINTS, state, KEEP)

    def _resume(self) -> None:
        state = checkpoint.load_latest(self.out / CHECKPOINTS)
        if state is None:
            return
        before = json.loads(state["identity"])
        if differing := [name for name in self.identity if before.get(name) != self.identity[name]]:
            names = {"config": "its settings", "head": "its sizes", "data": "its text", "target": "its target"}
            told = ", ".join(names[name] for name in differing)
            raise ConfigError(f"{self.out} holds another run: {told} differ. Use the same to go on, or another folder.")
        self.step, self.positions, self.finished = state["step"], state["positions"], state["finished"]
        self.seconds_before, self.epoch, self.place = state["seconds"], state["epoch"], state["place"]
        self.plan = plan_epoch(self.text, self.config.batch_tokens, self.config.seed, self.epoch)
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        logger.info("going on from step %d in %s", self.step, self.out)
