"""Runs of words of a conversation, as a terminal of Lark: what a model may quote, and cannot make up.

A suffix automaton over words, one rule for each state, with prefix trees where many words may follow: without the trees
masks take several times as long, and long conversations exceed llguidance's limits. `substring_chunks`, made for this,
compiles as fast, but begins and ends runs anywhere (an intersection that cuts the edges off makes masks slow, for which
the model waits) and knows only spellings of a whole text, not of each word. An enum of all runs compiles more slowly.
Times: docs/log.md, 2026-12-01.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os.path import commonprefix
from typing import Any

MOST_WORDS, MOST_CHARACTERS = 4000, 30_000
"""Of a conversation, the newest of which count."""

LONGEST = 100
"""Characters of a word, and between two words of a run. Longer ones are data."""

FEW = 8
"""Words that may follow without a prefix tree."""

_ALONE = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
"""Characters of scripts that leave no spaces between words, or join endings to names: each counts as a word."""
_BREAKS = r"""\s,;:/\\|=…!?¿¡*`~•·()\[\]{}<>"“”„«»‹›–—、。「」『』，．！？：；（）"""
_JOINTS = r".'’‘\-"
_CORE = f"[^{_BREAKS}{_JOINTS}{_ALONE}]+"
_WORD = re.compile(rf"[{_ALONE}]|{_CORE}(?:(?:[{_JOINTS}]+|(?<=\d)[,:/](?=\d)){_CORE})*")
_OWNER = re.compile(r"(.+)(['’][sS])")
_BLANK = re.compile(r"[\s\x00-\x1f\x7f-\x9f\ud800-\udfff]+")

_literal = json.JSONEncoder(ensure_ascii=False).encode
"""As a string of JSON, or of Lark."""


def said_in(messages: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """The texts of a conversation that may be quoted: what users say, and the values that tools return.

    What the model said itself is none of them, nor are the system's instructions, which are about no request.
    """
    for message in messages:
        content = message.get("content") or ()
        for part in [content] if isinstance(content, str) else [each.get("text") or "" for each in content]:
            if message["role"] == "user":
                yield part
            elif message["role"] == "tool":
                yield from _returned(part)


def words(text: str) -> Iterator[tuple[str, str]]:
    """The words of a text, each with what stands before it.

    Punctuation at the ends of a word is not part of it; within it is (q1.pdf, O'Brien, 10:30). "Anna's" is "Anna"
    and "'s".
    """
    text, end = _BLANK.sub(" ", text), 0
    for found in _WORD.finditer(text):
        gap, word, end = text[end : found.start()], found.group(), found.end()
        owner = _OWNER.fullmatch(word)
        yield gap, owner[1] if owner else word
        if owner:
            yield "", owner[2]


def quotable(said: Iterable[str], name: str) -> list[str]:
    """Lines of Lark that define a terminal: a run of whole words of one of the texts, as it stands in a JSON string.

    What is between two words stays as it was. Each word may be spelt as it was anywhere, in small letters, or with
    a capital. Empty if there are no words.
    """
    spelt: dict[str, dict[str, None]] = {}
    between: dict[tuple[str, str], dict[str, None]] = {}
    runs: list[list[str]] = []
    for run in _newest(said):
        runs.append([word.lower() for _, word in run])
        for low, (_, word) in zip(runs[-1], run, strict=True):
            spelt.setdefault(low, {})[word] = None
        for pair, (gap, _) in zip(itertools.pairwise(runs[-1]), run[1:], strict=True):
            between.setdefault(pair, {})[gap] = None
    if all(low[0] in "'’" for low in spelt):  # none of them begins a run
        return []
    for low, forms in spelt.items():
        forms |= dict.fromkeys([low, low.title(), *(form[0].upper() + form[1:] for form in (low, *forms))])
    number = {low: index for index, low in enumerate(spelt)}
    following, last = _automaton(runs)

    def onwards(state: int) -> str:
        return f" {name}_{state}" if following[state] else ""

    lines, shared = [], set()
    for state, after in enumerate(following):
        if state == 0:
            steps = [("", low, to) for low, to in after.items() if low[0] not in "'’"]  # not "'s"
        else:
            steps = [(gap, low, to) for low, to in after.items() for gap in between[last[state], low]]
        if state and len(steps) <= FEW:
            shared.update(low for _, low, _ in steps)
            rest = " | ".join(f"{_literal(_escaped(gap))} {name}_W{number[low]}{onwards(to)}" for gap, low, to in steps)
        else:
            rest = _tree(sorted({(_escaped(gap + form), onwards(to)) for gap, low, to in steps for form in spelt[low]}))
        if steps:
            lines.append(f"{name}_{state}: ({rest})?" if state else f"{name}: {rest}")
    lines += [
        f"{name}_W{number[low]}: {' | '.join(_literal(_escaped(f)) for f in spelt[low])}" for low in sorted(shared)
    ]
    return lines


def _returned(text: str) -> Iterator[str]:
    """The values in what a tool returned; the text itself if it is no JSON."""
    try:
        open_ = [json.loads(text)]
    except (ValueError, RecursionError):
        yield text
        return
    while open_:
        value = open_.pop()
        if isinstance(value, dict):
            open_ += reversed(value.values())
        elif isinstance(value, list):
            open_ += reversed(value)
        elif value is not None and not isinstance(value, bool):
            yield str(value)


def _newest(said: Iterable[str]) -> Iterator[list[tuple[str, str]]]:
    """Runs of words, the last ones up to the bounds."""
    words_left, left = MOST_WORDS, MOST_CHARACTERS
    for text in dict.fromkeys(reversed(list(said))):  # each once
        run: list[tuple[str, str]] = []
        for gap, word in reversed(list(words(text))):
            if len(word) <= LONGEST:
                words_left, left = words_left - 1, left - len(gap[:LONGEST]) - len(word)
                if words_left < 0 or left < 0:
                    yield run[::-1]
                    return
                run.append((gap, word))
            if max(len(gap), len(word)) > LONGEST:
                yield run[::-1]
                run = []
        yield run[::-1]


def _automaton(runs: Iterable[Sequence[str]]) -> tuple[list[dict[str, int]], list[str]]:
    """Of each state, which word leads to which, and the word that leads to it. State 0 is the beginning; any walk from
    there spells part of a run, and each part has one walk (Blumer et al., The smallest automaton recognizing the
    subwords of a text, 1985). Takes time and room in proportion to the words."""
    following: list[dict[str, int]] = [{}]
    last, length, link = [""], [0], [-1]

    def add(word: str, size: int, after: dict[str, int], to: int) -> int:
        following.append(after)
        last.append(word)
        length.append(size)
        link.append(to)
        return len(length) - 1

    def divided(state: int, word: str) -> int:
        """The state that `word` leads to from `state`, for nothing longer than what leads there from it."""
        to = following[state][word]
        if length[to] == length[state] + 1:
            return to
        short = add(word, length[state] + 1, dict(following[to]), link[to])
        link[to] = short
        while state >= 0 and following[state].get(word) == to:
            following[state][word] = short
            state = link[state]
        return short

    for run in runs:
        state = 0
        for word in run:
            if word in following[state]:  # known from a run before
                state = divided(state, word)
                continue
            new = add(word, length[state] + 1, {}, 0)
            while state >= 0 and word not in following[state]:
                following[state][word] = new
                state = link[state]
            if state >= 0:
                link[new] = divided(state, word)
            state = new
    return following, last


def _tree(options: Sequence[tuple[str, str]]) -> str:
    """Alternatives of Lark: texts, sorted, each with the rules that go on after it; what they begin with is shared."""
    alternatives = [then or '""' for text, then in options if not text]
    for _, group in itertools.groupby((option for option in options if option[0]), lambda option: option[0][0]):
        same = list(group)
        if len(same) == 1:
            alternatives.append(_literal(same[0][0]) + same[0][1])
        else:
            head = commonprefix([same[0][0], same[-1][0]])  # noqa: RUF071 - of characters
            alternatives.append(f"{_literal(head)} ({_tree([(text[len(head) :], then) for text, then in same])})")
    return " | ".join(alternatives)


def _escaped(text: str) -> str:
    return _literal(text)[1:-1]
