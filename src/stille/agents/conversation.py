"""What a run has said so far, and whether it goes round in circles."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from stille.agents.errors import TurnLimitError
from stille.agents.guard import Guard
from stille.agents.types import TRUSTED, Labels, Message, ToolCall

SAME_CALLS = 3
"""Identical calls in a row from which they are not made any more."""


class Conversation:
    """Messages, in order.

    Attributes:
        messages: as they were said, with all labels that are known.
        shown: the same, as a model may see them.
        labels: of all messages.
    """

    def __init__(self, guard: Guard, messages: Iterable[Message] = ()):
        self.messages: list[Message] = []
        self.shown: list[Message] = []
        self.labels: Labels = TRUSTED
        self._guard = guard
        self._shown_labels: Labels = TRUSTED
        for message in messages:
            self.add(message)

    def add(self, message: Message) -> None:
        shown = self._guard.redact(message)  # which may know of more labels
        labels = message.labels | shown.labels
        self.messages.append(message if labels == message.labels else message.model_copy(update={"labels": labels}))
        self.shown.append(shown)
        self.labels |= labels
        self._shown_labels |= shown.labels

    def add_answer(self, message: Message) -> None:
        """What a model made of all that it was shown."""
        self.add(message.model_copy(update={"labels": message.labels | self._shown_labels}))


def opening(instructions: str, task: str, labels: Labels, history: Sequence[Message]) -> list[Message]:
    """The messages that a run begins with.

    A history that begins with instructions keeps its beginning, so that what is in the prefix cache is used again;
    this agent's own follow it, unless they are among its messages.
    """
    system = [Message(role="system", content=instructions)] if instructions else []
    user = Message(role="user", content=task, labels=labels)
    if history and history[0].role == "system":
        known = any(message.role == "system" and message.content == instructions for message in history)
        return [*history, *([] if known else system), user]
    return [*system, *history, user]


class Repeats:
    """Notices calls that are made again and again."""

    def __init__(self) -> None:
        self._call, self._calls_in_row = "", 0
        self._turn: list[str] = []
        self._turns_in_row = 0
        self._told = False

    def check(self, calls: Sequence[ToolCall]) -> list[bool]:
        """Which of a turn's calls should not be made, since they are the same as those before.

        Raises:
            TurnLimitError: after it was told so, the model makes them again.
        """
        turn = [json.dumps([call.name, call.arguments], sort_keys=True) for call in calls]
        self._turns_in_row = self._turns_in_row + 1 if turn == self._turn else 1
        self._turn = turn
        same = []
        for key in turn:
            self._calls_in_row = self._calls_in_row + 1 if key == self._call else 1
            self._call = key
            same.append(max(self._calls_in_row, self._turns_in_row) >= SAME_CALLS)
        if any(same) and self._told:
            name = next(call.name for call, again in zip(calls, same, strict=True) if again)
            raise TurnLimitError(
                f"the model calls {name} again and again with the same arguments; improve the instructions or the "
                "tool's description, or use a larger model"
            )
        self._told = any(same)
        return same
