"""Days, times, lengths and amounts as people say them. Meant for working hours: "at two" is in the afternoon."""

from calendar import monthrange
from datetime import date, timedelta

from stille.train.toolcalls.dice import Dice
from stille.train.toolcalls.kinds import DAYS, MONTHS, ONES, ordinal, say_money

TEENS = ["thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_ODD = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}
_LENGTHS = {
    15: ("15 minutes", "a quarter of an hour", "15 min", "fifteen minutes"),
    20: ("20 minutes", "twenty minutes", "20 min"),
    30: ("30 minutes", "half an hour", "half an hour", "thirty minutes", "30 min", "30 mins"),
    45: ("45 minutes", "three quarters of an hour", "45 min", "45 mins", "forty-five minutes"),
    60: ("an hour", "one hour", "60 minutes", "1 hour", "1h"),
    75: ("75 minutes", "an hour and a quarter", "75 min"),
    90: ("90 minutes", "an hour and a half", "one and a half hours", "ninety minutes", "1.5 hours", "90 min"),
    120: ("two hours", "2 hours", "120 minutes", "2h"),
    180: ("three hours", "3 hours", "180 minutes"),
    240: ("four hours", "4 hours", "240 minutes"),
}
_SPOKEN = {
    10: "ten past",
    15: "quarter past",
    20: "twenty past",
    30: "half past",
    40: "twenty to",
    45: "quarter to",
    50: "ten to",
}


def in_words(number: int) -> str:
    """A number from 0 to 9,999."""
    if number < 20:
        return [*ONES, *TEENS][number]
    if number < 100:
        return TENS[number // 10 - 2] + (f"-{ONES[number % 10]}" if number % 10 else "")
    size, name = (100, "hundred") if number < 1000 else (1000, "thousand")
    rest = number % size
    joined = (" and " if rest < 100 else " ") + in_words(rest) if rest else ""
    return f"{in_words(number // size)} {name}{joined}"


def ordinal_in_words(number: int) -> str:
    """first to thirty-first."""
    *before, last = in_words(number).split("-")
    last = _ODD.get(last) or (f"{last[:-1]}ieth" if last.endswith("y") else f"{last}th")
    return "-".join([*before, last])


def say_day(dice: Dice, day: date, today: date) -> tuple[str, bool]:
    """A day in words, and whether "on" belongs before it."""
    ahead = (day - today).days
    near = _near(day, today, ahead)
    if near and dice.chance(0.62):
        return dice.choice(near)
    if 0 < ahead < 28 and dice.chance(0.3):  # of this month, or of the next one if over
        return f"the {dice.choice([ordinal(day.day), ordinal(day.day), ordinal_in_words(day.day)])}", True
    month, name, nth = MONTHS[day.month - 1], DAYS[day.weekday()], ordinal(day.day)
    forms = [
        *(day.isoformat(), day.isoformat(), f"{month} {day.day}, {day.year}", f"{day.day} {month} {day.year}"),
        *(f"{day.day:02d}.{day.month:02d}.{day.year}", f"{day.day}.{day.month}.{day.year}"),
    ]
    if -20 < ahead < 300:
        forms += [
            *(f"{month} {day.day}", f"{day.day} {month}", f"{month} {nth}", f"the {nth} of {month}"),
            *(
                f"{month[:3]} {day.day}",
                f"{day.day}.{day.month}.",
                f"{day.day:02d}.{day.month:02d}.",
                f"{month} {ordinal_in_words(day.day)}",
            ),
            *(f"{name}, {month} {day.day}", f"{name}, {day.day} {month}", f"{name} the {nth} of {month}"),
            *(
                f"{nth} {month}",
                f"{day.day} {month[:3]}",
                f"{name} {day.day} {month}",
                f"{name[:3]} {day.day} {month[:3]}",
            ),
        ]
    return dice.choice(forms), True


def _near(day: date, today: date, ahead: int) -> list[tuple[str, bool]]:
    """Ways to say it from today; weekdays only where they cannot mean another week."""
    name, nth = DAYS[day.weekday()], ordinal(day.day)
    week = (day - timedelta(days=day.weekday()) - today + timedelta(days=today.weekday())).days // 7
    near: list[tuple[str, bool]] = []
    if ahead > 0 and (day.year, day.month) == (today.year, today.month):
        near.append((f"the {nth} of this month", True))
    if ahead == 1:
        near.append((f"tomorrow ({name})", False))
    if word := {0: "today", 1: "tomorrow", 2: "the day after tomorrow", -1: "yesterday"}.get(ahead):
        near += [(word, False)] * 4
    if 0 < ahead < 7:
        near += [(name, True), (name, True), (f"this {name}" if week == 0 else f"next {name}", False)]
        near += [(f"{name} the {nth}", True), (f"the coming {name}", True), (f"{name} {nth}", True)]
        if week == 0:
            near += [(f"this coming {name}", False), (f"{name} of this week", True)]
    if week == 1:
        near += [(f"{name} next week", True), (f"next {name}, the {nth}", False)]
        near.append((f"{name} of next week", True))
    if 7 < ahead < 14:  # a week after the coming one
        near += [(f"a week on {name}", False), (f"{name} week", True)]
    if 2 < ahead < 11 or ahead == 14:
        near.append((f"in {ONES[ahead] if ahead % 2 else ahead} days", False))
    if ahead in (7, 14):
        near.append(("in a week" if ahead == 7 else "in two weeks", False))
    if -7 < ahead < -1:
        near += [(f"last {name}", False)] * 2
    if day.day == monthrange(day.year, day.month)[1] and ahead > 0 and day.month == today.month:
        near += [("the last day of the month", True), ("the last day of this month", True)]
    if (day.year * 12 + day.month) - (today.year * 12 + today.month) == 1:
        near.append((f"the {nth} of next month", True))
    return near


def say_clock(dice: Dice, value: str) -> str:
    """A time of day without "at"."""
    hour, minute = int(value[:2]), int(value[3:])
    twelve, half = (hour - 1) % 12 + 1, "am" if hour < 12 else "pm"
    part = "in the morning" if hour < 12 else "in the afternoon" if hour < 18 else "in the evening"
    working = 8 <= hour <= 18 and (hour < 18 or minute == 0)
    forms = [value, value, f"{hour}:{minute:02d}", f"{twelve}:{minute:02d} {half}", f"{twelve}.{minute:02d}{half}"]
    forms.append(f"{twelve}:{minute:02d} {half.upper()}")
    if not 0 < minute < 13:  # could be a day and a month
        forms.append(f"{hour:02d}.{minute:02d}")
    if hour > 12:
        forms += [f"{hour}h{minute:02d}" if minute else f"{hour}h", value.replace(":", "")]
    if minute == 0:
        forms += [f"{twelve} {half.upper()}", f"{ONES[twelve]} {half}", f"{twelve} {half[0]}.m."]
        forms += [f"{twelve} {half}", f"{twelve}{half}", f"{ONES[twelve]} {part}", f"{twelve} o'clock {part}"]
        if working:
            forms += [ONES[twelve]] * 2 + [f"{ONES[twelve]} o'clock", f"{twelve} o'clock", str(twelve), str(hour)]
        if hour == 12:
            forms += ["noon", "noon", "midday", "noon"]
    spoken = _SPOKEN.get(minute)
    if spoken:
        named = ONES[twelve % 12 + 1 if minute > 30 else twelve]
        article = "a " if minute in (15, 45) and dice.chance(0.5) else ""
        forms += [f"{article}{spoken} {named}{'' if working else ' ' + part}"] * 2
        forms.append(f"{spoken} {named} {part}")
    return dice.choice(forms)


def say_minutes(dice: Dice, value: int) -> str:
    return dice.choice(_LENGTHS.get(value, (f"{value} minutes", f"{value} min")))


def say_euros(dice: Dice, value: int) -> str:
    if dice.chance(0.12):
        if value % 100 == 0 and value > 1000 and value % 1000:
            return f"{in_words(value // 100)} hundred euros"
        return f"{in_words(value)} euros"
    return f"{value}" if dice.chance(0.08) else say_money(dice, value)


def later(value: str, minutes: int) -> str | None:
    """A time some minutes later, HH:MM; None: on another day."""
    at = int(value[:2]) * 60 + int(value[3:]) + minutes
    return f"{at // 60:02d}:{at % 60:02d}" if 0 <= at < 24 * 60 else None
