"""Budgets: what is about to be spent is reserved first, so that nothing is ever spent beyond a limit.

A budget lies within its parent (an agent's in its workflow's in its tenant's), and a reservation has to fit into all of
them. The books are kept in a store, in one transaction per change: threads, tasks and processes may share them. All
sums are integers; seconds are kept in milliseconds.
"""

from __future__ import annotations

import math
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

from pydantic import Field

from stille.agents.errors import BudgetExceededError
from stille.agents.types import Data, Usage
from stille.errors import ConfigError

Resource = Literal["tokens", "micros", "calls", "seconds"]
RESOURCES: tuple[Resource, ...] = get_args(Resource)
State = Literal["reserved", "settled", "released", "swept"]


class Amounts(Data):
    """Of each resource. `micros` are millionths of a currency's unit, `millis` milliseconds of wall time."""

    tokens: int = 0
    micros: int = 0
    calls: int = 0
    millis: int = 0

    @classmethod
    def of(cls, tokens: int = 0, micros: int = 0, calls: int = 0, seconds: float = 0) -> Amounts:
        """Checked; seconds are rounded up to whole milliseconds.

        Raises:
            ConfigError: an amount is negative, or not a whole number where it has to be.
        """
        for name, amount in (("tokens", tokens), ("micros", micros), ("calls", calls)):
            if isinstance(amount, bool) or not isinstance(amount, int) or amount < 0:
                raise ConfigError(f"{name} is {amount!r}; expected a whole number that is not negative")
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
            raise ConfigError(f"seconds is {seconds!r}; expected a number that is not negative")
        return cls(tokens=tokens, micros=micros, calls=calls, millis=math.ceil(seconds * 1000))

    @property
    def values(self) -> tuple[int, int, int, int]:
        """In the order of `RESOURCES`, seconds as milliseconds."""
        return self.tokens, self.micros, self.calls, self.millis

    @property
    def seconds(self) -> float:
        return self.millis / 1000


class Limits(Data):
    """Of one budget; None: no limit."""

    tokens: int | None = None
    micros: int | None = None
    calls: int | None = None
    millis: int | None = None


class Account(Data):
    """The books of one budget.

    Attributes:
        overdraft: what was spent beyond reservations of this very budget; if there is any, it gives no more.
    """

    spent: Amounts = Amounts()
    reserved: Amounts = Amounts()
    overdraft: Amounts = Amounts()


class Entry(Data):
    """A reservation in the books. `amounts` are what was reserved, or spent once it is settled."""

    id: str
    budget: str
    amounts: Amounts
    state: State


