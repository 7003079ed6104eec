"""Conversations as tokens, exactly as the server gives them to the model, and which of these the model writes."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from stille.engine.prompts import Prompts
from stille.engine.tool_grammar import Function, as_text, described, knows_tools, template_text
from stille.errors import ConfigError, StilleError
from stille.train.sft.conversations import Conversation, learned

TEXT, CALL = 1, 2
"""Of a learned token: its answer is text alone, or has calls."""


@dataclass(frozen=True)
class Rendered:
    """A document.

    Attributes:
        ids: uint32 tokens.
        learned: uint8, of each 0, `TEXT` or `CALL`.
        answers: how many are learned from.
    """

    ids: np.ndarray
    learned: np.ndarray
    answers: int


class Renderer:
    """Renders conversations with a model's tokenizer. Can be sent to another process.

    Args:
        tokenizer: with a chat template.
        ends: ids of the tokens that end an answer; the first one that the template writes behind an answer is learned.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: Iterable[int]):
        self.prompts, self.ends = Prompts(tokenizer), frozenset(ends)
        self._knows_tools, self._knows_developer = knows_tools(tokenizer), "developer" in template_text(tokenizer)

    def documents(self, conversations: Iterable[Conversation]) -> list[Rendered]:
        """All documents of conversations: one each, or one for each answer, where the template shows an earlier answer
        otherwise than it was written (leaves out its thoughts, say).

        Raises:
            ConfigError: a template refuses a conversation, or there is none.
        """
        return [document for each in conversations for document in self._documents(each)]

    def _documents(self, each: Conversation) -> list[Rendered]:
        spans: list[tuple[int, int, int]] = []  # in the whole text: begin and end of an answer and what follows, kind
        whole = self._text(each, len(each.messages), False)
        for index, message in enumerate(each.messages):
            if not learned(message):
                continue
            prompt = self._text(each, index, True)
            until = whole if index + 1 == len(each.messages) else self._text(each, index + 1, False)
            if not (until.startswith(prompt) and whole.startswith(until)):
                return self._one_by_one(each)
            spans.append((len(prompt), len(until), CALL if message.get("tool_calls") else TEXT))
        return [self._tokens(whole[: spans[-1][1]], spans)]

    def _one_by_one(self, each: Conversation) -> list[Rendered]:
        found = []
        for index, message in enumerate(each.messages):
            if not learned(message):
                continue
            prompt, until = self._text(each, index, True), self._text(each, index + 1, False)
            if not until.startswith(prompt):
                raise ConfigError(
                    "the chat template writes an answer otherwise than it asks for one, so nothing can be learned "
                    f"with it: {prompt[-60:]!r} against {until[len(prompt) - 60 : len(prompt)]!r}."
                )
            kind = CALL if message.get("tool_calls") else TEXT
            found.append(self._tokens(until, [(len(prompt), len(until), kind)]))
        return found

    def _text(self, each: Conversation, count: int, asked: bool) -> str:
        """The first `count` messages, with `asked` up to where the answer begins."""
        messages = [self._plain(message) for message in each.messages[:count]]
        tools = [_function(tool["function"]) for tool in each.tools]
        options: dict[str, Any] = {"add_generation_prompt": asked}
        try:
            if not self._knows_tools:
                return self.prompts.chat_text(as_text(messages, tools), **options)
            if tools:
                options["tools"] = [described(tool) for tool in tools]
            return self.prompts.chat_text(messages, **options)
        except StilleError as error:
            raise ConfigError(f"a conversation cannot be rendered: {error}") from error

    def _plain(self, message: dict[str, Any]) -> dict[str, Any]:
        system = message["role"] == "developer" and not self._knows_developer
        plain = {name: value for name, value in message.items() if name != "weight"}
        return {**plain, "role": "system"} if system else plain

    def _tokens(self, text: str, spans: list[tuple[int, int, int]]) -> Rendered:
        """Tokens of the pieces: where an answer begins, the tokens of the prompt end, as they do when it is written."""
        ids: list[int] = []
        marks: list[int] = []
        at = 0
        for begin, end, kind in spans:
            prompt = self.prompts.encode(text[at:begin], add_special_tokens=False)
            answer = self.prompts.encode(text[begin:end], add_special_tokens=False)
            length = next((i + 1 for i, token in enumerate(answer) if token in self.ends), len(answer))
            ids += prompt + answer
            marks += [0] * len(prompt) + [kind] * length + [0] * (len(answer) - length)
            at = end
        return Rendered(np.asarray(ids, np.uint32), np.asarray(marks, np.uint8), len(spans))


def _function(told: dict[str, Any]) -> Function:
    return Function(told["name"], told.get("description"), told.get("parameters"))
