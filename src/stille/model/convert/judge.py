"""How far a converted model is from its dense one, on text that the conversion did not see."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stille.model.decoder import StilleForCausalLM
from stille.model.experts import expert_budget, record_routing

ROWS = 256  # logits in float32 at a time


@dataclass
class Judgement:
    """One budget.

    Attributes:
        budget: the mean number of experts that was asked for.
        kl: mean over tokens of KL(dense || converted), in nats.
        perplexity, dense_perplexity: of the same tokens.
        mean_k: measured, over all layers.
        layers: of each: `mean_k`, `max_violation`, `dead`, `load` (share of the tokens that ran each expert) and
            `histogram` (share of the tokens that ran 0, 1, .., E experts).
    """

    budget: float
    kl: float
    perplexity: float
    dense_perplexity: float
    mean_k: float
    layers: list[dict[str, Any]] = field(default_factory=list)

    @property
    def perplexity_ratio(self) -> float:
        return self.perplexity / self.dense_perplexity

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "perplexity_ratio": self.perplexity_ratio}


@torch.inference_mode()
def judge(
    dense: StilleForCausalLM,
    converted: StilleForCausalLM,
    ids_ST: Tensor,
    budgets: Sequence[float],
    advance: Callable[[int], None] = lambda count: None,
) -> list[Judgement]:
    """Compare at several budgets.

    Args:
        ids_ST: int64 [S, T]; one sequence is run at a time.
        budgets: mean numbers of experts.
        advance: told 1 after each sequence and budget.
    """
    kl, loss, base_loss = [0.0] * len(budgets), [0.0] * len(budgets), 0.0
    logs: list[list[Any] | None] = [None] * len(budgets)
    for ids in ids_ST.to(dense.device).split(1):
        target = ids[0, 1:]
        base = dense(input_ids=ids, use_cache=False).logits[0, :-1]
        base_loss += _loss(base, target)
        for at, budget in enumerate(budgets):
            with expert_budget(converted, budget), record_routing(converted) as log:
                logits = converted(input_ids=ids, use_cache=False).logits[0, :-1]
            kl[at] += _divergence(base, logits)
            loss[at] += _loss(logits, target)
            known = logs[at]
            if known is None:
                logs[at] = log
            else:
                for mine, more in zip(known, log, strict=True):
                    mine.load_E += more.load_E
                    mine.count_K += more.count_K
            advance(1)
    count = ids_ST.shape[0] * (ids_ST.shape[1] - 1)
    judgements = []
    for at, budget in enumerate(budgets):
        layers = [_describe(log) for log in logs[at] or []]
        mean = sum(layer["mean_k"] for layer in layers) / max(1, len(layers))
        judgements.append(
            Judgement(budget, kl[at] / count, math.exp(loss[at] / count), math.exp(base_loss / count), mean, layers)
        )
    return judgements


def _loss(logits: Tensor, target: Tensor) -> float:
    pairs = zip(logits.split(ROWS), target.split(ROWS), strict=True)
    return sum(float(F.cross_entropy(rows.float(), ids, reduction="sum")) for rows, ids in pairs)


def _divergence(dense: Tensor, other: Tensor) -> float:
    total = 0.0
    for p, q in zip(dense.split(ROWS), other.split(ROWS), strict=True):
        log_p, log_q = F.log_softmax(p.float(), -1), F.log_softmax(q.float(), -1)
        total += float(F.kl_div(log_q, log_p, reduction="sum", log_target=True))
    return total


def _describe(log: Any) -> dict[str, Any]:
    tokens = max(1, log.tokens)
    return {
        "layer": log.layer,
        "mean_k": log.mean_k,
        "max_violation": log.max_violation,
        "dead": log.dead,
        "load": (log.load_E.double() / tokens).tolist(),
        "histogram": (log.count_K.double() / tokens).tolist(),
    }
