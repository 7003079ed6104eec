"""Checks of what a run of an agent came to: what was said, called and spent, and the state in which it ended."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from stille.agents.types import Message, ToolCall, Usage

NOTHING = Usage()


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        output: the answer: text, or data.
        messages: of the conversation.
        calls: None: those in the messages.
        environment: what the tools worked on, for checks of its state.
        seconds: that it took; `evaluate` fills it in.
    """

    output: Any = None
    messages: Sequence[Message] = ()
    calls: Sequence[ToolCall] | None = None
    usage: Usage = NOTHING
    environment: Any = None
    seconds: float = 0.0

    @property
    def called(self) -> Sequence[ToolCall]:
        if self.calls is not None:
            return self.calls
        return [call for message in self.messages for call in message.calls]


Check = Callable[[Outcome], str | None]
"""What is wrong with an outcome, in words; None: nothing."""


@dataclass(frozen=True)
class Called:
    """A tool was called, with arguments of which some are given.

    Attributes:
        arguments: name -> a value that is equal as JSON, a compiled pattern that matches all of a text, a type, or a
            function that says whether it is right.
        times: how often exactly; None: at least once.
        exactly: no further arguments.
    """

    tool: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    times: int | None = None
    exactly: bool = False

    def matches(self, call: ToolCall) -> bool:
        given = call.arguments
        if call.name != self.tool or (self.exactly and given.keys() != self.arguments.keys()):
            return False
        return all(name in given and _fits(wanted, given[name]) for name, wanted in self.arguments.items())

    def __call__(self, outcome: Outcome) -> str | None:
        count = sum(map(self.matches, outcome.called))
        if count == self.times or (self.times is None and count):
            return None
        often = "" if self.times is None else f" {self.times} times"
        return f"expected {self.tool}({shown(self.arguments)}) to be called{often}; {_calls(outcome)}"


@dataclass(frozen=True)
class NotCalled:
    """None of these tools was called; no name: no tool at all."""

    tools: Sequence[str] = ()

    def __call__(self, outcome: Outcome) -> str | None:
        bad = [call.name for call in outcome.called if not self.tools or call.name in self.tools]
        return f"expected no call of {', '.join(self.tools) or 'any tool'}; {_calls(outcome)}" if bad else None


@dataclass(frozen=True)
class CallsInOrder:
    """These calls were made in this order; others may lie between them."""

    calls: Sequence[Called | str]

    def __call__(self, outcome: Outcome) -> str | None:
        made = iter(outcome.called)
        for wanted in self.calls:
            one = Called(wanted) if isinstance(wanted, str) else wanted
            if not any(one.matches(call) for call in made):
                order = ", ".join(c if isinstance(c, str) else f"{c.tool}({shown(c.arguments)})" for c in self.calls)
                return f"expected calls in the order {order}; missed {one.tool} at its place; {_calls(outcome)}"
        return None


@dataclass(frozen=True)
class Output:
    """The answer is as expected: a value equal as JSON, a compiled pattern found in it, a type that it is valid for (of
    which a text is the JSON), or a function that says so."""

    expected: Any

    def __call__(self, outcome: Outcome) -> str | None:
        expected, given = self.expected, outcome.output
        if isinstance(expected, re.Pattern):
            good = isinstance(given, str) and expected.search(given) is not None
        elif isinstance(expected, type) or hasattr(expected, "__origin__"):
            adapter = TypeAdapter(expected)
            try:
                if isinstance(given, str) and expected is not str:
                    adapter.validate_json(given)
                else:
                    adapter.validate_python(given, strict=True)
            except ValidationError as error:
                problem = error.errors(include_url=False)[0]
                return f"expected an answer of type {shown(expected)}; {problem['msg']} at {problem['loc']}"
            return None
        else:
            good = _fits(expected, given)
        return None if good else f"expected the answer {shown(expected)}, got {shown(given)}"


@dataclass(frozen=True)
class EndState:
    """The environment ended as it should: `holds` gives True, or what is wrong with it."""

    holds: Callable[[Any], bool | str]

    def __call__(self, outcome: Outcome) -> str | None:
        said = self.holds(outcome.environment)
        if said is True:
            return None
        return said if isinstance(said, str) and said else f"the end state is not as expected ({shown(self.holds)})"


@dataclass(frozen=True)
class Within:
    """No more than this was spent."""

    tokens: int | None = None
    calls: int | None = None
    seconds: float | None = None

    def __call__(self, outcome: Outcome) -> str | None:
        spent = {
            "tokens": outcome.usage.prompt_tokens + outcome.usage.completion_tokens,
            "calls": len(outcome.called),
            "seconds": outcome.seconds,
        }
        over = [
            f"{spent[name]:g} {name} of at most {most:g}"
            for name, most in asdict(self).items()
            if most is not None and spent[name] > most
        ]
        return f"spent {', '.join(over)}" if over else None


def _fits(wanted: Any, given: Any) -> bool:
    if isinstance(wanted, re.Pattern):
        return isinstance(given, str) and wanted.fullmatch(given) is not None
    if isinstance(wanted, type):
        return isinstance(given, wanted)
    if callable(wanted):
        return bool(wanted(given))
    return _same(wanted, given)


def _same(a: Any, b: Any) -> bool:
    """Whether two values are the same JSON; Python takes True for 1."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return a == b


def _calls(outcome: Outcome) -> str:
    made = [f"{call.name}({shown(call.arguments)})" for call in outcome.called]
    return f"the calls were {', '.join(made)}" if made else "there were no calls"


def shown(value: Any) -> str:
    """For messages: a value in a few words."""
    if isinstance(value, Mapping):
        text = ", ".join(f"{name}={shown(inner)}" for name, inner in value.items())
    elif isinstance(value, re.Pattern):
        text = f"/{value.pattern}/"
    else:
        text = getattr(value, "__name__", None) or repr(value)
    return text if len(text) <= 300 else text[:300] + "..."
