"""Values that no model, trace or error may show: they go by handles, `{{secret:name}}`."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar
from urllib.parse import quote

from pydantic import BaseModel

from stille.errors import ConfigError

T = TypeVar("T")

HANDLE = re.compile(r"\{\{secret:([A-Za-z0-9_.-]+)\}\}")
_LEAST = 6  # characters: a shorter value stands in too many innocent texts


class Secrets:
    """Registered values, by name."""

    def __init__(self, values: Mapping[str, str] | None = None):
        self._values: dict[str, str] = {}
        self._forms: list[tuple[str, str]] = []  # text, handle; the longest first
        for name, value in (values or {}).items():
            self.register(name, value)

    def register(self, name: str, value: str) -> str:
        """The handle of a secret.

        Raises:
            ConfigError: the name is not letters, digits, "_", "." and "-", or the value is too short to be replaced.
        """
        handle = f"{{{{secret:{name}}}}}"
        if not HANDLE.fullmatch(handle):
            raise ConfigError(f"secret name {name!r}: expected letters, digits, '_', '.' and '-'")
        if len(value) < _LEAST:
            raise ConfigError(f"secret {name!r} has {len(value)} characters; at least {_LEAST} are needed")
        self._values[name] = value
        encoded = base64.b64encode(value.encode()).decode().rstrip("=")
        forms = {
            value,
            json.dumps(value)[1:-1],
            json.dumps(value, ensure_ascii=False)[1:-1],
            quote(value, safe=""),
            encoded,
        }
        self._forms += [(form, handle) for form in forms]
        self._forms.sort(key=lambda pair: -len(pair[0]))
        return handle

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def redact(self, data: T) -> T:
        """Text, lists or objects with handles for secrets, be they plain or written for JSON, URLs or in base64."""
        if isinstance(data, str):
            for form, handle in self._forms:
                data = data.replace(form, handle)  # type: ignore[assignment]
            return data
        return _map(data, self.redact)

    def fill(self, data: T, names: Iterable[str]) -> T:
        """The opposite, for these secrets only."""
        allowed = {name: self._values[name] for name in names if name in self._values}
        if isinstance(data, str):
            return HANDLE.sub(lambda match: allowed.get(match[1], match[0]), data)  # type: ignore[return-value]
        return _map(data, lambda inner: self.fill(inner, allowed))


def _map(data: Any, change: Any) -> Any:
    if isinstance(data, BaseModel):
        return data.model_copy(update={name: change(getattr(data, name)) for name in type(data).model_fields})
    if isinstance(data, Mapping):
        return {change(name): change(value) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return type(data)(change(value) for value in data)
    return data
