"""Text: perplexity, and how far a model's predictions are from those of its base."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stille.errors import ConfigError
from stille.evals.quality.score import ROWS, batch_tokens, float_logits, hidden_states

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stille.model import StilleForCausalLM

CHARACTERS = 16  # of a text that are tokenized at most for a token that is wanted


@dataclass(frozen=True, slots=True)
class Window:
    """A piece of a text.

    Attributes:
        task: "text:" and the file's name.
        index: number of the piece.
        ids: its tokens; all but the first are predicted.
    """

    task: str
    index: int
    ids: tuple[int, ...]

    def identity(self) -> list[Any]:
        """What an answer that was kept belongs to."""
        return [self.task, self.index, hashlib.sha256(repr(self.ids).encode()).hexdigest()]


class WindowScore(NamedTuple):
    """Sums over the predicted tokens of a window.

    Attributes:
        tokens: their number.
        loss: of -log p(token).
        kl: of KL(base || model), in nats; None without a base.
    """

    tokens: int
    loss: float
    kl: float | None


def load_windows(tokenizer: Any, file: Path, tokens: int, length: int) -> list[Window]:
    """The beginning of a text, cut into pieces of equal length.

    Args:
        tokens: at most so many.
        length: tokens of a piece.

    Raises:
        ConfigError: the file cannot be read, or is shorter than one piece.
    """
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ConfigError(f"the text {file} cannot be read: {error}") from error
    ids = tokenizer(text[: CHARACTERS * tokens], add_special_tokens=False).input_ids[:tokens]
    if length < 2 or len(ids) < length:
        raise ConfigError(f"{file} has {len(ids):,} tokens, expected at least one piece of {length} (2 or more).")
    pieces = [tuple(ids[at : at + length]) for at in range(0, len(ids) - length + 1, length)]
    return [Window(f"text:{file.name}", number, piece) for number, piece in enumerate(pieces)]


@torch.inference_mode()
def score_windows(
    model: StilleForCausalLM,
    windows: Sequence[Window],
    base: StilleForCausalLM | None = None,
    tokens: int | None = None,
) -> list[WindowScore]:
    """Losses of a model on pieces of equal length, and its divergence from a base with the same vocabulary.

    Args:
        tokens: of a forward pass; None: what suits the device.
    """
    ids_SW = torch.tensor([window.ids for window in windows], device=model.device)
    scores = []
    count = max(1, (tokens or batch_tokens(model.device)) // ids_SW.shape[1])
    for ids in ids_SW.split(count):
        target_N = ids[:, 1:].flatten()
        hidden = hidden_states(model, ids)[:, :-1].flatten(0, 1)
        theirs = None if base is None else hidden_states(base, ids)[:, :-1].flatten(0, 1)
        parts = []
        for at in range(0, len(target_N), ROWS):
            rows = slice(at, at + ROWS)
            log_q = F.log_softmax(float_logits(model, hidden[rows]), -1)
            loss_N = -log_q.gather(1, target_N[rows, None])[:, 0]
            if base is None or theirs is None:
                parts.append(torch.stack([loss_N, torch.zeros_like(loss_N)]))
            else:
                log_p = F.log_softmax(float_logits(base, theirs[rows]), -1)
                parts.append(torch.stack([loss_N, divergence(log_p, log_q)]))
        sums = torch.cat(parts, 1).double().view(2, len(ids), -1).sum(-1).tolist()
        scores += [
            WindowScore(ids.shape[1] - 1, loss, None if base is None else kl) for loss, kl in zip(*sums, strict=True)
        ]
    return scores


def divergence(log_p_NV: Tensor, log_q_NV: Tensor) -> Tensor:
    """KL(p || q) of each row [N], in nats."""
    return (log_p_NV.exp() * (log_p_NV - log_q_NV)).sum(-1)


def check_vocabularies(model: StilleForCausalLM, base: StilleForCausalLM) -> None:
    """Whether the two can be held against each other token by token.

    Raises:
        ConfigError: they have different vocabularies.
    """
    sizes = model.config.vocab_size, base.config.vocab_size
    if sizes[0] != sizes[1]:
        raise ConfigError(f"vocabularies of {sizes[0]:,} and {sizes[1]:,} tokens: there is no KL divergence of these.")
