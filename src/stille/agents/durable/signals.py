"""Signals to runs: sent from anywhere, received in the order in which they were sent."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from pydantic import TypeAdapter

from stille.agents.database import Database, Watch, canonical, metadata, now
from stille.agents.types import Json

table = sa.Table(
    "stille_signals",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("run", sa.Text, nullable=False, index=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("key", sa.Text, nullable=False, unique=True),
    sa.Column("value", sa.Text, nullable=False),
    sa.Column("sent", sa.Text, nullable=False),
)


class Signals:
    """The signals to all runs in a database. They stay there: the n-th `receive` of a name gets the n-th signal."""

    def __init__(self, database: Database, interval_s: float):
        self.database = database
        self._sent = Watch(database, self._known, interval_s)

    def send(self, run: str, name: str, value: Any, key: str) -> None:
        """Send a value that pydantic can make JSON of; with the same key it is sent once."""
        text = canonical(TypeAdapter(type(value)).dump_python(value, mode="json"))
        key = canonical([run, name, key])
        with self.database.transaction() as connection:
            if not self.database.sqlite:  # signals of a run get their numbers in the order of their commits
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:run, 1))"), {"run": run})
            if connection.execute(sa.select(table.c.id).where(table.c.key == key)).first() is None:
                connection.execute(table.insert().values(run=run, name=name, key=key, value=text, sent=now()))

    async def wait(self, run: str, name: str, taken: int) -> Json:
        """The signal of that name that comes after so many others."""
        while not (found := await self.database.call(self._nth, run, name, taken)):
            await self._sent.wait(canonical([run, name, taken]))
        return json.loads(found[0])

    def _nth(self, run: str, name: str, taken: int) -> list[str]:
        query = sa.select(table.c.value).where(table.c.run == run, table.c.name == name)
        with self.database.reading() as connection:
            return list(connection.execute(query.order_by(table.c.id).offset(taken).limit(1)).scalars())

    def _known(self, keys: list[str]) -> set[str]:
        waiting = {key: json.loads(key) for key in keys}
        query = sa.select(table.c.run, table.c.name, sa.func.count()).group_by(table.c.run, table.c.name)
        query = query.where(self.database.among(table.c.run, {run for run, _, _ in waiting.values()}))
        with self.database.reading() as connection:
            counts = {(run, name): count for run, name, count in connection.execute(query)}
        return {key for key, (run, name, taken) in waiting.items() if counts.get((run, name), 0) > taken}
