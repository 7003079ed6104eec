"""What README and docs print works as pasted: code runs, commands and links exist."""

import json
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stille.cli import app
from tests import processes

ROOT = Path(__file__).resolve().parents[2]
FILES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]
DEFAULT_URL = "http://127.0.0.1:8000"


def blocks(path: Path, language: str) -> list[str]:
    """The fenced code blocks of a Markdown file in one language ("" for none)."""
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def with_blocks(language: str) -> list:
    return [pytest.param(path, id=path.name) for path in FILES if blocks(path, language)]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A real server with the default model, as `make serve` starts it but for the port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "stille.cli", "serve", "--port", str(port)]
    command += ["--data-dir", str(tmp_path_factory.mktemp("data"))]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        deadline = time.monotonic() + 150
        while not ready(port):
            if server.poll() is not None or time.monotonic() > deadline:
                server.kill()
                pytest.fail(f"the server did not become ready:\n{server.communicate()[0]}")
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=60)


def ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


@pytest.mark.timeout(400)  # the first test waits for the server
@pytest.mark.parametrize("path", with_blocks("bash"))
def test_shell_examples_answer(path, url):
    for script in blocks(path, "bash"):
        assert DEFAULT_URL in script
        done = subprocess.run(["bash", "-euc", script.replace(DEFAULT_URL, url)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        assert answer["object"] == "chat.completion"
        assert answer["choices"][0]["message"]["content"].strip()


def test_the_readme_gets_the_right_answer(url):
    (script,) = blocks(ROOT / "README.md", "bash")
    done = subprocess.run(["bash", "-euc", script.replace(DEFAULT_URL, url)], capture_output=True, text=True)
    assert "Tokyo" in json.loads(done.stdout)["choices"][0]["message"]["content"]


# One process for all files: what costs is to load models and to compile kernels, not to run an example.
RUN_EXAMPLES = """
import contextlib, io, json, sys, traceback
for name, code in json.load(sys.stdin).items():
    printed, error = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        try:
            exec(compile(code, name, "exec"), {"__name__": "__main__"})
        except BaseException:
            error = traceback.format_exc()
    print(json.dumps([name, printed.getvalue(), error]), flush=True)
"""


@pytest.fixture(scope="module")
def results(url, tmp_path_factory) -> dict[str, tuple[str, str | None]]:
    """(what it printed, its traceback) of the code of each file: its blocks in order, as a reader would paste them."""
    code = {p.name: "\n".join(blocks(p, "python")).replace(DEFAULT_URL, url) for p in FILES if blocks(p, "python")}
    folder = tmp_path_factory.mktemp("reader")
    done = processes.run(processes.code, RUN_EXAMPLES, input=json.dumps(code), folder=folder, timeout=380)
    assert done.returncode == 0, done.stderr
    return {name: (printed, error) for name, printed, error in map(json.loads, done.stdout.splitlines())}


@pytest.mark.timeout(400)
@pytest.mark.parametrize("path", with_blocks("python"))
def test_python_examples_run(path, results):
    printed, error = results[path.name]
    assert error is None, error
    assert printed.strip()
    if path.name == "quickstart.md":
        assert printed.splitlines()[-1] == "True"  # the answer of a seed is the same alone and in a crowd


def commands(path: Path) -> list[list[str]]:
    """Lines in code blocks that call make or stille, split into words."""
    text = "\n".join(blocks(path, "") + blocks(path, "bash"))
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE))
    found = []
    for line in [*text.splitlines(), *inline]:
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # part of a command that goes on in the next line
            continue
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words.pop(0)
        if words and words[0] in ("make", "stille", ".venv/bin/stille") and len(words) > 1:
            found.append(words)
    return found


def test_every_make_target_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {words[1] for path in FILES for words in commands(path) if words[0] == "make"}
    assert {"serve", "test"} <= named
    assert named <= targets


def test_every_stille_command_and_option_exists():
    env = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    help_of = {}
    for path in FILES:
        for _, name, *arguments in (words for words in commands(path) if words[0].endswith("stille")):
            if not re.fullmatch(r"[a-z]+", name) or "|" in arguments:
                continue
            if name in ("eval", "train", "scale") and arguments:
                name = f"{name} {arguments[0]}"  # a group: its commands have the options
            if name not in help_of:
                done = CliRunner().invoke(app, [*name.split(), "--help"], env=env)
                assert done.exit_code == 0, f"{path.name}: stille {name}: {done.output}"
                help_of[name] = done.output
            for argument in arguments:
                if argument.startswith("--"):
                    assert argument.split("=")[0] in help_of[name], f"{path.name}: stille {name} {argument}"
    assert {"serve", "chat"} <= set(help_of)


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        file = path.parent / name if name else path
        assert file.exists(), f"{path.name}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{path.name}: {target}"


def test_scripts_named_in_docs_exist():
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r"\bbenchmarks/[\w/]+\.py\b", text):
            if name != "benchmarks/example.py":
                assert (ROOT / name).exists(), f"{path.name}: {name}"
