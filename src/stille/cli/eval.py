"""`stille eval`: what a model can still do under a setting."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stille.cli import options
from stille.cli.eval_bfcl import EXAMPLES as EXAMPLES_BFCL
from stille.cli.eval_bfcl import bfcl_command
from stille.cli.options import DEFAULT_MODEL, examples

if TYPE_CHECKING:
    from stille.evals.protocol import Answer, Generate
    from stille.evals.quality.answers import Asked
    from stille.evals.settings import Setting

EXAMPLES = examples(
    ("stille eval ruler --length 4096,8192", "full attention against HSA on all tasks"),
    ("stille eval quality my-delta --against stille-135m", "standard tasks, against the dense model"),
)
EXAMPLES_RULER = examples(
    ("stille eval ruler", "the default model, full attention against HSA, 4,096 tokens"),
    ("stille eval ruler --length 8192,16384 --budget 1024,2048", "several lengths and budgets"),
    ("stille eval ruler --attention full --tasks vt,cwe --json out.json", "no comparison, only scores"),
    ("stille eval ruler --attention full,hsa:2048:dense_below=0", "any field of HSAConfig"),
)
EXAMPLES_QUALITY = examples(
    ("stille eval quality my-delta --against stille-135m --budget 3,4.8,8,16", "what is retained at each budget"),
    (
        "stille eval quality stille-135m --data FOLDER --tasks lambada,hellaswag --limit 500",
        "a part of some",
    ),
    ("stille eval quality my-delta --against stille-135m --tasks none --text a.txt", "perplexity and KL on a text"),
)
INTERRUPTED = 130

app = typer.Typer(
    name="eval",
    help="Evaluate a model, and what a setting costs in quality.",
    epilog=EXAMPLES,
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

_List = list[str]

app.command("bfcl", epilog=EXAMPLES_BFCL)(bfcl_command)


@app.command("ruler", epilog=EXAMPLES_RULER)
def ruler_command(
    model: options.Model = DEFAULT_MODEL,
    length: Annotated[
        _List | None, typer.Option(help="Tokens of prompt and answer, several with commas. (default: 4096)")
    ] = None,
    tasks: Annotated[
        _List | None, typer.Option(help="Tasks or beginnings of their names, with commas. (default: all)")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Samples per task and length.")] = 20,
    attention: Annotated[
        _List | None,
        typer.Option(help="full, hsa, hsa:BUDGET or hsa:BUDGET:name=value, with commas. (default: full,hsa)"),
    ] = None,
    budget: Annotated[
        _List | None, typer.Option(help="Budgets to run a plain hsa with, with commas. (default: HSAConfig's)")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 42,
    chat: Annotated[bool, typer.Option("--chat", help="Put prompts into the model's chat format.")] = False,
    backend: Annotated[str, typer.Option(help="What runs the model: engine or transformers.")] = "engine",
    answers: Annotated[
        Path | None,
        typer.Option(help="File that keeps the answers; a run goes on from it. (default: in the cache folder)"),
    ] = None,
    as_json: Annotated[Path | None, typer.Option("--json", help="Write the results there.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables there.")] = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    threads: options.Threads = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that make samples.")] = len(os.sched_getaffinity(0)),
) -> None:
    """RULER's 13 long-context tasks, generated offline: scores, and what HSA retains of those of full attention.

    Every kind of attention answers the same samples. Answers are kept as they come: the same command again goes on.
    """
    # Everything that can be wrong with the arguments is found before the model is loaded.
    from stille.evals import ruler
    from stille.evals.settings import parse_settings

    if backend not in ("engine", "transformers"):
        raise typer.BadParameter(f"backend {backend!r} is unknown; choose engine or transformers")
    lengths = _numbers("length", length or ["4096"])
    names = ruler.select_tasks(_split(tasks or ["all"]))
    kinds = _split(attention or ["full,hsa"])
    budgets = _numbers("budget", budget or [])
    if budgets and "hsa" not in kinds:
        raise typer.BadParameter("--budget is for the attention 'hsa', which was not asked for")
    kinds = [
        name for kind in kinds for name in ([f"hsa:{b}" for b in budgets] if kind == "hsa" and budgets else [kind])
    ]
    settings = parse_settings(kinds)

    from stille.cli.download import fetch

    path = fetch(model, quiet=not sys.stderr.isatty())
    plan = _Plan(model, path, backend, dtype, device, threads, seed, chat)
    with _bar() as bar:
        made = bar(f"samples of {len(names)} tasks", len(names) * len(lengths) * samples)
        asked = ruler.make_samples(
            plan.tokenizer, names, lengths, samples, seed, chat=chat, workers=workers, on_sample=lambda _: made(1)
        )
        file = answers or plan.default_file()
        try:
            given = {
                setting.name: plan.answer(setting, asked, file, bar(setting.name, len(asked))) for setting in settings
            }
        except KeyboardInterrupt:
            typer.echo(f"stopped; the answers so far are in {file}, and the same command goes on from there", err=True)
            raise typer.Exit(INTERRUPTED) from None
    _report(plan, settings, given, samples, as_json, markdown)


class _Plan:
    """What the settings have in common, and how one of them is run."""

    def __init__(
        self, model: str, path: Path, backend: str, dtype: str, device: str, threads: int | None, seed: int, chat: bool
    ):
        from stille.evals.settings import code_fingerprint, fingerprint
        from stille.model.tokenizer import load_tokenizer

        self.model, self.path, self.backend, self.dtype, self.device = model, path, backend, dtype, device
        self.threads, self.seed, self.chat = threads, seed, chat
        self.tokenizer = load_tokenizer(path)
        self.identity = {"model": fingerprint(path), "code": code_fingerprint(), "backend": backend, "dtype": dtype}

    def default_file(self) -> Path:
        from stille.model.store import stille_home

        return stille_home() / "evals" / f"ruler-{self.identity['model']}.jsonl"

    def answer(self, setting: Setting, samples: list, file: Path, advance: Callable[[int], None]) -> list:
        """All samples under one setting; the model is loaded if an answer is missing."""
        import torch

        from stille.evals import protocol

        device = self.device if self.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        key = protocol.describe(**self.identity, device=device, seed=self.seed, chat=self.chat, **setting.as_dict())
        make = self._engine if self.backend == "engine" else self._transformers
        return protocol.run(
            protocol.deferred(lambda: make(setting, device)),
            samples,
            setting=key,
            store=protocol.AnswerStore(file),
            batch=64 if device == "cuda" else 4,  # what an interruption may lose
            on_answers=advance,
        )

    def _engine(self, setting: Setting, device: str) -> Generate:
        from stille.engine.llm import LLM
        from stille.evals.backends import engine_generate

        extra: dict[str, Any] = {} if setting.hsa is None else {"hsa": setting.hsa}
        if device == "cpu":
            extra["max_num_seqs"] = 4
        return engine_generate(
            LLM(
                str(self.path),
                dtype=self.dtype,
                device=device,
                threads=self.threads,
                attention=setting.attention,
                prefix_caching=False,  # every sample stands for itself
                **extra,
            )
        )

    def _transformers(self, setting: Setting, device: str) -> Generate:
        import torch
        from transformers.utils.logging import disable_progress_bar

        from stille.evals.backends import load_for_transformers, transformers_generate

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        if not sys.stderr.isatty():
            disable_progress_bar()
        model = load_for_transformers(self.path, setting, self.dtype, device)
        return transformers_generate(model, self.tokenizer)


@app.command("quality", epilog=EXAMPLES_QUALITY)
def quality_command(
    models: Annotated[_List, typer.Argument(metavar="MODEL...", help="Known names, folders, deltas or .gguf files.")],
    against: Annotated[
        str | None, typer.Option(help="The base: a model that answers the same and is compared with.")
    ] = None,
    tasks: Annotated[
        _List | None, typer.Option(help="Names with commas; all: those whose data are there; none. (default: all)")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with the tasks' data. (default: evals/data in Stille's folder)")
    ] = None,
    text: Annotated[
        list[Path] | None, typer.Option(help="A file of text, for perplexity and KL; may be repeated.")
    ] = None,
    budget: Annotated[
        _List | None, typer.Option(help="Mean numbers of experts, with commas. (default: each model's own)")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions of a task, drawn at random.")] = None,
    tokens: Annotated[int, typer.Option(min=2, help="Most tokens of a text.")] = 65_536,
    length: Annotated[int, typer.Option(min=2, help="Tokens of a piece of it.")] = 1_024,
    seed: Annotated[int, typer.Option(help="Of what --limit draws.")] = 42,
    answers: Annotated[
        Path | None,
        typer.Option(help="File that keeps the answers; a run goes on from it. (default: in the cache folder)"),
    ] = None,
    as_json: Annotated[Path | None, typer.Option("--json", help="Write the results there.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables there.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, fp32 or bf16. auto: bf16 on a GPU, fp32 on a CPU.")] = "auto",
    device: options.Device = "auto",
    threads: options.Threads = None,
) -> None:
    """Standard tasks answered by likelihood, and perplexity of texts: scores, and what is retained of a base.

    Data are files of yours (docs/evals.md). Answers are kept as they come: the same command again goes on.
    """
    from stille.evals import quality
    from stille.evals.quality.sides import Side, run_sides, sides_of
    from stille.model.store import stille_home

    folder = data or stille_home() / "evals" / "data"
    names = _split(tasks or ["all"])
    chosen = [] if names == ["none"] else quality.select_tasks(names, folder)
    if not chosen and not text:
        raise typer.BadParameter("there is nothing to answer: name --tasks or a --text")
    items: list[Asked] = [item for task in chosen for item in quality.load_items(task, folder, limit, seed)]

    from stille.cli.download import fetch

    wanted = models if against is None else [against, *models]
    paths = {name: fetch(name, quiet=not sys.stderr.isatty()) for name in wanted}
    sides = sides_of(paths, models, against, _budgets(budget or []), dtype, device, threads)
    asked = [*items, *sides.windows(text or [], tokens, length)]
    file = answers or stille_home() / "evals" / "quality.jsonl"
    with _bar() as bar:

        def advance(side: Side) -> Callable[[int], None]:
            return bar(side.name, len(asked))

        try:
            given = run_sides(sides, asked, file, advance)
        except KeyboardInterrupt:
            typer.echo(f"stopped; the answers so far are in {file}, and the same command goes on from there", err=True)
            raise typer.Exit(INTERRUPTED) from None
    about: dict[str, Any] = {"models": ", ".join(models), "against": against, "dtype": sides.dtype_name}
    about |= {"device": sides.device, "questions of a task": limit or "all", "seed": seed}
    _report_quality(about, asked, given, sides.base_name, as_json, markdown)


def _report_quality(
    about: dict[str, Any],
    asked: list[Asked],
    given: dict[str, list[Answer]],
    base: str | None,
    as_json: Path | None,
    md: Path | None,
) -> None:
    from stille.evals.quality import compare, report

    kept = {} if base is None else {n: compare(asked, given[base], said) for n, said in given.items() if n != base}
    text = report.to_markdown(about, asked, given, kept)
    if as_json is not None:
        result = report.to_json(about, asked, given, kept)
        as_json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if md is not None:
        md.write_text(text, encoding="utf-8")
    typer.echo(text, nl=False)


def _budgets(texts: list[str]) -> list[float]:
    values = []
    for text in _split(texts):
        try:
            values.append(float(text))
        except ValueError:
            raise typer.BadParameter(f"{text!r} is no number of experts", param_hint="--budget") from None
    return list(dict.fromkeys(values))


def _report(
    plan: _Plan, settings: list[Setting], given: dict[str, list], samples: int, as_json: Path | None, md: Path | None
) -> None:
    from stille.evals import report
    from stille.evals.statistics import compare

    full = next((setting.name for setting in settings if setting.attention == "full"), None)
    comparisons = (
        {} if full is None else {name: compare(given[full], answers) for name, answers in given.items() if name != full}
    )
    about = {"model": plan.model, "backend": plan.backend, "dtype": plan.dtype, "samples per task": samples}
    about |= {"seed": plan.seed, "chat": plan.chat}
    text = report.to_markdown(about, given, comparisons, settings)
    if as_json is not None:
        result = report.to_json({**about, "settings": [s.as_dict() for s in settings]}, given, comparisons)
        as_json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if md is not None:
        md.write_text(text, encoding="utf-8")
    typer.echo(text, nl=False)


def _split(texts: list[str]) -> list[str]:
    return [part.strip() for text in texts for part in text.split(",") if part.strip()]


def _numbers(name: str, texts: list[str]) -> list[int]:
    values = []
    for text in _split(texts):
        if not text.isdecimal() or int(text) < 1:
            raise typer.BadParameter(f"{text!r} is no number of tokens", param_hint=f"--{name}")
        values.append(int(text))
    return list(dict.fromkeys(values))


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[str, int], Callable[[int], None]]]:
    """Progress on stderr; silent where that is no terminal.

    Yields:
        (name, total) -> a function to be told how many more are done.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from stille.cli.download import stderr_console

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr_console(quiet=not sys.stderr.isatty())) as progress:

        def add(name: str, total: int) -> Callable[[int], None]:
            task = progress.add_task(name, total=total)
            return lambda count: progress.advance(task, count)

        yield add
