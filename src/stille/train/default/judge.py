"""Stage "judge": how far the distilled model is from the dense one, on text that nothing before has seen.

Letters: B sequences, T tokens of one, N = B * T, L layers, E experts, C hidden size, V vocabulary.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stille.errors import ConfigError
from stille.model.convert.text import read_documents
from stille.model.decoder import StilleForCausalLM
from stille.model.experts import expert_budget, expert_layers, record_routing
from stille.model.load import load_model
from stille.model.routing import Routing
from stille.train.config import GRIDS
from stille.train.default import plots
from stille.train.default.making import MODEL
from stille.train.default.samples import HELD_OUT, LIBRARY_HELD_OUT, base_digest, base_of
from stille.train.default.settings import DefaultSettings
from stille.train.default.stages import Context, Progress, files_digest, write_json
from stille.train.low_rank import round_weights
from stille.train.weights import DTYPES

JUDGEMENT = "judge.json"
BATCH = 4096  # tokens; the balance of each batch counts
ROWS = 1 << 25  # logits in float32 at a time
DECILES = 10


def inputs(settings: DefaultSettings) -> dict[str, Any]:
    """What the stage reads."""
    values = {
        name: getattr(settings, name) for name in ("judge_tokens", "budgets", "length", "dtype", "seed", "quantize")
    }
    files = dict(zip((name for name, _ in settings.judge), files_digest(f for _, f in settings.judge), strict=True))
    return {"base": base_digest(settings), "files": files, **values}


def run(context: Context) -> dict[str, Any]:
    """`JUDGEMENT` and plots."""
    settings, samples = context.settings, context.done["samples"]
    dtype, shown = DTYPES[settings.dtype or "fp32"], not context.quiet
    dense = load_model(base_of(settings), dtype=dtype, device=context.device, progress=shown)
    models = {"": _trained(context, dtype)}
    if bits := GRIDS[settings.quantize]:
        models[f", {settings.quantize}"] = _trained(context, dtype, bits)
    sources = {"samples": samples / HELD_OUT, "library": samples / LIBRARY_HELD_OUT}
    sources |= {name: Path(file) for name, file in settings.judge}
    budgets = settings.conversion().judged_budgets(expert_layers(models[""])[0].settings)
    found: dict[str, Any] = {}
    for at, (name, file) in enumerate(sources.items()):
        ids = sequences(
            dense.tokenizer, read_documents([file]), int(settings.judge_tokens or 0), settings.length, settings.seed
        )
        if not len(ids):
            raise ConfigError(f"{file} has less than one sequence of {settings.length} tokens to judge {name} on.")

        for part, (grid, model) in enumerate(models.items()):

            def report(share: float, done: float = at + part / len(models), name: str = name + grid) -> None:
                context.report(Progress("judge", done + share / len(models), len(sources), name))

            found[name + grid] = judge(dense.model, model, ids, budgets, report)
    target = models[""].config.experts["target_k"]  # pyright: ignore[reportOptionalSubscript]
    judgement = {"target_k": target, "gate": settings.gate, "dtype": settings.dtype, "domains": found}
    for name, content in plots.draw(judgement).items():
        (context.folder / name).write_bytes(content)
    write_json(context.folder / JUDGEMENT, judgement)
    return {"kl": {name: at_target(each, target)["kl"] for name, each in found.items()}}


def _trained(context: Context, dtype: torch.dtype, bits: int = 0) -> StilleForCausalLM:
    """What distillation made, on the grid that it learned for if bits are given."""
    shown = not context.quiet
    model: Any = load_model(context.done["distill"] / MODEL, device=context.device, progress=shown).model
    if bits:
        round_weights(model, bits)
    return model.to(dtype)


def at_target(domain: dict[str, Any], target: float) -> dict[str, Any]:
    """A domain's figures at the configured mean number of experts."""
    return next(each for each in domain["budgets"] if each["budget"] == target)


