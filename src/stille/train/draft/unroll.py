"""Draft steps along text that the target has written: from each position with the true tokens.

Shapes: M positions, R rows of the target's distributions, F features, C hidden size, D draft vocabulary.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stille.model.decoder import StilleForCausalLM
from stille.model.draft import DraftHead
from stille.train.draft.data import DraftBatch
from stille.train.draft.target import probabilities, run_target


@dataclass(frozen=True)
class Step:
    """A draft step of all positions.

    Attributes:
        number: counted from 0.
        h_MC: states after the head's norm.
        row_M: int64, rows of the target's distributions of the token that is guessed.
        next_M: int64, that token in the text.
        open_M: bool, whether the document goes on that far.
    """

    number: int
    h_MC: Tensor
    row_M: Tensor
    next_M: Tensor
    open_M: Tensor


def autocast(device: torch.device, dtype: str) -> Any:
    """bf16 products on float32 weights, or nothing."""
    return torch.autocast(device.type, torch.bfloat16) if dtype == "bf16" else nullcontext()


def look_up(model: StilleForCausalLM, head: DraftHead, batch: DraftBatch) -> tuple[Tensor, Tensor]:
    """Features of the positions [M, F], and the target's probabilities [R, D], both without gradient."""
    assert head.head_DC is not None, "attach first"
    states, last_BTC = run_target(model, batch.ids_BT, head.config.feature_layers)
    features = head.features([state.flatten(0, 1)[batch.row_M] for state in states])
    return features, probabilities(model, last_BTC.flatten(0, 1)[batch.want_R], head.head_DC)


def unroll(head: DraftHead, features_MF: Tensor, batch: DraftBatch, steps: int) -> Iterator[Step]:
    """The steps, one after the other, each with the tokens that follow in the text."""
    next_P, last = batch.next_BT.flatten(), batch.next_BT.numel() - 1
    x = head.begin(features_MF)
    for number in range(steps):
        x = head.step(x, next_P[(batch.row_M + number).clamp(max=last)])
        place_M = (batch.row_M + number + 1).clamp(max=last)
        yield Step(number, head.norm(x), batch.found_P[place_M], next_P[place_M], batch.steps_M > number)
