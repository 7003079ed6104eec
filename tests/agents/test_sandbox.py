"""The sandbox against programs that mean harm."""

import asyncio
import os
import subprocess
import sys
import time

import pytest

from stille.agents.sandbox import Sandbox, SandboxLimits
from stille.errors import UnsupportedError


def can_isolate() -> bool:
    if sys.platform != "linux":
        return False
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return subprocess.run(["unshare", *user, "--mount", "--net", "--pid", "--fork", "true"]).returncode == 0


pytestmark = pytest.mark.skipif(not can_isolate(), reason="this kernel allows no namespaces")


async def run(program: str, stdin: str = "", **limits):
    return await Sandbox(SandboxLimits(**limits)).run(program, stdin)


async def test_a_program_computes():
    result = await run("import sys, math\nprint(math.comb(20, 10), sys.stdin.read())\nsys.exit(3)", stdin="ünder")
    assert (result.outcome, result.exit_code, result.stdout, result.stderr) == ("finished", 3, "184756 ünder\n", "")


async def test_an_exception_is_told():
    result = await run("1 / 0")
    assert result.exit_code == 1
    assert "ZeroDivisionError" in result.stderr


async def test_files_last_as_long_as_the_program():
    write = "open('a', 'w').write('x'); import os; print(sorted(os.listdir('.')), os.getcwd())"
    assert (await run(write)).stdout == "['a', 'main.py'] /work\n"
    assert (await run(write)).stdout == "['a', 'main.py'] /work\n"


async def test_it_sees_no_environment_files_or_processes_of_its_parent(monkeypatch, tmp_path):
    monkeypatch.setenv("STILLE_TEST_KEY", "xyzzy")
    secret = tmp_path / "secret.txt"
    secret.write_text("xyzzy")
    program = f"""
import os
print(dict(os.environ))
for path in ({str(secret)!r}, "/etc/passwd", "/proc/1/environ", "/proc/{os.getpid()}/environ", "/proc/self/environ"):
    try:
        print(open(path).read())
    except OSError as error:
        print(type(error).__name__)
print(os.getppid(), sorted(os.listdir("/")))
"""
    result = await run(program)
    assert "xyzzy" not in result.stdout + result.stderr
    assert result.stdout.count("FileNotFoundError") == 5
    assert result.stdout.splitlines()[-1].startswith("1 [")
    assert "proc" not in result.stdout.splitlines()[-1]


async def test_it_cannot_write_outside_its_folder():
    program = """
import sys, os
for path in (sys.executable, os.__file__, "/usr/x", "/x"):
    try:
        open(path, "a")
        print("opened", path)
    except OSError as error:
        print(error.errno)
"""
    assert "opened" not in (await run(program)).stdout


async def test_there_is_no_network():
    program = """
import socket
for address in (("127.0.0.1", PORT), ("1.1.1.1", 53)):
    try:
        socket.create_connection(address, timeout=2)
        print("connected")
    except OSError as error:
        print(error.errno)
"""
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    async with server:
        result = await run(program.replace("PORT", str(server.sockets[0].getsockname()[1])))
    assert result.exit_code == 0, result.stderr
    assert "connected" not in result.stdout
    assert len(result.stdout.split()) == 2


async def test_a_fork_bomb_is_bounded_and_dies():
    program = """
import os, time
made = 0
for _ in range(200):
    try:
        if os.fork() == 0:
            os.setsid()
            time.sleep(60)
            os._exit(0)
        made += 1
    except OSError:
        break
print(made, flush=True)
"""
    before = time.monotonic()
    result = await run(program, processes=10)
    assert 0 < int(result.stdout) < 10
    assert time.monotonic() - before < 5
    assert not sandboxed_processes()


def sandboxed_processes() -> list[str]:
    commands = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                commands.append(file.read().decode())
        except OSError:
            pass
    return [command for command in commands if "main.py" in command and "-I" in command]


async def test_an_endless_fork_bomb_is_killed_with_all_its_children():
    result = await run("import os\nwhile True:\n  try: os.fork()\n  except OSError: pass", seconds=1, processes=6)
    assert result.outcome == "time"
    assert not sandboxed_processes()


async def test_memory_is_limited():
    result = await run("b = bytearray(400 * 2**20)", memory_bytes=128 * 2**20)
    assert result.exit_code == 1
    assert "MemoryError" in result.stderr


async def test_disk_is_limited():
    program = "for i in range(9):\n  open(str(i), 'wb').write(b'x' * 2**20)"
    assert "No space left" in (await run(program, disk_bytes=4 * 2**20)).stderr


async def test_endless_output_is_cut():
    result = await run("while True: print('x' * 1000)", output_bytes=50_000)
    assert result.outcome == "output"
    assert len(result.stdout) == 50_000


async def test_endless_loops_run_out_of_processor_time_or_time():
    assert (await run("while True: pass", cpu_seconds=1)).outcome == "killed"
    before = time.monotonic()
    result = await run("import time; print(1, flush=True); time.sleep(60)", seconds=0.7)
    assert (result.outcome, result.exit_code, result.stdout) == ("time", None, "1\n")
    assert time.monotonic() - before < 3


async def test_it_has_no_privileges():
    program = """
import ctypes, os, resource
libc = ctypes.CDLL(None, use_errno=True)
print(libc.mount(b"tmpfs", b"/work", b"tmpfs", 0, None), libc.unshare(0x00020000), libc.sethostname(b"x", 1))
try:
    os.setuid(0); os.chown("/usr", 0, 0); print("root")
except OSError:
    print("no root")
try:
    resource.setrlimit(resource.RLIMIT_NPROC, (100, 100)); print("raised")
except (OSError, ValueError):
    print("kept")
"""
    assert (await run(program)).stdout == "-1 -1 -1\nno root\nkept\n"


async def test_cancelling_kills_the_program():
    task = asyncio.create_task(run("import time; time.sleep(60)"))
    await asyncio.sleep(0.3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not sandboxed_processes()


async def test_what_cannot_be_isolated_is_refused(monkeypatch, tmp_path):
    refuses = tmp_path / "unshare"
    refuses.write_text("#!/bin/sh\necho 'unshare failed: Operation not permitted' >&2\nexit 1\n")
    refuses.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        sandbox = Sandbox()
    with pytest.raises(UnsupportedError, match=r"was not run.*Operation not permitted.*isolated=False"):
        await sandbox.run("print(1)")
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "/nowhere")
        with pytest.raises(UnsupportedError, match="util-linux"):
            Sandbox()
        result = await Sandbox(isolated=False).run(
            "import os; print(os.environ.keys() - {'LC_CTYPE'}, os.listdir('.'))"
        )
    assert result.stdout == "set() ['main.py']\n"
