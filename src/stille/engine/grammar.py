"""Answers that follow a grammar: what may be asked for, and masks of the tokens that may come next.

llguidance (derivatives of regular expressions below an Earley parser) compiles grammars and computes masks. A mask is
made on the host: on a GPU while it computes the logits that the mask is for, on a CPU after them. The end-of-sequence
tokens are allowed exactly where the grammar may end.
"""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from stille.errors import InvalidRequestError, UnsupportedError

MOST_BYTES = 256 * 1024
"""Of a grammar's text. Time and memory of compiling it are bounded by llguidance's own limits ("fuel")."""

TOGETHER = 32
"""Masks from which on threads of their own compute them: waking these takes about as long as a dozen masks."""

THREADS = 4
"""Such threads at most: more hinder each other (256 masks on 16 cores: 2.2 ms by 1, 1.45 by 4, 1.85 by 16)."""

STACK = 1 << 28
"""Bytes of address space for the stack that grammars are compiled on: four times what was enough for nesting as
deep as fits within `MOST_BYTES`."""

KEPT = 512
"""Compiled grammars that an engine keeps; .2 MiB of a few tools. To make one takes milliseconds and Python's lock."""

KEPT_BRIEFLY = 32
"""Of those that no other request will ask for: from the check of a request until its answer begins."""


@dataclass(frozen=True)
class Grammar:
    """What an answer must look like; made by the methods below, compiled by the engine.

    Attributes:
        source: in llguidance's form.
        param: the parameter that errors name.
        lasting: other requests may ask for the same, so it is worth keeping when it is compiled.
    """

    source: str
    param: str = "grammar"
    lasting: bool = True

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | bool, param: str = "grammar") -> Grammar:
        """JSON that is valid for a schema (draft 2020-12).

        Raises:
            InvalidRequestError: it is no JSON, or too large.
            UnsupportedError: llguidance is not installed; so the other methods.
        """
        library = _library()
        try:
            text = json.dumps({} if schema is True else schema)
            _check_size(text, param)
            return cls(library.LLMatcher.grammar_from_json_schema(text, None, json_style(schema)), param)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidRequestError(f"the JSON schema cannot be read: {error}", param) from error

    @classmethod
    def json_object(cls, param: str = "grammar") -> Grammar:
        """Any JSON object."""
        return cls.json_schema({"type": "object"}, param)

    @classmethod
    def regex(cls, pattern: str, param: str = "grammar") -> Grammar:
        """Text that a regular expression (Rust's syntax, no look-around) matches as a whole."""
        _check_size(pattern, param)
        return cls(_library().LLMatcher.grammar_from_regex(pattern), param)

    @classmethod
    def lark(cls, text: str, param: str = "grammar", *, more: str = "") -> Grammar:
        """A context-free grammar in llguidance's variant of Lark, from its rule `start`.

        Args:
            text: at most `MOST_BYTES`.
            more: what this request alone needs, and whose maker bounds it.
        """
        _check_size(text, param)
        return cls(_library().LLMatcher.grammar_from_lark(text + more), param, lasting=not more)

    @classmethod
    def of(cls, description: Any, param: str = "grammar") -> Grammar:
        """From JSON: an object with one of the keys json_schema, regex and lark.

        Raises:
            InvalidRequestError: it is none, or its value cannot be used.
        """
        if isinstance(description, Mapping) and len(description) == 1:
            ((kind, value),) = description.items()
            if kind in ("regex", "lark") and isinstance(value, str):
                return (cls.regex if kind == "regex" else cls.lark)(value, param)
            if kind == "json_schema" and isinstance(value, Mapping | bool):
                return cls.json_schema(value, param)
        raise InvalidRequestError(
            f'{param} must be {{"json_schema": ...}}, {{"regex": "..."}} or {{"lark": "..."}}, got {description!r:.99}',
            param,
        )


