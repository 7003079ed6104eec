"""The text of a chat answer as OpenAI's messages and deltas."""

import uuid
from collections.abc import Callable, Iterable
from typing import Any

from stille.engine.tool_calls import CallStart, Content, Event, ToolCallParser


class ChatAnswer:
    """One answer: the deltas that a stream sends, and the message that they add up to.

    Args:
        parser: finds tool calls in the text; None: it is all content.
    """

    def __init__(self, parser: ToolCallParser | None = None):
        self._parser = parser
        self._content: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._arguments: list[list[str]] = []

    def feed(self, text: str, reason: str | None = None) -> tuple[list[dict[str, Any]], str | None]:
        """Deltas for the next piece of text, and why the answer ended, if it did."""
        if self._parser is None:
            events: list[Event] = [Content(text)] if text else []
        else:
            events = self._parser.feed(text)
            if reason is not None:
                events += self._parser.finish()
                if reason == "stop" and self._parser.calls and self._parser.complete:
                    reason = "tool_calls"
        return list(self._deltas(events)), reason

    def message(self) -> dict[str, Any]:
        """The message so far."""
        content = "".join(self._content)
        if not self._calls:
            return {"role": "assistant", "content": content, "refusal": None, "annotations": []}
        calls = [
            {**call, "function": {**call["function"], "arguments": "".join(arguments)}}
            for call, arguments in zip(self._calls, self._arguments, strict=True)
        ]
        return {
            "role": "assistant",
            "content": content or None,
            "refusal": None,
            "annotations": [],
            "tool_calls": calls,
        }

    def _deltas(self, events: Iterable[Event]) -> Iterable[dict[str, Any]]:
        for event in events:
            if isinstance(event, Content):
                self._content.append(event.text)
                yield {"content": event.text}
            elif isinstance(event, CallStart):
                function = {"name": event.name, "arguments": ""}
                call = {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
                self._calls.append(call)
                self._arguments.append([])
                yield {"tool_calls": [{"index": event.index, **call}]}
            else:
                self._arguments[event.index].append(event.text)
                yield {"tool_calls": [{"index": event.index, "function": {"arguments": event.text}}]}


AnswerMaker = Callable[[], ChatAnswer]
