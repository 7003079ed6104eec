"""Guesses by a draft head: run on the device right after the step that it guesses on from.

Shapes: R rows of a decode step, B sequences, C hidden size, D draft vocabulary, V vocabulary, T draft steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from stille.engine.sampling_state import to_device

if TYPE_CHECKING:
    from stille.model.draft import DraftHead


class Drafter(Protocol):
    """A draft head over the states that a step has left.

    Attributes:
        steps: T, guesses for each sequence.
        most: sequences at once.
    """

    steps: int
    most: int

    def draft(self, sampled_R: Tensor, ids_R: Tensor, first: np.ndarray, count: np.ndarray) -> tuple[Tensor, Tensor]:
        """Guesses how each sequence goes on after the last decode step, in which every row was sampled.

        Args:
            sampled_R, ids_R: int64 on the device, what each row gave and what it was computed for.
            first, count: int32 [B], first row of each sequence, and how many guesses the rows after it are for.

        Returns:
            tokens int64 [B, T] that follow the last token of each sequence, and the head's probabilities, float32.
        """
        ...


class States:
    """Hidden states of a decode step, kept for a draft head: one [rows, C] after each layer that it reads.

    Args:
        head: says which layers.
        rows: most rows of a decode step.
        like: a tensor of the dtype and device.
    """

    def __init__(self, head: DraftHead, rows: int, like: Tensor):
        self.layers = head.config.feature_layers
        self.parts = [like.new_zeros(rows, head.config.hidden_size) for _ in self.layers]

    def watch(self, layers: Any) -> None:
        """Keeps what modules put out; steps of more rows (prompts) are passed over."""

        def keep(part: Tensor) -> Any:
            def hook(module: Any, inputs: Any, output: Tensor) -> None:
                if output.shape[0] <= part.shape[0]:
                    part[: output.shape[0]].copy_(output)

            return hook

        for layer, part in zip(self.layers, self.parts, strict=True):
            layers[layer].register_forward_hook(keep(part))


class TorchDrafter:
    """See `Drafter`; plain torch.

    Args:
        head: attached to the target.
        states: of the executor.
        steps: T; None: as many as the head was trained for.
    """

    def __init__(self, head: DraftHead, states: States, steps: int | None = None):
        self.head, self.states = head, states
        self.steps = steps or head.config.steps
        self.most = states.parts[0].shape[0]

    @torch.inference_mode()
    def draft(self, sampled_R: Tensor, ids_R: Tensor, first: np.ndarray, count: np.ndarray) -> tuple[Tensor, Tensor]:
        right = torch.cat((sampled_R[:-1] == ids_R[1:], sampled_R.new_zeros(1, dtype=torch.bool))).long()
        place = to_device(first.astype(np.int64), ids_R.device)[:, None] + torch.arange(
            max(1, int(count.max())), device=ids_R.device
        )
        guessed = torch.arange(place.shape[1], device=ids_R.device) < to_device(count, ids_R.device)[:, None]
        right_BT = right[place.clamp(max=len(right) - 1)] * guessed
        row_B = place[:, 0] + right_BT.cumprod(dim=1).sum(dim=1)
        token_B = sampled_R[row_B]
        x_BC = self.head.begin(self.head.features([part[row_B] for part in self.states.parts]))
        tokens, chances = [], []
        for _ in range(self.steps):
            x_BC, logits_BD = self.head.advance(x_BC, token_B)
            chance_B, best_B = logits_BD.float().softmax(dim=-1).max(dim=-1)
            token_B = self.head.draft_tokens_D[best_B]
            tokens.append(token_B)
            chances.append(chance_B)
        return torch.stack(tokens, dim=1), torch.stack(chances, dim=1)
