"""Kills the program again and again, restarts it until its run has ended, and counts what the service was asked."""

import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from stille.agents.database import Database
from stille.agents.effects import Effects

HERE = Path(__file__).parent


@dataclass
class Tally:
    """Of all cases: kills, and what must not be."""

    cases: int = 0
    kills: int = 0
    random_kills: int = 0
    parked: int = 0
    repeated: int = 0  # idempotent requests that came twice: allowed, counted as one
    duplicated: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    boundaries: Counter[str] = field(default_factory=Counter)

    @property
    def clean(self) -> bool:
        return not (self.duplicated or self.lost or self.unfinished)


class Program:
    """The program, imported and ready to be forked."""

    def __init__(self):
        command = [sys.executable, str(HERE / "program.py")]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, kill_after_s=None, **order) -> tuple[int, dict | None]:
        """Exit status (negative: killed) and what it printed, if it came so far."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        printed, timer = None, None
        for line in self.process.stdout:
            said = json.loads(line)
            if "pid" in said and kill_after_s is not None:
                timer = threading.Timer(kill_after_s, _kill, (said["pid"],))
                timer.start()
            elif "status" in said:
                if timer is not None:
                    timer.cancel()
                return said["status"], printed
            elif "pid" not in said:
                printed = said
        raise RuntimeError("the program ended")

    def close(self):
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=10)


def _kill(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


class Cases:
    """Runs cases against one database and one service.

    Args:
        db: of the runs: path or URL.
        folder: for the service's ledger.
    """

    def __init__(self, db: str, folder: Path, seed: int = 0):
        self.db = db
        self.ledger = folder / "ledger.db"
        command = [sys.executable, str(HERE / "service.py"), str(self.ledger)]
        self.service = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.service.stdout is not None
        self.url = f"http://127.0.0.1:{self.service.stdout.readline().strip()}"
        self.program = Program()
        self.random = random.Random(seed)
        self.tally = Tally()
        self._go("measure-0")  # makes the tables and the queues
        started = time.perf_counter()
        self.writes = self._go("measure-1")["writes"]
        self.seconds = time.perf_counter() - started

    def close(self):
        self.program.close()
        self.service.kill()
        self.service.wait()

    def at_boundary(self, name: str, where: str) -> None:
        """Kill it at one boundary, then let it end."""
        status, printed = self.program.run(db=self.db, url=self.url, run=name, kill=where)
        self._count(status)
        self.tally.boundaries[where] += status == -signal.SIGKILL
        self._finish(name, printed if status == 0 else None)

    def several(self, name: str, kills: int) -> None:
        """Kill it so many times, at boundaries and at moments taken at random, then let it end."""
        printed = None
        for _ in range(kills):
            if self.random.random() < 0.5:
                where = f"{self.random.choice(['before', 'after'])}:{self.random.randint(1, self.writes * 2 // 3)}"
                status, printed = self.program.run(db=self.db, url=self.url, run=name, kill=where)
            else:
                moment = self.random.uniform(0, 0.8 * self.seconds)
                status, printed = self.program.run(moment, db=self.db, url=self.url, run=name)
                self.tally.random_kills += status == -signal.SIGKILL
            self._count(status)
            if status != 0 or printed is None:
                printed = None  # it may have been killed after it said something
            elif "parked" in printed:
                self._resolve(printed["parked"])
                printed = None
            else:
                break
        self._finish(name, printed)

    def check(self) -> Tally:
        """Count what is in the service's ledger: every effect of every case once."""
        with contextlib.closing(sqlite3.connect(self.ledger)) as ledger:
            done = Counter(ledger.execute("SELECT kind, key FROM done").fetchall())
            asked = Counter(ledger.execute("SELECT kind, key FROM asked").fetchall())
        self.tally.duplicated += [f"{key} x{count}" for (_, key), count in done.items() if count > 1]
        self.tally.lost += [key for key in self.expected if done[key.partition(":")[0], key] == 0]
        self.tally.repeated = sum(count - 1 for (kind, _), count in asked.items() if kind == "pay")
        return self.tally

    expected: list[str]

    def _finish(self, name, printed):
        for _ in range(8):
            if printed is not None and "result" in printed:
                break
            if printed is not None and "parked" in printed:
                self._resolve(printed["parked"])
            status, printed = self.program.run(db=self.db, url=self.url, run=name)
            if status != 0:
                self.tally.unfinished.append(f"{name}: status {status}")
        else:
            self.tally.unfinished.append(name)
        self.tally.cases += 1
        self.expected = [*getattr(self, "expected", []), *(f"{kind}:{name}" for kind in ("pay", "mail", "seal"))]

    def _go(self, name):
        status, printed = self.program.run(db=self.db, url=self.url, run=name)
        assert status == 0, status
        assert printed is not None
        return printed

    def _count(self, status):
        self.tally.kills += status == -signal.SIGKILL

    def _resolve(self, key):
        """What a person does: look into the other side's books."""
        with contextlib.closing(sqlite3.connect(self.ledger)) as ledger:
            row = ledger.execute("SELECT id FROM done WHERE key = ?", (key,)).fetchone()
        database = Database(self.db)
        Effects(database).resolve(key, row is not None, None if row is None else {"id": row[0]}, by="bookkeeper")
        database.close()
        self.tally.parked += 1


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
