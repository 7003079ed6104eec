"""From prompts to a finished head: text, training, judgement, and the folder with its card."""

import gc
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from stille.engine.llm import LLM
from stille.errors import ConfigError
from stille.ledger import describe_commit, describe_machine
from stille.model.draft import DraftConfig, DraftHead
from stille.model.load import LoadedModel, load_config, load_model
from stille.train.draft.config import DraftTrainConfig
from stille.train.draft.data import DraftText, frequent_tokens, open_text
from stille.train.draft.evaluate import evaluate
from stille.train.draft.loop import DraftResult, train_draft
from stille.train.draft.prompts import read_prompts
from stille.train.draft.text import Report, TextSettings, make_text
from stille.train.weights import DTYPES

logger = logging.getLogger(__name__)

DRAFT, REPORT, RUN = "draft", "report.json", "run"
LENGTH = 2048  # most tokens of a prompt and its answer


@dataclass(frozen=True)
class MakeSettings:
    """What head is made.

    Attributes:
        layers, inner_size, draft_vocab: see `DraftConfig`; a smaller vocabulary of the model limits the last.
        feature_layers: see `DraftConfig`; None: after about 1/2, 5/6 and all of the layers.
        precision: of the stored matrices.
    """

    layers: int = 2
    inner_size: int = 1536
    draft_vocab: int = 8192
    feature_layers: tuple[int, ...] | None = None
    precision: Literal["int8", "bf16"] = "int8"


@dataclass(frozen=True)
class Made:
    """What came of it.

    Attributes:
        folder: of the head; None if training was stopped before its end.
        result: of the training.
        report: what `report.json` says; empty if stopped.
    """

    folder: Path | None
    result: DraftResult
    report: dict[str, Any]


def write_text(
    model: str,
    folder: Path,
    prompts: Sequence[Path],
    settings: TextSettings,
    *,
    device: str,
    sequences: int | None = None,
    held_out: float = 0.01,
    report: Report = lambda done, total, told: None,
) -> int:
    """Have a model answer prompts; see `text.make_text` and `prompts.read_prompts`.

    Args:
        model: as `EngineConfig.model`.
        folder: of the text.
        prompts: files.
        settings: how much, and how.
        device: "cpu" or "cuda".
        sequences: computed together; None: 512 on a GPU, 32 on a CPU.
        held_out: share of the prompts that only judge.
        report: told after every shard.

    Returns:
        Tokens of this part.

    Raises:
        StilleError: the model cannot be run, files are no prompts, or the folder holds other text.
    """

    def start() -> LLM:
        most = min(LENGTH, load_config(model, progress=False).max_position_embeddings)
        if settings.answer_tokens >= most:
            raise ConfigError(
                f"answer_tokens={settings.answer_tokens}, expected less than {most}, the prompt included."
            )
        large = device == "cuda"
        # The engine's own default on a CPU is what is served there, so what drafts have to guess.
        return LLM(
            model, device=device, dtype="bf16" if large else "auto", max_model_len=most, seed=settings.seed,
            max_num_seqs=sequences or (512 if large else 32), max_draft_tokens=0,
        )  # fmt: skip

    try:
        return make_text(folder, read_prompts(prompts, held_out), settings, start, report)
    finally:
        gc.collect()  # the engine's memory
        if device == "cuda":
            torch.cuda.empty_cache()


def make_draft(
    model: str,
    text: Path,
    out: Path,
    config: DraftTrainConfig,
    settings: MakeSettings | None = None,
    *,
    device: str = "cpu",
    on_step: Callable[[int, float, dict[str, Any]], None] | None = None,
) -> Made:
    """Train a head on a folder of text, judge it, and write it to `OUT/draft`; a stopped run goes on.

    The report judges it as trained and as stored, so what 8 bits cost is seen.

    Args:
        model: the target, as `load_model` takes it.
        text: what `write_text` made.
        out: folder of the run.
        config: of the training.
        settings: of the head.
        device: "cpu" or "cuda".
        on_step: see `train_draft`.

    Raises:
        StilleError: the model or the text cannot be used, settings contradict each other, or the folder holds another
            run.
    """
    settings = settings or MakeSettings()
    loaded = load_model(model, dtype=DTYPES[config.dtype], device=device, progress=False)
    read = open_text(text)
    head = new_head(loaded, read, config, settings)
    result = train_draft(loaded.model, head, read, config, out / RUN, on_step=on_step)
    if not result.finished:
        return Made(None, result, {})
    judged = dict(steps=config.unroll, tokens=config.eval_tokens, batch_tokens=config.batch_tokens, dtype=config.dtype)
    trained = evaluate(loaded.model, head, read, **judged)  # pyright: ignore[reportArgumentType]
    report: dict[str, Any] = {
        "model": model, "head": asdict(head.config), "parameters": sum(p.numel() for p in head.parameters()),
        "training": asdict(config), "steps": result.step, "positions": result.positions,
        "seconds": round(result.seconds, 1), "text": _told(read), "machine": describe_machine(),
        "commit": describe_commit(), "precision": settings.precision, "trained": trained,
    }  # fmt: skip
    head.about = {name: report[name] for name in ("steps", "positions", "seconds", "text", "machine", "commit")}
    head.save(out / DRAFT, settings.precision)
    stored = DraftHead.load(out / DRAFT, loaded.model)
    report["stored"] = evaluate(loaded.model, stored, read, **judged)  # pyright: ignore[reportArgumentType]
    head.about["judged"] = report["stored"]
    head.save(out / DRAFT, settings.precision, {"README.md": card(report)})
    scratch = out / f".{REPORT}.{os.getpid()}.part"
    scratch.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    os.replace(scratch, out / REPORT)
    return Made(out / DRAFT, result, report)


