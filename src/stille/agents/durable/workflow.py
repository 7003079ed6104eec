"""Functions as workflows: their names, and the types of what they take and give."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, get_type_hints, overload

from pydantic import TypeAdapter, ValidationError

from stille.agents.types import Json
from stille.errors import ConfigError, InvalidRequestError


class Workflow:
    """A workflow function with its name, and the types of what it takes and gives. Made by `workflow`."""

    def __init__(self, function: Callable[..., Awaitable[Any]], name: str | None = None):
        if not inspect.iscoroutinefunction(function):
            raise ConfigError(f"workflow {function!r} has to be an async function whose first argument is a journal")
        self.function = function
        self.name = name or function.__name__
        self.signature = inspect.signature(function)
        self.signature = self.signature.replace(parameters=list(self.signature.parameters.values())[1:])
        hints = get_type_hints(function, include_extras=True)
        self._types = {name: TypeAdapter(hints.get(name, Any)) for name in self.signature.parameters}
        self._result = TypeAdapter(hints.get("return", Any))

    async def __call__(self, journal: Any, *args: Any, **kwargs: Any) -> Any:
        return await self.function(journal, *args, **kwargs)

    def dump(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Json]:
        """Arguments as JSON.

        Raises:
            InvalidRequestError: they do not fit the function.
        """
        try:
            given = self.signature.bind(*args, **kwargs).arguments
            good = {name: self._types[name].validate_python(value) for name, value in given.items()}
            return {name: self._types[name].dump_python(value, mode="json") for name, value in good.items()}
        except (TypeError, ValueError) as error:
            raise InvalidRequestError(f"workflow {self.name}: {error}") from error

    async def run(self, journal: Any, inputs: dict[str, Json]) -> Json:
        """Run it on arguments that are JSON; its result as JSON."""
        try:
            arguments = {name: self._types[name].validate_python(value) for name, value in inputs.items()}
        except (KeyError, ValidationError) as error:
            raise InvalidRequestError(f"workflow {self.name}: {error}") from error
        return self._result.dump_python(await self.function(journal, **arguments), mode="json")


@overload
def workflow(function: Callable[..., Awaitable[Any]]) -> Workflow: ...
@overload
def workflow(*, name: str) -> Callable[[Callable[..., Awaitable[Any]]], Workflow]: ...
def workflow(function: Any = None, *, name: str | None = None) -> Any:
    """Make an async function a workflow. Its first argument is the journal; the others, and its result, are of types
    that pydantic can make JSON of."""
    return Workflow(function) if function is not None else lambda function: Workflow(function, name)


def version_of(workflows: Sequence[Workflow]) -> str:
    """A hash of the workflows' source.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        sources = sorted(f"{flow.name}\n{inspect.getsource(flow.function)}" for flow in workflows)
    except OSError as error:
        raise ConfigError("the workflows' source cannot be read for a version; give one: version=...") from error
    return hashlib.sha256("\0".join(sources).encode()).hexdigest()[:16]
