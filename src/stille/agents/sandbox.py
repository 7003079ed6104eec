"""Runs Python programs that nobody vouches for. Nothing registers it as a tool: whoever wants it says so.

A program runs in own user, mount, network, process and IPC namespaces of Linux: its files are a small tmpfs, the
Python installation and the system's libraries, read-only; there is no network, and no other process to be seen. It has
an empty environment, limits on processor time, memory, processes, files and output, and dies with all it started. The
kernel stays shared: against holes in it only a virtual machine helps.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Literal

from pydantic import Field

from stille.agents import sandbox_boot
from stille.agents.types import Data
from stille.errors import UnsupportedError

_READY = b"ready"


class SandboxLimits(Data):
    """Of one program.

    Attributes:
        seconds: of wall time.
        cpu_seconds: of processor time, of each process.
        memory_bytes: of address space, of each process.
        processes: at a time, threads among them.
        disk_bytes: of files.
        output_bytes: of standard output and error together.
    """

    seconds: float = Field(default=10.0, gt=0)
    cpu_seconds: int = Field(default=5, ge=1)
    memory_bytes: int = Field(default=512 * 2**20, ge=64 * 2**20)
    processes: int = Field(default=8, ge=1)
    disk_bytes: int = Field(default=16 * 2**20, ge=2**20)
    output_bytes: int = Field(default=2**20, ge=1)


class SandboxResult(Data):
    """What became of a program.

    Attributes:
        outcome: "finished": it ended by itself, whatever its exit code; "time", "output": it went beyond these limits
            and was killed; "killed": by a signal, as when its processor time is over.
        exit_code: None if it was killed.
    """

    outcome: Literal["finished", "time", "output", "killed"]
    exit_code: int | None
    stdout: str
    stderr: str


class Sandbox:
    """Where programs run, each on its own.

    Args:
        limits: of each program.
        isolated: False: without namespaces where the kernel has none. Then only limits hold: a program can reach the
            network, read and write what this process may, and leave processes behind; as root, it may have any number.

    Raises:
        UnsupportedError: namespaces are asked for on a system that is not Linux, or without `unshare` of util-linux.
    """

    def __init__(self, limits: SandboxLimits | None = None, *, isolated: bool = True):
        self.limits = limits or SandboxLimits()
        self.isolated = isolated
        self._unshare = shutil.which("unshare")
        if isolated and (sys.platform != "linux" or self._unshare is None):
            raise UnsupportedError(
                "programs can be isolated on Linux with `unshare` (package util-linux) only; install it, or pass "
                "isolated=False if they may reach the network and files"
            )

    async def run(self, program: str, stdin: str = "") -> SandboxResult:
        """Run a Python program.

        Raises:
            UnsupportedError: the kernel does not allow to isolate it, so that it was not run.
        """
        with tempfile.TemporaryDirectory(prefix="stille-sandbox-") as folder:
            ready, ready_in_child = os.pipe()
            try:
                process = await self._start(folder, ready_in_child)
            except BaseException:
                os.close(ready)
                raise
            finally:
                os.close(ready_in_child)
            try:
                task = {"program": program, "stdin": stdin, "folder": folder, "limits": self.limits.model_dump()}
                task |= {"isolated": self.isolated, "become_nobody": os.geteuid() == 0, "ready": ready_in_child}
                result = await self._watch(process, json.dumps(task).encode())
                os.set_blocking(ready, False)
                try:
                    if os.read(ready, len(_READY)) == _READY:
                        return result
                except BlockingIOError:
                    return result  # killed while it was still being set up
                raise UnsupportedError(
                    f"the program was not run, because it cannot be isolated here: {result.stderr.strip()[-500:]}; "
                    "allow user namespaces, or pass isolated=False if it may reach the network and files"
                )
            finally:
                _kill(process)
                os.close(ready)
                await process.wait()

    async def _start(self, folder: str, ready: int) -> asyncio.subprocess.Process:
        python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
        command = [python, "-I", "-S", str(Path(sandbox_boot.__file__).resolve())]
        if self.isolated:
            spaces = ["--mount", "--net", "--ipc", "--uts", "--pid", "--fork", "--kill-child"]
            if os.geteuid() != 0:
                spaces += ["--user", "--map-root-user"]
            command = [str(self._unshare), *spaces, *command]
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={},
            cwd=folder,
            start_new_session=True,
            pass_fds=[ready],
        )

    async def _watch(self, process: asyncio.subprocess.Process, task: bytes) -> SandboxResult:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        out, err = bytearray(), bytearray()
        outcome: Literal["finished", "time", "output", "killed"] = "finished"

        async def read(stream: asyncio.StreamReader, into: bytearray) -> None:
            nonlocal outcome
            while piece := await stream.read(65536):
                into += piece[: max(0, self.limits.output_bytes - len(out) - len(err))]
                if len(out) + len(err) >= self.limits.output_bytes and outcome == "finished":
                    outcome = "output"
                    _kill(process)

        async def write(stream: asyncio.StreamWriter) -> None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it is gone already; its result says why
                stream.write(task)
                await stream.drain()
            stream.close()

        try:
            async with asyncio.timeout(self.limits.seconds):
                await asyncio.gather(write(process.stdin), read(process.stdout, out), read(process.stderr, err))
                await process.wait()
        except TimeoutError:
            outcome = "time"
            _kill(process)
            await process.wait()
        code = process.returncode
        if outcome == "finished" and (code is None or code < 0 or code > sandbox_boot.SIGNALLED):
            outcome = "killed"
        return SandboxResult(
            outcome=outcome,
            exit_code=code if outcome == "finished" else None,
            stdout=out.decode(errors="replace"),
            stderr=err.decode(errors="replace"),
        )


def _kill(process: asyncio.subprocess.Process) -> None:
    """With its process group; all others in its namespace die with the first process there."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
