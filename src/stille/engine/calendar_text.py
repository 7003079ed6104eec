"""The days around today in words, for instructions: small models count them wrongly, and look them up well."""

from __future__ import annotations

from datetime import date, timedelta

_NAMES = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


def calendar_text(today: date, *, before: int = 1, after: int = 3) -> str:
    """A line for each week, from Monday; months and years stand at the first day of a line and where they change.

    Args:
        today: is marked.
        before, after: weeks before and after this one.
    """
    monday = today - timedelta(days=today.weekday())
    return "\n".join(
        f"{_called(week)}: {_line(monday + timedelta(weeks=week), today)}" for week in range(-before, after + 1)
    )


def _called(week: int) -> str:
    if abs(week) <= 1:
        return ("last week", "this week", "next week")[week + 1]
    return f"in {week} weeks" if week > 0 else f"{-week} weeks ago"


def _line(monday: date, today: date) -> str:
    days = [monday + timedelta(days=number) for number in range(7)]
    return ", ".join(
        f"{name} {day.isoformat() if day == monday or day.day == 1 else f'{day.day:02}'}{' (today)' * (day == today)}"
        for name, day in zip(_NAMES, days, strict=True)
    )
