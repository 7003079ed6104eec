"""`make bench` knows every benchmark, and each says what it does without doing it."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(path for path in (ROOT / "benchmarks").glob("*.py") if path.name != "run.py")


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "benchmarks" / "run.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_says_how_to_call_it(path):
    text = path.read_text(encoding="utf-8")
    assert f"python benchmarks/{path.name}" in (ast.get_docstring(ast.parse(text)) or "")


def test_the_runner_lists_only_what_exists():
    done = run("--help")
    assert done.returncode == 0
    names = re.search(r"of ([a-z_, ]+?);", " ".join(done.stdout.split()))[1].split(", ")
    assert {"cpu_engine", "setup_time"} <= set(names)
    for name in names:
        assert '"--json"' in (ROOT / "benchmarks" / f"{name}.py").read_text(encoding="utf-8"), name


def test_an_unknown_benchmark_is_refused():
    done = run("cpu_engin")
    assert done.returncode == 2
    assert "cpu_engine" in done.stderr
