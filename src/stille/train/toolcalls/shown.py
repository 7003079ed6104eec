"""Tools as a model is told of them: under names of many styles, or masked: then descriptions alone say what they do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stille.train.toolcalls.dice import Dice
from stille.train.toolcalls.kinds import Kind
from stille.train.toolcalls.tools import Param, Tool
from stille.train.toolcalls.words import MASKS

STYLES = ("snake", "snake", "snake", "camel", "camel", "pascal", "kebab")


@dataclass(frozen=True)
class Shown:
    """A tool in a conversation.

    Attributes:
        tool: what it is.
        name: what it is called here.
        names: of its parameters, by those of the method.
        spec: as a request has it.
    """

    tool: Tool
    name: str
    names: Mapping[str, str]
    spec: dict[str, Any]

    def call(self, arguments: Mapping[str, Any], number: int) -> dict[str, Any]:
        """As part of an assistant's message; arguments in the order of the parameters."""
        given = {self.names[param.name]: arguments[param.name] for param in self.tool.params if param.name in arguments}
        return {"id": f"call_{number}", "type": "function", "function": {"name": self.name, "arguments": given}}


@dataclass(frozen=True)
class Style:
    """How the tools of a conversation are named.

    Attributes:
        case: snake, camel, pascal or kebab.
        prefix: whether names begin with that of the world.
        masked: whether names mean nothing.
        terse: whether parameters have no descriptions.
    """

    case: str
    prefix: bool
    masked: bool
    terse: bool

    @classmethod
    def draw(cls, dice: Dice) -> "Style":
        masked = dice.chance(0.15)
        return cls(dice.choice(STYLES), dice.chance(0.12), masked, dice.chance(0.25) and not masked)

    def write(self, words: Sequence[str]) -> str:
        if self.case == "kebab":
            return "-".join(words)
        if self.case == "snake":
            return "_".join(words)
        first = words[0] if self.case == "camel" else words[0].capitalize()
        return first + "".join(word.capitalize() for word in words[1:])


def show_all(tools: Sequence[Tool], dice: Dice) -> list[Shown]:
    """Tools in one style, under different names."""
    style, taken, found = Style.draw(dice), set(), []
    for tool in tools:
        while (name := _name(tool, style, dice)) in taken:
            style = Style(style.case, True, style.masked, style.terse)
        taken.add(name)
        found.append(_show(tool, name, style, dice))
    return found


def _name(tool: Tool, style: Style, dice: Dice) -> str:
    if style.masked:
        drawn = dice.sample(MASKS, 2)
        return style.write(dice.choice([drawn, [drawn[0], str(dice.randint(1, 99))]]))
    words = dice.choice(tool.names).split("_")
    return style.write([tool.world, *words] if style.prefix else words)


def _show(tool: Tool, name: str, style: Style, dice: Dice) -> Shown:
    names = {}
    for param in tool.params:
        drawn = dice.choice(MASKS).split("_") if style.masked else dice.choice(param.names).split("_")
        # JSON keys are seldom kebab or Pascal
        names[param.name] = Style("camel" if style.case in ("camel", "pascal") else "snake", False, False, False).write(
            drawn if style.masked or dice.chance(0.5) else param.names[0].split("_")
        )
    if len(set(names.values())) < len(names):
        names = {param.name: f"{names[param.name]}{i}" for i, param in enumerate(tool.params, 1)}
    properties = {names[param.name]: _schema(param, style, dice) for param in tool.params}
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if required := [names[param.name] for param in tool.params if param.required]:
        parameters["required"] = required
    function = {"name": name, "description": dice.expand(tool.told), "parameters": parameters}
    return Shown(tool, name, names, {"type": "function", "function": function})


def _schema(param: Param, style: Style, dice: Dice) -> dict[str, Any]:
    told, kind = dice.expand(param.told), param.kind
    if is_clock(kind):
        told += " (HH:MM)"
    elif kind.schema.get("format") == "date" and dice.chance(0.5):
        told += " (YYYY-MM-DD)"
    described = {} if style.terse and not is_clock(kind) else {"description": told[0].upper() + told[1:]}
    return {**kind.schema, **described}


def is_clock(kind: Kind) -> bool:
    return kind.say.__name__ == "say_time"
