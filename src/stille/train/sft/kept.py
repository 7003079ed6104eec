"""Rows of conversations kept on disk, so that a run that goes on does not tokenise again."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from stille._version import __version__
from stille.engine.tool_grammar import template_text
from stille.train.sft.data import Rows

ARRAYS = ("tokens", "starts", "learned")


def key_of(parts: Mapping[str, Sequence[Path]], tokenizer: Any, ends: Iterable[int], **settings: float) -> str:
    """Of what rows follow from: files (as they are now), how conversations are rendered, settings, Stille's version.

    Raises:
        OSError: a file cannot be read.
    """
    stats = [
        (part, str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns)
        for part, files in sorted(parts.items())
        for file in files
    ]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    name = repr(tokenizer) if backend is None else backend.to_str()
    said = [__version__, stats, name, template_text(tokenizer), sorted(ends), sorted(settings.items())]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def write_rows(path: Path, rows: Mapping[str, Rows]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, np.ndarray] = {}
    for name, each in rows.items():
        arrays |= {f"{name}/{part}": np.asarray(getattr(each, part)) for part in ARRAYS}
        scalars = {f.name: getattr(each, f.name) for f in fields(each) if f.name not in ARRAYS}
        arrays[f"{name}/about"] = np.frombuffer(json.dumps(scalars).encode(), np.uint8)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with scratch.open("wb") as file:
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType] - the names are those of arrays
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def read_rows(path: Path) -> dict[str, Rows] | None:
    """By name; None if there are none, or they cannot be read."""
    try:
        with np.load(path) as kept:
            names = dict.fromkeys(name.rpartition("/")[0] for name in kept.files)
            return {
                name: Rows(
                    **{part: kept[f"{name}/{part}"] for part in ARRAYS}, **json.loads(kept[f"{name}/about"].tobytes())
                )
                for name in names
            }
    except (OSError, ValueError, KeyError, TypeError, BadZipFile):
        return None
