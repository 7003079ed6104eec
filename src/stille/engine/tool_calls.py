"""Finds the tool calls in an answer's text while it is written.

The form is that of Hermes and Qwen, which grammars hold answers to (see `stille.engine.tool_grammar`):

    <tool_call>
    {"name": "f", "arguments": {"x": 1}}
    </tool_call>

Text may come before the first call; between calls there is one line feed and after them nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass

OPEN = "<tool_call>"
HEAD = '\n{"name": "'
MIDDLE = '", "arguments": '
CLOSE = "}\n</tool_call>"
NEXT = "\n" + OPEN


@dataclass(frozen=True)
class Content:
    """More of the text before the calls."""

    text: str


@dataclass(frozen=True)
class CallStart:
    """A call begins. Calls are numbered from 0."""

    index: int
    name: str


@dataclass(frozen=True)
class Arguments:
    """More of a call's arguments, as they are written."""

    index: int
    text: str


Event = Content | CallStart | Arguments


class ToolCallParser:
    """Turns text, in pieces of any size, into events. Text that is no call after all comes out as content.

    Args:
        free_text: the answer may be something else than calls. Otherwise what may be the beginning of the first
            call is not given out as content when the answer is cut in it.

    Attributes:
        calls: number of calls that have begun.
    """

    def __init__(self, free_text: bool = True):
        self.calls = 0
        self._free_text = free_text
        self._held = ""  # read, but not decided on
        self._opening = ""  # what the call that begins has cost of the text, to give it back
        self._depth, self._in_string, self._escaped = 0, False, False
        self._step: Callable[[list[Event]], bool] = self._text

    @property
    def complete(self) -> bool:
        """Whether no call is unfinished."""
        return self._step not in (self._header, self._value, self._close)

    @property
    def inside(self) -> bool:
        """Whether the last of the calls that have begun is unfinished."""
        return self._step in (self._value, self._close)

    def feed(self, text: str) -> list[Event]:
        """What the next piece of text adds."""
        self._held += text
        events: list[Event] = []
        while self._held and self._step(events):
            pass
        return events

    def finish(self) -> list[Event]:
        """What is left when the answer has ended; a call of which not even the name is known is left out."""
        rest = self._held if self._step == self._text and self._free_text else ""
        self._held = ""
        return [Content(rest)] if rest else []

    # Each step takes what it can from the held text; true if the next step should look at the rest.

    def _text(self, events: list[Event]) -> bool:
        start = self._held.find(OPEN)
        if start >= 0:
            text, self._held = self._held[:start], self._held[start + len(OPEN) :]
            self._opening = NEXT if text.endswith("\n") else OPEN  # the line feed before a call belongs to it
            text = text.removesuffix("\n")
            self._step = self._header
        else:
            kept = max(_overlap(self._held, NEXT), _overlap(self._held, OPEN))
            text, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        if text:
            events.append(Content(text))
        return start >= 0

    def _header(self, events: list[Event]) -> bool:
        held = self._held
        if not HEAD.startswith(held[: len(HEAD)]):
            return self._lose(self._opening)
        end = held.find('"', len(HEAD))
        if end < 0:
            return False
        middle = held[end : end + len(MIDDLE) + 1]
        if not (MIDDLE + "{").startswith(middle):
            return self._lose(self._opening)
        if len(middle) <= len(MIDDLE):
            return False
        events.append(CallStart(self.calls, held[len(HEAD) : end]))
        self.calls += 1
        self._held = held[end + len(MIDDLE) :]
        self._step = self._value
        return True

    def _value(self, events: list[Event]) -> bool:
        end = len(self._held)
        for position, char in enumerate(self._held):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif char == "\\":
                    self._escaped = True
                elif char == '"':
                    self._in_string = False
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if not self._depth:
                    self._step, end = self._close, position + 1
                    break
        events.append(Arguments(self.calls - 1, self._held[:end]))
        self._held = self._held[end:]
        return True

    def _close(self, events: list[Event]) -> bool:
        return self._literal(CLOSE, self._after)

    def _after(self, events: list[Event]) -> bool:
        self._opening = NEXT
        return self._literal(NEXT, self._header)

    def _literal(self, literal: str, then: Callable[[list[Event]], bool]) -> bool:
        if self._held.startswith(literal):
            self._held = self._held[len(literal) :]
            self._step = then
            return True
        return False if literal.startswith(self._held) else self._lose("")

    def _lose(self, back: str) -> bool:
        self._held = back + self._held
        self._step = self._lost
        return True

    def _lost(self, events: list[Event]) -> bool:
        events.append(Content(self._held))
        self._held = ""
        return False


def _overlap(text: str, literal: str) -> int:
    """Length of the longest end of the text that is a beginning of the literal."""
    return next((n for n in range(min(len(text), len(literal)), 0, -1) if literal.startswith(text[-n:])), 0)
