"""What a user gets from `pip install stille`: every module, the typing marker, the licence, the command."""

import email
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """A wheel of a copy of the tracked files, so that nothing which only lies around gets in."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    files = subprocess.run(
        ["git", "ls-files", "-z", "src", "pyproject.toml", "LICENSE", "README.md"], cwd=ROOT, check=True,
        capture_output=True, text=True,
    ).stdout.rstrip("\0").split("\0")  # fmt: skip
    for name in files:
        if (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", target, source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = target.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_every_module_and_nothing_else(wheel):
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    tracked = subprocess.run(["git", "ls-files", "src"], cwd=ROOT, check=True, capture_output=True, text=True)
    expected = {name.removeprefix("src/") for name in tracked.stdout.split() if (ROOT / name).exists()}
    assert names == expected
    assert "stille/py.typed" in names


def test_the_wheel_says_what_it_is(wheel):
    (metadata_name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = email.message_from_bytes(wheel.read(metadata_name))
    version = re.search(r'"(.+)"', (ROOT / "src/stille/_version.py").read_text())[1]
    assert metadata["Name"] == "stille"
    assert metadata["Version"] == version
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert {"serve", "all"} <= set(metadata.get_all("Provides-Extra"))
    base = {re.match(r"[\w-]+", line)[0] for line in metadata.get_all("Requires-Dist") if "extra ==" not in line}
    assert base == {"torch", "numpy"}  # what the kernels need; the rest is in extras
    (entry_points,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    assert "stille = stille.cli:main" in wheel.read(entry_points).decode()
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())


def test_constraints_pin_what_the_project_asks_for():
    """A requirement of ours without a pin would resolve to something that nobody has tested."""
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pinned = {normal(match[1]) for match in re.finditer(r"^([\w-]+)==\S+", text, re.MULTILINE)}
    wanted = PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["serve"]
    groups = PROJECT["dependency-groups"]
    for item in groups["dev"]:
        wanted += [item] if isinstance(item, str) else groups[item["include-group"]]
    names = {normal(re.match(r"[\w-]+", requirement)[0]) for requirement in wanted}
    assert names <= pinned


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