class Matcher:
    """Where one answer stands in its grammar."""

    def __init__(self, matcher: Any):
        self.inner = matcher

    def copy(self) -> Matcher:
        """Another answer, at the same place."""
        return Matcher(self.inner.deep_copy())

    @property
    def usable(self) -> bool:
        """Whether the grammar leaves anything to say here."""
        return not self.inner.get_error()

    def consume(self, token: int) -> bool:
        """Move on by a token of the answer; false if the grammar turned out to be too complex at this place."""
        return self.inner.consume_token(token)

    def allows(self, token: int) -> bool:
        """Whether the token may come next."""
        return self.inner.validate_tokens([token]) == 1

    def forced(self) -> list[int]:
        """Tokens that spell the text about which the grammar leaves no choice; the model may spell it with others."""
        return self.inner.compute_ff_tokens()

    def valid(self, tokens: Sequence[int]) -> int:
        """How many of the tokens may follow one after the other."""
        return self.inner.validate_tokens(list(tokens))

    def back(self, count: int) -> None:
        """Undoes the last `count` tokens."""
        if count:
            self.inner.rollback(count)

    def fill(self, mask_W: np.ndarray) -> None:
        """Write the bits of the allowed tokens, int32 [W]; all, if the grammar turned out to be too complex."""
        self.inner.unsafe_compute_mask_ptr(mask_W.ctypes.data, mask_W.nbytes)
        self.check(mask_W)

    def check(self, mask_W: np.ndarray) -> None:
        """Allow all tokens in a mask that was computed and is of no use: `consume` fails then."""
        if not self.usable:
            mask_W.fill(-1)


