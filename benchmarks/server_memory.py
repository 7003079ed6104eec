"""Peak memory of the server with the default model on a CPU, under more load than one user makes.

    python benchmarks/server_memory.py [--json OUT]

A real `stille serve` process answers eight long prompts at once, twice; the kernel's own high-water mark of its
resident memory is what counts, loading included.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from pydoc_data.topics import topics

from stille import ledger

AT_ONCE = 8
PROMPT_CHARACTERS = 8000  # about 2,000 tokens


def ask(url: str, text: str) -> int:
    """Tokens of prompt and answer of one chat."""
    message = {"role": "user", "content": f"Summarise this.\n\n{text}"}
    body = json.dumps({"model": "stille-135m", "messages": [message], "max_tokens": 64}).encode()
    request = urllib.request.Request(f"{url}/v1/chat/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as response:
        usage = json.load(response)["usage"]
    return usage["prompt_tokens"] + usage["completion_tokens"]


def peak_mib(pid: int) -> float:
    """The high-water mark of a process's resident memory."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    match = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    assert match is not None
    return int(match[1]) / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", type=Path, help="merge the record into this ledger file")
    options = parser.parse_args()
    text = "\n\n".join(topics[name] for name in sorted(topics, key=lambda name: -len(topics[name]))[:24])
    prompts = [text[i * PROMPT_CHARACTERS : (i + 1) * PROMPT_CHARACTERS] for i in range(2 * AT_ONCE)]
    with tempfile.TemporaryFile("w+") as log:
        env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-m", "stille.cli", "serve", "--port", "0", "--log-format", "json"]
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env)
        try:
            url = wait_for_url(server, log)
            ask(url, prompts[0][:200])
            alone = peak_mib(server.pid)
            with ThreadPoolExecutor(AT_ONCE) as pool:
                tokens = sum(pool.map(lambda prompt: ask(url, prompt), prompts))
            peak = peak_mib(server.pid)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)
    record = ledger.measure(
        "cpu.memory",
        peak / 1024,
        "GiB",
        goal="value <= 1.2",
        command="python benchmarks/server_memory.py",
        notes=f"Peak resident memory of `stille serve` with the default model. {AT_ONCE} chats of 2,000 tokens at "
        f"once, {2 * AT_ONCE} in all ({tokens:,} tokens); the kernel's high-water mark, loading included. After one "
        f"short chat: {alone / 1024:.2f} GiB.",
    )
    print(ledger.render_table([record]))
    if options.json:
        ledger.write(options.json, [record])
    return 0


def wait_for_url(server: subprocess.Popen, log, seconds: float = 300) -> str:
    """The address that the server announces in its log."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        log.seek(0)
        text = log.read()
        if match := re.search(r"serving \S+ on (http://[\d.:]+)", text):
            return match[1]
        if server.poll() is not None:
            raise SystemExit(f"the server ended with status {server.returncode}:\n{text[-2000:]}")
        time.sleep(0.2)
    raise SystemExit(f"the server did not start within {seconds:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
