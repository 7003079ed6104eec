"""What may flow where: a policy as data. `stille.agents.enforcement` holds agents to it.

version: 1
tools:
  search_contacts: {returns: []}
  read_mail: {returns: [untrusted, personal], trusted_fields: ["*.id"]}
  send_mail:
    requested: ['\\b(send|write|reply)\\b']      # the user spoke of it
    accepts: [untrusted, personal]               # subject and text may be anything
    parameters:
      to: [{in_trusted: true}, {accepts: [untrusted], pattern: '[^@\\s]+@example\\.com'}]
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import pydantic
from pydantic import Field, field_validator, model_validator

from stille.agents.types import Data, Labels
from stille.errors import ConfigError


class Described(Protocol):
    """A tool, as far as a policy names it: a `Tool` or a `ToolSpec`."""

    @property
    def name(self) -> str: ...
    @property
    def parameters(self) -> Mapping[str, Any]: ...


class ValueRule(Data):
    """What a value has to be; all that is given has to hold, for each element of a list.

    Attributes:
        accepts: labels that it may carry. A value that stands in trusted data is not untrusted.
        in_trusted: it has to stand in trusted data, even if nothing untrusted is around.
        pieces: with `in_trusted`, a text may be put together from so many pieces of trusted data ("Dinner at " as the
            user said it, and a name).
        asked: it has to stand in a trusted message of the user: what binds or destroys is named by nobody else.
        found_in: it has to stand in a result of one of these tools, whatever its labels.
        requested: regular expressions; a trusted message of the user has to contain one.
        values: it is one of these.
        pattern: regular expression that matches all of it.
        minimum, maximum: it is a number from here to there.
    """

    accepts: Labels = frozenset({"personal"})
    in_trusted: bool = False
    pieces: int = Field(default=1, ge=1)
    asked: bool = False
    found_in: tuple[str, ...] = ()
    requested: tuple[str, ...] = ()
    values: tuple[bool | int | float | str, ...] | None = None
    pattern: str | None = None
    minimum: float | None = None
    maximum: float | None = None

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        return pattern if pattern is None else _regex(pattern)

    @field_validator("requested")
    @classmethod
    def _compile(cls, requested: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_regex(pattern) for pattern in requested)

    @model_validator(mode="after")
    def _in_order(self) -> ValueRule:
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum:g} is above maximum {self.maximum:g}")
        if self.pieces > 1 and not self.in_trusted:
            raise ValueError("pieces are those of trusted data: add in_trusted: true")
        return self


class ToolRule(Data):
    """About one tool.

    Attributes:
        enabled: False: never called.
        returns: labels of its results, whatever its arguments were. None: what the tool says, and the labels of the
            arguments, because a result may repeat them.
        trusted_fields: parts of its results that are trusted data although the rest is not, as paths of names,
            indices and `*`: `contacts.*.email`.
        when_untrusted: while the conversation carries untrusted data: "check" the arguments, "approve" by a person
            what passes the check, or "deny" all calls.
        violation: whether arguments whose labels are not accepted are refused, or a person is asked.
        requested: regular expressions, case ignored. While untrusted data is around, a trusted message of the user has
            to contain one: nobody else can ask for this kind of action.
        accepts: labels that may flow into parameters without rules of their own. None: untrusted and personal if the
            tool has no effect, else personal.
        parameters: rules by name; one of those listed has to hold.
        secrets: names of those that it is given in place of their handles.
    """

    enabled: bool = True
    returns: Labels | None = None
    trusted_fields: tuple[str, ...] = ()
    when_untrusted: Literal["check", "approve", "deny"] = "check"
    violation: Literal["deny", "approve"] = "deny"
    requested: tuple[str, ...] = ()
    accepts: Labels | None = None
    parameters: dict[str, tuple[ValueRule, ...]] = Field(default_factory=dict)
    secrets: frozenset[str] = frozenset()

    @field_validator("requested")
    @classmethod
    def _compile(cls, requested: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_regex(pattern) for pattern in requested)

    @field_validator("parameters")
    @classmethod
    def _not_empty(cls, parameters: dict[str, tuple[ValueRule, ...]]) -> dict[str, tuple[ValueRule, ...]]:
        for name, rules in parameters.items():
            if not rules:
                raise ValueError(
                    f"parameter {name!r} has no rule, so that no value could hold; leave it out, or add one"
                )
        return parameters


class Policy(Data):
    """Rules by tool. A tool without one is held to `ToolRule()`, or refused if `unlisted` says so."""

    version: Literal[1] = 1
    unlisted: Literal["check", "deny"] = "check"
    tools: dict[str, ToolRule] = Field(default_factory=dict)

    @classmethod
    def parse(cls, data: object, source: str = "policy") -> Policy:
        """Raises ConfigError, which names each place that is wrong."""
        try:
            return cls.model_validate(data)
        except pydantic.ValidationError as error:
            raise ConfigError(_explain(error, source)) from error

    @classmethod
    def load(cls, path: str | Path) -> Policy:
        """Of a YAML or JSON file.

        Raises:
            ConfigError: it cannot be read, or is wrong; the message names the place.
        """
        import yaml

        try:
            data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"{path} cannot be read as YAML or JSON: {error}") from error
        return cls.parse({} if data is None else data, str(path))

    def check_names(self, tools: Iterable[Described]) -> None:
        """Raises ConfigError if a rule names a tool or parameter that there is not: it would protect nothing."""
        known = {tool.name: tool for tool in tools}
        for name, rule in self.tools.items():
            if name not in known:
                raise ConfigError(f"policy: tools.{name}: there is no such tool, only {', '.join(sorted(known))}")
            named = [tool for rules in rule.parameters.values() for one in rules for tool in one.found_in]
            if unknown := set(named) - known.keys():
                raise ConfigError(f"policy: tools.{name}: found_in names {min(unknown)!r}, but there is no such tool")
            parameters = known[name].parameters.get("properties", {})
            if unknown := rule.parameters.keys() - parameters.keys():
                raise ConfigError(
                    f"policy: tools.{name}.parameters.{min(unknown)}: there is no such parameter, only "
                    f"{', '.join(parameters)}"
                )

    def rule(self, tool: str) -> ToolRule:
        return self.tools.get(tool) or ToolRule(enabled=self.unlisted == "check")


def _regex(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
    return pattern


def _explain(error: pydantic.ValidationError, source: str) -> str:
    lines = []
    for problem in error.errors(include_url=False):
        place = ".".join(str(part) for part in problem["loc"]) or "(top)"
        lines.append(f"{place}: {problem['msg']}, got {str(problem['input'])[:80]!r}")
    return f"{source}: " + "; ".join(lines)
