"""Prompts as tokens, and the haystack's size that fills a length."""

from __future__ import annotations

from typing import Any

from stille.errors import ConfigError, UnsupportedError
from stille.evals.ruler.draft import Draft

_FULL_ENOUGH = 0.985  # of the limit: the search may stop
_PROBE = 40  # units of the haystack that tell what a unit takes


class Encoder:
    """Turns a prompt and the beginning of its answer into token ids.

    Args:
        tokenizer: of transformers.
        chat: put the prompt into the tokenizer's chat format, the answer's beginning after it. Otherwise the text goes
            in as it is, as RULER does for base models.

    Raises:
        UnsupportedError: chat is asked for, and the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: Any, chat: bool = False):
        if chat and not getattr(tokenizer, "chat_template", None):
            raise UnsupportedError("this model's tokenizer has no chat template; evaluate it without the chat option")
        self.chat = chat
        self.tokenizer = tokenizer
        self._backend = getattr(tokenizer, "backend_tokenizer", None)

    def __call__(self, prompt: str, answer_prefix: str) -> list[int]:
        if self.chat:
            messages = [{"role": "user", "content": prompt}]
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            return self._encode(text + answer_prefix.lstrip(), False)
        return self._encode(prompt + answer_prefix, True)

    def _encode(self, text: str, special: bool) -> list[int]:
        if self._backend is not None:
            return self._backend.encode(text, add_special_tokens=special).ids
        return self.tokenizer(text, add_special_tokens=special).input_ids


def fit(draft: Draft, encode: Encoder, limit: int) -> list[int]:
    """The prompt with a haystack that fills `limit` tokens without exceeding it.

    A prompt's tokens grow almost evenly with its units, so two small prompts tell the size of the large one: mostly it
    takes one or two encodings of that.

    Raises:
        ConfigError: even the smallest prompt of this task is longer.
    """

    def ids(size: int) -> list[int]:
        return encode(draft.prompt(size), draft.answer_prefix)

    low = draft.smallest
    best = ids(low)
    if len(best) > limit:
        raise ConfigError(
            f"the shortest prompt of this task has {len(best)} tokens, but the length leaves {limit}; "
            "evaluate at a greater length"
        )
    rate = max(0.1, (len(ids(low + _PROBE)) - len(best)) / _PROBE)
    high = None  # smallest size known to be too long
    while True:
        size = low + max(1, int((limit - len(best)) / rate))
        if high is not None:
            size = min(size, high - 1)
        if size <= low:
            return best
        found = ids(size)
        if len(found) > limit:
            high = size
            # The next guess starts from what is known to fit, with what a unit was just seen to take on average.
            rate = max(rate * 1.001, (len(found) - len(best)) / (size - low))
        else:
            if size - low > _PROBE:
                rate = (len(found) - len(best)) / (size - low)
            low, best = size, found
            if len(best) >= _FULL_ENOUGH * limit:
                return best
