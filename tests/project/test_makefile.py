"""The Makefile and its bootstrap: environments that are made once, repaired when broken, and never half believed.

The slow part, pip itself, is replaced by a stand-in environment where the question is *when* to install; that a real
install works is what running these tests through `make test` has shown already.
"""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Takes the place of .venv/bin/python: notes what it is called with, and does what its environment tells it to.
INSTALLER = """#!/bin/sh
echo "$*" >> "$CALLS"
case "$*" in
*--version*) exit 0 ;;
*.\\[serve*) eval "${ON_INSTALL:-true}" ;;
esac
"""


# Takes the place of python3: makes environments that hold the above, and runs scripts as Python does.
FAKE_PYTHON = """
import os, runpy, shutil, sys
here = os.path.dirname(os.path.abspath(__file__))
if sys.argv[1:3] == ["-m", "venv"]:
    folder = sys.argv[-1]
    with open(os.environ["CALLS"], "a") as calls:
        calls.write("venv\\n")
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(os.path.join(folder, "bin"))
    shutil.copy(os.path.join(here, "installer"), os.path.join(folder, "bin", "python"))
else:
    sys.executable = os.path.join(here, "fake-python")
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Checkout:
    """A copy of the files that decide about the environment, with an interpreter that only pretends to make one."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.venv = folder / ".venv"
        self.calls = folder / "calls"
        (folder / "scripts").mkdir(parents=True)
        for name in ("Makefile", "pyproject.toml", "constraints.txt", "scripts/bootstrap.py"):
            shutil.copy(ROOT / name, folder / name)
        # The real bootstrap under the real Python; only `python -m venv`, which takes seconds, is a stand-in.
        self.python = folder / "fake-python"
        (folder / "fake.py").write_text(FAKE_PYTHON)
        self.write_script(self.python, f'#!/bin/sh\nexec "{sys.executable}" "{folder}/fake.py" "$@"\n')
        self.write_script(folder / "installer", INSTALLER)

    @staticmethod
    def write_script(path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def make(self, target: str, **env: str) -> tuple[int, list[str]]:
        """Returns the exit status and what was done: "venv", or the words that pip was called with."""
        self.calls.write_text("")
        done = subprocess.run(
            ["make", "-s", target, f"PYTHON={self.python}"],
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], "CALLS": str(self.calls), **env},
            capture_output=True,
            text=True,
        )
        self.output = done.stdout + done.stderr
        return done.returncode, [c for c in self.calls.read_text().splitlines() if "--version" not in c]


@pytest.fixture
def checkout(tmp_path) -> Checkout:
    return Checkout(tmp_path / "clone with spaces")


def installed(calls: list[str]) -> bool:
    return any(".[serve" in call for call in calls)


def test_the_first_run_installs_with_constraints_and_the_second_does_nothing(checkout):
    status, calls = checkout.make("env-dev")
    assert status == 0, checkout.output
    assert calls[0] == "venv"
    assert "pip>=25.1" in calls[1]
    assert "-c constraints.txt -e .[serve,agents,video,web] --group dev" in calls[2]
    assert checkout.make("env-dev") == (0, [])
    assert checkout.make("env-serve") == (0, [])


def test_serving_installs_no_tools_and_testing_adds_them(checkout):
    assert "--group" not in " ".join(checkout.make("env-serve")[1])
    assert checkout.make("env-serve") == (0, [])
    status, calls = checkout.make("env-dev")
    assert status == 0
    assert "venv" not in calls
    assert "--group dev" in calls[-1]


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_changed_requirements_install_again_into_the_same_environment(checkout, name):
    checkout.make("env-dev")
    with open(checkout.folder / name, "a") as file:
        file.write("# changed\n")
    status, calls = checkout.make("env-dev")
    assert status == 0
    assert installed(calls)
    assert "venv" not in calls
    assert checkout.make("env-dev") == (0, [])


def test_a_touched_but_equal_file_changes_nothing(checkout):
    checkout.make("env-dev")
    os.utime(checkout.folder / "pyproject.toml")
    assert checkout.make("env-dev") == (0, [])


def test_a_failed_install_fails_and_is_tried_again(checkout):
    status, calls = checkout.make("env-dev", ON_INSTALL="exit 3")
    assert status != 0
    assert "status 3" in checkout.output
    assert installed(calls)
    status, calls = checkout.make("env-dev")
    assert status == 0
    assert installed(calls)
    assert "venv" not in calls  # pip had said no before it touched anything


def test_a_failed_change_leaves_no_valid_stamp(checkout):
    checkout.make("env-dev")
    before = (checkout.folder / "pyproject.toml").read_text()
    (checkout.folder / "pyproject.toml").write_text(before + "# changed\n")
    assert checkout.make("env-dev", ON_INSTALL="exit 3")[0] != 0
    (checkout.folder / "pyproject.toml").write_text(before)
    assert installed(checkout.make("env-dev")[1])


def test_a_killed_install_starts_afresh(checkout):
    status, _ = checkout.make("env-dev", ON_INSTALL="kill -9 $$")
    assert status != 0
    status, calls = checkout.make("env-dev")
    assert status == 0
    assert calls[0] == "venv"


def test_an_environment_of_unknown_origin_or_without_its_interpreter_is_made_anew(checkout):
    (checkout.venv / "bin").mkdir(parents=True)
    assert checkout.make("env-serve")[1][0] == "venv"
    (checkout.venv / "bin" / "python").unlink()
    assert checkout.make("env-serve")[1][0] == "venv"
    assert checkout.make("env-serve") == (0, [])


def test_a_moved_folder_gets_a_new_environment(checkout):
    checkout.make("env-serve")
    moved = checkout.folder.with_name("moved")
    shutil.copytree(checkout.folder, moved)
    checkout.folder = moved
    assert checkout.make("env-serve")[1][0] == "venv"


def test_two_makes_at_once_install_once(checkout):
    checkout.calls.write_text("")
    command = ["make", "-s", "env-dev", f"PYTHON={checkout.python}"]
    env = {"PATH": os.environ["PATH"], "CALLS": str(checkout.calls), "ON_INSTALL": "sleep 0.5"}
    running = [subprocess.Popen(command, cwd=checkout.folder, env=env) for _ in range(2)]
    assert [process.wait(30) for process in running] == [0, 0]
    assert checkout.calls.read_text().splitlines().count("venv") == 1


def check_interpreter(prelude: str) -> subprocess.CompletedProcess:
    code = f"import runpy, sys\n{prelude}\nrunpy.run_path('scripts/bootstrap.py')['check_interpreter']()"
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


def test_a_python_that_is_too_old_is_told_so():
    done = check_interpreter("sys.version_info = (3, 9, 2, 'final', 0)")
    assert done.returncode == 1
    assert "Python 3.11 or newer is needed" in done.stderr
    assert "PYTHON=" in done.stderr


def test_a_python_without_venv_is_told_what_to_install():
    done = check_interpreter("sys.modules['ensurepip'] = None")
    assert done.returncode == 1
    assert "apt install python3-venv" in done.stderr


def test_help_names_every_target():
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("serve", "test", "check", "bench", "docs-tables", "clean", "help"):
        assert f"make {target} " in done.stdout
