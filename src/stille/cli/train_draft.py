"""`stille train draft`: a draft head for speculative decoding, for any model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stille.cli.options import DEFAULT_MODEL, examples
from stille.cli.progress import share_bar

if TYPE_CHECKING:
    from stille.train.draft import DraftTrainConfig

EXAMPLES = examples(
    ("stille train draft --out made --prompts chats.jsonl --device cuda", "text, training and judgement: made/draft"),
    ("stille train draft --out made --prompts a.jsonl --prompts b.txt --tokens 2000000", "less text"),
    (
        "stille train draft --out made --prompts chats.jsonl --only text --part 0/2",
        "half of the text, on one of 2 GPUs",
    ),
    ("stille train draft --out b --text made/text --layers 1 --inner 3072", "another head, the same text"),
    ("stille train draft --out made --prompts chats.jsonl --model FOLDER", "for another model"),
    note="The model answers the prompts; the head learns to guess what it will say. Prompts: .jsonl with messages (a "
    "conversation), prompt (a user's words) or text (its beginning is continued), and if wanted domain, by which "
    "results are told; or plain text. A head changes no answer, as every guess is checked; it makes them faster where "
    "its guesses are right, so prompts should be like those in use. After Ctrl-C or a kill the same command goes on.",
)
INTERRUPTED = 130
TEXT, HEAD, RUN = "Text", "Head", "How it runs"


def _option(panel: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, **more)


def command(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run; the head comes to lie in OUT/draft.")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="Known name, Hugging Face repository, folder or .gguf.")
    ] = DEFAULT_MODEL,
    only: Annotated[
        str | None, typer.Option(help="text: write text and stop. train: use the text that is there.")
    ] = None,
    prompts: Annotated[
        list[Path] | None, _option(TEXT, help="File of prompts, repeatable.", show_default=False)
    ] = None,
    text: Annotated[
        Path | None, _option(TEXT, help="Folder of text, made or to be made. (default: OUT/text)", show_default=False)
    ] = None,
    tokens: Annotated[
        int | None,
        _option(
            TEXT, min=1, help="Tokens of text. (default: 50 million on a GPU, 200,000 on a CPU)", show_default=False
        ),
    ] = None,
    answer_tokens: Annotated[int, _option(TEXT, min=1, help="Most tokens of an answer.")] = 384,
    greedy: Annotated[float, _option(TEXT, help="Share of answers at temperature 0; the others are at 1.")] = 0.3333,
    held_out: Annotated[float, _option(TEXT, help="Share of the prompts whose answers only judge.")] = 0.01,
    part: Annotated[str, _option(TEXT, help="P/N: write the P-th of N parts, counted from 0.")] = "0/1",
    text_minutes: Annotated[float | None, _option(TEXT, help="Begin no more text after so many.")] = None,
    shard: Annotated[
        int | None, _option(TEXT, min=1, help="Prompts of a shard. (default: 4096, or 64 on a CPU)", show_default=False)
    ] = None,
    sequences: Annotated[
        int | None,
        _option(TEXT, min=1, help="Answers written together. (default: 512, or 32 on a CPU)", show_default=False),
    ] = None,
    layers: Annotated[int, _option(HEAD, min=1, help="FFN layers of a draft step.")] = 2,
    inner: Annotated[int, _option(HEAD, min=1, help="Inner width of each.")] = 1536,
    vocab: Annotated[int, _option(HEAD, min=1, help="Tokens that can be drafted, the most frequent ones.")] = 8192,
    features: Annotated[
        str | None,
        _option(
            HEAD, help="Numbers of layers whose output it sees. (default: at 1/2, 5/6 and the last)", show_default=False
        ),
    ] = None,
    unroll: Annotated[int, _option(HEAD, min=1, help="Guesses of a draft.")] = 7,
    precision: Annotated[str, _option(HEAD, help="int8 or bf16: how the head is stored.")] = "int8",
    minutes: Annotated[
        float | None, _option(RUN, help="Of training, over all runs. (default: 10, or by --steps)", show_default=False)
    ] = None,
    steps: Annotated[int | None, _option(RUN, min=1, help="Steps of training.", show_default=False)] = None,
    batch_tokens: Annotated[
        int | None,
        _option(RUN, min=8, help="Tokens of a step. (default: 32768, or 2048 on a CPU)", show_default=False),
    ] = None,
    positions: Annotated[float, _option(RUN, help="Share of them that is drafted from.")] = 0.5,
    lr: Annotated[float, _option(RUN, help="Peak learning rate.")] = 1e-3,
    warmup: Annotated[int, _option(RUN, min=0, help="Steps until it is reached.")] = 100,
    compile: Annotated[bool, _option(RUN, "--compile", help="By compiled kernels; needs a C++ compiler.")] = False,
    eval_tokens: Annotated[int, _option(RUN, help="Held-out tokens of a domain at each temperature.")] = 50_000,
    seed: Annotated[int, _option(RUN, help="Of everything random.")] = 0,
    config: Annotated[
        Path | None, _option(RUN, help="JSON with fields of DraftTrainConfig; options go before it.")
    ] = None,
    dtype: Annotated[str, _option(RUN, help="fp32, bf16 (float32 master weights), auto: bf16 on a GPU.")] = "auto",
    device: Annotated[str, _option(RUN, help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[
        int | None, _option(RUN, "--threads", "-t", min=1, help="CPU threads. (default: all)", show_default=False)
    ] = None,
) -> None:
    """Make a draft head: a small network that guesses what a model will say next, for speculative decoding.

    The model writes text in answer to prompts, a head learns from it, and is judged on answers that it has not seen.
    """
    for name, value, known in (
        ("device", device, ("auto", "cpu", "cuda")), ("only", only, (None, "text", "train")),
        ("precision", precision, ("int8", "bf16")), ("dtype", dtype, ("auto", "fp32", "bf16")),
    ):  # fmt: skip
        if value not in known:
            raise typer.BadParameter(f"{name} {value!r} is unknown; choose {', '.join(filter(None, known))}")
    number, parts = _part(part)
    chosen = _numbers(features)
    import torch

    from stille.errors import ConfigError
    from stille.train.draft import MakeSettings, TextSettings, make_draft, write_text

    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda was asked for, but there is none here.")
    if threads is not None:
        torch.set_num_threads(threads)
    place = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    large = place == "cuda"
    folder = text or out / "text"
    settings = TextSettings(
        tokens=tokens or (50_000_000 if large else 200_000), answer_tokens=answer_tokens, greedy=greedy, seed=seed,
        shard=shard or (4096 if large else 64), minutes=text_minutes, part=number, parts=parts,
    )  # fmt: skip
    training = _training(ctx, config, large)
    if only != "train" and not prompts and not (folder / "text.json").exists():
        raise ConfigError(f"{folder} holds no text yet: give --prompts FILE for the model to answer.")
    try:
        if only != "train" and prompts:
            with share_bar("text") as show:
                write_text(
                    model, folder, prompts, settings, device=place, sequences=sequences, held_out=held_out,
                    report=lambda done, total, told: show(done / total, told),
                )  # fmt: skip
        if only == "text":
            typer.echo(f"wrote {folder}")
            return
        with share_bar("training") as show:
            made = make_draft(
                model, folder, out, training,
                MakeSettings(layers, inner, vocab, chosen, precision),  # pyright: ignore[reportArgumentType]
                device=place, on_step=lambda step, share, facts: show(share, _facts(step, facts)),
            )  # fmt: skip
    except KeyboardInterrupt:
        _stopped()
    if made.folder is None:
        _stopped()
    typer.echo((out / "draft" / "README.md").read_text(encoding="utf-8"), nl=False)
    typer.echo(f"wrote {made.folder}", err=True)


def _stopped() -> None:
    typer.echo("stopped; what is there is kept, and the same command goes on from there", err=True)
    raise typer.Exit(INTERRUPTED) from None


def _part(told: str) -> tuple[int, int]:
    number, sign, parts = told.partition("/")
    if not (sign and number.isdigit() and parts.isdigit()):
        raise typer.BadParameter(f"--part {told!r}: expected P/N, as 0/2")
    return int(number), int(parts)


def _numbers(told: str | None) -> tuple[int, ...] | None:
    if told is None:
        return None
    try:
        return tuple(int(each) for each in told.split(","))
    except ValueError:
        raise typer.BadParameter(f"--features {told!r}: expected numbers of layers, as 14,24,29") from None


def _training(ctx: typer.Context, file: Path | None, large: bool) -> DraftTrainConfig:
    """Defaults, then the file, then what the command line says."""
    import dataclasses

    from stille.train.config import known_fields, read_json
    from stille.train.draft import DraftTrainConfig

    def said(name: str) -> bool:
        source = ctx.get_parameter_source(name)
        return source is not None and source.name not in ("DEFAULT", "DEFAULT_MAP")

    names = {field.name for field in dataclasses.fields(DraftTrainConfig)} & set(ctx.params)
    values: dict[str, Any] = {"batch_tokens": 32_768 if large else 2048, "dtype": "bf16" if large else "fp32"}
    if file is not None:
        values |= known_fields(DraftTrainConfig, read_json(file), "the training configuration")
    values |= {name: ctx.params[name] for name in names if said(name)}
    if values["dtype"] == "auto":
        values["dtype"] = "bf16" if large else "fp32"
    if values.get("steps") is None and values.get("minutes") is None:
        values["minutes"] = 10.0
    return DraftTrainConfig(**values)


def _facts(step: int, facts: dict[str, Any]) -> str:
    told = f"step {step}"
    for name, label, form in (
        ("loss", "loss", ".3f"), ("tau", "tau", ".2f"), ("positions_per_second", "positions/s", ",.0f"),
    ):  # fmt: skip
        if name in facts:
            told += f"  {label} {facts[name]:{form}}"
    if "acceptance" in facts:
        told += "  accepted " + " ".join(f"{share:.2f}" for share in facts["acceptance"])
    return told
