"""What an agent framework costs per step, over the client that it uses.

    python -m venv /tmp/others && /tmp/others/bin/pip install 'pydantic-ai-slim[openai]' openai-agents
    python benchmarks/agents_overhead.py --others /tmp/others/bin/python --json benchmarks/results/agents.json

Each side holds the same conversation of --turns calls of one tool and an answer with an OpenAI-compatible endpoint that
answers at once, through the official client. Beside it, in the same process and in turn, the bare client sends the same
requests in the same way (streamed where the framework streams); what is more than that is the framework's. A step is
a model call with the tool call that follows it. No journal, guard or tracing on any side. The figure is processor time
of the side's process, which other work on the machine does not change much; wall time is in the notes.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from stille import ledger

SIDE = Path(__file__).parent / "agents_sides" / "side.py"
NAMES = {"pydantic_ai": "pydantic-ai", "openai_agents": "openai-agents"}


def answer(request: dict[str, Any], turns: int) -> bytes:
    """The next call of `add`, or "done" after all of them."""
    done = sum(message["role"] == "tool" for message in request["messages"])
    head = {"id": f"c{done}", "created": 1, "model": "m"}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    message: dict[str, Any] = {"role": "assistant", "content": "done"}
    if done < turns:
        function = {"name": "add", "arguments": json.dumps({"a": done, "b": 1})}
        message = {"role": "assistant", "content": None, "tool_calls": [
            {"index": 0, "id": f"call_{done}", "type": "function", "function": function}]}  # fmt: skip
    reason = "tool_calls" if done < turns else "stop"
    if not request.get("stream"):
        choice = {"index": 0, "message": message, "finish_reason": reason}
        return json.dumps({**head, "object": "chat.completion", "choices": [choice], "usage": usage}).encode()
    pieces = [
        {"choices": [{"index": 0, "delta": message, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]},
        {"choices": [], "usage": usage},
    ]
    lines = [json.dumps({**head, "object": "chat.completion.chunk", **piece}) for piece in pieces]
    return "".join(f"data: {line}\n\n" for line in [*lines, "[DONE]"]).encode()


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, turns: int) -> None:
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = next(int(line.split(":")[1]) for line in head.splitlines() if line.startswith("content-length:"))
            request = json.loads(await reader.readexactly(length))
            body = answer(request, turns)
            kind = "text/event-stream" if request.get("stream") else "application/json"
            head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


def endpoint(turns: int) -> str:
    """Starts the endpoint in a thread of this process, which does nothing else; its URL."""
    loop, ports = asyncio.new_event_loop(), []
    ready = threading.Event()

    async def begin() -> None:
        server = await asyncio.start_server(lambda r, w: serve(r, w, turns), "127.0.0.1", 0)
        ports.append(server.sockets[0].getsockname()[1])
        ready.set()
        await server.serve_forever()

    threading.Thread(target=loop.run_until_complete, args=(begin(),), daemon=True).start()
    ready.wait()
    return f"http://127.0.0.1:{ports[0]}/v1"


def measure(python: str, name: str, base: str, options: argparse.Namespace) -> dict[str, Any]:
    command = [python, str(SIDE), name, base, str(options.turns), str(options.rounds)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed; its environment needs what the first line above the options installs:\n"
                         f"{done.stdout}{done.stderr[-3000:]}")  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def described(side: dict[str, Any]) -> str:
    (cpu, wall), (client_cpu, client_wall) = side["framework"], side["client"]
    return f"{cpu:.0f} us, client {client_cpu:.0f}; wall {wall:.0f} and {client_wall:.0f}"


def main() -> int:
    options = parse()
    base = endpoint(options.turns)
    sides = {name: measure(options.others, name, base, options) for name in NAMES}
    sides["stille"] = measure(sys.executable, "stille", base, options)
    over = {name: side["framework"][0] - side["client"][0] for name, side in sides.items()}
    shown = {name: described(side) for name, side in sides.items()}
    for name, side in sides.items():
        print(f"{name} {side['version']}: {shown[name]}")
    machine = ledger.describe_machine()
    records = [
        ledger.measure(
            f"agents.overhead.{name}", over["stille"], "us", better="lower", goal="ratio >= 1", machine=machine,
            baseline=f"{title} {sides[name]['version']}", baseline_value=over[name],
            command="python benchmarks/agents_overhead.py --others PYTHON",
            notes=f"Processor time per step that the framework adds to the bare client, against {title}. Medians of "
            f"{options.rounds} conversations of {options.turns} calls. Whole steps: {shown['stille']} (streamed). "
            f"{title}: {shown[name]} (whole answers, as it asks for by itself).",
        )
        for name, title in NAMES.items()
    ]  # fmt: skip
    print(ledger.render_table(records))
    if options.json:
        ledger.write(options.json, records)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--others", default="python", help="interpreter of the environment with the other frameworks")
    parser.add_argument("--turns", type=int, default=20, help="tool calls of a conversation")
    parser.add_argument("--rounds", type=int, default=30, help="conversations of each side")
    parser.add_argument("--json", type=Path, help="merge the records into this ledger file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
