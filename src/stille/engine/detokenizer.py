"""Token ids to text, piece by piece, never half a character; and stop strings on the way.

The pieces of an answer joined are exactly `tokenizer.decode(ids, skip_special_tokens=True)` of all of it. Two ways to
get there: byte-level BPE (most models today) maps each token to bytes of its own, so a table and a streaming UTF-8
decoder do; every other tokenizer decodes a window of the last tokens, before and after the new one.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING, Any, Protocol

from stille.engine.outputs import TokenLogprob

if TYPE_CHECKING:
    from stille.engine.model_runner import Logprobs

_REPLACEMENT = "\ufffd"
_CONTEXT_TOKENS = 8
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_alphabet() -> dict[str, int]:
    """Character -> byte of byte-level BPE (GPT-2): printable Latin-1 stands for itself, the rest for U+0100 onwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


class _Pieces(Protocol):
    """Incremental decoding of one answer."""

    def push(self, token_id: int) -> str: ...

    def finish(self) -> str: ...


class Detokenizer:
    """What streams of one tokenizer share.

    Args:
        tokenizer: a transformers tokenizer; the fast path needs its `tokenizers` backend with a ByteLevel decoder.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._backend = backend
        if backend is not None:
            added = backend.get_added_tokens_decoder()
            self.special_ids = frozenset(i for i, token in added.items() if token.special)
        else:
            self.special_ids = frozenset(tokenizer.all_special_ids)
        self.byte_level = backend is not None and _is_byte_level(backend.decoder)
        vocab: dict[str, int] = tokenizer.get_vocab()
        self.known_ids = frozenset(vocab.values())  # a model's vocabulary may be padded beyond the tokenizer's
        self.byte_ids = frozenset() if self.byte_level else frozenset(i for t, i in vocab.items() if _is_byte(t))
        self._alphabet = _byte_alphabet()
        self._bytes: dict[int, bytes] = {}

    def token_bytes(self, token_id: int) -> bytes:
        """UTF-8 of one token by itself, special tokens by name; b"" for an id that the tokenizer lacks."""
        found = self._bytes.get(token_id)
        if found is None:
            found = self._bytes[token_id] = self._make_bytes(token_id)
        return found

    def describe(self, token: int, row: int, logprobs: Logprobs, count: int) -> TokenLogprob:
        """A token with its log-probability and those of the `count` likeliest, from a row of a step's."""

        def entry(token_id: int, value: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
            raw = self.token_bytes(token_id)
            return TokenLogprob(token_id, value, raw.decode("utf-8", "replace"), raw, top)

        ids, values = logprobs.ids[row, :count].tolist(), logprobs.values[row, :count].tolist()
        top = tuple(entry(i, value) for i, value in zip(ids, values, strict=True))
        return entry(token, float(logprobs.chosen[row]), top)

    def visible_bytes(self, token_id: int) -> bytes:
        """`token_bytes`, but nothing for special tokens, which do not appear in text."""
        return b"" if token_id in self.special_ids else self.token_bytes(token_id)

    def decode(self, ids: Seq[int]) -> str:
        """The whole text at once, without special tokens."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def pieces(self, prompt_ids: Seq[int] = ()) -> _Pieces:
        """A fresh incremental decoder for an answer that follows `prompt_ids`."""
        if self.byte_level:
            return _BytePieces(self)
        return _WindowPieces(self, self._context(prompt_ids))

    def stream(self, stop: Seq[str] = (), prompt_ids: Seq[int] = ()) -> TextStream:
        """As `pieces`, with stop strings."""
        return TextStream(self.pieces(prompt_ids), stop)

    def _context(self, prompt_ids: Seq[int]) -> list[int]:
        """Tokens before the answer that decide whether it begins with a space; none right after a special token."""
        context: list[int] = []
        for token in reversed(prompt_ids[-_CONTEXT_TOKENS:]):
            if token in self.special_ids or token in self.byte_ids:
                break
            context.insert(0, token)
        return context

    def _make_bytes(self, token_id: int) -> bytes:
        if self._backend is None or not self.byte_level:
            token = self._tokenizer.convert_ids_to_tokens(token_id)
            byte = _BYTE_TOKEN.fullmatch(token) if isinstance(token, str) else None
            if byte:
                return bytes([int(byte[1], 16)])
            return self._tokenizer.decode([token_id], clean_up_tokenization_spaces=False).encode()
        token = self._backend.id_to_token(token_id)
        if token is None:
            return b""
        try:
            return bytes([self._alphabet[character] for character in token])
        except KeyError:  # an added token: text as it stands
            return token.encode()


class _BytePieces:
    """Each token is a run of bytes; a character is given out when its last byte is there."""

    __slots__ = ("_decoder", "_shared")

    def __init__(self, shared: Detokenizer):
        self._shared = shared
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        return self._decoder.decode(self._shared.visible_bytes(token_id))

    def finish(self) -> str:
        return self._decoder.decode(b"", True)


class _WindowPieces:
    """Decodes the last tokens with and without the newest and gives out the difference.

    A window never begins inside a run of byte tokens (<0xE2>): such a run is decoded as a whole, so it is held back
    until it ends.
    """

    __slots__ = ("_begin", "_ids", "_read", "_shared")

    def __init__(self, shared: Detokenizer, context: list[int]):
        self._shared = shared
        self._ids = context
        self._begin = 0
        self._read = len(context)

    def push(self, token_id: int) -> str:
        if token_id in self._shared.special_ids or token_id not in self._shared.known_ids:
            return ""
        self._ids.append(token_id)
        return "" if token_id in self._shared.byte_ids else self._advance(final=False)

    def finish(self) -> str:
        return self._advance(final=True)

    def _advance(self, final: bool) -> str:
        before = self._shared.decode(self._ids[self._begin : self._read])
        after = self._shared.decode(self._ids[self._begin :])
        if len(after) <= len(before) or (after.endswith(_REPLACEMENT) and not final):
            return ""
        del self._ids[: self._begin]
        self._begin, self._read = self._read - self._begin, len(self._ids)
        return after[len(before) :]


class TextStream:
    """Text of one answer as its tokens arrive, cut before the first stop string that is completed.

    Which stop string ends the answer depends on the text alone, not on where tokens end: the one whose last character
    comes first (of several, the longest). Text in which one may be beginning is held back.
    """

    __slots__ = ("_held", "_longest", "_pieces", "_stop")

    def __init__(self, pieces: _Pieces, stop: Seq[str] = ()):
        self._pieces = pieces
        self._stop = tuple(stop)
        self._longest = max(map(len, self._stop), default=0)
        self._held = ""

    def push(self, token_id: int) -> tuple[str, str | None]:
        """New text that is sure to belong to the answer, and the stop string if one is complete."""
        piece = self._pieces.push(token_id)
        if not self._stop:
            return piece, None
        return self._check(piece) if piece else ("", None)

    def finish(self) -> tuple[str, str | None]:
        """The rest, when no token follows."""
        piece = self._pieces.finish()
        if not self._stop:
            return piece, None
        text, found = self._check(piece)
        if found is None:
            text, self._held = text + self._held, ""
        return text, found

    def _check(self, piece: str) -> tuple[str, str | None]:
        text = self._held + piece
        found = [(at + len(stop), at, stop) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            _, at, stop = min(found)
            self._held = ""
            return text[:at], stop
        keep = next(
            (k for k in range(min(self._longest - 1, len(text)), 0, -1) if self._may_begin(text[-k:])),
            0,
        )
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], None

    def _may_begin(self, ending: str) -> bool:
        return any(stop.startswith(ending) for stop in self._stop)


def _is_byte(token: str) -> bool:
    return _BYTE_TOKEN.fullmatch(token) is not None


def _is_byte_level(decoder: Any) -> bool:
    if decoder is None:
        return False
    state = json.loads(decoder.__getstate__())
    parts = state.get("decoders", [state]) if state.get("type") == "Sequence" else [state]
    return [part.get("type") for part in parts] == ["ByteLevel"]
