"""Processes that start at once: forks of a server that has imported what takes seconds to import.

They are processes like any other: fed, signalled, killed. Where the start itself is the point, it is `subprocess`.
"""

import atexit
import contextlib
import fcntl
import multiprocessing
import os
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any
from unittest import mock

PRELOADED = [
    "stille.cli", "stille.cli.serve", "stille.engine.async_llm", "stille.engine.llm", "stille.engine.cpu_executor",
    "stille.server.app", "stille.train", "stille.model.convert.pipeline",
]  # fmt: skip


def warm():
    """The context of `multiprocessing` whose processes have imported the stack already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    # What the command sets before it imports anything.
    with mock.patch.dict(os.environ, {"TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}):
        forkserver.ensure_running()
    return context


class WarmProcess:
    """What `subprocess.Popen` with pipes for text is to a command, to a function.

    Args:
        target: of a module, as it goes to the other process by name.
        env: the whole environment; None: this process's.
        folder: that it works in; None: this process's.
        terminal: file descriptor that takes the place of the pipes and becomes the controlling terminal; stays open
            here.
        new_session: as for Popen.
    """

    def __init__(
        self,
        target: Callable[..., Any],
        *arguments: Any,
        env: dict[str, str] | None = None,
        folder: Path | None = None,
        terminal: int | None = None,
        new_session: bool = False,
    ):
        ours: list[int] = []
        if terminal is None:
            pipes = [os.pipe() for _ in range(3)]
            theirs = [pipes[0][0], pipes[1][1], pipes[2][1]]
            ours = [pipes[0][1], pipes[1][0], pipes[2][0]]
        else:
            theirs = [os.dup(terminal) for _ in range(3)]
        streams = [Connection(fd) for fd in theirs]  # only as these do descriptors reach the other process
        place = (dict(env or os.environ), folder, terminal is not None, new_session)
        self._process = warm().Process(target=_become, args=(target, arguments, streams, *place))
        self._process.start()
        atexit.register(self.kill)  # what a failed test left running would be waited for
        for stream in streams:
            stream.close()
        assert self._process.pid is not None
        self.pid: int = self._process.pid
        self.stdin: IO[str] | None = os.fdopen(ours[0], "w") if ours else None
        self.stdout: IO[str] | None = os.fdopen(ours[1]) if ours else None
        self.stderr: IO[str] | None = os.fdopen(ours[2]) if ours else None

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()

    def communicate(self, input: str = "", timeout: float = 120) -> tuple[str, str]:
        """All that is still to come on both streams; a process that takes longer is killed."""
        deadline = time.monotonic() + timeout
        with ThreadPoolExecutor(2) as pool:
            out, err = (pool.submit(_rest, stream) for stream in (self.stdout, self.stderr))
            try:
                self._feed(input)
                self.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.kill()
                raise
            return out.result(), err.result()

    def _feed(self, input: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # it ended without having read all
            if self.stdin and not self.stdin.closed:
                self.stdin.write(input)
                self.stdin.close()

    def close(self) -> None:
        """Killed if it still runs."""
        self.kill()
        self._process.join()
        self._feed("")
        for stream in (self.stdout, self.stderr):
            if stream:
                stream.close()


def _rest(stream: IO[str] | None) -> str:
    return stream.read() if stream else ""


def run(target: Callable[..., Any], *arguments: Any, input: str = "", timeout: float = 120, **options: Any):
    """As `subprocess.run` with captured text."""
    process = WarmProcess(target, *arguments, **options)
    try:
        out, err = process.communicate(input, timeout)
        return subprocess.CompletedProcess(arguments, process.wait(), out, err)
    finally:
        process.close()


def stille(*arguments: str) -> None:
    """The command."""
    from stille.cli import main

    sys.argv = ["stille", *arguments]
    main()


def code(source: str) -> None:
    """As `python -c source`."""
    exec(compile(source, "<string>", "exec"), {"__name__": "__main__"})


def _become(
    target: Callable[..., Any],
    arguments: Sequence[Any],
    streams: Sequence[Connection],
    env: dict[str, str],
    folder: Path | None,
    terminal: bool,
    new_session: bool,
) -> None:
    for number, stream in enumerate(streams):
        os.dup2(stream.fileno(), number)
    for stream in streams:
        stream.close()
    if terminal or new_session:
        os.setsid()
    if terminal:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    if folder:
        os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    target(*arguments)
