"""`stille pull`: fetch a model into the cache."""

from typing import Annotated

import typer

from stille.cli.options import DEFAULT_MODEL, examples

EXAMPLES = examples(
    ("stille pull", "the default model, 98 MB"),
    ("stille pull HuggingFaceTB/SmolLM2-360M-Instruct", "from the Hugging Face Hub"),
    ("STILLE_HOME=/data/stille stille pull", "into another cache folder"),
)


def command(
    name: Annotated[str, typer.Argument(help="Known name, Hugging Face repository or folder.")] = DEFAULT_MODEL,
    offline: Annotated[bool, typer.Option("--offline", help="Only look in the cache, never at the network.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the path and nothing else.")] = False,
) -> None:
    """Fetch a model into the cache, verify it, and print where it is."""
    from stille.cli.download import fetch

    path = fetch(name, offline=offline, quiet=quiet)
    typer.echo(str(path))
