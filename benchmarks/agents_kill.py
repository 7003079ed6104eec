"""Agents' processes are killed hundreds of times; every effect on another service happens once all the same.

    python benchmarks/agents_kill.py [--kills 500] [--postgres URL | --postgres own] [--json OUT]
    python benchmarks/agents_kill.py --kills 10000 --workflows 0 --json OUT     # a night
    python benchmarks/agents_kill.py --flow order                               # an effect nobody can look up

The loan desk (examples/loan_underwriting) takes applications from their PDFs to the money, with agents that need no
language model, against a credit bureau, a registry and a bank in a process of their own, which fail now and then, also
after they did what was asked. Processes get SIGKILL right before and right after every commit of a transaction that
wrote something, a moment after an effect was begun, and at random moments from outside, once or several times a case;
they are started again until the case has ended. A payment whose outcome nobody can tell is parked, and resolved as a
person would: by a look into the bank's ledger. Then that ledger is counted: each approved application has to have one
loan, one reservation and one payment of its amount, any other none. `--postgres own` starts a server in a temporary
folder. Ctrl-C ends it after the case at hand, with a report of what was done so far.

After that, so many workflows wait at once in one process, for a person and for a signal, in rounds.
"""

import argparse
import asyncio
import contextlib
import gc
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "agents" / "kill"))

from harness import Cases, Postgres, Tally  # pyright: ignore[reportMissingImports]
from loan import Loan  # pyright: ignore[reportMissingImports]
from order import Order  # pyright: ignore[reportMissingImports]

from stille import ledger
from stille.agents.durable import DurableJournal, Workflows, workflow
from stille.agents.journal import ApprovalRequest, EffectCall
from stille.agents.types import Json

PAGE = os.sysconf("SC_PAGE_SIZE")
APPLICATIONS = (9, 10, 11, 14, 3, 6)
"""Seeds: four that the policy approves, one that a person approves, one that a person declines."""
PER_CASE = (1, 1, 4, 10)
"""Kills of one case, in turn."""


def kill(cases: Cases, kills: int, stopped: Callable[[], bool]) -> Tally:
    """So many kills. Of those from outside, many come when the case has ended already."""
    begun = told = time.monotonic()
    while (tally := cases.tally).kills < kills and not stopped():
        cases.case(kills=min(PER_CASE[tally.cases % len(PER_CASE)], kills - tally.kills), outside=0.4)
        if (now := time.monotonic()) > told + 5:
            told, left_s = now, (now - begun) / max(1, tally.kills) * (kills - tally.kills)
            line = f"{tally.kills}/{kills} kills, {tally.cases} cases, {tally.parked} parked, "
            print(f"{line}{len(tally.unfinished)} problems; {left_s / 60:.0f} min left", file=sys.stderr, flush=True)
    return cases.check()


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
    options = parse()
    command = ("python benchmarks/agents_kill.py " + ledger.arguments()).strip()
    records, name = [], "sqlite" if options.postgres is None else "postgres"
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agents-kill-")))
        folder.chmod(0o755)  # PostgreSQL may run as another user
        db = options.postgres or str(folder / "runs.db")
        if db == "own":
            db = stack.enter_context(Postgres(folder / "server")).url
        stops: list[int] = []
        if options.kills:
            before = signal.signal(signal.SIGINT, lambda number, _: stops.append(number))
            flow = Loan(folder, APPLICATIONS) if options.flow == "loan" else Order(folder)
            cases = stack.enter_context(contextlib.closing(Cases(db, flow, options.seed)))
            begun = time.monotonic()
            tally = kill(cases, options.kills, lambda: bool(stops))
            signal.signal(signal.SIGINT, before)
            for problem in tally.problems:
                print(problem)
            if tally.kills:
                records.append(record(options.flow, name, tally, cases, (time.monotonic() - begun) / 60, command))
            if stops:
                print(f"interrupted after {tally.kills} of {options.kills} kills")
        if options.workflows and not stops:
            lost, seconds, memory = asyncio.run(wait_together(db, options.workflows, options.rounds))
            half = len(memory) // 2
            grown = (memory[-1] - memory[half]) / max(1, len(memory) - 1 - half)
            records.append(
                ledger.measure(
                    f"agents.waiting.{name}",
                    lost,
                    "runs",
                    goal="value == 0",
                    command=command,
                    notes=f"Runs forgotten or wrong of {options.rounds} rounds with {options.workflows} workflows that "
                    "wait at once in one process, each for an approval and a signal before an effect. "
                    f"{sorted(seconds)[len(seconds) // 2]:.1f} s a round; memory {memory[0]:.0f} MiB after the first "
                    f"round, {memory[-1]:.0f} after the last, {grown:+.2f} a round in the second half.",
                )
            )
    for each in records:
        print(f"{each.id}: {each.value:g} {each.unit}, met: {each.met}. {each.notes}")
    if options.json:
        ledger.write(options.json, records)
    sys.exit(0 if all(each.met for each in records) else 1)


def record(flow: str, database: str, tally: Tally, cases: Cases, minutes: float, command: str) -> ledger.Record:
    known = {place for places in cases.places.values() for place in places}
    what = "3 effects at a bank that fails now and then" if flow == "loan" else "1 effect that nobody can look up"
    return ledger.measure(
        f"agents.kill.{database}" if flow == "loan" else f"agents.kill_{flow}.{database}",
        len(tally.problems),
        "effects",
        goal="value == 0",
        command=command,
        notes=f"Effects duplicated, lost or wrong, and cases that did not end, in {tally.kills} kills. {tally.cases} "
        f"cases of the {flow} flow, an approved one with {what}; {tally.outside} kills from outside at random moments, "
        f"the others at {len(known & tally.places.keys())} of {len(known)} places right before, amid or right after a "
        f"commit; {tally.again} attempts at effects beyond the first, {tally.parked} parked and resolved by the other "
        f"side's books, {tally.approvals} decisions by a person; {minutes:.1f} minutes.",
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=500, help="at least so many; 10000 is what a nightly job runs")
    parser.add_argument("--flow", choices=("loan", "order"), default="loan")
    parser.add_argument("--postgres", help="URL of an empty database, or own: a server in a temporary folder")
    parser.add_argument("--seed", type=int, default=0, help="of where and when it kills")
    parser.add_argument("--workflows", type=int, default=200, help="that wait at once; 0: none")
    parser.add_argument("--rounds", type=int, default=8, help="of waiting")
    parser.add_argument("--json", type=Path, help="merge the records into this ledger file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
