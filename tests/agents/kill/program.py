"""A workflow of four steps against the service; the program that gets killed.

Run as a script it imports everything once, reads orders such as {"run": "r1", "kill": "before:7", ...} from its
standard input, and forks a process for each: what is killed is a whole process, without paying for its imports again.
`kill` names a commit of a transaction that wrote something, counted from the start of the process, and whether the
process kills itself right before or right after it.
"""

import asyncio
import json
import os
import signal
import sys
import urllib.request
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.engine.default import DefaultDialect

from stille.agents.durable import Workflows, workflow
from stille.agents.journal import EffectCall


async def ask(url, body=None):
    def send():
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(url, data=data), timeout=30) as answer:
            return json.loads(answer.read())

    return await asyncio.to_thread(send)


@workflow
async def order(journal, url: str, name: str) -> dict:
    async def price():
        return {"micros": 5 * len(name)}

    results = {"price": await journal.step("price", price)}
    for kind, effect in (("pay", "idempotent"), ("mail", "once"), ("seal", "once")):
        call = EffectCall(key=f"{kind}:{name}", tool=kind, arguments={"name": name}, effect=effect)

        async def cause(key, kind=kind):
            return await ask(f"{url}/{kind}", {"key": key})

        async def lookup(key, kind=kind):
            return await ask(f"{url}/{kind}/{quote(key)}")

        results[kind] = await journal.effect(call, cause, lookup if kind == "mail" else None)
    return results


class KillAt:
    """Counts the commits of transactions that wrote, and kills the process at one of them."""

    def __init__(self, where):
        side, _, number = (where or "never:0").partition(":")
        self.side, self.number, self.count = side, int(number), 0
        sa.event.listen(sa.Engine, "before_cursor_execute", self.look)
        commit = DefaultDialect.do_commit

        def do_commit(dialect, connection):
            wrote = connection.info.pop("wrote", False)
            self.count += wrote
            if wrote and self.count == self.number and self.side == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            commit(dialect, connection)
            if wrote and self.count == self.number and self.side == "after":
                os.kill(os.getpid(), signal.SIGKILL)

        DefaultDialect.do_commit = do_commit

    @staticmethod
    def look(connection, cursor, statement, *_):
        if statement.lstrip()[:6].upper() in ("INSERT", "UPDATE", "DELETE"):
            connection.info["wrote"] = True


async def work(db, url, run):
    async with Workflows([order], db, version="1", interval_s=0.02, recover_s=1.0) as flows:
        await flows.start(order, url=url, name=run, run_id=run)
        result = asyncio.create_task(flows.result(run))
        while not result.done():
            parked = await asyncio.to_thread(flows.effects.list, run, "unknown")
            if parked:
                result.cancel()
                return {"parked": parked[0].key}
            await asyncio.wait({result}, timeout=0.1)
        return {"result": result.result()}


def main(db, url, run, kill=None):
    killer = KillAt(kill)
    outcome = asyncio.run(work(db, url, run))
    print(json.dumps({**outcome, "writes": killer.count}), flush=True)


if __name__ == "__main__":
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                main(**json.loads(line))
                status = 0
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        print(json.dumps({"pid": pid}), flush=True)
        print(json.dumps({"status": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}), flush=True)
