"""Make or repair the virtual environment that the Makefile's targets run in.

    python3 scripts/bootstrap.py serve     # what serving needs
    python3 scripts/bootstrap.py dev       # that, and the tools of `make test` and `make check`

An environment that is up to date costs one hash. Everything else is decided by content, never by file times:
a stamp inside the environment holds a digest of pyproject.toml, constraints.txt, this file, the interpreter and
the folder. A run that was cut short leaves a marker instead of a stamp, and the next run starts afresh, because
a killed pip can leave half a package that looks installed.

Runs on any Python 3, so that one that is too old is told so in words rather than by a syntax error.
"""

import contextlib
import hashlib
import os
import subprocess
import sys

OLDEST_PYTHON = (3, 11)
OLDEST_PIP = "25.1"  # the first with dependency groups
TARGETS = {
    "serve": ["-e", ".[serve]"],
    "dev": ["-e", ".[serve,agents,video,web]", "--group", "dev"],
}
COVERED_BY = {"serve": ("serve", "dev"), "dev": ("dev",)}  # an environment made for the second does for the first
INPUTS = ("pyproject.toml", "constraints.txt", os.path.join("scripts", "bootstrap.py"))

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
VENV_PYTHON = os.path.join(VENV, "bin", "python")
UNFINISHED = os.path.join(VENV, ".stille-unfinished")
ORIGIN = os.path.join(VENV, ".stille-origin")


def say(text):
    sys.stderr.write("stille: " + text + "\n")
    sys.stderr.flush()


def read(path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return None


def write(path, content):
    with open(path + ".new", "wb") as file:
        file.write(content)
    os.replace(path + ".new", path)


def remove(path):
    with contextlib.suppress(OSError):
        os.remove(path)


def check_interpreter():
    """Leave with advice if this interpreter cannot make the environment."""
    if sys.version_info < OLDEST_PYTHON:
        raise SystemExit(
            "stille: Python %d.%d or newer is needed, and %s is %d.%d. Name another one: make ... PYTHON=python3.12"
            % (OLDEST_PYTHON + (sys.executable,) + tuple(sys.version_info[:2]))
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError as error:
        raise SystemExit(
            "stille: %s lacks the module %r, which makes virtual environments. On Debian and Ubuntu: "
            "apt install python3-venv. Or name another interpreter: make ... PYTHON=/path/to/python3"
            % (sys.executable, error.name)
        ) from error


def origin():
    """What ties an environment to its place: it cannot be moved, nor serve another Python."""
    return ("%s\n%s\n" % (ROOT, sys.version)).encode()


def digest():
    state = hashlib.sha256(origin())
    for name in INPUTS:
        content = read(os.path.join(ROOT, name))
        state.update(b"%d %s\n" % (len(content or b""), name.encode()))
        state.update(content or b"")
    return state.hexdigest().encode()


def stamp(target):
    return os.path.join(VENV, ".stille-" + target)


def is_current(target):
    """Whether an environment stands that covers `target` with today's inputs."""
    if os.path.exists(UNFINISHED) or not os.path.exists(VENV_PYTHON):
        return False
    wanted = digest()
    return any(read(stamp(covering)) == wanted for covering in COVERED_BY[target])


def is_usable():
    """Whether what stands at .venv can be installed into, rather than made anew."""
    if os.path.exists(UNFINISHED) or read(ORIGIN) != origin():
        return False
    with open(os.devnull, "wb") as null:
        try:
            return subprocess.call([VENV_PYTHON, "-m", "pip", "--version"], stdout=null, stderr=null) == 0
        except OSError:
            return False


def run(*command):
    """Run a step in the repository's root; leave with its status if it fails by itself."""
    status = subprocess.call(command, cwd=ROOT)
    if status > 0:
        remove(UNFINISHED)  # pip says no before it touches anything, or rolls back
        raise SystemExit("stille: this step failed with status %d: %s" % (status, " ".join(command)))
    if status < 0:
        raise SystemExit("stille: this step was killed by signal %d: %s" % (-status, " ".join(command)))


def make(target):
    check_interpreter()
    if not is_usable():
        say("making .venv with Python %d.%d" % tuple(sys.version_info[:2]))
        remove(ORIGIN)
        run(sys.executable, "-m", "venv", "--clear", VENV)
        write(ORIGIN, origin())
    say("installing what '%s' needs (the first time this takes a few minutes)" % target)
    for name in TARGETS:
        remove(stamp(name))
    write(UNFINISHED, b"")
    pip = [VENV_PYTHON, "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    if sys.stderr.isatty():
        pip.remove("-q")
    run(*pip + ["pip>=" + OLDEST_PIP])
    run(*pip + ["-c", "constraints.txt"] + TARGETS[target])
    write(stamp(target), digest())
    remove(UNFINISHED)


def main(arguments):
    if len(arguments) != 1 or arguments[0] not in TARGETS:
        raise SystemExit("usage: python3 scripts/bootstrap.py " + "|".join(sorted(TARGETS)))
    target = arguments[0]
    if is_current(target):
        return
    import fcntl

    with open(os.path.join(ROOT, "pyproject.toml")) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two makes at once: the second waits, then finds it done
        if not is_current(target):
            make(target)


if __name__ == "__main__":
    main(sys.argv[1:])
