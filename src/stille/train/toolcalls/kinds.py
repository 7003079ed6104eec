"""Kinds of arguments: their JSON schema, values of them, and how people say these.

A kind is a type: `City = Annotated[str, Kind(...)]`, so tools are plain typed functions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Annotated, Any

from stille.train.toolcalls import words
from stille.train.toolcalls.dice import Dice


@dataclass(frozen=True, eq=False)
class Kind:
    """A kind of argument.

    Attributes:
        schema: of its values, without a description.
        sample: draws a value.
        say: how somebody might say one.
        question: asks for one.
        ref: how an earlier result is referred to; empty: never.
    """

    schema: dict[str, Any]
    sample: Callable[[Dice], Any]
    question: str
    say: Callable[[Dice, Any], str] = lambda dice, value: str(value)
    ref: str = ""


ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
TEXT = {"type": "string"}


def ordinal(number: int) -> str:
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def say_number(dice: Dice, value: int) -> str:
    return ONES[value] if 0 <= value < len(ONES) and dice.chance(0.4) else str(value)


def say_date(dice: Dice, value: str) -> str:
    """In words, from the day of the conversation where that is told."""
    day = date.fromisoformat(value)
    ahead = (day - dice.today).days
    if dice.told and dice.chance(0.6):
        near = {0: "today", 1: "tomorrow", 2: "the day after tomorrow", -1: "yesterday", 7: "in a week"}
        if ahead in near:
            return near[ahead]
        if 2 < ahead < 7:
            return dice.choice([f"next {DAYS[day.weekday()]}", f"in {say_number(dice, ahead)} days"])
    month, short = MONTHS[day.month - 1], MONTHS[day.month - 1][:3]
    forms = [
        *(
            f"{day.day} {month} {day.year}",
            f"{month} {day.day}, {day.year}",
            f"{day.day:02d}.{day.month:02d}.{day.year}",
        ),
        *(f"the {ordinal(day.day)} of {month} {day.year}", value, f"{short} {ordinal(day.day)} {day.year}"),
    ]
    if dice.told and day.year == dice.today.year:
        forms += [f"{month} {ordinal(day.day)}", f"the {ordinal(day.day)} of {month}", f"{day.day} {short}"]
    return dice.choice(forms)


def say_time(dice: Dice, value: str) -> str:
    hour, minute = int(value[:2]), int(value[3:])
    twelve, half = (hour - 1) % 12 + 1, "am" if hour < 12 else "pm"
    forms = [value, f"{twelve}:{minute:02d} {half}", f"{twelve}.{minute:02d}{half}"]
    if minute == 0:
        forms += [f"{twelve} {half}", f"{twelve}{half}", f"{ONES[twelve]} {'in the morning' if hour < 12 else half}"]
    if minute in (15, 30):
        forms.append(f"{'half' if minute == 30 else 'quarter'} past {ONES[twelve]} {half}")
    if minute == 45:
        forms.append(
            f"quarter to {ONES[twelve % 12 + 1]} {half if hour % 12 != 11 else 'am' if half == 'pm' else 'pm'}"
        )
    return dice.choice(forms)


def say_money(dice: Dice, value: float) -> str:
    number = f"{value:g}" if value == int(value) else f"{value:.2f}"
    grouped = f"{value:,.2f}".removesuffix(".00")
    return dice.choice([f"{number} euros", f"€{grouped}", f"{number} EUR", f"{grouped} euros", f"{number}€"])


def _sample_money(dice: Dice) -> float:
    way = dice.random()
    if way < 0.5:
        return dice.randrange(5, 1000, 5)
    return dice.randrange(1, 400) if way < 0.75 else round(dice.uniform(2, 900), 2)


def _sample_date(dice: Dice) -> str:
    ahead = dice.choice([0, 1, 1, 2, 3, 4, 5, 6, 7, dice.randrange(1, 40), dice.randrange(1, 300)])
    return (dice.today + timedelta(days=ahead)).isoformat()


def _sample_birthday(dice: Dice) -> str:
    return (date(1940, 1, 1) + timedelta(days=dice.randrange(25_000))).isoformat()


def pool(values: tuple[str, ...], question: str, *, ref: str = "") -> Kind:
    """Free text out of a list."""
    return Kind(TEXT, lambda dice: dice.one(values), question, ref=ref)


def enum(values: str, question: str, said: dict[str, str] | None = None) -> Kind:
    """One of a few words; `said` gives (choices|of words) for some of them."""
    listed = values.split()
    names = said or {}

    def say(dice: Dice, value: Any) -> str:
        return dice.expand(names[value]) if value in names else value.replace("_", " ")

    return Kind({"type": "string", "enum": listed}, lambda dice: dice.choice(listed), question, say)


def whole(low: int, high: int, question: str, *, step: int = 1, unit: str = "") -> Kind:
    """An integer; `unit` follows it where it is said, (with|choices)."""

    def say(dice: Dice, value: Any) -> str:
        return say_number(dice, value) + (" " + dice.expand(unit) if unit else "")

    schema = {"type": "integer"}
    return Kind(schema, lambda dice: dice.randrange(low, high + 1, step), question, say)


def code(prefix: str, low: int, high: int, question: str, ref: str) -> Kind:
    """An identifier."""
    return Kind(
        TEXT, lambda dice: f"{prefix}{dice.randint(low, high)}", question, ref=ref
    )  # fmt: skip


def flag(question: str) -> Kind:
    return Kind({"type": "boolean"}, lambda dice: dice.chance(0.7), question, lambda dice, v: "yes" if v else "no")


def several(values: tuple[str, ...], question: str) -> Kind:
    """A list of two or three different texts."""

    def say(dice: Dice, value: Any) -> str:
        return f"{', '.join(value[:-1])} {dice.choice(['and', '&', 'and also'])} {value[-1]}"

    def sample(dice: Dice) -> list[str]:
        found = [dice.one(values)]
        size = dice.choice([2, 2, 3])
        while len(found) < size:
            if (each := dice.one(values)) not in found:
                found.append(each)
            elif dice.chance(0.1):
                break
        return found if len(found) > 1 else [*found, next(v for v in values if v not in found)]

    return Kind({"type": "array", "items": {"type": "string"}}, sample, question, say)


def _person(dice: Dice) -> str:
    return f"{dice.one(words.FIRST)} {dice.one(words.LAST)}" if dice.chance(0.6) else dice.one(words.FIRST)


def _email(dice: Dice) -> str:
    at = f"{dice.one(words.LAST).lower()}{dice.choice(['.', '_', ''])}{dice.choice('abcdefgh')}"
    return f"{at}@{dice.one(words.DOMAINS)}"


Person = Annotated[str, Kind(TEXT, _person, "Who is it about?")]
FullName = Annotated[
    str, Kind(TEXT, lambda dice: f"{dice.one(words.FIRST)} {dice.one(words.LAST)}", "What is the full name?")
]
Email = Annotated[str, Kind(TEXT, _email, "What is the e-mail address?")]
Phone = Annotated[
    str,
    Kind(TEXT, lambda dice: f"+{dice.randint(30, 49)} {dice.randint(100, 999)} {dice.randint(10**5, 10**6 - 1)}",
         "What is the phone number?"),
]  # fmt: skip
City = Annotated[str, pool(words.CITIES, "Which city?")]
Address = Annotated[
    str, Kind(TEXT, lambda dice: f"{dice.randint(1, 180)} {dice.one(words.STREETS)}", "What is the address?")
]
Day = Annotated[str, Kind({"type": "string", "format": "date"}, _sample_date, "On which day?", say_date)]
Birthday = Annotated[
    str, Kind({"type": "string", "format": "date"}, _sample_birthday, "When is the birthday?", say_date)
]
Clock = Annotated[
    str,
    Kind(TEXT, lambda dice: f"{dice.randrange(6, 23):02d}:{dice.choice([0, 0, 15, 30, 30, 45]):02d}",
         "At what time?", say_time),
]  # fmt: skip
Money = Annotated[float, Kind({"type": "number"}, _sample_money, "How much money?", say_money)]
Count = Annotated[int, whole(1, 12, "How many?")]
People = Annotated[int, whole(1, 10, "For how many people?")]
Minutes = Annotated[int, whole(5, 120, "For how many minutes?", step=5)]
Percent = Annotated[int, whole(0, 100, "How many percent?", step=5)]
Topic = Annotated[str, pool(words.TOPICS, "What is it about?")]
Note = Annotated[str, pool(words.NOTES, "What should it say?")]
