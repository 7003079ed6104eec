"""Conversations, made backwards: from the calls, which are executed, to the words that ask for them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from stille.train.toolcalls import smalltalk
from stille.train.toolcalls.dice import Dice, plain
from stille.train.toolcalls.kinds import Kind
from stille.train.toolcalls.shown import Shown, show_all
from stille.train.toolcalls.talk import answer, request, said, sentence
from stille.train.toolcalls.tools import Param, Tool, World, draw, run

Arguments = dict[str, Any]


@dataclass
class Talk:
    """A conversation that is being made.

    Attributes:
        dice: of all that is drawn.
        pool: tools that may come up.
        seed: of the worlds.
        scenario: its kind.
    """

    dice: Dice
    pool: Sequence[Tool]
    seed: int
    scenario: str
    worlds: dict[str, World] = field(default_factory=dict)
    shown: dict[str, Shown] = field(default_factory=dict)
    messages: list[dict[str, Any]] = field(default_factory=list)
    calls: list[tuple[str, Arguments]] = field(default_factory=list)

    def show(self, wanted: Sequence[Tool], without: Sequence[Tool] = ()) -> None:
        """Decide which tools there are: those wanted and 2 to 14 in all, half of the others from the same world."""
        dice, wanted = self.dice, list(dict.fromkeys(wanted))
        count = max(len(wanted) + 1, min(14, 2 + int(dice.expovariate(0.3))))
        others = [tool for tool in self.pool if tool not in wanted and tool not in without]
        same = [tool for tool in others if wanted and tool.world == wanted[0].world]
        found = list(wanted)
        while len(found) < count:
            each = dice.choice(same if same and dice.chance(0.5) else others)
            if each not in found:
                found.append(each)
        dice.shuffle(found)
        self.shown = {each.tool.key: each for each in show_all(found, dice)}

    def user(self, text: str) -> None:
        self.messages.append({"role": "user", "content": plain(text)})

    def says(self, text: str) -> None:
        self.messages.append({"role": "assistant", "content": plain(text)})

    def call(self, calls: Sequence[tuple[Tool, Arguments]]) -> list[dict[str, Any]]:
        """The assistant makes calls at once; they are executed, and their results are messages."""
        first = len(self.calls)
        made = [self.shown[tool.key].call(arguments, first + i) for i, (tool, arguments) in enumerate(calls)]
        self.messages.append({"role": "assistant", "content": None, "tool_calls": [_as_text(each) for each in made]})
        results = []
        for each, (tool, arguments) in zip(made, calls, strict=True):
            self.calls.append((tool.key, arguments))
            results.append(run(self.worlds, tool, arguments, self.seed))
            content = json.dumps(results[-1], ensure_ascii=False)
            self.messages.append({"role": "tool", "tool_call_id": each["id"], "content": content})
        return results

    def told(self, calls: Sequence[tuple[Tool, Arguments]], results: Sequence[dict[str, Any]]) -> None:
        """The assistant says what came of calls."""
        self.says(" ".join(answer(t, a, r, self.dice) for (t, a), r in zip(calls, results, strict=True)))


def _as_text(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    text = json.dumps(function["arguments"], ensure_ascii=False)
    return {**call, "function": {"name": function["name"], "arguments": text}}


def single(talk: Talk, tool: Tool) -> None:
    """One call, and what came of it."""
    if talk.scenario != "follow_up":
        talk.scenario = "single"  # whatever else was not possible with this tool
    talk.show([tool])
    arguments = draw(tool, talk.dice)
    talk.user(sentence([request(tool, said(tool, arguments, talk.dice), talk.dice)], talk.dice))
    calls = [(tool, arguments)]
    talk.told(calls, talk.call(calls))


def parallel(talk: Talk, tool: Tool) -> None:
    """Two or three independent calls: of one tool, or of several."""
    dice, count = talk.dice, talk.dice.choice([2, 2, 3])
    tools = [tool] * count
    if dice.chance(0.6):
        near = [each for each in talk.pool if each.world == tool.world and each is not tool]
        tools = [tool, *dice.sample(near if len(near) >= count and dice.chance(0.7) else list(talk.pool), count - 1)]
    calls: list[tuple[Tool, Arguments]] = []
    for each in tools:
        if (call := (each, draw(each, dice))) not in calls:
            calls.append(call)
    dice.shuffle(calls)
    talk.show([each for each, _ in calls])
    talk.user(sentence([request(t, said(t, a, dice), dice) for t, a in calls], dice))
    talk.told(calls, talk.call(calls))


def next_of(tool: Tool, pool: Sequence[Tool]) -> list[tuple[str, Tool, Param]]:
    """Tools whose argument a tool gives: the result's name, the tool, and its parameter."""
    found = []
    for name, kind in tool.gives.items():
        for each in pool:
            found += [(name, each, param) for param in each.params if param.kind is kind and param.required]
    return found


