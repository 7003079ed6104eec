"""Numbered conversations: each follows from the seed and its number, whatever process makes it."""

import hashlib
import json
import multiprocessing
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from random import Random
from typing import Any, Literal, get_args

from stille.errors import ConfigError
from stille.train.toolcalls.company import conversation
from stille.train.toolcalls.dice import Dice
from stille.train.toolcalls.kinds import DAYS
from stille.train.toolcalls.scenarios import SCENARIOS, Talk
from stille.train.toolcalls.tools import Tool, all_tools

Split = Literal["train", "heldout", "phrasings", "tools", "worlds"]
"""train; what training never sees: phrasings and values of its own tools, tools of its worlds, or worlds; heldout: a
third of each."""
HELD_WORLDS = frozenset({"fitness", "insurance", "post"})
HELD_SHARE = 9  # one of so many tools of the other worlds
CHUNK = 250
PERSONAS = (
    "You are a helpful assistant.",
    "You are an assistant that calls functions.",
    "You help the user with functions where they fit.",
    "Be brief and exact.",
    "You are a friendly assistant.",
    "Answer shortly.",
    "You are the assistant of a company.",
    "Use the functions when they help, otherwise just answer.",
)


@cache
def pool(split: str) -> tuple[Tool, ...]:
    """Tools that conversations of a split (no mixed one) are about."""

    def place(tool: Tool) -> str:
        if tool.world in HELD_WORLDS:
            return "worlds"
        return "tools" if zlib.crc32(tool.key.encode()) % HELD_SHARE == 0 else "train"

    wanted = "train" if split == "phrasings" else split
    return tuple(tool for tool in all_tools() if place(tool) == wanted)


