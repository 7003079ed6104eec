"""What agents that work on one case know together: typed fields, each with who said it and from where.

Writers never overwrite each other unseen: a write says which version it knew. Two sources that disagree are both kept,
until somebody decides between them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from stille.agents.errors import AgentError
from stille.agents.journal import Journal
from stille.agents.types import TRUSTED, Data, Json, Label, Labels, Message
from stille.errors import ConfigError

M = TypeVar("M", bound=BaseModel)


class VersionConflictError(AgentError):
    """A field has changed since it was read; nothing was written. Read it again.

    Attributes:
        version: that it has now.
    """

    def __init__(self, message: str, version: int):
        super().__init__(message)
        self.version = version


class Source(Data):
    """Where a value stands.

    Attributes:
        document: name or hash.
        page: from 1.
        box: left, top, right, bottom, in points of the page.
    """

    document: str
    page: int | None = Field(default=None, ge=1)
    box: tuple[float, float, float, float] | None = None


class Claim(Data):
    """What somebody said of a field.

    Attributes:
        version: of the field that it made, from 1.
        by: the agent, tool or person.
        at: in UTC.
        confidence: from 0 to 1, as its author sees it.
        settles: it decides between the claims before it.
    """

    field: str
    value: Json
    version: int
    by: str
    at: datetime
    source: Source | None = None
    confidence: float | None = Field(default=None, ge=0, le=1)
    labels: Labels = TRUSTED
    settles: bool = False


class Change(Data):
    """Of a field between two states of a blackboard: the values that hold, several if they disagree."""

    field: str
    before: tuple[Json, ...]
    after: tuple[Json, ...]


class Blackboard(Generic[M]):
    """Shared fields of a pydantic model.

    Args:
        schema: whose fields there are; a field that nobody wrote is not there yet, even if it is required.
    """

    def __init__(self, schema: type[M]):
        self.schema = schema
        self._history: list[Claim] = []  # of all fields, in order
        self._types = {name: TypeAdapter(_annotated(field)) for name, field in schema.model_fields.items()}

    @property
    def version(self) -> int:
        """Number of writes so far."""
        return len(self._history)

    def field_version(self, field: str) -> int:
        """Of one field; 0: nobody wrote it."""
        return len(self.history(field))

    def write(
        self,
        field: str,
        value: Any,
        *,
        by: str,
        expected_version: int | None = None,
        source: Source | None = None,
        confidence: float | None = None,
        labels: Labels = TRUSTED,
        settles: bool = False,
        at: datetime | None = None,
    ) -> Claim:
        """Say what a field is. A claim replaces the author's earlier ones from the same document; one that differs from
        what others say stands beside theirs, unless it `settles` it.

        Args:
            expected_version: that the author knew of this field; None: of no matter.
            at: None: now. A run that is resumed has to give the same as before.

        Raises:
            VersionConflictError: the field has another version.
            ConfigError: there is no such field, or the value is not of its type.
        """
        known = self.field_version(field)
        if expected_version is not None and expected_version != known:
            raise VersionConflictError(
                f"{field} has version {known}, but version {expected_version} was expected; read it again", known
            )
        try:
            plain = to_jsonable_python(self._types[field].validate_python(value))
        except ValidationError as error:
            raise ConfigError(f"{field} cannot be {value!r}: {_problems(error)}") from error
        claim = Claim(
            field=field,
            value=plain,
            version=known + 1,
            by=by,
            at=at or datetime.now(UTC),
            source=source,
            confidence=confidence,
            labels=labels,
            settles=settles,
        )
        self._history.append(claim)
        return claim

    def history(self, field: str) -> list[Claim]:
        """All that was ever said of a field, in order."""
        if field not in self._types:
            raise ConfigError(f"there is no field {field!r}, only {', '.join(self._types)}")
        return [claim for claim in self._history if claim.field == field]

    def claims(self, field: str, version: int | None = None) -> list[Claim]:
        """What holds of a field: one claim per author and document since it was settled last.

        Args:
            version: of the blackboard; None: now.
        """
        holding: dict[tuple[str, str | None], Claim] = {}
        self.history(field)
        for claim in self._history[:version]:
            if claim.field == field:
                if claim.settles:
                    holding.clear()
                holding[claim.by, claim.source.document if claim.source else None] = claim
        return sorted(holding.values(), key=lambda claim: claim.version)

    def conflicts(self) -> dict[str, list[Claim]]:
        """Fields whose claims disagree, with these."""
        found = {field: self.claims(field) for field in self._types}
        return {field: claims for field, claims in found.items() if len(_values(claims)) > 1}

    def value(self, field: str) -> Any:
        """As the schema has it; the default if nobody wrote it.

        Raises:
            ConfigError: its sources disagree, or it is missing.
        """
        values = _values(self.claims(field))
        if len(values) > 1:
            raise ConfigError(f"{field} is disputed: {', '.join(map(_text, values))}; write it with settles=True first")
        if values:
            return self._types[field].validate_json(_text(values[0]))
        info = self.schema.model_fields[field]
        if info.is_required():
            raise ConfigError(f"{field} is missing: nobody wrote it yet")
        return info.get_default(call_default_factory=True, validated_data={})

    def model(self) -> M:
        """All of it.

        Raises:
            ConfigError: a field is disputed or missing, or the model refuses them together.
        """
        known = {field: self.value(field) for field in self._types if self.claims(field) or self._is_required(field)}
        try:
            return self.schema.model_validate(known, by_name=True)
        except ValidationError as error:
            raise ConfigError(f"the fields do not go together: {_problems(error)}") from error

    def labels(self, fields: Iterable[str] | None = None) -> Labels:
        """Of all that holds in these fields, or in all."""
        chosen = self._types if fields is None else fields
        return frozenset[Label]().union(*(claim.labels for field in chosen for claim in self.claims(field)))

    def view(self, fields: Iterable[str] | None = None) -> Message:
        """For a prompt: what holds, where it stands and what is disputed, as a message with its labels."""
        shown: dict[str, Json] = {}
        chosen = list(self._types if fields is None else fields)
        for field in chosen:
            claims = self.claims(field)
            entries: list[Json] = [_shown(claim) for claim in claims]
            if len(_values(claims)) > 1:
                shown[field] = {"disputed": entries}
            elif entries:
                shown[field] = entries[-1]
        return Message(role="user", content=json.dumps(shown, ensure_ascii=False), labels=self.labels(chosen))

    def diff(self, version: int) -> list[Change]:
        """What has changed since the blackboard had this version."""
        if not 0 <= version <= self.version:
            raise ConfigError(f"version {version} is not from 0 to {self.version}")
        changes = []
        for field in self._types:
            before, after = (_values(self.claims(field, until)) for until in (version, None))
            if before != after:
                changes.append(Change(field=field, before=tuple(before), after=tuple(after)))
        return changes

    def to_json(self) -> Json:
        """All of its history."""
        return [claim.model_dump(mode="json") for claim in self._history]

    @classmethod
    def from_json(cls, schema: type[M], data: Json) -> Blackboard[M]:
        """Raises ConfigError if it is not the history of such a blackboard."""
        board = cls(schema)
        try:
            claims = TypeAdapter(list[Claim]).validate_json(json.dumps(data))
        except ValidationError as error:
            raise ConfigError(f"this is no history of a blackboard: {_problems(error)}") from error
        for claim in claims:
            fields = {name: getattr(claim, name) for name in Claim.model_fields if name != "version"}
            board.write(**fields, expected_version=claim.version - 1)
        return board

    async def record(self, journal: Journal, name: str = "blackboard") -> None:
        """Keep its state as a step of a run; when the run is resumed, it has the state that was kept."""

        async def state() -> Json:
            return self.to_json()

        kept = await journal.step(name, state)
        self._history = Blackboard.from_json(self.schema, kept)._history

    def _is_required(self, field: str) -> bool:
        return self.schema.model_fields[field].is_required()


def _annotated(field: Any) -> Any:
    return Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation


def _problems(error: ValidationError) -> str:
    return "; ".join(problem["msg"] for problem in error.errors(include_url=False))


def _values(claims: list[Claim]) -> list[Json]:
    """The different ones, in the order in which they were said."""
    return [json.loads(text) for text in dict.fromkeys(_text(claim.value) for claim in claims)]


def _text(value: Json) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _shown(claim: Claim) -> dict[str, Json]:
    shown: dict[str, Json] = {"value": claim.value, "by": claim.by}
    if claim.source is not None:
        shown["from"] = claim.source.document + (f", page {claim.source.page}" if claim.source.page else "")
    if claim.confidence is not None:
        shown["confidence"] = claim.confidence
    if claim.labels:
        shown["labels"] = sorted(claim.labels)  # type: ignore[assignment]
    return shown
