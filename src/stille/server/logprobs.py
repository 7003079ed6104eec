"""The engine's log probabilities in the two shapes that OpenAI's endpoints give them."""

from collections.abc import Sequence
from typing import Any

from stille.engine.outputs import TokenLogprob

_FLOOR = -9999.0  # stands for a probability of zero, which JSON has no number for


def _value(token: TokenLogprob) -> float:
    return max(token.logprob, _FLOOR)


def for_chat(tokens: Sequence[TokenLogprob], alternatives: int) -> list[dict[str, Any]]:
    """`logprobs.content` of a chat choice."""
    return [
        {**_chat_token(token), "top_logprobs": [_chat_token(other) for other in token.top[:alternatives]]}
        for token in tokens
    ]


def _chat_token(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.text, "logprob": _value(token), "bytes": list(token.bytes)}


class CompletionOffsets:
    """`logprobs` of a text completion's choice, piece by piece; remembers where in the text the next token starts."""

    def __init__(self, alternatives: int):
        self.alternatives = alternatives
        self.offset = 0

    def piece(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        """The arrays for the next tokens."""
        offsets = []
        for token in tokens:
            offsets.append(self.offset)
            self.offset += len(token.text)
        top = None
        if self.alternatives:
            top = [{other.text: _value(other) for other in token.top[: self.alternatives]} for token in tokens]
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [_value(token) for token in tokens],
            "top_logprobs": top,
            "text_offset": offsets,
        }


def joined(pieces: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One `logprobs` object of a text completion out of its pieces."""
    whole: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": None, "text_offset": []}
    for piece in pieces:
        for key, values in piece.items():
            if values is not None:
                whole[key] = (whole[key] or []) + values
    return whole
