"""What is kept of a camera so that another process can go on with it: two files and a token in a folder.

    NAME.json           state of the rules engine, open events in it, and changes of events that sinks may lack
    NAME.safetensors    what perception remembers, identities in it
    NAME.owner          whose turn it is: a number that grows with each move

Each file is there whole or not at all. It is not forced to the disk: it survives the process, not a power cut. Shards
on several machines need a folder that all of them see.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from stille.video.errors import VideoError


class Checkpoint:
    """Of one camera.

    Args:
        turn: of the shard that uses it.
    """

    def __init__(self, folder: Path, camera: str, turn: int):
        self.rules, self.memory = folder / f"{camera}.json", folder / f"{camera}.safetensors"
        self._owner, self._camera, self.turn = folder / f"{camera}.owner", camera, turn

    def claim(self) -> None:
        """From now on whoever had an earlier turn may not write."""
        self._owner.parent.mkdir(parents=True, exist_ok=True)
        _replace(self._owner, str(self.turn).encode())

    @property
    def mine(self) -> bool:
        """Whether nobody has claimed it since."""
        try:
            return int(self._owner.read_bytes()) == self.turn
        except (OSError, ValueError):
            return False

    def save_rules(self, state: Mapping[str, Any]) -> None:
        """
        Raises:
            OSError: the disk does not take it.
        """
        _replace(self.rules, json.dumps(state, allow_nan=False).encode())

    def save_memory(self, state: Mapping[str, Tensor]) -> None:
        """
        Raises:
            OSError: the disk does not take it.
        """
        _replace(self.memory, save({name: x.contiguous() for name, x in state.items()}))

    def load_memory(self) -> dict[str, Tensor] | None:
        """None if there is nothing.

        Raises:
            VideoError: it is damaged.
        """
        if not self.memory.exists():
            return None
        try:
            return load_file(self.memory)
        except SafetensorError as error:
            raise VideoError(f"{self.memory} is damaged: {error}; delete it to begin anew") from error

    def delete(self) -> None:
        for path in (self.rules, self.memory, self._owner):
            path.unlink(missing_ok=True)


def next_turn(folder: Path, camera: str) -> int:
    """A turn after all that there were."""
    try:
        return int((folder / f"{camera}.owner").read_bytes()) + 1
    except (OSError, ValueError):
        return 1


def _replace(path: Path, data: bytes) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(data)
    os.replace(part, path)
