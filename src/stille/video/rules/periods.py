"""Spans of time as people name them."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from stille.video.errors import SinkError

UNITS = {"minute": 60, "hour": 3600, "day": 86400, "week": 7 * 86400}
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
EXPECTED = (
    "expected today, yesterday, this or last hour, week or month, last 3 hours (minutes, days, weeks), a weekday, "
    "a date such as 2026-05-01, a time such as 2026-05-01T14:00, or two of those with 'to' between"
)


def period(text: str, now: float, timezone: str) -> tuple[float, float]:
    """Start and end in seconds since 1970, the end not included.

    Args:
        timezone: in which days begin.

    Raises:
        SinkError: not understood.
    """
    local = datetime.fromtimestamp(now, ZoneInfo(timezone))
    words = " ".join(text.lower().strip(" .?!").split())
    words = re.sub(r"^(on|in|during|for|since the|the) ", "", words)
    if match := re.fullmatch(r"(?:from )?(.+?) (?:to|until|and) (.+)", words):
        start, end = (_named(part, local) for part in match.groups())
        if start and end and start[0] < end[1]:
            # A day as the end is meant whole, a time of day is the end itself.
            return start[0].timestamp(), (end[1] if end[1] - end[0] >= timedelta(days=1) else end[0]).timestamp()
    elif match := re.fullmatch(r"since (.+)", words):
        if start := _named(match[1], local):
            return start[0].timestamp(), now
    elif match := re.fullmatch(r"(?:the )?(?:last|past) (\d{1,5}) (minute|hour|day|week)s?", words):
        return now - int(match[1]) * UNITS[match[2]], now
    elif found := _named(words, local):
        return found[0].timestamp(), found[1].timestamp()
    raise SinkError(f"{text!r} is no time that is understood: {EXPECTED}")


def _named(words: str, local: datetime) -> tuple[datetime, datetime] | None:
    """Start and end of a named day, week, month or hour; a time of day is an hour."""
    day = local.replace(hour=0, minute=0, second=0, microsecond=0)
    hour = local.replace(minute=0, second=0, microsecond=0)
    week, month = day - timedelta(days=day.weekday()), day.replace(day=1)
    one = timedelta(days=1)
    spans = {
        "today": (day, day + one),
        "yesterday": (day - one, day),
        "now": (local, local),
        "this hour": (hour, hour + timedelta(hours=1)),
        "last hour": (local - timedelta(hours=1), local),
        "this week": (week, week + 7 * one),
        "last week": (week - 7 * one, week),
        "this month": (month, (month + 32 * one).replace(day=1)),
        "last month": ((month - one).replace(day=1), month),
    }
    if words in spans:
        return spans[words]
    if words.removeprefix("last ") in DAYS:  # the newest that is over, or today
        back = (day.weekday() - DAYS.index(words.removeprefix("last "))) % 7
        start = day - timedelta(days=back or (7 if words.startswith("last ") else 0))
        return start, start + one
    try:
        start = datetime.fromisoformat(words.upper())
    except ValueError:
        return None
    start = start if start.tzinfo else start.replace(tzinfo=local.tzinfo)
    return start, start + (one if re.fullmatch(r"\d{4}-?\d{2}-?\d{2}", words) else timedelta(hours=1))