def chain(talk: Talk, tool: Tool) -> None:
    """Two calls asked for at once, the second with what the first gives."""
    dice, pairs = talk.dice, _pairs(tool, talk.pool)
    if not pairs:
        return single(talk, tool)
    first, (name, second, param) = dice.choice(pairs)
    talk.show([first, second])
    arguments, later = draw(first, dice), draw(second, dice)
    words = said(second, later, dice) | {param.name: reference(param.kind, dice)}
    asks = [request(first, said(first, arguments, dice), dice), request(second, words, dice)]
    talk.user(sentence(asks, dice))
    result = talk.call([(first, arguments)])[0]
    if "error" in result:
        return talk.told([(first, arguments)], [result])
    later[param.name] = result[name]
    results = talk.call([(second, later)])
    talk.told([(first, arguments), (second, later)], [result, *results])
    return None


def follow_up(talk: Talk, tool: Tool) -> None:
    """A second request that leans on the first: on its result, or on what it said."""
    dice, pairs = talk.dice, _pairs(tool, talk.pool)
    if not pairs or dice.chance(0.4):
        return variation(talk, tool)
    first, (name, second, param) = dice.choice(pairs)
    talk.show([first, second])
    arguments = draw(first, dice)
    talk.user(sentence([request(first, said(first, arguments, dice), dice)], dice))
    result = talk.call([(first, arguments)])[0]
    talk.told([(first, arguments)], [result])
    if "error" in result:
        return None
    later = draw(second, dice)
    words = said(second, later, dice) | {param.name: reference(param.kind, dice)}
    later[param.name] = result[name]
    talk.user(sentence([request(second, words, dice)], dice))
    talk.told([(second, later)], talk.call([(second, later)]))
    return None


def variation(talk: Talk, tool: Tool) -> None:
    """The same once more, with one argument changed and nothing else said."""
    dice = talk.dice
    single(talk, tool)
    arguments = dict(talk.calls[-1][1])
    open_ = [param for param in tool.params if param.name in arguments]
    if not open_:
        return
    param = dice.choice(open_)
    for _ in range(5):
        value = param.kind.sample(dice)
        if value != arguments[param.name]:
            break
    else:
        return
    arguments[param.name] = value
    spoken = param.kind.say(dice, value)
    name = param.names[0].replace("_", " ")
    ways = (
        "And with {v} as {n}?",
        "What about {n} {v}?",
        "The same again, but {n} {v}.",
        "Now with {v} as the {n}.",
        "Once more with {n} {v}, please.",
    )
    talk.user(dice.one(ways).replace("{n}", name).replace("{v}", spoken))
    talk.told([(tool, arguments)], talk.call([(tool, arguments)]))


