"""`stille bench`: how fast this machine runs the engine."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from stille.cli import options
from stille.cli.options import DEFAULT_MODEL, examples

EXAMPLES = examples(
    ("stille bench", "the default model, about a minute"),
    ("stille bench --dtype fp32 --threads 1", "another arithmetic, one thread"),
    ("stille bench --json", "for programs"),
    note="stille bench --dtype fp32 --threads 1 another arithmetic, one thread",
)


def command(
    model: options.Model = DEFAULT_MODEL,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Length of the prompt of prefill.")] = 512,
    output_tokens: Annotated[int, typer.Option(min=8, help="Length of the answers.")] = 64,
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Batch sizes of decoding. (default: 1, 8)", show_default=False)
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each; the median counts.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    threads: options.Threads = None,
    attention: options.Attention = "full",
    hsa_budget: options.HsaBudget = None,
    max_draft_tokens: options.MaxDraftTokens = None,
    draft: options.Draft = None,
) -> None:
    """Measure prefill, decode and time to the first token of this machine's engine."""
    from stille.cli import measure
    from stille.cli.options import engine_config
    from stille.cli.session import open_session

    sizes = batch or [1, 8]
    length = max(prompt_tokens + 1, measure.DECODE_PROMPT + output_tokens)
    config = engine_config(
        model,
        dtype=dtype,
        device=device,
        threads=threads,
        attention=attention,
        hsa_budget=hsa_budget,
        max_draft_tokens=max_draft_tokens or 0,  # every run has the same answers: they would be guessed
        draft=draft,
        max_num_seqs=max(sizes),
        max_model_len=length,
        kv_cache_tokens=max(sizes) * (length + 64),
        prefix_caching=False,  # every run must compute its prompt
    )
    quiet = not sys.stderr.isatty()
    with open_session(config, quiet=quiet) as session:
        result = session.run(measure.run(session, prompt_tokens, output_tokens, sizes, repeats))
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        _print(result)


def _print(result: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    title = (
        f"{result['model']} · {result['dtype']} on {result['device']} · {result['threads']} threads · "
        f"{result['attention']} attention"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("measure")
    table.add_column("median", justify="right")
    table.add_column("range", justify="right")
    table.add_column("unit")
    for row in result["measures"]:
        table.add_row(row["name"], f"{row['value']:.1f}", f"{row['low']:.1f} - {row['high']:.1f}", row["unit"])
    Console().print(table)
