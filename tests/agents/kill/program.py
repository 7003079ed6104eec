"""The program that gets killed.

    python program.py loan SETUP    # or order; SETUP is JSON for the module of that name

It imports and reads everything once, reads orders such as {"db": ..., "run": "r1", "inputs": {...}, "kill": [...]} from
its standard input, and forks a process for each: what is killed is a whole process, without paying for its imports
again. Prints lines of JSON: {"pid"} of the process, what it says, and {"status"} with which it ended.
"""

import asyncio
import gc
import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from places import Places

sys.path.insert(0, str(Path(__file__).parents[3]))

# What a process would import when it needs it, once for all.
import dbos._sys_db_postgres
import dbos._sys_db_sqlite  # noqa: F401
import jsonschema.validators  # noqa: F401
import sqlalchemy.dialects.sqlite  # noqa: F401

import stille.agents.loop  # noqa: F401
from stille.agents.durable import Workflow, Workflows


async def work(flow: Workflow, db: str, run: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """The run's result, or what it waits for."""
    async with Workflows([flow], db, version="1", interval_s=0.05, recover_s=1.0) as flows:
        await flows.start(flow, run_id=run, **inputs)
        result = asyncio.create_task(flows.result(run))
        while not result.done():
            parked = await asyncio.to_thread(flows.effects.list, run, "unknown")
            asked = await asyncio.to_thread(flows.approvals.list, run, True)
            if parked or asked:
                result.cancel()
                return {"parked": [each.key for each in parked], "asked": [each.id for each in asked]}
            await asyncio.wait({result}, timeout=0.2)
        return {"result": result.result()}


def main(make: Callable[[], Workflow], db: str, run: str, inputs: dict[str, Any], kill: list[str]) -> None:
    places = Places(run, kill)
    outcome = asyncio.run(work(make(), db, run, inputs))
    print(json.dumps({**outcome, "passed": list(places.passed)}), flush=True)


if __name__ == "__main__":
    make = asyncio.run(importlib.import_module(sys.argv[1]).warm(json.loads(sys.argv[2])))
    gc.collect()
    gc.freeze()  # so that collecting does not look at, and copy, what all processes share
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                main(make, **json.loads(line))
                status = 0
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        print(json.dumps({"pid": pid}), flush=True)
        print(json.dumps({"status": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}), flush=True)
