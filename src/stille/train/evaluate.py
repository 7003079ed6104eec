"""Losses over held-out text."""

import torch

from stille.model.experts import expert_budget, record_routing
from stille.train.config import TrainConfig
from stille.train.data import TokenStore, in_order
from stille.train.losses import Objective, Scales
from stille.train.weights import World


@torch.no_grad()
def evaluate(
    objective: Objective, store: TokenStore, config: TrainConfig, world: World, budget: float | None = None
) -> dict[str, float]:
    """Losses over held-out text; every process takes a part of the sequences and gets the result of all.

    Args:
        objective: model, teacher and weights.
        store: the text.
        config: for the length, the size of a micro-batch and the number of sequences.
        world: processes and device.
        budget: mean number of experts; None: the model's own.

    Returns:
        "held_out": mean cross-entropy of the next token; "held_out_kl" with a teacher; "held_out_k", the mean number
        of experts of a token, in a model that has them.
    """
    objective.eval()
    sums, labels, tokens = torch.zeros(4, device=world.device), 0, 0
    batches = in_order(store, config.length, config.micro_batch, config.eval_sequences)
    with expert_budget(objective.model, budget), record_routing(objective.model) as routing:
        for number, batch in enumerate(batches):
            if config.parallel == "replicate" and number % world.size != world.rank:
                continue
            _, found = objective(batch.to(world.device), Scales(0.0, 0.0))
            sums += found
            labels += int((batch.label_BT >= 0).sum())
            tokens += batch.ids_BT.numel()
    counts = torch.tensor([labels, tokens], dtype=torch.float64, device=world.device)
    world.total(counts)
    world.total(sums)
    for layer in routing:
        world.total(layer.load_E)
        world.total(layer.count_K)
    labels, tokens = max(1.0, counts[0].item()), max(1.0, counts[1].item())
    found = {"held_out": float(sums[0]) / labels}
    if objective.teacher is not None:
        found["held_out_kl"] = float(sums[1]) / tokens
    if routing:
        found["held_out_k"] = sum(layer.mean_k for layer in routing) / len(routing)
    return found
