"""All events, in SQLite or PostgreSQL: the newest revision of each, with what it takes to find and count them."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy import event as sa_event
from sqlalchemy import exc
from sqlalchemy.dialects import postgresql, sqlite

from stille.video.errors import SinkError
from stille.video.rules.periods import period
from stille.video.rules.schema import Rules
from stille.video.types import Event

metadata = sa.MetaData()
table = sa.Table(
    "stille_video_events",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("camera", sa.Text, nullable=False),
    sa.Column("rule", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("zone", sa.Text),
    sa.Column("began", sa.Double, nullable=False),
    sa.Column("changed", sa.Double, nullable=False),
    sa.Column("ended", sa.Double),
    sa.Column("withheld", sa.Boolean, nullable=False),
    sa.Column("text", sa.Text, nullable=False),  # in lower case: what a search looks through
    sa.Column("body", sa.Text, nullable=False),  # the event as JSON
    sa.Index("stille_video_events_began", "began"),
    sa.Index("stille_video_events_rule", "rule", "began"),
    sa.Index("stille_video_events_camera", "camera", "began"),
)


@dataclass(frozen=True, slots=True)
class Filter:
    """Which events: those that fit all that is given.

    Attributes:
        since, until: seconds since 1970 in which an event began: since <= began < until.
        text: words that all occur in the reason or a name.
        withheld: None: both.
    """

    since: float | None = None
    until: float | None = None
    rules: Sequence[str] | None = None
    kinds: Sequence[str] | None = None
    cameras: Sequence[str] | None = None
    zones: Sequence[str] | None = None
    text: str | None = None
    state: Literal["open", "closed"] | None = None
    withheld: bool | None = False

    def clauses(self) -> list[sa.ColumnElement[bool]]:
        found: list[sa.ColumnElement[bool]] = []
        if self.since is not None:
            found.append(table.c.began >= self.since)
        if self.until is not None:
            found.append(table.c.began < self.until)
        for column, names in (
            (table.c.rule, self.rules), (table.c.kind, self.kinds), (table.c.camera, self.cameras),
            (table.c.zone, self.zones),
        ):  # fmt: skip
            if names is not None:
                found.append(column.in_(names))
        found += [table.c.text.contains(word, autoescape=True) for word in (self.text or "").lower().split()]
        if self.state is not None:
            found.append(table.c.state == self.state)
        if self.withheld is not None:
            found.append(table.c.withheld == self.withheld)
        return found


class Store:
    """A sink that keeps everything, withheld events too. Threads may share it.

    Args:
        where: path of a SQLite file, or a `postgresql://` URL.

    Raises:
        SinkError: neither, or it cannot be used.
    """

    withheld = True

    def __init__(self, where: str | os.PathLike[str]):
        text = str(where)
        if "://" not in text or text.startswith("sqlite:///"):
            path = Path(text.removeprefix("sqlite:///")).expanduser().absolute()
            self.name = f"store:{path}"
            self.engine = sa.create_engine(f"sqlite:///{path}", connect_args={"timeout": 10})
            sa_event.listen(self.engine, "connect", _configure_sqlite)
        elif text.startswith(("postgresql://", "postgres://", "postgresql+psycopg://")):
            path = None
            url = sa.make_url("postgresql+psycopg://" + text.partition("://")[2])
            self.name = f"store:{url.host or 'postgresql'}/{url.database}"
            options = {"connect_timeout": 10, "options": "-c statement_timeout=30000 -c lock_timeout=10000"}
            self.engine = sa.create_engine(url, connect_args=options, pool_pre_ping=True)
        else:
            raise SinkError(f"event store {text.partition('://')[0]}://...: expected a path or a postgresql:// URL")
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            with self.engine.begin() as connection:
                if path is None:
                    connection.execute(sa.text("SELECT pg_advisory_xact_lock(5711438)"))
                metadata.create_all(connection)
        except (exc.DBAPIError, OSError) as error:
            self.engine.dispose()
            raise SinkError(f"{self.name} cannot be used: {getattr(error, 'orig', error)}") from error

    def send(self, event: Event) -> None:
        """Keep it, unless a newer revision is there."""
        self.add([event])

    def add(self, events: Iterable[Event]) -> None:
        """
        Raises:
            SinkError: not now: the disk is full, the server is away.
        """
        rows = [_row(event) for event in events]
        insert: Any = postgresql.insert if self.engine.dialect.name == "postgresql" else sqlite.insert
        statement = insert(table)
        newer = statement.on_conflict_do_update(
            index_elements=[table.c.id],
            set_={column.name: statement.excluded[column.name] for column in table.c if column.name != "id"},
            where=statement.excluded.revision > table.c.revision,
        )
        try:
            with self.engine.begin() as connection:
                for row in rows:
                    connection.execute(newer, row)
        except exc.DBAPIError as error:
            raise SinkError(f"{self.name}: {error.orig}") from error

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        try:
            with self.engine.connect() as connection:
                yield connection
        except exc.DBAPIError as error:
            raise SinkError(f"{self.name}: {error.orig}") from error

    def get(self, id: str) -> Event | None:
        with self._reading() as connection:
            body = connection.execute(sa.select(table.c.body).where(table.c.id == id)).scalar()
        return Event.model_validate_json(body) if body is not None else None

    def find(self, which: Filter = Filter(), limit: int = 100, offset: int = 0, newest: bool = True) -> list[Event]:
        """In the order in which they began."""
        order = (table.c.began.desc(), table.c.id.desc()) if newest else (table.c.began, table.c.id)
        query = sa.select(table.c.body).where(*which.clauses()).order_by(*order).limit(limit).offset(offset)
        with self._reading() as connection:
            return [Event.model_validate_json(body) for body in connection.execute(query).scalars()]

    def count(
        self, which: Filter = Filter(), by: Sequence[Literal["rule", "kind", "camera", "zone"]] = ()
    ) -> dict[tuple[str | None, ...], int]:
        """How many, for each combination of values of `by`; without it the only key is ()."""
        columns = [table.c[name] for name in by]
        query = sa.select(sa.func.count(), *columns).where(*which.clauses()).group_by(*columns).order_by(*columns)
        with self._reading() as connection:
            return {tuple(row[1:]): row[0] for row in connection.execute(query)}

    def timeline(
        self, since: float, until: float, which: Filter = Filter(), step_s: int = 3600
    ) -> list[dict[str, Any]]:
        """How many began in each step from `since`: {"time": its start, "total", "rules": {rule: count}}."""
        steps_on = (table.c.began - since) / step_s
        # A cast rounds down in SQLite, to the nearest in PostgreSQL.
        step = sa.cast(steps_on if self.engine.dialect.name == "sqlite" else sa.func.floor(steps_on), sa.Integer)
        where = [*which.clauses(), table.c.began >= since, table.c.began < until]
        query = sa.select(step, table.c.rule, sa.func.count()).where(*where).group_by(step, table.c.rule)
        steps = [
            {"time": since + i * step_s, "total": 0, "rules": {}}
            for i in range(max(0, -int((since - until) // step_s)))
        ]
        with self._reading() as connection:
            for number, rule, count in connection.execute(query.order_by(step, table.c.rule)):
                steps[number]["total"] += count
                steps[number]["rules"][rule] = count
        return steps

    def query(
        self, what: str | None = None, where: str | None = None, when: str | None = None, text: str | None = None,
        timezone: str = "UTC", now: float | None = None, limit: int = 10,
    ) -> dict[str, Any]:  # fmt: skip
        """Answer a question such as "how many near misses at dock 3 yesterday", for tools.

        Args:
            what: rule or type of rule, as people write it ("near misses", "no helmet"); None: all.
            where: camera or zone; None: everywhere.
            when: as `rules.periods.period` reads it ("yesterday", "last 2 hours", "2026-05-01"); None: always.
            text: words that occur in the reason.
            timezone: of days and hours in question and answer.

        Returns:
            {"count", "since", "until", "by": {"rule": {name: count}, "camera": ...}, "events": [...], "known"}; "known"
            has the names that there are, if what or where fit none of them.

        Raises:
            SinkError: `when` is not understood; the message says what is.
        """
        moment = time.time() if now is None else now
        since, until = period(when, moment, timezone) if when else (None, None)
        known = self.names()
        fits = {
            "rules or kinds": _fitting(what, [*known["rule"], *known["kind"]]) if what else None,
            "places": _fitting(where, [*known["camera"], *known["zone"]]) if where else None,
        }
        which = Filter(since=since, until=until, text=text)
        clauses = which.clauses()
        for names, columns in zip(fits.values(), (("rule", "kind"), ("camera", "zone")), strict=True):
            if names is not None:
                clauses.append(sa.or_(*(table.c[column].in_(names) for column in columns)))
        answer: dict[str, Any] = {"since": _iso(since, timezone), "until": _iso(until, timezone)}
        with self._reading() as connection:
            answer["count"] = connection.execute(sa.select(sa.func.count()).where(*clauses)).scalar_one()
            answer["by"] = {
                column.name: {
                    name: number
                    for name, number in connection.execute(
                        sa.select(column, sa.func.count()).where(*clauses).group_by(column).order_by(column)
                    )
                    if name is not None
                }
                for column in (table.c.rule, table.c.camera, table.c.zone)
            }
            bodies = sa.select(table.c.body).where(*clauses).order_by(table.c.began.desc(), table.c.id).limit(limit)
            found = [Event.model_validate_json(body) for body in connection.execute(bodies).scalars()]
        answer["events"] = [_brief(event, timezone) for event in found]
        unknown = [key for key, names in fits.items() if names == []]
        if unknown:
            answer["known"] = {key: sorted(names) for key, names in known.items()}
        return answer

    def names(self) -> dict[str, list[str]]:
        """Rules, kinds, cameras and zones that there are events of."""
        found = {}
        with self._reading() as connection:
            for column in (table.c.rule, table.c.kind, table.c.camera, table.c.zone):
                values = connection.execute(sa.select(column).distinct().order_by(column)).scalars()
                found[column.name] = [value for value in values if value is not None]
        return found

    def expired(self, rules: Rules, now: float, keep_days: float | None = None, limit: int = 1000) -> list[Event]:
        """Closed events, oldest first, that are kept no longer: as their rule says, else their zone, else `keep_days`;
        None keeps for ever."""
        pairs = self.count(Filter(withheld=None, state="closed"), by=("rule", "zone"))
        old = []
        for rule, zone in pairs:
            days = rules.keep_days(rule or "", zone)
            days = keep_days if days is None else days
            if days is not None:
                same = table.c.zone.is_(None) if zone is None else table.c.zone == zone
                old.append(sa.and_(table.c.rule == rule, same, table.c.ended < now - days * 86400))
        if not old:
            return []
        where = (table.c.state == "closed", sa.or_(*old))
        query = sa.select(table.c.body).where(*where).order_by(table.c.began).limit(limit)
        with self._reading() as connection:
            return [Event.model_validate_json(body) for body in connection.execute(query).scalars()]

    def delete(self, ids: Sequence[str]) -> int:
        with self.engine.begin() as connection:
            return connection.execute(sa.delete(table).where(table.c.id.in_(ids))).rowcount


def _row(event: Event) -> dict[str, Any]:
    fields = ("id", "revision", "state", "camera", "rule", "kind", "zone", "began", "changed", "ended", "withheld")
    row = {name: getattr(event, name) for name in fields}
    words = (event.reason, event.rule, event.kind, event.camera, event.zone or "")
    return row | {"text": " ".join(words).lower(), "body": event.model_dump_json()}


def _fitting(asked: str, names: Iterable[str]) -> list[str]:
    """Names that somebody may mean: "near misses" is near_miss, "dock 3" is Dock-3 and dock3-lane but not dock31."""
    words = _words(asked)
    return sorted({name for name in names if _within(words, _words(name))})


def _words(name: str) -> list[str]:
    """In lower case and singular; digits are words of their own."""
    words = re.findall(r"[^\W\d_]+|\d+", name.lower())
    return [
        re.sub(r"(?<=ss|sh|ch)es$|(?<=[^s])s$", "", word) for word in words if word not in ("at", "in", "the", "of")
    ]


def _within(words: list[str], name: list[str]) -> bool:
    return bool(words) and any(name[i : i + len(words)] == words for i in range(len(name)))


def _iso(moment: float | None, timezone: str) -> str | None:
    return None if moment is None else datetime.fromtimestamp(moment, ZoneInfo(timezone)).isoformat(timespec="seconds")


def _brief(event: Event, timezone: str) -> dict[str, Any]:
    fields = ("id", "state", "camera", "rule", "kind", "zone", "confidence", "reason", "clip")
    times = {"began": _iso(event.began, timezone), "ended": _iso(event.ended, timezone)}
    return {name: getattr(event, name) for name in fields} | times


def _configure_sqlite(connection: Any, _: Any) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")  # what was committed survives a power cut
