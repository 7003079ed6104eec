"""Kills the program again and again, restarts it until its run has ended, and counts what the other side was asked."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from stille.agents.approvals import Approvals
from stille.agents.database import Database
from stille.agents.effects import Effects
from stille.agents.types import Json

HERE = Path(__file__).parent
LIMIT_S = 180.0
"""A process that takes longer hangs."""


class Flow(Protocol):
    """What gets killed, and the other side of it: `loan.Loan` or `order.Order`.

    Attributes:
        module: with `warm`, which makes the workflow from `setup`.
        kinds: of runs.
    """

    module: str
    kinds: tuple[str, ...]
    setup: dict[str, Any]

    def inputs(self, run: str, kind: str) -> dict[str, Any]:
        """Of the workflow."""
        ...

    def verdict(self, run: str, kind: str, id: str) -> bool:
        """What a person says to an approval."""
        ...

    def look_up(self, key: str) -> Json:
        """What a person who looks into the other side's books finds of an effect; None: nothing."""
        ...

    def count(self, results: dict[str, tuple[str, Any]]) -> tuple[list[str], list[str], list[str]]:
        """By the other side's books, which effects happened more than once, which never, and what else is wrong.

        Args:
            results: by run, its kind and what it gave. All other runs have done nothing.
        """
        ...

    def close(self) -> None: ...


@dataclass
class Tally:
    """Of all cases: kills, and what must not be.

    Attributes:
        places: how often the program was killed there; see `places.Places`.
        outside: kills from outside, at moments taken at random.
        parked: effects that a person looked up.
        approvals: decisions of a person.
        again: attempts at effects beyond the first, after a kill or a failure.
    """

    cases: int = 0
    kills: int = 0
    outside: int = 0
    parked: int = 0
    approvals: int = 0
    again: int = 0
    places: Counter[str] = field(default_factory=Counter)
    duplicated: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        names = ("duplicated", "lost", "wrong", "unfinished")
        return [f"{name}: {each}" for name in names for each in getattr(self, name)]


