"""The text of an answer as Anthropic's content blocks, and the events that a stream sends of them."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic_core import from_json

from stille.engine.outputs import OutputDelta
from stille.server.answers import ChatAnswer

Events = Iterator[dict[str, Any]]
_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class MessageAnswer:
    """One answer: the events of its blocks, and the blocks that they add up to.

    Args:
        answer: finds text and calls in what the model writes.

    Attributes:
        stop_reason: why it ended; None until it has.
        stop_sequence: the stop string that ended it, if one did.
    """

    def __init__(self, answer: ChatAnswer):
        self.stop_reason: str | None = None
        self.stop_sequence: str | None = None
        self._answer = answer
        self._blocks: list[dict[str, Any]] = []
        self._parts: list[list[str]] = []  # what the blocks consist of: text, or JSON of the input
        self._open = False

    def feed(self, delta: OutputDelta) -> Events:
        """Events for the next piece of the answer."""
        news, reason = self._answer.feed(delta.text, delta.finish_reason)
        for part in news:
            if "content" in part:
                yield from self._text(part["content"])
                continue
            for call in part["tool_calls"]:
                yield from self._call(call)
        if reason is not None:
            yield from self._stop()
            self.stop_reason = _REASONS[reason]
            if reason == "stop" and isinstance(delta.stop_reason, str):
                self.stop_reason, self.stop_sequence = "stop_sequence", delta.stop_reason

    def content(self) -> list[dict[str, Any]]:
        """The blocks so far."""
        return [
            {**block, "text": "".join(parts)}
            if block["type"] == "text"
            else {**block, "input": from_json("".join(parts) or "{}", allow_partial=True)}
            for block, parts in zip(self._blocks, self._parts, strict=True)
        ]

    def _text(self, text: str) -> Events:
        if not (self._open and self._blocks[-1]["type"] == "text"):
            yield from self._start({"type": "text", "text": "", "citations": None})
        yield self._delta({"type": "text_delta", "text": text}, text)

    def _call(self, call: Mapping[str, Any]) -> Events:
        function = call["function"]
        if "id" in call:
            block = {"type": "tool_use", "id": f"toolu_{call['id'].removeprefix('call_')}", "name": function["name"]}
            yield from self._start({**block, "input": {}, "caller": {"type": "direct"}})
        elif function["arguments"]:
            arguments = function["arguments"]
            yield self._delta({"type": "input_json_delta", "partial_json": arguments}, arguments)

    def _start(self, block: dict[str, Any]) -> Events:
        yield from self._stop()
        self._blocks.append(block)
        self._parts.append([])
        self._open = True
        yield {"type": "content_block_start", "index": len(self._blocks) - 1, "content_block": block}

    def _delta(self, delta: dict[str, Any], text: str) -> dict[str, Any]:
        self._parts[-1].append(text)
        return {"type": "content_block_delta", "index": len(self._blocks) - 1, "delta": delta}

    def _stop(self) -> Events:
        if self._open:
            self._open = False
            yield {"type": "content_block_stop", "index": len(self._blocks) - 1}