class GrammarCompiler:
    """Compiled grammars of one tokenizer. Thread-safe; compiling lets other threads run.

    Args:
        tokenizer: a fast transformers tokenizer.
        vocab_size: V, columns of the logits.
        eos_token_ids: tokens that end an answer.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, eos_token_ids: Iterable[int]):
        self.words = -(-vocab_size // 32)
        self._tokenizer, self._vocab_size, self._eos = tokenizer, vocab_size, sorted(eos_token_ids)
        self._made: Any = None
        self._threads: Any = None
        self._beside: Any = None
        self._compiling: ThreadPoolExecutor | None = None
        self._kept: OrderedDict[str, Matcher] = OrderedDict()
        self._briefly: OrderedDict[str, Matcher] = OrderedDict()
        self._lock = threading.Lock()

    def knows(self, grammar: Grammar) -> bool:
        """Whether it is compiled."""
        return grammar.source in (self._kept if grammar.lasting else self._briefly)

    def matcher(self, grammar: Grammar) -> Matcher:
        """A matcher at the beginning of an answer.

        Raises:
            InvalidRequestError: the grammar is wrong, too complex, or uses what is not supported.
            UnsupportedError: the tokenizer is not one that grammars work with.
        """
        kept, most = (self._kept, KEPT) if grammar.lasting else (self._briefly, KEPT_BRIEFLY)
        with self._lock:
            known = kept.get(grammar.source)
            if known is not None:
                kept.move_to_end(grammar.source)
                return known.copy()
            tokenizer = self._wrapped()
            if self._compiling is None:
                self._compiling = _thread_with_room()
        matcher = self._compiling.submit(self._compile, tokenizer, grammar).result()
        with self._lock:
            kept[grammar.source] = matcher
            while len(kept) > most:
                kept.popitem(last=False)
        return matcher.copy()

    def _compile(self, tokenizer: Any, grammar: Grammar) -> Matcher:
        library = _library()
        limits = library.LLParserLimits(verbose_errors=False)  # else errors hold whole schemas
        made = library.LLMatcher(tokenizer, grammar.source, log_level=0, limits=limits)
        if made.is_error():
            raise InvalidRequestError(f"the grammar cannot be used: {_short(made.get_error())}", grammar.param)
        matcher = Matcher(made)
        begun = matcher.copy()
        begun.fill(np.empty(self.words, np.int32))  # the slowest mask of some grammars, and what it builds is kept
        if not begun.usable:
            raise InvalidRequestError(
                "the grammar cannot be used: no answer follows it, or none that ends", grammar.param
            )
        return matcher

    def masks(self, matchers: Sequence[Matcher], meanwhile: Callable[[], None] | None = None) -> np.ndarray:
        """Allowed tokens of several answers, int32 [M, W], bit i % 32 of word i // 32 for token i.

        Args:
            matchers: of the answers.
            meanwhile: called before it returns, beside the computation if there is enough of that.
        """
        mask_MW = np.empty((len(matchers), self.words), np.int32)
        if len(matchers) < TOGETHER:
            for matcher, mask_W in zip(matchers, mask_MW, strict=True):
                matcher.fill(mask_W)
            if meanwhile is not None:
                meanwhile()
            return mask_MW
        if self._threads is None:
            self._threads = _library().LLExecutor(min(THREADS, os.cpu_count() or 1))
            self._beside = ThreadPoolExecutor(1, "stille-masks")
        each = [(matcher.inner, row) for row, matcher in enumerate(matchers)]
        compute = self._threads.unsafe_compute_mask_ptr
        job = self._beside.submit(compute, each, mask_MW.ctypes.data, 4 * self.words, len(each))
        if meanwhile is not None:
            meanwhile()
        job.result()
        for matcher, mask_W in zip(matchers, mask_MW, strict=True):
            matcher.check(mask_W)
        return mask_MW

    def masks_after(self, matchers: Sequence[Matcher], after: Sequence[tuple[int, int]]) -> np.ndarray:
        """As `masks`, for rows of which some follow guesses.

        Args:
            matchers: of the rows; those of one answer follow each other.
            after: of each row, how many guesses it follows, and the last of these, which its grammar allows.
        """
        mask_MW = np.empty((len(matchers), self.words), np.int32)
        for row, (matcher, (offset, token)) in enumerate(zip(matchers, after, strict=True)):
            if offset:
                matcher.consume(token)
            matcher.fill(mask_MW[row])
            if row + 1 == len(matchers) or after[row + 1][0] == 0:
                matcher.back(offset)
        return mask_MW

    def _wrapped(self) -> Any:
        if self._made is None:
            if not self._eos:
                raise UnsupportedError("this model has no end-of-sequence token, so no grammar could end an answer")
            try:
                self._made = _library().hf.from_tokenizer(self._tokenizer, self._vocab_size, self._eos)
            except Exception as error:  # the library raises several kinds, its own panics among them
                raise UnsupportedError(f"grammars do not work with this tokenizer: {error}") from error
        return self._made


def json_style(schema: Any) -> Any:
    """How JSON for a schema is written, as llguidance's options: as Python prints it, because with free white space a
    small model may never end it, and without escapes of the form \\u0061.

    With these a key could be a listed one ("a") and get round what the schema says of it, and half a surrogate pair is
    no text. Only a schema that has characters that cannot be written otherwise gets them.
    """
    style = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    if "\\u00" not in json.dumps(schema, ensure_ascii=False):
        style["json_allowed_escapes"] = 'nrbtf"\\'
    return style


def _library() -> Any:
    """llguidance, imported when it is first needed.

    Raises:
        UnsupportedError: it is not installed.
    """
    try:
        import llguidance.hf
    except ImportError as error:
        raise UnsupportedError("grammars need llguidance: pip install 'stille[serve]'") from error
    return llguidance


def _thread_with_room() -> ThreadPoolExecutor:
    """A thread with a stack for grammars whose rules nest thousands of levels deep, which overflow a common one."""
    before = threading.stack_size(STACK)
    try:
        executor = ThreadPoolExecutor(1, "stille-grammar")
        executor.submit(int).result()  # the thread is there now
        return executor
    finally:
        threading.stack_size(before)


def _check_size(text: str, param: str) -> None:
    if not isinstance(text, str):
        raise InvalidRequestError(f"a grammar must be text, got {type(text).__name__}", param)
    if (size := len(text.encode("utf-8", "surrogatepass"))) > MOST_BYTES:
        raise InvalidRequestError(f"the grammar has {size:,} bytes, at most {MOST_BYTES:,} are taken", param)


def _short(message: str) -> str:
    first = " ".join(message.split())
    return first if len(first) <= 500 else first[:500] + " ..."
