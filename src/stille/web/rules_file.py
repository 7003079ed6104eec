"""The rules file as an editor sees it: a change becomes the smallest change of its text, checked before it is written.

Comments, order and the way in which everything else is written stay (ruamel.yaml). Whatever is written has been read
back by `parse_rules` and says what was meant, and nothing else than before.
"""

from __future__ import annotations

import io
import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from stille.video.errors import RulesError
from stille.video.evidence import atomic
from stille.video.rules import Rules, load_rules, parse_rules
from stille.video.rules.schema import in_pixels
from stille.video.zones import Point

Kind = Literal["zone", "line"]


@dataclass(frozen=True)
class Shape:
    """A zone, or a line with its two ends.

    Attributes:
        points: in 0..1 of the picture.
    """

    kind: Kind
    name: str
    camera: str
    points: tuple[Point, ...]


class RulesFile:
    """
    Args:
        path: of a rules file.

    Attributes:
        rules: what it said when it was last right.
        problem: what is wrong with it now; None if nothing is.

    Raises:
        RulesError: it is wrong already.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path).resolve()  # a link stays a link
        self.rules = load_rules(self.path)
        self.problem: str | None = None
        self._before: list[tuple[str, str]] = []  # texts, for undo: before a change, after it
        self._stamp = self._now()
        self._lock = threading.Lock()

    def changed(self) -> bool:
        """Whether somebody else has written it since the last look, and it is right. `problem` says what is not."""
        with self._lock:
            stamp = self._now()
            if stamp == self._stamp:
                return False
            self._stamp = stamp
            try:
                rules = load_rules(self.path)
            except RulesError as error:
                self.problem = str(error)
                return False
            changed, self.rules, self.problem = rules != self.rules, rules, None
            return changed

    def shapes(self, camera: str) -> list[Shape]:
        """Zones and lines of a camera."""
        rules = self.rules
        zones = [Shape("zone", one.name, camera, rules.scaled(camera, one.points)) for one in rules.zones
                 if one.camera == camera]  # fmt: skip
        lines = [Shape("line", one.name, camera, rules.scaled(camera, (one.start, one.end))) for one in rules.lines
                 if one.camera == camera]  # fmt: skip
        return zones + lines

    def put(self, shape: Shape, was: str | None = None, rules: Sequence[str] | None = None,
            new: Mapping[str, Any] | None = None) -> Rules:  # fmt: skip
        """Add a shape, or change the one named `was`.

        Args:
            rules: ids of those rules that are to look there, of all that name zones (lines); None: as before.
            new: fields of a rule to add, which looks there.

        Raises:
            RulesError: a line for each thing that would be wrong; nothing is written.
        """
        return self._write(lambda data: _put(data, shape, was, rules, new))

    def remove(self, kind: Kind, name: str) -> Rules:
        """Remove a shape, and the rules that look nowhere else.

        Raises:
            RulesError: there is none of this name.
        """
        return self._write(lambda data: _remove(data, kind, name))

    def only_there(self, kind: Kind, name: str) -> list[str]:
        """Ids of rules that look nowhere else: without the place they would look everywhere."""
        return [rule.id for rule in self.rules.rules if tuple(getattr(rule, f"{kind}s", ())) == (name,)]

    @property
    def can_undo(self) -> bool:
        return bool(self._before)

    def undo(self) -> Rules:
        """Take the last change back.

        Raises:
            RulesError: there is none, or somebody else has written the file since.
        """
        with self._lock:
            if not self._before:
                raise RulesError(f"{self.path.name}: there is no change to take back")
            before, after = self._before[-1]
            if self._text() != after:
                self._before.clear()
                raise RulesError(f"{self.path.name}: somebody else has changed it since; it is left as it is")
            self._save(before, parse_rules(before, self.path.name))
            self._before.pop()
            return self.rules

    # Writing

    def _write(self, change: Callable[[Any], None]) -> Rules:
        with self._lock:
            before = self._text()
            parse_rules(before, self.path.name)  # of a wrong file nobody knows what a change would do
            after = edited(before, change)
            self._save(after, parse_rules(after, self.path.name))
            self._before = [*self._before[-49:], (before, after)]
            return self.rules

    def _text(self) -> str:
        try:
            return self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RulesError(f"{self.path}: cannot be read: {error}") from error

    def _save(self, text: str, rules: Rules) -> None:
        try:
            with atomic(self.path) as file:
                file.write(text.encode())
                shutil.copymode(self.path, file.name)
        except OSError as error:
            raise RulesError(f"{self.path}: cannot be written: {error}") from error
        self.rules, self.problem, self._stamp = rules, None, self._now()

    def _now(self) -> tuple[int, int, int] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino


def edited(text: str, change: Callable[[Any], None]) -> str:
    """The text of a YAML mapping after `change` of its data; what `change` leaves alone stays as it is written."""
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap
    from ruamel.yaml.util import load_yaml_guess_indent

    writer = YAML()
    writer.preserve_quotes = True
    writer.width = 120
    _, indent, offset = load_yaml_guess_indent(text)
    if indent:
        writer.indent(mapping=2, sequence=indent, offset=offset or 0)
    data = writer.load(text)
    if data is None:
        data = CommentedMap()
    change(data)
    out = io.StringIO()
    writer.dump(data, out)
    return out.getvalue()


def _put(data: Any, shape: Shape, was: str | None, rules: Sequence[str] | None, new: Mapping[str, Any] | None) -> None:
    key = f"{shape.kind}s"
    places = _list(data, key)
    place = _named(places, was) if was is not None else None
    if was is not None and place is None:
        raise RulesError(f"{key}: there is no {shape.kind} {was!r}")
    if not any(one.get("name") == shape.camera for one in _list(data, "cameras")):
        _list(data, "cameras").append(_mapping(name=_text(shape.camera)))
    drawn = _drawn(data, shape)
    if place is None:
        places.append(_mapping(name=_text(shape.name), camera=_text(shape.camera), **drawn))
    else:
        place.update({**drawn, "camera": _text(shape.camera), "name": _text(shape.name)})
        if was != shape.name:
            for rule in _list(data, "rules"):
                names: Any = rule.get(key) or ()
                for i, name in enumerate(names):
                    if name == was:
                        names[i] = _text(shape.name)
    if rules is not None:
        for rule in _list(data, "rules"):
            names = rule.get(key)
            if not names:
                continue
            if rule["id"] in rules and shape.name not in names:
                names.append(_text(shape.name))
            elif rule["id"] not in rules and shape.name in names:
                if len(names) == 1:
                    raise RulesError(
                        f"rules: {rule['id']!r} looks only at {shape.name!r}, without which it would look everywhere; "
                        "remove the rule from the file first"
                    )
                names.remove(shape.name)
    if new is not None:
        fields = {name: _text(value) if isinstance(value, str) else value for name, value in new.items()}
        _list(data, "rules").append(_mapping(**fields, **{key: _flow([_text(shape.name)])}))


def _remove(data: Any, kind: Kind, name: str) -> None:
    key = f"{kind}s"
    places = _list(data, key)
    place = _named(places, name)
    if place is None:
        raise RulesError(f"{key}: there is no {kind} {name!r}")
    places.remove(place)
    rules = _list(data, "rules")
    for rule in [one for one in rules if name in (one.get(key) or ())]:
        if len(rule[key]) == 1:
            rules.remove(rule)
        else:
            rule[key].remove(name)
    if not places:
        del data[key]


def _drawn(data: Any, shape: Shape) -> dict[str, Any]:
    """Its coordinates, in pixels where the file tells the picture's size."""
    size = next((one.get("size") for one in data.get("cameras") or () if one.get("name") == shape.camera), None)
    points: list[list[float]] = [[round(x, 4), round(y, 4)] for x, y in shape.points]
    if size:
        pixels = [[round(x * size[0]), round(y * size[1])] for x, y in shape.points]
        points = pixels if in_pixels(pixels) else points
    flows = [_flow(point) for point in points]
    return {"points": _flow(flows)} if shape.kind == "zone" else {"from": flows[0], "to": flows[1]}


def _list(data: Any, key: str) -> Any:
    """A list of the file; an empty one is begun in block style, so that it can be read when it grows."""
    from ruamel.yaml.comments import CommentedSeq

    if not data.get(key):
        data[key] = CommentedSeq()
    return data[key]


def _named(items: Any, name: str | None) -> Any:
    return next((one for one in items if one.get("name") == name), None)


def _mapping(**fields: Any) -> Any:
    from ruamel.yaml.comments import CommentedMap

    made = CommentedMap(fields)
    made.fa.set_flow_style()
    return made


def _flow(items: Sequence[Any]) -> Any:
    from ruamel.yaml.comments import CommentedSeq

    made = CommentedSeq(items)
    made.fa.set_flow_style()
    return made


def _text(value: str) -> str:
    """Quoted where YAML 1.1, as rules are read, would take it for something else ("on", "12:30")."""
    from ruamel.yaml.scalarstring import DoubleQuotedScalarString

    try:
        plain = yaml.safe_load(value) == value
    except yaml.YAMLError:
        plain = False
    return value if plain else DoubleQuotedScalarString(value)
