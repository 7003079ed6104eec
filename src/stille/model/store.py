"""Where weights come from: the default model's package, our own, the Hugging Face Hub, a folder or a file.

    >>> from stille.model.store import resolve
    >>> resolve("stille-135m")
    PosixPath('.../stille/models/stille-135m/SmolLM2-135M-Instruct.Q4_1.gguf')

Nothing that is fetched is ever run or imported, and a file of ours is checked against its sha256 whenever it is used.
"""

import os
from collections.abc import Callable
from pathlib import Path

from stille.errors import ModelNotFoundError
from stille.model.store_hub import fetch_from_hub, is_repository
from stille.model.store_packaged import PACKAGED, fetch_packaged

__all__ = ["DEFAULT_MODEL", "Progress", "known_models", "resolve", "stille_home"]

DEFAULT_MODEL = "stille-135m"
BUNDLED = {name: Path(__file__).parents[1] / "bundled" / name for name in ("stille-135m-deb", "stille-135m-tools")}
"""Deltas that are part of this package; their bases are fetched."""
Progress = Callable[[int, int], None]
"""Called with (bytes so far, bytes in all) while something is downloaded."""


def stille_home() -> Path:
    """The cache's root: $STILLE_HOME, or ~/.cache/stille. Repositories of the Hub stay in Hugging Face's own cache."""
    return Path(os.environ.get("STILLE_HOME") or Path.home() / ".cache" / "stille").expanduser()


def known_models() -> list[str]:
    """Names that `resolve` knows by itself."""
    return sorted({**PACKAGED, **BUNDLED})


def resolve(name: str | Path, *, offline: bool = False, progress: Progress | None = None) -> Path:
    """The folder or .gguf file of a model on this machine, fetched if need be.

    Args:
        name: a name out of `known_models`, a folder, a .gguf file, a Hub repository ("org/name", "org/name@revision")
            or one GGUF file of it ("org/name/file.gguf"). What exists on disk goes before the Hub.
        offline: never use the network. HF_HUB_OFFLINE=1 does the same for the Hub.
        progress: told about downloads.

    Returns:
        A folder with `config.json` and safetensors, or a .gguf file.

    Raises:
        ModelNotFoundError: the name leads nowhere, or it cannot be fetched; the message says what to place where.
    """
    text = str(name)
    if text in PACKAGED:
        return fetch_packaged(PACKAGED[text], stille_home() / "models" / text, offline=offline, progress=progress)
    if text in BUNDLED:
        return BUNDLED[text]
    path = Path(text).expanduser()
    if path.exists():
        return _local(path)
    if is_repository(text):
        return fetch_from_hub(text, offline=offline, progress=progress)
    raise ModelNotFoundError(
        f"there is no model {text!r}: it is neither a known name ({', '.join(known_models())}), nor an existing folder "
        "or .gguf file, nor a Hub repository ('org/name')."
    )


def _local(path: Path) -> Path:
    if path.is_dir():
        files = sorted(path.glob("*.gguf"))
        if not (path / "config.json").exists() and len(files) == 1:
            return files[0]
        if not (path / "config.json").exists():
            found = f"; it holds several GGUF files ({', '.join(f.name for f in files)}), name one" if files else ""
            raise ModelNotFoundError(f"{path} is no model folder: config.json is missing{found}.")
        return path
    if path.suffix != ".gguf":
        raise ModelNotFoundError(f"{path} is a file, but not a .gguf one; give the folder of a checkpoint.")
    return path
