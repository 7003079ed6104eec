"""A batch of loan applications from paper to decision: `make loan-demo`.

    python -m examples.loan_underwriting.demo --cases 12 --out loans
    python -m examples.loan_underwriting.demo --model clerk            # no language model
    python -m examples.loan_underwriting.demo --endpoint http://127.0.0.1:8000/v1 --model some-model

Writes the applications, starts the credit bureau, the registry and core banking, runs a durable workflow for each case,
and reports. Cases that a person has to decide wait: `stille agent runs --db OUT/runs.db`, then `stille agent approve`.
Started again with the same --out it goes on where it was.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, track
from rich.table import Table

from examples.loan_underwriting.compliance.oracle import judge
from examples.loan_underwriting.compliance.papers import from_truth, load_truth
from examples.loan_underwriting.compliance.policy import load_policy
from examples.loan_underwriting.desk.case import CaseFile
from examples.loan_underwriting.desk.clerk import Clerk
from examples.loan_underwriting.desk.desk import Desk, connect
from examples.loan_underwriting.documents import generate
from examples.loan_underwriting.documents.facts import TODAY, make_facts
from examples.loan_underwriting.extraction import Extractor
from examples.loan_underwriting.scoring.scorecard import Scorecard
from examples.loan_underwriting.services.world import load_world
from stille.agents import Budget, PolicyGuard, Tool
from stille.agents.approvals import Approval
from stille.agents.budget import SqliteStore
from stille.agents.durable import Workflows, workflow
from stille.agents.models.base import ChatModel

console = Console()


async def main() -> int:
    options = parse()
    out: Path = options.out
    write_applications(out, options.cases, options.seed)
    model = await make_model(options.model, options.endpoint, options.api_key)
    begun = time.perf_counter()
    files, waiting = await process(out, model, options.faults, options.wait)
    report(out, files, waiting, time.perf_counter() - begun, model.name)
    return 0


async def process(
    out: Path, model: ChatModel, faults: str | None, wait: float = 0, extractor: Extractor | None = None
) -> tuple[dict[str, CaseFile | None], Sequence[Approval]]:
    """Takes all applications in a folder as far as they come without a person, and closes the model.

    Args:
        faults: of the services: JSON, "none", or None for realistic ones.
        wait: seconds to wait for people after everything else is done.

    Returns:
        by application its case file, or None if it waits; what people are asked.
    """
    async with contextlib.AsyncExitStack() as stack:
        if (close := getattr(model, "close", None)) is not None:
            stack.push_async_callback(close)
        url = await stack.enter_async_context(services(out, faults))
        names = sorted(path.parent.name for path in out.glob("*/truth.json"))
        budgets = Budget("desk", tokens=len(names) * 60_000, store=SqliteStore(str(out / "budget.db")))

        def guard(name: str, tools: Sequence[Tool]) -> PolicyGuard:
            return PolicyGuard(tools=tools, budget=Budget(name, tokens=20_000, calls=60, parent=budgets))

        desk = Desk(model, await connect(url), load_policy(), Scorecard.load(), TODAY, guard)
        if extractor is not None:
            desk.extractor = extractor
        flow = workflow(name="underwrite")(desk.underwrite)
        # No limit on runs: those that wait for a person would use it up.
        flows = await stack.enter_async_context(Workflows([flow], out / "runs.db", version="demo"))
        files = await run_cases(flows, flow, out, names, wait)
        return files, flows.approvals.list(waiting=True)


def write_applications(out: Path, cases: int, seed: int, scanned: float = 0.5) -> None:
    """Those that are not there yet, and what the services know of all."""
    facts = [make_facts(seed + number) for number in range(cases)]
    missing = [each for each in facts if not (out / each.number / "truth.json").exists()]
    for each in track(missing, "writing applications", console=console, disable=not missing):
        generate.write_case(out / each.number, each, scanned)
    (out / "world.json").write_text(json.dumps(generate.world(facts)) + "\n")


async def make_model(name: str, endpoint: str | None, api_key: str = "none") -> ChatModel:
    """The agents' model: the clerk, one behind an endpoint, or one that runs here."""
    if name == "clerk":
        return Clerk()
    if endpoint:
        from stille.agents.models.endpoint import EndpointModel

        return EndpointModel(endpoint, name, api_key=api_key)
    from stille.agents.models.engine import EngineModel

    return await EngineModel(name, max_model_len=4096).__aenter__()