_COLUMNS = ("tokens", "micros", "calls", "millis")
_SUMS = tuple(f"{kind}_{column}" for kind in ("spent", "reserved", "overdraft") for column in _COLUMNS)
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS budget_accounts (
    budget TEXT PRIMARY KEY, {", ".join(f"{column} INTEGER NOT NULL DEFAULT 0" for column in _SUMS)}
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS budget_reservations (
    id TEXT PRIMARY KEY, budget TEXT NOT NULL, tokens INTEGER NOT NULL, micros INTEGER NOT NULL,
    calls INTEGER NOT NULL, millis INTEGER NOT NULL, state TEXT NOT NULL, at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS budget_reservations_open ON budget_reservations (at) WHERE state = 'reserved';
"""


class SqliteStore:
    """Books in an SQLite database; in memory, they last as long as the store. Each method is one transaction; budgets
    are named by path, `tenant/workflow/agent`.

    Args:
        path: of the file; processes may share it.
    """

    def __init__(self, path: str | Path = ":memory:"):
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.executescript(_SCHEMA)

    def close(self) -> None:
        self._connection.close()

    def reserve(self, id: str, limits: Mapping[str, Limits], amounts: Amounts) -> Entry:
        """Reserve in every budget of `limits`, the innermost last, or in none. An id that is reserved or settled
        already gives its entry and changes nothing.

        Raises:
            BudgetExceededError: one of them cannot cover it.
        """
        with self._transaction() as db:
            known = self._entry(db, id)
            innermost = list(limits)[-1]
            if known is not None and known.budget != innermost:
                raise ConfigError(f"reservation {id!r} belongs to budget {known.budget!r}, not to {innermost!r}")
            if known is not None and known.state in ("reserved", "settled"):
                return known
            for budget, limit in limits.items():
                _check(budget, limit, self._account(db, budget), amounts)
            for budget in limits:
                self._add(db, budget, reserved=amounts.values)
            db.execute(
                "INSERT OR REPLACE INTO budget_reservations VALUES (?, ?, ?, ?, ?, ?, 'reserved', ?)",
                (id, innermost, *amounts.values, time.time()),
            )
            return Entry(id=id, budget=innermost, amounts=amounts, state="reserved")

    def settle(self, id: str, actual: Amounts) -> Entry:
        """Turn what was reserved into what was spent; an id that is settled already stays as it is."""
        with self._transaction() as db:
            entry = self._known(db, id)
            if entry.state == "settled":
                return entry
            if entry.state == "released":
                raise ConfigError(f"reservation {id!r} was released; what it paid for must not happen any more")
            held = entry.amounts.values if entry.state == "reserved" else (0, 0, 0, 0)
            excess = [max(0, a - r) for a, r in zip(actual.values, entry.amounts.values, strict=True)]
            excess[3] = 0  # time passes, reserved or not
            for budget in _with_parents(entry.budget):
                self._add(db, budget, spent=actual.values, reserved=tuple(-amount for amount in held))
            self._add(db, entry.budget, overdraft=tuple(excess))
            return self._close(db, entry, "settled", actual)

    def release(self, id: str) -> Entry:
        """Give all of it back, unless it is settled."""
        with self._transaction() as db:
            entry = self._known(db, id)
            return entry if entry.state != "reserved" else self._give_back(db, entry, "released")

    def sweep(self, older_than_s: float) -> int:
        """Give back what was reserved this long ago and never settled; how many. Settled later, it is spent anyway."""
        with self._transaction() as db:
            old = db.execute(
                "SELECT id FROM budget_reservations WHERE state = 'reserved' AND at <= ?", (time.time() - older_than_s,)
            ).fetchall()
            for (id,) in old:
                self._give_back(db, self._known(db, id), "swept")
            return len(old)

    def account(self, budget: str) -> Account:
        with self._lock:
            return self._account(self._connection, budget)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Takes the write lock at once, so that what is read cannot change before it is written."""
        with self._lock, self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            yield self._connection

    def _account(self, db: sqlite3.Connection, budget: str) -> Account:
        row = db.execute(f"SELECT {', '.join(_SUMS)} FROM budget_accounts WHERE budget = ?", (budget,)).fetchone()
        if row is None:
            return Account()
        spent, reserved, overdraft = (_amounts(row[start : start + 4]) for start in (0, 4, 8))
        return Account(spent=spent, reserved=reserved, overdraft=overdraft)

    def _add(self, db: sqlite3.Connection, budget: str, **sums: tuple[int, ...]) -> None:
        changes = {f"{kind}_{c}": by for kind, row in sums.items() for c, by in zip(_COLUMNS, row, strict=True)}
        db.execute("INSERT OR IGNORE INTO budget_accounts (budget) VALUES (?)", (budget,))
        db.execute(
            f"UPDATE budget_accounts SET {', '.join(f'{name} = {name} + ?' for name in changes)} WHERE budget = ?",
            (*changes.values(), budget),
        )

    def _entry(self, db: sqlite3.Connection, id: str) -> Entry | None:
        row = db.execute(
            "SELECT budget, tokens, micros, calls, millis, state FROM budget_reservations WHERE id = ?", (id,)
        ).fetchone()
        return None if row is None else Entry(id=id, budget=row[0], amounts=_amounts(row[1:5]), state=row[5])

    def _known(self, db: sqlite3.Connection, id: str) -> Entry:
        entry = self._entry(db, id)
        if entry is None:
            raise ConfigError(f"there is no reservation {id!r} in this store")
        return entry

    def _give_back(self, db: sqlite3.Connection, entry: Entry, state: State) -> Entry:
        for budget in _with_parents(entry.budget):
            self._add(db, budget, reserved=tuple(-amount for amount in entry.amounts.values))
        return self._close(db, entry, state, entry.amounts)

    def _close(self, db: sqlite3.Connection, entry: Entry, state: State, amounts: Amounts) -> Entry:
        db.execute(
            "UPDATE budget_reservations SET tokens = ?, micros = ?, calls = ?, millis = ?, state = ? WHERE id = ?",
            (*amounts.values, state, entry.id),
        )
        return Entry(id=entry.id, budget=entry.budget, amounts=amounts, state=state)


def _amounts(row: tuple[int, ...]) -> Amounts:
    return Amounts(**dict(zip(_COLUMNS, row, strict=True)))


def _with_parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[: end + 1]) for end in range(len(parts))]


def _check(budget: str, limits: Limits, account: Account, amounts: Amounts) -> None:
    for resource, column in zip(RESOURCES, _COLUMNS, strict=True):
        over = getattr(account.overdraft, column)
        if over:
            raise BudgetExceededError(
                f"budget {budget!r} gives no more: {_say(over, resource)} were spent beyond what was reserved; find "
                "out why the estimate was too low, then use a new budget",
                budget,
                resource,
            )
        limit, wanted = getattr(limits, column), getattr(amounts, column)
        if limit is None:
            continue
        left = limit - getattr(account.spent, column) - getattr(account.reserved, column)
        if wanted > max(left, 0) or (resource == "seconds" and left <= 0):
            raise BudgetExceededError(
                f"budget {budget!r} has {_say(max(left, 0), resource)} left of {_say(limit, resource)}, but "
                f"{_say(wanted, resource)} are needed; nothing was spent; raise the limit or ask for less",
                budget,
                resource,
            )


def _say(amount: int, resource: Resource) -> str:
    return f"{amount / 1000:g} seconds" if resource == "seconds" else f"{amount:,} {resource}"


