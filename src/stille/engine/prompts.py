"""Text and chat messages to token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from stille.errors import InvalidRequestError, UnsupportedError


class Prompts:
    """Turns what a user sends into prompt tokens.

    Args:
        tokenizer: a transformers tokenizer, with a chat template if `render_chat` is to work.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self._backend = getattr(tokenizer, "backend_tokenizer", None)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of plain text.

        Raises:
            InvalidRequestError: the text is not valid Unicode (a lone surrogate).
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequestError(f"the text is not valid Unicode: {error}", "prompt") from None
        if self._backend is not None:  # without the truncation state that makes the outer call unsafe in threads
            return self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        return self.tokenizer(text, add_special_tokens=add_special_tokens).input_ids

    def chat_text(self, messages: Sequence[Mapping[str, Any]], **template: Any) -> str:
        """The conversation in the model's own format, ready for the next answer.

        Args:
            messages: role and content, and what else the template understands.
            **template: variables for the template (tools, enable_thinking, ...).

        Raises:
            UnsupportedError: the model has no chat template.
            InvalidRequestError: no messages, or the template refuses them.
        """
        if not getattr(self.tokenizer, "chat_template", None):
            raise UnsupportedError("this model's tokenizer has no chat template; send a plain prompt instead")
        if not messages:
            raise InvalidRequestError("messages is empty; give at least one", "messages")
        options = {"add_generation_prompt": True, **template}
        try:
            return self.tokenizer.apply_chat_template(list(messages), tokenize=False, **options)
        except (jinja2.TemplateError, TypeError, KeyError, ValueError, AttributeError) as error:
            raise InvalidRequestError(
                f"the model's chat template refuses these messages: {error}", "messages"
            ) from error

    def render_chat(self, messages: Sequence[Mapping[str, Any]], **template: Any) -> list[int]:
        """`chat_text` as token ids (the template brings its own special tokens)."""
        return self.encode(self.chat_text(messages, **template), add_special_tokens=False)

    def ids(self, prompt: str | Sequence[int]) -> list[int]:
        """Token ids of a prompt given either way.

        Raises:
            InvalidRequestError: it is neither text nor token ids.
        """
        if isinstance(prompt, str):
            return self.encode(prompt)
        if isinstance(prompt, Sequence) and all(isinstance(i, int) and not isinstance(i, bool) for i in prompt):
            return list(prompt)
        raise InvalidRequestError(
            f"a prompt must be text or a list of token ids, got {type(prompt).__name__}", "prompt"
        )
