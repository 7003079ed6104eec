"""The lending policy: rules as data, read from YAML with the line of whatever is wrong in it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from examples.loan_underwriting.compliance.assess import Measure

POLICY = Path(__file__).with_name("policy.yaml")
Outcome = Literal["approve", "decline", "refer"]
MEASURES = frozenset(
    (
        "documents_missing", "documents_unknown", "unsure_fields", "instructions_in_text", "slip_error",
        "statement_error", "income_gap", "wages_gap", "undisclosed_debt", "names_agree", "numbers_agree",
        "identity_known", "identity_days_left", "card_matches", "employer_known", "sanction_similarity", "bureau_file",
        "amount", "debt_to_income", "residual_income",
    )
)  # fmt: skip
"""What assess.measures gives."""


class PolicyFileError(ValueError):
    """A policy file is not a policy; the message says where."""


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Rule(_Data):
    """One thing that has to hold of a measure. Exactly one of `at_most`, `at_least` and `is` says what."""

    id: str = Field(pattern=r"^[a-z][a-z0-9-]*$")
    measure: str
    at_most: int | None = None
    at_least: int | None = None
    equals: bool | None = Field(default=None, alias="is")
    otherwise: Literal["decline", "refer"]
    group: Literal["documents", "consistency", "identity", "sanctions", "affordability"]
    reason: str = Field(min_length=10)

    @model_validator(mode="after")
    def _one_condition(self) -> Rule:
        given = [
            n for n, v in (("at_most", self.at_most), ("at_least", self.at_least), ("is", self.equals)) if v is not None
        ]
        if len(given) != 1:
            raise ValueError(f"rule {self.id!r} has {given or 'no condition'}, expected one of at_most, at_least, is")
        if self.measure not in MEASURES:
            raise ValueError(
                f"rule {self.id!r} is about {self.measure!r}, expected one of {', '.join(sorted(MEASURES))}"
            )
        return self

    def holds(self, value: Measure) -> bool | None:
        """None if the measure is not known."""
        if value is None:
            return None
        if self.equals is not None:
            return bool(value) == self.equals
        return value <= self.at_most if self.at_most is not None else value >= (self.at_least or 0)

    @property
    def enough(self) -> int | bool:
        """A value with which it just holds."""
        return next(v for v in (self.equals, self.at_most, self.at_least) if v is not None)


class ScoreBands(_Data):
    approve_from: int
    decline_below: int
    reasons: int = Field(ge=1, le=8)

    @model_validator(mode="after")
    def _ordered(self) -> ScoreBands:
        if self.decline_below > self.approve_from:
            raise ValueError(f"decline_below {self.decline_below} is above approve_from {self.approve_from}")
        return self


class StraightThrough(_Data):
    """Which decisions need no person: outcomes, and amounts up to so many cents."""

    outcomes: tuple[Literal["approve", "decline"], ...]
    up_to: int = Field(ge=0)


class Policy(_Data):
    version: date
    score: ScoreBands
    straight_through: StraightThrough
    rules: tuple[Rule, ...] = Field(min_length=1)

    @field_validator("rules")
    @classmethod
    def _different(cls, rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
        ids = [rule.id for rule in rules]
        twice = sorted({id for id in ids if ids.count(id) > 1})
        if twice:
            raise ValueError(f"rules with the same id: {', '.join(twice)}")
        return rules


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that occurs twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if keys.count(key.value) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} occurs twice", key.start_mark)
        return super().construct_mapping(node, deep)


def _line(node: yaml.Node | None, path: tuple[Any, ...]) -> int:
    """The line of what a path of keys and positions leads to, or of the last thing on the way."""
    line = node.start_mark.line + 1 if node else 1
    for part in path:
        if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
        elif isinstance(node, yaml.MappingNode):
            pair = next(((k, v) for k, v in node.value if k.value == part), None)
            if pair is None:
                break
            line, node = pair[0].start_mark.line + 1, pair[1]
            continue
        else:
            break
        line = node.start_mark.line + 1 if node else line
    return line


def load_policy(path: Path = POLICY) -> Policy:
    """
    Raises:
        PolicyFileError: with a line for each thing that is wrong.
    """
    text = path.read_text()
    try:
        data = yaml.load(text, _UniqueKeys)  # a SafeLoader
        root = yaml.compose(text, yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise PolicyFileError(f"{path}:{line}: {error.problem}") from None
    try:
        return Policy.model_validate(data)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            where = ".".join(str(part) for part in problem["loc"])
            lines.append(f"{path}:{_line(root, problem['loc'])}: {where}: {problem['msg']}")
        raise PolicyFileError("\n".join(lines)) from None


def check(policy: Policy, measures: Mapping[str, Measure]) -> dict[str, bool | None]:
    """Whether each rule holds, by its id."""
    return {rule.id: rule.holds(measures.get(rule.measure)) for rule in policy.rules}
