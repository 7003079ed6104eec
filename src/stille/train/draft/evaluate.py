"""What a head is worth on text that it has not learned from: tokens of a round, by domain and temperature.

A document is walked as the engine would decode it: from a position the head drafts, as many guesses count as are
accepted in a row, and the next round begins behind the target's own token that follows. At temperature 0 a guess is
accepted if it is the target's token. At temperature 1 the text's token t was drawn from p, and the guess is that token
and accepted with probability min(1, q(t) / p(t)): given t ~ p, that is what speculative sampling (2211.17192) does. So
guesses along the text are all that is needed, and what follows is exact in distribution.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stille.model.decoder import StilleForCausalLM
from stille.model.draft import DraftHead
from stille.train.draft.data import DraftText, by_length, make_batch
from stille.train.draft.unroll import autocast, look_up, unroll
from stille.train.losses import LOGITS_AT_ONCE

KINDS = {"greedy": 1, "sampled": 0}


@torch.no_grad()
def evaluate(
    model: StilleForCausalLM,
    head: DraftHead,
    text: DraftText,
    *,
    steps: int,
    tokens: int = 50_000,
    batch_tokens: int = 32_768,
    dtype: str = "fp32",
) -> dict[str, dict[str, dict[str, Any]]]:
    """Judge a head on the answers of held-out documents.

    Args:
        model, head: the target and its head.
        text: all of it; what is held out is taken.
        steps: guesses of a draft.
        tokens: most of a domain at each temperature.
        batch_tokens: at once.
        dtype: of the arithmetic.

    Returns:
        Of each domain and of "all", of "greedy" and "sampled": tau (tokens of a round, the target's own included),
        accepted (a list: share of step i's guesses that are accepted where all before were), rounds, documents.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    device = model.lm_head.weight.device
    column_V = torch.full((head.config.vocab_size,), -1, device=device)
    column_V[head.draft_tokens_D] = torch.arange(head.config.draft_vocab, device=device)
    totals: dict[str, list[_Count]] = {kind: [] for kind in KINDS}
    for number, domain in enumerate(text.domains):
        for kind, greedy in KINDS.items():
            chosen = np.flatnonzero((text.held_out == 1) & (text.domain == number) & (text.greedy == greedy))
            chosen = chosen[np.cumsum(text.length[chosen]) <= max(tokens, 1)]
            part = text.select(chosen)
            part = text.select(chosen[part.prompt - 1 + 2 < part.length])
            part.start[:] = part.prompt - 1  # of continuations too: only what the target wrote
            if not len(part.length):
                continue
            count = _Count(steps)
            for documents in by_length(part, np.arange(len(part.length)), batch_tokens):
                batch = make_batch(part, documents, steps).to(device)
                accepted_MS = _accepted(model, head, batch, steps, column_V, bool(greedy), dtype)
                count.add(accepted_MS.cpu().numpy(), batch.steps_M.cpu().numpy(), batch.document_M.cpu().numpy())
            totals[kind].append(count)
            found.setdefault(domain, {})[kind] = count.result()
    found["all"] = {kind: _sum(counts, steps).result() for kind, counts in totals.items() if counts}
    return found


def _accepted(
    model: StilleForCausalLM, head: DraftHead, batch: Any, steps: int, column_V: Tensor, greedy: bool, dtype: str
) -> Tensor:
    """bool [M, steps]: whether step i's guess is accepted, given that all before were."""
    features, p_RD = look_up(model, head, batch)
    assert head.head_DC is not None
    found = []
    dice = torch.Generator().manual_seed(int(batch.row_M.sum()) % 2**31)
    chunk = max(16, LOGITS_AT_ONCE // head.config.draft_vocab)
    with autocast(column_V.device, dtype):
        states = list(unroll(head, features, batch, steps))
    for step in states:
        column_M, hit = column_V[step.next_M], []
        chance_M = torch.rand(len(column_M), generator=dice).to(column_M.device)
        for begin in range(0, len(column_M), chunk):
            part = slice(begin, begin + chunk)
            logits = F.linear(step.h_MC[part].to(head.head_DC.dtype), head.head_DC).float()
            column = column_M[part]
            if greedy:
                hit.append(logits.argmax(-1) == column)
                continue
            at = column.clamp(min=0)[:, None]
            q = logits.log_softmax(-1).gather(1, at)[:, 0].exp()
            p = p_RD[step.row_M[part]].gather(1, at)[:, 0].float()
            hit.append((chance_M[part] * p < q) & (column >= 0))
        found.append(torch.cat(hit) & step.open_M)
    return torch.stack(found, 1)


class _Count:
    def __init__(self, steps: int):
        self.steps, self.rounds, self.tokens, self.documents = steps, 0, 0, 0
        self.tried, self.taken = np.zeros(steps, np.int64), np.zeros(steps, np.int64)

    def add(self, accepted_MS: np.ndarray, steps_M: np.ndarray, document_M: np.ndarray) -> None:
        """Positions in order, all those of a document."""
        row_MS = np.cumprod(accepted_MS, 1)
        reached_MS = np.concatenate([np.ones_like(row_MS[:, :1]), row_MS[:, :-1]], 1)
        reached_MS *= steps_M[:, None] > np.arange(self.steps)
        self.tried += reached_MS.sum(0)
        self.taken += (row_MS * reached_MS).sum(0)
        taken_M = row_MS.sum(1)
        for document in np.unique(document_M):
            places = np.flatnonzero(document_M == document)
            taken, full = taken_M[places], steps_M[places] >= self.steps
            self.documents, at = self.documents + 1, 0
            while at < len(taken) and full[at]:  # a round that the document's end cuts says little
                self.rounds, self.tokens, at = self.rounds + 1, self.tokens + taken[at] + 1, at + int(taken[at]) + 1

    def result(self) -> dict[str, Any]:
        shares = [round(float(a / b), 4) if b else 0.0 for a, b in zip(self.taken, self.tried, strict=True)]
        tau = round(float(self.tokens / self.rounds), 4) if self.rounds else 0.0
        return {"tau": tau, "accepted": shares, "rounds": int(self.rounds), "documents": self.documents}


def _sum(counts: list[_Count], steps: int) -> _Count:
    whole = _Count(steps)
    for each in counts:
        for name in ("rounds", "tokens", "documents", "tried", "taken"):
            setattr(whole, name, getattr(whole, name) + getattr(each, name))
    return whole