def example(seed: int, number: int, split: Split, company: float = 0.0) -> dict[str, Any]:
    """A conversation.

    Args:
        seed, number: it follows from both.
        split: see `Split`.
        company: share of conversations in small companies (stille.train.toolcalls.company), whose twelve tools are the
            same in all splits; the others are in the worlds.

    Returns:
        "messages" and "tools" in OpenAI's form; "meta": scenario, the tool it is about, the split, the seed of the
        worlds and all calls by the methods' own names, so that they can be executed again.
    """
    if company and zlib.crc32(f"{seed}/{number}/company".encode()) < company * 2**32:
        return conversation(seed, number, split)
    part: str = ("phrasings", "tools", "worlds")[number % 3] if split == "heldout" else split
    tools = pool(part)
    turn, place = divmod(number // 3 if split == "heldout" else number, len(tools))
    about = tools[_order(seed, turn, len(tools))[place]]
    dice = Dice(zlib.crc32(f"{seed}/{number}/{split}".encode()), part != "train")
    # Distractors may be any tool of training; those that are held out are among them only where they are the subject.
    name = dice.choices([*SCENARIOS], [share for _, share in SCENARIOS.values()])[0]
    talk = Talk(dice, tools if len(tools) > 20 else (*tools, *pool("train")), dice.getrandbits(30), name)
    SCENARIOS[name][0](talk, about)
    messages = talk.messages
    if told := _system(dice):
        messages = [{"role": "system", "content": told}, *messages]
    meta = {"scenario": talk.scenario, "about": about.key, "split": part, "seed": talk.seed, "calls": talk.calls}
    return {"messages": messages, "tools": [each.spec for each in talk.shown.values()], "meta": meta}


@cache
def _order(seed: int, turn: int, count: int) -> list[int]:
    order = list(range(count))
    Random(f"{seed}/{turn}").shuffle(order)
    return order


def _system(dice: Dice) -> str:
    parts = [dice.choice(PERSONAS)] if dice.chance(0.4) else []
    if dice.told:
        day: date = dice.today
        parts.append(
            dice.choice(["Today is {d}, {i}.", "The current date is {i} ({d}).", "Date: {i}, {d}."]).format(
                d=DAYS[day.weekday()], i=day.isoformat()
            )
        )
    return " ".join(parts)


@dataclass
class Statistics:
    """Counts of what was made."""

    conversations: int = 0
    repeated: int = 0
    messages: int = 0
    shown: int = 0
    characters: int = 0
    failed: int = 0
    scenarios: Counter[str] = field(default_factory=Counter)
    worlds: Counter[str] = field(default_factory=Counter)
    tools: Counter[str] = field(default_factory=Counter)
    arguments: Counter[str] = field(default_factory=Counter)

    def add(self, row: dict[str, Any]) -> None:
        meta = row["meta"]
        self.conversations += 1
        self.messages += len(row["messages"])
        self.shown += len(row["tools"])
        self.scenarios[meta["scenario"]] += 1
        self.failed += sum('{"error"' in (m["content"] or "") for m in row["messages"] if m["role"] == "tool")
        for key, arguments in meta["calls"]:
            self.tools[key] += 1
            self.worlds[key.partition(".")[0]] += 1
            self.arguments.update(f"{key}.{name}" for name in arguments)

    def table(self) -> str:
        """In words and columns."""
        calls, count = sum(self.tools.values()), max(1, self.conversations)
        lines = [
            f"{self.conversations:,} conversations, {self.repeated:,} repeated ones left out; {calls:,} calls, "
            f"{self.failed:,} of them failed; {self.messages / count:.1f} messages, {self.shown / count:.1f} tools and "
            f"{self.characters / count:,.0f} characters a conversation",
            "",
            *(f"{name:<18}{n:>9,}{n / count:>8.1%}" for name, n in self.scenarios.most_common()),
            "",
            *(f"{name:<18}{n:>9,} calls of {_tools(self.tools, name)} tools" for name, n in self.worlds.most_common()),
        ]
        if self.tools:
            most, least = self.tools.most_common()[0], self.tools.most_common()[-1]
            lines += ["", f"calls of a tool: {least[1]:,} ({least[0]}) to {most[1]:,} ({most[0]})"]
            few, many = self.arguments.most_common()[-1], self.arguments.most_common()[0]
            lines.append(f"uses of an argument: {few[1]:,} ({few[0]}) to {many[1]:,} ({many[0]})")
        return "\n".join(lines)


def _tools(counts: Counter[str], world: str) -> int:
    return sum(key.startswith(world + ".") for key in counts)


def generate(
    count: int,
    seed: int = 0,
    split: Split = "train",
    workers: int = 1,
    statistics: Statistics | None = None,
    company: float = 0.0,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Different conversations, the same ones whatever the number of processes.

    Args:
        count: how many.
        seed: of all of them.
        split: see `Split`.
        workers: processes.
        statistics: counts them.
        company: share of conversations in small companies; see `example`.

    Yields:
        The line of JSON and what it says.

    Raises:
        ConfigError: a number below 1, a share that is none, or an unknown split.
    """
    if count < 1 or workers < 1:
        raise ConfigError(f"examples={count} and workers={workers}, expected at least 1.")
    if not 0 <= company <= 1:
        raise ConfigError(f"company={company}, expected a share from 0 to 1.")
    if split not in get_args(Split):
        raise ConfigError(f"split {split!r}, expected one of {', '.join(get_args(Split))}.")
    found, known = statistics or Statistics(), set()
    for text, row in _numbered(seed, split, company, workers, count):
        said = json.dumps([row["messages"], sorted(tool["function"]["name"] for tool in row["tools"])])
        key = hashlib.blake2b(said.encode(), digest_size=8).digest()
        if key in known:
            found.repeated += 1
            continue
        known.add(key)
        found.add(row)
        found.characters += len(text)
        yield text, row
        if len(known) == count:
            return


def _numbered(
    seed: int, split: Split, company: float, workers: int, count: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    chunks: Iterator[_Chunk] = ((seed, first, split, company) for first in range(0, 1 << 40, CHUNK))
    if workers == 1:
        for chunk in chunks:
            yield from _chunk(chunk)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as executor:
        waiting = [executor.submit(_chunk, next(chunks)) for _ in range(min(2 * workers, -(-count // CHUNK)))]
        while True:
            rows = waiting.pop(0).result()
            waiting.append(executor.submit(_chunk, next(chunks)))
            try:
                yield from rows
            except GeneratorExit:
                executor.shutdown(wait=False, cancel_futures=True)
                raise


_Chunk = tuple[int, int, Split, float]


def _chunk(what: _Chunk) -> Sequence[tuple[str, dict[str, Any]]]:
    seed, first, split, company = what
    rows = [example(seed, number, split, company) for number in range(first, first + CHUNK)]
    return [(json.dumps(row, ensure_ascii=False), row) for row in rows]
