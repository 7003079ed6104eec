"""How long a newcomer waits: fresh clone, empty caches, `make serve` to the first answered chat, then `make test`.

    python benchmarks/setup_time.py [--json OUT] [--skip-test]

The clone, the home folder, pip's cache and the model cache are new and empty; packages and the model come from
wherever pip is configured to find them. What is committed is measured: uncommitted changes are not in the clone.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from stille import ledger

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 3600


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def fresh_environment(home: Path) -> dict[str, str]:
    """The caller's environment with nothing in it that a newcomer would not have."""
    dropped = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "STILLE_HOME", "HF_HOME", "XDG_CACHE_HOME", "MAKEFLAGS")
    env = {key: value for key, value in os.environ.items() if key not in dropped and not key.startswith("STILLE_")}
    path = [p for p in env["PATH"].split(os.pathsep) if not Path(p).is_relative_to(ROOT)]
    env.update(
        HOME=str(home),
        STILLE_HOME=str(home / "stille"),
        PIP_CACHE_DIR=str(home / "pip"),
        XDG_CACHE_HOME=str(home / "cache"),
        PATH=os.pathsep.join(path),
    )
    # Where packages come from is the machine's setting, not part of what is measured; a pip.conf lies in the old home.
    for configuration in ("~/.config/pip/pip.conf", "~/.pip/pip.conf"):
        if Path(configuration).expanduser().exists():
            env.setdefault("PIP_CONFIG_FILE", str(Path(configuration).expanduser()))
    return env


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def chat(port: int) -> str | None:
    """The answer to one question, or None while nobody answers."""
    body = {"model": "stille-135m", "messages": [{"role": "user", "content": "What is the capital of Japan?"}]}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json.dumps({**body, "max_tokens": 16, "temperature": 0}).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)["choices"][0]["message"]["content"]
    except urllib.error.HTTPError as error:
        if error.code == 503:  # loading
            return None
        raise
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return None


def time_to_first_answer(clone: Path, env: dict[str, str]) -> float:
    """Start `make serve`, ask until there is an answer, stop it again.

    Raises:
        SystemExit: it ended by itself, gave no sensible answer, or took over an hour.
    """
    port = free_port()
    started = time.perf_counter()
    server = subprocess.Popen(["make", "serve", f"PORT={port}"], cwd=clone, env=env, start_new_session=True)
    try:
        while (answer := chat(port)) is None:
            if server.poll() is not None:
                raise SystemExit(f"make serve ended with status {server.returncode} before it answered")
            if time.perf_counter() - started > PATIENCE:
                raise SystemExit("make serve did not answer within an hour")
            time.sleep(0.2)
        seconds = time.perf_counter() - started
    finally:
        if server.poll() is None:
            server.terminate()  # make passes it on, and waits
            server.wait(60)
    if "Tokyo" not in answer:
        raise SystemExit(f"the first answer is not about Tokyo: {answer!r}; nothing is recorded")
    say(f"first answer after {seconds:.1f} s: {answer!r}")
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", type=Path, help="merge the records into this ledger file")
    parser.add_argument("--skip-test", action="store_true", help="leave `make test` out")
    options = parser.parse_args()
    records = []
    with tempfile.TemporaryDirectory(prefix="stille-setup-") as folder:
        clone, home = Path(folder) / "stille", Path(folder) / "home"
        home.mkdir()
        subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
        commit = ledger.describe_commit(clone)
        env = fresh_environment(home)
        where = "Packages and the model came from a mirror or an index as pip is configured on this machine"
        seconds = time_to_first_answer(clone, env)
        again = time_to_first_answer(clone, env)
        records.append(
            ledger.measure(
                "setup.serve",
                seconds,
                "s",
                goal="value <= 300",
                command="python benchmarks/setup_time.py",
                commit=commit,
                notes=f"Fresh clone, empty caches: `make serve` to the first answered chat. {where}. One run. A second "
                f"`make serve` took {again:.1f} s. The goal is our own choice.",
            )
        )
        if options.json:
            ledger.write(options.json, records)
        if not options.skip_test:
            started = time.perf_counter()
            if (status := subprocess.run(["make", "test"], cwd=clone, env=env).returncode) != 0:
                raise SystemExit(f"make test ended with status {status}; its time is not recorded")
            seconds = time.perf_counter() - started
            records.append(
                ledger.measure(
                    "setup.test",
                    seconds,
                    "s",
                    goal="value <= 900",
                    command="python benchmarks/setup_time.py",
                    commit=commit,
                    notes="`make test` in that clone, with the installation of the test tools. One run. The goal is "
                    "our own choice.",
                )
            )
    print(ledger.render_table(records))
    if options.json:
        ledger.write(options.json, records)
    return 0


if __name__ == "__main__":
    sys.exit(main())
