"""Stage "delta": the finished folder, and its card, made of what the stages noted."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from stille.model.convert.delta import read_delta, write_delta
from stille.model.load import folder_config
from stille.train.default.judge import JUDGEMENT
from stille.train.default.making import MODEL
from stille.train.default.settings import DefaultSettings
from stille.train.default.stages import Context, note_of

DELTA, CARD = "delta", "README.md"
LICENCE = "apache-2.0"


def inputs(settings: DefaultSettings) -> dict[str, Any]:
    """What the stage reads."""
    return {"name": settings.result_name, "text": settings.text, "samples": settings.samples, "gate": settings.gate}


def run(context: Context) -> dict[str, Any]:
    """`DELTA`: the distilled delta with its card, the judgement and the plots."""
    judged = context.done["judge"]
    extra = {file.name: file.read_bytes() for file in sorted(judged.iterdir()) if file.suffix in (".json", ".png")}
    extra.pop("stage.json", None)
    notes = {name: note_of(folder) for name, folder in context.done.items()}
    judgement = json.loads(extra[JUDGEMENT])
    extra[CARD] = card(context.settings, context.device, notes, judgement, "judge.png" in extra).encode()
    size = copy_delta(context.done["distill"] / MODEL, context.folder / DELTA, extra)
    return {"bytes": size}


def place(stage: Path, out: Path, name: str) -> Path:
    """Bring the finished delta to `out / name`, unless it is there; returns that folder."""
    source, target = stage / DELTA, out / name
    if _same(source, target):
        return target
    extra = {f.name: f.read_bytes() for f in source.iterdir() if f.suffix in (".json", ".png", ".md")}
    for own in ("delta.json", "config.json"):
        extra.pop(own, None)
    copy_delta(source, target, extra)
    return target


def _same(source: Path, target: Path) -> bool:
    """By the tensors' digest, which is in the file's name, and by the cards."""
    files = [*(file.name for file in source.glob("delta-*.safetensors")), CARD]
    if not all((target / name).is_file() for name in files):
        return False
    return (source / CARD).read_bytes() == (target / CARD).read_bytes()


def copy_delta(source: Path, target: Path, extra: Mapping[str, bytes]) -> int:
    """Write a delta again, elsewhere (it knows the way to its base), with other files beside it; returns its bytes.

    Raises:
        ConfigError: the target is there and is no delta.
    """
    delta = read_delta(source)
    config, tensors = folder_config(source), load_file(delta.file)
    write_delta(target, config, delta.base_source(), delta.digests, tensors, delta.about, extra)
    return sum(file.stat().st_size for file in target.iterdir())


def card(
    settings: DefaultSettings, device: str, notes: dict[str, dict[str, Any]], judgement: dict[str, Any], plot: bool
) -> str:
    """The model card, every figure out of the notes and the judgement."""
    trained, samples, target = notes["distill"]["found"], notes["samples"]["found"], judgement["target_k"]
    made, whole = notes["distill"], "norms and gates" if settings.gates == "learned" else "norms"
    minutes = sum(note["seconds"] for note in notes.values()) / 60
    domains = judgement["domains"]
    chosen = "as many experts as a token needs" if settings.gate == "threshold" else "the same number for each token"
    lines = [
        "---", f"license: {LICENCE}", f"base_model: {trained['base']}", "---", "",
        f"# {settings.result_name}", "",
        f"A delta on `{trained['base']}`: the same model, its feed-forward networks split into a shared expert and "
        f"{settings.num_experts} routed ones, of which a gate chooses {chosen}, {target:g} on average. "
        f"Made by `stille train default`; nothing in this card is typed by hand.",
        "", "## How it was made", "",
        f"- Base: `{trained['base']}`; embeddings and head are unchanged, attention and feed-forward matrices changed "
        f"by pairs of rank {trained['rank']}, {whole} trained whole.",
        f"- Text: {_text(settings, samples)}",
        f"- Distillation: {trained['steps']:,} steps, {trained['tokens']:,} tokens, "
        f"{trained['seconds'] / 60:.1f} minutes, {trained['dtype']} arithmetic; loss: KL to the base "
        f"x {settings.loss.kl:g}, error of each layer's output x {settings.loss.layers:g}.",
        *_grid(settings),
        f"- All stages: {minutes:.1f} minutes on {made['machine']}; code {made['commit']}, {made['date']}.",
        f"- Command: `stille train default --out OUT --device {device} --config settings.json`, where settings.json "
        f"says what differs from the defaults: `{json.dumps(changed(settings, device))}`.",
        "", "| stage | minutes |", "| --- | ---: |",
        *(f"| {name} | {note['seconds'] / 60:.1f} |" for name, note in notes.items()),
        "", "## What is lost", "",
        "Against the dense base, on text that no stage was trained on. KL in nats; the ratio is perplexity over the "
        "base's; MaxVio is the largest of all layers.", "",
        "| text | tokens | budget | mean k | KL | perplexity ratio | MaxVio | worst batch of 4,096 | dead experts |",
        "| --- | ---: |" + " ---: |" * 7,
    ]  # fmt: skip
    for name, domain in domains.items():
        for each in domain["budgets"]:
            batch = "" if each["worst_batch"] is None else f"{each['worst_batch']:.2f}"
            lines.append(
                f"| {name} | {domain['tokens']:,} | {each['budget']:g} | {each['mean_k']:.2f} | {each['kl']:.4f} | "
                f"{each['perplexity_ratio']:.4f} | {max(each['max_violation']):.2f} | {batch} | {each['dead']} |"
            )
    lines += ["", f"## Experts by uncertainty, at budget {target:g}", ""]
    lines += ["Mean number of experts of the tokens in each decile of the base's next-token entropy, least first.", ""]
    lines += ["| text |" + "".join(f" {n} |" for n in range(1, 11)), "| --- |" + " ---: |" * 10]
    for name, domain in domains.items():
        deciles = next(each for each in domain["budgets"] if each["budget"] == target)["k_by_entropy"]
        lines.append(f"| {name} |" + "".join(f" {decile['k']:.2f} |" for decile in deciles))
    lines += ["", "![Judgement](judge.png)"] if plot else []
    lines += ["", "## Licence", "", "Apache-2.0, as its base."]
    return "\n".join(lines) + "\n"


def _grid(settings: DefaultSettings) -> list[str]:
    if settings.quantize == "none":
        return []
    return [
        f"- Weights were rounded to {settings.quantize} while it learned, as `stille serve` does on a CPU. The changes "
        "are kept unrounded; both are judged below."
    ]


def _text(settings: DefaultSettings, samples: dict[str, Any]) -> str:
    local = ", ".join(Path(file).name for file in settings.text) or "Python's standard library"
    if "source" in samples:
        return f"`{samples['source']}`, and {local}."
    tokens, kinds = sum(samples["tokens"].values()), samples["kinds"]
    told = ", ".join(f"{count:,} of kind {kind}" for kind, count in sorted(kinds.items()))
    return f"{tokens:,} tokens written by the base itself ({told}), and {local}."


def changed(settings: DefaultSettings, device: str) -> dict[str, Any]:
    """Settings that are not the device's defaults, as JSON's types; of files the names."""
    usual = vars(DefaultSettings().filled(device))
    found = {name: value for name, value in vars(settings).items() if value != usual[name]}
    if settings.samples is not None:
        found["samples"] = Path(settings.samples).name
    if Path(settings.base).exists():
        found["base"] = Path(settings.base).name
    if "text" in found:
        found["text"] = [Path(file).name for file in found["text"]]
    if "judge" in found:
        found["judge"] = [[name, Path(file).name] for name, file in found["judge"]]
    if "loss" in found:
        found["loss"] = vars(found["loss"])
    return found
