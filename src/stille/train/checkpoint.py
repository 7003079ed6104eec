"""Where a run stands, on disk: one file for each checkpoint, there whole or not at all."""

import logging
import os
import pickle
import re
from pathlib import Path
from typing import Any

import torch

from stille.errors import CheckpointError

logger = logging.getLogger(__name__)

VERSION = 1
_NAME = re.compile(r"step-(\d+)\.pt")


def saved(folder: Path) -> list[Path]:
    """Checkpoints of a folder, the latest first."""
    found = [file for file in folder.glob("step-*.pt") if _NAME.fullmatch(file.name)]
    return sorted(found, key=lambda file: int(_NAME.fullmatch(file.name)[1]), reverse=True)  # pyright: ignore[reportOptionalSubscript]


def save(folder: Path, state: dict[str, Any], keep: int) -> Path:
    """Write the state of a step; then delete all but the latest `keep`.

    Args:
        state: tensors and plain values, with "step".
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{state['step']:08d}.pt"
    scratch = target.with_suffix(".tmp")
    with scratch.open("wb") as file:
        torch.save({"version": VERSION, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, target)
    for old in saved(folder)[keep:]:
        old.unlink(missing_ok=True)
    return target


def load_latest(folder: Path) -> dict[str, Any] | None:
    """The latest readable state; None if there is none. A damaged file is told in the log and passed over.

    Raises:
        CheckpointError: there are checkpoints, and none can be read.
    """
    files = saved(folder)
    for file in files:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
            if state["version"] != VERSION:
                raise CheckpointError(f"{file} has version {state['version']}, readable is {VERSION}.")
            return state
        except (RuntimeError, OSError, KeyError, EOFError, ValueError, TypeError, pickle.UnpicklingError) as error:
            logger.warning("%s is damaged (%s); trying the one before.", file, error)
    if files:
        raise CheckpointError(
            f"none of the {len(files)} checkpoints in {folder} can be read; delete it to start again."
        )
    return None
