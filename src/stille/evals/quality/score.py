"""Log-likelihoods of continuations, many at a time, by one forward pass over each context with its continuation.

Tokens of a continuation are those that the whole text has beyond its context's, blanks at the end of a context counted
to the continuation, as in lm-evaluation-harness. Padding stands on the right, where causal attention does not see it.

Letters: B sequences, T tokens, N rows whose logits are wanted, C hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from stille.model import StilleForCausalLM

ROWS = 1024
"""Logits in float32 at a time."""


class Request(NamedTuple):
    """Token ids of a context, never empty, and of what follows it."""

    context: list[int]
    continuation: list[int]


class Likelihood(NamedTuple):
    """Natural logarithm of a continuation's probability, and whether each of its tokens is the likeliest."""

    log_probability: float
    greedy: bool


def encode(tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> list[Request]:
    """Token ids of contexts and continuations, without special tokens, but for a beginning where the context is empty.

    Args:
        tokenizer: of transformers.
        pairs: texts; continuations are not empty.
    """
    if not pairs:
        return []
    moved = []
    for context, continuation in pairs:
        kept = context.rstrip()
        moved.append((kept, context[len(kept) :] + continuation))
    wholes = _ids(tokenizer, [context + continuation for context, continuation in moved])
    contexts = _ids(tokenizer, [context for context, _ in moved])
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    requests = []
    for whole, context in zip(wholes, contexts, strict=True):
        requests.append(Request(whole[: len(context)] or [begin or 0], whole[len(context) :]))
    return requests


def _ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    distinct = list(dict.fromkeys(texts))  # the choices of a question share its context
    found = dict(zip(distinct, tokenizer(distinct, add_special_tokens=False).input_ids, strict=True))
    return [found[text] for text in texts]


def batch_tokens(device: torch.device) -> int:
    """Tokens of a forward pass, padding included, that suit a device."""
    return 32_768 if device.type == "cuda" else 2_048


def float_logits(model: StilleForCausalLM, hidden_NC: Tensor) -> Tensor:
    """Logits [N, V] in float32, whatever the dtype of the model.

    In bf16 logits near 16 lie 0.125 apart, which would blur near ties and add about 0.001 to a KL divergence.
    """
    return F.linear(hidden_NC.float(), model.lm_head.weight.float())


def hidden_states(model: StilleForCausalLM, ids_BT: Tensor) -> Tensor:
    """[B, T, C] after the final norm; attention as the model has it, without a cache."""
    return model.model(input_ids=ids_BT, use_cache=False).last_hidden_state


@torch.inference_mode()
def likelihoods(model: StilleForCausalLM, requests: Sequence[Request], tokens: int | None = None) -> list[Likelihood]:
    """Log-likelihood of each continuation.

    What is longer than the model's context loses its beginning. Requests that differ only in the last token are
    answered by one sequence.

    Args:
        model: in evaluation mode.
        tokens: of a forward pass, padding included; None: what suits the device.

    Returns:
        In order of the requests; of an empty continuation 0, greedy.
    """
    most = model.config.max_position_embeddings
    inputs: dict[tuple[int, ...], list[int]] = {}
    for place, (context, continuation) in enumerate(requests):
        if continuation:
            inputs.setdefault(tuple((context + continuation)[-(most + 1) : -1]), []).append(place)
    found = [Likelihood(0.0, True)] * len(requests)
    for batch in _batches(sorted(inputs, key=len, reverse=True), tokens or batch_tokens(model.device)):
        asked = [(row, place) for row, ids in enumerate(batch) for place in inputs[ids]]
        results = _batch(model, batch, [(row, requests[place].continuation) for row, place in asked])
        for (_, place), result in zip(asked, results, strict=True):
            found[place] = result
    return found


def _batches(ordered: list[tuple[int, ...]], tokens: int) -> Iterator[list[tuple[int, ...]]]:
    """Neighbours in order of length; the first is the longest."""
    start = 0
    while start < len(ordered):
        count = max(1, tokens // len(ordered[start]))
        yield ordered[start : start + count]
        start += count


def _batch(model: Any, batch: list[tuple[int, ...]], asked: list[tuple[int, list[int]]]) -> list[Likelihood]:
    longest = len(batch[0])
    ids_BT = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in batch], device=model.device)
    hidden = hidden_states(model, ids_BT).flatten(0, 1)
    places, targets, counts = [], [], []
    for row, continuation in asked:
        end = row * longest + len(batch[row])
        scored = continuation[-len(batch[row]) :]  # a context that was cut away entirely leaves fewer
        places += range(end - len(scored), end)
        targets += scored
        counts.append(len(scored))
    at, target_N = (torch.tensor(values, device=model.device) for values in (places, targets))
    log_p, best = [], []
    for rows, wanted in zip(at.split(ROWS), target_N.split(ROWS), strict=True):
        log_NV = F.log_softmax(float_logits(model, hidden[rows]), -1)
        log_p.append(log_NV.gather(1, wanted[:, None])[:, 0])
        best.append(log_NV.argmax(-1) == wanted)
    pairs = zip(torch.cat(log_p).double().cpu().split(counts), torch.cat(best).cpu().split(counts), strict=True)
    return [Likelihood(float(p.sum()), bool(b.all())) for p, b in pairs]
