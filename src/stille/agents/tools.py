"""Tools: typed functions that models call."""

from __future__ import annotations

import asyncio
import decimal
import hashlib
import inspect
import json
import re
import time
import typing
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypedDict, Unpack, overload

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.fields import FieldInfo
from pydantic_core import PydanticSerializationError, to_jsonable_python

from stille.agents.errors import AgentError, PolicyError, ToolError, ToolFailedError
from stille.agents.resilience import NO_RETRY, Breaker, BreakerOpenError, Limiter, Retry, TransientError, in_thread
from stille.agents.types import TRUSTED, Effect, Json, Label, Labels, ToolSpec

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PREFIX = "argument_"  # of field names, so that a parameter may be called `schema`, `copy` or `_x`


@dataclass(frozen=True, kw_only=True)
class ToolContext:
    """What a tool may want to know of the call.

    Attributes:
        call_id: unique within the run.
        idempotency_key: of the effect; the other side does nothing a second time for the same key.
        labels: of the arguments.
        tenant: for whom the run works.
        deadline: `time.time()` by which the call has to end.
    """

    run_id: str = ""
    call_id: str = ""
    idempotency_key: str | None = None
    labels: Labels = TRUSTED
    tenant: str | None = None
    deadline: float | None = None


class Quoted:
    """Marks a parameter that holds words of the conversation, such as a name: `customer: Annotated[str, Quoted()]`, or
    `people: list[Annotated[str, Quoted()]]`. A model of the engine can then write nothing else there, or the default.
    """

    def __get_pydantic_json_schema__(self, core: Any, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        return {**handler(core), "x-quoted": True}


@dataclass(frozen=True, kw_only=True, eq=False)
class Tool:
    """Something that a model may call. Made of a function by `tool`, or of a foreign service.

    Attributes:
        parameters: JSON schema of the arguments, of type object.
        run: does it, with the checked arguments. A ToolError says that nothing was done, and is told to the model.
        arguments: model that checks and converts arguments, aliases being their names; None: they are only checked
            against `parameters`.
        effect: what calling it does.
        requires_approval: whether a person has to allow a call; see `needs_approval`.
        timeout_s: of one attempt. A function that is not async goes on in its thread when its time is over.
        retry: None: two retries, and none if the effect is "once".
        breaker: may be shared by several tools.
        max_concurrency: attempts at a time. A Limiter may be shared by several tools.
        cost_micros: what a call costs, in micro-units of money; reserved before it is made.
        returns: labels of its results, and of its errors' messages.
        key: names of the arguments that make up what the effect *is*; None: all.
        lookup: asks the other side for the result of an effect by its key; None if it never happened, and what was sent
            before cannot happen any more.
        source: where it comes from, such as a method and URL; part of its digest.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: ToolSpec(name="").parameters)
    run: Callable[[Any, ToolContext], Awaitable[Any]]
    arguments: type[BaseModel] | None = None
    effect: Effect = "none"
    requires_approval: bool | Callable[[dict[str, Any]], bool] = False
    timeout_s: float = 30.0
    retry: Retry | None = None
    breaker: Breaker | None = None
    max_concurrency: int | Limiter | None = None
    cost_micros: int = 0
    returns: Labels = TRUSTED
    key: tuple[str, ...] | None = None
    lookup: Callable[[str], Awaitable[Json | None]] | None = None
    source: str = ""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise TypeError(f"a tool's name is 1 to 64 letters, digits, '_' and '-'; got {self.name!r}")
        if self.effect not in typing.get_args(Effect):
            raise TypeError(f"tool {self.name}: effect is one of {typing.get_args(Effect)}; got {self.effect!r}")
        if self.parameters.get("type") != "object":
            raise TypeError(f"tool {self.name}: parameters have to be a JSON schema of type object")
        if self.timeout_s <= 0 or self.cost_micros < 0:
            raise TypeError(f"tool {self.name}: timeout_s has to be above 0, cost_micros 0 or more")
        if isinstance(self.max_concurrency, int):  # a copy of the tool has to share it
            object.__setattr__(self, "max_concurrency", Limiter(self.max_concurrency))
        known = self.parameters.get("properties", {})
        if self.key is not None and (len(set(self.key)) < len(self.key) or not known.keys() >= set(self.key)):
            raise TypeError(
                f"tool {self.name}: key has to name parameters, each once ({', '.join(known)}); got {self.key}"
            )
        if self.effect == "once" and self.retry is not None and self.retry.attempts > 1:
            raise TypeError(
                f'tool {self.name}: an effect that must happen "once" cannot be retried; if the other side knows '
                'idempotency keys, declare it "idempotent"'
            )

    @cached_property
    def _validator(self) -> Any:
        import referencing
        from jsonschema.validators import Draft202012Validator, validator_for

        kind: Any = validator_for(self.parameters, Draft202012Validator)
        kind.check_schema(self.parameters)
        # An own registry: the default one downloads what a foreign schema refers to.
        return kind(dict(self.parameters), registry=referencing.Registry())

    def spec(self) -> ToolSpec:
        return ToolSpec(name=self.name, description=self.description, parameters=self.parameters)

    def checked(self, arguments: Mapping[str, Any]) -> dict[str, Json]:
        """The arguments as the tool will take them, defaults included.

        Raises:
            ToolError: they are wrong; the message names the parameter.
        """
        parsed = self._parse(arguments)
        return _canonical(parsed if isinstance(parsed, BaseModel) else {**_defaults(self.parameters), **parsed})

    def needs_approval(self, arguments: Mapping[str, Any]) -> bool:
        """Whether a person has to allow this call. Raises ToolError if the arguments are wrong."""
        if isinstance(self.requires_approval, bool):
            return self.requires_approval
        return bool(self.requires_approval(self.checked(arguments)))

    def effect_key(self, arguments: Mapping[str, Any], scope: str) -> str:
        """What the effect *is*: a hash of the tool's name, the arguments that matter, and a scope such as a case's id.

        The same for arguments that mean the same: a number given as text, or a default that is left out. A parameter
        with a default that is added later does not change the keys of calls without it.

        Raises:
            ToolError: the arguments are wrong.
        """
        parsed = self._parse(arguments)
        if isinstance(parsed, BaseModel):
            fields = type(parsed).model_fields.values()
            defaults = {str(each.alias): each.get_default() for each in fields if not each.is_required()}
        else:
            defaults = _defaults(self.parameters)
        # Only whole arguments are left out: a default inside one may be what tells two kinds of effect apart.
        given = {k: v for k, v in _canonical(parsed).items() if k not in defaults or not _same(v, defaults[k])}
        if self.key is not None:
            given = {k: v for k, v in given.items() if k in self.key}
        return _sha256([self.name, given, scope])

    async def call(self, arguments: Mapping[str, Any], context: ToolContext | None = None) -> Json:
        """The result of a call, as JSON.

        Raises:
            ToolError: the arguments are wrong, or the function says what is wrong with them.
            ToolFailedError: any other error, when retries are spent. Errors of agents pass unchanged.
        """
        context = context or ToolContext()
        parsed = self._parse(arguments)
        started = False

        async def attempt() -> Any:
            nonlocal started
            limit = self.max_concurrency if isinstance(self.max_concurrency, Limiter) else nullcontext()
            async with limit, self.breaker.guard(self.name) if self.breaker else nullcontext():
                before, started = started, True
                try:
                    async with asyncio.timeout(self.timeout_s):
                        return await self.run(parsed, context)
                except TransientError as error:
                    started = before or error.started
                    raise

        left = None if context.deadline is None else context.deadline - time.time()
        if left is not None and left <= 0:
            raise ToolFailedError(f"{self.name}: the call's deadline is over", started=False)
        retry = self.retry or (NO_RETRY if self.effect == "once" else Retry())
        deadline = asyncio.timeout(left)
        try:
            async with deadline:
                result = await retry.run(attempt, name=self.name)
            return to_json(result)
        except TimeoutError as error:
            over = "the call's deadline is over" if deadline.expired() else f"no result within {self.timeout_s:g} s"
            why = str(error) or over
            raise ToolFailedError(f"{self.name}: {why}", started=started) from error
        except (TransientError, BreakerOpenError) as error:
            raise ToolFailedError(f"{self.name}: {error}", started=started) from error
        except AgentError:
            raise
        except Exception as error:
            raise ToolFailedError(f"{self.name}: {type(error).__name__}: {error}", started=started) from error

    def _parse(self, arguments: Mapping[str, Any]) -> BaseModel | dict[str, Json]:
        if not isinstance(arguments, Mapping):
            raise ToolError(f"{self.name}: arguments have to be an object; got {_short(arguments)}")
        if self.arguments is not None:
            try:
                return self.arguments.model_validate(dict(arguments))
            except ValidationError as error:
                problems = [(e["loc"], e["msg"], e["input"]) for e in error.errors(include_url=False)]
        else:
            given = dict(arguments)
            try:
                problems = [(e.absolute_path, e.message[:200], e.instance) for e in self._validator.iter_errors(given)]
            except Exception as error:  # a foreign schema: bad patterns, references to nowhere
                raise ToolFailedError(f"{self.name}: its JSON schema cannot be used: {error}", started=False) from error
            if not problems:
                return given
        told = [f"{'.'.join(map(str, at)) or 'arguments'}: {what} (got {_short(got)})" for at, what, got in problems]
        raise ToolError(f"{self.name}: {'; '.join(told[:5])}")


class ToolOptions(TypedDict, total=False):
    """What `tool` takes; see the attributes of `Tool`."""

    name: str
    description: str
    effect: Effect
    requires_approval: bool | Callable[[dict[str, Any]], bool]
    timeout_s: float
    retry: Retry
    breaker: Breaker
    max_concurrency: int | Limiter
    cost_micros: int
    returns: Iterable[Label]
    key: tuple[str, ...]
    lookup: Callable[[str], Awaitable[Json | None]]


@overload
def tool(function: Callable[..., Any], /) -> Tool: ...
@overload
def tool(**options: Unpack[ToolOptions]) -> Callable[[Callable[..., Any]], Tool]: ...
def tool(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Makes a tool of a typed function, async or not: `@tool` or `@tool(effect="once", ...)`.

    Types and defaults give the schema; the docstring (Google style) describes the tool and, under `Args:`, its
    parameters. A parameter of type `ToolContext` is filled in and not shown to the model.

    Raises:
        TypeError: the function cannot be called with named, typed arguments.
    """
    if function is None:
        return lambda decorated: _from_function(decorated, typing.cast(ToolOptions, options))
    return _from_function(function, {})


def by_name(tools: Iterable[Tool]) -> dict[str, Tool]:
    """Tools by their names. Raises TypeError if two have the same."""
    named: dict[str, Tool] = {}
    for each in tools:
        if not isinstance(each, Tool):
            raise TypeError(f"not a tool: {each!r}; decorate the function with @tool")
        if each.name in named:
            raise TypeError(f"two tools are called {each.name!r}; give one of them another name")
        named[each.name] = each
    return named


def digest(tools: Iterable[Tool]) -> dict[str, str]:
    """SHA-256 of each tool's name, description, parameters, effect and source, to pin what was reviewed."""
    return {
        name: _sha256([name, each.description, dict(each.parameters), each.effect, each.source])
        for name, each in sorted(by_name(tools).items())
    }


def check_pins(tools: Iterable[Tool], pinned: Mapping[str, str], origin: str) -> None:
    """Raises PolicyError unless the tools are exactly those that were pinned; the message names those that differ."""
    found = digest(tools)
    if found != dict(pinned):
        changed = sorted(name for name in found.keys() & pinned.keys() if found[name] != pinned[name])
        kinds = {"changed": changed, "new": sorted(found.keys() - pinned), "gone": sorted(pinned.keys() - found)}
        differ = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names)
        raise PolicyError(f"{origin} is not what was pinned ({differ}); review its tools, then pin digest(tools) anew")


