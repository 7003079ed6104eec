"""Tokens seen before, and what followed the last few of them: the suffix cache behind model-free drafts.

The idea is that of prompt lookup (Saxena 2023) and SuffixDecoding (Oliaro et al. 2024, arXiv:2411.04975); this is a
hash of short n-grams instead of a suffix tree, because adding a token must cost next to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

SHORTEST = 3
"""Tokens that must agree before a place counts as seen before."""

LONGEST = 16
"""Agreeing tokens beyond which it makes no difference how many there are."""

PLACES = 8
"""Latest places that are compared."""


class History:
    """A text that grows, indexed by its n-grams of SHORTEST tokens."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._places: dict[tuple[int, ...], list[int]] = {}  # an n-gram -> where what follows it begins

    def __len__(self) -> int:
        return len(self.tokens)

    def knows(self, suffix: Sequence[int]) -> bool:
        """Whether `follow` would find anything."""
        return tuple(suffix[-SHORTEST:]) in self._places

    def extend(self, tokens: Sequence[int]) -> None:
        """Appends to the text."""
        text, places, start = self.tokens, self._places, max(len(self.tokens), SHORTEST)
        text.extend(tokens)
        for end in range(start, len(text)):
            name = tuple(text[end - SHORTEST : end])
            known = places.get(name)
            if known is None:
                places[name] = [end]
            else:
                if len(known) >= PLACES:
                    del known[0]
                known.append(end)

    def follow(self, suffix: Sequence[int], most: int) -> tuple[list[int], list[float], int]:
        """What followed earlier occurrences of the end of `suffix`.

        Of the latest places that its last SHORTEST tokens occurred at, those count whose agreement reaches back
        furthest; they are followed as long as they last, by majority, the latest of equals.

        Args:
            suffix: the text so far; its end may or may not be part of this history.
            most: tokens wanted at most.

        Returns:
            tokens; for each, the share of the places still followed that agree on it; and how many tokens before the
            first of them agree, 0 if the end was never seen.
        """
        places = self._places.get(tuple(suffix[-SHORTEST:]))
        if not places:
            return [], [], 0
        text = self.tokens
        reach = [(self._agreement(suffix, place), place) for place in places]
        longest = max(length for length, _ in reach)
        followed = [place for length, place in reach if length == longest]
        tokens: list[int] = []
        shares: list[float] = []
        for offset in range(most):
            votes: dict[int, int] = {}
            for place in followed:
                if place + offset < len(text):
                    token = text[place + offset]
                    votes[token] = votes.get(token, 0) + 1
            if not votes:
                break
            count = max(votes.values())
            latest = next(
                text[p + offset]
                for p in reversed(followed)
                if p + offset < len(text) and votes[text[p + offset]] == count
            )
            tokens.append(latest)
            shares.append(count / sum(votes.values()))
            followed = [p for p in followed if p + offset < len(text) and text[p + offset] == latest]
        return tokens, shares, longest

    def _agreement(self, suffix: Sequence[int], place: int) -> int:
        """How many tokens before `place` equal the end of `suffix`, at most LONGEST."""
        text = self.tokens
        length = SHORTEST
        most = min(LONGEST, len(suffix), place)
        while length < most and text[place - 1 - length] == suffix[-1 - length]:
            length += 1
        return length
