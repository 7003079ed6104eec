"""`stille eval bfcl`: how well a model calls functions."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from stille.cli import options
from stille.cli.options import DEFAULT_MODEL, examples

EXAMPLES = examples(
    ("stille eval bfcl --limit 20", "20 questions of each category"),
    ("stille eval bfcl my-model --categories simple,live --choice required", "some, and every answer is a call"),
    ("stille eval bfcl --data FOLDER", "the folder of an unpacked bfcl-eval wheel"),
)
INTERRUPTED = 130


def bfcl_command(
    model: options.Model = DEFAULT_MODEL,
    categories: Annotated[
        list[str] | None, typer.Option(help="Categories or beginnings of their names, with commas. (default: all)")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions of a category, drawn at random.")] = None,
    seed: Annotated[int, typer.Option(help="Of what --limit draws.")] = 0,
    choice: Annotated[
        str, typer.Option(help="auto: the model decides whether it calls; required: it has to.")
    ] = "auto",
    single: Annotated[bool, typer.Option("--single", help="At most one call in an answer.")] = False,
    max_tokens: Annotated[int, typer.Option(min=16, help="Most tokens of an answer.")] = 256,
    data: Annotated[Path | None, typer.Option(help="Folder that holds bfcl_eval. (default: the installed one)")] = None,
    answers: Annotated[
        Path | None,
        typer.Option(help="File that keeps the results; a run goes on from it. (default: in the cache folder)"),
    ] = None,
    as_json: Annotated[Path | None, typer.Option("--json", help="Write the results there.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the table there.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Conversations at a time.")] = 8,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    threads: options.Threads = None,
) -> None:
    """The Berkeley Function-Calling Leaderboard, its categories that run offline, with answers held to a grammar.

    Needs the package's data and checkers: pip install --no-deps bfcl-eval==2026.3.23. Results are kept as they come:
    the same command again goes on.
    """
    from stille.cli.download import fetch
    from stille.engine.llm import LLM
    from stille.evals import bfcl
    from stille.evals.protocol import AnswerStore, describe
    from stille.evals.settings import code_fingerprint, fingerprint
    from stille.evals.tool_calls import Asked, Said, ToolCaller
    from stille.model.store import stille_home

    if choice not in ("auto", "required"):
        raise typer.BadParameter(f"choice {choice!r} is unknown; choose auto or required", param_hint="--choice")
    named = [part.strip() for text in categories or ["all"] for part in text.split(",") if part.strip()]
    chosen = bfcl.select_categories(named)
    package = bfcl.Package(data)
    questions = [question for name in chosen for question in bfcl.select_questions(package, name, limit, seed)]
    path = fetch(model, quiet=not sys.stderr.isatty())
    made: list[ToolCaller] = []

    def ask(asked: Sequence[Asked]) -> list[Said]:
        if not made:
            extra = {"max_num_seqs": batch} if device == "cpu" else {}
            llm = LLM(str(path), dtype=dtype, device=device, threads=threads, **extra)
            made.append(ToolCaller(llm, choice=choice, parallel=not single, max_tokens=max_tokens))  # type: ignore[arg-type]
        return made[0](asked)

    setting = describe(
        model=fingerprint(path),
        code=code_fingerprint(),
        choice=choice,
        max_tokens=max_tokens,
        dtype=dtype,
        device=device,
    )
    store = AnswerStore(answers or stille_home() / "evals" / "bfcl.jsonl")
    begun = time.perf_counter()
    from stille.cli.eval import _bar

    with _bar() as bar:
        advance = bar("questions", len(questions))
        try:
            results = bfcl.answer(
                package, questions, ask, batch=batch, setting=setting, store=store, on_result=lambda _: advance(1)
            )
        except KeyboardInterrupt:
            kept = f"stopped; the results so far are in {store.path}, and the same command goes on from there"
            typer.echo(kept, err=True)
            raise typer.Exit(INTERRUPTED) from None
    about = {
        "model": model,
        "tool choice": choice + (", one call an answer" if single else ""),
        "questions of a category": limit or "all",
        "seed": seed,
        "most tokens of an answer": max_tokens,
        "seconds": round(time.perf_counter() - begun, 1),
    }
    text = bfcl.to_markdown(about, results)
    if as_json is not None:
        as_json.write_text(json.dumps(bfcl.to_json(about, results), indent=2) + "\n", encoding="utf-8")
    if markdown is not None:
        markdown.write_text(text, encoding="utf-8")
    typer.echo(text, nl=False)
