"""The training loop: one for pretraining and distillation, one process or many, resumable at every step."""

import json
import logging
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stille.errors import ConfigError
from stille.model.config import StilleConfig
from stille.model.convert.delta import LOW_RANK_A, LOW_RANK_B
from stille.model.decoder import StilleForCausalLM
from stille.model.experts import LayerRouting, balance, expert_layers, record_routing
from stille.train import checkpoint
from stille.train.compiled import compile_parts
from stille.train.config import GRIDS, TrainConfig, learning_rate, progress_of, sequence_targets, target_k
from stille.train.data import Batches, TokenStore
from stille.train.evaluate import evaluate
from stille.train.losses import Objective, Scales
from stille.train.low_rank import LowRank, Pairs
from stille.train.watching import Log, Stop, Watch
from stille.train.weights import DTYPES, Replicated, Sharded, World

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Progress:
    """What a step reports.

    Attributes:
        step: steps done.
        share: of the run.
        metrics: those of the last line of metrics; empty before the first.
    """

    step: int
    share: float
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        model: the trained one, in evaluation mode and in the dtype of the arithmetic.
        finished: to its end, not stopped on request.
        step, tokens, seconds: of the whole run, resumed parts included.
        evaluation: of the end, see `evaluate`; empty if stopped or nothing was held out.
        pairs: with `rank`, what a delta needs of the run; None if all weights were trained.
    """

    model: StilleForCausalLM
    finished: bool
    step: int
    tokens: int
    seconds: float
    evaluation: dict[str, float]
    pairs: Pairs | None = None


def train(
    model: StilleForCausalLM,
    store: TokenStore,
    config: TrainConfig,
    out: Path,
    *,
    world: World | None = None,
    teacher: StilleForCausalLM | None = None,
    held_out: TokenStore | None = None,
    tensorboard: bool = False,
    on_step: Callable[[Progress], None] | None = None,
) -> Result:
    """Train a model; in a folder that holds checkpoints of the same run, go on from the latest.

    SIGINT stops after the current step and saves; a second one interrupts.

    Args:
        model: in float32; use the result's afterwards.
        store: tokens to learn from.
        config: the settings.
        out: folder of checkpoints and metrics.
        world: processes and device; None: this process on the CPU.
        teacher: of the losses that need one; on its device and in its dtype already.
        held_out: tokens to evaluate on.
        tensorboard: write metrics for TensorBoard too.
        on_step: told after every step.

    Raises:
        ConfigError: settings that contradict each other, or differ from those of the checkpoints.
        CheckpointError: checkpoints are there, and none can be read.
    """
    return _Run(model, store, config, out, world or World(0, 1, torch.device("cpu")), teacher, held_out, on_step).run(
        tensorboard
    )


class _Run:
    def __init__(
        self,
        model: StilleForCausalLM,
        store: TokenStore,
        config: TrainConfig,
        out: Path,
        world: World,
        teacher: StilleForCausalLM | None,
        held_out: TokenStore | None,
        on_step: Callable[[Progress], None] | None,
    ):
        started = time.perf_counter()
        if config.length > model.config.max_position_embeddings:
            raise ConfigError(
                f"length={config.length} exceeds the model's context of {model.config.max_position_embeddings} tokens."
            )
        if any(p.dtype != torch.float32 for p in model.parameters()):
            raise ConfigError("train takes a model in float32: dtype is what it computes in.")
        torch.manual_seed(config.seed)
        self.config, self.out, self.world, self.held_out, self.on_step = config, out, world, held_out, on_step
        self.model = model
        layout = dict(length=config.length, batch=config.batch, micro_batch=config.micro_batch, seed=config.seed)
        self.batches = Batches(store, **layout, rank=world.rank, ranks=world.size)
        self.layers = expert_layers(model)
        if config.gates == "frozen":
            for layer in self.layers:
                layer.gate.freeze()
        if config.compile:
            for each in (model, *([] if teacher is None else [teacher])):
                compile_parts(each)
        for layer in self.layers:
            layer.masked = config.masked
        self.objective = Objective(model, config.loss, teacher, compiled=config.compile)
        self.weights = _weights(self.objective, config, world)
        self.optimizer = _optimizer(self.weights.masters, config, world.device)
        self.identity = json.loads(
            json.dumps({"config": config.identity(), "data": store.digest, "model": _architecture(model)})
        )
        if self.weights.digest is not None:
            self.identity["frozen"] = self.weights.digest
        self.step, self.tokens, self.seconds_before, self.finished = 0, 0, 0.0, False
        self.started = started
        self.last: dict[str, Any] = {}

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.started

    def run(self, tensorboard: bool) -> Result:
        self._resume()
        done_before = self.finished
        log = Log(self.out, self.step, tensorboard) if self.world.main else None
        evaluation: dict[str, float] = {}
        try:
            with Stop() as stop:
                if not self.finished:
                    self._steps(stop, log)
            if self.finished:
                self.weights.finish()
            if self.finished and self.held_out is not None:
                evaluation = self._evaluate()
                if log is not None and not done_before:
                    log.write({"step": self.step, "tokens": self.tokens, **evaluation})
        finally:
            if log is not None:
                log.close()
            for layer in self.layers:
                layer.budget, layer.masked = None, False
        pairs = self.weights.pairs() if isinstance(self.weights, LowRank) else None
        return Result(self._trained(), self.finished, self.step, self.tokens, self.seconds, evaluation, pairs)

    def _steps(self, stop: Stop, log: Log | None) -> None:
        config = self.config
        watch, saved = Watch(self.tokens), self.seconds_before
        while True:
            # A step that would not fit into the time is not begun.
            asked, seconds, ahead = self.world.agree(stop.asked, self.seconds, self.seconds + watch.step_seconds)
            self.finished = self.step > 0 and progress_of(config, self.step, ahead) >= 1
            if self.finished or asked:
                self._save()
                return
            progress = progress_of(config, self.step, seconds)
            logged = (self.step + 1) % config.log_every == 0 or self.step == 0
            with record_routing(self.model) if logged else nullcontext([]) as routing:
                metrics = self._one_step(progress)
            self.step += 1
            self.tokens += config.batch * config.length
            watch.step()
            if logged:
                self.last = self._metrics(progress, metrics, routing, watch)
                if log is not None:
                    log.write(self.last)
            ends = config.steps is not None and self.step >= config.steps
            if config.eval_every and self.step % config.eval_every == 0 and not ends and self.held_out is not None:
                found = self._evaluate()
                if log is not None:
                    log.write({"step": self.step, "tokens": self.tokens, **found})
                watch.pause()
            # By the clock that all processes agreed on when the step began.
            due = config.save_minutes is not None and seconds - saved >= 60 * config.save_minutes
            if (due or self.step % config.save_every == 0) and not ends:
                self._save()
                saved = seconds
                watch.pause()
            if self.on_step is not None:
                self.on_step(Progress(self.step, progress_of(config, self.step, self.seconds), self.last))

    def _one_step(self, progress: float) -> tuple[Tensor, Tensor, float]:
        """Sums of the losses over all tokens of the step (of this process), the gradient's norm, and the rate."""
        config, world = self.config, self.world
        self.model.train()
        self._set_target(progress)
        scales = Scales(
            1 / max(1, self.batches.labels(self.step)), 1 / (config.batch * config.length), self.weights.factor
        )
        sums = torch.zeros(4, device=world.device)
        for number, batch in enumerate(self.batches.step(self.step)):
            self._set_budgets(number)
            loss, found = self.objective(batch.to(world.device), scales)
            loss.backward()
            self.weights.collect()
            sums += found
        self.weights.reduce()
        norm = self.weights.clip(config.clip)
        rate = learning_rate(config, self.step, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("factor", 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.weights.publish()
        if self.layers:
            # Forget faster in the first steps: fresh gates score unlike what quantiles start from, and change fast.
            memory = min(self.layers[0].settings.memory, self.step / (self.step + 4))
            balance(self.model, self.asked, memory)
        return sums, norm, rate

    def _set_target(self, progress: float) -> None:
        if not self.layers:
            return
        settings, config = self.layers[0].settings, self.config
        target = target_k(config, progress, settings.num_experts, settings.target_k)
        self.targets = sequence_targets(config, self.step, target, max(1, settings.min_k), settings.max_k)
        self.asked = float(self.targets.mean()) if config.dial else target
        self.objective.target = self.asked

    def _set_budgets(self, number: int) -> None:
        """Of this process's micro-batch of the step."""
        if not self.layers:
            return
        budget: float | Tensor = self.asked
        if self.config.dial:
            mine = self.targets.reshape(-1, self.config.micro_batch)[self.world.rank :: self.world.size][number]
            budget = torch.from_numpy(mine).to(self.world.device).repeat_interleave(self.config.length)
        for layer in self.layers:
            layer.budget = budget

    def _metrics(
        self, progress: float, step: tuple[Tensor, Tensor, float], routing: list[LayerRouting], watch: Watch
    ) -> dict[str, Any]:
        config, (sums, norm, rate) = self.config, step
        sums = self.world.total(sums)
        for layer in routing:
            self.world.total(layer.load_E)
            self.world.total(layer.count_K)
        labels, tokens = self.batches.labels(self.step - 1), config.batch * config.length
        next_token, kl, error, budget = sums.tolist()
        found: dict[str, Any] = {"step": self.step, "progress": round(progress, 5), "tokens": self.tokens}
        found["next_token"] = next_token / max(1, labels)
        if config.loss.needs_teacher:
            found |= {"kl": kl / tokens, "layers": error / tokens}
        if config.loss.budget:
            found["budget"] = budget / tokens
        found |= {"lr": rate, "grad_norm": float(norm), "seconds": round(self.seconds, 2)}
        found["tokens_per_second"] = round(watch.rate(self.tokens), 1)
        if routing:
            found["target_k"] = self.objective.target
            found["mean_k"] = sum(layer.mean_k for layer in routing) / len(routing)
            found["layer_k"] = [round(layer.mean_k, 3) for layer in routing]
            found["max_violation"] = [round(layer.max_violation, 3) for layer in routing]
            found["dead_experts"] = sum(len(layer.dead) for layer in routing)
        if not math.isfinite(next_token):
            logger.warning("step %d: the loss is %s.", self.step, next_token)
        return found

    def _evaluate(self) -> dict[str, float]:
        assert self.held_out is not None
        for layer in self.layers:
            layer.budget = None
        return evaluate(self.objective, self.held_out, self.config, self.world)

    def _save(self) -> None:
        masters, optimizer = self.weights.state(self.optimizer)
        states = self._random_states()
        if self.world.main:
            state = dict(step=self.step, tokens=self.tokens, seconds=self.seconds, finished=self.finished)
            buffers = {name: value.cpu() for name, value in self.model.named_buffers()}
            state |= dict(limits=[self.config.steps, self.config.minutes])
            state |= dict(identity=json.dumps(self.identity), masters=masters, buffers=buffers, optimizer=optimizer)
            checkpoint.save(self.out / CHECKPOINTS, {**state, "random": states}, self.config.keep)
        self.world.wait()

    def _random_states(self) -> list[Any]:
        mine = [torch.get_rng_state()]
        if self.world.device.type == "cuda":
            mine.append(torch.cuda.get_rng_state(self.world.device))
        if self.world.size == 1:
            return [mine]
        states: list[Any] = [None] * self.world.size
        torch.distributed.all_gather_object(states, mine)
        return states

    def _resume(self) -> None:
        state = checkpoint.load_latest(self.out / CHECKPOINTS)
        if state is None:
            return
        if differing := _differences(json.loads(state["identity"]), self.identity):
            raise ConfigError(
                f"{self.out} holds another run: {differing}. Use the same settings to go on, or another folder."
            )
        self.step, self.tokens = state["step"], state["tokens"]
        # With other limits than before, they say whether there is more to do.
        self.finished = state["finished"] and state.get("limits") == [self.config.steps, self.config.minutes]
        self.seconds_before = state["seconds"]
        buffers = dict(self.model.named_buffers())
        for name, value in state["buffers"].items():
            buffers[name].copy_(value)
        self.weights.load(self.optimizer, state["masters"], state["optimizer"])
        if self.world.rank < len(state["random"]):
            mine = state["random"][self.world.rank]
            torch.set_rng_state(mine[0])
            if len(mine) > 1 and self.world.device.type == "cuda":
                torch.cuda.set_rng_state(mine[1], self.world.device)
        logger.info("going on from step %d in %s", self.step, self.out)

    def _trained(self) -> StilleForCausalLM:
        if not isinstance(self.weights, Sharded):
            return self.model.eval()
        # FSDP2 cannot be taken off a module again: its weights go into a fresh one.
        gathered = self.weights.whole()
        plain: Any = StilleForCausalLM(StilleConfig.from_dict(self.model.config.to_dict()))
        plain.to(self.weights.dtype)
        plain.load_state_dict({name.removeprefix("model."): value for name, value in gathered.items()}, strict=False)
        plain.tie_weights()
        for name, value in self.model.named_buffers():
            plain.get_buffer(name).copy_(value)
        return plain.eval()


def _weights(objective: Objective, config: TrainConfig, world: World) -> Replicated | Sharded:
    dtype = DTYPES[config.dtype]
    if config.rank:
        return LowRank(objective, dtype, world, config.rank, config.seed, GRIDS[config.quantize], config.compile)
    return (Sharded if config.parallel == "fsdp" and world.size > 1 else Replicated)(objective, dtype, world)


def _optimizer(masters: dict[str, Any], config: TrainConfig, device: torch.device) -> torch.optim.AdamW:
    groups: dict[tuple[bool, float], list[Any]] = {}
    for name, master in masters.items():
        factor = config.rate_whole if config.rank else 1.0
        if name.endswith((LOW_RANK_A, LOW_RANK_B)):
            factor = config.rate_b if name.endswith(LOW_RANK_B) else 1.0
        groups.setdefault((master.dim() > 1, factor), []).append(master)
    decay = {True: config.weight_decay, False: 0.0}
    return torch.optim.AdamW(
        [{"params": all_, "weight_decay": decay[kind], "factor": factor} for (kind, factor), all_ in groups.items()],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        fused=device.type == "cuda",
    )


def _architecture(model: StilleForCausalLM) -> dict[str, list[int]]:
    return {name: list(p.shape) for name, p in model.named_parameters()} | {"experts": model.config.experts or []}  # pyright: ignore[reportReturnType]


def _differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    found = [
        f"{name} was {before['config'].get(name)!r}, now {now['config'].get(name)!r}"
        for name in sorted(before["config"] | now["config"])
        if before["config"].get(name) != now["config"].get(name)
    ]
    parts = {"data": "its data differs", "model": "its model differs", "frozen": "the weights it started from differ"}
    found += [told for part, told in parts.items() if before.get(part) != now.get(part)]
    return "; ".join(found)
