"""Conversations to learn from: lines of JSON in OpenAI's form, checked when they are read."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stille.errors import ConfigError

ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True)
class Conversation:
    """One conversation.

    Attributes:
        messages: as OpenAI's chat completions take them, answers included; content is text.
        tools: functions that the model is told of, as a request has them.
        key: hash of what it says.
    """

    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...]
    key: int

    def held_out(self, share: float) -> bool:
        """Whether it is among the share that only judges; equal conversations are on the same side."""
        return self.key / 2**56 < share


def read_conversations(files: Sequence[Path]) -> Iterator[Conversation]:
    """Conversations of files, in order.

    Args:
        files: .jsonl, each line with "messages" and if wanted "tools". An assistant's message with "weight": 0 is
            context only (as in OpenAI's fine-tuning).

    Raises:
        ConfigError: a file cannot be read, or a line is no conversation; the message says which.
    """
    for file in files:
        try:
            with file.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        yield conversation(_object(line, f"{file}, line {number}"), f"{file}, line {number}")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the conversations {file} cannot be read: {error}.") from error


def conversation(row: dict[str, Any], where: str = "the conversation") -> Conversation:
    """A conversation out of JSON.

    Raises:
        ConfigError: it is none, or has no answer to learn from.
    """
    messages, tools = row.get("messages"), row.get("tools") or []
    if not isinstance(messages, list) or not messages:
        raise ConfigError(f'{where}: expected "messages", a list; got {sorted(row)}.')
    if not isinstance(tools, list) or not all(isinstance(tool, dict) and _names_function(tool) for tool in tools):
        raise ConfigError(f'{where}: "tools" must be a list of {{"type": "function", "function": {{"name": ...}}}}.')
    known: dict[str, str] = {}
    plain = [_message(message, f"{where}, message {index}", known) for index, message in enumerate(messages)]
    if not any(learned(message) for message in plain):
        raise ConfigError(f"{where}: no message of the assistant to learn from.")
    said = json.dumps([plain, tools], sort_keys=True).encode("utf-8", "surrogatepass")
    return Conversation(tuple(plain), tuple(tools), int.from_bytes(hashlib.sha256(said).digest()[:7], "big"))


def learned(message: dict[str, Any]) -> bool:
    """Whether a message's tokens are learned from."""
    return message["role"] == "assistant" and message.get("weight", 1) != 0


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where}: no JSON ({error}).") from error
    if not isinstance(row, dict):
        raise ConfigError(f"{where}: expected an object, got {type(row).__name__}.")
    return row


def _names_function(tool: dict[str, Any]) -> bool:
    function = tool.get("function")
    return isinstance(function, dict) and isinstance(function.get("name"), str)


def _message(message: Any, where: str, known: dict[str, str]) -> dict[str, Any]:
    """As it will be rendered; `known` collects the names of calls by their ids."""
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise ConfigError(f"{where}: expected an object whose role is one of {', '.join(ROLES)}.")
    role, content, calls = message["role"], message.get("content"), message.get("tool_calls") or []
    if isinstance(content, list):
        content = "\n".join(str(part.get("text", "")) if isinstance(part, dict) else str(part) for part in content)
    if not isinstance(content, str) and not (content is None and calls):
        raise ConfigError(f"{where}: content must be text; only beside tool_calls it may be left out.")
    plain: dict[str, Any] = {"role": role, "content": content or ""}
    if calls:
        if role != "assistant" or not isinstance(calls, list):
            raise ConfigError(f"{where}: tool_calls is a list, and the assistant's.")
        plain["tool_calls"] = [_call(call, f"{where}, call {index}", known) for index, call in enumerate(calls)]
    if role == "tool":
        name = known.get(str(message.get("tool_call_id")))
        if name is None:
            raise ConfigError(f"{where}: no call before it has the id {message.get('tool_call_id')!r}.")
        plain |= {"tool_call_id": message["tool_call_id"], "name": name}
    if message.get("weight") == 0:
        plain["weight"] = 0
    return plain


def _call(call: Any, where: str, known: dict[str, str]) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ConfigError(f'{where}: expected {{"id": ..., "function": {{"name": ..., "arguments": ...}}}}.')
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError as error:
            raise ConfigError(f"{where}: its arguments are no JSON ({error}).") from error
    if not isinstance(arguments, dict):
        raise ConfigError(f"{where}: its arguments must be a JSON object.")
    found = str(call.get("id") or f"call_{len(known)}")
    known[found] = function["name"]
    return {"id": found, "type": "function", "function": {"name": function["name"], "arguments": arguments}}
