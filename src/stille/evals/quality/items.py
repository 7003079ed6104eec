"""Questions that a likelihood answers: what a row of a data file says, as contexts with continuations.

Prompts, what follows what, and by what lengths likelihoods are divided are those of lm-evaluation-harness
(EleutherAI/lm-evaluation-harness, MIT; its tasks lambada_openai, hellaswag, arc_easy, arc_challenge, openbookqa, piqa,
winogrande and mmlu, without examples); the code is our own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Row = Mapping[str, Any]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class Item:
    """One question.

    Attributes:
        task, index: which it is; `index` is its place in the data file.
        pairs: context and continuation, one pair for each choice; a single one where the next word is asked for.
        gold: the right pair.
    """

    task: str
    index: int
    pairs: tuple[tuple[str, str], ...]
    gold: int

    def identity(self) -> list[Any]:
        """What an answer that was kept belongs to."""
        return [self.task, self.index, self.pairs, self.gold]  # a file may ask twice


class Question(NamedTuple):
    """What a row asks, whatever its form.

    Attributes:
        text: the question, or what a choice continues.
        choices: at least two.
        gold: the right one.
        asked: whether the text is a question, to be followed by "Answer:".
    """

    text: str
    choices: list[str]
    gold: int
    asked: bool = True


Style = Literal["as given", "answer", "continue", "letters"]


def pairs_of(question: Question, style: Style) -> tuple[tuple[str, str], ...]:
    """Contexts and continuations of a question.

    Args:
        style: "answer": "Question: ..\\nAnswer:" and the choices; "continue": the text and the choices; "letters": the
            choices are part of the context and their letters follow it (MMLU); "as given": the first for questions,
            the second for other texts.
    """
    text, choices, _, asked = question
    if style == "letters":
        listed = "".join(f"{letter}. {choice}\n" for letter, choice in zip(LETTERS, choices, strict=False))
        return tuple((f"{text.strip()}\n{listed}Answer:", f" {LETTERS[i]}") for i in range(len(choices)))
    if style == "answer" or (style == "as given" and asked):
        text = f"Question: {text}\nAnswer:"
    return tuple((text, f" {choice}") for choice in choices)


def read_question(row: Row) -> Question:
    """A row of HellaSwag, PIQA, ARC, OpenBookQA or MMLU in its original form, of LLM-Adapters, or of the plain form.

    The plain form is `{"question": .., "choices": [..], "answer": ..}`, with `context` instead of `question` for a text
    that the choices continue; the answer is a number from 0, a letter, or the choice itself.

    Raises:
        KeyError, ValueError, TypeError: it is none of these.
    """
    if "endings" in row:
        return _hellaswag(row)
    if "goal" in row:
        return Question(str(row["goal"]), [str(row["sol1"]), str(row["sol2"])], _gold(row["label"], ["0", "1"]))
    if "instruction" in row:
        text, choices, gold = _instruction(row)
        return Question(text, choices, gold)
    question = row["question"] if "question" in row else row.get("question_stem", row.get("context"))
    choices: Any = row.get("choices", row.get("options"))
    if isinstance(question, Mapping):  # ARC and OpenBookQA as AI2 has them
        question, choices = question["stem"], question["choices"]
    if not isinstance(question, str):
        raise KeyError("question or context")
    labels: list[str] | None = None
    if isinstance(choices, Mapping):  # lists of texts and labels
        texts, labels = list(choices["text"]), [str(label) for label in choices["label"]]
    elif isinstance(choices, list) and choices and isinstance(choices[0], Mapping):
        texts, labels = [each["text"] for each in choices], [str(each["label"]) for each in choices]
    else:
        texts = choices
    if not isinstance(texts, list) or len(texts) < 2 or not all(isinstance(text, str) for text in texts):
        raise ValueError("choices are no list of two texts or more")
    answer = row["answerKey"] if "answerKey" in row else row.get("answer", row.get("label"))
    return Question(question, texts, _gold(answer, labels or [], texts), "context" not in row)


def _hellaswag(row: Row) -> Question:
    context = f"{row['ctx_a']} {row['ctx_b'].capitalize()}"
    text = _without_brackets(f"{row['activity_label']}: {context}")
    endings = [_without_brackets(ending) for ending in row["endings"]]
    return Question(text, endings, _gold(row["label"], [str(i) for i in range(len(endings))]), False)


def _without_brackets(text: str) -> str:
    """HellaSwag's WikiHow texts have marks of their pages' parts."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _instruction(row: Row) -> tuple[str, list[str], int]:
    """AGI-Edgerunners/LLM-Adapters has questions with their choices in one text: "...: QUESTION\n\nAnswer1: .. "."""
    text, mark, _ = row["instruction"].rpartition("Answer format:")
    begin, middle = re.search(r"(?:the question|the given sentence): ", text), re.search(r"\n\n(\w+?)1: ", text)
    if not mark or begin is None or middle is None:
        raise ValueError("an instruction without question and choices")
    kind = middle[1]
    parts = re.split(rf"\s+{kind}\d: ", " " + text[middle.start() :].strip())
    names = [f"{kind.lower()}{i}" for i in range(1, len(parts))]
    if len(names) < 2:
        raise ValueError("an instruction with fewer than two choices")
    return text[begin.end() : middle.start()], [part.strip() for part in parts[1:]], _gold(row["answer"], names)


def _gold(answer: Any, labels: list[str], texts: list[str] | None = None) -> int:
    """Which choice an answer means: by label, letter, number from 0, or text."""
    count = len(texts) if texts is not None else len(labels)
    if isinstance(answer, int) and not isinstance(answer, bool) and not labels:
        found = answer
    else:
        said = str(answer).strip()
        if said in labels:
            found = labels.index(said)
        elif texts is not None and said in texts:
            found = texts.index(said)
        elif len(said) == 1 and said in LETTERS:
            found = LETTERS.index(said)
        elif said.isdecimal() and not labels:
            found = int(said)
        else:
            found = -1
    if not 0 <= found < count:
        raise ValueError(f"the answer {answer!r} is none of the {count} choices")
    return found


def lambada_pairs(row: Row) -> tuple[tuple[tuple[str, str], ...], int]:
    """The last word, after the rest of the passage."""
    text = row["text"].strip()
    before, blank, word = text.rpartition(" ")
    if not blank:
        raise ValueError("a passage of one word")
    return ((before, f" {word}"),), 0


def winogrande_pairs(row: Row) -> tuple[tuple[tuple[str, str], ...], int]:
    """Both options in the blank; what follows it is the continuation, so only contexts differ."""
    if "instruction" in row:
        sentence, options, gold = _instruction(row)
    else:
        sentence, options, gold = row["sentence"], [row["option1"], row["option2"]], _gold(row["answer"], ["1", "2"])
    before, blank, after = sentence.partition("_")
    if not blank:
        raise ValueError("a sentence without a blank, _")
    return tuple((before + option, f" {after.strip()}") for option in options), gold