class Reservation:
    """What may be spent now. Settle it with what it came to, or release it if nothing was spent.

    Attributes:
        settled: it was, maybe before the process was restarted: what it paid for has happened.
    """

    def __init__(self, store: SqliteStore, entry: Entry):
        self._store = store
        self._entry = entry

    @property
    def id(self) -> str:
        return self._entry.id

    @property
    def amounts(self) -> Amounts:
        return self._entry.amounts

    @property
    def settled(self) -> bool:
        return self._entry.state == "settled"

    def settle(self, *, tokens: int = 0, micros: int = 0, calls: int = 0, seconds: float = 0) -> None:
        """What was spent; the rest is given back. If it was more than reserved, that is booked as overdraft, and the
        budget gives no more; of time, it is just spent. Settling again changes nothing.

        Raises:
            ConfigError: it was released.
        """
        self._entry = self._store.settle(self.id, Amounts.of(tokens, micros, calls, seconds))

    def release(self) -> None:
        """Give all of it back; what is settled stays spent."""
        self._entry = self._store.release(self.id)


class Budget:
    """What may be spent. None: no limit of its own.

    Args:
        name: within the parent; no "/".
        tokens: of prompts and answers.
        micros: money, in millionths.
        calls: of models and tools.
        seconds: of wall time that calls take, summed: waiting for a person costs nothing. When they are over, nothing
            more is given.
        parent: has to cover it too.
        store: keeps the books; the parent's if there is one, else in memory.

    Raises:
        ConfigError: a limit is negative, the name has a "/", or both parent and another store are given.
    """

    def __init__(
        self,
        name: str,
        *,
        tokens: int | None = None,
        micros: int | None = None,
        calls: int | None = None,
        seconds: float | None = None,
        parent: Budget | None = None,
        store: SqliteStore | None = None,
    ):
        if not name or "/" in name:
            raise ConfigError(f"budget name {name!r}: expected a name without '/'")
        if parent is not None and store is not None and store is not parent.store:
            raise ConfigError(
                f"budget {name!r}: its parent {parent.path!r} keeps its books in another store; leave it out"
            )
        checked = Amounts.of(tokens or 0, micros or 0, calls or 0, seconds or 0)
        given = (tokens, micros, calls, seconds)
        pairs = zip(_COLUMNS, given, checked.values, strict=True)
        own = Limits(**{column: amount for column, limit, amount in pairs if limit is not None})
        self.path = name if parent is None else f"{parent.path}/{name}"
        self.store: SqliteStore = parent.store if parent is not None else store or SqliteStore()
        self._limits: dict[str, Limits] = {**({} if parent is None else parent._limits), self.path: own}

    def reserve(
        self, *, tokens: int = 0, micros: int = 0, calls: int = 0, seconds: float = 0, id: str | None = None
    ) -> Reservation:
        """Set aside what is about to be spent at most.

        Args:
            id: of what it pays for, the same when a run is resumed: it is then reserved, and spent, only once.

        Raises:
            BudgetExceededError: this budget or a parent cannot cover it; nothing was reserved.
        """
        amounts = Amounts.of(tokens, micros, calls, seconds)
        return Reservation(self.store, self.store.reserve(id or uuid.uuid4().hex, self._limits, amounts))

    def seconds_left(self) -> float | None:
        """Of wall time, here and in its parents; None: no limit."""
        left = []
        for path, limits in self._limits.items():
            if limits.millis is not None:
                account = self.store.account(path)
                left.append(limits.millis - account.spent.millis - account.reserved.millis)
        return max(0, min(left)) / 1000 if left else None

    def account(self) -> Account:
        """What was spent and is reserved, in this budget and those within it."""
        return self.store.account(self.path)


class Price(Data):
    """Of a model, in micros per million tokens."""

    input: int = Field(default=0, ge=0)
    cached_input: int = Field(default=0, ge=0)
    output: int = Field(default=0, ge=0)


class Prices:
    """Of models, by name. A model on the own machine may cost nothing, but has to be named: `Price()`."""

    def __init__(self, prices: Mapping[str, Price]):
        self._prices = dict(prices)

    def cost(self, model: str, usage: Usage) -> int:
        """Of a call, in micros, rounded up.

        Raises:
            ConfigError: the model has no price.
        """
        price = self._price(model)
        fresh = usage.prompt_tokens - usage.cached_tokens
        total = fresh * price.input + usage.cached_tokens * price.cached_input + usage.completion_tokens * price.output
        return -(-total // 1_000_000)

    def most(self, model: str, prompt_tokens: int, max_tokens: int) -> int:
        """What a call can cost at most, in micros: what has to be reserved for it."""
        price = self._price(model)
        total = prompt_tokens * max(price.input, price.cached_input) + max_tokens * price.output
        return -(-total // 1_000_000)

    def _price(self, model: str) -> Price:
        if model not in self._prices:
            raise ConfigError(
                f"there is no price of model {model!r}, only of {', '.join(sorted(self._prices)) or 'none'}"
            )
        return self._prices[model]
