"""A real recording: people on a square, out of Debian's package opencv-doc (vtest.avi, 80 s, 768x576).

It is scene S2.L1, view 1, of PETS 2009; nothing here was trained or tuned on it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from stille.errors import StilleError
from stille.model.store import stille_home

RULES = Path(__file__).with_name("street.yaml")
PACKAGE, INSIDE = "opencv-doc", "usr/share/doc/opencv-doc/examples/data/vtest.avi"


def find(given: Path | None = None) -> Path:
    """The film: the one given, of an installed package, of the cache, or fetched into it without being root.

    Raises:
        StilleError: it cannot be had; the message says how else.
    """
    if given is not None:
        if not given.is_file():
            raise StilleError(f"{given} is no file; leave --video out to have it fetched")
        return given
    kept = stille_home() / "videos" / "vtest.avi"
    for path in (kept, Path("/") / INSIDE):
        if path.is_file():
            return path
    _fetch(kept)
    return kept


def _fetch(kept: Path) -> None:
    missing = [tool for tool in ("apt-get", "dpkg") if shutil.which(tool) is None]
    if missing:
        raise StilleError(
            f"vtest.avi comes out of Debian's package {PACKAGE}, and there is no {missing[0]} here. {_ELSE}"
        )
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
        for command in (["apt-get", "download", PACKAGE], ["dpkg", "-x", f"{folder}/{PACKAGE}.deb", folder]):
            if command[0] == "dpkg":
                archives = sorted(Path(folder).glob(f"{PACKAGE}_*.deb"))
                command[2] = str(archives[0]) if archives else command[2]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
            if done.returncode:
                said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
                raise StilleError(f"`{' '.join(command[:3])}` failed: {said}. {_ELSE}")
        found = Path(folder) / INSIDE
        if not found.is_file():
            raise StilleError(f"package {PACKAGE} has no {INSIDE}. {_ELSE}")
        os.replace(found, kept)


_ELSE = "Give the film with --video FILE, or leave this part out with --no-street."
