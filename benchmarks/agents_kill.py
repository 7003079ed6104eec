"""Agents' processes are killed hundreds of times; every effect on another service happens once all the same.

    python benchmarks/agents_kill.py [--kills 500] [--postgres URL | --postgres own] [--workflows 200] [--json OUT]

A program with a workflow of four steps (tests/agents/kill/program.py) works against a real HTTP service with a ledger
of its own: one request with an idempotency key, one that the service does not know keys for but can be asked about,
and one without either. Processes get SIGKILL right before and right after every commit of a transaction that wrote
something, and at random moments from outside, some runs several times over; they are started again until the run has
ended. An effect whose outcome nobody can tell is parked, and resolved as a person would: by a look into the service's
ledger. Then that ledger is counted. `--postgres own` starts a server in a temporary folder.

After that, so many workflows wait at once in one process, for a person and for a signal, in rounds.
"""

import argparse
import asyncio
import contextlib
import gc
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "agents" / "kill"))

from harness import Cases, Postgres, Tally

from stille import ledger
from stille.agents.durable import DurableJournal, Workflows, workflow
from stille.agents.journal import ApprovalRequest, EffectCall
from stille.agents.types import Json

PAGE = os.sysconf("SC_PAGE_SIZE")


def kill(db: str, folder: Path, kills: int) -> Tally:
    """Every boundary on both sides, then several kills per run, until there are so many."""
    cases = Cases(db, folder)
    try:
        number = 0
        while cases.tally.kills < kills // 2 or number < 2 * cases.writes:
            side, where = ("before", "after")[number % 2], number // 2 % cases.writes + 1
            cases.at_boundary(f"boundary-{number}", f"{side}:{where}")
            number += 1
            report(cases.tally, kills)
        while cases.tally.kills < kills:
            cases.several(f"several-{number}", kills=5)
            number += 1
            report(cases.tally, kills)
        return cases.check()
    finally:
        cases.close()


def report(tally: Tally, kills: int) -> None:
    if tally.cases % 20 == 0:
        print(f"{tally.kills}/{kills} kills, {tally.cases} runs, {tally.parked} parked", file=sys.stderr, flush=True)


@workflow
async def waits(journal: DurableJournal, number: int) -> int:
    async def pay(key: str) -> Json:
        return {"number": number}

    await journal.approval(ApprovalRequest(id="a", tool="pay", arguments={}, reason="benchmark"))
    got = await journal.receive("go", int)
    call = EffectCall(key=f"pay:{journal.run_id}", tool="pay", arguments={}, effect="once")
    paid = await journal.effect(call, pay)
    assert paid == {"number": number}
    return number + (got or 0)


async def wait_together(db: str, count: int, rounds: int) -> tuple[int, list[float], list[float]]:
    """Runs that did not end rightly, seconds of each round, MiB in use after each round."""
    lost, seconds, memory = 0, [], []
    async with Workflows([waits], db, version="1") as flows:
        for round in range(rounds):
            started = time.perf_counter()
            runs = [await flows.start(waits, number, run_id=f"{round}-{number}") for number in range(count)]
            while len(await asyncio.to_thread(flows.approvals.list, None, True)) < count:
                await asyncio.sleep(0.1)
            for run in runs:
                await asyncio.to_thread(flows.approve, run, "benchmark")
                await flows.send(run, "go", 1)
            ends = [asyncio.wait_for(flows.result(run), 120) for run in runs]
            results = await asyncio.gather(*ends, return_exceptions=True)
            lost += sum(result != number + 1 for number, result in enumerate(results))
            gc.collect()
            seconds.append(time.perf_counter() - started)
            memory.append(int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 2**20)
            print(f"round {round}: {seconds[-1]:.1f} s, {memory[-1]:.0f} MiB", file=sys.stderr, flush=True)
    return lost, seconds, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--postgres", help="URL of an empty database, or own: a server in a temporary folder")
    parser.add_argument("--workflows", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    records, command = [], "python benchmarks/agents_kill.py " + " ".join(sys.argv[1:])
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agents-kill-")))
        folder.chmod(0o755)  # PostgreSQL may run as another user
        db, name = str(folder / "runs.db"), "sqlite"
        if options.postgres is not None:
            own = options.postgres == "own"
            db = stack.enter_context(Postgres(folder / "server")).url if own else options.postgres
            name = "postgres"
        if options.kills:
            started = time.perf_counter()
            tally = kill(db, folder, options.kills)
            minutes = (time.perf_counter() - started) / 60
            for problem in tally.duplicated + tally.lost + tally.unfinished:
                print(problem)
            boundaries = sum(1 for where, count in tally.boundaries.items() if count)
            records.append(
                ledger.measure(
                    f"agents.kill.{name}",
                    len(tally.duplicated) + len(tally.lost) + len(tally.unfinished),
                    "effects",
                    goal="value == 0",
                    command=command.strip(),
                    notes=f"Effects duplicated or lost, and runs that did not end, in {tally.kills} kills. "
                    f"{tally.cases} runs of 3 effects each; {tally.random_kills} kills from outside at random "
                    f"moments, the others at {boundaries} different places right before or after a commit; "
                    f"{tally.parked} unknown outcomes were parked and resolved by the service's ledger, "
                    f"{tally.repeated} requests repeated with their idempotency key; {minutes:.1f} minutes.",
                )
            )
        if options.workflows:
            lost, seconds, memory = asyncio.run(wait_together(db, options.workflows, options.rounds))
            half = len(memory) // 2
            grown = (memory[-1] - memory[half]) / max(1, len(memory) - 1 - half)
            records.append(
                ledger.measure(
                    f"agents.waiting.{name}",
                    lost,
                    "runs",
                    goal="value == 0",
                    command=command.strip(),
                    notes=f"Runs forgotten or wrong of {options.rounds} rounds with {options.workflows} workflows that "
                    "wait at once in one process, each for an approval and a signal before an effect. "
                    f"{sorted(seconds)[len(seconds) // 2]:.1f} s a round; memory {memory[0]:.0f} MiB after the first "
                    f"round, {memory[-1]:.0f} after the last, {grown:+.2f} a round in the second half.",
                )
            )
    for record in records:
        print(f"{record.id}: {record.value:g} {record.unit}, met: {record.met}. {record.notes}")
    if options.json:
        ledger.write(options.json, records)
    sys.exit(0 if all(record.met for record in records) else 1)


if __name__ == "__main__":
    main()
