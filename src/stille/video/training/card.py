"""The model card of a trained network: every figure out of the run."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from stille.video.model.network import flops_per_frame
from stille.video.training.config import VideoTrainConfig
from stille.video.training.loop import Result
from stille.video.types import ATTRIBUTES, KINDS

if TYPE_CHECKING:
    from stille.video.training.recording_files import Recording

LICENCE = "apache-2.0"


def card(
    result: Result, config: VideoTrainConfig, source: str, device: str, recordings: Sequence[Recording] = ()
) -> str:
    """Text of README.md.

    Args:
        source: what the clips were, in a sentence.
        recordings: real ones that were learned from.
    """
    credits = [f"- {one.name}: {one.about.attribution} ({one.about.licence}, {one.about.source})" for one in recordings]
    from_others = ["Apache-2.0. It learned from these recordings:", "", *credits] if credits else [
        "Apache-2.0. No data of others went into it."
    ]  # fmt: skip
    network, sizes = result.network, result.network.config
    flops = flops_per_frame(sizes)
    changed = {k: v for k, v in config.identity().items() if v != VideoTrainConfig(steps=1).identity()[k]}
    lines = [
        "---", f"license: {LICENCE}", "tags: [video, detection, tracking]", "---", "",
        "# StilleCam", "",
        f"Sees {', '.join(KINDS)} in pictures of {sizes.width}x{sizes.height}, with identities from its own memory "
        f"(no tracker), attributes ({', '.join(ATTRIBUTES)}) and whether rack slots are full. Made by "
        "`stille train video`; nothing in this card is typed by hand.", "",
        f"- Parameters: {network.parameter_count:,}; {flops['total'] / 1e9:.2f} GFLOP per frame "
        f"({', '.join(f'{part} {value / 1e9:.2f}' for part, value in flops.items() if part != 'total')}).",
        f"- Data: {source} {result.pictures:,} pictures in {result.step:,} steps.",
        f"- Training: {result.seconds / 60:.1f} minutes on {device} ({config.dtype}); settings that differ from the "
        f"defaults: `{json.dumps(changed)}`.",
        f"- Long memory: {sizes.long_memory}, {sizes.long_tokens:,} tokens in leaves of {sizes.leaf}, of which an "
        f"object reads {sizes.keep}.",
        "", "## Figures", "",
        f"Averaged weights, streamed over {config.eval_clips} clips of {config.frames} frames that were not trained "
        "on, of the same kind as those that were:", "",
        "| figure | value |", "| --- | ---: |",
        *(f"| {name.removeprefix('eval_')} | {value:.4f} |" for name, value in result.evaluation.items()),
        "", "These clips are synthetic: figures on real pictures are not among these.",
        "", "## Licence", "", *from_others,
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def device_name(device: torch.device) -> str:
    """Of the accelerator, or of the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()


def facts(metrics: dict[str, Any]) -> str:
    """A line for progress bars."""
    shown = [
        ("loss", ".2f"),
        ("presence", ".3f"),
        ("overlap", ".3f"),
        ("proposals", ".2f"),
        ("attribute", ".3f"),
        ("identity_known", ".0%"),
        ("identity_new", ".0%"),
        ("identity_back", ".0%"),
        ("pictures_per_second", ".0f"),
    ]
    return "  ".join(f"{name.replace('_', ' ')} {metrics[name]:{form}}" for name, form in shown if name in metrics)
