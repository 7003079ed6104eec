"""From what a request says to token ids, off the event loop."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.concurrency import run_in_threadpool

from stille.engine.async_llm import AsyncLLM
from stille.engine.tool_grammar import as_text, described, knows_tools, template_text
from stille.errors import InvalidRequestError, UnsupportedError
from stille.server.errors import ApiError
from stille.server.schemas.chat import AssistantMessage, Message, ToolMessage
from stille.server.schemas.tools import EarlierCall, Tool
from stille.server.tools import as_function

# A template's reference to a message's name; names of tools and their parameters look different.
_NAME_USE = re.compile(r"\b(?:message|msg|m)\s*(?:\.name\b|\[\s*['\"]name['\"]\s*\])")


class PromptBuilder:
    """Renders chat templates and tokenises.

    Both run in worker threads: a prompt of a hundred thousand characters takes long enough to stall every stream.
    """

    def __init__(self, engine: AsyncLLM):
        self.engine = engine
        template = template_text(engine.tokenizer)
        self._knows_tools = knows_tools(engine.tokenizer)  # otherwise they and what goes with them become text
        self._knows_developer = "developer" in template
        self._uses_names = bool(_NAME_USE.search(template))

    async def chat(
        self, messages: Sequence[Message], tools: Sequence[Tool] = (), *, continue_last: bool = False
    ) -> list[int]:
        """Token ids of a conversation, ending where the assistant's answer begins.

        Args:
            messages: the conversation.
            tools: functions that the model is told of.
            continue_last: the last message is the beginning of the answer.

        Raises:
            ApiError: the checkpoint has no chat template, the template refuses the conversation, or a tool's message
                answers no call.
        """
        names = called_names(messages)
        plain = [self._plain(index, message, names) for index, message in enumerate(messages)]

        def render() -> list[int]:
            ending = {"add_generation_prompt": False, "continue_final_message": True} if continue_last else {}
            functions = [as_function(tool) for tool in tools]
            if not self._knows_tools:
                return self.engine.render_chat(as_text(plain, functions), **ending)
            template = {"tools": [described(function) for function in functions]} if functions else {}
            return self.engine.render_chat(plain, **template, **ending)

        try:
            return await run_in_threadpool(render)
        except UnsupportedError as error:
            message = "This model has no chat template; use /v1/completions."
            raise ApiError(400, message, code="invalid_prompt", param="messages") from error
        except InvalidRequestError as error:
            raise ApiError(400, str(error), code="invalid_prompt", param="messages") from error
        except RecursionError as error:
            raise ApiError(400, "The tools are nested too deeply.", code="invalid_prompt", param="tools") from error

    async def text(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of plain text."""
        return await run_in_threadpool(self.engine.prompts.encode, text, add_special_tokens)

    async def decode(self, ids: list[int]) -> str:
        """Text of token ids, special tokens included."""
        vocab = len(self.engine.tokenizer)
        bad = next((token for token in ids if token >= vocab), None)
        if bad is not None:
            message = f"Token {bad} does not exist; the vocabulary has {vocab} tokens, from 0."
            raise ApiError(400, message, code="invalid_prompt", param="tokens")
        return await run_in_threadpool(self.engine.tokenizer.decode, ids, skip_special_tokens=False)

    def _plain(self, index: int, message: Message, names: Mapping[int, str]) -> dict[str, Any]:
        role = message.role
        if role == "developer" and not self._knows_developer:
            role = "system"
        content = message.content
        if content is None:
            content = ""
        elif not isinstance(content, str):
            content = "\n".join(part.text for part in content)
        plain: dict[str, Any] = {"role": role, "content": content}
        if isinstance(message, ToolMessage):
            return {**plain, "tool_call_id": message.tool_call_id, "name": names[index]}
        if isinstance(message, AssistantMessage) and message.tool_calls:
            plain["tool_calls"] = [_plain_call(call) for call in message.tool_calls]
        if message.name is not None:
            if not self._uses_names:
                raise ApiError(
                    400,
                    "Unsupported parameter: the model's chat template has no place for names of participants; "
                    "leave 'name' out or put it into the content.",
                    code="invalid_prompt",
                    param=f"messages[{index}].name",
                )
            plain["name"] = message.name
        return plain


def called_names(messages: Sequence[Message]) -> dict[int, str]:
    """The called function of each tool's message, by the message's index.

    Raises:
        ApiError: a tool's message answers no call that came before, or an assistant's message says nothing.
    """
    known: dict[str, str] = {}
    names: dict[int, str] = {}
    for index, message in enumerate(messages):
        if isinstance(message, AssistantMessage):
            if message.content is None and not message.tool_calls:
                place = f"messages[{index}].content"
                text = f"Missing required parameter: '{place}'. Only beside tool_calls may it be left out."
                raise ApiError(400, text, code="invalid_prompt", param=place)
            known |= {call.id: call.function.name for call in message.tool_calls or []}
        elif isinstance(message, ToolMessage):
            name, place = known.get(message.tool_call_id), f"messages[{index}]"
            if name is None:
                text = f"No message before '{place}' has a tool call with the id '{message.tool_call_id}'."
                raise ApiError(400, text, code="invalid_prompt", param=f"{place}.tool_call_id")
            if message.name not in (None, name):
                text = f"The call that '{place}' answers is one of '{name}', not of '{message.name}'."
                raise ApiError(400, text, code="invalid_prompt", param=f"{place}.name")
            names[index] = name
    return names


def _plain_call(call: EarlierCall) -> dict[str, Any]:
    arguments: Any = call.function.arguments
    try:
        read = json.loads(arguments)
    except (ValueError, RecursionError):
        read = None
    if isinstance(read, dict):  # templates write objects as JSON, and text they would quote once more
        arguments = read
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}
