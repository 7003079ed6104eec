"""Work that survives a kill: results of stages in a folder, found again by the hash of what they were made from."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

Result = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors of a stage, and what else it found (what JSON can say)."""


def key_of(**inputs: Any) -> str:
    """A name for what a stage was made from."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()[:16]


class Work:
    """A folder of stages. What was made from the same inputs before is read instead of made again."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def stage(self, name: str, key: str, make: Callable[[], Result]) -> Result:
        """The result of a stage, made now or before; written whole or not at all."""
        file = self.folder / f"{name}-{key}.safetensors"
        if file.exists():
            try:
                with safe_open(file, framework="pt") as stored:
                    tensors = {each: stored.get_tensor(each) for each in stored.keys()}  # noqa: SIM118
                    return tensors, json.loads(stored.metadata()["found"])
            except (SafetensorError, OSError, KeyError, TypeError, ValueError):
                file.unlink(missing_ok=True)  # damaged: made again
        tensors, found = make()
        temporary = file.with_suffix(f".{os.getpid()}.part")
        try:
            save_file(
                {each: value.contiguous() for each, value in tensors.items()}, temporary, {"found": json.dumps(found)}
            )
            os.replace(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)
        return tensors, found


class LayerInputs:
    """What the FFN of every layer is given, for all calibration tokens: one bfloat16 file [N, C] for each layer.

    Files, not memory: the whole is L * N * C * 2 bytes. Sequences are run one batch after another, and a note says how
    many are there, so a run that was killed goes on behind them.
    """

    def __init__(self, folder: Path, layers: int, tokens: int, width: int):
        self.folder, self.tokens, self.width = folder, tokens, width
        folder.mkdir(parents=True, exist_ok=True)
        self._files = [folder / f"{layer}.bf16" for layer in range(layers)]
        self._note = folder / "sequences"

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return len(self._files) * self.tokens * self.width * 2

    @property
    def done(self) -> int:
        """Sequences that are there."""
        if not all(file.exists() for file in self._files):
            return 0
        try:
            return int(self._note.read_text())
        except (OSError, ValueError):
            return 0

    def layer(self, index: int) -> Tensor:
        """bfloat16 [N, C], mapped from its file."""
        count = self.tokens * self.width
        file = str(self._files[index])
        return torch.from_file(file, shared=True, size=count, dtype=torch.bfloat16).view(self.tokens, self.width)

    def collect(self, model: Any, ids_ST: Tensor, batch: int = 1) -> Iterator[int]:
        """Run the sequences that are not there yet.

        Args:
            model: `StilleForCausalLM`; its layers have an `mlp`.
            ids_ST: int64 [S, T], S * T = N.
            batch: sequences at a time.

        Yields:
            How many sequences are done.
        """
        done, length = self.done, ids_ST.shape[1]
        yield done
        maps = [self.layer(index) for index in range(len(self._files))]
        layers: Sequence[nn.Module] = model.model.layers
        place = [0, 0]

        def keep(index: int) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
                maps[index][place[0] : place[1]] = args[0].reshape(-1, self.width).to("cpu", torch.bfloat16)

            return hook

        hooks = [layer.mlp.register_forward_pre_hook(keep(i)) for i, layer in enumerate(layers)]  # pyright: ignore
        try:
            while done < len(ids_ST):
                ids = ids_ST[done : done + batch]
                place[:] = done * length, (done + len(ids)) * length
                with torch.inference_mode():
                    model.model(input_ids=ids.to(model.device), use_cache=False)
                done += len(ids)
                temporary = self._note.with_suffix(f".{os.getpid()}.part")
                temporary.write_text(str(done))
                os.replace(temporary, self._note)
                yield done
        finally:
            for hook in hooks:
                hook.remove()