def _from_function(function: Callable[..., Any], options: ToolOptions) -> Tool:
    import docstring_parser

    name = options.get("name") or getattr(function, "__name__", type(function).__name__)
    doc = docstring_parser.parse(inspect.getdoc(function) or "", docstring_parser.DocstringStyle.GOOGLE)
    try:
        target = function if inspect.isroutine(function) else type(function).__call__
        hints = typing.get_type_hints(target, include_extras=True)
    except NameError as error:
        raise TypeError(f"tool {name}: an annotation cannot be resolved ({error}); define it in the module") from error
    fields: dict[str, Any] = {}
    context_name = None
    for each in inspect.signature(function).parameters.values():
        if each.kind not in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY):
            raise TypeError(f"tool {name}: {each} cannot be given by name; only plain parameters can be used")
        if each.name not in hints or each.annotation is each.empty:
            raise TypeError(f"tool {name}: parameter {each.name!r} needs a type annotation")
        hint = hints[each.name]
        if hint is ToolContext or ToolContext in typing.get_args(hint):
            if context_name is not None:
                raise TypeError(f"tool {name}: {context_name!r} and {each.name!r} are both of type ToolContext")
            context_name = each.name
            continue
        if isinstance(each.default, FieldInfo):
            raise TypeError(f"tool {name}: write {each.name}: Annotated[..., Field(...)], with the default after '='")
        default = ... if each.default is each.empty else each.default
        fields[_PREFIX + each.name] = (hint, Field(default, alias=each.name))
    try:
        model = create_model(name, __config__=ConfigDict(extra="forbid"), **fields)
        schema = _closed(model.model_json_schema(by_alias=True))
    except Exception as error:  # pydantic has many, for types that no JSON can stand for
        raise TypeError(f"tool {name}: a parameter's type has no JSON schema: {error}") from error
    schema.pop("title", None)
    schema.setdefault("properties", {})
    for described in doc.params:
        if described.arg_name in schema["properties"] and described.description:
            schema["properties"][described.arg_name].setdefault("description", described.description)
    for property_ in schema["properties"].values():
        property_.pop("title", None)
    is_async = inspect.iscoroutinefunction(target)

    async def run(parsed: BaseModel, context: ToolContext) -> Any:
        arguments = {each.removeprefix(_PREFIX): getattr(parsed, each) for each in fields}
        if context_name is not None:
            arguments[context_name] = context
        if is_async:
            return await function(**arguments)
        result = await in_thread(lambda: function(**arguments))
        return await result if inspect.isawaitable(result) else result

    text = "\n\n".join(part for part in (doc.short_description, doc.long_description) if part)
    rest: dict[str, Any] = {k: v for k, v in options.items() if k not in ("name", "description", "returns")}
    return Tool(
        name=name,
        description=options.get("description", text),
        parameters=schema,
        run=run,
        arguments=model,
        returns=frozenset(options.get("returns", ())),
        **rest,
    )