def sequences(tokenizer: Any, documents: Sequence[str], count: int, length: int, seed: int) -> Tensor:
    """int64 [S, length]: up to `count` tokens of the documents, pieces of them in random order."""
    pieces = [text[at : at + 4 * length] for text in documents for at in range(0, len(text), 4 * length)]
    random.Random(seed).shuffle(pieces)
    ids: list[int] = []
    for piece in pieces:
        if len(ids) >= count:
            break
        ids += tokenizer(piece, add_special_tokens=False, verbose=False).input_ids
        ids += [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    usable = min(len(ids), max(count, length)) // length * length
    return torch.tensor(ids[:usable], dtype=torch.long).view(-1, length)


@dataclass
class _Sums:
    """Of one budget over a domain; load [L, E] and k of every token."""

    kl: float = 0.0
    loss: float = 0.0
    load: Any = 0
    worst: float = 0.0
    k: list[Tensor] = field(default_factory=list)


@torch.inference_mode()
def judge(
    dense: StilleForCausalLM, model: StilleForCausalLM, ids_ST: Tensor, budgets: Sequence[float], report: Any
) -> dict[str, Any]:
    """One kind of text.

    Args:
        dense, model: on the same device.
        ids_ST: int64 [S, T].
        budgets: mean numbers of experts.
        report: told the share that is done.

    Returns:
        tokens, perplexity of the dense model, and for each of `budgets`: kl (mean over tokens of KL(dense || model), in
        nats), perplexity, perplexity_ratio, mean_k (over layers), layer_k, max_violation (over all tokens, of each
        layer), worst_batch (the largest of any layer in a batch of 4,096 tokens), dead (experts that no token ran),
        k_by_entropy: mean entropy of the dense model's next token and mean k, by decile of that entropy.
    """
    sums = [_Sums() for _ in budgets]
    base_loss, entropies, predicted = 0.0, [], 0
    batches = ids_ST.split(max(1, BATCH // ids_ST.shape[1]))
    for number, ids in enumerate(batches):
        ids = ids.to(dense.device)
        label = torch.cat([ids[:, 1:], ids.new_full((len(ids), 1), -100)], 1).flatten()
        full = ids.numel() == batches[0].numel()
        theirs = dense.model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)
        ours = []
        for budget, each in zip(budgets, sums, strict=True):
            with expert_budget(model, budget), record_routing(model) as log, _Counts(model) as counts:
                ours.append(model.model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1))
            load = torch.stack([layer.load_E for layer in log]).double().cpu()
            each.load = each.load + load
            if full:
                each.worst = max(each.worst, float(_violation(load).max()))
            each.k.append(counts.mean().cpu())
        chunk = max(16, ROWS // dense.config.vocab_size)
        for begin in range(0, len(theirs), chunk):
            rows, goal = slice(begin, begin + chunk), label[begin : begin + chunk]
            log_p = F.log_softmax(dense.lm_head(theirs[rows]).float(), -1)
            base_loss += float(F.nll_loss(log_p, goal, ignore_index=-100, reduction="sum"))
            entropies.append(-(log_p.exp() * log_p).sum(-1).cpu())
            for hidden, each in zip(ours, sums, strict=True):
                log_q = F.log_softmax(model.lm_head(hidden[rows]).float(), -1)
                each.kl += float(F.kl_div(log_q, log_p, reduction="sum", log_target=True))
                each.loss += float(F.nll_loss(log_q, goal, ignore_index=-100, reduction="sum"))
        predicted += int((label >= 0).sum())
        report((number + 1) / len(batches))
    tokens, entropy = ids_ST.numel(), torch.cat(entropies)
    perplexity = math.exp(base_loss / predicted)
    results = []
    for budget, each in zip(budgets, sums, strict=True):
        own = math.exp(each.loss / predicted)
        layer_k = (each.load.sum(1) / tokens).tolist()
        result: dict[str, Any] = {"budget": budget, "kl": each.kl / tokens, "perplexity": own}
        result |= {"perplexity_ratio": own / perplexity, "mean_k": sum(layer_k) / len(layer_k), "layer_k": layer_k}
        result["max_violation"] = _violation(each.load).tolist()
        result["worst_batch"] = each.worst if len(batches[0]) * ids_ST.shape[1] >= BATCH else None
        result |= {"dead": int((each.load == 0).sum()), "load": (each.load / tokens).tolist()}
        result["k_by_entropy"] = _deciles(entropy, torch.cat(each.k))
        results.append(result)
    return {"tokens": tokens, "dense_perplexity": perplexity, "budgets": results}


class _Counts:
    """Experts of each token, mean over layers."""

    def __init__(self, model: StilleForCausalLM):
        self._gates, self._sum, self._hooks = [layer.gate for layer in expert_layers(model)], None, []

    def __enter__(self) -> "_Counts":
        self._hooks = [gate.register_forward_hook(self._add) for gate in self._gates]
        return self

    def _add(self, gate: Any, given: Any, routing: Routing) -> None:
        count = routing.mask_TE.sum(1).float()
        self._sum = count if self._sum is None else self._sum + count

    def mean(self) -> Tensor:
        """float32 [N]."""
        assert self._sum is not None
        return self._sum / len(self._gates)

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()


def _violation(load_LE: Tensor) -> Tensor:
    """[L]: MaxVio of each layer, see `LayerRouting.max_violation`."""
    return load_LE.max(1).values / load_LE.mean(1).clamp(min=1e-30) - 1


def _deciles(entropy_N: Tensor, k_N: Tensor) -> list[dict[str, float]]:
    order = entropy_N.argsort()
    pairs = zip(entropy_N[order].tensor_split(DECILES), k_N[order].tensor_split(DECILES), strict=True)
    return [{"entropy": float(e.mean()), "k": float(k.mean())} for e, k in pairs if len(e)]
