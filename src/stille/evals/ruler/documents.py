"""qa_1 and qa_2: a question about one (or, in two steps, two) of many documents.

RULER takes questions and paragraphs of SQuAD and HotpotQA. They cannot be bundled, so an invented world stands in for
them: paragraphs of facts about places and people that exist nowhere, so that no answer can come from memory.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from stille.evals.ruler.draft import Draft, Grown, split_off
from stille.evals.ruler.words import word_list

_RULE = "Answer the question based on the given documents. Only give me the answer and do not output any other words."
_BEFORE = f"{_RULE}\n\nThe following are given documents.\n\n"
_AFTER = f"\n\n{_RULE}\n\nQuestion: {{question}}"
_PREFIX = " Answer:"


@dataclass(frozen=True)
class _Building:
    name: str
    town: str
    architect: str
    donor: str
    year: int
    text: str


@dataclass(frozen=True)
class _Person:
    name: str
    birthplace: str
    text: str


class _World:
    """Invents people and places. None has the name of another; a name made before `guard` is not part of a later one
    either, or the other way round, so that an answer is said only where it should be."""

    def __init__(self, rng: random.Random):
        self._rng = rng
        self._taken: set[str] = set()
        self._guarded: tuple[str, ...] = ()

    def _pick(self, name: str) -> str:
        return self._rng.choice(word_list(name))

    def guard(self) -> None:
        self._guarded = tuple(self._taken)

    def _fresh(self, make: Callable[[], str]) -> str:
        tries = 0
        while (name := make()) in self._taken or any(
            one in name or name in one for one in self._guarded or self._taken
        ):
            tries += 1
            if tries > 50:  # a world so large that names run out
                first = make
                make = lambda first=first: f"{first()} {self._pick('starts')}"  # noqa: E731
                tries = 0
        self._taken.add(name)
        return name

    def town(self) -> str:
        rng, pick = self._rng, self._pick

        def make() -> str:
            name = pick("starts") + pick("towns")
            return name if rng.random() < 0.5 else f"{rng.choice(('Great', 'Little', 'New', 'Upper'))} {name}"

        return self._fresh(make)

    def person(self) -> str:
        pick = self._pick
        return self._fresh(lambda: f"{pick('given')} {pick('starts')}{pick('persons')}")

    def building(self) -> _Building:
        rng, pick = self._rng, self._pick
        name = self._fresh(lambda: f"{pick('starts')}{pick('persons')} {pick('buildings').replace('-', ' ')}")
        town, architect, donor = self.town(), self.person(), self.person()
        year = rng.randint(1480, 1950)
        facts = [
            f"It was designed by {architect}, who had won a competition against {rng.randint(3, 40)} others.",
            f"Most of the money was given by {donor}; the rest was raised by a tax on {pick('nouns')}s.",
            f"Built of {pick('materials')} and {pick('materials')}, it took {rng.randint(2, 19)} years to finish and "
            f"employed {rng.randint(30, 900)} workers.",
            f"A fire in {year + rng.randint(20, 70)} destroyed the {pick('adjectives')} roof, "
            f"which was replaced within {rng.randint(3, 30)} months.",
            f"About {rng.randint(4, 99)},000 people visit it each year, many of them for the "
            f"{pick('adjectives')} {pick('nouns')} above the entrance.",
        ]  # fmt: skip
        rng.shuffle(facts)
        return _Building(
            name, town, architect, donor, year, f"The {name} stands in {town} and dates from {year}. " + " ".join(facts)
        )

    def biography(self, name: str) -> _Person:
        rng, pick = self._rng, self._pick
        birthplace, teacher, born = self.town(), self.person(), rng.randint(1440, 1910)
        facts = [
            f"After {rng.randint(2, 9)} years as a pupil of {teacher}, {name} opened an office of "
            f"{rng.randint(3, 25)} people.",
            f"Letters from those years mention a {pick('adjectives')} {pick('nouns')} "
            f"and a collection of {rng.randint(40, 800)} drawings.",
            f"The Academy awarded its medal for a treatise on the {pick('nouns')} in "
            f"{born + rng.randint(30, 60)}.",
        ]  # fmt: skip
        rng.shuffle(facts)
        text = f"{name} was a {pick('trades')}, born in {birthplace} in {born}. " + " ".join(facts)
        return _Person(name, birthplace, text)


@dataclass(frozen=True)
class Documents:
    """`hops` documents that answer a question, among others of the same kinds."""

    hops: int = 1

    def draft(self, rng: random.Random, length: int) -> Draft:
        world = _World(split_off(rng))
        building = world.building()
        evidence = [building.text]
        if self.hops == 1:
            question, answer = rng.choice(
                [
                    (f"Who designed the {building.name}?", building.architect),
                    (f"Who gave most of the money for the {building.name}?", building.donor),
                    (f"In which town does the {building.name} stand?", building.town),
                ]
            )
        else:
            person = world.biography(building.architect)
            evidence.append(person.text)
            question = f"In which town was the person who designed the {building.name} born?"
            answer = person.birthplace
        world.guard()
        others = Grown(self._others(world))
        places = [rng.random() for _ in evidence]
        order = rng.getrandbits(64)

        def context(size: int) -> str:
            """`size` documents, those with the evidence included."""
            texts = others.first(size - len(evidence))
            random.Random(order).shuffle(texts)
            for text, place in zip(evidence, places, strict=True):
                texts.insert(int(place * (len(texts) + 1)), text)
            return "\n\n".join(f"Document {i}:\n{text}" for i, text in enumerate(texts, 1))

        return Draft(
            before=_BEFORE,
            context=context,
            after=_AFTER.format(question=question),
            answer_prefix=_PREFIX,
            references=[answer],
            smallest=len(evidence) + 1,
        )

    def _others(self, world: _World) -> Iterator[str]:
        while True:
            building = world.building()
            yield building.text
            if self.hops > 1:
                yield world.biography(building.architect).text
