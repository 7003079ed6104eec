"""Questions over the log: a model chooses what to look up, code looks it up, and code writes the figures.

Names and times are resolved by code: a call can only name rules, places and spans that there are. What the question's
own words name is not left to the model at all; without `free` (small models) nothing else can be chosen, and of tools
only those that the words allow.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from stille.agents.tools import Tool, ToolContext
from stille.agents.types import Message, ModelRequest, Reply, ToolCall
from stille.video.errors import SinkError, VideoError
from stille.video.rules.periods import period
from stille.video.store import Filter, table

if TYPE_CHECKING:
    from stille.agents.models.base import ChatModel
    from stille.agents.models.engine import EngineModel
    from stille.video.rules import Rules
    from stille.web.log import Log

ANY, ALWAYS = "any", "all time"
PROMPT = (
    "You answer questions about the event log of cameras in a warehouse. Call the function that looks up what is "
    "asked. An event is an incident that a rule has found before a camera."
)
BY = ("rule", "camera", "zone", "hour", "day")
LISTED = 20
QUESTION_CHARS = 500
_MEANT = {
    "group": r"\b(which|where|per|each|every|compare|most|least|busiest|worst|best|distribution|breakdown|by)\b",
    "count": r"\b(how many|how often|count|number of|total)\b",
    "list": r"\b(list|show|what happened|last|latest|newest|recent|when was)\b",
}
_BY = {
    "hour": r"\b(hours?|hourly|time of day|when)\b",
    "day": r"\b(days?|daily|weekdays?|dates?)\b",
    "zone": r"\b(zones?|areas?)\b",
    "camera": r"\b(cameras?|docks?|places?|where|locations?)\b",
    "rule": r"\b(rules?|kinds?|types?|problems?|what)\b",
}
_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")


@dataclass(frozen=True)
class Found:
    """What one call gave.

    Attributes:
        call: as the model wrote it, checked.
        sentence: what it came to, all of it from the result.
        columns, rows: of a table.
        result: as the tool returned it.
    """

    call: ToolCall
    sentence: str
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    result: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Answer:
    """
    Attributes:
        words: of the model; None if it wrote none, or a figure that no result has.
        dropped: whether its words were left out for that.
        seconds: that it took.
    """

    question: str
    found: list[Found]
    words: str | None
    dropped: bool
    seconds: float


class Ask:
    """
    Args:
        make: gives the model; called for the first question, in the event loop that asks.
        name: of the model, for people.
        free: the model may choose among all names where the words name none, several calls, and words of its own.
        clock: `time.time`.
    """

    def __init__(
        self, make: Callable[[], Awaitable[ChatModel]], name: str, free: bool, clock: Callable[[], float] = time.time
    ):
        self.name, self.free = name, free
        self._make, self._model, self._clock = make, None, clock
        self._making = asyncio.Lock()

    @classmethod
    def default(cls, name: str = "stille-135m") -> Ask:
        """A model in this process, loaded with the first question. Needs `stille[serve,agents]`."""

        async def make() -> ChatModel:
            def build() -> EngineModel:  # seconds of imports, during which the page has to answer
                from stille.agents.models.engine import EngineModel

                return EngineModel(name, max_model_len=2048)

            return await (await asyncio.to_thread(build)).__aenter__()

        return cls(make, name, free=False)

    @classmethod
    def endpoint(cls, url: str, name: str) -> Ask:
        """Any OpenAI-compatible endpoint; its key is in OPENAI_API_KEY. Needs `stille[agents]`."""

        async def make() -> ChatModel:
            from stille.agents.models.endpoint import EndpointModel

            return EndpointModel(url, name)

        return cls(make, name, free=True)

    async def answer(self, question: str, log: Log, rules: Rules) -> Answer:
        """
        Raises:
            VideoError: the question is empty or too long.
            ModelError: the model cannot be used.
            SinkError: the log cannot.
        """
        question, begun = " ".join(question.split()), time.monotonic()
        if not question or len(question) > QUESTION_CHARS:
            raise VideoError(f"a question has 1 to {QUESTION_CHARS} characters; got {len(question)}")
        async with self._making:
            if self._model is None:
                self._model = await self._make()
        desk = Lookup(log, rules, question, self._clock(), self.free)
        asked = [Message(role="system", content=PROMPT), Message(role="user", content=question)]
        tools = [tool.spec() for tool in desk.tools.values()]
        request = ModelRequest(
            messages=asked, tools=tools, permitted=desk.permitted, choice="required", parallel=self.free, max_tokens=300
        )
        reply = await _reply(self._model, request)
        found: list[Found] = []
        for call in reply.message.calls[:4]:
            await desk.tools[call.name].call(call.arguments)
            found.append(Found(call, *desk.last))
        words = None
        if self.free and found:
            results = [Message(role="tool", content=json.dumps(one.result), call_id=one.call.id) for one in found]
            calls = Message(role="assistant", calls=tuple(one.call for one in found))
            last = ModelRequest(messages=[*asked, calls, *results], tools=tools, choice="none", max_tokens=200)
            words = (await _reply(self._model, last)).message.content.strip() or None
        sound = words is None or borne_out(words, question, found)
        return Answer(question, found, words if sound else None, not sound, time.monotonic() - begun)


def borne_out(words: str, question: str, found: Iterable[Found]) -> bool:
    """Whether each number in a text is one of a result. Numbers that belong to a name or a date ("dock 3") are left out
    of account where the question or the result has the same."""
    results = [one.result for one in found]
    known = [text for text in _texts(results) if _NUMBER.search(text)]
    known += re.findall(r"[^\W\d_]+ ?\d+|\d{4}-\d\d-\d\d", question)
    for text in sorted(known, key=len, reverse=True):
        words = re.sub(re.escape(text), " ", words, flags=re.IGNORECASE)
    numbers = {f"{value:g}" for value in _numbers(results)}
    return {f"{float(number.replace(',', '')):g}" for number in _NUMBER.findall(words)} <= numbers


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [text for one in inner for text in _texts(one)]


def _numbers(value: Any) -> Iterable[float]:
    if isinstance(value, (int, float)):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [number for one in inner for number in _numbers(one)]


class Lookup:
    """Tools over the log that only read, for one question.

    Attributes:
        tools: by name: `count_events`, `list_events`, `group_events`.
        permitted: names of those that the question's words allow.
        last: sentence, columns, rows and result of the last call.
    """

    def __init__(self, log: Log, rules: Rules, question: str, now: float, free: bool):
        self.log, self.now, self.timezone = log, now, rules.timezone
        known = log.store.names()
        configured = {name for rule in rules.rules for name in (rule.id, rule.type)}
        places = {*(one.name for one in rules.cameras), *(one.name for one in rules.zones), *known["camera"]}
        self._places = sorted(places | set(known["zone"]))
        self._kinds = sorted(configured | set(known["rule"]) | set(known["kind"]))
        spans = times(question, now, self.timezone)

        def choice(names: Sequence[str], all: Sequence[str], every: str, says: str) -> dict[str, Any]:
            return {"type": "string", "description": says, "enum": list(names) or [every, *(all if free else ())]}

        common = {
            "what": choice(named(question, self._kinds), self._kinds, ANY, "Rule or type of incident."),
            "where": choice(named(question, self._places), self._places, ANY, "Camera or zone."),
            "when": choice(spans, ("today", "yesterday", "this week", "last week", "this month"), ALWAYS, "Span."),
        }
        by = [name for name, words in _BY.items() if re.search(words, question.lower())] or list(BY)
        grouped = {"type": "string", "description": "One count for each of these.", "enum": list(BY) if free else by}
        self.tools = {
            tool.name: tool
            for tool in (
                self._tool("count_events", "How many events there were.", common, self._count),
                self._tool("list_events", "Shows single events, the newest first.", common, self._list),
                self._tool("group_events", "Counts events per rule, camera, zone, hour of the day, or day: to compare, "
                           "and to find the most.", {"by": grouped, **common}, self._group),
            )
        }  # fmt: skip
        meant = [f"{name}_events" for name, words in _MEANT.items() if re.search(words, question.lower())]
        self.permitted = frozenset(self.tools if free else meant[:1] or ["count_events"])
        self.last: tuple[str, tuple[str, ...], list[tuple[Any, ...]], dict[str, Any]] = ("", (), [], {})

    def _tool(self, name: str, says: str, parameters: dict[str, Any], work: Callable[..., Any]) -> Tool:
        schema = {"type": "object", "properties": parameters, "required": list(parameters),
                  "additionalProperties": False}  # fmt: skip

        async def run(arguments: dict[str, Any], context: ToolContext) -> Any:
            self.last = work(**arguments)
            return self.last[3]

        return Tool(name=name, description=says, parameters=schema, run=run)

    def _count(self, what: str, where: str, when: str) -> Any:
        which, words = self._asked(what, where, when)
        by = self.log.store.count(which, ("rule", "camera"))
        count = sum(by.values())
        rows = [(rule, camera, n) for (rule, camera), n in by.items()]
        said = f"{count} {'event' if count == 1 else 'events'} {words}."
        return said, ("rule", "camera", "events"), rows, {"count": count, "by_rule_and_camera": rows}

    def _list(self, what: str, where: str, when: str) -> Any:
        which, words = self._asked(what, where, when)
        entries, count = self.log.find(which, limit=LISTED)
        rows = [
            (self._at(one.event.began), one.event.camera, one.event.rule, one.event.state, one.event.reason)
            for one in entries
        ]
        shown = "" if count <= LISTED else f" The newest {LISTED} of them:"
        said = f"{count} {'event' if count == 1 else 'events'} {words}.{shown}"
        return said, ("began", "camera", "rule", "state", "reason"), rows, {"count": count, "events": rows}

    def _group(self, by: str, what: str, where: str, when: str) -> Any:
        which, words = self._asked(what, where, when)
        if by in ("hour", "day"):
            form, zone = ("%H:00" if by == "hour" else "%Y-%m-%d"), ZoneInfo(self.timezone)
            starts = Counter(datetime.fromtimestamp(t, zone).strftime(form) for t in self.log.starts(which))
            counts = sorted(starts.items())
        else:
            found = self.log.store.count(which, (by,))  # type: ignore[arg-type]
            counts = sorted(((name or "none", n) for (name,), n in found.items()), key=lambda pair: (-pair[1], pair[0]))
        total = sum(n for _, n in counts)
        most = max((n for _, n in counts), default=0)
        first = " and ".join(name for name, n in counts if n == most)
        said = f"{total} {'event' if total == 1 else 'events'} {words}"
        said += f"; most: {first}, with {most}." if counts else "."
        return said, (by, "events"), counts, {"total": total, f"by_{by}": counts, "most": first}

    def _asked(self, what: str, where: str, when: str) -> tuple[Asked, str]:
        """A filter, and the same in words."""
        since, until = (None, None) if when == ALWAYS else period(when, self.now, self.timezone)
        said = "of any rule" if what == ANY else f"of {what}"
        said += "" if where == ANY else f" at {where}"
        said += " in all time" if since is None or until is None else f", {self._at(since)} to {self._at(until)}"
        return Asked(since, until, what=None if what == ANY else what, where=None if where == ANY else where), said

    def _at(self, moment: float) -> str:
        return datetime.fromtimestamp(moment, ZoneInfo(self.timezone)).strftime("%Y-%m-%d %H:%M")


@dataclass(frozen=True)
class Asked(Filter):
    """A filter that takes a name for a rule or its type, a camera or a zone."""

    what: str | None = None
    where: str | None = None

    def clauses(self) -> list[sa.ColumnElement[bool]]:
        found = Filter.clauses(self)
        if self.what is not None:
            found.append(sa.or_(table.c.rule == self.what, table.c.kind == self.what))
        if self.where is not None:
            found.append(sa.or_(table.c.camera == self.where, table.c.zone == self.where))
        return found


async def _reply(model: ChatModel, request: ModelRequest) -> Reply:
    last = None
    async for event in model.stream(request):
        last = event
    assert isinstance(last, Reply)
    return last


def named(question: str, names: Iterable[str]) -> list[str]:
    """Those names all of whose words stand in the question, of these the longest: "near misses" names near_miss,
    "dock 3" names dock3 and not dock3-lane, "without helmet" names no_helmet."""
    said = _words(question)
    fits: dict[str, int] = {}
    for name in names:
        words = [word for word in _words(name) if word not in ("no", "in", "of", "the")]
        if words and all(any(_alike(word, other) for other in said) for word in words):
            fits[name] = len(words)
    return sorted(name for name, n in fits.items() if n == max(fits.values()))


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+|\d+", text.lower())


def _alike(name: str, said: str) -> bool:
    """The same but for an ending: "speeding" and "speed", "intrusion" and "intruders"."""
    if name == said or min(len(name), len(said)) < 4 or name.isdigit():
        return name == said
    return name[:5] == said[:5] or said.removesuffix("es").removesuffix("s") == name.removesuffix("s")


def times(question: str, now: float, timezone: str) -> list[str]:
    """Spans that a question names, in its own words: the longest."""
    words = question.lower().split()
    found: list[str] = []
    for n in range(min(8, len(words)), 0, -1):
        for i in range(len(words) - n + 1):
            text = " ".join(words[i : i + n]).strip(" .,?!")
            try:
                since, until = period(text, now, timezone)
            except (SinkError, ValueError, OverflowError):
                continue
            if since < until:
                found.append(text)
        if found:
            return found[:3]
    return []
