"""A response while it is made: the events of its stream, and the object that they add up to."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from stille.engine.outputs import TokenLogprob
from stille.server import logprobs
from stille.server.errors import ApiError
from stille.server.responses_input import new_id
from stille.server.schemas.base import Usage

Event = dict[str, Any]

# The clients' models know these codes of a failed response only.
_CODES = {400: "invalid_prompt", 429: "rate_limit_exceeded"}


class ResponseBuilder:
    """Turns deltas of chat answers into events. Whole answers are made by the same events, which nobody is sent.

    Args:
        response: the object, without output; it is kept up to date.
        alternatives: per token of which log probabilities are given; None: none are.
    """

    def __init__(self, response: dict[str, Any], alternatives: int | None):
        self.response = response
        self._alternatives = alternatives
        self._number = -1
        self._open: dict[str, Any] | None = None  # the item that is being written
        self._text: list[str] = []
        self._tokens: list[TokenLogprob] = []  # not yet given out
        self._owed = 0  # bytes of text that went out without their tokens

    @property
    def finished(self) -> bool:
        """Whether the response has its last status."""
        return self.response["status"] not in ("queued", "in_progress")

    def begin(self) -> Iterator[Event]:
        """The events before the first token."""
        yield self._about("response.created")
        if self.response["status"] == "queued":
            yield self._about("response.queued")
            self.response["status"] = "in_progress"
        yield self._about("response.in_progress")

    def feed(self, deltas: Sequence[dict[str, Any]], tokens: Sequence[TokenLogprob] | None) -> Iterator[Event]:
        """The events for deltas of `ChatAnswer`, and the tokens that brought them."""
        if self._alternatives is not None:
            self._tokens += tokens or ()
        for delta in deltas:
            if "content" in delta:
                yield from self._say(delta["content"])
            for call in delta.get("tool_calls", ()):
                yield from self._call(call)

    def finish(self, reason: str, usage: Usage) -> Iterator[Event]:
        """The events at the end of an answer; the last one is complete when it comes.

        Args:
            reason: the chat answer's.
            usage: of the whole request.
        """
        response, cut = self.response, reason == "length"
        if not response["output"] and not cut:
            yield from self._say("")
        if self._tokens and self._open is not None and self._open["type"] == "message":
            yield self._delta("", all_tokens=True)  # the end of text and such, which are tokens too
        yield from self._close("incomplete" if cut else "completed")
        response["usage"] = {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {
                "cached_tokens": usage.prompt_tokens_details.cached_tokens,
                "cache_write_tokens": 0,
            },
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.total_tokens,
        }
        if cut:
            response |= {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
            yield self._about("response.incomplete")
        else:
            response |= {"status": "completed", "completed_at": int(time.time())}
            yield self._about("response.completed")

    def fail(self, error: ApiError) -> Iterator[Event]:
        """The events of a failure: what happened, and the response as far as it came."""
        self.stop("failed", {"code": _CODES.get(error.status_code, "server_error"), "message": error.message})
        yield self._event("error", code=error.code, message=error.message, param=error.param)
        yield self._about("response.failed")

    def stop(self, status: str, error: dict[str, Any] | None = None) -> None:
        """Give the response its last status, and what is unfinished in it too."""
        self._end_item("incomplete")
        self.response |= {"status": status, "error": error}

    def snapshot(self) -> dict[str, Any]:
        """The response as it is now, with text that was written so far."""
        item = self._open
        if item is None:
            return self.response
        return {**self.response, "output": [*self.response["output"][:-1], self._shown(item, item["status"])]}

    def _event(self, kind: str, **fields: Any) -> Event:
        self._number += 1
        return {"type": kind, "sequence_number": self._number, **fields}

    def _about(self, kind: str) -> Event:
        return self._event(kind, response={**self.response, "output": list(self.response["output"])})

    def _of_item(self, kind: str, **fields: Any) -> Event:
        assert self._open is not None
        place = {"output_index": len(self.response["output"]) - 1, "item_id": self._open["id"]}
        if self._open["type"] == "message":
            place["content_index"] = 0
        return self._event(kind, **place, **fields)

    def _begin(self, item: dict[str, Any]) -> Iterator[Event]:
        yield from self._close("completed")
        self._open, self._text = item, []
        output = self.response["output"]
        output.append(item)
        yield self._event("response.output_item.added", output_index=len(output) - 1, item=dict(item))

    def _say(self, text: str) -> Iterator[Event]:
        if self._open is None or self._open["type"] != "message":
            head = {"id": new_id("msg"), "type": "message", "status": "in_progress", "role": "assistant"}
            yield from self._begin({**head, "content": []})
            assert self._open is not None
            self._open["content"] = [_part("", [])]
            yield self._of_item("response.content_part.added", part=_part("", []))
        if text:
            self._owed += len(text.encode())
            yield self._delta(text)

    def _delta(self, text: str, all_tokens: bool = False) -> Event:
        assert self._open is not None
        # Text may come later than its tokens: what could begin a call or a stop string is held back.
        count = 0
        while count < len(self._tokens) and (self._owed > 0 or all_tokens):
            self._owed -= len(self._tokens[count].bytes)
            count += 1
        shown = logprobs.for_chat(self._tokens[:count], self._alternatives or 0)
        del self._tokens[:count]
        self._text.append(text)
        self._open["content"][0]["logprobs"] += shown
        return self._of_item("response.output_text.delta", delta=text, logprobs=shown)

    def _call(self, call: dict[str, Any]) -> Iterator[Event]:
        self._tokens, self._owed = [], 0  # those of calls have no place in a response
        if "id" in call:
            head = {"id": new_id("fc"), "type": "function_call", "status": "in_progress", "call_id": call["id"]}
            yield from self._begin({**head, "name": call["function"]["name"], "arguments": ""})
        elif call["function"]["arguments"]:
            self._text.append(call["function"]["arguments"])
            yield self._of_item("response.function_call_arguments.delta", delta=call["function"]["arguments"])

    def _close(self, status: str) -> Iterator[Event]:
        item = self._open
        if item is None:
            return
        whole = self._shown(item, status)
        if item["type"] == "message":
            part = whole["content"][0]
            yield self._of_item("response.output_text.done", text=part["text"], logprobs=part["logprobs"])
            yield self._of_item("response.content_part.done", part=part)
        else:
            yield self._of_item("response.function_call_arguments.done", arguments=whole["arguments"])
        index = self._end_item(status)
        yield self._event("response.output_item.done", output_index=index, item=whole)

    def _end_item(self, status: str) -> int:
        index = len(self.response["output"]) - 1
        if self._open is not None:
            self.response["output"][index] = self._shown(self._open, status)
            self._open = None
        return index

    def _shown(self, item: dict[str, Any], status: str) -> dict[str, Any]:
        text = "".join(self._text)
        if item["type"] == "message":
            return {**item, "status": status, "content": [{**part, "text": text} for part in item["content"]]}
        return {**item, "status": status, "arguments": text}


def _part(text: str, tokens: list[Any]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": tokens}
