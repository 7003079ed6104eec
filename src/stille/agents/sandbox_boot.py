"""Sets up what `stille.agents.sandbox` promises, from within, and becomes the program. Stands alone: it is run as a
script, by Python without site-packages, as the first process of its namespaces.
"""

import ctypes
import json
import os
import resource
import signal
import sys

SIGNALLED = 128  # exit codes above it say by which signal the program ended
_NOBODY = 65534
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
_KEPT = {2: 2, 4: 4, 8: 8, 1024: 1024, 2048: 2048, 4096: 1 << 21}  # of statvfs: of mount, which must not be taken away
_MNT_DETACH = 2
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}  # it has no function in libc
_PR_SET_SECUREBITS, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 28, 24, 38

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    task = json.load(sys.stdin.buffer)
    work = task["folder"]
    if task["isolated"]:
        enter_root(work, task["limits"]["disk_bytes"])
        work = "/work"
    os.chdir(work)
    for name, text in (("main.py", task["program"]), (".stdin", task["stdin"])):
        with open(name, "w", encoding="utf-8") as file:
            file.write(text)
    os.dup2(os.open(".stdin", os.O_RDONLY), 0)
    os.unlink(".stdin")
    child = os.fork()
    if child == 0:
        os.set_inheritable(task["ready"], False)
        if task["isolated"]:
            drop_privileges(task["become_nobody"])
        set_limits(task["limits"])
        os.write(task["ready"], b"ready")
        os.execve(sys.executable, [sys.executable, "-I", "-S", "main.py"], {})
    os.close(task["ready"])
    while True:
        pid, status = os.wait()
        if pid == child:  # the rest of the namespace ends with this process
            os._exit(SIGNALLED + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))


def enter_root(folder: str, disk_bytes: int) -> None:
    """Make `folder` the root: a tmpfs with Python and the libraries that it needs, read-only, and /work."""
    mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    mount("tmpfs", folder, "tmpfs", _MS_NOSUID | _MS_NODEV, f"size={disk_bytes},mode=755")
    for path in dict.fromkeys(["/usr", "/lib", "/lib64", sys.base_prefix]):
        if os.path.islink(path):
            os.symlink(os.readlink(path), folder + path)
        elif os.path.isdir(path) and not os.path.isdir(folder + path):
            os.makedirs(folder + path)
            mount(path, folder + path, None, _MS_BIND | _MS_REC)
            flags = os.statvfs(folder + path).f_flag
            kept = sum(flag for bit, flag in _KEPT.items() if flags & bit)
            mount(None, folder + path, None, _MS_BIND | _MS_REMOUNT | _MS_RDONLY | _MS_NOSUID | kept)
    os.makedirs(folder + "/dev")
    for device in ("null", "urandom"):
        open(f"{folder}/dev/{device}", "w").close()
        mount(f"/dev/{device}", f"{folder}/dev/{device}", None, _MS_BIND)
    os.mkdir(folder + "/work", 0o777)
    os.chmod(folder + "/work", 0o777)
    os.chdir(folder)
    check(_libc.syscall(_PIVOT_ROOT[os.uname().machine], b".", b"."), "pivot_root")
    check(_libc.umount2(b".", _MNT_DETACH), "umount")  # the old root, with all that is mounted in it
    os.chdir("/")


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    encoded = [None if text is None else text.encode() for text in (source, target, kind, data)]
    check(_libc.mount(*encoded[:3], ctypes.c_ulong(flags), encoded[3]), f"mount of {source} at {target}")


def check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def drop_privileges(become_nobody: bool) -> None:
    """No capabilities, now or through any program that is started; root becomes nobody."""
    for capability in range(64):
        _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    check(_libc.prctl(_PR_SET_SECUREBITS, 0b11, 0, 0, 0), "prctl(PR_SET_SECUREBITS)")  # user 0 is no root any more
    check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")
    if become_nobody:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    check(_libc.capset(header, none), "capset")


def set_limits(limits: dict) -> None:
    for which, amount in (
        (resource.RLIMIT_CPU, limits["cpu_seconds"]),
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["disk_bytes"]),
        (resource.RLIMIT_NPROC, limits["processes"]),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(which, (amount, amount))
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)


if __name__ == "__main__":
    main()
