"""`stille chat`: a conversation in the terminal."""

from __future__ import annotations

import contextlib
import sys
from typing import Annotated

import typer

from stille.cli import options
from stille.cli.options import DEFAULT_MODEL, examples

EXAMPLES = examples(
    ("stille chat", "with the default model"),
    ('stille chat --system "Answer in one sentence."', "with instructions"),
    ('echo "What is a comet?" | stille chat', "one message per line; only answers on stdout"),
    ("stille chat --url http://127.0.0.1:8000", "with a running server"),
)


def command(
    model: options.Model = DEFAULT_MODEL,
    system: Annotated[str | None, typer.Option("--system", "-s", help="Instructions for the model.")] = None,
    url: Annotated[str | None, typer.Option("--url", help="Talk to this OpenAI-compatible server instead.")] = None,
    api_key: Annotated[
        str | None, typer.Option("--api-key", envvar="STILLE_API_KEY", help="Key for --url.", show_default=False)
    ] = None,
    max_tokens: options.MaxTokens = 1024,
    temperature: options.Temperature = 0.7,
    top_p: options.TopP = 0.95,
    top_k: options.TopK = 0,
    repetition_penalty: options.RepetitionPenalty = 1.05,
    seed: options.Seed = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    max_model_len: options.MaxModelLen = None,
    threads: options.Threads = None,
    attention: options.Attention = "full",
    hsa_budget: options.HsaBudget = None,
    max_draft_tokens: options.MaxDraftTokens = None,
    draft: options.Draft = None,
) -> None:
    """Chat with a model: streaming, with history. Type /help inside for its commands.

    Ctrl-C stops the current answer; Ctrl-D or /quit leaves.
    """
    from stille.cli.conversation import Conversation, HttpBackend, LocalBackend, Sampling
    from stille.cli.options import engine_config

    sampling = Sampling(max_tokens, temperature, top_p, top_k, repetition_penalty, seed)
    with contextlib.ExitStack() as stack:
        if url is not None:
            backend = HttpBackend(url, api_key, model if model != DEFAULT_MODEL else None)
        else:
            from stille.cli.session import open_session

            config = engine_config(
                model,
                dtype=dtype,
                device=device,
                max_model_len=max_model_len,
                threads=threads,
                max_num_seqs=1,
                attention=attention,
                hsa_budget=hsa_budget,
                max_draft_tokens=max_draft_tokens,
                draft=draft,
            )
            session = stack.enter_context(open_session(config, quiet=not sys.stderr.isatty()))
            backend = LocalBackend(session)
        conversation = Conversation(backend, sampling, system)
        if sys.stdin.isatty():
            conversation.interact()
        elif not conversation.pipe(sys.stdin):
            raise typer.Exit(2)
