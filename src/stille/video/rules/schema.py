"""What a rules file says, as data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    GetCoreSchemaHandler,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

from stille.video.rules.schedule import Schedule, Timezone
from stille.video.zones import Floor, polygon_problem

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_. -]*$", max_length=80)]
XY = tuple[FiniteFloat, FiniteFloat]
Kind = Literal["person", "forklift", "pallet", "cart"]


class Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class FloorPoints(Data):
    """Points of the picture and where they are on the floor, in the same order: four or more, no three on a line."""

    picture: tuple[XY, ...] = Field(min_length=4)
    """In 0..1 of the picture, or in pixels of the camera's `size`."""
    metres: tuple[XY, ...] = Field(min_length=4)
    """From any origin, along any two axes at right angles."""


class Camera(Data):
    name: Name
    size: tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]] | None = None
    """Width and height of the picture that pixel coordinates are of. Not needed where all coordinates are 0..1."""
    floor: FloorPoints | None = None
    """Needed by rules about speed and distance."""


class Zone(Data):
    name: Name
    camera: Name
    points: tuple[XY, ...]
    """Corners of a polygon, in 0..1 of the picture or in pixels. A person is in it whose feet are."""
    keep_days: FiniteFloat | None = Field(default=None, gt=0)
    """How long events in it are kept; a rule's own `keep_days` goes first."""

    @field_validator("points")
    @classmethod
    def _polygon(cls, points: tuple[XY, ...]) -> tuple[XY, ...]:
        problem = polygon_problem(points)
        if problem:
            raise ValueError(f"no polygon: {problem}")
        return points


class Line(Data):
    """Seen from `from` to `to`, who crosses it goes from its left to its right or the other way."""

    name: Name
    camera: Name
    start: XY = Field(alias="from")
    end: XY = Field(alias="to")

    @model_validator(mode="after")
    def _long(self) -> Line:
        if self.start == self.end:
            raise ValueError("the line begins where it ends")
        return self


class Slot(Data):
    """A place in a rack."""

    name: Name
    camera: Name
    points: tuple[XY, ...]
    """Corners of a polygon: where in the picture a pallet in it is seen."""
    holds: Literal["pallet", "nothing"] = "pallet"
    """What belongs there."""

    _polygon = field_validator("points")(Zone._polygon.__func__)  # type: ignore[attr-defined]


class OpenAfter(Data):
    """An event opens when `hits` of the last `of` frames show it."""

    hits: int = Field(default=3, ge=1)
    of: int = Field(default=5, ge=1, le=300)

    @model_validator(mode="after")
    def _possible(self) -> OpenAfter:
        if self.hits > self.of:
            raise ValueError(f"{self.hits} hits of {self.of} frames can never be")
        return self


class Rule(Data):
    """What all rules have. A family of rule types is a subclass with `find`; `register` makes it known."""

    id: Name
    type: str
    cameras: tuple[Name, ...] = ()
    """Only these; without zones, lines or slots, none means all."""
    zones: tuple[Name, ...] = ()
    schedule: Schedule | None = None
    """When the rule holds; always if there is none."""
    open_after: OpenAfter = OpenAfter()
    dwell: FiniteFloat = Field(default=0.0, ge=0)
    """Seconds that it has to last before an event opens."""
    quiet: FiniteFloat = Field(default=2.0, ge=0)
    """Seconds without it after which the event closes."""
    min_score: FiniteFloat = Field(default=0.4, ge=0, le=1)
    """Objects count whose median score over the last frames is at least this."""
    keep_days: FiniteFloat | None = Field(default=None, gt=0)
    """How long its events are kept."""
    verify: bool = True
    """Whether a verifier may withhold its events."""
    evidence: bool = True
    """Whether snapshot and clip are written."""

    needs: ClassVar[tuple[str, ...]] = ()
    """What it cannot do without: of "zones", "floor"."""
    about: ClassVar[Literal["objects", "camera"]] = "objects"
    """"camera": it is looked at when there is news of a camera without a picture, too."""
    momentary: ClassVar[bool] = False
    """Each finding is an event of its own, which opens and closes at once."""
    worst: ClassVar[bool] = True
    """An event keeps the words and figures of its highest level; else those of the last."""

    def find(self, view: Any) -> Iterable[Any]:
        """`Finding`s in a `View`, for one zone of the rule or, if it has none, for a camera."""
        raise NotImplementedError


