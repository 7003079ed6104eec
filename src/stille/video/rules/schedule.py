"""When a rule holds: days of the week and hours in a time zone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
Hours = Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d-(([01]\d|2[0-3]):[0-5]\d|24:00)$")]


def known_timezone(name: str) -> str:
    """
    Raises:
        ValueError: no such time zone.
    """
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError(f"there is no time zone {name!r}, expected a name such as Europe/Berlin or UTC") from None
    return name


Timezone = Annotated[str, AfterValidator(known_timezone)]


class Schedule(BaseModel):
    """Hours that end before they begin go on until the next day and belong to the day on which they begin. Times are
    those of the wall clock, in summer as in winter."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    days: tuple[Day, ...] = DAYS
    """Days of the week on which the hours begin."""
    hours: tuple[Hours, ...] = ("00:00-24:00",)
    """Such as 06:00-14:00 or 22:00-06:00."""
    timezone: Timezone | None = None
    """IANA name; the file's time zone if none is given."""
    outside: bool = False
    """Hold at all other times instead."""

    @model_validator(mode="after")
    def _sometimes(self) -> Schedule:
        minutes = _week(self.days, self.hours)
        if len(minutes) == (7 * 1440 if self.outside else 0):
            raise ValueError("the schedule never holds: " + ("nothing is outside it" if self.outside else "no hours"))
        return self

    def holds(self, time: float, timezone: str) -> bool:
        """
        Args:
            time: seconds since 1970 (UTC).
            timezone: if the schedule has none.
        """
        local = _minute(int(time // 60), self.timezone or timezone)
        return (local in _week(self.days, self.hours)) != self.outside


@lru_cache(maxsize=256)
def _week(days: tuple[str, ...], hours: tuple[str, ...]) -> frozenset[int]:
    """The minutes of the week, Monday 00:00 being 0, that lie in the hours."""
    found = set()
    for day in days:
        for span in hours:
            start, end = (int(text[:2]) * 60 + int(text[3:]) for text in span.split("-"))
            if end < start:
                end += 1440
            found.update((DAYS.index(day) * 1440 + minute) % (7 * 1440) for minute in range(start, end))
    return frozenset(found)


@lru_cache(maxsize=4096)
def _minute(minute: int, timezone: str) -> int:
    """Minute of the local week."""
    utc = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(minutes=minute)
    local = utc.astimezone(ZoneInfo(timezone))
    return local.weekday() * 1440 + local.hour * 60 + local.minute
