"""Asks for one effect; several of these run at once, or are killed in the middle of it.

Arguments: database, key, "idempotent" or "once", "lookup" or "blind", file that shows what happened, seconds that the
effect takes after it happened. Prints the result, or the error.
"""

import asyncio
import sys
import time
from pathlib import Path

from stille.agents.database import Database
from stille.agents.effects import Effects
from stille.agents.journal import EffectCall
from stille.agents.types import Json


async def main():
    db, key, effect, looks, shown, seconds = sys.argv[1:]
    world = Path(shown)

    async def cause(key: str) -> Json:
        with open(world, "a") as file:
            file.write(key + "\n")
        await asyncio.sleep(float(seconds))
        return {"caused": time.time()}

    async def lookup(key: str) -> Json:
        return {"found": key} if world.exists() and key in world.read_text() else None

    call = EffectCall.model_validate({"key": key, "tool": "racer", "arguments": {}, "effect": effect})
    effects = Effects(Database(db), interval_s=0.02)
    print(await effects.perform("run", call, cause, lookup if looks == "lookup" else None))


if __name__ == "__main__":
    asyncio.run(main())
