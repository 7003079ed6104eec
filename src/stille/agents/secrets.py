"""Values that no model, journal, trace or error may show: they go by handles, `{{secret:name}}`."""

from __future__ import annotations

import base64
import json
import re
import traceback
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeVar
from urllib.parse import quote, quote_plus

from pydantic import BaseModel, SecretStr

from stille.agents.errors import ToolFailedError
from stille.agents.tools import to_json
from stille.agents.types import Json
from stille.errors import ConfigError

T = TypeVar("T")

HANDLE = re.compile(r"\{\{secret:([A-Za-z0-9_.-]+)\}\}")
_LEAST = 6  # characters: a shorter value stands in too many innocent texts


class Secrets:
    """Registered values, by name."""

    def __init__(self, values: Mapping[str, str] | None = None):
        self._values: dict[str, str] = {}
        self._shown: dict[str, str] = {}  # what a value may look like, or a handle: the handle
        self._pattern = re.compile(r"(?!)")
        for name, value in (values or {}).items():
            self.register(name, value)

    def register(self, name: str, value: str) -> str:
        """The handle of a secret.

        Raises:
            ConfigError: the name is not letters, digits, "_", "." and "-"; the value is too short to be replaced, or
                stands in a handle.
        """
        handle = f"{{{{secret:{name}}}}}"
        if not HANDLE.fullmatch(handle):
            raise ConfigError(f"secret name {name!r}: expected letters, digits, '_', '.' and '-'")
        if len(value) < _LEAST:
            raise ConfigError(f"secret {name!r} has {len(value)} characters; at least {_LEAST} are needed")
        values = {**self._values, name: value}
        handles = [f"{{{{secret:{each}}}}}" for each in values]
        if HANDLE.search(value) or any(each in shown for each in values.values() for shown in handles):
            raise ConfigError(f"secret {name!r}: no value may stand in a handle, such as {handle}, or contain one")
        self._values = values
        self._shown |= {handle: handle, **dict.fromkeys(_forms(value), handle)}
        self._pattern = re.compile("|".join(map(re.escape, sorted(self._shown, key=len, reverse=True))))
        return handle

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __bool__(self) -> bool:
        return bool(self._values)

    def redact(self, data: T) -> T:
        """Text, lists or objects with handles for secrets, be they plain or written for JSON, Python, URLs or in
        base64."""
        if isinstance(data, str):
            return self._pattern.sub(lambda match: self._shown[match[0]], data)  # type: ignore[return-value]
        if isinstance(data, int | float) and not isinstance(data, bool):
            text = str(data)
            return data if self.redact(text) == text else self.redact(text)  # type: ignore[return-value]
        return _map(data, self.redact)

    def fill(self, data: T, names: Iterable[str]) -> T:
        """The opposite, for these secrets only."""
        allowed = {name: self._values[name] for name in names if name in self._values}
        if isinstance(data, str):
            return HANDLE.sub(lambda match: allowed.get(match[1], match[0]), data)  # type: ignore[return-value]
        return _map(data, lambda inner: self.fill(inner, allowed))

    def sealed(self, name: str, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Json]]:
        """A function that gives JSON, in which no secret shows, nor in what it raises; `name` is for errors."""

        async def sealed(*arguments: Any) -> Json:
            try:
                return self.redact(to_json(await call(*arguments)))
            except Exception as error:
                raised = error if self._is_clean(error) else self._cleaned(name, error)
            raise raised  # here, where what was cleaned has no context

        return sealed

    def _is_clean(self, error: Exception) -> bool:
        text = "".join(traceback.format_exception(error))
        told = [repr(error), *(each for each in vars(error).values() if isinstance(each, str))]
        return self.redact(text) == text and self.redact(told) == told

    def _cleaned(self, name: str, error: Exception) -> Exception:
        """The same error without its causes, so that it is retried as it would be; if it shows a secret all the same,
        one that only quotes it."""
        error.args = tuple(self.redact(part) for part in error.args)
        for attribute, value in vars(error).items():
            setattr(error, attribute, self.redact(value) if isinstance(value, str) else value)
        error.__traceback__ = error.__cause__ = error.__context__ = None
        error.__dict__.pop("__notes__", None)
        if self._is_clean(error):
            return error
        text = f"{name}: {type(error).__name__}: {self.redact(str(error))}"
        return ToolFailedError(text, started=bool(getattr(error, "started", True)))


def _forms(value: str) -> set[str]:
    """What texts that contain a value may show of it."""
    raw = value.encode("utf-8", "surrogatepass")
    forms = {value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]}
    forms |= {repr(value)[1:-1], ascii(value)[1:-1], quote(raw), quote(raw, safe=""), quote_plus(raw)}
    encoded = {base64.b64encode(raw).decode().rstrip("=")}
    for before in range(3):  # bytes, modulo 3, of what it follows; the characters that depend on it alone
        text = base64.b64encode(bytes(before) + raw).decode()
        encoded.add(text[-(-before * 8 // 6) : (before + len(raw)) * 8 // 6])
    return forms | encoded | {text.translate(str.maketrans("+/", "-_")) for text in encoded}


def _map(data: Any, change: Any) -> Any:
    if isinstance(data, BaseModel):
        return data.model_copy(update={name: change(getattr(data, name)) for name in type(data).model_fields})
    if isinstance(data, SecretStr):
        return SecretStr(change(data.get_secret_value()))
    if isinstance(data, Mapping):
        return {change(name): change(value) for name, value in data.items()}
    if isinstance(data, list | tuple | set | frozenset):
        return type(data)(change(value) for value in data)
    return data
