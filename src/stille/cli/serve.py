"""`stille serve`: the OpenAI-compatible server."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import dataclasses
import json
import logging
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stille.cli import options
from stille.cli.options import DEFAULT_MODEL, examples

if TYPE_CHECKING:
    from rich.console import Console

    from stille.server.data_dir import DataLock

EXAMPLES = examples(
    ("stille serve", "the default model on http://127.0.0.1:8000"),
    ("stille serve --model ./my-model --port 9000", "a folder, a .gguf file or a Hub repository"),
    ('stille serve --host 0.0.0.0 --api-key "$KEY"', "for other machines, with a key"),
    ("stille serve --dtype fp32", "exact arithmetic instead of the fastest"),
    ("stille serve --model ./long --attention hsa", "sparse attention, for long contexts"),
)

SERVER = "Server"
M_ARENA_MAX = -8  # malloc.h
log = logging.getLogger("stille.server")


def command(
    model: options.Model = DEFAULT_MODEL,
    host: Annotated[str, typer.Option(help="Address to listen on.", rich_help_panel=SERVER)] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", "-p", min=0, max=65535, help="Port; 0 picks a free one.", rich_help_panel=SERVER)
    ] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="STILLE_API_KEY", help="Key that clients must send.", rich_help_panel=SERVER, show_default=False
        ),
    ] = None,
    served_model_name: Annotated[
        list[str] | None,
        typer.Option(
            help="Name that clients use for the model; may be repeated.", rich_help_panel=SERVER, show_default=False
        ),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            help="Origin that browsers may call from; may be repeated; '*' is any.",
            rich_help_panel=SERVER,
            show_default=False,
        ),
    ] = None,
    max_body_mb: Annotated[float, typer.Option(min=0.01, help="Largest request body.", rich_help_panel=SERVER)] = 4.0,
    drain_timeout: Annotated[
        float, typer.Option(min=0.0, help="Seconds that SIGTERM waits for running requests.", rich_help_panel=SERVER)
    ] = 30.0,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            help="Folder of what survives a restart: uploaded files, batches, responses. (default: "
            "$STILLE_HOME/server, else ~/.cache/stille/server)",
            rich_help_panel=SERVER,
            show_default=False,
        ),
    ] = None,
    max_file_mb: Annotated[
        float, typer.Option(min=0.01, help="Largest file that clients may upload.", rich_help_panel=SERVER)
    ] = 200.0,
    max_batch_seqs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Most sequences of batches computed together. (default: max-num-seqs less one in 16)",
            rich_help_panel=SERVER,
            show_default=False,
        ),
    ] = None,
    log_format: Annotated[str, typer.Option(help="text or json.", rich_help_panel=SERVER)] = "text",
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.", rich_help_panel=SERVER)] = "info",
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    max_model_len: options.MaxModelLen = None,
    max_num_seqs: options.MaxNumSeqs = None,
    max_num_batched_tokens: options.MaxBatchedTokens = None,
    kv_cache_tokens: options.KvCacheTokens = None,
    max_queue: Annotated[
        int | None,
        typer.Option(
            help="Most requests that wait; more get 429. (default: 4 x max-num-seqs)",
            rich_help_panel=options.ENGINE,
            show_default=False,
        ),
    ] = None,
    prefix_caching: options.PrefixCaching = True,
    threads: options.Threads = None,
    attention: options.Attention = "full",
    hsa_budget: options.HsaBudget = None,
    max_draft_tokens: options.MaxDraftTokens = None,
    draft: options.Draft = None,
) -> None:
    """Serve a model over an OpenAI-compatible HTTP API.

    SIGTERM or Ctrl-C finishes the running requests first; a second one leaves at once.
    """
    from stille.cli.download import fetch, stderr_console
    from stille.cli.options import engine_config
    from stille.model.store import stille_home
    from stille.server import logs
    from stille.server.lifecycle import bind, run_server
    from stille.server.settings import ServerSettings

    if log_format not in ("text", "json"):
        raise typer.BadParameter(f"'{log_format}' is neither text nor json", param_hint="--log-format")
    if log_level not in logs.LEVELS:
        raise typer.BadParameter(f"'{log_level}' is not one of {', '.join(logs.LEVELS)}", param_hint="--log-level")
    settings = ServerSettings(
        served_model_names=tuple(served_model_name or ()),
        api_key=api_key,
        cors_origins=tuple(cors_origin or ()),
        max_body_bytes=int(max_body_mb * 2**20),
        drain_timeout_s=drain_timeout,
        max_file_bytes=int(max_file_mb * 2**20),
        max_batch_seqs=max_batch_seqs,
    )
    config = engine_config(
        model,
        dtype=dtype,
        device=device,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        kv_cache_tokens=kv_cache_tokens,
        max_queue=max_queue,
        prefix_caching=prefix_caching,
        threads=threads,
        attention=attention,
        hsa_budget=hsa_budget,
        max_draft_tokens=max_draft_tokens,
        draft=draft,
    )
    logs.configure(log_level, log_format)
    _few_arenas()
    console = stderr_console(quiet=log_format == "json")
    sock = bind(host, port)
    lock = _lock(data_dir, stille_home() / "server")
    settings = dataclasses.replace(settings, data_dir=None if lock is None else lock.path)
    fetch(model, quiet=log_format == "json")

    from stille.engine.async_llm import AsyncLLM
    from stille.server.app import create_app

    started = time.perf_counter()
    with console.status(f"Loading {model}"):
        engine = AsyncLLM(config)
        asyncio.run(engine.start())
    log.info("model loaded in %.1f s", time.perf_counter() - started)
    app = create_app(engine, settings, lock)
    name = app.state.stille.model_names[0]
    raise typer.Exit(run_server(app, sock, on_started=lambda: _announce(console, sock, host, name, api_key)))


def _few_arenas() -> None:
    """glibc keeps what threads have freed apart, by thread: 16 prompts of 60 KB that were refused at the same time left
    109 MiB behind, with two arenas 27. Elsewhere it does nothing."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)


def _lock(given: Path | None, usual: Path) -> DataLock | None:
    """The data directory, taken before the model is loaded so that a conflict shows at once.

    The usual one may be in use, by a second server on the machine, or not writable; then there is none.
    """
    from stille.errors import ConfigError
    from stille.server.data_dir import DataLock

    try:
        return DataLock(given or usual)
    except ConfigError as error:
        if given is not None:
            raise
        log.warning("no files and batches, and nothing is kept on disk: %s", error)
        return None


def _announce(console: Console, sock: socket.socket, host: str, name: str, api_key: str | None) -> None:
    port = sock.getsockname()[1]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    url = f"http://{shown}:{port}"
    if console.quiet:
        log.info("serving %s on %s", name, url)
        return
    body = json.dumps({"model": name, "messages": [{"role": "user", "content": "Say hello in three languages."}]})
    key = "  -H 'Authorization: Bearer YOUR_KEY' \\\n" if api_key else ""
    console.print(
        f"\n[bold green]Serving {name} on {url}[/bold green]  (docs: {url}/docs)\n\nTry it:\n", highlight=False
    )
    console.print(
        f"curl {url}/v1/chat/completions \\\n  -H 'Content-Type: application/json' \\\n{key}  -d '{body}'\n",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