@contextlib.asynccontextmanager
async def services(out: Path, faults: str | None) -> AsyncIterator[str]:
    """The three services in a process of their own; their URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "examples.loan_underwriting.services", "--port", str(port)]
    command += [
        "--world",
        str(out / "world.json"),
        "--ledger",
        str(out / "ledger.sqlite"),
        "--parent",
        str(os.getpid()),
    ]
    process = subprocess.Popen(command + (["--faults", faults] if faults else []))
    url = f"http://127.0.0.1:{port}"
    try:
        async with httpx.AsyncClient() as client:
            for _ in range(150):
                with contextlib.suppress(httpx.HTTPError):
                    if (await client.get(f"{url}/bank/health")).is_success:
                        break
                if process.poll() is not None:
                    raise SystemExit("the services did not start; see above")
                await asyncio.sleep(0.1)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()


async def run_cases(
    flows: Workflows, flow: Any, out: Path, names: Sequence[str], wait: float
) -> dict[str, CaseFile | None]:
    """All cases; None for those that still wait for a person `wait` seconds after the others are done."""
    files: dict[str, CaseFile | None] = dict.fromkeys(names)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("cases", total=len(names))

        async def one(name: str) -> None:
            await flows.start(flow, name, str(out / name), run_id=name)
            files[name] = CaseFile.model_validate(await flows.result(name))
            progress.advance(bar)

        tasks = [asyncio.create_task(one(name)) for name in names]
        asked: set[str] = set()
        while True:
            done, left = await asyncio.wait(tasks, timeout=0.5)
            for task in done:
                task.result()  # raises what went wrong
            waiting = {approval.run for approval in flows.approvals.list(waiting=True)}
            if waiting != asked:
                asked = waiting
                progress.update(bar, description=f"cases ({len(asked)} wait for a person)")
            if len(left) <= len(asked):
                if left:
                    done, left = await asyncio.wait(tasks, timeout=wait)
                for task in left:
                    task.cancel()
                return files


def report(
    out: Path, files: dict[str, CaseFile | None], waiting: Sequence[Approval], seconds: float, model: str
) -> None:
    """What became of the cases, beside what the policy says of the truth."""
    world, policy, card = load_world(out / "world.json"), load_policy(), Scorecard.load()
    table = Table(box=SIMPLE, pad_edge=False, expand=True)
    for column in ("application", "scenario", "outcome"):
        table.add_column(column, no_wrap=True)
    table.add_column("why", no_wrap=True, overflow="ellipsis", ratio=1)
    asked = {approval.run: approval.reason for approval in waiting}
    counts: Counter[str] = Counter()
    tokens = cached = left_out = 0
    for name, file in files.items():
        truth = load_truth(out / name)
        oracle = judge(from_truth(truth), world, policy, card)
        expected = oracle.outcome if oracle.straight_through else "a person"
        if file is None:
            outcome, why, same = "waits", asked.get(name, "at work"), not oracle.straight_through
        else:
            outcome, by_policy = file.outcome, file.decided_by == "policy"
            same = outcome == expected if by_policy else not oracle.straight_through
            tokens, cached = tokens + file.prompt_tokens, cached + file.cached_tokens
            left_out += len(file.completed)
            why = "; ".join(reason.text for reason in file.reasons) or (file.payment or file.status)
            why = why if by_policy else f"by {file.decided_by}: {why}"
            (out / name / "case.json").write_text(file.model_dump_json(indent=1) + "\n")
            (out / name / "letter.txt").write_text(file.letter + "\n")
        counts[outcome] += 1
        counts["as the oracle"] += same
        table.add_row(name, truth["scenario"], outcome if same else f"[red]{outcome}, not {expected}[/red]", why)
    console.print(table)
    console.print(
        f"{len(files)} cases in {seconds:.0f} s with {model}: {counts['approve']} approved, {counts['decline']} "
        f"declined, {counts['waits']} wait for a person; {counts['as the oracle']} as the policy says of the truth.\n"
        f"Prompts had {tokens:,} tokens, {cached:,} of them in the prefix cache; the workflow did {left_out} steps "
        f"that agents had left out.\nCase files and letters: {out}/*/case.json and letter.txt. "
        f"Who waits for a person: stille agent runs --db {out / 'runs.db'}; then stille agent approve, and the same "
        "command again."
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/loans"), help="folder of everything")
    parser.add_argument("--cases", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="stille-135m", help="of the agents; 'clerk': none, calls are made in order")
    parser.add_argument("--endpoint", help="URL of an OpenAI-compatible API that has the model")
    parser.add_argument("--api-key", default="none")
    parser.add_argument("--faults", help="of the services: JSON, or 'none'; without it, realistic ones")
    parser.add_argument("--wait", type=float, default=0, help="seconds to wait for people at the end")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
