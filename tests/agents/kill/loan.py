"""The loan desk's flow, from PDFs to the money, against services in a process of their own that fail now and then.

Applications are generated with their PDFs, and read once by the real extractor before the program forks. Each case is
one of them under a name of its own, which makes its loan, reservation and payment others than those before.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parents[3]))

from examples.loan_underwriting.compliance.oracle import judge
from examples.loan_underwriting.compliance.papers import from_truth
from examples.loan_underwriting.compliance.policy import load_policy
from examples.loan_underwriting.desk.clerk import Clerk
from examples.loan_underwriting.desk.desk import Desk, connect
from examples.loan_underwriting.documents import generate
from examples.loan_underwriting.documents.facts import TODAY, Facts, make_facts
from examples.loan_underwriting.extraction import Extraction, GeometryExtractor
from examples.loan_underwriting.scoring.scorecard import Scorecard
from examples.loan_underwriting.services.ledger import Ledger
from examples.loan_underwriting.services.world import World
from stille.agents import Budget, PolicyGuard, Tool
from stille.agents.budget import SqliteStore
from stille.agents.durable import Workflow, workflow
from stille.agents.types import Json

ROOT = Path(__file__).parents[3]
FAULTS = {"latency_ms": 5, "error": 0.05, "error_after": 0.1, "hang_after": 0.03, "hang_s": 0.2}
"""What the services do: of eight requests one is carried out although the answer is 500, some after a while."""
SETTLES_S = 0.5
"""After which the bank has carried out what it was sent, a hundred times what that takes in the median."""


# The program


class Remembered:
    """Gives what the extractor read before the process was forked."""

    def __init__(self, folder: Path):
        extractor = GeometryExtractor()
        self.read = {path: extractor.extract(path) for path in sorted(folder.glob("*/*.pdf"))}

    def extract(self, path: Path) -> Extraction:
        return self.read[path]


async def warm(setup: dict[str, Any]) -> Callable[[], Workflow]:
    services, policy, card = await connect(setup["url"]), load_policy(), Scorecard.load()
    extractor = Remembered(Path(setup["folder"]))

    def make() -> Workflow:
        everybody = Budget("desk", calls=10**9, store=SqliteStore(setup["budget"]))

        def guard(name: str, tools: Sequence[Tool]) -> PolicyGuard:
            return PolicyGuard(tools=tools, budget=Budget(name, tokens=20_000, calls=60, parent=everybody))

        desk = Desk(Clerk(), services, policy, card, TODAY, guard, extractor, SETTLES_S, again_s=(0.1,))
        return workflow(name="underwrite")(desk.underwrite)

    return make


# The other side


class Loan:
    """Applications, services and the bank's books. See `harness.Flow`.

    Args:
        seeds: of the applications.
        faults: of the services.
    """

    module = "loan"

    def __init__(self, folder: Path, seeds: Sequence[int], faults: dict[str, Any] | None = None):
        facts = [make_facts(seed, "clean") for seed in seeds]
        self.facts = {each.number: each for each in facts}
        self.kinds = tuple(self.facts)
        self.papers, world = folder / "papers", generate.world(facts)
        truths = {each.number: generate.write_case(self.papers / each.number, each, scanned=0.0) for each in facts}
        known, policy, card = World.model_validate(world), load_policy(), Scorecard.load()
        self.right = {number: judge(from_truth(truth), known, policy, card) for number, truth in truths.items()}
        (folder / "world.json").write_text(json.dumps(world))
        self.ledger, self.budget = Ledger(folder / "ledger.sqlite"), folder / "budget.db"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.command = [sys.executable, "-m", "examples.loan_underwriting.services", "--port", str(self.port)]
        self.command += ["--world", str(folder / "world.json"), "--ledger", str(folder / "ledger.sqlite")]
        self.command += ["--faults", json.dumps(FAULTS if faults is None else faults), "--parent", str(os.getpid())]
        self.start()
        url = f"http://127.0.0.1:{self.port}"
        self.setup = {"url": url, "folder": str(self.papers), "budget": str(self.budget)}

    def start(self) -> None:
        """The services, in a process and a session of their own, which Ctrl-C does not reach."""
        self.service = subprocess.Popen(self.command, cwd=ROOT, start_new_session=True)
        until = time.monotonic() + 60
        while time.monotonic() < until and self.service.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"http://127.0.0.1:{self.port}/bank/health").is_success:
                    return
            time.sleep(0.05)
        self.close()
        raise RuntimeError(f"the services did not start: {' '.join(self.command)}")

    def close(self) -> None:
        """Stop the services, in the middle of what they do."""
        self.service.kill()
        self.service.wait()

    def inputs(self, run: str, kind: str) -> dict[str, Any]:
        return {"application": run, "folder": str(self.papers / kind)}

    def verdict(self, run: str, kind: str, id: str) -> bool:
        """A person decides as the policy suggests, and has a payment tried again."""
        return "/pay-" in id or self.right[kind].outcome == "approve"

    def look_up(self, key: str) -> Json:
        paid = self.ledger.effects("payment", reference=key)
        return {"payment": f"P-{paid[0]['id']}", **paid[0]["body"]} if paid else None

    def count(self, results: dict[str, tuple[str, Any]]) -> tuple[list[str], list[str], list[str]]:
        """Each approved case has to have one loan, reservation and payment, as its application says, others none."""
        books: dict[str, dict[str, list[dict[str, Any]]]] = {}
        loans: dict[str, str] = {}
        for effect in self.ledger.effects():
            body = effect["body"]
            if effect["kind"] == "loan":
                loans[f"L-{effect['id']}"] = body["application"]
            elif effect["kind"] not in ("reservation", "payment"):
                continue
            case = books.setdefault(body.get("application") or loans[body["loan"]], {})
            case.setdefault(effect["kind"], []).append({"id": effect["id"], **body})
        twice: list[str] = []
        lost: list[str] = []
        wrong = [f"{run}: nobody applied" for run in books.keys() - results.keys()]
        for run, (kind, file) in results.items():
            approved, found = self.right[kind].outcome == "approve", books.get(run, {})
            if (file["outcome"], file["status"]) != ("approve" if approved else "decline", "done"):
                wrong.append(f"{run}: {file['outcome']}, {file['status']}")
            for what, body in self.due(run, self.facts[kind], found).items() if approved else ():
                done = found.pop(what, [])
                twice += [f"{run}: {what} x{len(done)}"] if len(done) > 1 else []
                lost += [f"{run}: {what}"] if not done else []
                wrong += [f"{run}: {what} {each}, not {body}" for each in done[:1] if each != {**each, **body}]
                number = f"{what[0].upper()}-{done[0]['id']}" if done else None
                if what in file and file[what] != number:
                    wrong.append(f"{run}: its file says {what} {file[what]}, not {number}")
            wrong += [f"{run}: {what}, but it was declined" for what in found]
        return twice, lost, wrong + self.unsettled()

    def due(self, run: str, facts: Facts, found: dict[str, Any]) -> dict[str, dict[str, Any]]:
        loan = f"L-{found['loan'][0]['id']}" if "loan" in found else None
        return {
            "loan": {"application": run, "ssn": facts.person.ssn, "amount": facts.amount, "months": facts.months},
            "reservation": {"loan": loan, "amount": facts.amount},
            "payment": {"loan": loan, "account": facts.account, "amount": facts.amount},
        }

    def unsettled(self) -> list[str]:
        """What agents' budgets still hold, although nobody works any more."""
        store = SqliteStore(self.budget)
        left = store.account("desk").reserved
        store.close()
        return [f"budgets hold {left}"] if any(left.values) else []
