"""The training loop on conversations: that of pretraining, with labels where the assistant speaks alone."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stille.errors import ConfigError
from stille.model.decoder import StilleForCausalLM
from stille.model.experts import expert_layers
from stille.train import loop
from stille.train.config import TrainConfig
from stille.train.data import IGNORED, Batch
from stille.train.losses import LOGITS_AT_ONCE, Objective, Scales, head_loss, run_model
from stille.train.sft.data import AnswerBatches, Rows, learned_batch, turns
from stille.train.weights import World

ROWS_AT_ONCE = 4096
"""Compiled losses see label counts that are multiples of this, so few shapes are compiled."""


def fine_tune(
    model: StilleForCausalLM,
    store: Rows,
    config: TrainConfig,
    out: Path,
    *,
    world: World | None = None,
    held_out: Rows | None = None,
    tensorboard: bool = False,
    on_step: Callable[[loop.Progress], None] | None = None,
) -> loop.Result:
    """`stille.train.train` on conversations; its arguments and errors. The result's evaluation is that of `judge`.

    Raises:
        ConfigError: also where rows and settings differ in their length, or a loss other than the next token's is
            asked for, or weights split over processes.
    """
    if config.length != store.length:
        raise ConfigError(f"length={config.length}, but rows have {store.length} tokens.")
    if config.loss.needs_teacher or config.loss.budget or config.parallel != "replicate":
        raise ConfigError("fine-tuning has one loss, that of the next token, and every process the whole model.")
    run = _Run(
        model, store, config, out, world or World(0, 1, torch.device("cpu")), None, held_out, on_step
    )  # fmt: skip
    return run.run(tensorboard)


class _Run(loop._Run):
    def __init__(self, model: StilleForCausalLM, store: Rows, config: TrainConfig, out: Path, world: World, *rest):
        super().__init__(model, store, config, out, world, *rest)
        layout = dict(length=config.length, batch=config.batch, micro_batch=config.micro_batch, seed=config.seed)
        self.batches = AnswerBatches(store, **layout, rank=world.rank, ranks=world.size)
        self.objective = AnswerObjective(model, config.loss, compiled=config.compile)

    def _evaluate(self) -> dict[str, float]:
        assert isinstance(self.held_out, Rows)
        for layer in self.layers:
            layer.budget = None
        return judge(self.model, self.held_out, self.config, self.world)


class AnswerObjective(Objective):
    """An `Objective` that computes logits for labelled tokens alone: prompts are most of what is read."""

    def forward(self, batch: Batch, scales: Scales) -> tuple[Tensor, Tensor]:
        hidden_NC, _ = run_model(self.model, batch)
        label_N = batch.label_BT.flatten()
        row_R = (label_N != IGNORED).nonzero()[:, 0]
        label_R, hidden_RC = label_N[row_R], hidden_NC[row_R]
        if self.compiled and (extra := -len(row_R) % ROWS_AT_ONCE):
            label_R, hidden_RC = F.pad(label_R, (0, extra), value=IGNORED), F.pad(hidden_RC, (0, 0, 0, extra))
        loss, sums = head_loss(
            hidden_RC, self.model.lm_head.weight, label_R, next_token=scales.label * scales.factor,
            compiled=self.compiled,
        )  # fmt: skip
        zero = torch.zeros((), device=hidden_NC.device)
        return loss, torch.stack([sums.next_token, zero, zero, zero])


@torch.no_grad()
def judge(model: StilleForCausalLM, store: Rows, config: TrainConfig, world: World) -> dict[str, float]:
    """Answers of held-out conversations, each given what came before it.

    Args:
        model: what is judged.
        store: the conversations; rows spread evenly over it are taken.
        config: for the number of rows, and of those computed at once.
        world: every process takes a part of them and gets the result of all.

    Returns:
        "held_out": mean cross-entropy of a learned token; "held_out_tokens": share of them that are the most probable
        ones; "held_out_calls" and "held_out_texts": share of the answers with and without calls of which all are, so
        that greedy decoding writes the very same.
    """
    model.eval()
    count = min(config.eval_sequences, store.rows)
    numbers = np.unique(np.linspace(0, store.rows - 1, count).astype(np.int64)) if count else np.zeros(0, np.int64)
    sums = torch.zeros(7, dtype=torch.float64)  # loss, labels, right; answers with calls, right; without, right
    for layer in expert_layers(model):
        layer.budget = None
    for number, at in enumerate(range(0, len(numbers), config.micro_batch)):
        if number % world.size == world.rank:
            sums += _judge(model, store, numbers[at : at + config.micro_batch], config.length, world)
    found = world.total(sums.float().to(world.device)).tolist()
    shares = {"held_out": found[0] / max(1.0, found[1]), "held_out_tokens": found[2] / max(1.0, found[1])}
    for name, all_, right in (("held_out_calls", 3, 4), ("held_out_texts", 5, 6)):
        if found[all_]:
            shares[name] = found[right] / found[all_]
    return shares


def _judge(model: StilleForCausalLM, store: Rows, numbers: np.ndarray, length: int, world: World) -> Tensor:
    batch = learned_batch(store, numbers, length)
    turn_BT, calls = turns(store, numbers, length)
    turn_R = torch.from_numpy(turn_BT[batch.label_BT.numpy() != IGNORED])
    batch = batch.to(world.device)
    hidden_NC, _ = run_model(model, batch)
    label_N = batch.label_BT.flatten()
    row_R = (label_N != IGNORED).nonzero()[:, 0]
    loss, right = 0.0, []
    for part_R in row_R.split(max(16, LOGITS_AT_ONCE // model.config.vocab_size)):
        logits = model.compute_logits(hidden_NC[part_R]).float()
        loss += float(F.cross_entropy(logits, label_N[part_R], reduction="sum"))
        right.append((logits.argmax(-1) == label_N[part_R]).cpu())
    right_R = torch.cat(right) if right else torch.zeros(0, dtype=torch.bool)
    wrong = torch.zeros(len(calls) + 1).index_add_(0, turn_R, (~right_R).float())[1:]
    with_calls, fine = torch.from_numpy(calls), wrong == 0
    return torch.tensor(
        [
            loss, len(right_R), int(right_R.sum()), int(with_calls.sum()), int((with_calls & fine).sum()),
            int((~with_calls).sum()), int((~with_calls & fine).sum()),
        ],
        dtype=torch.float64,
    )  # fmt: skip
