"""Draft heads on disk: a folder with `draft.json` and `draft-<sha256>.safetensors`.

Matrices are int8 with a float32 factor for each row (`<name>.scales`), or bfloat16; vectors are float32.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stille._version import __version__
from stille.errors import CheckpointError, ConfigError, ModelNotFoundError

if TYPE_CHECKING:
    from stille.model.decoder import StilleForCausalLM

DRAFT_FILE, FORMAT = "draft.json", 1
SCALES = ".scales"
BUNDLED = Path(__file__).parents[1] / "bundled"
SAMPLED = 4096  # values of each tensor that a fingerprint reads


@dataclass(frozen=True)
class Target:
    """Which model a head was trained for.

    Attributes:
        name: as it was asked for.
        embeddings, weights: see `fingerprint`.
    """

    name: str = ""
    embeddings: str = ""
    weights: str = ""


def fingerprint(model: "StilleForCausalLM") -> tuple[str, str]:
    """What tells targets apart: sha256 of embeddings and head, and of all weights.

    Up to 4,096 values of each tensor are read, spread evenly, in bfloat16: so both are the same for a model in float32
    and in bfloat16, and take no time to speak of.
    """
    whole, vocabulary = hashlib.sha256(), hashlib.sha256()
    for name, value in sorted(model.named_parameters()):
        flat = value.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // SAMPLED)][:SAMPLED].to(torch.bfloat16).cpu()
        data = f"{name} {list(value.shape)}".encode() + sample.view(torch.int16).numpy().tobytes()
        whole.update(data)
        if name.startswith(("model.embed_tokens.", "lm_head.")):
            vocabulary.update(data)
    return vocabulary.hexdigest(), whole.hexdigest()


def is_draft(path: str | Path) -> bool:
    """Whether a path is the folder of a draft head."""
    return (Path(path) / DRAFT_FILE).is_file()


def resolve_draft(source: str | Path) -> Path:
    """The folder of a draft head: the given one, or that which comes with a model of this package, by its name.

    Raises:
        ModelNotFoundError: neither is there.
    """
    path = Path(source).expanduser()
    if is_draft(path):
        return path
    bundled = BUNDLED / f"{source}-draft"
    if str(source) == path.name and is_draft(bundled):
        return bundled
    what = f"holds no {DRAFT_FILE}" if path.is_dir() else "is neither a folder nor the name of a model with a head"
    raise ModelNotFoundError(f"draft head {str(source)!r} {what}; make one with `stille train draft`.")


def check_place(folder: Path) -> None:
    """Whether a head may be written there.

    Raises:
        ConfigError: it is a file, or a folder with something else in it.
    """
    if folder.exists() and not is_draft(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and is no draft head; name a new folder, or remove it first.")


def write(
    folder: Path, values: Mapping[str, Any], tensors: Mapping[str, Tensor], extra: Mapping[str, str] | None = None
) -> None:
    """Write a head's folder, whole or not at all.

    Args:
        folder: see `check_place`.
        values: of `draft.json`, beside format and file.
        tensors: as they are stored.
        extra: text of other files, by name.
    """
    check_place(folder)
    temporary = folder.parent / f".{folder.name}.{os.getpid()}.part"
    temporary.mkdir(parents=True)
    try:
        file = temporary / "draft.safetensors"
        save_file({name: value.contiguous() for name, value in tensors.items()}, file)
        digest = _digest(file)
        file = file.rename(temporary / f"draft-{digest[:12]}.safetensors")
        entry = {"name": file.name, "bytes": file.stat().st_size, "sha256": digest}
        for name, content in (extra or {}).items():
            (temporary / name).write_text(content, encoding="utf-8")
        text = json.dumps({"format": FORMAT, "stille": __version__, **values, "file": entry}, indent=1) + "\n"
        (temporary / DRAFT_FILE).write_text(text, encoding="utf-8")
        file.chmod((temporary / DRAFT_FILE).stat().st_mode)  # safetensors' files are for the owner alone
        old = temporary.with_suffix(".old")
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read(folder: Path) -> dict[str, Any]:
    """What `draft.json` says.

    Raises:
        CheckpointError: it is damaged, or of a newer format.
    """
    file = folder / DRAFT_FILE
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        given = values["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} is damaged ({error!r}); make or fetch the head again.") from error
    if given != FORMAT:
        raise CheckpointError(f"the draft head {folder} has format {given!r}, readable is {FORMAT}. Update Stille.")
    return values


def read_tensors(folder: Path, values: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a head, matrices in float32.

    Raises:
        CheckpointError: the file is missing, truncated or damaged.
    """
    try:
        entry = values["file"]
        file, size, digest = folder / Path(entry["name"]).name, int(entry["bytes"]), str(entry["sha256"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / DRAFT_FILE} is damaged ({error!r}); make or fetch the head again.") from error
    if not file.is_file() or file.stat().st_size != size or _digest(file) != digest:
        raise CheckpointError(f"{file} of the draft head is missing, truncated or damaged; make or fetch it again.")
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is damaged ({error}); make or fetch the head again.") from error
    found = {}
    for name, value in tensors.items():
        if not name.endswith(SCALES):
            scale_R = tensors.get(name + SCALES)
            found[name] = value if scale_R is None else dequantize_rows(value, scale_R)
    return {name: value.float() if value.is_floating_point() else value for name, value in found.items()}


def packed(state: Mapping[str, Tensor], precision: str) -> dict[str, Tensor]:
    """A state as it is stored, in "int8" or "bf16"."""
    found = {}
    for name, value in state.items():
        value = value.detach().float().cpu()
        if value.dim() < 2:
            found[name] = value
        elif precision == "bf16":
            found[name] = value.bfloat16()
        else:
            found[name], found[name + SCALES] = quantize_rows(value)
    return found


def quantize_rows(value_RK: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix in 8 bits, symmetric: int8 [R, K], and float32 [R], a factor for each row."""
    scale_R = value_RK.abs().amax(-1).clamp(min=1e-30) / 127
    return (value_RK / scale_R[:, None]).round().to(torch.int8), scale_R


def dequantize_rows(value_RK: Tensor, scale_R: Tensor) -> Tensor:
    """float32 [R, K], what `quantize_rows` made 8 bits of."""
    return value_RK.float() * scale_R[:, None]


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
