"""A real tokenizer, samples of every task made with it, and an oracle that answers them."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from stille.evals import ruler


@pytest.fixture(scope="session")
def tokenizer(default_model_path):
    from stille.model import load_tokenizer

    return load_tokenizer(default_model_path)


@pytest.fixture(scope="session")
def samples(tokenizer) -> list[ruler.Sample]:
    """Two of each task at 2,048 and 5,000 tokens: below and above where cwe changes its counts."""
    return ruler.make_samples(tokenizer, list(ruler.TASKS), [2048, 5000], 2)


@pytest.fixture(scope="session")
def solve() -> Callable[[str], str]:
    """Reads a prompt as a careful person would: what every task must allow."""
    return _solve


@pytest.fixture
def oracle(tokenizer) -> Callable[..., Any]:
    """Makes a model that never errs, but where it is told to."""
    return lambda forget=lambda prompt: False: Oracle(tokenizer, forget)


def _solve(prompt: str) -> str:
    """The answer to any of the 13 tasks, from its text alone."""
    if "special magic" in prompt:
        return _needles(prompt)
    if "chain(s) of variable assignment" in prompt:
        return _variables(prompt[prompt.rindex("Memorize and track") :])
    if "numbered list of words" in prompt:
        task = prompt[prompt.rindex("Below is a numbered list") : prompt.rindex("\nQuestion:")]
        words = re.findall(r"\d+\. (\S+)", task)
        return " ".join(word for word, _ in Counter(words).most_common(10))
    if "coded text" in prompt:
        words = prompt[: prompt.rindex("\nQuestion:")].split("coded words. ")[1].split()
        return " ".join(word for word, _ in Counter(w for w in words if w != "...").most_common(3))
    return _documents(prompt)


def _needles(prompt: str) -> str:
    asked = re.findall(r"\nWhat (?:is|are all) the special magic \w+ for (.+?) mentioned in the provided", prompt)
    keys = re.split(r", and |, ", asked[-1])
    return ", ".join(v for key in keys for v in re.findall(rf"for {re.escape(key)} is: (\S+)\.", prompt))


def _variables(prompt: str) -> str:
    value = re.findall(r"assigned the value (\d+) in the text above\.", prompt)[-1]
    names = re.findall(rf"VAR (\w+) = {value}\b", prompt)
    for name in names:  # grows while it is read
        names += re.findall(rf"VAR (\w+) = VAR {name}\b", prompt)
    return " ".join(names)


def _documents(prompt: str) -> str:
    question = prompt[prompt.rindex("Question: ") :]
    (name,) = re.findall(r"(?:designed|for|does) the (.+?)(?: stand| born)?\?", question)
    (text,) = re.findall(rf"\nThe {re.escape(name)} stands in .+", prompt)
    if "In which town does" in question:
        return re.findall(r"stands in (.+?) and dates", text)[0]
    if "most of the money" in question:
        return re.findall(r"was given by (.+?);", text)[0]
    architect = re.findall(r"designed by (.+?), who", text)[0]
    if "born" not in question:
        return architect
    return re.findall(rf"\n{re.escape(architect)} was an? \w+, born in (.+?) in \d", prompt)[0]


class Oracle:
    """Answers tokens with text, as `protocol.Generate` has it; forgets what `forget` says it does."""

    def __init__(self, tokenizer: Any, forget: Any = lambda prompt: False):
        self.tokenizer, self.forget = tokenizer, forget
        self.asked: list[int] = []

    def __call__(self, prompts: Sequence[list[int]], max_new_tokens: Sequence[int]) -> list[str]:
        self.asked.append(len(prompts))
        texts = [self.tokenizer.decode(ids) for ids in prompts]
        return ["I do not know" if self.forget(text) else _solve(text) for text in texts]
