"""`stille train default`: the default model, made by stages that are kept."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stille.cli.options import DEFAULT_MODEL, examples

if TYPE_CHECKING:
    from stille.train.default import DefaultSettings, Pipeline, Progress

EXAMPLES = examples(
    ("stille train default --out made --device cuda", "all of it: text, experts, distillation, judgement"),
    ("stille train default --out made --device cuda --list", "which stages are done, and the minutes they took"),
    ("stille train default --out made --device cuda --until convert", "the stages up to one"),
    ("stille train default --out made --device cuda --minutes 8 --judge law=law.txt", "shorter; judged on a file too"),
    (
        "stille train default --out made --device cuda --gate top_k --target-k 8",
        "a twin with a fixed number of experts",
    ),
    ("stille train default --out made --samples chats.jsonl --model FOLDER", "another dense model, your own text"),
    ("stille generate 'Hello' --model made/stille-135m", "the result is a model"),
    note="Stages: samples (the dense model writes text), convert (split into experts), distill (taught by the dense "
    "model), judge, delta (the folder OUT/stille-135m with its card). Finished ones lie in OUT/stages and are made "
    "again only if what they are made from changes. After Ctrl-C or a kill the same command goes on where it was.",
)
INTERRUPTED = 130
MADE, TEXT, TAUGHT, RUN = "What is made", "Text", "Distillation", "How it runs"


def _option(panel: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, **more)


def command(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the stages and of the result.")],
    config: Annotated[
        Path | None, typer.Option("--config", help="JSON with fields of DefaultSettings; options go before it.")
    ] = None,
    only: Annotated[str | None, _option(RUN, help="Make this stage alone.")] = None,
    until: Annotated[str | None, _option(RUN, help="Make the stages up to this one.")] = None,
    list_: Annotated[bool, _option(RUN, "--list", help="Show the stages, make nothing.")] = False,
    device: Annotated[str, _option(RUN, help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[
        int | None, _option(RUN, "--threads", "-t", min=1, help="CPU threads. (default: all)", show_default=False)
    ] = None,
    model: Annotated[str, _option(MADE, "--model", "-m", help="The dense model.")] = DEFAULT_MODEL,
    gate: Annotated[str, _option(MADE, help="threshold (DEB) or top_k (a fixed number).")] = "threshold",
    target_k: Annotated[float, _option(MADE, help="Mean number of experts of a token.")] = 4.8,
    seed: Annotated[int, _option(MADE, help="Of everything random.")] = 0,
    text: Annotated[
        list[Path] | None, _option(TEXT, help="File of text, repeatable. (default: Python's library)")
    ] = None,
    samples: Annotated[
        Path | None, _option(TEXT, help=".jsonl with a field text, in place of what the model would write.")
    ] = None,
    tokens: Annotated[
        int | None,
        _option(TEXT, help="Tokens that the model writes. (default: 8 million on a GPU)", show_default=False),
    ] = None,
    judge: Annotated[
        list[str] | None, _option(TEXT, help="NAME=FILE: text to judge on, never trained on; repeatable.")
    ] = None,
    minutes: Annotated[float, _option(TAUGHT, help="Of distillation, over all runs.")] = 16.0,
    rank: Annotated[int, _option(TAUGHT, min=1, help="Of the changes of each matrix: the size of the delta.")] = 32,
    lr: Annotated[
        float | None, _option(TAUGHT, help="Peak learning rate. (default: 0.001 on a GPU)", show_default=False)
    ] = None,
    quantize: Annotated[
        str, _option(TAUGHT, help="int4 or int8: learn what is best once weights are rounded so; none.")
    ] = "none",
) -> None:
    """Make the default model: the dense one split into experts and taught by itself, as a delta of a few megabytes.

    Each stage is made once and kept. What changes (a setting, a file) makes the stages that depend on it again, and
    nothing else.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise typer.BadParameter(f"device {device!r} is unknown; choose auto, cpu or cuda")
    import torch

    from stille.errors import ConfigError
    from stille.train.default import Stopped, make, pipeline

    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda was asked for, but there is none here.")
    if threads is not None:
        torch.set_num_threads(threads)
    place = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    given = dict(
        base=model, gate=gate, target_k=target_k, seed=seed, tokens=tokens, minutes=minutes, rank=rank, lr=lr,
        quantize=quantize,
        samples=None if samples is None else str(samples), text=[str(file) for file in text or ()],
        judge=[_pair(each) for each in judge or ()],
    )  # fmt: skip
    settings = _settings(ctx, config, given)
    if list_:
        _show(pipeline(out, settings, place))
        return
    try:
        with _bars(sys.stderr.isatty()) as report:
            made = make(out, settings, place, only=only, until=until, report=report, quiet=not sys.stderr.isatty())
    except (KeyboardInterrupt, Stopped):
        typer.echo("stopped; what is there is kept, and the same command goes on from there", err=True)
        raise typer.Exit(INTERRUPTED) from None
    if made is None:
        _show(pipeline(out, settings, place))
    else:
        typer.echo((made / "README.md").read_text(encoding="utf-8"), nl=False)
        typer.echo(f"wrote {made}", err=True)


def _pair(text: str) -> tuple[str, str]:
    name, sign, file = text.partition("=")
    if not (name and sign and file):
        raise typer.BadParameter(f"--judge {text!r}: expected NAME=FILE")
    return name, file


def _settings(ctx: typer.Context, file: Path | None, options: dict[str, Any]) -> DefaultSettings:
    """Defaults, then the file, then what the command line says."""
    from stille.train.config import read_json
    from stille.train.default import DefaultSettings

    def said(name: str) -> bool:
        source = ctx.get_parameter_source("model" if name == "base" else name)
        return source is not None and source.name not in ("DEFAULT", "DEFAULT_MAP")

    values = read_json(file) if file is not None else {}
    return DefaultSettings.from_dict(values | {name: value for name, value in options.items() if said(name)})


def _show(pipeline: Pipeline) -> None:
    """A line for each stage."""
    for number, status in enumerate(pipeline.status(), 1):
        spent = f"{status.minutes:.1f} min" if status.minutes else ""
        where = "" if status.folder is None else str(status.folder)
        typer.echo(f"{number}. {status.stage.name:<8} {status.state:<6} {spent:>9}  {where or status.stage.about}")


@contextlib.contextmanager
def _bars(shown: bool) -> Iterator[Callable[[Progress], None]]:
    """A bar for each stage that tells how far it is, on stderr; silent where that is no terminal."""
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    from stille.cli.download import stderr_console

    columns = (TextColumn("{task.fields[stage]}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"))
    live: dict[str, Any] = {}

    def close() -> None:
        for bars, _ in live.values():
            bars.stop()
        live.clear()

    def show(progress: Progress) -> None:
        if progress.stage not in live:
            close()  # other stages draw bars of their own in between
            bars = Bars(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=stderr_console(quiet=not shown))
            bars.start()
            live[progress.stage] = (bars, bars.add_task("", total=progress.total, stage=progress.stage))
        bars, task = live[progress.stage]
        bars.update(task, completed=progress.done, total=progress.total or None, description=progress.text)
        if progress.total and progress.done >= progress.total and progress.stage != "samples":
            close()

    try:
        yield show
    finally:
        close()
