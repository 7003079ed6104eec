"""An effect that the other side can neither be given a key for nor asked about: one line more in a file.

What nobody can know is parked, and resolved by a person who reads the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stille.agents.durable import DurableJournal, Workflow, workflow
from stille.agents.journal import EffectCall
from stille.agents.types import Json


async def warm(setup: dict[str, Any]) -> Callable[[], Workflow]:
    @workflow
    async def order(journal: DurableJournal, name: str) -> str:
        async def price() -> Json:
            return 5 * len(name)

        async def seal(key: str) -> Json:
            with open(setup["book"], "a") as book:
                book.write(key + "\n")
            return key

        call = EffectCall(
            key=f"seal:{name}:{await journal.step('price', price)}", tool="seal", arguments={}, effect="once"
        )
        return str(await journal.effect(call, seal))

    return lambda: order


class Order:
    """The other side of it. See `harness.Flow`."""

    module = "order"
    kinds = ("order",)

    def __init__(self, folder: Path):
        self.book = folder / "book.txt"
        self.book.touch()
        self.setup = {"book": str(self.book)}

    def inputs(self, run: str, kind: str) -> dict[str, Any]:
        return {"name": run}

    def verdict(self, run: str, kind: str, id: str) -> bool:
        raise AssertionError(f"an order asks nobody; {run} asked {id}")

    def look_up(self, key: str) -> Json:
        return key if key in self.book.read_text().splitlines() else None

    def count(self, results: dict[str, tuple[str, Any]]) -> tuple[list[str], list[str], list[str]]:
        sealed = Counter(self.book.read_text().splitlines())
        keys = {run: f"seal:{run}:{5 * len(run)}" for run in results}
        twice = [f"{key} x{count}" for key, count in sealed.items() if count > 1]
        lost = [key for key in keys.values() if not sealed[key]]
        wrong = [f"{run}: {result}" for run, (_, result) in results.items() if result != keys[run]]
        return twice, lost, wrong + sorted(sealed.keys() - keys.values())

    def close(self) -> None:
        pass
