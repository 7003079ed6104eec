"""`python -m stille.train.toolcalls --out data.jsonl --examples 200000 --workers 16`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from stille.errors import StilleError
from stille.train.toolcalls.generate import Split, Statistics, generate


def main(
    out: Annotated[Path, typer.Option(help="File of lines of JSON.")],
    examples: Annotated[int, typer.Option(help="Different conversations.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Of everything.")] = 0,
    split: Annotated[str, typer.Option(help="train, heldout, or a part of it: phrasings, tools, worlds.")] = "train",
    workers: Annotated[int, typer.Option(help="Processes; the result is the same.")] = 1,
    company: Annotated[float, typer.Option(help="Share of conversations in small companies with twelve tools.")] = 0.0,
) -> None:
    """Make conversations with tool calls, and say what is in them."""
    statistics, scratch = Statistics(), out.with_name(f".{out.name}.{os.getpid()}.part")
    chosen: Split = split  # pyright: ignore[reportAssignmentType] - generate refuses others
    try:
        with scratch.open("w", encoding="utf-8") as file:
            for text, _ in generate(examples, seed, chosen, workers, statistics, company):
                file.write(text + "\n")
        os.replace(scratch, out)
    except StilleError as error:
        raise typer.BadParameter(str(error)) from error
    except ModuleNotFoundError as error:
        raise typer.BadParameter(f"--company needs {error.name}: pip install 'stille[agents]'") from error
    finally:
        scratch.unlink(missing_ok=True)
    typer.echo(statistics.table())


if __name__ == "__main__":
    typer.run(main)
