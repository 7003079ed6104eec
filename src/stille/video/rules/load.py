"""Rules from YAML, with the line of whatever is wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from stille.video.errors import RulesError
from stille.video.rules.schema import Rules


def load_rules(path: str | os.PathLike[str]) -> Rules:
    """
    Raises:
        RulesError: with a line `file:line: field: what` for each thing that is wrong.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RulesError(f"{path}: cannot be read: {error}") from error
    return parse_rules(text, str(path))


def parse_rules(text: str, name: str = "rules") -> Rules:
    """As `load_rules`, of what an editor holds."""
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        problems = list(_doubles(root)) if root else [(1, "file", "it is empty, expected cameras, zones and rules")]
        data = loader.construct_document(root) if root else {}
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise RulesError(f"{name}:{mark.line + 1 if mark else 1}: file: {error.problem}") from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:  # unreadable bytes, impossible dates
        raise RulesError(f"{name}:1: file: {error}") from None
    finally:
        loader.dispose()
    rules: Rules | None = None
    try:
        rules = Rules.model_validate(data)
    except ValidationError as error:
        for found in error.errors():
            line, where = _place(root, found["loc"])
            problems.append((line, where or "file", found["msg"].removeprefix("Value error, ")))
    if problems or rules is None:
        raise RulesError("\n".join(f"{name}:{line}: {where}: {what}" for line, where, what in sorted(set(problems))))
    return rules


def _doubles(node: yaml.Node, where: str = "", visited: set[int] | None = None) -> Iterator[tuple[int, str, str]]:
    """Keys that occur twice in a mapping, of which YAML silently keeps the last. A node with aliases is seen once."""
    visited = set() if visited is None else visited
    if id(node) in visited:
        return
    visited.add(id(node))
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            path = f"{where}.{key.value}" if where else str(key.value)
            if key.value in seen:
                yield key.start_mark.line + 1, path, "the key occurs twice"
            seen.add(key.value if isinstance(key.value, str) else id(key))
            yield from _doubles(value, path, visited)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield from _doubles(value, f"{where}.{i}", visited)


def _place(node: yaml.Node | None, loc: tuple[Any, ...]) -> tuple[int, str]:
    """The line of what a path leads to, or of the last thing on the way, and the path as it is in the file."""
    line = node.start_mark.line + 1 if node else 1
    where = []
    for i, part in enumerate(loc):
        if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1 if node else line
        elif isinstance(node, yaml.MappingNode):
            pair = next(((key, value) for key, value in node.value if key.value == part), None)
            if pair is not None:
                line, node = pair[0].start_mark.line + 1, pair[1]
            elif i == 2 and any(key.value == "type" and value.value == part for key, value in node.value):
                continue  # by which pydantic tells families apart
            else:
                node = None  # it is missing
        where.append(str(part))
    return line, ".".join(where)
