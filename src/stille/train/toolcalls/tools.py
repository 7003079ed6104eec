"""Simulated worlds whose methods are tools: typed, with state, really executed."""

import inspect
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar, get_type_hints

from stille.train.toolcalls.dice import Dice, omissible, slots
from stille.train.toolcalls.kinds import Kind

F = TypeVar("F", bound=Callable[..., dict[str, Any]])
_MARK = "__tool__"


class ToolError(Exception):
    """What a tool answers when it cannot do what it was asked for; becomes its result."""


@dataclass(frozen=True)
class Param:
    """A parameter.

    Attributes:
        name: of the method's argument.
        names: others that it may be shown by, the first one among them.
        told: its description, with (choices|of words).
        kind: of its values.
        required: whether it has no default.
    """

    name: str
    names: tuple[str, ...]
    told: str
    kind: Kind
    required: bool


@dataclass(frozen=True, eq=False)
class Tool:
    """A method of a world, and how people ask for it.

    Attributes:
        world, name: where it is, and its method.
        names: it may be shown by, words with underscores.
        told: its description, with (choices|of words).
        does: in a few words, after "I can".
        params: in order.
        asks: templates of requests: what follows "please", or with "?" before it a whole sentence.
        says: templates of answers, from arguments and results.
        gives: results that later calls may need, and their kinds.
        effect: whether it changes something.
    """

    world: str
    name: str
    names: tuple[str, ...]
    told: str
    does: str
    params: tuple[Param, ...]
    asks: tuple[str, ...]
    says: tuple[str, ...]
    gives: Mapping[str, Kind]
    run: Callable[..., dict[str, Any]]

    @property
    def key(self) -> str:
        return f"{self.world}.{self.name}"

    def optional(self) -> frozenset[str]:
        return frozenset(param.name for param in self.params if not param.required)


def tool(
    names: str,
    told: str,
    does: str,
    params: str,
    asks: Sequence[str],
    says: Sequence[str],
    gives: Mapping[str, Any] | None = None,
) -> Callable[[F], F]:
    """Makes a method a tool.

    Args:
        names: separated by blanks.
        told: its description.
        does: what it does, after "I can".
        params: "name|other_name: description; ...", one for each argument.
        asks, says: see `Tool`.
        gives: of results, the annotated type.
    """

    def mark(function: F) -> F:
        setattr(function, _MARK, (names, told, does, params, tuple(asks), tuple(says), dict(gives or {})))
        return function

    return mark


class World:
    """State of a simulated place. What nobody has set follows from its seed, so it need not be made beforehand.

    Args:
        seed: of what is there.
    """

    name = ""

    def __init__(self, seed: int):
        self.seed = seed
        self.state: dict[tuple[str, ...], Any] = {}
        self.made = 0

    def chance(self, *key: object) -> int:
        """A number below 2**32 that belongs to a key."""
        return zlib.crc32(repr((self.seed, *key)).encode())

    def pick(self, values: Sequence[Any], *key: object) -> Any:
        return values[self.chance(*key) % len(values)]

    def number(self, low: int, high: int, *key: object) -> int:
        return low + self.chance(*key) % (high - low + 1)

    def get(self, *key: str, default: Any = None) -> Any:
        """What was set, else the default."""
        return self.state.get(key, default)

    def set(self, *key: str, to: Any) -> Any:
        self.state[key] = to
        return to

    def known(self, what: str, *key: str, of: int = 8) -> None:
        """One of so many keys is unknown, always the same ones.

        Raises:
            ToolError: this one, unless it was set.
        """
        if (what, *key) not in self.state and self.chance("known", what, *key) % of == 0:
            raise ToolError(f"no {what} {' '.join(key)} was found")

    def new(self, prefix: str) -> str:
        """An identifier that is not in use."""
        self.made += 1
        return f"{prefix}{self.number(100, 899, prefix) * 10 + self.made}"


def run(worlds: dict[str, World], each: Tool, arguments: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Execute a call in its world, which is made when it is first needed; an error is a result too."""
    world = worlds.get(each.world)
    if world is None:
        world = worlds[each.world] = WORLDS[each.world](seed)
    try:
        return each.run(world, **arguments)
    except ToolError as error:
        return {"error": str(error)}


WORLDS: dict[str, type[World]] = {}


def world(made: type[World]) -> type[World]:
    """Makes a class one of the worlds."""
    WORLDS[made.name] = made
    return made


@cache
def tools_of(name: str) -> tuple[Tool, ...]:
    """Tools of a world, in the order of their definition."""
    return tuple(_tool(name, f) for f in vars(WORLDS[name]).values() if hasattr(f, _MARK))


@cache
def all_tools() -> tuple[Tool, ...]:
    from stille.train.toolcalls import worlds  # noqa: F401 - registers them

    return tuple(each for name in WORLDS for each in tools_of(name))


def _tool(name: str, function: Any) -> Tool:
    names, told, does, written, asks, says, gives = getattr(function, _MARK)
    hints, signature = get_type_hints(function, include_extras=True), inspect.signature(function)
    described = dict(part.strip().split(": ", 1) for part in written.split(";")) if written else {}
    params = []
    for (tells, text), (argument, parameter) in zip(
        described.items(), list(signature.parameters.items())[1:], strict=True
    ):
        others = tells.split("|")
        assert others[0] == argument, f"{name}.{function.__name__}: {others[0]} is described where {argument} stands"
        params.append(
            Param(argument, tuple(others), text, kind_of(hints[argument]), parameter.default is parameter.empty)
        )
    known = {param.name for param in params}
    required = {param.name for param in params if param.required}
    for ask in asks:
        assert slots(ask) <= known, f"{function.__name__}: {ask} has {slots(ask) - known}"
        assert required <= slots(ask), f"{function.__name__}: {ask} lacks {required - slots(ask)}"
        assert (known - required) & slots(ask) <= omissible(ask), f"{function.__name__}: {ask} needs what is optional"
    return Tool(
        name, function.__name__, tuple(names.split()), told, does, tuple(params), asks, says,
        {key: kind_of(value) for key, value in gives.items()}, function,
    )  # fmt: skip


def kind_of(annotated: Any) -> Kind:
    return next(value for value in annotated.__metadata__ if isinstance(value, Kind))


def draw(each: Tool, dice: Dice) -> dict[str, Any]:
    """Arguments of a call: all that are required, others as often as not."""
    return {
        param.name: param.kind.sample(dice) for param in each.params if param.required or dice.chance(0.5)
    }  # fmt: skip
