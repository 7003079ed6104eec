"""The log of events as people work with it: found, paged, and marked. Marks lie beside the events in their database."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.dialects import postgresql, sqlite

from stille.video.errors import SinkError
from stille.video.store import Filter, Store, table
from stille.video.types import Event

Verdict = Literal["acknowledged", "false alarm"]
VERDICTS: tuple[Verdict, ...] = ("acknowledged", "false alarm")

metadata = sa.MetaData()
marks = sa.Table(
    "stille_video_marks",
    metadata,
    sa.Column("event", sa.Text, primary_key=True),
    sa.Column("verdict", sa.Text, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("by", sa.Text, nullable=False),
    sa.Column("time", sa.Double, nullable=False),
)


@dataclass(frozen=True)
class Mark:
    """What somebody has said of an event.

    Attributes:
        by: the address that said it.
    """

    verdict: Verdict
    note: str
    by: str
    time: float


@dataclass(frozen=True)
class Entry:
    event: Event
    mark: Mark | None


class Log:
    """
    Args:
        store: of the events; its database gets one more table.

    Raises:
        SinkError: of every method, if the database cannot be used now.
    """

    def __init__(self, store: Store):
        self.store = store
        with self._using(write=True) as connection:
            metadata.create_all(connection)

    def find(
        self, which: Filter, verdict: Verdict | Literal["none"] | None = None, limit: int = 50, offset: int = 0
    ) -> tuple[list[Entry], int]:
        """Newest first, and how many there are in all.

        Args:
            verdict: only those marked so; "none": not marked at all.
        """
        where = which.clauses()
        if verdict is not None:
            where.append(marks.c.verdict.is_(None) if verdict == "none" else marks.c.verdict == verdict)
        joined = table.outerjoin(marks, marks.c.event == table.c.id)
        query = sa.select(table.c.body, marks).select_from(joined).where(*where)
        count = sa.select(sa.func.count()).select_from(joined).where(*where)
        with self._using() as connection:
            rows = connection.execute(
                query.order_by(table.c.began.desc(), table.c.id.desc()).limit(limit).offset(offset)
            )
            return [_entry(row) for row in rows], connection.execute(count).scalar_one()

    def get(self, id: str) -> Entry | None:
        joined = table.outerjoin(marks, marks.c.event == table.c.id)
        with self._using() as connection:
            row = connection.execute(
                sa.select(table.c.body, marks).select_from(joined).where(table.c.id == id)
            ).one_or_none()
        return None if row is None else _entry(row)

    def during(self, since: float, until: float, limit: int = 1500) -> list[Event]:
        """Events that went on at some time of a span, oldest first; of too many the newest."""
        overlap = (table.c.began < until, sa.or_(table.c.ended.is_(None), table.c.ended >= since))
        query = sa.select(table.c.body).where(*overlap, table.c.withheld.is_(False))
        with self._using() as connection:
            bodies = connection.execute(query.order_by(table.c.began.desc()).limit(limit)).scalars().all()
        return [Event.model_validate_json(body) for body in reversed(bodies)]

    def starts(self, which: Filter, limit: int = 100_000) -> Sequence[float]:
        """When events began."""
        with self._using() as connection:
            return connection.execute(sa.select(table.c.began).where(*which.clauses()).limit(limit)).scalars().all()

    def mark(self, id: str, verdict: Verdict, note: str = "", by: str = "") -> None:
        """Say of an event that it was seen to, or was none; the last word counts.

        Raises:
            SinkError: there is no such event.
        """
        if verdict not in VERDICTS:
            raise SinkError(f"mark {verdict!r}: expected one of {', '.join(VERDICTS)}")
        row = {"event": id, "verdict": verdict, "note": note[:1000], "by": by[:200], "time": time.time()}
        insert: Any = postgresql.insert if self.store.engine.dialect.name == "postgresql" else sqlite.insert
        with self._using(write=True) as connection:
            if connection.execute(sa.select(table.c.id).where(table.c.id == id)).scalar() is None:
                raise SinkError(f"there is no event {id!r}; it may have been deleted meanwhile")
            statement = insert(marks).values(row)
            connection.execute(statement.on_conflict_do_update(index_elements=[marks.c.event], set_=row))

    def unmark(self, id: str) -> None:
        with self._using(write=True) as connection:
            connection.execute(sa.delete(marks).where(marks.c.event == id))

    def tidy(self) -> int:
        """Delete marks of events that are kept no longer; how many."""
        with self._using(write=True) as connection:
            return connection.execute(sa.delete(marks).where(marks.c.event.not_in(sa.select(table.c.id)))).rowcount

    @contextmanager
    def _using(self, write: bool = False) -> Iterator[sa.Connection]:
        engine = self.store.engine
        try:
            with engine.begin() if write else engine.connect() as connection:
                yield connection
        except exc.DBAPIError as error:
            raise SinkError(f"{self.store.name}: {error.orig}") from error


def _entry(row: Any) -> Entry:
    body, event, verdict, note, by, when = row
    return Entry(Event.model_validate_json(body), Mark(verdict, note, by, when) if event is not None else None)