class Program:
    """The program, imported and ready to be forked."""

    def __init__(self, flow: Flow):
        command = [sys.executable, str(HERE / "program.py"), flow.module, json.dumps(flow.setup)]
        # In a session of its own, which Ctrl-C does not reach.
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )

    def run(self, kill_after_s: float | None = None, **order: Any) -> dict[str, Any]:
        """All that it said: `status`, negative if it was killed, and what it came to, if it came so far."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        said: dict[str, Any] = {}
        timer = None
        for line in self.process.stdout:
            said |= json.loads(line)
            if "status" in said:
                assert timer is not None
                timer.cancel()
                return said
            if timer is None:
                timer = threading.Timer(kill_after_s or LIMIT_S, _kill, (said["pid"],))
                timer.start()
        raise RuntimeError("the program ended")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


class Cases:
    """Runs cases of a flow against one database, and kills them.

    Args:
        db: of the runs: path or URL; may be another between two cases.
        flow: closed with this.
    """

    def __init__(self, db: str, flow: Flow, seed: int = 0):
        self.db, self.flow = db, flow
        self.program = Program(flow)
        self.random = random.Random(seed)
        self.tally = Tally()
        self.tried: Counter[str] = Counter()
        self.results: dict[str, tuple[str, Any]] = {}
        self.places: dict[str, list[str]] = {}  # that a run of a kind passes
        self.seconds: dict[str, float] = {}  # that it takes
        self.passed: dict[str, None] = {}
        self.case()  # makes the tables
        for kind in flow.kinds:
            self._measure(kind)

    def close(self) -> None:
        self.program.close()
        self.flow.close()

    def case(
        self,
        kind: str | None = None,
        kills: int = 0,
        outside: float = 0.0,
        places: Sequence[str] = (),
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        """One run, whose processes are killed so often, or until it has ended, and then left to end.

        Args:
            outside: share of kills from outside at any moment. The others are at places that were tried least.
            places: more kills, at these.
            meanwhile: called after each kill.
        """
        kind = kind or self.flow.kinds[self.tally.cases % len(self.flow.kinds)]
        run = f"{self.flow.module}-{self.tally.cases}"
        self.tally.cases += 1
        plan = [self.random.random() < outside for _ in range(kills)]
        left = [*places, *self._least_tried(kind, plan.count(False))]
        plan += [False] * len(places)
        for _ in range(len(plan) + 20):
            at_any_moment = plan[-1] if plan else None
            moment = 0.02 + self.seconds[kind] * self.random.random() ** 3 if at_any_moment else None
            said = self._go(run, kind, moment, left if at_any_moment is False else [])
            killed = said["status"] == -signal.SIGKILL
            if killed and ("killed" in said or at_any_moment):
                plan.pop()
                self.tally.kills += 1
                self.tally.outside += "killed" not in said
                meanwhile()
            elif said["status"]:
                self.tally.unfinished.append(f"{run}: {'hangs' if killed else said['status']}")
            if "killed" in said:
                self.tally.places[said["killed"]] += 1
                left.remove(said["killed"])
            elif said["status"] == 0 and "result" in said:
                self.results[run] = kind, said["result"]
                return
            elif said["status"] == 0:
                self._be_asked(run, kind, said)
        self.tally.unfinished.append(f"{run}: did not end")

    def check(self) -> Tally:
        """Counts what is in the other side's books: every effect of every case once."""
        self.tally.duplicated, self.tally.lost, self.tally.wrong = self.flow.count(self.results)
        database = Database(self.db)
        self.tally.again = sum(effect.attempts - 1 for effect in Effects(database).list())
        database.close()
        return self.tally

    def _measure(self, kind: str) -> None:
        self.passed = {}
        started = time.perf_counter()
        self.case(kind)
        self.seconds[kind], self.places[kind] = time.perf_counter() - started, list(self.passed)

    def _least_tried(self, kind: str, number: int) -> list[str]:
        places = sorted(self.places.get(kind, ()), key=lambda place: (self.tried[place], self.random.random()))
        self.tried.update(places[:number])
        return places[:number]

    def _go(self, run: str, kind: str, kill_after_s: float | None, kill: list[str]) -> dict[str, Any]:
        order = {"db": self.db, "run": run, "inputs": self.flow.inputs(run, kind), "kill": kill}
        said = self.program.run(kill_after_s, **order)
        self.passed |= dict.fromkeys(said.get("passed", ()))
        return said

    def _be_asked(self, run: str, kind: str, said: dict[str, Any]) -> None:
        """What people do: look into the other side's books, and decide."""
        database = Database(self.db)
        for key in said["parked"]:
            found = self.flow.look_up(key)
            Effects(database).resolve(key, found is not None, found, by="bookkeeper")
            self.tally.parked += 1
        for id in said["asked"]:
            verdict = "approve" if self.flow.verdict(run, kind, id) else "reject"
            Approvals(database).decide(run, verdict, "anna", id=id)
            self.tally.approvals += 1
        database.close()


class Postgres:
    """A PostgreSQL server in a folder of its own, as long as the context lasts; `url` leads to it."""

    @staticmethod
    def missing() -> str | None:
        """Why there is none here."""
        absent = [name for name in ("initdb", "pg_ctl", "postgres") if shutil.which(name) is None]
        return f"no {', '.join(absent)} on this machine" if absent else None

    def __init__(self, folder: Path):
        self.folder = folder
        self.user = "nobody" if os.getuid() == 0 else None  # PostgreSQL does not run as root

    def __enter__(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.user:
            shutil.chown(self.folder, self.user)
        data, socket = self.folder / "data", str(self.folder)
        self._run("initdb", "-D", data, "-A", "trust", "-U", "postgres", "--no-sync")
        options = f"-c listen_addresses='' -c unix_socket_directories={socket} -c max_connections=200"
        self._run("pg_ctl", "-D", data, "-o", options, "-l", self.folder / "log", "-w", "start")
        self.url = f"postgresql://postgres@/postgres?host={socket}"
        return self

    def __exit__(self, *_):
        self._run("pg_ctl", "-D", self.folder / "data", "-m", "immediate", "stop")

    def _run(self, name, *arguments):
        command = [shutil.which(name), *map(str, arguments)]
        done = subprocess.run(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, user=self.user, cwd="/", timeout=60
        )
        if done.returncode:
            raise RuntimeError(f"{name}: {done.stderr}")
