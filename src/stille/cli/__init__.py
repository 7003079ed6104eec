"""The `stille` command. One file per subcommand; heavy imports happen inside the commands, so help is instant."""

import os
import sys
from typing import Annotated

import typer

from stille._version import __version__
from stille.errors import StilleError

EXIT_ERROR = 2

app = typer.Typer(
    name="stille",
    help="Serve and use language models on your own hardware.",
    epilog="Start with: stille serve, or: stille chat",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"stille {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    pass


def _register() -> None:
    from stille.cli import agent, bench, chat, convert, doctor, eval, generate, pull, scale, serve, train, watch

    for module in (serve, chat, generate, pull, convert, bench, watch):
        app.command(module.__name__.rpartition(".")[2], epilog=module.EXAMPLES)(module.command)
    app.add_typer(eval.app)
    app.add_typer(train.app)
    app.add_typer(agent.app)
    app.add_typer(scale.app)
    app.command("doctor", epilog=doctor.EXAMPLES)(doctor.command)


_register()


def main() -> None:
    """Entry point. Errors that Stille raises on purpose are one line on stderr and exit status 2."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments or os.environ.get("STILLE_DEBUG", "") not in ("", "0")
    # --debug is welcome behind the subcommand too.
    arguments = (["--debug"] if debug else []) + [argument for argument in arguments if argument != "--debug"]
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app(arguments)
    except (StilleError, OSError, ModuleNotFoundError) as error:
        missing_part = isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("stille")
        if debug or missing_part:
            raise
        _complain(error)
        sys.exit(EXIT_ERROR)


def _complain(error: Exception) -> None:
    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ModuleNotFoundError):
        asked = set(sys.argv[1:4])
        parts = {"agent": "agents", "scale": "video,scale", "watch": "video", "video": "video"}
        extra = next((parts[word] for word in parts if word in asked), "serve")
        message = f"{message}; install what this command needs with: pip install 'stille[{extra}]'"
    red, plain = ("\x1b[31m", "\x1b[0m") if sys.stderr.isatty() else ("", "")
    print(f"{red}error:{plain} {message}", file=sys.stderr)
