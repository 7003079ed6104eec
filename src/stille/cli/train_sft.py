"""`stille train sft`: a model learns from conversations, tool calls included."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stille.cli.options import DEFAULT_MODEL, examples

if TYPE_CHECKING:
    from stille.train import TrainConfig, World

EXAMPLES = examples(
    ("stille train sft --data chats.jsonl --out tuned", "LoRA of rank 32 on stille-135m: a delta of some megabytes"),
    ("stille train sft --data a.jsonl --data b.jsonl --out tuned --full --epochs 3", "all weights, two files"),
    ("stille train sft --data calls.jsonl --out tuned --minutes 10 --device cuda", "as much as fits into the time"),
    ("stille train sft --model FOLDER --data chats.jsonl --out tuned --lora 16", "any model that Stille loads"),
    ("stille serve --model tuned/model", "what came of it"),
    note="Data: .jsonl, each line with messages in OpenAI's form (and tools, and tool_calls in the answers). They are "
    "rendered as the server renders them; only what the assistant says is learned. After Ctrl-C or a kill the same "
    "command goes on.",
)
INTERRUPTED = 130
DATA, RUN, WATCH = "Data", "Run", "Saving and watching"


def _option(panel: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, **more)


def command(
    ctx: typer.Context,
    data: Annotated[list[Path], _option(DATA, help="File of conversations, repeatable.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run; the model comes to lie in OUT/model.")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="Known name, Hugging Face repository, folder or .gguf.")
    ] = DEFAULT_MODEL,
    validation: Annotated[
        list[Path] | None, _option(DATA, help="File of conversations that only judge, repeatable.", show_default=False)
    ] = None,
    held_out: Annotated[float, _option(DATA, help="Share that only judges, by hash, without --validation.")] = 0.02,
    seq_len: Annotated[int, _option(DATA, min=2, help="Tokens of a row; longer conversations are left out.")] = 2048,
    workers: Annotated[
        int | None, _option(DATA, min=1, help="Processes that tokenise. (default: by the data)", show_default=False)
    ] = None,
    lora: Annotated[int, _option(RUN, min=1, help="Rank of the pairs that learn; OUT/model is a delta.")] = 32,
    full: Annotated[bool, _option(RUN, "--full", help="All weights learn; OUT/model is a whole folder.")] = False,
    whole: Annotated[
        bool, _option(RUN, "--whole", help="A whole folder in any case, pairs added in: for transformers.")
    ] = False,
    lr: Annotated[
        float | None,
        _option(RUN, help="Peak learning rate. (default: 0.0003, or 0.0001 with --full)", show_default=False),
    ] = None,
    steps: Annotated[int | None, _option(RUN, min=1, help="Steps of the optimizer.", show_default=False)] = None,
    epochs: Annotated[
        float | None, _option(RUN, help="How often all data come up. (default: 1)", show_default=False)
    ] = None,
    minutes: Annotated[
        float | None, _option(RUN, help="Wall-clock limit, over all runs; the schedule finishes by it.")
    ] = None,
    batch_tokens: Annotated[
        int | None,
        _option(RUN, min=2, help="Tokens of a step. (default: 65536, or 4096 on a CPU)", show_default=False),
    ] = None,
    micro_tokens: Annotated[
        int | None,
        _option(RUN, min=2, help="Of them computed at once. (default: 32768, or a row)", show_default=False),
    ] = None,
    warmup: Annotated[int, _option(RUN, min=0, help="Steps until the peak.")] = 20,
    schedule: Annotated[str, _option(RUN, help="cosine, or wsd: level, then linear at the end.")] = "cosine",
    weight_decay: Annotated[float, _option(RUN, help="Of matrices.")] = 0.0,
    clip: Annotated[float, _option(RUN, help="Largest norm of the gradient; 0: any.")] = 1.0,
    compile: Annotated[bool, _option(RUN, "--compile", help="By compiled kernels; needs a C++ compiler.")] = False,
    quantize: Annotated[
        str, _option(RUN, help="With --lora, int4 or int8: learn what is best once weights are rounded so; none.")
    ] = "none",
    seed: Annotated[int, _option(RUN, help="Of everything random.")] = 0,
    dtype: Annotated[str, _option(RUN, help="fp32, bf16 (float32 master weights), auto: bf16 on a GPU.")] = "auto",
    device: Annotated[str, _option(RUN, help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[
        int | None, _option(RUN, "--threads", "-t", min=1, help="CPU threads. (default: all)", show_default=False)
    ] = None,
    config: Annotated[Path | None, _option(RUN, help="JSON with fields of TrainConfig; options go before it.")] = None,
    resume: Annotated[
        bool, _option(WATCH, "--resume/--no-resume", help="Go on where OUT was stopped; --no-resume refuses to.")
    ] = True,
    save_every: Annotated[int, _option(WATCH, min=1, help="Steps between checkpoints.")] = 500,
    save_minutes: Annotated[float, _option(WATCH, help="Minutes between them.")] = 5.0,
    keep: Annotated[int, _option(WATCH, min=1, help="Checkpoints that stay.")] = 1,
    log_every: Annotated[int, _option(WATCH, min=1, help="Steps between lines of OUT/metrics.jsonl.")] = 10,
    eval_every: Annotated[int, _option(WATCH, min=0, help="Steps between evaluations; 0: at the end only.")] = 0,
    eval_rows: Annotated[
        int | None,
        _option(WATCH, min=0, help="Held-out rows of one. (default: 64, or 8 on a CPU)", show_default=False),
    ] = None,
    tensorboard: Annotated[bool, _option(WATCH, "--tensorboard", help="Metrics for TensorBoard too.")] = False,
) -> None:
    """Fine-tune a model on conversations: what the assistant says and which tools it calls.

    By pairs of low rank (LoRA), whose result is a small delta, or with --full by all weights.
    """
    import torch

    from stille.cli.train import _bar
    from stille.errors import ConfigError
    from stille.model import load_model
    from stille.train import open_world
    from stille.train.sft import make_sft, prepare_conversations, steps_of

    if full and _said(ctx, "lora"):
        raise typer.BadParameter("--full trains all weights, --lora pairs of low rank: give one of them")
    if steps is not None and epochs is not None:
        raise typer.BadParameter("--steps and --epochs both say when to end: give one of them")
    if not resume and (out / "checkpoints").exists():
        raise ConfigError(f"{out} holds a run; name another folder, or leave out --no-resume to go on with it.")
    if threads is not None:
        torch.set_num_threads(threads)
    with open_world(device) as world:
        loaded = load_model(model, device=world.device, progress=world.main)
        length = min(seq_len, loaded.config.max_position_embeddings)
        size = sum(file.stat().st_size for file in data if file.exists())
        found = prepare_conversations(
            data, loaded, length, held_out=held_out, validation=validation or [], seed=seed,
            workers=workers or (1 if size < 1 << 24 else min(16, os.cpu_count() or 1)), kept=out / "rows",
        )  # fmt: skip
        settings = _settings(ctx, config, world, length, lambda batch: steps_of(found, batch, epochs or 1.0))
        if world.main:
            rows = found.train
            dropped = f", {rows.dropped:,} of more than {length} tokens left out" if rows.dropped else ""
            typer.echo(
                f"{rows.conversations:,} conversations{dropped}: {rows.text_tokens:,} tokens, "
                f"{rows.learned_tokens:,} of them learned, in {rows.rows:,} rows",
                err=True,
            )
        with _bar(world.main) as on_step:
            result = make_sft(
                model, loaded, found, settings, out, world=world, whole=whole, tensorboard=tensorboard, on_step=on_step
            )
        if not world.main:
            return
        about = f"{result.step} steps, {result.tokens:,} tokens, {result.seconds:.0f} s"
        if not result.finished:
            typer.echo(f"stopped after {about}; the same command goes on from there", err=True)
            raise typer.Exit(INTERRUPTED)
        told = "".join(f", {name.replace('_', ' ')} {value:.4f}" for name, value in result.evaluation.items())
        typer.echo(f"{out / 'model'}: {about}{told}")


def _said(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name not in ("DEFAULT", "DEFAULT_MAP")


def _settings(
    ctx: typer.Context, file: Path | None, world: World, length: int, by_epochs: Callable[[int], int]
) -> TrainConfig:
    """Defaults, then the file, then what the command line says; the end by epochs, unless one of them has another."""
    from stille.train import TrainConfig
    from stille.train.config import read_json

    large, given = world.device.type == "cuda", ctx.params
    asked = given["batch_tokens"] or (65_536 if large else 4_096)
    rows = max(world.size, asked // length // world.size * world.size)
    micro = max(1, min((given["micro_tokens"] or (32_768 if large else 1)) // length, rows // world.size))
    while rows // world.size % micro:
        micro -= 1
    values: dict[str, Any] = dict(
        batch=rows, micro_batch=micro, length=length, lr=1e-4 if given["full"] else 3e-4, gates="frozen",
        rank=0 if given["full"] else given["lora"], eval_sequences=64 if large else 8, steps=None,
    )  # fmt: skip
    same = (
        *("steps", "minutes", "lr", "warmup", "schedule", "weight_decay", "clip", "compile", "quantize", "seed"),
        *("dtype", "save_every", "save_minutes", "keep", "log_every", "eval_every"),
    )
    values |= {name: given[name] for name in same if not _said(ctx, name) and given[name] is not None}
    values |= read_json(file) if file is not None else {}
    values |= {name: given[name] for name in same if _said(ctx, name)}
    if given["eval_rows"] is not None:
        values["eval_sequences"] = given["eval_rows"]
    if given["epochs"] is not None or (values["steps"] is None and values.get("minutes") is None):
        values["steps"] = by_epochs(values["batch"])
    if values["dtype"] == "auto":
        values["dtype"] = "bf16" if large else "fp32"
    return TrainConfig.from_dict(values)
