"""`stille chat`: piped, in a terminal, and with a server."""

import json
import os
import pty
import re
import select
import signal
import time

import pytest

from tests import processes
from tests.processes import WarmProcess

PROMPT = r"\n> $"
SHORT = ["--max-tokens", "12", "--temperature", "0"]


def test_piped_lines_are_turns_and_stdout_has_answers_only(stille, tiny):
    run = stille("chat", *tiny, *SHORT, "--debug", input="Hello\n\nAnd now?\n")
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    assert run.stdout.strip()
    assert "tok/s" not in run.stdout
    assert "> " not in run.stdout


class Terminal:
    """A pseudo terminal with `stille chat` in it."""

    def __init__(self, *arguments):
        self.master, slave = pty.openpty()
        self.seen = ""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm"}
        self.process = WarmProcess(processes.stille, "chat", *arguments, env=environment, terminal=slave)
        os.close(slave)

    def send(self, text):
        os.write(self.master, text.encode())

    def until(self, pattern, seconds=60):
        """What came up to a match of `pattern`, which is taken out of what was seen."""
        deadline = time.monotonic() + seconds
        while not (match := re.search(pattern, self.seen)):
            assert time.monotonic() < deadline, f"{pattern!r} did not come; seen: {self.seen[-2000:]!r}"
            if select.select([self.master], [], [], 0.2)[0]:
                try:
                    self.seen += os.read(self.master, 65536).decode(errors="replace")
                except OSError:  # the other side is closed
                    break
        assert match, f"{pattern!r} did not come; seen: {self.seen[-2000:]!r}"
        before, self.seen = self.seen[: match.end()], self.seen[match.end() :]
        return before

    def close(self):
        self.process.close()
        os.close(self.master)


@pytest.fixture
def terminal():
    opened = []

    def start(*arguments):
        opened.append(Terminal(*arguments))
        opened[-1].until(PROMPT)
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def saved(terminal, path):
    terminal.send(f"/save {path}\n")
    terminal.until(r"saved \d+ messages")
    terminal.until(PROMPT)
    return json.loads(path.read_text())


def test_ctrl_c_stops_the_answer_and_not_the_program(terminal, tiny, tmp_path):
    chat = terminal(*tiny, "--max-tokens", "16000", "--temperature", "0.8", "--seed", "1", "--system", "Be brief.")
    chat.send("Go on for ever\n")
    chat.until(r"for ever\r\n.*?\S{3}")
    chat.send("\x03")
    assert "tok/s" in chat.until(r"stopped\]")
    chat.until(PROMPT)
    system, user, assistant = saved(chat, tmp_path / "talk.json")
    assert system == {"role": "system", "content": "Be brief."}
    assert user == {"role": "user", "content": "Go on for ever"}
    assert assistant["role"] == "assistant"
    assert assistant["content"]  # as far as it came
    # At the prompt it only says how to leave. A signal that falls between the prompt and the read behind it is not
    # acted on before the next key, in any Python program, so the prompt is given a moment.
    time.sleep(0.5)
    chat.send("\x03")
    chat.until(r"/quit")
    chat.until(PROMPT)
    chat.send("/quit\n")
    assert chat.process.wait(30) == 0


def test_commands_and_history(terminal, tiny, tmp_path):
    chat = terminal(*tiny, *SHORT, "--max-model-len", "256")
    chat.send("/help\n")
    chat.until(r"/save FILE")
    chat.until(PROMPT)
    for text in ("one\n", "two, \\\nwhich goes on\n"):
        chat.send(text)
        chat.until(r"\d tokens.*\]")
        chat.until(PROMPT)
    talk = saved(chat, tmp_path / "a.json")
    assert [message["role"] for message in talk] == ["user", "assistant"] * 2
    assert talk[2]["content"] == "two, \nwhich goes on"
    chat.send("harbour " * 300 + "\n")
    chat.until(r"/reset starts over")  # too long: said, and forgotten
    chat.until(PROMPT)
    assert saved(chat, tmp_path / "b.json") == talk
    chat.send("/system New rules.\n")
    chat.until(PROMPT)
    assert saved(chat, tmp_path / "c.json") == [{"role": "system", "content": "New rules."}]
    chat.send("/reset\n")
    chat.until(r"forgotten")
    chat.until(PROMPT)
    chat.send("/nonsense\n")
    chat.until(r"not a command")
    chat.until(PROMPT)
    chat.send("/save /no/such/folder/x.json\n")
    chat.until(r"not saved")
    chat.until(PROMPT)
    chat.send("\x04")
    assert chat.process.wait(30) == 0


def test_interrupting_a_pipe_ends_the_program(spawn, tiny):
    process = spawn("chat", *tiny, "--max-tokens", "16000")
    process.stdin.write("Go on\n")
    process.stdin.close()
    assert process.stdout.read(8)
    process.send_signal(signal.SIGINT)
    process.stdout.read()
    assert process.wait(30) != 0
    assert "Traceback" not in process.stderr.read()