_families: dict[str, type[Rule]] = {}


_Family = TypeVar("_Family", bound=type[Rule])


def register(*types: str) -> Callable[[_Family], _Family]:
    """Decorator: rules of these types are of this class, whose field `type` is a Literal of them."""

    def known(family: _Family) -> _Family:
        for name in types:
            if _families.setdefault(name, family) is not family:
                raise ValueError(f"rule type {name!r} is {_families[name].__name__} already")
        if Rules.__pydantic_complete__:
            Rules.model_rebuild(force=True)
        return family

    return known


class _Registered:
    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        if not _families:
            return handler.generate_schema(Rule)
        choices = {name: handler.generate_schema(family) for name, family in _families.items()}
        return core_schema.tagged_union_schema(choices, discriminator="type")  # type: ignore[arg-type]


class Rules(Data):
    """Cameras, zones and what must not happen in them."""

    version: Literal[1] = 1
    timezone: Timezone = "UTC"
    """Of schedules that name none, and of days in questions over the events."""
    cameras: tuple[Camera, ...] = ()
    zones: tuple[Zone, ...] = ()
    lines: tuple[Line, ...] = ()
    slots: tuple[Slot, ...] = ()
    rules: tuple[Annotated[Rule, _Registered], ...] = ()

    @model_validator(mode="wrap")
    @classmethod
    def _all_at_once(cls, data: Any, handler: Callable[[Any], Rules]) -> Rules:
        """What is wrong between the parts is said along with what is wrong in them."""
        problems: list[InitErrorDetails] = []
        value: Rules | None = None
        try:
            value = handler(data)
        except ValidationError as error:
            for found in error.errors():
                text = found["msg"]
                if found["type"] == "union_tag_invalid":
                    text = _unknown("rule type", found["input"].get("type"), _families)
                problems.append(_problem(found["type"], found["loc"], text, found["input"]))
        raw = data if isinstance(data, Mapping) else value.model_dump(by_alias=True) if value else {}
        problems += [_problem("rules", where, text, None) for where, text in _between(raw)]
        if problems or value is None:
            raise ValidationError.from_exception_data("Rules", problems)
        return value

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """JSON schema of a rules file, for editors."""
        return cls.model_json_schema(by_alias=True)

    @cached_property
    def _cameras(self) -> dict[str, Camera]:
        return {camera.name: camera for camera in self.cameras}

    def camera(self, name: str) -> Camera:
        """One that the file does not name has neither size nor floor."""
        return self._cameras.get(name) or Camera.model_construct(name=name, size=None, floor=None)

    def rule(self, id: str) -> Rule | None:
        return next((rule for rule in self.rules if rule.id == id), None)

    def scaled(self, camera: str, points: Sequence[XY]) -> tuple[XY, ...]:
        """Points as 0..1 of the picture."""
        size = self.camera(camera).size
        if not in_pixels(points) or size is None:
            return tuple(points)
        return tuple((x / size[0], y / size[1]) for x, y in points)

    def floor(self, camera: str) -> Floor | None:
        points = self.camera(camera).floor
        return Floor(self.scaled(camera, points.picture), points.metres) if points else None

    def keep_days(self, rule: str, zone: str | None) -> float | None:
        """For how long an event is kept: as its rule says, else its zone, else None."""
        found = self.rule(rule)
        if found is not None and found.keep_days is not None:
            return found.keep_days
        return next((place.keep_days for place in self.zones if place.name == zone), None)


def in_pixels(points: Iterable[Sequence[float]]) -> bool:
    """Coordinates above 1 are pixels."""
    return any(value > 1 for point in points for value in point)


def _problem(kind: str, where: tuple[Any, ...], text: str, given: Any) -> InitErrorDetails:
    text = text.removeprefix("Value error, ")
    return InitErrorDetails(type=PydanticCustomError(kind, "{text}", {"text": text}), loc=where, input=given)  # type: ignore[arg-type]