def new_head(loaded: LoadedModel, text: DraftText, config: DraftTrainConfig, settings: MakeSettings) -> DraftHead:
    """A fresh head in float32, its vocabulary the text's most frequent tokens.

    Raises:
        ConfigError: the text is of another vocabulary, or sizes do not fit the model.
    """
    target = loaded.config
    if text.vocab > target.vocab_size or text.tokens.max(initial=0) >= target.vocab_size:
        raise ConfigError(
            f"the text's tokenizer has {text.vocab} tokens, the model {target.vocab_size}: it was written by another "
            "model. Make text with this one."
        )
    changes: dict[str, Any] = dict(
        draft_vocab=min(settings.draft_vocab, target.vocab_size), layers=settings.layers,
        inner_size=settings.inner_size, steps=config.unroll,
    )  # fmt: skip
    if settings.feature_layers is not None:
        changes["feature_layers"] = settings.feature_layers
    sizes = DraftConfig.of(target, **changes)
    learned = text.select(text.held_out == 0)
    tokens = torch.from_numpy(frequent_tokens(learned, sizes.draft_vocab, target.vocab_size))
    return DraftHead(sizes, tokens).attach(loaded.model, loaded.name).initialize(loaded.model, config.seed)


def _told(text: DraftText) -> dict[str, Any]:
    learned = text.held_out == 0
    by_domain = {name: int(text.length[learned & (text.domain == at)].sum()) for at, name in enumerate(text.domains)}
    return {
        "documents": len(text.length), "tokens": int(text.length.sum()), "learned_tokens": by_domain,
        "greedy_share": round(float(text.greedy.mean()), 4), "held_out_documents": int(text.held_out.sum()),
    }  # fmt: skip


def card(report: dict[str, Any]) -> str:
    """The card of a head: what it is, how it was made, what it is worth; Markdown."""
    head, text = report["head"], report["text"]
    rows = [
        f"| {domain} | " + " | ".join(
            f"{kinds[kind]['tau']:.2f} ({kinds[kind]['accepted'][0]:.2f})" if kind in kinds else "" for kind in KINDS
        ) + " |"
        for domain, kinds in report["stored"].items()
    ]  # fmt: skip
    return "\n".join([
        f"# Draft head for {report['model']}", "",
        f"A recurrent head for speculative decoding, {report['parameters'] / 1e6:.1f} million parameters in "
        f"{report['precision']}: {head['layers']} layers of inner width {head['inner_size']}, features after layers "
        f"{', '.join(map(str, head['feature_layers']))}, {head['draft_vocab']:,} of {head['vocab_size']:,} tokens. It "
        "changes no answer: every guess is checked by the model. Weights of its model are not in it; the model's "
        "licence holds for what was learned from its text.", "",
        f"Made by `stille train draft` from {text['tokens']:,} tokens that the model wrote "
        f"({text['greedy_share']:.0%} of the answers at temperature 0), in {report['steps']:,} steps, "
        f"{report['seconds'] / 60:.1f} minutes on {report['machine']}.", "",
        f"Tokens of a round on held-out answers, the model's own included, with drafts of {head['steps']} (in "
        "brackets: the share of first guesses that are accepted):", "",
        "| text | temperature 0 | temperature 1 |", "| --- | ---: | ---: |", *rows, "",
    ])  # fmt: skip


KINDS = ("greedy", "sampled")
