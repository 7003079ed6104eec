"""Names every commit of a transaction that wrote something, and kills the process at some of them.

A place is a side and a name, such as `before effect done pay_out`: right before the outcome of that effect is
committed. Beside `before` and `after` there is `amid effect started pay_out`: a moment later, while the other side is
at it. Names are the same in each process and run, so that all places of a flow can be counted.
"""

import json
import os
import random
import re
import signal
import sqlite3
import threading
from collections.abc import Callable, Collection
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine.default import DefaultDialect

WRITES = re.compile(r'\s*(INSERT INTO|UPDATE|DELETE FROM)\s+(?:"?\w+"?\.)?"?(\w+)', re.IGNORECASE)
AMID_S = 0.03
"""The longest moment: an effect takes about as long."""


class Places:
    """What this process commits, from now on.

    Args:
        run: whose name is left out of the names.
        kill: places at whichever of which it comes to first the process writes {"killed": place} and is gone.
    """

    def __init__(self, run: str, kill: Collection[str]):
        self.run, self.kill = run, frozenset(kill)
        self.passed: dict[str, None] = {}
        self._tools: dict[str, str] = {}
        event.listen(sa.Engine, "before_cursor_execute", self._look)
        event.listen(sa.Engine, "rollback", lambda connection: connection.info.pop("wrote", None))
        commit, places = DefaultDialect.do_commit, self

        def do_commit(self: DefaultDialect, dbapi_connection: Any) -> None:
            places.around(dbapi_connection.info.pop("wrote", None), lambda: commit(self, dbapi_connection))

        DefaultDialect.do_commit = do_commit

        class Books(sqlite3.Connection):
            """Of budgets, which are kept without SQLAlchemy."""

            wrote: str | None = None

            def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
                if sql.startswith("INSERT OR REPLACE INTO budget_reservations"):
                    self.wrote = f"budget reserved {parameters[0]}".replace(places.run, "")
                elif sql.startswith("UPDATE budget_reservations"):
                    self.wrote = f"budget {parameters[-2]} {parameters[-1]}".replace(places.run, "")
                return super().execute(sql, parameters)

            def __exit__(self, *error: Any) -> Any:
                wrote, self.wrote = self.wrote, None
                return places.around(wrote if error[0] is None else None, lambda: super(Books, self).__exit__(*error))

        connect = sqlite3.connect
        sqlite3.connect = lambda *args, **named: connect(*args, factory=Books, **named)  # SQLAlchemy has its own name

    def around(self, name: str | None, commit: Callable[[], Any]) -> Any:
        if name is None:
            return commit()
        self._perhaps(f"before {name}")
        done = commit()
        self._perhaps(f"after {name}")
        if name.startswith("effect started"):
            self._perhaps(f"amid {name}", random.uniform(0, AMID_S))
        return done

    def _perhaps(self, place: str, after_s: float = 0.0) -> None:
        self.passed[place] = None
        if place in self.kill and after_s:
            threading.Timer(after_s, _die, (place,)).start()
        elif place in self.kill:
            _die(place)

    def _look(self, connection: Any, _: Any, statement: str, __: Any, context: Any, *___: Any) -> None:
        if writes := WRITES.match(statement):
            values = context.compiled_parameters[0] if context.compiled is not None else {}
            name = self._name(writes[1].split()[0].lower(), writes[2], values)
            if name.startswith(("effect", "step")) or "wrote" not in connection.info:
                connection.info["wrote"] = name  # rather than what is written with it

    def _name(self, verb: str, table: str, values: dict[str, Any]) -> str:
        if table == "stille_effects":
            tool = self._tools.setdefault(values.get("key") or values["key_1"], values.get("tool", "again"))
            return f"effect {values['state']} {tool}"
        if table == "operation_outputs":
            kind, _, name = str(values["function_name"]).partition(":")
            tool = self._tools.get(name, "found done") if kind == "effect" else name
            return f"step {kind} {tool}".replace(self.run, "").replace("step step", "step")
        return f"{verb} {table} {values.get('status') or ''}".strip()


def _die(place: str) -> None:
    os.write(1, json.dumps({"killed": place}).encode() + b"\n")
    os.kill(os.getpid(), signal.SIGKILL)
