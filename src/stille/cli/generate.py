"""`stille generate`: one prompt, or a file of them."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from stille.cli import options
from stille.cli.options import DEFAULT_MODEL, examples

EXAMPLES = examples(
    ('stille generate "Why is the sky blue?"', "one question"),
    ('cat article.txt | stille generate -s "Summarise the text."', "the prompt from stdin"),
    ('stille generate --raw "Once upon a time" -n 200', "continue a text, no chat template"),
    ("stille generate --json-schema person.json 'Invent a person.'", "an answer that is valid for a schema"),
    ("stille generate -i prompts.jsonl -o answers.jsonl", "many; run again to go on after a break"),
    note='A line of the input is {"prompt": "..."} or {"messages": [...]}, with an optional "id" and optional sampling '
    'parameters ("max_tokens", "temperature", "grammar": {"json_schema": {...}}, ...). A .txt input has one prompt per '
    "line.",
)


def command(
    prompt: Annotated[str | None, typer.Argument(help="The prompt; - or nothing reads stdin.")] = None,
    input: Annotated[Path | None, typer.Option("--input", "-i", help="JSONL or .txt file of prompts.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="JSONL file of answers; what it already answers is kept.")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without the chat template.")] = False,
    system: Annotated[str | None, typer.Option("--system", "-s", help="Instructions for the model.")] = None,
    model: options.Model = DEFAULT_MODEL,
    max_tokens: options.MaxTokens = 512,
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    top_k: options.TopK = 0,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    seed: options.Seed = None,
    json_schema: Annotated[
        Path | None,
        typer.Option(help="File with a JSON schema that answers must be valid for.", rich_help_panel=options.SAMPLING),
    ] = None,
    regex: Annotated[
        str | None,
        typer.Option(help="Regular expression that answers must match as a whole.", rich_help_panel=options.SAMPLING),
    ] = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    max_model_len: options.MaxModelLen = None,
    max_num_seqs: options.MaxNumSeqs = None,
    threads: options.Threads = None,
    attention: options.Attention = "full",
    hsa_budget: options.HsaBudget = None,
    max_draft_tokens: options.MaxDraftTokens = None,
    draft: options.Draft = None,
) -> None:
    """Generate text for one prompt or for a file of prompts. Greedy unless told otherwise."""
    from stille.cli import batch
    from stille.cli.options import engine_config
    from stille.cli.session import open_session

    if input is not None and prompt is not None:
        raise typer.BadParameter("give a prompt or --input, not both")
    if raw and system is not None:
        raise typer.BadParameter("--system needs the chat template; leave --raw out")
    if json_schema is not None and regex is not None:
        raise typer.BadParameter("give --json-schema or --regex, not both")
    defaults = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
    }
    if json_schema is not None:
        defaults["grammar"] = {"json_schema": batch.read_schema(json_schema)}
    elif regex is not None:
        defaults["grammar"] = {"regex": regex}
    # Everything that can be wrong with the input is found before the model is loaded.
    if input is not None:
        jobs = batch.read_jobs(input, defaults, raw=raw, system=system)
    else:
        text = sys.stdin.read() if prompt in (None, "-") else prompt
        if not text.strip():
            raise typer.BadParameter("the prompt is empty")
        jobs = [batch.Job(id=0, prompt=text, messages=None, params=batch.sampling(defaults))]
        if not raw:
            jobs = [batch.as_chat(jobs[0], system)]
    done = batch.finished_ids(output) if output is not None else set()
    todo = [job for job in jobs if job.id not in done]
    if not todo:
        typer.echo(f"nothing to do: all {len(jobs)} answers are in {output}", err=True)
        return

    config = engine_config(
        model,
        dtype=dtype,
        device=device,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs if input is not None else 1,
        threads=threads,
        attention=attention,
        hsa_budget=hsa_budget,
        max_draft_tokens=max_draft_tokens,
        draft=draft,
    )
    with contextlib.ExitStack() as stack:
        quiet = not sys.stderr.isatty()
        session = stack.enter_context(open_session(config, quiet=quiet))
        if input is None and output is None:
            batch.stream_one(session, todo[0])
            return
        sink = stack.enter_context(open(output, "a", encoding="utf-8")) if output is not None else sys.stdout
        failed = batch.run(session, todo, sink, already=len(jobs) - len(todo), quiet=quiet)
    if failed:
        typer.echo(f"error: {failed} of {len(todo)} prompts failed; their lines have an 'error' key", err=True)
        raise typer.Exit(2)
