"""The database that runs, effects, approvals and the audit log share: a SQLite file, or PostgreSQL by URL.

A process that works on runs is an *owner*: it holds a lock that the operating system (or the PostgreSQL server) takes
away when the process is gone, however it went. That is how others know whether an effect which was begun is still
being carried out. No clock is involved: a process that was stopped for an hour still holds its lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import event, exc

from stille.agents.errors import AgentError
from stille.errors import ConfigError

T = TypeVar("T")
metadata = sa.MetaData()
SCHEMA_LOCK = 0x5711E  # of PostgreSQL's advisory locks


def default_path() -> Path:
    """$STILLE_HOME/agents/runs.db, else ~/.cache/stille/agents/runs.db."""
    # As stille.model.store.stille_home, which is slow to import.
    home = Path(os.environ.get("STILLE_HOME") or Path.home() / ".cache" / "stille").expanduser()
    return home / "agents" / "runs.db"


def canonical(value: Any) -> str:
    """JSON that is the same text for the same value: names sorted, no blanks, no NaN.

    Raises:
        ValueError: not JSON.
        TypeError: not JSON.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def now() -> str:
    """UTC, ISO 8601, microseconds."""
    seconds, micros = divmod(time.time_ns() // 1000, 1_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{micros:06d}Z"


class Database:
    """Connections, and the lock that says that this process lives. Cheap to open; the lock is taken on first use.

    Args:
        where: path of a SQLite file, `postgresql://` URL, or None: see `default_path`.
        create: make file, folder and tables if they are missing.

    Raises:
        ConfigError: no such file, or a URL of something else.
    """

    def __init__(self, where: str | os.PathLike[str] | None = None, create: bool = True):
        text = str(default_path() if where is None else where)
        self.sqlite = "://" not in text or text.startswith("sqlite:///")
        if self.sqlite:
            self.path = Path(text.removeprefix("sqlite:///")).expanduser().absolute()
            if not create and not self.path.exists():
                raise ConfigError(f"there is no database {self.path}; it is made by the first run. Name another: --db")
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.url = f"sqlite:///{self.path}"
            self.engine = sa.create_engine(self.url, connect_args={"timeout": 30}, pool_size=4, max_overflow=12)
            event.listen(self.engine, "connect", _configure_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)
        elif text.startswith(("postgresql://", "postgres://", "postgresql+psycopg://")):
            self.url = "postgresql://" + text.partition("://")[2]
            self.engine = sa.create_engine(
                "postgresql+psycopg://" + text.partition("://")[2], pool_size=4, max_overflow=12, pool_pre_ping=True
            )
        else:
            raise ConfigError(f"database {text!r}: expected a path, sqlite:///PATH or postgresql://USER@HOST/NAME")
        self.owner = uuid.uuid4().hex
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="stille-agents")
        self._lock: Any = None
        self.closed = False
        if create:
            try:
                with self.engine.begin() as connection:
                    if not self.sqlite:
                        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": SCHEMA_LOCK})
                    metadata.create_all(connection)
            except exc.DBAPIError as error:
                self.engine.dispose()
                raise ConfigError(f"database {text}: {error.orig}") from error

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """A transaction; in SQLite it holds the write lock from the beginning."""
        with self.engine.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction that does not keep writers out."""
        with self.engine.connect().execution_options(reads=True) as connection, connection.begin():
            yield connection

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run what uses the database, out of the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    # Owners

    def own(self) -> str:
        """Take the lock of this process, once; the name that it is known by."""
        if self._lock is None and self.sqlite:
            self._owners.mkdir(exist_ok=True)
            self._lock = open(self._owners / self.owner, "w")  # noqa: SIM115
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        elif self._lock is None:
            self._lock = self.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            self._lock.execute(sa.text("SELECT pg_advisory_lock(:key)"), {"key": _number(self.owner)})
        return self.owner

    def alive(self, owner: str) -> bool:
        """Whether the process of that name still lives."""
        if owner == self.owner:
            return self._lock is not None
        return self._alive_by_file(owner) if self.sqlite else self._alive_by_server(owner)

    def close(self) -> None:
        """Give up the lock and the connections."""
        self.closed = True
        self._threads.shutdown(wait=True)
        if self._lock is not None:
            if self.sqlite:
                (self._owners / self.owner).unlink(missing_ok=True)
            else:
                self._lock.execute(sa.text("SELECT pg_advisory_unlock(:key)"), {"key": _number(self.owner)})
            self._lock.close()
            self._lock = None
        self.engine.dispose()

    @property
    def _owners(self) -> Path:
        return self.path.with_name(self.path.name + ".owners")

    def _alive_by_file(self, owner: str) -> bool:
        path = self._owners / owner
        try:
            with open(path) as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        path.unlink(missing_ok=True)  # names are never used again
        return False

    def _alive_by_server(self, owner: str) -> bool:
        key = {"key": _number(owner)}
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            if not connection.execute(sa.text("SELECT pg_try_advisory_lock_shared(:key)"), key).scalar():
                return True
            connection.execute(sa.text("SELECT pg_advisory_unlock_shared(:key)"), key)
        return False


class Watch:
    """Wakes coroutines when what they wait for is in the database: one query per interval, however many wait.

    Args:
        ready: which of these keys need not wait any longer.
    """

    def __init__(self, database: Database, ready: Callable[[list[str]], set[str]], interval_s: float):
        self._database = database
        self._ready = ready
        self._interval_s = interval_s
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}
        self._task: asyncio.Task[None] | None = None

    async def wait(self, key: str) -> None:
        future = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, set()).add(future)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._poll())
        try:
            await future
        finally:
            waiting = self._waiting.get(key, set())
            waiting.discard(future)
            if not waiting:
                self._waiting.pop(key, None)

    async def _poll(self) -> None:
        while self._waiting and not self._database.closed:
            try:
                for key in await self._database.call(self._ready, list(self._waiting)):
                    for future in self._waiting.get(key, ()):
                        if not future.done():
                            future.set_result(None)
            except exc.OperationalError:
                pass  # the database is away or busy: asked again
            await asyncio.sleep(self._interval_s)
        for future in [future for futures in self._waiting.values() for future in futures]:
            if not future.done():
                future.set_exception(AgentError("the database was closed while something was waited for in it"))


def _configure_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions begin where SQLAlchemy says so
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")  # what was committed survives a power cut


def _begin_sqlite(connection: sa.Connection) -> None:
    reads = connection.get_execution_options().get("reads", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _number(owner: str) -> int:
    return int.from_bytes(hashlib.sha256(owner.encode()).digest()[:8], "big", signed=True)
