"""Imports point downwards only, and the kernels are usable without the rest."""

import ast
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "stille"

ALLOWED_IN_KERNELS = {"torch", "triton", "numpy"}
ALLOWED_IN_CPU_KERNELS = ALLOWED_IN_KERNELS | {"numba", "llvmlite"}


def lint_imports(folder: Path) -> subprocess.CompletedProcess:
    tool = Path(sys.executable).with_name("lint-imports")
    command = [tool, "--config", folder / "pyproject.toml", "--no-cache"]
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(folder / "src")}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


@pytest.fixture
def copy(tmp_path) -> Path:
    """The package and its settings, to be spoilt."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(PACKAGE, tmp_path / "src" / "stille", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_the_contracts_hold(copy):
    done = lint_imports(copy)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("kernels/new.py", "from stille.model import config"),
        ("model/new.py", "def f():\n    import stille.engine.core"),
        ("engine/new.py", "import stille.server"),
        ("ledger.py", "import stille.kernels"),
        ("kernels/new.py", "import transformers"),
        ("newpart/__init__.py", "import torch"),
    ],
)
def test_the_contracts_notice(copy, file, line):
    """Each kind of breach is found, so that the test above means something."""
    path = copy / "src" / "stille" / file
    path.parent.mkdir(exist_ok=True)
    with open(path, "a") as source:
        source.write(f"\n{line}\n")
    assert lint_imports(copy).returncode != 0


def imported_packages(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"stille"}


def test_kernels_import_nothing_but_what_they_are_made_of():
    files = sorted((PACKAGE / "kernels").rglob("*.py"))
    assert files
    for path in files:
        allowed = ALLOWED_IN_CPU_KERNELS if "cpu" in path.relative_to(PACKAGE).parts else ALLOWED_IN_KERNELS
        assert imported_packages(path) <= allowed, path


def run_with_only(*packages: str, code: str) -> subprocess.CompletedProcess:
    """Run code where no installed package can be imported but these and what belongs to torch."""
    guard = f"""
        import sys
        allowed = set(sys.stdlib_module_names) | {set(packages)!r}
        class Filter:  # the others are as if they were not installed: found by nobody
            def __init__(self, finder):
                self.finder = finder
            def find_spec(self, name, path=None, target=None):
                package = name.split(".")[0]
                if package in allowed or package.startswith("_sysconfigdata"):  # generated, so in no list
                    return self.finder.find_spec(name, path, target)
        sys.meta_path[:] = [Filter(finder) for finder in sys.meta_path]
    """
    script = textwrap.dedent(guard) + textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)


TORCH = ("torch", "torchgen", "functorch", "numpy", "sympy", "mpmath", "typing_extensions", "filelock", "fsspec",
         "jinja2", "markupsafe", "networkx", "setuptools", "pkg_resources", "_distutils_hack")  # fmt: skip
IMPORT_KERNELS = """
    import importlib, pkgutil
    import stille.kernels
    for module in pkgutil.walk_packages(stille.kernels.__path__, "stille.kernels."):
        leaf = module.name.rpartition(".")[2]
        written_in_triton = leaf.startswith(("triton_", "gluon_")) and leaf != "triton_support"
        if module.name.startswith("stille.kernels.cpu") or written_in_triton:
            continue
        importlib.import_module(module.name)
        print(module.name)
"""


def test_the_filter_keeps_out_what_is_installed():
    """So that the tests below mean something."""
    assert run_with_only("numpy", code="import numpy").returncode == 0
    done = run_with_only("numpy", code="import pytest")
    assert "No module named 'pytest'" in done.stderr


def test_kernels_import_with_torch_alone():
    """Without triton too: it is what a CUDA build of torch brings, and a laptop has none."""
    done = run_with_only("stille", *TORCH, code=IMPORT_KERNELS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()


def test_the_package_and_the_command_line_start_without_torch():
    """`import stille` and `stille --help` cost what the standard library and typer cost."""
    done = run_with_only("stille", code="import stille; print(stille.__version__)")
    assert done.returncode == 0, done.stderr
    code = "import sys, stille.cli; assert not {'torch', 'transformers', 'fastapi', 'numba'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
