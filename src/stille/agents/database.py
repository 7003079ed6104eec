"""The database that runs, effects, approvals and the audit log share: a SQLite file, or PostgreSQL by URL.

A process that works on runs is an *owner*: it holds a lock that the operating system (or the PostgreSQL server) takes
away when the process is gone, however it went. That is how others know whether an effect which was begun is still
being carried out. No clock is involved: a process that was stopped for an hour still holds its lock. PostgreSQL's lock
goes with a connection, which may break although the process lives; then it is taken anew within `LOOK_S`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlalchemy.dialects import postgresql

from stille.agents.errors import AgentError
from stille.errors import ConfigError

T = TypeVar("T")
metadata = sa.MetaData()
logger = logging.getLogger(__name__)

SCHEMA_LOCK = 0x5711E  # of PostgreSQL's advisory locks
LOOK_S = 1.0
"""Seconds between two looks at whether the lock is still there."""

SQLITE_ARGUMENTS = {"timeout": 30, "cached_statements": 16}
"""Of each connection. A statement that it keeps takes some 15 KiB, and there are many of both."""

_KEEPALIVE = {"keepalives_idle": 20, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 30_000}


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
        ConfigError: no such file, a URL of something else, or it cannot be used.
    """

    def __init__(self, where: str | os.PathLike[str] | None = None, create: bool = True):
        text = str(default_path() if where is None else where)
        shown = re.sub(r"(://[^:/@]*):[^@/]*@", r"\1:***@", text)  # without a password
        self.sqlite = "://" not in text or text.startswith("sqlite:///")
        if self.sqlite:
            self.path = Path(text.removeprefix("sqlite:///")).expanduser().absolute()
            if not create and not self.path.exists():
                raise ConfigError(f"there is no database {self.path}; it is made by the first run. Name another: --db")
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.url = f"sqlite:///{self.path}"
            self.engine = sa.create_engine(self.url, connect_args=SQLITE_ARGUMENTS, pool_size=4, max_overflow=12)
            event.listen(self.engine, "connect", _configure_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)
        elif text.startswith(("postgresql://", "postgres://", "postgresql+psycopg://")):
            self.url = "postgresql://" + text.partition("://")[2]
            url = "postgresql+psycopg://" + text.partition("://")[2]
            self.engine = sa.create_engine(
                url, connect_args=_KEEPALIVE, pool_size=4, max_overflow=12, pool_pre_ping=True
            )
        else:
            raise ConfigError(f"database {shown!r}: expected a path, sqlite:///PATH or postgresql://USER@HOST/NAME")
        self.owner = uuid.uuid4().hex
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="stille-agents")
        self._lock: Any = None
        self._looked: float | None = None  # at the lock, `time.monotonic()`
        self._looking = threading.Lock()
        self.closed = False
        try:
            with self.transaction() if create else self.reading() as connection:
                if create:
                    if not self.sqlite:
                        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": SCHEMA_LOCK})
                    metadata.create_all(connection)
                elif not sa.inspect(connection).has_table("stille_effects"):
                    raise ConfigError(f"database {shown} holds no runs of agents; name the one that they use: --db")
        except exc.DBAPIError as error:
            self.engine.dispose()
            raise ConfigError(f"database {shown}: {_first_line(error)}") from error

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

    def among(self, column: sa.ColumnElement[str], values: Collection[str]) -> sa.ColumnElement[bool]:
        """Whether a column is one of these, in SQL that does not grow with their number: every connection keeps the
        statements that it has seen."""
        if self.sqlite:
            each = sa.func.json_each(json.dumps(list(values))).table_valued("value")
            return column.in_(sa.select(each.c.value))
        return column == sa.any_(sa.cast(list(values), postgresql.ARRAY(sa.Text)))

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run what uses the database, out of the event loop. If it is away or busy, again, until it is not: a function
        has to recognise what it has committed already."""
        wait_s = 0.05
        while True:
            try:
                return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)
            except exc.DBAPIError as error:
                if self.closed or not _passes(error):
                    raise
                logger.warning("the database is asked again in %.2f s: %s", wait_s, _first_line(error))
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, 5.0)

    # Owners

    def own(self) -> str:
        """The name that this process is known by. The first call takes its lock; each one sees that it is held."""
        with self._looking:
            if self._looked is None and self.sqlite:
                self._owners.mkdir(exist_ok=True)
                self._lock = open(self._owners / self.owner, "w")  # noqa: SIM115
                fcntl.flock(self._lock, fcntl.LOCK_EX)
            elif not self.sqlite and (self._looked is None or time.monotonic() - self._looked > LOOK_S):
                self._hold()
            self._looked = time.monotonic()
        return self.owner

    def _hold(self) -> None:
        """Take PostgreSQL's lock, unless the connection that has it is still good."""
        if self._lock is not None:
            try:
                self._lock.execute(sa.text("SELECT 1"))
                return
            except exc.DBAPIError as error:
                logger.warning(
                    "the connection that shows that this process lives broke; taking another: %s", _first_line(error)
                )
                self._lock.close()
                self._lock = None
        connection = self.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        query = sa.text("SELECT pg_try_advisory_lock(:key)")
        if connection.execute(query, {"key": _number(self.owner)}).scalar():
            self._lock = connection
        else:  # the server has not noticed yet that the old connection is gone, and so holds the lock for us
            connection.close()

    def alive(self, owner: str, connection: sa.Connection | None = None) -> bool:
        """Whether the process of that name still lives.

        Args:
            connection: with a transaction that asks this by the way; None: another one is opened.
        """
        if owner == self.owner:
            return self._looked is not None
        if self.sqlite:
            return self._alive_by_file(owner)
        with self.reading() if connection is None else contextlib.nullcontext(connection) as one:
            query = sa.text("SELECT pg_try_advisory_xact_lock_shared(:key)")
            return not one.execute(query, {"key": _number(owner)}).scalar()

    def close(self) -> None:
        """Give up the lock and the connections."""
        self.closed = True
        self._threads.shutdown(wait=True)
        if self._lock is not None:
            if self.sqlite:
                (self._owners / self.owner).unlink(missing_ok=True)
            else:
                with contextlib.suppress(exc.DBAPIError):  # a connection that broke holds nothing
                    self._lock.execute(sa.text("SELECT pg_advisory_unlock(:key)"), {"key": _number(self.owner)})
            self._lock.close()
            self._lock = self._looked = None
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
            for key in await self._database.call(self._ready, list(self._waiting)):
                for future in self._waiting.get(key, ()):
                    if not future.done():
                        future.set_result(None)
            await asyncio.sleep(self._interval_s)
        for future in [future for futures in self._waiting.values() for future in futures]:
            if not future.done():
                future.set_exception(AgentError("the database was closed while something was waited for in it"))


def _passes(error: exc.DBAPIError) -> bool:
    """Whether the same may well succeed later: the database is busy, or cannot be reached."""
    if isinstance(error.orig, sqlite3.Error):
        code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
        return code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    return error.connection_invalidated or isinstance(error, exc.OperationalError)


def _first_line(error: exc.DBAPIError) -> str:
    return str(error.orig).partition("\n")[0]


def _configure_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions begin where SQLAlchemy says so
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")  # what was committed survives a power cut


def _begin_sqlite(connection: sa.Connection) -> None:
    reads = connection.get_execution_options().get("reads", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _number(owner: str) -> int:
    return int.from_bytes(hashlib.sha256(owner.encode()).digest()[:8], "big", signed=True)
