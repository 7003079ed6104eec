import re
from datetime import date, timedelta

from hypothesis import given
from hypothesis import strategies as st

from stille.engine.calendar_text import calendar_text

NAMES = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]


@given(st.dates(date(1990, 1, 1), date(2090, 1, 1)), st.integers(0, 3), st.integers(0, 5))
def test_every_day_can_be_read_off(today, before, after):
    found, month = {}, ""
    lines = calendar_text(today, before=before, after=after).splitlines()
    assert len(lines) == before + after + 1
    assert lines[before].startswith("this week: ")
    for line in lines:
        for name, first, day, mark in re.findall(r"(\w{3}) (\d{4}-\d\d-)?(\d\d)( \(today\))?(?:,|$)", line):
            month = first or month
            read = date.fromisoformat(month + day)
            found[read] = bool(mark)
            assert NAMES[read.weekday()] == name
    monday = today - timedelta(days=today.weekday())
    assert list(found) == [monday + timedelta(days=number) for number in range(-7 * before, 7 * (after + 1))]
    assert [day for day, marked in found.items() if marked] == [today]
