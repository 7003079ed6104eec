"""Which guesses to check next: asks what can be guessed, and what checking pays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stille.engine.speculate.history import LONGEST, History
from stille.engine.speculate.policy import Calibration, Costs, choose

if TYPE_CHECKING:
    from stille.engine.sequence import Sequence as Answer

MOST_SEQUENCES = {True: 8, False: 32}
"""Sequences beyond which guessing is not tried, where steps overlap with the host and where not: a step of many costs
by its rows, and the host has enough to do."""

PAST_TOKENS = 100_000
"""Tokens of past answers after which a new history is begun; the one before is kept until the next."""

_LEAST_GAIN = 1.02
_LONGEST_PAUSE = {True: 127, False: 3}  # steps without trying, where steps overlap with the host and where not


@dataclass(slots=True)
class Draft:
    """Guesses of how an answer goes on.

    Attributes:
        tokens: one after the other.
        chances: probability that each is right, given that those before it are.
        kinds: of the guesses, for calibration.
    """

    tokens: list[int] = field(default_factory=list)
    chances: list[float] = field(default_factory=list)
    kinds: list[tuple[Any, ...]] = field(default_factory=list)

    @property
    def expected(self) -> float:
        """Guesses that are expected to survive."""
        alive, total = 1.0, 0.0
        for chance in self.chances:
            alive *= chance
            total += alive
        return total

    def cut(self, length: int) -> None:
        """Keeps the first `length` guesses."""
        del self.tokens[length:], self.chances[length:], self.kinds[length:]


@dataclass(slots=True)
class SpeculationStats:
    """What became of guesses.

    Attributes:
        drafted, accepted: guesses checked, and those that were right.
        places: of each place in a draft (the first is 0): guesses that came to be compared, and those that were right.
        sources: the same by where a guess came from.
    """

    drafted: int = 0
    accepted: int = 0
    places: list[list[int]] = field(default_factory=list)
    sources: dict[str, list[int]] = field(default_factory=dict)

    def observe(self, place: int, source: str, right: bool) -> None:
        """A guess was compared with what the model says."""
        while len(self.places) <= place:
            self.places.append([0, 0])
        for counts in (self.places[place], self.sources.setdefault(source, [0, 0])):
            counts[0] += 1
            counts[1] += right


class Speculator:
    """Guesses for the sequences of one engine.

    Sources: what a grammar leaves no choice about; what followed the last tokens earlier, in the same prompt and answer
    or in past answers; and a draft head, if there is one. A grammar's guess is continued by what followed earlier. Of
    several, the one of which more guesses are expected to survive is taken.

    Args:
        costs: of steps.
        most: guesses of one sequence in one step.
        patient: whether steps without guesses overlap with the host, so that trying to guess costs something.
        heads: sequences that a draft head can guess for at once; 0: there is none.
    """

    def __init__(self, costs: Costs, most: int, patient: bool, heads: int = 0):
        self.costs = costs
        self.stats = SpeculationStats()
        self._most = most
        self.most_sequences = MOST_SEQUENCES[patient]
        self._patient = patient
        self._heads = heads
        self._head: dict[Answer, tuple[int, list[int], list[float]]] = {}  # tokens then, guesses, probabilities
        self._calibration = Calibration()
        self._past, self._older = History(), History()
        self._own: dict[Answer, History] = {}
        self._checking: dict[Answer, Draft] = {}
        self._pause, self._wait = 0, 0

    def due(self, sequences: int) -> bool:
        """Whether to ask for guesses in the next step, in which so many sequences decode."""
        if not 0 < sequences <= self.most_sequences:
            return False
        if self._wait:
            self._wait -= 1
            return False
        return True

    def promising(self, answers: Sequence[Answer], room: int) -> bool:
        """Whether guesses are worth waiting for the steps in flight, from which the next token of each answer comes.

        What would be guessed without that token is told by those before it: if it is as expected, the rest remains.
        """
        if len(answers) <= self._heads:
            return True
        drafts = [self._draft(answer) for answer in answers]
        if not any(len(draft.tokens) > 1 for draft in drafts):
            return False
        chances = [
            [draft.chances[0] * draft.chances[1], *draft.chances[2:]] if draft.tokens[1:] else [] for draft in drafts
        ]
        return choose(len(answers), chances, self.costs, room)[1] >= _LEAST_GAIN

    def propose(self, answers: Sequence[Answer], room: int) -> dict[Answer, list[int]]:
        """Guesses to check in the next step; empty if a step without is expected to be as good.

        Args:
            answers: that decode in it, every token of them known.
            room: guesses that the step can take.
        """
        drafts = [self._draft(answer) for answer in answers]
        guessed = len(self._head)
        self._head.clear()
        counts, gain = choose(len(answers), [draft.chances for draft in drafts], self.costs, room)
        if gain < _LEAST_GAIN:
            if len(answers) <= self._heads and not guessed:
                return {}  # the head goes on from this step, then there is more to choose from
            if not any(answer.matcher is not None for answer in answers) or self._patient:
                self._pause = min(_LONGEST_PAUSE[self._patient], 2 * self._pause + 1)
                self._wait = self._pause
            return {}
        self._pause = 0
        chosen = {}
        for answer, draft, count in zip(answers, drafts, counts, strict=True):
            if count:
                draft.cut(count)
                self._checking[answer] = draft
                chosen[answer] = draft.tokens
        return chosen

    def goes_on(self, sequences: int) -> bool:
        """Whether the draft head should go on from a step in which so many sequences decode."""
        return not self._wait and 0 < sequences <= self._heads

    def hear(self, answer: Answer, tokens: list[int], chances: list[float]) -> None:
        """What the draft head guesses to follow an answer's last token, and how sure it is."""
        self._head[answer] = (len(answer.tokens), tokens, chances)

    def checked(self, answer: Answer, taken: int) -> None:
        """A step gave `taken` tokens of an answer: guesses that were right, and one more."""
        draft = self._checking.pop(answer, None)
        if draft is None:
            return
        self.stats.drafted += len(draft.tokens)
        self.stats.accepted += taken - 1
        for place, kind in enumerate(draft.kinds[:taken]):
            self._calibration.observe(kind, place < taken - 1)
            self.stats.observe(place, kind[0], place < taken - 1)

    def ended(self, answer: Answer) -> None:
        """An answer is complete; the next ones may resemble it."""
        self._own.pop(answer, None)
        self._checking.pop(answer, None)
        self._head.pop(answer, None)
        if len(answer.tokens) > answer.num_prompt:
            self._past.extend(answer.output_ids)
            if len(self._past) >= PAST_TOKENS:
                self._past, self._older = History(), self._past

    def _draft(self, answer: Answer) -> Draft:
        most = min(self._most, answer.limit - len(answer.tokens) - 1)
        draft = Draft()
        if most <= 0:
            return draft
        own = self._own.get(answer)
        if own is None:
            own = self._own[answer] = History()
        own.extend(answer.tokens[len(own) :])
        nothing = answer.matcher is None and answer not in self._head
        if nothing and not any(history.knows(answer.tokens) for history in (own, self._past, self._older)):
            return draft  # most steps of most texts
        if answer.matcher is not None:
            for token in answer.matcher.forced()[:most]:
                self._append(draft, token, ("forced",), 0.9)
        greedy = answer.request.params.greedy
        suffix = answer.tokens[-LONGEST:] + draft.tokens
        room = most - len(draft.tokens)
        own_draft = self._follow("own", own, suffix, room, greedy)
        past = self._past if self._past.knows(suffix) else self._older
        past_draft = self._follow("past", past, suffix, room, greedy)
        best = own_draft if own_draft.expected >= past_draft.expected else past_draft
        draft.tokens += best.tokens
        draft.chances += best.chances
        draft.kinds += best.kinds
        known, tokens, chances = self._head.get(answer, (0, [], []))
        if known == len(answer.tokens):
            head = Draft()
            for place, (token, chance) in enumerate(zip(tokens[:most], chances, strict=False)):
                self._append(head, token, ("head", place, int(10 * chance), greedy), chance)
            if head.expected > draft.expected:
                draft = head
        end = next((place for place, token in enumerate(draft.tokens) if token in answer.stop_ids), None)
        if end is not None:  # nothing follows an end
            draft.cut(end)
        if answer.matcher is not None and draft.tokens:
            draft.cut(answer.matcher.valid(draft.tokens))
        return draft

    def _follow(self, name: str, history: History, suffix: list[int], most: int, greedy: bool) -> Draft:
        draft = Draft()
        if most <= 0 or not history.knows(suffix):
            return draft
        tokens, shares, length = history.follow(suffix, most)
        for token, share in zip(tokens, shares, strict=True):
            length = min(LONGEST, length + 1)
            # Chance starts low: a guess that was not made costs less than a wrong one, and long agreement says enough.
            self._append(draft, token, (name, length, int(4 * share), greedy), 0.8 * share * (1 - 2 / (length + 1)))
        return draft

    def _append(self, draft: Draft, token: int, kind: tuple[Any, ...], estimate: float) -> None:
        draft.tokens.append(token)
        draft.chances.append(self._calibration.chance(kind, estimate))
        draft.kinds.append(kind)
