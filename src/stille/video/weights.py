"""Where a perception's weights are: a folder, or those that are part of this package."""

from __future__ import annotations

import json
from pathlib import Path

from stille.errors import ModelNotFoundError
from stille.video.model.store import CONFIG, KIND

BUNDLED = Path(__file__).parents[1] / "bundled"


def bundled() -> dict[str, Path]:
    """Folders of trained perceptions that came with this package, by name."""
    found = {}
    for config in sorted(BUNDLED.glob(f"*/{CONFIG}")):
        try:
            kind = json.loads(config.read_text(encoding="utf-8")).get("model_type")
        except (ValueError, AttributeError):
            continue
        if kind == KIND:
            found[config.parent.name] = config.parent
    return found


def find(name: str | Path | None = None) -> Path:
    """The folder of a perception, for `stille.video.model.load`.

    Args:
        name: of one that came with this package, or a folder; None: the only one that came with it, or of several the
            first by name.

    Raises:
        ModelNotFoundError: there is none; the message says what to do.
    """
    known = bundled()
    if name is None:
        if not known:
            raise ModelNotFoundError(
                "no trained perception is part of this version of Stille: give the folder of one (--model FOLDER). "
                "`stille train video --minutes 20 --out cam` makes one on a GPU, in cam/model."
            )
        return next(iter(known.values()))
    if str(name) in known:
        return known[str(name)]
    path = Path(name).expanduser()
    if (path / CONFIG).exists():
        return path
    names = f"; names that came with this version: {', '.join(known)}" if known else ""
    raise ModelNotFoundError(
        f"perception {str(name)!r} is no folder of a StilleCam: {path / CONFIG} is missing{names}."
    )
