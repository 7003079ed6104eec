"""Arguments of calls as models write them: reading them, and holding them against the tools' schemas."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from stille.agents.types import Json, ToolSpec


def parsed_arguments(text: str) -> dict[str, Json]:
    """The object that a JSON text says; empty text is an empty one. A number that Python cannot hold stays text, which
    no schema of a number allows.

    Raises:
        ValueError: it is no JSON, or something else than an object.
    """
    try:
        read = json.loads(text or "{}", parse_float=_float, parse_int=_int, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(read, dict):
        raise ValueError(f"expected an object, got {text[:60]}")
    return read


def misfit(arguments: Mapping[str, Any], tool: ToolSpec) -> str | None:
    """What is wrong with a call's arguments, by the tool's JSON schema; None: nothing."""
    import referencing  # these here, because only models whose calls have to be checked need them
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match
    from jsonschema.validators import validator_for

    schema = dict(tool.parameters)
    if "properties" in schema and "additionalProperties" not in schema and "patternProperties" not in schema:
        unknown = sorted(set(arguments) - set(schema["properties"]))
        if unknown:
            return f"there is no argument {unknown[0]!r}; it takes {sorted(schema['properties'])}"
    validator = validator_for(schema, Draft202012Validator)(schema, registry=referencing.Registry())
    found = best_match(validator.iter_errors(arguments))
    if found is None:
        return None
    place = "".join(f"[{step!r}]" for step in found.absolute_path)
    return f"{'arguments' + place}: {found.message[:300]}"


def _float(text: str) -> float | str:
    value = float(text)
    return value if math.isfinite(value) else text


def _int(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:  # thousands of digits
        return text


def _refuse(text: str) -> float:
    raise ValueError(f"{text} is no JSON")