def to_json(value: Any) -> Json:
    """A result as JSON. Raises TypeError if it cannot be."""
    try:
        return to_jsonable_python(value, inf_nan_mode="null")
    except (PydanticSerializationError, ValueError) as error:  # ValueError: it contains itself
        raise TypeError(f"the result cannot be written as JSON: {error}") from error


def _same(a: Any, b: Any) -> bool:
    return _dumps(_canonical(a)) == _dumps(_canonical(b))


def _canonical(value: Any) -> Any:
    """JSON with one form for each meaning: 5 for 5.0, sets sorted, decimals without trailing zeros."""
    if isinstance(value, BaseModel):
        return _canonical(value.model_dump(by_alias=True))
    if isinstance(value, Mapping):
        return {str(_canonical(k)): _canonical(v) for k, v in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((_canonical(v) for v in value), key=_dumps)
    if isinstance(value, list | tuple):
        return [_canonical(v) for v in value]
    if isinstance(value, decimal.Decimal):
        return format(value.normalize(), "f")
    value = to_jsonable_python(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _dumps(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _sha256(value: Any) -> str:
    return hashlib.sha256(_dumps(_canonical(value)).encode("utf-8", "surrogatepass")).hexdigest()


def _defaults(schema: Mapping[str, Any]) -> dict[str, Any]:
    properties = schema.get("properties", {})
    return {k: v["default"] for k, v in properties.items() if isinstance(v, Mapping) and "default" in v}


def _closed(schema: Any) -> Any:
    """A schema whose objects with named properties allow no others: what a model need not write it shall not write."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {}
    for name, value in schema.items():
        if name in ("properties", "$defs"):
            closed[name] = {key: _closed(each) for key, each in value.items()}
        else:
            closed[name] = value if name in ("default", "const", "enum", "examples") else _closed(value)
    if closed.get("type") == "object" and "properties" in closed:
        closed.setdefault("additionalProperties", False)
    return closed


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
