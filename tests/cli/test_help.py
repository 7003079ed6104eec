"""Help, versions and mistakes: fast, clear, without tracebacks."""

import subprocess
import sys

import pytest

from stille import __version__
from stille.cli import main
from stille.cli.options import DEFAULT_MODEL
from stille.errors import ModelNotFoundError
from stille.model import store

COMMANDS = ["serve", "chat", "generate", "pull", "convert", "train", "bench", "eval", "agent", "doctor"]


def test_the_option_default_is_the_stores_default():
    assert DEFAULT_MODEL == store.DEFAULT_MODEL


def test_help_lists_every_command(stille_here):
    run = stille_here("--help")
    assert run.returncode == 0
    assert all(f" {command} " in run.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_examples(stille_here, command):
    run = stille_here(command, "--help")
    assert run.returncode == 0
    examples = run.stdout.split("Examples")[1]
    assert f"stille {command}" in examples


def test_version(stille_started):
    assert stille_started("--version").stdout == f"stille {__version__}\n"


def test_help_imports_nothing_heavy():
    code = "import sys; sys.argv = ['stille', '--help']\nfrom stille.cli import main\n"
    code += "try: main()\nexcept SystemExit: pass\n"
    code += "print([m for m in ('torch', 'transformers', 'fastapi', 'numpy') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.endswith("[]\n")


@pytest.mark.parametrize(
    ("arguments", "mentions"),
    [
        (["pull", "no-such-model"], "no-such-model"),
        (["generate", "hi", "--model", "/no/such/folder.gguf"], "/no/such/folder.gguf"),
        (["generate", "hi", "--dtype", "fp7"], "fp7"),
        (["generate", "--input", "/no/such/prompts.jsonl"], "prompts.jsonl"),
        (["chat", "--url", "http://127.0.0.1:9"], "stille serve"),
        (["chat", "--url", "ftp://example"], "ftp://example"),
        (["serve", "--host", "256.1.1.1"], "256.1.1.1"),
        (["serve", "--max-num-seqs", "0"], "max_num_seqs"),
    ],
)
def test_an_error_is_one_clear_line_and_status_2(stille_here, arguments, mentions):
    run = stille_here(*arguments)
    assert run.returncode == 2
    assert run.stdout == ""
    lines = [line for line in run.stderr.splitlines() if line]
    assert len(lines) == 1, run.stderr
    assert lines[0].startswith("error: ")
    assert mentions in lines[0]


def test_a_process_ends_with_the_error(stille):
    run = stille("pull", "no-such-model")
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("error: there is no model 'no-such-model'")


@pytest.mark.parametrize("arguments", [["--debug", "pull", "no-such-model"], ["pull", "no-such-model", "--debug"]])
def test_debug_lets_the_exception_through(monkeypatch, arguments):
    monkeypatch.setattr(sys, "argv", ["stille", *arguments])
    with pytest.raises(ModelNotFoundError):
        main()


@pytest.mark.parametrize(
    "arguments",
    [["generate", "--temperature", "3", "x"], ["serve", "--log-format", "xml"], ["nonsense"], ["serve", "--port", "x"]],
)
def test_wrong_usage_is_status_2(stille_here, arguments):
    run = stille_here(*arguments)
    assert run.returncode == 2
    assert "Traceback" not in run.stderr