def _between(data: Mapping[str, Any]) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Where what does not fit together is, and what: of data whose parts may be wrong as well."""

    def items(key: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
        value = data.get(key)
        for i, item in enumerate(value if isinstance(value, (list, tuple)) else ()):
            if isinstance(item, BaseModel):
                item = item.model_dump(by_alias=True)
            if isinstance(item, Mapping):
                yield i, item

    named: dict[str, dict[Any, Mapping[str, Any]]] = {}
    for key, field in (("cameras", "name"), ("zones", "name"), ("lines", "name"), ("slots", "name"), ("rules", "id")):
        known = named.setdefault(key, {})
        for i, item in items(key):
            name = item.get(field)
            if not isinstance(name, str):
                continue
            if name in known:
                yield (key, i, field), f"{name!r} occurs twice, expected different names"
            known.setdefault(name, item)
    cameras = named["cameras"]

    def points_of(camera: str, value: Any) -> list[tuple[float, float]] | None:
        try:
            return [(float(x), float(y)) for x, y in value]
        except (TypeError, ValueError):
            return None  # said elsewhere

    def outside_picture(camera: Any, value: Any) -> str | None:
        points = points_of(camera, value)
        if points is None or not isinstance(camera, str) or camera not in cameras:
            return None
        size = cameras[camera].get("size")
        if any(v < 0 for p in points for v in p):
            return "a coordinate is negative, expected 0..1 of the picture or pixels"
        if not in_pixels(points):
            return None
        if not size:
            return f"coordinates above 1 are pixels, which need the `size` of camera {camera!r}"
        try:
            beyond = any(x > size[0] or y > size[1] for x, y in points)
        except (TypeError, IndexError):
            return None
        return f"a point is beyond the picture of {size[0]}x{size[1]} pixels" if beyond else None

    floors = set()
    for i, camera in items("cameras"):
        floor = camera.get("floor")
        if not isinstance(floor, Mapping):
            continue
        floors.add(camera.get("name"))
        problem = outside_picture(camera.get("name"), floor.get("picture"))
        picture, metres = (points_of("", floor.get(key)) for key in ("picture", "metres"))
        if problem:
            yield ("cameras", i, "floor", "picture"), problem
        elif picture and metres and len(picture) >= 4 and len(metres) >= 4:
            try:
                Floor(picture, metres)
            except ValueError as error:
                yield ("cameras", i, "floor"), str(error)
    for key, fields in (("zones", ("points",)), ("lines", ("from", "to")), ("slots", ("points",))):
        for i, item in items(key):
            camera = item.get("camera")
            if isinstance(camera, str) and camera not in cameras:
                yield (key, i, "camera"), _unknown("camera", camera, cameras)
            for field in fields:
                value = item.get(field)
                problem = outside_picture(camera, value if field == "points" else [value])
                if problem:
                    yield (key, i, field), problem

    for i, rule in items("rules"):
        for key in ("cameras", "zones", "lines", "slots"):
            names = rule.get(key)
            for j, name in enumerate(names if isinstance(names, (list, tuple)) else ()):
                if not isinstance(name, str):
                    continue
                if name not in named[key]:
                    yield ("rules", i, key, j), _unknown(key[:-1], name, named[key])
                elif key != "cameras" and rule.get("cameras") and named[key][name].get("camera") not in rule["cameras"]:
                    yield (
                        ("rules", i, key, j),
                        f"{key[:-1]} {name!r} is of a camera that the rule's `cameras` leave out",
                    )
        family = _families.get(str(rule.get("type")))
        if family is None:
            continue
        if "zones" in family.needs and not rule.get("zones"):
            yield ("rules", i, "zones"), f"a rule of type {rule['type']} needs zones"
        if "floor" in family.needs:
            mine = {named["zones"][z].get("camera") for z in rule.get("zones") or () if z in named["zones"]}
            for camera in sorted(str(c) for c in (mine or set(rule.get("cameras") or ()) or set(cameras)) - floors):
                yield ("rules", i, "type"), f"{rule['type']} needs the `floor` of camera {camera!r}"


def _covers(cameras: Any, camera: Any) -> bool:
    return not isinstance(cameras, (list, tuple)) or not cameras or camera in cameras


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    return f"there is no {what} {name!r}, expected one of {', '.join(sorted(known)) or '(none is defined)'}"
