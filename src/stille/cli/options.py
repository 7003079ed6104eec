"""Command-line options that several commands share, and the engine configuration they add up to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from stille.engine.config import EngineConfig

DEFAULT_MODEL = "stille-135m"  # stille.model.store.DEFAULT_MODEL, repeated here because importing that is slow

ENGINE = "Engine"
SAMPLING = "Sampling"

Model = Annotated[
    str,
    typer.Option("--model", "-m", envvar="STILLE_MODEL", help="Known name, Hugging Face repository, folder or .gguf."),
]
Dtype = Annotated[
    str,
    typer.Option(
        help="auto, fp32, bf16, fp16, int8 or int4. auto: bf16 on a GPU, int4 on a CPU (int8 with experts).",
        rich_help_panel=ENGINE,
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.", rich_help_panel=ENGINE)]
MaxModelLen = Annotated[
    int | None,
    typer.Option(
        help="Most tokens of a prompt and its answer. (default: the model's)",
        rich_help_panel=ENGINE,
        show_default=False,
    ),
]
MaxNumSeqs = Annotated[
    int | None,
    typer.Option(
        help="Most sequences computed together. (default: 32 on CPU, 256 on GPU)",
        rich_help_panel=ENGINE,
        show_default=False,
    ),
]
MaxBatchedTokens = Annotated[
    int | None,
    typer.Option(
        "--max-num-batched-tokens", help="Most tokens computed in one step.", rich_help_panel=ENGINE, show_default=False
    ),
]
KvCacheTokens = Annotated[
    int | None,
    typer.Option(
        help="Size of the KV cache in tokens. (default: by memory)", rich_help_panel=ENGINE, show_default=False
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", "-t", help="CPU threads. (default: all cores)", rich_help_panel=ENGINE, show_default=False
    ),
]
Attention = Annotated[
    str,
    typer.Option(
        help="full, or hsa: hierarchical sparse attention, for long contexts: each token reads a budget of keys.",
        rich_help_panel=ENGINE,
    ),
]
HsaBudget = Annotated[
    int | None,
    typer.Option(
        "--hsa-budget",
        help="With --attention hsa: keys that a token reads at most, a multiple of 64. "
        "Default: 2048; with int8 and int4 4096.",
        rich_help_panel=ENGINE,
        show_default=False,
    ),
]
MaxDraftTokens = Annotated[
    int | None,
    typer.Option(
        "--max-draft-tokens",
        min=0,
        max=64,
        help="Guesses that a step may check for one sequence (speculative decoding); 0: none. Answers stay the same. "
        "Default: 16 on a CPU, none on a GPU.",
        rich_help_panel=ENGINE,
        show_default=False,
    ),
]
Draft = Annotated[
    str | None,
    typer.Option(
        "--draft",
        help="Draft head (stille train draft): folder or name; auto: the model's own, none: guess without.",
        rich_help_panel=ENGINE,
        show_default="auto",
    ),
]
PrefixCaching = Annotated[
    bool,
    typer.Option(
        "--prefix-caching/--no-prefix-caching",
        help="Reuse the cache of equal prompt beginnings.",
        rich_help_panel=ENGINE,
    ),
]

MaxTokens = Annotated[
    int | None,
    typer.Option(
        "--max-tokens",
        "-n",
        min=1,
        help="Most tokens of an answer. (default: the context)",
        rich_help_panel=SAMPLING,
        show_default=False,
    ),
]
Temperature = Annotated[float, typer.Option(min=0.0, max=2.0, help="0 is greedy.", rich_help_panel=SAMPLING)]
TopP = Annotated[float, typer.Option(min=0.0, max=1.0, help="Nucleus sampling; 1 is off.", rich_help_panel=SAMPLING)]
TopK = Annotated[int, typer.Option(min=0, help="Keep the k likeliest tokens; 0 is off.", rich_help_panel=SAMPLING)]
RepetitionPenalty = Annotated[float, typer.Option(min=0.01, help="1 is off.", rich_help_panel=SAMPLING)]
Seed = Annotated[
    int | None, typer.Option(help="Makes answers reproducible.", rich_help_panel=SAMPLING, show_default=False)
]


def examples(*pairs: tuple[str, str], note: str = "") -> str:
    """An epilog for --help: (command, what it does) pairs, one per line."""
    from rich.markup import escape

    lines = ["[bold]Examples[/bold]"]
    lines += [f"[cyan]{escape(command)}[/cyan]  [dim]# {escape(text)}[/dim]" for command, text in pairs]
    return "\n\n".join(lines + ([escape(note)] if note else []))


def engine_config(model: str, *, hsa_budget: int | None = None, **settings: Any) -> EngineConfig:
    """An `EngineConfig` of the settings that were given (None means: leave the engine's default).

    Raises:
        ConfigError: a value that the engine does not take.
    """
    from stille.engine.config import EngineConfig

    if hsa_budget is not None:
        from stille.kernels.hsa import HSAConfig

        settings["hsa"] = HSAConfig(budget=hsa_budget)
    return EngineConfig(model=model, **{name: value for name, value in settings.items() if value is not None})