def missing_argument(talk: Talk, tool: Tool) -> None:
    """Something that is needed was not said: the assistant asks, the user answers, and it is done."""
    dice, needed = talk.dice, [param for param in tool.params if param.required]
    if not needed:
        return single(talk, tool)
    talk.show([tool])
    arguments = draw(tool, dice)
    absent = dice.sample(needed, dice.choice([1, 1, 1, min(2, len(needed))]))
    absent = [param for param in needed if param in absent]
    words = said(tool, arguments, dice)
    given = [param for param in tool.params if param.name in words and param not in absent]
    facts = [f"the {_words(param)} is {words[param.name]}" for param in given]
    dice.shuffle(facts)
    wish = smalltalk.to_user(tool.does)
    text = sentence([wish], dice)
    if facts:
        text = f"{text.rstrip('.!? ')}{dice.choice([', ', '. ', ': ', '; '])}{', '.join(facts)}"
    talk.user(text)
    asks = [f"the {_words(param)} ({dice.expand(param.told)})" for param in absent]
    question = absent[0].kind.question
    talk.says(dice.choice([
        f"To {wish} I need {' and '.join(asks)}.", f"Please tell me {' and '.join(asks)}.",
        question if len(absent) == 1 else f"I still need {' and '.join(asks)}.", f"I am missing {' and '.join(asks)}.",
    ]))  # fmt: skip
    replies = [words[param.name] for param in absent]
    if len(absent) == 1:
        ways = (
            "{}",
            "{}.",
            "it's {}",
            "{}, please",
            "that would be {}",
            "take {}",
            "Oh, sorry: {}",
            "{} of course",
            "I mean {}",
            "let's say {}",
        )
        talk.user(dice.one(ways).replace("{}", replies[0]))
    else:
        talk.user(dice.choice([", ", " and "]).join(f"{_words(p)} {w}" for p, w in zip(absent, replies, strict=True)))
    talk.told([(tool, arguments)], talk.call([(tool, arguments)]))
    return None


def missing_tool(talk: Talk, tool: Tool) -> None:
    """No tool does what is asked for, and the assistant says so."""
    dice = talk.dice
    near = [each for each in talk.pool if each.world == tool.world and each is not tool]
    talk.show(dice.sample(near, min(len(near), dice.randint(0, 3))), without=[tool])
    arguments = draw(tool, dice)
    talk.user(sentence([request(tool, said(tool, arguments, dice), dice)], dice))
    could = smalltalk.abilities([each.tool for each in talk.shown.values()], dice, 2)
    talk.says(
        dice.expand(dice.choice(smalltalk.NO_TOOL)).replace("{}", could).replace("{does}", smalltalk.to_user(tool.does))
    )


def no_call(talk: Talk, tool: Tool) -> None:
    """Small talk, knowledge or a refusal: there are tools, but nothing to call."""
    talk.show([tool])
    asked, said_ = smalltalk.exchange([each.tool for each in talk.shown.values()], talk.dice)
    talk.user(asked)
    talk.says(said_)


def _pairs(tool: Tool, pool: Sequence[Tool]) -> list[tuple[Tool, tuple[str, Tool, Param]]]:
    """What a tool can be first or second of."""
    found = [(tool, each) for each in next_of(tool, pool)]
    if not found:
        found = [(first, each) for first in pool for each in next_of(first, [tool])]
    return found


def reference(kind: Kind, dice: Dice) -> str:
    """How an earlier result is meant."""
    noun = kind.ref.removeprefix("that ")
    short = "them" if noun in ("customer", "employee", "patient") else "it"
    return dice.choice([kind.ref, kind.ref, f"the {noun}", f"this {noun}", short])


def _words(param: Param) -> str:
    return param.names[0].replace("_", " ")


SCENARIOS: dict[str, tuple[Callable[[Talk, Tool], None], float]] = {
    "single": (single, 0.42),
    "parallel": (parallel, 0.12),
    "chain": (chain, 0.11),
    "follow_up": (follow_up, 0.10),
    "missing_argument": (missing_argument, 0.08),
    "missing_tool": (missing_tool, 0.09),
    "no_call": (no_call, 0.08),
}
"""By name, with their share of the conversations."""
