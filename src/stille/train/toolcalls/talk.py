"""Phrases around requests and answers, and requests in words."""

# ruff: noqa: E501  (a line holds many phrases)

import re
from collections.abc import Mapping, Sequence
from typing import Any

from stille.train.toolcalls.dice import CLOSE, OPEN, Dice, fill, outside, plain, slots
from stille.train.toolcalls.tools import Tool

WRAPS = (
    "{}", "{}", "{}", "please {}", "{}, please", "{} please", "(can|could|would|will) you {}?", "(can|could|would) you please {}?",
    "(can|could) you {} for me?", "I (want|need|would like|'d like) you to {}", "I need you to {}", "would you mind if I ask you to {}?",
    "hey, {}", "hi, {}", "hello, (can|could) you {}?", "ok, {}", "now {}", "go ahead and {}", "I'd be (glad|happy|grateful) if you could {}",
    "is it possible to {}?", "(let's|let us) {}", "time to {}", "next: {}", "my request: {}", "quick one: {}", "kindly {}", "be so kind and {}",
    "do me a favour and {}", "I was wondering if you could {}", "help me to {}", "help me {}", "any chance you could {}?", "it would be great if you could {}",
    "I have to {}", "we (need|have) to {}", "we should {}", "what I need: {}", "just {}", "simply {}", "{} now", "{} right away", "{}, thanks", "{}, thank you",
    "you can {} now", "so, {}", "first thing today: {}", "if you can, {}", "{} if you can", "{} when you have a moment", "as agreed, {}",
)  # fmt: skip
ASIDES = (
    "I'm in a hurry.", "My boss is waiting.", "Good morning!", "Hello!", "Hi there.", "Good evening.", "It's me again.", "Sorry to bother you.",
    "I just got home.", "What a day.", "We talked about this before.", "My sister asked me for it.", "I'm on the phone.", "It has been a long week.",
    "I only have a minute.", "This came up in the meeting.", "Before I forget it:", "One more thing.", "I have a small request.", "Listen,",
)  # fmt: skip
ENDS = (
    "Thanks!",
    "Thank you.",
    "That's all.",
    "It's urgent.",
    "Thanks in advance.",
    "No hurry.",
    "Cheers.",
    "That would help me a lot.",
    "Much obliged.",
)
ERRORS = (
    "That did not work: {}.",
    "Sorry, {}.",
    "I could not do that: {}.",
    "(Unfortunately|I'm afraid) {}.",
    "It failed: {}.",
)
QUESTIONS = re.compile(
    r"(what|how|is|are|do|does|did|can|could|will|would|who|when|where|which|any|has|have|should|am|was)\b", re.IGNORECASE
)  # fmt: skip
_NEAR = r"(today|tomorrow|yesterday|the day after tomorrow|in an? \w+|in \w+ days|next \w+)"
_ON_NEAR = re.compile(rf"\bon ({OPEN}{_NEAR}{CLOSE})")
_NOUNS = (
    "alert|appointment|booking|reservation|claim|copy|customer|employee|flight|meeting|order|parcel|patient|plan|playlist|ticket|"
    "transfer|payment|vehicle|truck|van|number"
)  # fmt: skip
_NOUN_IT = re.compile(rf"\b(?:(?:the|my) )?(?:{_NOUNS}) ({OPEN}(?:it|them){CLOSE})")
_TWICE = re.compile(rf"\b(?:(?:the|my) )?({_NOUNS}) ({OPEN})(the|that|this) (?:{_NOUNS})\b")


def said(tool: Tool, arguments: Mapping[str, Any], dice: Dice) -> dict[str, str]:
    """Arguments as somebody says them, by name."""
    return {param.name: param.kind.say(dice, arguments[param.name]) for param in tool.params if param.name in arguments}


def request(tool: Tool, arguments: Mapping[str, str], dice: Dice) -> str:
    """What is asked for; with "?" before it a whole sentence, otherwise what follows "please"."""
    template = dice.one(tool.asks)
    whole = "?" * template.startswith("?")
    return whole + fill(template.removeprefix("?"), arguments, dice)


def sentence(asked: Sequence[str], dice: Dice) -> str:
    """Requests as what a user writes, politely or not, with slips or without."""
    if all(not each.startswith("?") for each in asked):
        text = joined(asked, dice)
        wrap = dice.expand(dice.one(WRAPS))
        text = wrap.replace("{}", text)
    else:
        parts = [each.removeprefix("?") for each in asked]
        text = parts[0]
        for each in parts[1:]:
            text = ended(text, dice) + dice.choice([" And ", " Also, ", " Then ", " ", " Besides: "]) + each
    text = capital(ended(text, dice), dice)
    if dice.chance(0.12):
        text = f"{dice.one(ASIDES)} {text}"
    if dice.chance(0.08):
        text = f"{ended(text, dice)} {dice.one(ENDS)}"
    # What templates call by its name and what refers to it would say so twice: "order that order".
    text = _TWICE.sub(r"\2\3 \1", _NOUN_IT.sub(r"\1", _ON_NEAR.sub(r"\1", text)))
    return slips(text, dice)


def joined(asked: Sequence[str], dice: Dice) -> str:
    """Requests one after the other in one sentence."""
    between = dice.choice([" and ", " and then ", ", then ", "; ", ", and also ", " and after that "])
    return ", ".join(asked[:-1]) + (between if len(asked) > 1 else "") + asked[-1]


def ended(text: str, dice: Dice) -> str:
    if text[-1] in ".?!:":
        return text
    if QUESTIONS.match(text):
        return text + "?"
    return text + dice.choice([".", ".", ".", "!", ""])


def capital(text: str, dice: Dice) -> str:
    return text[:1].upper() + text[1:] if dice.chance(0.8) and not text.startswith(OPEN) else text


def slips(text: str, dice: Dice) -> str:
    """With a typing error, in small letters or without a full stop, sometimes; values stay as they are."""
    way = dice.random()
    if way < 0.07:
        return outside(text, lambda part: re.sub(r"\b[a-z]{5,}\b", lambda m: _typo(m[0], dice), part, count=1))
    if way < 0.14:
        return outside(text, str.lower)
    return text.rstrip(".!") if way < 0.22 else text


def _typo(word: str, dice: Dice) -> str:
    at = dice.randrange(1, len(word) - 1)
    return dice.choice([
        word[:at] + word[at + 1] + word[at] + word[at + 2 :], word[:at] + word[at + 1 :], word[:at] + word[at] + word[at:],
    ])  # fmt: skip


def answer(tool: Tool, arguments: Mapping[str, Any], result: Mapping[str, Any], dice: Dice) -> str:
    """What the assistant says of a result."""
    if "error" in result:
        return dice.expand(dice.choice(ERRORS)).replace("{}", result["error"])
    known = {name: spoken(value) for name, value in {**arguments, **result}.items()}
    fitting = [each for each in tool.says if slots(each) <= known.keys()]
    # Half of them exactly, so that what is read out has to be found in the result.
    template = dice.choice([each for each in fitting if slots(each) & result.keys()] or fitting or ["Done."])
    return plain(fill(template, known, dice))


def spoken(value: Any) -> str:
    """A value of a result in words."""
    if isinstance(value, list):
        parts = [spoken(each) for each in value]
        return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]])) if parts else "nothing"
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return str(value).replace("_", " ") if re.fullmatch(r"[a-z_]+", str(value)) else str(value)
