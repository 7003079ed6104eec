"""`stille convert`: a dense checkpoint in, a model with experts out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from stille.cli.options import DEFAULT_MODEL, examples

EXAMPLES = examples(
    ("stille convert my-delta", "the default model, Python's library as text: minutes on two cores"),
    ("stille convert out --model org/name --text a.txt --text b.txt", "another dense model, your text"),
    ("stille convert out --model FOLDER --experts 8 --shared-size 1024", "other sizes"),
    ("stille convert out --full", "all tensors in one folder, not a delta on the base"),
    ("stille generate 'Hello' --model my-delta", "a delta is a model: it finds its base by itself"),
    note="What it does: each layer's FFN is split. The neurons that add most become a shared expert, which every token "
    "runs; the others are grouped by the tokens they fire on, into experts of equal size. A gate learns from the text "
    "how much each expert would add to a token, and thresholds make a token run as many experts as it needs, 4.8 on "
    "average unless you say otherwise, each expert equally often. With all experts the model is the dense one. "
    "Nothing is trained beyond the gates: the report in the folder says what is lost at which number of experts.",
)
SIZES, LOOKED_AT, RUN = "What is made", "What is looked at", "How it runs"
INTERRUPTED = 130


def command(
    folder: Annotated[Path, typer.Argument(help="Where the result goes: a new folder, or a delta to be replaced.")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="Dense model: known name, Hugging Face repository, folder or .gguf.")
    ] = DEFAULT_MODEL,
    full: Annotated[
        bool, typer.Option("--full", help="Write a whole checkpoint instead of a delta.", rich_help_panel=SIZES)
    ] = False,
    experts: Annotated[int, typer.Option(min=1, help="Routed experts of a layer.", rich_help_panel=SIZES)] = 16,
    shared_size: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Neurons of the shared expert. With the experts' they make the dense FFN's. (default: about half)",
            rich_help_panel=SIZES,
            show_default=False,
        ),
    ] = None,
    expert_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Neurons of a routed expert. (default: an equal part of the others)",
            rich_help_panel=SIZES,
            show_default=False,
        ),
    ] = None,
    router_size: Annotated[
        int, typer.Option(min=0, help="Inner width of the gate; 0 is one linear map.", rich_help_panel=SIZES)
    ] = 128,
    gate: Annotated[
        str,
        typer.Option(
            help="threshold: as many experts as a token needs. top_k: the same number for all.", rich_help_panel=SIZES
        ),
    ] = "threshold",
    target_k: Annotated[
        float, typer.Option(help="Mean number of experts of a token; can be changed later.", rich_help_panel=SIZES)
    ] = 4.8,
    min_k: Annotated[int, typer.Option(min=0, help="Least experts of a token.", rich_help_panel=SIZES)] = 1,
    max_k: Annotated[
        int | None,
        typer.Option(min=1, help="Most experts of a token. (default: all)", rich_help_panel=SIZES, show_default=False),
    ] = None,
    layer_budgets: Annotated[
        bool | None,
        typer.Option(
            help="Give more experts to layers that lose more with few of them, or the same to all. "
            "(default: more, but not with top_k)",
            rich_help_panel=SIZES,
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            help="File with text like that which the model will see; several times for several. "
            "(default: sources and docstrings of Python's standard library)",
            rich_help_panel=LOOKED_AT,
            show_default=False,
        ),
    ] = None,
    tokens: Annotated[
        int,
        typer.Option(
            help="Tokens of text to calibrate with; layers x hidden size x 2 bytes of disk each.",
            rich_help_panel=LOOKED_AT,
        ),
    ] = 32_768,
    held_out: Annotated[
        int,
        typer.Option(min=0, help="Tokens of other text, to judge with; 0: do not judge.", rich_help_panel=LOOKED_AT),
    ] = 4_096,
    length: Annotated[int, typer.Option(help="Tokens of a sequence.", rich_help_panel=LOOKED_AT)] = 512,
    steps: Annotated[
        int, typer.Option(min=1, help="Steps of fitting the gate of a layer.", rich_help_panel=LOOKED_AT)
    ] = 400,
    gate_tokens: Annotated[
        int,
        typer.Option(
            min=0,
            help="Tokens of further text on which all gates go on to be fitted, as many as there are. Worth it on a "
            "GPU: two cores take about a hundred in a second.",
            rich_help_panel=LOOKED_AT,
        ),
    ] = 0,
    fisher: Annotated[
        float,
        typer.Option(
            min=0,
            help="With --gate-tokens: weight of gradients (how much predictions depend on an expert) beside its size.",
            rich_help_panel=LOOKED_AT,
        ),
    ] = 0.5,
    seed: Annotated[int, typer.Option(help="Of the choice of text and the gates.", rich_help_panel=LOOKED_AT)] = 0,
    work: Annotated[
        Path | None,
        typer.Option(
            help="Folder of finished stages, from which the same command goes on. (default: FOLDER.work)",
            rich_help_panel=RUN,
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help="fp32 or bf16, while it runs.", rich_help_panel=RUN)] = "fp32",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.", rich_help_panel=RUN)] = "auto",
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", "-t", min=1, help="CPU threads. (default: all cores)", rich_help_panel=RUN, show_default=False
        ),
    ] = None,
) -> None:
    """Split a dense model into experts, of which each token runs as many as it needs.

    Takes Llama, Mistral, Qwen2, Qwen3, SmolLM2 and what shares their architecture. The result is a delta: a folder with
    gates, thresholds and an order of the neurons, a few megabytes, which is loaded on top of the dense checkpoint.
    """
    if dtype not in ("fp32", "bf16"):
        raise typer.BadParameter(f"dtype {dtype!r} is unknown; choose fp32 or bf16")
    if device not in ("auto", "cpu", "cuda"):
        raise typer.BadParameter(f"device {device!r} is unknown; choose auto, cpu or cuda")
    if layer_budgets and gate == "top_k":
        raise typer.BadParameter("--layer-budgets needs thresholds: with top_k all layers run the same number")
    import torch

    from stille.cli.download import fetch
    from stille.model.convert.pipeline import ConvertSettings, convert

    settings = ConvertSettings(
        num_experts=experts,
        shared_size=shared_size,
        expert_size=expert_size,
        router_size=router_size,
        gate=gate,
        target_k=target_k,
        min_k=min_k,
        max_k=max_k,
        tokens=tokens,
        held_out=held_out,
        length=length,
        steps=steps,
        gate_tokens=gate_tokens,
        fisher=fisher,
        layer_budgets=layer_budgets is not False,
        seed=seed,
    )
    if threads is not None:
        torch.set_num_threads(threads)
    fetch(model, quiet=not sys.stderr.isatty())
    try:
        done = convert(
            model,
            folder,
            settings,
            text=text or (),
            work=work,
            whole=full,
            dtype=torch.float32 if dtype == "fp32" else torch.bfloat16,
            device=device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu",
        )
    except KeyboardInterrupt:
        typer.echo("stopped; what is finished is kept, and the same command goes on from there", err=True)
        raise typer.Exit(INTERRUPTED) from None
    typer.echo((done.folder / "report.md").read_text(encoding="utf-8"), nl=False)
    typer.echo(f"wrote {done.folder}; {done.work} holds finished stages and can be removed", err=True)
