"""The 13 tasks with the parameters of RULER's synthetic.yaml."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from stille.errors import ConfigError
from stille.evals.ruler.counts import CommonWords, FrequentWords
from stille.evals.ruler.documents import Documents
from stille.evals.ruler.draft import Draft
from stille.evals.ruler.needles import Needles
from stille.evals.ruler.variables import Variables


class Maker(Protocol):
    def draft(self, rng: random.Random, length: int) -> Draft: ...


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: as in RULER.
        maker: makes its samples.
        tokens_out: most tokens of an answer.
        any_reference: one of the references is enough; otherwise the score is the share of them that is found.
    """

    name: str
    maker: Maker
    tokens_out: int
    any_reference: bool = False


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("niah_single_1", Needles("noise"), 128),
        Task("niah_single_2", Needles("essay"), 128),
        Task("niah_single_3", Needles("essay", value_kind="uuids"), 128),
        Task("niah_multikey_1", Needles("essay", keys=4), 128),
        Task("niah_multikey_2", Needles("needle"), 128),
        Task("niah_multikey_3", Needles("needle", key_kind="uuids", value_kind="uuids"), 128),
        Task("niah_multivalue", Needles("essay", values=4), 128),
        Task("niah_multiquery", Needles("essay", keys=4, queries=4), 128),
        Task("vt", Variables(hops=4), 30),
        Task("cwe", CommonWords(common=10, often=30, seldom=3), 120),
        Task("fwe", FrequentWords(alpha=2.0), 50),
        Task("qa_1", Documents(hops=1), 32, any_reference=True),
        Task("qa_2", Documents(hops=2), 32, any_reference=True),
    )
}


def select_tasks(names: Iterable[str]) -> list[str]:
    """Names of tasks in RULER's order; `all` stands for all of them, and a beginning (`niah`) for those that have it.

    Raises:
        ConfigError: nothing is called that, or nothing is asked for.
    """
    chosen: set[str] = set()
    for name in names:
        found = [task for task in TASKS if name == "all" or task.startswith(name)] if name else []
        if not found:
            raise ConfigError(f"there is no RULER task {name!r}; choose all or some of: {', '.join(TASKS)}")
        chosen.update(found)
    if not chosen:
        raise ConfigError(f"no RULER task was asked for; choose all or some of: {', '.join(TASKS)}")
    return [task for task in TASKS if task in chosen]
