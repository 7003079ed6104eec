"""`stille train video`: the perception model, from rendered clips."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stille.cli.options import examples
from stille.cli.progress import share_bar

if TYPE_CHECKING:
    from stille.video.training import VideoTrainConfig

EXAMPLES = examples(
    ("stille train video --minutes 20 --out cam", "a model that knows nothing before, on one GPU"),
    ("stille train video --preset tiny --steps 200 --out tiny --device cpu", "a small one, on a CPU"),
    ("stille train video --minutes 60 --out cam --batch 12 --detect-batch 24", "half the memory"),
    (
        "stille train video --from stille-cam --out mine --recordings FOLDER",
        "on with the package's, on your films",
    ),
    note="First it learns to detect, from many short clips; then identities, from long ones. Clips are rendered while "
    "it learns. The same command again goes on where the run was stopped. The model comes to lie in OUT/model.",
)
INTERRUPTED = 130
RUN, WATCH = "Run", "Saving and watching"


def _option(panel: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, **more)


def command(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run: checkpoints, metrics, the model.")],
    preset: Annotated[
        str | None,
        typer.Option(
            help="base; coco: with a detector's backbone; tiny: small pictures, a small network. (default: as the "
            "first --from, else base)"
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="JSON with fields of VideoTrainConfig; options go before it.")
    ] = None,
    start: Annotated[
        list[str] | None,
        _option(
            RUN,
            "--from",
            help="Name or folder of a model to begin with; of one with another backbone, all else. Several: in turn.",
        ),
    ] = None,
    history: Annotated[
        bool | None,
        _option(
            RUN,
            "--history/--no-history",
            help="Without: each frame looked at alone, then who is who. (default: as the first --from, else with)",
        ),
    ] = None,
    steps: Annotated[int | None, _option(RUN, help="Steps of the optimizer.")] = None,
    minutes: Annotated[float | None, _option(RUN, help="Wall-clock limit. (default: 20, or by --steps)")] = None,
    learn: Annotated[str, _option(RUN, help="all, or identity: who is who alone, the rest stays.")] = "all",
    detect_share: Annotated[float, _option(RUN, help="Share of the run that learns to detect only.")] = 0.4,
    detect_batch: Annotated[int, _option(RUN, help="Clips of a step there.")] = 48,
    detect_frames: Annotated[int, _option(RUN, help="Frames of a clip there.")] = 4,
    batch: Annotated[int, _option(RUN, help="Clips of a step, once identities are learned.")] = 24,
    frames: Annotated[int, _option(RUN, help="Frames of a clip, then.")] = 16,
    repeats: Annotated[int, _option(RUN, help="How often a rendered clip is shown, mirrored and tinted anew.")] = 2,
    recordings: Annotated[
        Path | None, _option(RUN, help="Folder of real recordings with boxes, mixed into the clips.")
    ] = None,
    recordings_share: Annotated[float, _option(RUN, help="Share of the clips that are recordings.")] = 0.25,
    compile: Annotated[bool, _option(RUN, "--compile", help="The decoder through torch.compile.")] = False,
    graphs: Annotated[bool, _option(RUN, "--graphs/--no-graphs", help="On a GPU: steps as CUDA graphs.")] = True,
    micro_batch_frames: Annotated[int, _option(RUN, help="Pictures computed at once; 0: all of a step.")] = 0,
    lr: Annotated[float, _option(RUN, help="Peak learning rate.")] = 6e-4,
    backbone_lr: Annotated[float, _option(RUN, help="Share of it for the backbone.")] = 1.0,
    warmup: Annotated[int, _option(RUN, help="Steps until the peak.")] = 300,
    dtype: Annotated[str, _option(RUN, help="fp32, bf16 (float32 weights), auto: bf16 on a GPU.")] = "auto",
    device: Annotated[str, _option(RUN, help="auto, cpu or cuda.")] = "auto",
    seed: Annotated[int, _option(RUN, help="Of weights and clips.")] = 0,
    save_minutes: Annotated[float, _option(WATCH, help="Minutes between checkpoints.")] = 1.0,
    log_every: Annotated[int, _option(WATCH, help="Steps between lines of OUT/metrics.jsonl.")] = 10,
    eval_every: Annotated[int, _option(WATCH, help="Steps between evaluations; 0: at the end only.")] = 0,
    eval_clips: Annotated[int, _option(WATCH, help="Clips of an evaluation.")] = 24,
) -> None:
    """Train the perception model of cameras on clips that are rendered on the way."""
    if device not in ("auto", "cpu", "cuda"):
        raise typer.BadParameter(f"device {device!r} is unknown; choose auto, cpu or cuda")
    import torch

    from stille.errors import ConfigError
    from stille.video.model import PRESETS, StilleCamNet, begin, config_of, flops_per_frame, save
    from stille.video.scenes.ahead import Renderer
    from stille.video.training import train
    from stille.video.training.card import card, device_name, facts
    from stille.video.weights import find

    if preset is not None and preset not in PRESETS:
        raise typer.BadParameter(f"preset {preset!r} is unknown; choose {' or '.join(PRESETS)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda was asked for, but there is none here.")
    place = torch.device(device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    settings = _settings(ctx, config, place.type == "cuda")
    folders = [find(name) for name in start or ()]
    sizes = PRESETS[preset or "base"]
    if preset is None and folders:
        sizes = dataclasses.replace(config_of(folders[0]), ranges={})
    if history is not None:
        sizes = dataclasses.replace(sizes, history=history)
    torch.manual_seed(settings.seed)
    network = StilleCamNet(sizes)
    for folder in folders:
        begin(network, folder)
    flops = flops_per_frame(sizes)["total"] / 1e9
    typer.echo(
        f"{network.parameter_count:,} parameters, {flops:.2f} GFLOP per frame, on {device_name(place)}", err=True
    )

    helpers = max(0, min(12, (os.cpu_count() or 1) - 3)) if place.type == "cuda" else 0
    source = Renderer((sizes.width, sizes.height), device=place, workers=helpers)
    others = None
    if recordings is not None:
        from stille.video.training.recordings import Recordings

        others = Recordings(recordings, (sizes.width, sizes.height))
    with share_bar("training") as show:
        result = train(
            network, source, settings, out, device=place, recordings=others,
            on_step=lambda now: show(now.share, f"step {now.step}  {facts(now.metrics)}"),
        )  # fmt: skip
    source.close()
    told = f"{result.step} steps, {result.pictures:,} pictures, {result.seconds:.0f} s"
    if not result.finished:
        typer.echo(f"stopped after {told}; the same command goes on from there", err=True)
        raise typer.Exit(INTERRUPTED)
    about = "clips of the warehouse generator (`stille.video.scenes`), rendered while it learned."
    if others is not None:
        about = f"{settings.recordings_share:.0%} of each step real recordings, the rest {about}"
    text = card(result, settings, about, device_name(place), others.recordings if others is not None else ())
    save(result.network, out / "model", text, torch.int8)
    found = "".join(f", {name.removeprefix('eval_')} {value:.3f}" for name, value in result.evaluation.items())
    typer.echo(f"{out / 'model'}: {told}{found}")


def _settings(ctx: typer.Context, file: Path | None, on_gpu: bool) -> VideoTrainConfig:
    """Defaults, then the file, then what the command line says."""
    from stille.train.config import read_json
    from stille.video.training import VideoTrainConfig

    def said(name: str) -> bool:
        source = ctx.get_parameter_source(name)
        return source is not None and source.name not in ("DEFAULT", "DEFAULT_MAP")

    names = {field.name for field in dataclasses.fields(VideoTrainConfig)} & set(ctx.params)
    values: dict[str, Any] = {"dtype": "auto"} | (read_json(file) if file is not None else {})
    values |= {name: ctx.params[name] for name in names if said(name)}
    if values["dtype"] == "auto":
        values["dtype"] = "bf16" if on_gpu else "fp32"
    if ctx.params["recordings"] is not None:
        values.setdefault("recordings_share", ctx.params["recordings_share"])
    if values.get("steps") is None and values.get("minutes") is None:
        values["minutes"] = 20.0
    return VideoTrainConfig.from_dict(values)
