"""From what a request says to token ids, off the event loop."""

import re
from collections.abc import Sequence
from typing import Any

from starlette.concurrency import run_in_threadpool

from stille.engine.async_llm import AsyncLLM
from stille.errors import InvalidRequestError, UnsupportedError
from stille.server.errors import ApiError
from stille.server.schemas.chat import Message

# A template's reference to a message's name; names of tools and their parameters look different.
_NAME_USE = re.compile(r"\b(?:message|msg|m)\s*(?:\.name\b|\[\s*['\"]name['\"]\s*\])")


class PromptBuilder:
    """Renders chat templates and tokenises.

    Both run in worker threads: a prompt of a hundred thousand characters takes long enough to stall every stream.
    """

    def __init__(self, engine: AsyncLLM):
        self.engine = engine
        template = _template_text(engine.tokenizer)
        self._knows_developer = "developer" in template
        self._uses_names = bool(_NAME_USE.search(template))

    async def chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation, ending where the assistant's answer begins.

        Raises:
            ApiError: the checkpoint has no chat template, or the template refuses the conversation.
        """
        plain = [self._plain(index, message) for index, message in enumerate(messages)]
        try:
            return await run_in_threadpool(self.engine.render_chat, plain)
        except UnsupportedError as error:
            message = "This model has no chat template; use /v1/completions."
            raise ApiError(400, message, code="invalid_prompt", param="messages") from error
        except InvalidRequestError as error:
            raise ApiError(400, str(error), code="invalid_prompt", param="messages") from error

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

    def _plain(self, index: int, message: Message) -> dict[str, Any]:
        role = message.role
        if role == "developer" and not self._knows_developer:
            role = "system"
        content = message.content
        if not isinstance(content, str):
            content = "\n".join(part.text for part in content)
        plain = {"role": role, "content": content}
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


def _template_text(tokenizer: Any) -> str:
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):
        template = template.get("default", "")
    return template or ""
